"""Symbols in the order of the layer ↔ in the order of their groups, in which they are coded: classes, or magnitudes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from riq_cli.quantizer import Codes, Symbols

_BLOCK = 1 << 18

Numbers = Callable[[int, int], Symbols]  # of the groups of weights from one number up to another, i32[end − begin]


def numbers_of(classes: Codes, shape: Sequence[int]) -> Numbers:
    """The numbers of classes of a layer of this shape."""
    return lambda begin, end: classes.run(shape, begin, end)


def grouped(symbols: Symbols, numbers: Numbers, sizes: NDArray[np.int64]) -> list[Symbols]:
    """The symbols i32[n] of a layer, row-major, as one array for each group, of these sizes."""
    groups = [np.empty(size, np.int32) for size in sizes.tolist()]
    for begin, order, pieces in _pieces(numbers, symbols.size):
        ordered = symbols[begin : begin + order.size][order]
        for group, target, source in pieces:
            groups[group][target] = ordered[source]
    return groups


def scattered(groups: Sequence[Symbols], numbers: Numbers) -> Symbols:
    """The symbols i32[n] that `grouped` was given."""
    symbols = np.empty(sum(group.size for group in groups), np.int32)
    for begin, order, pieces in _pieces(numbers, symbols.size):
        ordered = np.empty(order.size, np.int32)
        for group, source, target in pieces:
            ordered[target] = groups[group][source]
        symbols[begin : begin + order.size][order] = ordered
    return symbols


def _pieces(
    numbers: Numbers, size: int
) -> Iterator[tuple[int, np.ndarray[tuple[int], np.dtype[np.intp]], list[tuple[int, slice, slice]]]]:
    """Block by block, so that memory stays bounded: where it begins, and the order that sorts it by group.

    With it comes, for each group in the block: its number, where its weights are among all of the group, and where
    they are in the sorted block.
    """
    done: Counter[int] = Counter()
    for begin in range(0, size, _BLOCK):
        block = numbers(begin, min(begin + _BLOCK, size)).astype(np.uint16)  # such are sorted in linear time
        pieces, position = [], 0
        counts = np.bincount(block)
        for group in np.flatnonzero(counts).tolist():
            count = int(counts[group])
            pieces.append((group, slice(done[group], done[group] + count), slice(position, position + count)))
            done[group] += count
            position += count
        yield begin, np.argsort(block, kind="stable"), pieces
