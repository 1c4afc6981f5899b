"""Codes: integers for the slices of a layer along some of its axes, such as one for each row (FORMAT.md, "Codes")."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.entropy.ans import decode_runs, encode_runs
from riq_cli.entropy.histogram import Histogram, Table
from riq_cli.errors import CorruptArchive

Symbols = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Codes:
    """Integers for the slices of a layer: codes of bin widths or of contexts, or numbers of classes.

    `axes` ascending; `values` i32, of the shape that the layer has along these axes.
    """

    axes: tuple[int, ...]
    values: Symbols

    def aligned(self, dimensions: int) -> Symbols:
        """The values with as many dimensions as the layer has, so that they broadcast to its shape; not a copy."""
        return self.values[tuple(slice(None) if axis in self.axes else None for axis in range(dimensions))]

    def run(self, shape: Sequence[int], begin: int, end: int) -> Symbols:
        """The code of each weight from number `begin` up to `end`, row-major, i32[end − begin]."""
        return elements(np.broadcast_to(self.aligned(len(shape)), tuple(shape)), begin, end)

    def to_bytes(self) -> bytes:
        """Their section: a table and, if they differ, one stream."""
        flat = self.values.reshape(-1)
        table = Table.of(Histogram.of(flat))
        stream = encode_runs([(table.indices(flat), table.frequencies())]) if table.symbols.size > 1 else b""
        return table.to_bytes() + stream

    @classmethod
    def from_bytes(cls, axes: tuple[int, ...], shape: Sequence[int], section: bytes) -> Codes:
        """The codes along some axes, of which a layer has this shape, from their section.

        Raises:
            CorruptArchive: the section does not hold them, or more than them.
        """
        size = math.prod(shape)
        table, end = Table.read(section)
        if table.symbols.size > 1:
            indices, *_ = decode_runs(section[end:], [(table.frequencies(), size)])
            values = np.take(table.symbols.astype(np.int32), indices)
        elif end < len(section):
            raise CorruptArchive("codes that are all the same have a stream; the archive is damaged")
        else:
            values = np.full(size, table.symbols[0], np.int32)
        return cls(axes, values.reshape(shape))


def sum_of(codes: Iterable[Symbols]) -> NDArray[np.int64]:
    """Sums of codes, broadcast to the shape that they share; four of any 32 bits do not overflow."""
    total: NDArray[np.int64] = functools.reduce(np.add, (part.astype(np.int64) for part in codes))
    return total


def elements(array: NDArray[Any], begin: int, end: int) -> NDArray[Any]:
    """The elements from number `begin` up to `end`, row-major, of any array; `flat` has them, but slowly."""
    if array.ndim < 2:
        return array.reshape(-1)[begin:end]
    row = math.prod(array.shape[1:])
    first, last = begin // row, (end - 1) // row
    if first == last:
        return elements(array[first], begin - first * row, end - first * row)
    if last == first + 1:  # rows may be much longer
        return np.concatenate([elements(array, begin, last * row), elements(array, last * row, end)])
    return array[first : last + 1].reshape(-1)[begin - first * row : end - first * row]
