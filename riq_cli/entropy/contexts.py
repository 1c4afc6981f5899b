"""Contexts: the scales of slices of a layer, and the order in which symbols are coded by them.

A weight's context is the sum of the codes of its slices along several axes, such as its row and its column: the
`magnitudes` of FORMAT.md, "Student". Weights of a context share a distribution, whatever slices they are in, so that
many contexts cost no more than their codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.entropy.codes import Codes, Symbols
from riq_cli.limits import CODE_MAX

Integers = NDArray[np.int64]
Groups = Callable[[int, int], Symbols]  # of the weights from one number up to another: i32[end − begin], from 0 on

_BLOCK = 1 << 18


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
        if max(-self.lowest, self.lowest + self.span - 1) > CODE_MAX:
            raise ValueError(f"a magnitude beyond ±{CODE_MAX}")

    @cached_property
    def lowest(self) -> int:
        """The smallest that there could be."""
        smallest = sum(int(item.values.min()) for item in self.codes)
        return smallest - sum(int(item.values.max()) for item in self.scales)

    @cached_property
    def span(self) -> int:
        """How many different ones there could be."""
        return 1 + sum(int(np.ptp(item.values)) for item in (*self.codes, *self.scales))

    def groups(self, begin: int, end: int) -> Symbols:
        """How much more than the smallest is that of each weight from number `begin` up to `end`, i32[end − begin]."""
        total = np.full(end - begin, -self.lowest, np.int32)
        for item in self.codes:
            total += item.run(self.shape, begin, end)
        for item in self.scales:
            total -= item.run(self.shape, begin, end)
        return total

    @cached_property
    def sizes(self) -> Integers:
        """How many weights have each context from the smallest on, i64[span]."""
        size = math.prod(self.shape)
        if self.span == 1:
            return np.array([size])
        sizes = np.zeros(self.span, np.int64)
        for begin in range(0, size, _BLOCK):
            sizes += np.bincount(self.groups(begin, min(begin + _BLOCK, size)), minlength=self.span)
        return sizes


def grouped(symbols: Symbols, groups: Groups, count: int) -> list[Symbols]:
    """The symbols i32[n] of a layer, row-major, as one array for each of so many groups."""
    parts: list[list[Symbols]] = [[] for _ in range(count)]
    for begin in range(0, symbols.size, _BLOCK):
        block = symbols[begin : begin + _BLOCK]
        counts, order = _sorted(groups(begin, begin + block.size))
        ends = np.cumsum(counts)
        for group in np.flatnonzero(counts).tolist():
            parts[group].append(block[order[ends[group] - counts[group] : ends[group]]])
    return [np.concatenate(part) if part else np.empty(0, np.int32) for part in parts]


def placed(
    window: NDArray[Any], begin: int, groups: Groups, sizes: Integers
) -> Iterator[tuple[int, Symbols, NDArray[np.bool_] | None]]:
    """Some of the symbols that are coded group by group, in the order of the layer, block by block.

    Args:
        window: the symbols from number `begin` on, if those of all groups lie behind each other.
        begin: of the window.
        groups: of the weights.
        sizes: of the groups, i64[groups].

    Yields:
        Where a block of weights begins; symbols i32[block], of those weights that the window holds; and which these
        are, bool[block], None for all. A block without any is left out.
    """
    ends = np.cumsum(sizes)
    first, last = np.searchsorted(ends, [begin, begin + window.size - 1], "right").tolist()
    position = (ends - sizes).tolist()  # of the next symbol of each group
    size, whole = int(ends[-1]), window.size == ends[-1]
    for start in range(0, size, _BLOCK):
        group_of = groups(start, min(start + _BLOCK, size))
        symbols = np.zeros(group_of.size, np.int32)
        held = None if whole else np.zeros(group_of.size, bool)
        if whole:
            counts, target = _sorted(group_of)
        else:
            chosen = np.flatnonzero((group_of >= first) & (group_of <= last))
            counts, order = _sorted(group_of[chosen])
            target = chosen[order]
        done = 0
        for group in np.flatnonzero(counts).tolist():
            count = int(counts[group])
            low, high = max(position[group], begin), min(position[group] + count, begin + window.size)
            if low < high:
                places = target[done + low - position[group] : done + high - position[group]]
                symbols[places] = window[low - begin : high - begin]
                if held is not None:
                    held[places] = True
            position[group] += count
            done += count
        if held is None or held.any():
            yield start, symbols, held


def _sorted(groups: Symbols) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """How many weights of a block each group has, and the order that sorts the weights by group."""
    return np.bincount(groups), np.argsort(groups.astype(np.uint16), kind="stable")  # in linear time
