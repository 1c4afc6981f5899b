"""How far the symbols of a layer are spread: the magnitudes of its slices, and the Student's t, that take least room.

Slices along several axes are told apart at the same time, by how loud they are: a row and a column of a matrix, an
input, an output and a tap of a convolution. Then each slice's code is moved to where its symbols take fewest bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.entropy import coder
from riq_cli.entropy.codes import Codes, Symbols
from riq_cli.entropy.magnitudes import Magnitudes, Spread
from riq_cli.entropy.rate import CODES_BITS, STREAM_BITS
from riq_cli.entropy.student import FREEDOM_MAX, LOW_BITS_MAX, Student, share_below
from riq_cli.limits import CELLS, CODE_MAX, CODES

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_FREEDOM = 2  # eight degrees of freedom, where codes are compared …
_FREEDOMS = range(FREEDOM_MAX + 1)  # … and any in the end
_SHRUNK = 1  # weights as loud as all of the layer that are taken to be in each slice
_LOUDEST = 40  # quarters of an octave that a slice is louder or less loud than the layer, at most
_STEPS = (1, 2, 4)  # quarters of an octave by which codes may differ
_WEIGHTS_EACH = 8  # of a slice, at least, for codes of its own
_ROUNDS = 3  # in which all codes are moved, at most
_MOVES = (0, -1, 1, -2, 2, -4, 4)  # quarters of an octave; the first of those that are as good
_UNSEEN = 0.3  # how often a code counts as there that is not
_LEAST_GAIN = 0.1  # bits that a step of the scale must save: of few weights, every wider one saves a trifle
_RAREST, _TINY = 2.0**-24, 1e-300
_BLOCK = 1 << 18
_COMPARED = 1 << 21  # symbols of a layer that stand for all of them where codes are compared, about
_CENTERED = 1 << 16  # weights of a layer at most whose symbols may have another middle than 0


@dataclass(frozen=True, eq=False)
class Spreading:
    """A spread, and about the bits that it takes, codes and all: the least of several takes fewest."""

    spread: Spread
    bits: float

    @property
    def codes(self) -> tuple[Codes, ...]:
        """Those of its magnitudes."""
        return self.spread.magnitudes.codes

    def __lt__(self, other: Spreading) -> bool:
        return self.bits < other.bits


def best_spread(symbols: Symbols, shape: Sequence[int], scales: tuple[Codes, ...], trellis: bool) -> Spreading | None:
    """The spread of a layer's symbols that takes least room; None where they are all the same, or too far apart.

    Args:
        symbols: of the layer, i32[n].
        shape: of the layer.
        scales: of their bin widths.
        trellis: whether they are those of a trellis.
    """
    if symbols.min() == symbols.max():
        return None
    structures = _structures(shape, symbols.size)
    found = []
    loudest = sum(int(np.abs(scale.values).max()) for scale in scales)
    for given in ((), scales) if 0 < loudest <= CODE_MAX - 3 * _LOUDEST else ((),):
        cells = _Cells.of(symbols, tuple(shape), trellis, given)
        if cells.low_bits > LOW_BITS_MAX:
            return None
        found.append((_told_apart(cells, structures), cells))
    best, cells = min(found, key=lambda pair: pair[0].bits)
    best = cells.spread(best.codes, False, _FREEDOMS)
    for _ in range((_ROUNDS if symbols.size <= _COMPARED else 1) if best.codes else 0):
        moved = cells.refined(best)
        if not moved < best:
            break
        best = moved
    return best


def _told_apart(cells: _Cells, structures: Sequence[tuple[tuple[int, ...], ...]]) -> Spreading:
    """The best spread with codes as slices are loud, along those of the axes where they pay."""
    best = cells.spread(())
    loudness = cells.loudness(structures)
    for axes in structures:
        levels = _levels(axes, loudness)
        for step in _STEPS:
            codes = tuple(_coded(along, level, step) for along, level in zip(axes, levels, strict=True))
            best = min(best, cells.spread(codes))
    while codes := best.codes:
        fewer = min(cells.spread((*codes[:number], *codes[number + 1 :])) for number in range(len(codes)))
        if not fewer < best:
            break
        best = fewer
    return best


def _structures(shape: Sequence[int], size: int) -> list[tuple[tuple[int, ...], ...]]:
    """Sets of axes along which slices may be told apart at the same time."""
    parts = parts_of(shape)
    if len(parts) < 2:
        return []
    found = [parts]
    if len(parts) == 3:
        one, two, three = parts
        found += [(one + two, one + three), (one + two, two + three), (one + three, two + three)]
    most = min(CODES, size // _WEIGHTS_EACH)
    return [axes for axes in found if all(math.prod(shape[axis] for axis in along) <= most for along in axes)]


def _levels(axes: Sequence[tuple[int, ...]], loudness: Mapping[tuple[int, ...], Floats]) -> list[Floats]:
    """How much louder slices are than the layer, in octaves: independent of each other, given the axes they share."""
    levels, seen = [], set[int]()
    for along in axes:
        shared = tuple(axis for axis in along if axis in seen)
        level = loudness[along]
        if shared:
            sizes = [size if axis in shared else 1 for axis, size in zip(along, level.shape, strict=True)]
            level = level - loudness[shared].reshape(sizes)
        levels.append(level)
        seen |= {*along}
    return levels


def _coded(along: tuple[int, ...], level: Floats, step: int) -> Codes:
    """Levels as codes, `step` quarters of an octave apart."""
    return Codes(along, np.clip(np.rint(level * 4 / step) * step, -_LOUDEST, _LOUDEST).astype(np.int32))


def parts_of(shape: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Axes that count as one: of those longer than 1 the first, the second, and all further ones together."""
    long = tuple(axis for axis, size in enumerate(shape) if size > 1)
    return tuple(part for part in (long[:1], long[1:2], long[2:]) if part)


def slices_along(axes: tuple[int, ...], shape: Sequence[int]) -> Codes:
    """The number of each slice along some axes, 0 for the first."""
    sizes = [shape[axis] for axis in axes]
    return Codes(axes, np.arange(math.prod(sizes), dtype=np.int32).reshape(sizes))


@dataclass(frozen=True, eq=False)
class _Cells:
    """The symbols of a layer, and the cells that they are coded in: `count` from `first` on, of which some are in use.

    `used` i64[u] are the numbers of those from `first` on. With `scales`, magnitudes are those of weights in bins of
    such widths.
    """

    symbols: Symbols
    shape: tuple[int, ...]
    trellis: bool
    center: int
    low_bits: int
    first: int
    count: int
    used: Integers
    scales: tuple[Codes, ...]

    @classmethod
    def of(cls, symbols: Symbols, shape: tuple[int, ...], trellis: bool, scales: tuple[Codes, ...]) -> _Cells:
        """Cells as small as they may be, around 0 unless that is far from most of the symbols."""
        center = int(np.median(symbols)) if symbols.size <= _CENTERED else 0
        if 2 * abs(center) <= np.mean(np.abs(symbols - float(center))):
            center = 0
        low, high, low_bits = int(symbols.min()), int(symbols.max()), 0
        while (high >> low_bits) - (low >> low_bits) >= CELLS:
            low_bits += 1
        first = low >> low_bits
        count = (high >> low_bits) - first + 1
        known = np.zeros(count, bool)
        for begin in range(0, symbols.size, _BLOCK):
            known[(symbols[begin : begin + _BLOCK] >> low_bits) - first] = True
        return cls(symbols, shape, trellis, center, low_bits, first, count, np.flatnonzero(known), scales)

    @property
    def middle(self) -> float:
        """Where the symbols are as often below as above."""
        return self.center - (0.25 if self.trellis else 0.0)

    def _blocks(self, step: int = 1, size: int = _BLOCK) -> Iterator[tuple[int, int, Symbols]]:
        """Where every `step`-th block of symbols begins and ends, and which of the cells in use each of its is in."""
        places = np.zeros(self.count, np.int32)
        places[self.used] = np.arange(self.used.size)
        for begin in range(0, self.symbols.size, step * size):
            part = self.symbols[begin : begin + size]
            yield begin, begin + part.size, places[(part >> self.low_bits) - self.first]

    def _magnitudes(self, codes: Iterable[Codes]) -> Magnitudes:
        return Magnitudes(tuple(codes), self.shape, self.scales)

    def loudness(self, structures: Sequence[Sequence[tuple[int, ...]]]) -> dict[tuple[int, ...], Floats]:
        """By axes, how much louder their slices are than the layer, in octaves; silent ones are not far off."""
        wanted = {along for axes in structures for along in axes}
        wanted |= {tuple(sorted({*one} & {*two})) for axes in structures for one in axes for two in axes} - {()}
        slices = {along: slices_along(along, self.shape) for along in wanted}
        sums = {along: np.zeros(item.values.size) for along, item in slices.items()}
        block = max(_BLOCK, *(total.size for total in sums.values())) if sums else _BLOCK
        for begin in range(0, self.symbols.size, block):
            part = np.abs(self.symbols[begin : begin + block] - self.middle)
            for item in self.scales:
                part *= np.exp2(item.run(self.shape, begin, begin + part.size) / 4)
            for along, total in sums.items():
                total += np.bincount(slices[along].run(self.shape, begin, begin + part.size), part, total.size)
        result = {}
        for along, total in sums.items():
            mean = float(total.sum()) / self.symbols.size
            shrunk = (total + _SHRUNK * mean) / (self.symbols.size // total.size + _SHRUNK)
            result[along] = np.log2(shrunk / mean).reshape([self.shape[axis] for axis in along])
        return result

    def spread(
        self, codes: tuple[Codes, ...], roughly: bool = True, freedoms: Sequence[int] = (_FREEDOM,)
    ) -> Spreading:
        """The symbols' spread with these codes of magnitudes, of the freedom and scale that take least room.

        Args:
            codes: of the magnitudes.
            roughly: some of many symbols stand for all.
            freedoms: to choose from.
        """
        magnitudes = self._magnitudes(item for item in codes if item.values.any())
        flat = np.zeros(magnitudes.span * self.used.size)
        for begin, end, places in self._blocks(-(-self.symbols.size // _COMPARED) if roughly else 1):
            places += magnitudes.run(begin, end) * self.used.size
            flat += np.bincount(places, minlength=flat.size)
        counts = flat.reshape(-1, self.used.size) * (self.symbols.size / flat.sum())
        in_use = np.flatnonzero(counts.any(axis=1))
        magnitude = in_use + magnitudes.lowest
        bits, freedom, scale = min(self._scaled(counts[in_use], magnitude, freedom) for freedom in freedoms)
        student = Student(freedom, bool(self.scales), scale, self.center, self.low_bits, self.first, self.count)
        bits += sum(8 * len(coder.encode_codes(item.values.reshape(-1))) + CODES_BITS for item in magnitudes.codes)
        bits += STREAM_BITS + 8 * len(student.to_bytes()) + self.low_bits * self.symbols.size
        return Spreading(Spread(student, magnitudes, self.trellis), bits)

    def _scaled(self, counts: Floats, magnitudes: Integers, freedom: int) -> tuple[float, int, int]:
        """The least bits of cells [magnitudes, used], with this freedom and the scale that they take."""
        within = CODE_MAX - int(np.abs(magnitudes).max())

        def bits(scale: int) -> float:
            return float(np.sum(counts * self._bits(freedom, scale + magnitudes)))

        middles = (self.used + self.first + 0.5) * 2.0**self.low_bits - 0.5 - self.middle
        mean = float(np.sum(counts * np.abs(middles) * np.exp2(-magnitudes[:, None] / 4)) / counts.sum())
        scale = max(-within, min(round(4 * math.log2(mean + 0.25)), within))
        least = bits(scale)
        for step in (-1, 1):
            while abs(scale + step) <= within and (found := bits(scale + step)) < least - _LEAST_GAIN:
                least, scale = found, scale + step
        return least, freedom, scale

    def _bits(self, freedom: int, codes: Integers) -> Floats:
        """Bits of each of the cells in use, [codes, used], of weights whose scales have these codes."""

        def below(cells: Integers) -> NDArray[np.floating[Any]]:
            quarters = 4 * ((cells << self.low_bits) - 0.5 - self.middle)
            return share_below(quarters, codes[:, None].astype(np.float64), freedom)

        starts = self.used + self.first
        masses = below(starts + 1) - below(starts)
        ends = below(np.array([self.first, self.first + self.count]))
        every = np.maximum(ends[:, 1:] - ends[:, :1], _TINY)
        result: Floats = -np.log2(np.maximum(masses, 0) / every + _RAREST)
        return result

    def refined(self, spreading: Spreading) -> Spreading:
        """The same with each slice's code moved to where its symbols take least room, if those of others stay."""
        codes = list(spreading.codes)
        for number, item in enumerate(codes):
            codes[number] = self._moved(spreading.spread.student, self._magnitudes(codes), item)
        return self.spread(tuple(codes), False, _FREEDOMS)

    def _moved(self, student: Student, magnitudes: Magnitudes, item: Codes) -> Codes:
        """Some of the codes of magnitudes, each moved by the number of quarters that saves most."""
        margin = max(_MOVES)
        reached = np.arange(magnitudes.lowest - margin, magnitudes.lowest + magnitudes.span + margin)
        within = CODE_MAX - abs(student.scale)
        table = self._bits(student.freedom, student.scale + np.clip(reached, -within, within)).reshape(-1)
        slices = slices_along(item.axes, self.shape)
        costs = np.zeros((len(_MOVES), item.values.size))
        for begin, end, places in self._blocks(size=max(_BLOCK, item.values.size)):
            places += (magnitudes.run(begin, end) + margin) * self.used.size
            own = slices.run(self.shape, begin, end)
            for move, cost in zip(_MOVES, costs, strict=True):
                cost += np.bincount(own, table[places + move * self.used.size], cost.size)
        flat = item.values.reshape(-1)
        known, counts = np.unique(flat, return_counts=True)
        for move, cost in zip(_MOVES, costs, strict=True):
            position = np.minimum(np.searchsorted(known, flat + move), known.size - 1)
            cost -= np.log2(np.where(known[position] == flat + move, counts[position], 0) + _UNSEEN)
        moved = flat + np.array(_MOVES)[np.argmin(costs, axis=0)]
        return Codes(item.axes, np.clip(moved, -_LOUDEST, _LOUDEST).astype(np.int32).reshape(item.values.shape))
