"""Contexts: the scales of slices of a layer, and the order in which symbols are coded by them.

A weight's context is the sum of the codes of its slices along several axes, such as its row and its column: the
`magnitudes` of FORMAT.md, "Student". Weights of a context share a distribution, whatever slices they are in, so that
many contexts cost no more than their codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.entropy.codes import Codes, Symbols
from riq_cli.limits import CODE_MAX

Integers = NDArray[np.int64]

_BLOCK = 1 << 18
_ROW = 8  # weights at least: of shorter rows, numbers of all rows would take much memory


@dataclass(frozen=True, eq=False)
class Contexts:
    """The codes of contexts of a layer of some shape; none: all weights have context 0.

    With `scales`, contexts tell the scales of weights: those of symbols are smaller by the codes of bin widths.

    Raises:
        ValueError: a context could be beyond its bound.
    """

    codes: tuple[Codes, ...]
    shape: tuple[int, ...]
    scales: tuple[Codes, ...] = ()

    def __post_init__(self) -> None:
        smallest = sum(int(item.values.min()) for item in self.codes)
        largest = sum(int(item.values.max()) for item in self.codes)
        smallest -= sum(int(item.values.max()) for item in self.scales)
        largest -= sum(int(item.values.min()) for item in self.scales)
        if max(-smallest, largest) > CODE_MAX:
            raise ValueError(f"a magnitude beyond ±{CODE_MAX}")

    @cached_property
    def _summed(self) -> tuple[int, tuple[Codes, ...]]:
        """The smallest context that there could be, and what codes add to it: one sum for all along the same axes."""
        lowest, sums = 0, dict[tuple[int, ...], NDArray[np.int16]]()  # all of them are at most 2 · CODE_MAX
        for sign, items in ((1, self.codes), (-1, self.scales)):
            for item in items:
                least = item.values.min() if sign > 0 else item.values.max()
                above = (sign * (item.values - least)).astype(np.int16)
                sums[item.axes] = sums[item.axes] + above if item.axes in sums else above
                lowest += sign * int(least)
        for values in sums.values():
            lowest += int(values.min())
            values -= values.min()
        return lowest, tuple(Codes(axes, values.astype(np.int32)) for axes, values in sums.items())

    @property
    def lowest(self) -> int:
        """The smallest context that there could be."""
        return self._summed[0]

    @property
    def _parts(self) -> tuple[Codes, ...]:
        return self._summed[1]

    @cached_property
    def span(self) -> int:
        """How many different ones there could be."""
        return 1 + sum(int(part.values.max()) for part in self._parts)

    @cached_property
    def sizes(self) -> Integers:
        """How many weights have each context from the smallest on, i64[span]."""
        size = math.prod(self.shape)
        if self.span == 1:
            return np.array([size])
        axes = [axis for part in self._parts for axis in part.axes]
        if len(axes) == len(set(axes)):  # a code says nothing of the others: the histogram of a sum is a convolution
            sizes = np.array([size // math.prod(self.shape[axis] for axis in axes)])
            for part in self._parts:
                sizes = np.convolve(sizes, np.bincount(part.values.reshape(-1)))
            return sizes
        sizes = np.zeros(self.span, np.int64)
        for begin in range(0, size, _BLOCK):
            sizes += np.bincount(self._groups(begin, min(begin + _BLOCK, size)), minlength=self.span)
        return sizes

    def places(self) -> Iterator[tuple[int, Integers]]:
        """Where the symbols of weights are among those that are coded group by group.

        Yields:
            The number of the first weight of a block, a multiple of 8, and the place of the symbol of each weight in
            it, i64[block].
        """
        following = np.cumsum(self.sizes) - self.sizes  # place of the next symbol of each group
        cut = self._cut()
        if cut is not None:
            yield from _places_in_rows(*cut, following)
            return
        size = math.prod(self.shape)
        for begin in range(0, size, _BLOCK):
            counts, order = _sorted(self._groups(begin, min(begin + _BLOCK, size)), self.span)
            places = np.empty(order.size, np.int64)
            places[order] = np.arange(order.size) + np.repeat(following - np.cumsum(counts) + counts, counts)
            following += counts
            yield begin, places

    def _groups(self, begin: int, end: int) -> Symbols:
        """How much more than the smallest is that of each weight from number `begin` up to `end`, i32[end − begin]."""
        total = np.zeros(end - begin, np.int32)
        for part in self._parts:
            total += part.run(self.shape, begin, end)
        return total

    def _cut(self) -> tuple[NDArray[np.int16], Symbols] | None:
        """What rows i16[r] and columns i32[c] add to the group of a weight, of a layer that is cut between two axes.

        None: no such cut has each code in rows or in columns alone, or rows are too long, or too short to pay.
        """
        for axis in range(1, len(self.shape)):
            shapes = self.shape[:axis], self.shape[axis:]
            if any(part.axes[0] < axis <= part.axes[-1] for part in self._parts):
                continue
            if not max(self.span, 4 * _ROW) <= 4 * math.prod(shapes[1]) <= _BLOCK:
                return None
            rows, columns = np.zeros(shapes[0], np.int16), np.zeros(shapes[1], np.int32)
            for part in self._parts:
                codes = part.aligned(len(self.shape))
                if part.axes[0] < axis:
                    rows += codes.reshape(codes.shape[:axis])
                else:
                    columns += codes.reshape(codes.shape[axis:])
            return rows.reshape(-1), columns.reshape(-1)
        return None


def grouped(symbols: Symbols, contexts: Contexts) -> list[Symbols]:
    """The symbols i32[n] of a layer, row-major, as one array for each group of weights with the same context."""
    coded = np.empty_like(symbols)
    for begin, places in contexts.places():
        coded[places] = symbols[begin : begin + places.size]
    return np.split(coded, np.cumsum(contexts.sizes)[:-1])


def placed(
    window: NDArray[Any], begin: int, contexts: Contexts
) -> Iterator[tuple[int, Symbols, NDArray[np.bool_] | None]]:
    """Some of the symbols that are coded group by group, in the order of the layer, block by block.

    Args:
        window: the symbols from number `begin` on, if those of all groups lie behind each other.
        begin: of the window.
        contexts: of the layer.

    Yields:
        Where a block of weights begins, a multiple of 8; symbols i32[block], of those weights that the window holds;
        and which these are, bool[block], None for all. A block without any is left out.
    """
    if window.size == contexts.sizes.sum():
        yield from ((start, window[places].astype(np.int32), None) for start, places in contexts.places())
        return
    for start, places in contexts.places():
        places -= begin
        held = (places >= 0) & (places < window.size)
        if held.any():
            yield start, window.take(places, mode="clip").astype(np.int32), held


def _places_in_rows(rows: NDArray[np.int16], columns: Symbols, following: Integers) -> Iterator[tuple[int, Integers]]:
    """What `Contexts.places` yields, where the group of a weight is the sum of a number of its row and its column."""
    counts, order = _sorted(columns, 0)
    kinds = np.arange(counts.size)
    rank = np.empty(columns.size, np.int64)  # of a column among those with the same number
    rank[order] = np.arange(columns.size) - np.repeat(np.cumsum(counts) - counts, counts)
    step = max(1, _BLOCK // columns.size // 8) * 8
    for first in range(0, rows.size, step):
        part = rows[first : first + step]
        at = np.arange(part.size)[:, None], part[:, None] + kinds
        starts = np.zeros((part.size + 1, following.size), np.int64)
        starts[0] = following
        starts[1:][at] = counts
        np.cumsum(starts, axis=0, out=starts)
        following = starts[-1]
        places = starts[at].take(columns, axis=1)
        places += rank
        yield first * columns.size, places.reshape(-1)


def _sorted(groups: Symbols, count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """How many weights of a block each of `count` groups has, and the order that sorts the weights by group."""
    order = np.argsort(groups.astype(np.uint16), kind="stable")  # in linear time
    return np.bincount(groups, minlength=count), order
