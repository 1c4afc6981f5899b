"""The rate model: about the bits that a layer's symbols will take, without coding them. Every search compares by it."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.entropy.codes import Symbols
from riq_cli.entropy.histogram import Histogram
from riq_cli.entropy.student import share_below
from riq_cli.limits import TABLE_SYMBOLS

Floats = NDArray[np.floating[Any]]

ENTRY_BITS = 8 * 45.0  # about what a layer adds to the deflated manifest
CODES_BITS, STREAM_BITS = 80.0, 40.0  # about what an entry of codes adds to it; and the last word of a stream
_SCALE_BITS = 3.0  # about what a code of a bin width takes
_TABLE_BITS, _TABLE_SYMBOL_BITS = 16.0, 4.0  # about what a table takes, and each of its symbols
_STUDENT_BITS = 40.0  # about what the numbers of a distribution take
_FREEDOM = 2  # eight degrees of freedom
_OTHERS = ((1, -1), (4, 1))  # other freedoms, and the codes that the same magnitudes have there
_CODES = np.arange(-20.0, 21.0)  # of scales: 1/32 … 32 bins
_STEP = 2  # quarters of an octave by which codes of contexts differ
_SAMPLE = 1 << 14  # symbols that stand for all where contexts are compared …
_MEASURED = 1 << 10  # … and symbols of a row or a column that tell its scale
_SHRUNK = 2  # symbols of average magnitude that are added to each row and column
_SUMMED = 1 << 20  # symbols whose magnitudes are in memory at a time
_FEW = 8  # rows of fewer than which columns have no contexts


def estimated_bits(
    symbols: Symbols,
    rows: int | None = None,
    columns: int | None = None,
    trellis: bool = False,
    scales: int = 0,
    student: bool = True,
) -> float:
    """About the bits of symbols i32[…, rows, columns] in the archive, in the smaller of their codings.

    All that is stored of the layer beside its symbols counts too: table or distribution, codes, entry in the manifest;
    if some of the rows or columns are given, as much of it as there are symbols of the layer's.

    Args:
        symbols: of a layer's matrices, or of some of their rows and columns.
        rows: of each matrix, if some are given.
        columns: likewise.
        trellis: whether the symbols are those of a trellis.
        scales: number of codes of bin widths of the layer.
        student: whether Student's t may code them; without, a table.
    """
    flat = symbols.reshape(-1, symbols.shape[-1])
    given_rows = symbols.shape[-2] if symbols.ndim > 1 else 1
    share = given_rows * flat.shape[1] / ((rows or given_rows) * (columns or flat.shape[1]))
    histogram = Histogram.of(symbols.reshape(-1))
    bits = math.inf
    if histogram.symbols.size <= TABLE_SYMBOLS:
        table = _TABLE_BITS + _TABLE_SYMBOL_BITS * histogram.symbols.size
        bits = symbols.size * histogram.entropy + share * table
    if histogram.symbols.size > 1 and (student or bits == math.inf):
        all_rows = flat.shape[0] * (rows or given_rows) / given_rows
        of_student = _student_bits(flat, histogram, all_rows, columns or flat.shape[1], trellis)
        bits = min(bits, of_student + share * _STUDENT_BITS)
    return bits + share * (ENTRY_BITS + _SCALE_BITS * scales)


def _student_bits(symbols: Symbols, histogram: Histogram, rows: float, columns: int, trellis: bool) -> float:
    """About the bits by Student's t, where rows, columns, both or none have contexts.

    Those without contexts are counted; what contexts save is taken from a sample. Symbols i32[…, …] may be some of the
    `rows` and `columns`.
    """
    count, length = symbols.shape
    middle = -0.25 if trellis else 0.0
    step = max(1, symbols.size // _SAMPLE)
    while math.gcd(step, length) > 1:  # so that all columns are in the sample
        step += 1
    chosen = np.arange(0, symbols.size, step)
    places = symbols.reshape(-1)[chosen] - middle
    mean = float(histogram.counts @ np.abs(histogram.symbols - middle)) / symbols.size
    base = scale_codes(mean, trellis)

    def contexts(some: Symbols, axis: int) -> tuple[Floats, float]:
        """The codes of all slices, and the bits of such a code, tables and all."""
        parts = np.array_split(some, -(-some.size // _SUMMED), axis=1 - axis)
        sums = np.concatenate([np.abs(part - np.float32(middle)).sum(axis=axis, dtype=np.float64) for part in parts])
        means = (sums + _SHRUNK * mean) / (some.shape[axis] + _SHRUNK)
        codes = _STEP * np.rint((scale_codes(means, trellis) - base) / _STEP)
        used = np.unique(codes, return_counts=True)[1]
        entropy = math.log2(codes.size) - float(used @ np.log2(used)) / codes.size
        slices = columns if axis == 0 else rows
        return codes, entropy + (CODES_BITS + _TABLE_BITS + _TABLE_SYMBOL_BITS * used.size) / slices

    row_codes, row_bits = contexts(symbols[:, :: max(1, length // _MEASURED)], 1)
    row_codes, row_bits = row_codes[chosen // length], row_bits / columns
    found = [(np.full(chosen.size, base), 0.0), (base + row_codes, row_bits)]
    if count >= _FEW:
        codes, bits = contexts(symbols[:: max(1, count // _MEASURED)], 0)
        codes, bits = codes[chosen % length], bits / rows
        found += [(base + codes, bits), (base + row_codes + codes, row_bits + bits)]
    costs = [float(_bits(places, codes).mean()) + more for codes, more in found]
    codes, more = found[int(np.argmin(costs))]
    others = [float(_bits(places, codes + step, freedom).mean()) + more for freedom, step in _OTHERS]
    every = histogram.counts @ _bits(histogram.symbols - middle, np.full(histogram.symbols.size, base))
    return float(every) + symbols.size * (min(*costs, *others) - costs[0])


def _bits(places: Floats, codes: Floats, freedom: int = _FREEDOM) -> Floats:
    """Bits of symbols at places from the middle, each by Student's t of the scale with its code, which is rounded."""
    codes = np.rint(codes)
    masses = share_below(4 * places + 2, codes, freedom) - share_below(4 * places - 2, codes, freedom)
    bits: Floats = -np.log2(np.maximum(masses, 0) + 2.0**-24)
    return bits


def scale_codes(means: float | Floats, trellis: bool) -> Floats:
    """The codes, not rounded, of the scales at which symbols have these mean magnitudes > 0."""
    known = _mean_magnitudes(trellis)
    inner = np.interp(means, known, _CODES)  # beyond, symbols are in proportion to their scale
    codes: Floats = np.where(means < known[-1], inner, _CODES[-1] + 4 * np.log2(means / known[-1]))
    return codes


def mean_magnitudes(codes: NDArray[Any], trellis: bool) -> Floats:
    """The mean magnitudes of symbols at the scales with these codes, as `scale_codes` has them."""
    known = _mean_magnitudes(trellis)
    inner = np.interp(codes, _CODES, known)
    means: Floats = np.where(codes <= _CODES[-1], inner, known[-1] * np.exp2((codes - _CODES[-1]) / 4))
    return means


@functools.lru_cache
def _mean_magnitudes(trellis: bool) -> Floats:
    """Mean magnitudes of symbols by Student's t at the scales with `_CODES`, ascending."""
    middle = -0.25 if trellis else 0.0
    symbols = np.arange(-2000, 2001)
    edges = 4 * (np.append(symbols, 2001) - 0.5 - middle)
    magnitudes: Floats = np.diff(share_below(edges, _CODES[:, None], _FREEDOM)) @ np.abs(symbols - middle)
    return magnitudes
