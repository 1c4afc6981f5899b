"""Symbols in the order of the layer ↔ in the order of its classes, in which they are coded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from riq_cli.quantizer import Codes, Symbols

_BLOCK = 1 << 18


def grouped(symbols: Symbols, classes: Codes, shape: Sequence[int]) -> list[Symbols]:
    """The symbols i32[n] of a layer of this shape, row-major, as one array for each class.

    Raises:
        ValueError: the classes are not those of a layer, as `Codes.class_sizes` has it.
    """
    groups = [np.empty(size, np.int32) for size in classes.class_sizes(symbols.size).tolist()]
    for begin, order, pieces in _pieces(classes, shape, symbols.size):
        ordered = symbols[begin : begin + order.size][order]
        for group, target, source in pieces:
            groups[group][target] = ordered[source]
    return groups


def scattered(groups: Sequence[Symbols], classes: Codes, shape: Sequence[int]) -> Symbols:
    """The symbols i32[n] that `grouped` was given."""
    symbols = np.empty(sum(group.size for group in groups), np.int32)
    for begin, order, pieces in _pieces(classes, shape, symbols.size):
        ordered = np.empty(order.size, np.int32)
        for group, source, target in pieces:
            ordered[target] = groups[group][source]
        symbols[begin : begin + order.size][order] = ordered
    return symbols


def _pieces(
    classes: Codes, shape: Sequence[int], size: int
) -> Iterator[tuple[int, np.ndarray[tuple[int], np.dtype[np.intp]], list[tuple[int, slice, slice]]]]:
    """Block by block, so that memory stays bounded: where it begins, and the order that sorts it by class.

    With it comes, for each class in the block: its number, where its weights are among all of the class, and where
    they are in the sorted block.
    """
    done = [0] * (int(classes.values.max()) + 1)
    narrow = Codes(classes.axes, classes.values.astype(np.uint8))  # bytes are sorted in linear time
    for begin in range(0, size, _BLOCK):
        block = narrow.run(shape, begin, min(begin + _BLOCK, size))
        pieces, position = [], 0
        for group, count in enumerate(np.bincount(block).tolist()):
            pieces.append((group, slice(done[group], done[group] + count), slice(position, position + count)))
            done[group] += count
            position += count
        yield begin, np.argsort(block, kind="stable"), pieces
