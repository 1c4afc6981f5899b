"""Symbols in the order of the layer ↔ in the order of their groups, in which they are coded: classes, or magnitudes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.entropy.codes import Codes, Symbols

_BLOCK = 1 << 18

Window = NDArray[Any]  # symbols in the smallest type that holds them all
Numbers = Callable[[int, int], Symbols]  # of the groups of weights from one number up to another, i32[end − begin]


def numbers_of(classes: Codes, shape: Sequence[int]) -> Numbers:
    """The numbers of classes of a layer of this shape."""
    return lambda begin, end: classes.run(shape, begin, end)


def grouped(symbols: Symbols, numbers: Numbers, sizes: NDArray[np.int64]) -> list[Symbols]:
    """The symbols i32[n] of a layer, row-major, as one array for each group, of these sizes."""
    groups = [np.empty(size, np.int32) for size in sizes.tolist()]
    done: Counter[int] = Counter()
    for begin in range(0, symbols.size, _BLOCK):
        block = symbols[begin : begin + _BLOCK]
        counts, order = _sorted(numbers(begin, begin + block.size))
        ordered, position = block[order], 0
        for group in np.flatnonzero(counts).tolist():
            count = int(counts[group])
            groups[group][done[group] : done[group] + count] = ordered[position : position + count]
            done[group] += count
            position += count
    return groups


def placed(
    window: Window, begin: int, numbers: Numbers, sizes: NDArray[np.int64]
) -> Iterator[tuple[int, Symbols, NDArray[np.bool_] | None]]:
    """Some of the symbols that are coded group by group, in the order of the layer, block by block.

    Args:
        window: the symbols from number `begin` on, if those of all groups lie behind each other.
        begin: of the window.
        numbers: of the groups.
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
        group_of = numbers(start, min(start + _BLOCK, size))
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
