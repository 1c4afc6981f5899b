"""About the bits that symbols take, without coding them: where searches compare what they might code."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.entropy.histogram import Histogram
from riq_cli.entropy.student import share_below

Floats = NDArray[np.float64]

# What is in the manifest, about, of codes and of a stream, whose last word is not full either.
CODES_BITS, STREAM_BITS = 80.0, 40.0

_FREEDOM = 2  # eight degrees of freedom
_CODE_BITS = 2.5  # about what a code of a magnitude takes
_SHRUNK = 4  # symbols as loud as all that are taken to be in each row and column
_FEW = 8  # rows of fewer than which columns are not told apart
_SAMPLE = 1 << 14  # symbols that stand for all


def bits_of(
    symbols: NDArray[np.int32], rows: int | None = None, columns: int | None = None, trellis: bool = False
) -> float:
    """About the bits of symbols i32[…, rows, columns], without a table.

    They are those of their entropy, or of what they are when rows and columns are told apart by how loud they are.

    Args:
        symbols: of a layer's matrices, or of some of their rows and columns.
        rows: of all of them, if these are some.
        columns: likewise.
        trellis: whether the symbols are those of a trellis.
    """
    return symbols.size * min(entropy_of(symbols), spread_bits(symbols, rows, columns, trellis))


def entropy_of(symbols: NDArray[np.int32]) -> float:
    """The empirical entropy of symbols of any shape, in bits/symbol."""
    return Histogram.of(symbols.reshape(-1)).entropy


def spread_bits(symbols: NDArray[np.int32], rows: int | None, columns: int | None, trellis: bool) -> float:
    """About the bits/symbol where rows, columns or both are told apart by how loud they are; see `bits_of`."""
    flat = symbols.reshape(-1, symbols.shape[-1])
    if not flat.any():
        return 0.0
    middle = -0.25 if trellis else 0.0
    magnitudes = np.abs(flat - np.float32(middle))
    sums = [magnitudes.sum(axis=axis, dtype=np.float64) for axis in (1, 0)]
    count, length = flat.shape
    step = next(step for step in itertools.count(-(-flat.size // _SAMPLE)) if math.gcd(step, length) == 1)
    chosen = np.arange(0, flat.size, step)  # of all columns, and rows
    places = flat.reshape(-1)[chosen] - middle
    by_row, by_column = _CODE_BITS / (columns or length), _CODE_BITS / (rows or count)
    found = []
    for least in sorted({0.0, -middle}):  # magnitudes of a symbol 0, where it is rare and where it is nearly all
        mean = float(sums[0].sum()) / flat.size - least
        row, column = (
            (total - size * least + _SHRUNK * mean) / (size + _SHRUNK)
            for total, size in zip(sums, (length, count), strict=True)
        )
        row, column = row[chosen // length], column[chosen % length]
        found.append(_bits(places, row) + by_row)
        if count >= _FEW:
            found.append(_bits(places, column) + by_column)
            found.append(_bits(places, row * column / mean) + by_row + by_column)
    return min(found)


def _bits(places: NDArray[np.floating[Any]], means: Floats) -> float:
    """Bits/symbol of Student's distributions whose magnitudes have these means, where the middle is at 0."""
    scales = 1.13 * means + 0.16 * np.exp(-2 * means)  # within 5 % where symbols are rounded, from a mean of 0.03 on
    codes = np.rint(4 * np.log2(scales)).astype(np.int32)
    masses = share_below(4 * places + 2, codes, _FREEDOM) - share_below(4 * places - 2, codes, _FREEDOM)
    return float(-np.log2(np.maximum(masses, 0) + 2.0**-24).mean())
