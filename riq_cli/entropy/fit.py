"""The distribution and the contexts by which a layer's symbols take least room.

Contexts are searched greedily: slices get codes along those axes where these save most, as long as they do. Then each
slice's code is moved to where its symbols take fewest bits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.entropy.codes import Codes, Symbols
from riq_cli.entropy.contexts import Contexts
from riq_cli.entropy.histogram import Histogram
from riq_cli.entropy.rate import CODES_BITS, STREAM_BITS, mean_magnitudes, scale_codes
from riq_cli.entropy.student import FREEDOM_MAX, LOW_BITS_MAX, Student, StudentCoding, share_below
from riq_cli.limits import CELLS, CODE_MAX, CODES, SCALES

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Slab = tuple[slice, ...]

_FREEDOM = 2  # eight degrees of freedom, where contexts are compared …
_FREEDOMS = range(FREEDOM_MAX + 1)  # … and any in the end
_SHRUNK = 1  # weights of average magnitude that are added to each slice
_CODE_BOUND = 40  # quarters of an octave by which a slice's scale differs from the layer's at most
_STEP = 2  # quarters of an octave by which codes differ at first
_WEIGHTS_EACH = 8  # of a slice, at least, for codes of its own
_ROUNDS = 3  # in which all codes are moved
_MOVES = (0, -1, 1, -2, 2, -4, 4)  # quarters of an octave; the first of those that are as good
_UNSEEN = 0.3  # how often a code counts as there that is not
_LEAST_GAIN = 0.1  # bits that a step of the scale must save: of few weights, every wider one saves a trifle
_RAREST, _TINY = 2.0**-24, 1e-300
_BLOCK = 1 << 18
_COMPARED = 1 << 21  # symbols of a layer that stand for all of them where contexts are compared, about


def fitted(
    symbols: Symbols, shape: Sequence[int], scales: tuple[Codes, ...], trellis: bool
) -> tuple[float, StudentCoding] | None:
    """About the least bits of a layer's symbols i32[n] by Student's t, with the coding; None if it cannot code them.

    The `scales` are codes of its bin widths; with `trellis`, the symbols are those of one.
    """
    layer = _Layer.of(symbols, shape, scales, trellis)
    if layer.count < 2 or layer.low_bits > LOW_BITS_MAX:
        return None
    best = layer.coded(_Trial())
    while True:
        trials = layer.extended(best)
        found = min((layer.coded(trial) for trial in trials), key=lambda trial: trial.bits, default=best)
        if found.bits >= best.bits:
            break
        best = found
    best = layer.coded(best, False, _FREEDOMS)
    for _ in range((_ROUNDS if symbols.size <= _COMPARED else 1) if best.codes else 0):
        found = layer.coded(layer.moved(best), False, _FREEDOMS)
        if found.bits >= best.bits:
            break
        best = found
    assert best.student is not None
    contexts = Contexts(layer.codes_of(best), tuple(shape), scales if best.relative else ())
    return best.bits, StudentCoding(best.student, contexts, trellis)


@dataclass(frozen=True, eq=False)
class _Trial:
    """Codes of contexts, i32 of the shape of `_Layer.symbols` along some axes and of size 1 along the others.

    With `relative`, codes of bin widths are taken off them. The best distribution for them, with the bits of all.
    """

    codes: tuple[Symbols, ...] = ()
    relative: bool = False
    student: Student | None = None
    bits: float = math.inf


@dataclass(frozen=True, eq=False)
class _Layer:
    """The symbols of a layer, of its first axis, its second, and all further ones together: i32[a, b, c].

    `steps` are the codes of bin widths, each i32 of this shape or of size 1 along some axes. Symbols are coded in
    `count` cells of 2^`low_bits` from `first` on, of which `used` i64[u] are in use, numbered from `first`.
    """

    symbols: Symbols
    shape: tuple[int, ...]
    steps: tuple[Symbols, ...]
    trellis: bool
    center: int
    low_bits: int
    first: int
    count: int
    used: Integers
    known: dict[tuple[int, int], Floats] = field(default_factory=dict)  # bits of cells by freedom and code of the scale

    @classmethod
    def of(cls, symbols: Symbols, shape: Sequence[int], scales: Sequence[Codes], trellis: bool) -> _Layer:
        """Cells as small as they may be, around 0 unless that is far from most of the symbols."""
        histogram = Histogram.of(symbols)
        center = int(histogram.symbols[np.searchsorted(np.cumsum(histogram.counts), symbols.size / 2)])
        if 2 * abs(center) <= histogram.counts @ np.abs(histogram.symbols - center) / symbols.size:
            center = 0
        low, high, low_bits = int(histogram.symbols[0]), int(histogram.symbols[-1]), 0
        while (high >> low_bits) - (low >> low_bits) >= CELLS:
            low_bits += 1
        used = np.unique(histogram.symbols >> low_bits)
        first, count = int(used[0]), int(used[-1] - used[0]) + 1
        sizes = (*shape[:2], math.prod(shape[2:])) if len(shape) > 2 else (*shape, 1, 1, 1)[:3]
        steps = [_merged(scale, shape) for scale in scales]
        steepest = sum(int(np.abs(item).max()) for item in steps)
        usable = 0 < steepest <= CODE_MAX - SCALES * _CODE_BOUND
        return cls(
            symbols.reshape(sizes), tuple(shape), tuple(steps) if usable else (), trellis, center, low_bits, first,
            count, used - first,
        )  # fmt: skip

    @property
    def middle(self) -> float:
        """Where the symbols are as often below as above."""
        return self.center - (0.25 if self.trellis else 0.0)

    def codes_of(self, trial: _Trial) -> tuple[Codes, ...]:
        """The codes of contexts along the axes of the layer itself."""
        found = []
        for item in trial.codes:
            axes = [axis for axis in range(len(self.shape)) if self.shape[axis] > 1 and item.shape[min(axis, 2)] > 1]
            found.append(Codes(tuple(axes), item.reshape([self.shape[axis] for axis in axes])))
        return tuple(found)

    def extended(self, trial: _Trial) -> Iterator[_Trial]:
        """The trial with codes along further axes, or relative to bin widths."""
        if self.steps and not trial.relative:
            yield replace(trial, relative=True)
        sizes = self.symbols.shape
        long = [axis for axis, size in enumerate(sizes) if size > 1]
        most = min(CODES, self.symbols.size // _WEIGHTS_EACH)
        there = {tuple(np.flatnonzero(np.array(item.shape) > 1).tolist()) for item in trial.codes}
        wanted = [
            axes
            for number in range(1, len(long))
            for axes in itertools.combinations(long, number)
            if axes not in there and math.prod(sizes[axis] for axis in axes) <= most
        ]
        if not wanted or len(trial.codes) == SCALES:
            return
        observed = [np.zeros([size if axis in axes else 1 for axis, size in enumerate(sizes)]) for axes in wanted]
        expected = [np.zeros_like(total) for total in observed]
        assert trial.student is not None
        lowest, span = self._range(trial)
        known = mean_magnitudes(trial.student.scale + lowest + np.arange(span), self.trellis)
        for slab in self._slabs():
            magnitudes = np.abs(self.symbols[slab] - np.float32(self.middle))
            means = np.broadcast_to(known[self._contexts(trial, slab) - lowest], magnitudes.shape)
            for found, total in zip(observed, expected, strict=True):
                _part(found, slab)[...] += _summed(magnitudes, found)
                _part(total, slab)[...] += _summed(means, total)
        added = []
        for found, total in zip(observed, expected, strict=True):
            count, mean = self.symbols.size // total.size, float(found.sum()) / self.symbols.size
            total *= found.sum() / total.sum() / count
            codes = scale_codes((found + _SHRUNK * mean) / (count + _SHRUNK), self.trellis)
            codes = np.rint((codes - scale_codes(total, self.trellis)) / _STEP) * _STEP
            added.append(np.clip(codes, -_CODE_BOUND, _CODE_BOUND).astype(np.int32))
        if not trial.codes:  # codes that do not pay alone may do so together
            yield replace(trial, codes=tuple(item for axes, item in zip(wanted, added, strict=True) if len(axes) == 1))
        for item in added:
            yield replace(trial, codes=(*trial.codes, item))

    def coded(self, trial: _Trial, roughly: bool = True, freedoms: Sequence[int] = (_FREEDOM,)) -> _Trial:
        """The trial with the distribution, of the freedom and scale that take least room, and about its bits.

        Where this is done `roughly`, some of many symbols stand for all.
        """
        trial = replace(trial, codes=tuple(item for item in trial.codes if item.any()))
        lowest, span = self._range(trial)
        cells = np.zeros(span * self.used.size)
        for slab in self._slabs(-(-self.symbols.size // _COMPARED) if roughly else 1):
            places = self._places(slab) + (self._contexts(trial, slab) - lowest) * self.used.size
            cells += np.bincount(places.reshape(-1), minlength=cells.size)
        counts = cells.reshape(span, -1) * (self.symbols.size / cells.sum())
        in_use = np.flatnonzero(counts.any(axis=1))
        bits, freedom, scale = min(self._scaled(counts[in_use], in_use + lowest, freedom) for freedom in freedoms)
        student = Student(freedom, trial.relative, scale, self.center, self.low_bits, self.first, self.count)
        bits += sum(8 * len(item.to_bytes()) + CODES_BITS for item in self.codes_of(trial))
        bits += STREAM_BITS + 8 * len(student.to_bytes()) + self.low_bits * self.symbols.size
        return replace(trial, student=student, bits=bits)

    def moved(self, trial: _Trial) -> _Trial:
        """The trial with each slice's code moved to where its symbols take least room, if those of others stay."""
        assert trial.student is not None
        for number, item in enumerate(trial.codes):
            margin = max(_MOVES)
            lowest, span = self._range(trial)
            reached = np.arange(lowest - margin, lowest + span + margin)
            within = CODE_MAX - abs(trial.student.scale)
            codes = trial.student.scale + np.clip(reached, -within, within)
            table = self._bits(trial.student.freedom, codes).astype(np.float32).reshape(-1)
            costs = np.zeros((len(_MOVES), *item.shape))
            for slab in self._slabs():
                places = self._places(slab) + (self._contexts(trial, slab) - lowest + margin) * self.used.size
                for move, cost in zip(_MOVES, costs, strict=True):
                    _part(cost, slab)[...] += _summed(table[places + move * self.used.size], cost)
            known, counts = np.unique(item, return_counts=True)
            for move, cost in zip(_MOVES, costs, strict=True):
                position = np.minimum(np.searchsorted(known, item + move), known.size - 1)
                cost -= np.log2(np.where(known[position] == item + move, counts[position], 0) + _UNSEEN)
            changed = np.clip(item + np.array(_MOVES)[np.argmin(costs, axis=0)], -_CODE_BOUND, _CODE_BOUND)
            codes_now = (*trial.codes[:number], changed.astype(np.int32), *trial.codes[number + 1 :])
            trial = replace(trial, codes=codes_now)
        return trial

    def _slabs(self, step: int = 1) -> Iterator[Slab]:
        """Parts that make up the layer, each of about `_BLOCK` symbols; with a step, every so manieth."""
        sizes = self.symbols.shape
        last = next(axis for axis in range(3) if math.prod(sizes[axis + 1 :]) <= _BLOCK)
        rows = max(1, _BLOCK // math.prod(sizes[last + 1 :]))
        every = (
            (*(slice(index, index + 1) for index in before), slice(begin, begin + rows))
            for before in np.ndindex(*sizes[:last])
            for begin in range(0, sizes[last], rows)
        )
        return itertools.islice(every, 0, None, step)

    def _places(self, slab: Slab) -> Symbols:
        """Which of the cells in use each symbol is in."""
        places = np.zeros(self.count, np.int32)
        places[self.used] = np.arange(self.used.size)
        found: Symbols = places[(self.symbols[slab] >> self.low_bits) - self.first]
        return found

    def _contexts(self, trial: _Trial, slab: Slab) -> Symbols:
        """The contexts of a part of the layer, of size 1 along axes where they are all the same."""
        total: Symbols = np.zeros((1, 1, 1), np.int32)
        for item in trial.codes:
            total = total + _part(item, slab)
        for item in self.steps if trial.relative else ():
            total = total - _part(item, slab)
        return total

    def _range(self, trial: _Trial) -> tuple[int, int]:
        """The lowest context that there could be, and how many."""
        parts = [*trial.codes, *(-item for item in (self.steps if trial.relative else ()))]
        return sum(int(item.min()) for item in parts), 1 + sum(int(np.ptp(item)) for item in parts)

    def _scaled(self, counts: Floats, contexts: Integers, freedom: int) -> tuple[float, int, int]:
        """The least bits of cells [contexts, used], with this freedom and the scale that they take."""
        within = CODE_MAX - int(np.abs(contexts).max())

        def bits(scale: int) -> float:
            return float(np.sum(counts * self._bits(freedom, scale + contexts)))

        middles = (self.used + self.first + 0.5) * 2.0**self.low_bits - 0.5 - self.middle
        mean = float(np.sum(counts * np.abs(middles) * np.exp2(-contexts[:, None] / 4)) / counts.sum())
        scale = max(-within, min(round(4 * math.log2(mean + 0.25)), within))
        least = bits(scale)
        for step in (-1, 1):
            while abs(scale + step) <= within and (found := bits(scale + step)) < least - _LEAST_GAIN:
                least, scale = found, scale + step
        return least, freedom, scale

    def _bits(self, freedom: int, codes: Integers) -> Floats:
        """Bits of each of the cells in use, [codes, used], of weights whose scales have these codes."""
        if new := [code for code in codes.tolist() if (freedom, code) not in self.known]:
            column = np.array(new, np.float64)[:, None]

            def below(cells: Integers) -> NDArray[np.floating[Any]]:
                return share_below(4 * ((cells << self.low_bits) - 0.5 - self.middle), column, freedom)

            starts = self.used + self.first
            masses = below(starts + 1) - below(starts)
            ends = below(np.array([self.first, self.first + self.count]))
            every = np.maximum(ends[:, 1:] - ends[:, :1], _TINY)
            rows = -np.log2(np.maximum(masses, 0) / every + _RAREST)
            self.known.update(zip(((freedom, code) for code in new), rows, strict=True))
        return np.array([self.known[freedom, code] for code in codes.tolist()])


def _merged(scale: Codes, shape: Sequence[int]) -> Symbols:
    """Codes of bin widths as `_Layer.symbols` has its axes."""
    aligned = scale.aligned(len(shape))
    if any(axis > 1 for axis in scale.axes):
        aligned = np.broadcast_to(aligned, (*aligned.shape[:2], *shape[2:]))
    sizes = (*aligned.shape, 1, 1, 1)
    return aligned.reshape(*sizes[:2], math.prod(aligned.shape[2:]))


def _part(array: NDArray[Any], slab: Slab) -> NDArray[Any]:
    """What of an array, of size 1 along some axes, belongs to a part of the layer: a view."""
    return array[tuple(part if size > 1 else slice(None) for part, size in zip(slab, array.shape, strict=False))]


def _summed(values: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    """Values summed over the axes along which another array has size 1."""
    axes = tuple(axis for axis, size in enumerate(like.shape) if size == 1)
    sums: NDArray[Any] = values.sum(axis=axes, dtype=np.float64, keepdims=True)
    return sums
