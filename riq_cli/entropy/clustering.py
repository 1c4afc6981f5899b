"""Which slices of a layer share a table: classes that take less room than one table for all.

Slices are told apart by their histograms. Classes are those of k-means in which a slice is as far from a class as it
takes bits to code it with the class's table; pairs of classes then become one as long as that saves bits, tables and
codes counted, so that their number comes out by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from riq_cli.entropy import coder
from riq_cli.entropy.classes import grouped, numbers_of
from riq_cli.limits import CODES
from riq_cli.quantizer import Codes, Symbols

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_MOST, _WEIGHTS_EACH = 32, 1 << 10  # classes to begin with, and weights of each: more of them gain next to nothing
_FEW = 4  # classes of which there are always as many to begin with
_BINS = 24  # of a histogram: symbols in use beyond that share some
_ROUNDS = 3  # of k-means at a time: it hardly moves any more
_SAVED = 0.005  # share of one table's bytes that classes save at least …
_SAVED_BYTES = 64  # … and bytes: less is not worth a decoder's sorting

_TABLE_SYMBOLS = 1 << 12  # tables of more symbols take long to pack, and many of them much room
_SPAN = 1 << 22  # symbols at most between those that are looked up in one array
_CELLS, _CELLS_MOST, _WEIGHTS_PER_CELL = 1 << 17, 1 << 21, 4  # of all histograms along some axes
_BLOCK = 1 << 18

# What the codes of FORMAT.md come to, about, in bits.
_SYMBOL_BITS = 4.0
_CLASS_BITS = 96.0  # the head of its table, the end of its stream, its number and its stream's in the manifest
_STREAM_BYTES = 8  # the end of a stream, and its length in the manifest
_UNSEEN = 1 / 16  # counts of a symbol that a class does not have: its table's entry would cost as much
_FRACTION = 1 << 10  # bits are counted in whole parts of this: their sums are then exact, whatever adds them up


def candidate_axes(shape: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Axes whose slices may differ: of a matrix rows or columns, of a convolution also its taps, and pairs of them.

    See `parts_of`.
    """
    parts = parts_of(shape)
    if len(parts) < 2:
        return ()
    pairs = [(0, 1), (0, 2), (1, 2)] if len(parts) == 3 else []
    return (*parts, *(parts[one] + parts[other] for one, other in pairs))


def parts_of(shape: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Axes that count as one: of those longer than 1 the first, the second, and all further ones together."""
    long = tuple(axis for axis, size in enumerate(shape) if size > 1)
    return tuple(part for part in (long[:1], long[1:2], long[2:]) if part)


def slices_along(axes: tuple[int, ...], shape: Sequence[int]) -> Codes:
    """The number of each slice along some axes, 0 for the first."""
    sizes = [shape[axis] for axis in axes]
    return Codes(axes, np.arange(math.prod(sizes), dtype=np.int32).reshape(sizes))


def best_classes(symbols: Symbols, shape: Sequence[int], axes: Sequence[tuple[int, ...]]) -> Codes | None:
    """The classes of slices along some of the axes that take least room; None if one table is about as good.

    Args:
        symbols: i32[n] of a layer, row-major.
        shape: of the layer.
        axes: candidates, each ascending; those with too many slices to tell apart are left out.
    """
    histogram = coder.Histogram.of(symbols)
    bins = _Bins.of(histogram)
    if bins is None or histogram.symbols.size > _TABLE_SYMBOLS:
        return None
    candidates = _histograms(bins.index(symbols), bins.widths.size, shape, axes)
    if not candidates:
        return None
    along = min(candidates, key=lambda candidate: _rough_bits(candidates[candidate], bins))
    numbers = _clustered(candidates[along], bins)
    if not numbers.any():
        return None
    best = Codes(along, numbers.astype(np.int32).reshape([shape[axis] for axis in along]))
    if bins.widths.max() == 1:  # the bins are the symbols
        sums, _ = _summed(candidates[along], numbers)
        used = [(each > 0, each.astype(np.int64)) for each in sums]
        histograms = [coder.Histogram(histogram.symbols[mask], counts[mask]) for mask, counts in used]
    else:
        groups = grouped(symbols, numbers_of(best, shape), best.class_sizes(symbols.size))
        histograms = [coder.Histogram.of(group) for group in groups]
    one, several = _stored([histogram]), _stored(histograms) + len(coder.encode_codes(best.values.reshape(-1)))
    return best if one - several > max(_SAVED_BYTES, _SAVED * one) else None


def _stored(histograms: Sequence[coder.Histogram]) -> float:
    """Bytes of tables and streams, and of their lengths; streams are within 0.01 % of what their tables promise."""
    total = 0.0
    for histogram in histograms:
        table = coder.Table.of(histogram)
        total += len(table.to_bytes())
        if table.symbols.size > 1:
            total += _STREAM_BYTES + float(np.dot(histogram.counts, 24 - np.log2(table.frequencies()))) / 8
    return total


@dataclass(frozen=True)
class _Bins:
    """Symbols, or runs of neighbouring ones, as classes are told apart by.

    `starts` i64[b − 1]: from which symbol on each but the first goes; `widths` f64[b]: how many symbols in use it has;
    `counts` f64[b]: how often; `means` f64[b]: their mean magnitude.
    """

    starts: Integers
    widths: Floats
    counts: Floats
    means: Floats

    @classmethod
    def of(cls, histogram: coder.Histogram) -> _Bins | None:
        """One bin for each symbol; if these are too many, longer ones for rarer symbols.

        None if there is only one, or they lie too far apart.
        """
        position = np.arange(histogram.symbols.size)
        if position.size > _BINS:
            reached = np.cumsum(np.sqrt(histogram.counts))
            position = np.minimum(reached / reached[-1] * _BINS, _BINS - 1).astype(np.intp)
        first = np.flatnonzero(np.diff(position, prepend=-1))
        last, further = histogram.symbols[first[1:] - 1], histogram.symbols[first[1:]]
        starts = np.clip(0, last + 1, further)  # near the others, however far away those at the ends are
        if starts.size == 0 or starts[-1] - starts[0] > _SPAN:
            return None
        counts = np.add.reduceat(histogram.counts, first).astype(np.float64)
        means = np.add.reduceat(histogram.counts * np.abs(histogram.symbols), first) / counts
        return cls(starts, np.diff(first, append=position.size).astype(np.float64), counts, means)

    def index(self, symbols: Symbols) -> NDArray[np.uint8]:
        """The bins of symbols, u8[n]."""
        low, high = int(self.starts[0]) - 1, int(self.starts[-1])
        known = np.searchsorted(self.starts, np.arange(low, high + 1), side="right").astype(np.uint8)
        index = np.empty(symbols.size, np.uint8)
        for begin in range(0, symbols.size, _BLOCK):
            part = slice(begin, begin + _BLOCK)
            np.take(known, np.clip(symbols[part], low, high) - low, out=index[part])
        return index


def _histograms(
    index: NDArray[np.uint8], bins: int, shape: Sequence[int], axes: Sequence[tuple[int, ...]]
) -> dict[tuple[int, ...], Floats]:
    """The histograms f64[slices, bins] along each of the axes; where finer ones are known, from their sums."""
    known: dict[tuple[int, ...], Floats] = {}
    most = min(max(_CELLS, index.size // _WEIGHTS_PER_CELL), _CELLS_MOST)
    for along in sorted(axes, key=lambda item: math.prod(shape[axis] for axis in item), reverse=True):
        count = math.prod(shape[axis] for axis in along)
        if not 1 < count < index.size or count * bins > most or count > CODES:
            continue
        finer = next((other for other in known if {*along} <= {*other}), None)
        if finer is None:
            known[along] = _counted(index, bins, slices_along(along, shape), shape)
        else:
            spread = known[finer].reshape(*(shape[axis] for axis in finer), bins)
            dropped = tuple(number for number, axis in enumerate(finer) if axis not in along)
            known[along] = spread.sum(axis=dropped).reshape(count, bins)
    return known


def _counted(index: NDArray[np.uint8], bins: int, slices: Codes, shape: Sequence[int]) -> Floats:
    """The histogram of every slice, in blocks no smaller than what is counted in."""
    cells = Codes(slices.axes, slices.values * np.int32(bins))
    counts = np.zeros(slices.values.size * bins)
    block = max(_BLOCK, counts.size)
    for begin in range(0, index.size, block):
        part = cells.run(shape, begin, min(begin + block, index.size))
        part += index[begin : begin + block]
        first = int(part.min())
        part -= first
        found = np.bincount(part)
        counts[first : first + found.size] += found
    return counts.reshape(-1, bins)


def _rough_bits(counts: Floats, bins: _Bins) -> float:
    """About the bits with a few classes: enough to tell along which axes slices differ most, at little cost."""
    numbers = _refined(counts, _by_magnitude(counts, bins, _FEW))
    return float(_bits(*_summed(counts, numbers), bins.widths).sum() + len(counts) * np.log2(len(counts)))


def _clustered(counts: Floats, bins: _Bins) -> NDArray[np.intp]:
    """The class of each slice, i[slices]: 0 … C − 1, all in use, of those that take least room."""
    most = min(_MOST, max(_FEW, int(bins.counts.sum()) // _WEIGHTS_EACH))
    numbers = _refined(counts, _by_magnitude(counts, bins, most))
    numbers = _joined(*_summed(counts, numbers), bins.widths)[numbers]
    return _refined(counts, _renumbered(numbers))


def _by_magnitude(counts: Floats, bins: _Bins, classes: int) -> NDArray[np.intp]:
    """As many classes of about as many slices each, of small symbols to large ones; no more than there are slices."""
    size = len(counts)
    numbers = np.empty(size, np.intp)
    order = np.argsort(counts @ np.rint(_FRACTION * bins.means) / counts.sum(axis=1), kind="stable")
    numbers[order] = np.arange(size) * min(classes, size) // size
    return numbers


def _refined(counts: Floats, numbers: NDArray[np.intp]) -> NDArray[np.intp]:
    """The classes after some rounds of k-means: each slice goes to the class with whose table it takes least bits."""
    for _ in range(_ROUNDS):
        sums, slices = _summed(counts, numbers)
        if len(sums) == 1:
            break
        sums += _UNSEEN
        bits = np.rint(_FRACTION * np.log2(sums.sum(axis=1, keepdims=True) / sums))
        costs = counts @ bits.T + np.rint(_FRACTION * np.log2(len(counts) / slices))
        numbers = _renumbered(np.argmin(costs, axis=1))
    return numbers


def _joined(sums: Floats, slices: Floats, widths: Floats) -> NDArray[np.intp]:
    """Which classes become one: for each the number of the one that it is part of, pairs joined while that saves bits.

    Args:
        sums: the histogram of each class, [C, bins]; written to.
        slices: how many slices each has, [C]; written to.
        widths: of the bins.
    """
    count = len(sums)
    part_of = np.arange(count)
    alone = _bits(sums, slices, widths)
    extra = np.full((count, count), np.inf)  # bits that joining two would add, the larger number second

    def join(one: int) -> Floats:
        joined: Floats = _bits(sums[one] + sums, slices[one] + slices, widths) - alone - alone[one]
        return joined

    for one in range(count - 1):
        extra[one, one + 1 :] = join(one)[one + 1 :]
    while True:
        one, other = divmod(int(extra.argmin()), count)
        if extra[one, other] >= 0:
            return part_of
        sums[one] += sums[other]
        slices[one] += slices[other]
        part_of[part_of == other] = one
        alone[one] = _bits(sums[one], slices[one], widths)
        alone[other] = -np.inf  # it is gone: to join it would add infinity
        extra[other] = extra[:, other] = np.inf
        again = join(one)
        extra[one, one + 1 :], extra[:one, one] = again[one + 1 :], again[:one]


def _bits(sums: Floats, slices: Floats, widths: Floats) -> Floats:
    """About the bits of classes with these histograms [..., bins] and so many slices [...].

    Codes are counted but for n log₂ n of all n slices, which no choice of classes changes.
    """
    used = np.minimum(sums, widths).sum(axis=-1)
    bits = _times_log(sums.sum(axis=-1)) - _times_log(sums).sum(axis=-1) - _times_log(slices)
    return np.asarray(bits + _SYMBOL_BITS * used + _CLASS_BITS)


def _times_log(counts: Floats) -> Floats:
    """Counts times their log₂, of which entropies are differences."""
    return np.asarray(counts * np.log2(np.maximum(counts, 1)))


def _summed(counts: Floats, numbers: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """The histogram of each class, [C, bins], and how many slices it has, [C]."""
    bins = counts.shape[1]
    # Not a matrix product: where the machine is busy, the threads of one wait for each other.
    cells = numbers[:, None] * bins + np.arange(bins)
    sums = np.bincount(cells.reshape(-1), counts.reshape(-1)).reshape(-1, bins)
    return sums.astype(np.float64), np.bincount(numbers).astype(np.float64)


def _renumbered(numbers: NDArray[np.intp]) -> NDArray[np.intp]:
    """The same classes without those that have no slices."""
    used = np.bincount(numbers) > 0
    return (np.cumsum(used) - 1)[numbers]
