"""Weights → symbols with error feedback: each column's rounding error is fed forward to the columns after it.

With the Hessian A = E[x xᵀ] of what a matrix W multiplies, rounding to Ŵ moves the outputs by tr((Ŵ − W) A (Ŵ − W)ᵀ) on
average. Columns are rounded one after another; what the error of one does to the outputs is undone as well as later
columns can (GPTQ, E. Frantar et al., https://arxiv.org/abs/2210.17323). With A⁻¹ = UᵀU, U upper triangular, the error
left is Σ_j ‖w_j − ŵ_j‖² / U_jj² of the columns as they were when they were rounded: bin widths ∝ U_jj make all columns
contribute equally, which costs the least rate.

With the second moments G of output gradients, errors of rows are fed forward to later rows in the same way; what is
left then is tr((Ŵ − W)ᵀ G (Ŵ − W) A).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from riq_cli.quantize.columns import round_all
from riq_cli.quantize.factor import Factor, Floats, Integers, PackedFactor
from riq_cli.quantize.rows import RowFactor
from riq_cli.quantize.trellis import Viterbi
from riq_cli.quantize.wavefront import Wavefront

_LANES = 1024  # of a trellis that are followed side by side: so many stay in the processor's cache
_TOGETHER = 1 << 20  # weights of row factors that are rounded side by side, at most, if they are several
_ALL = slice(None)
_AT_ONCE = 1 << 22  # weights that are rounded at a time where rows do not depend on each other
_ALONE = 4096  # columns that are held at a time where errors are not fed forward along them


def rounded(
    matrix: Floats,
    widths: NDArray[np.float64],
    scales: NDArray[np.float64] | None = None,
    factors: Sequence[Factor | PackedFactor] = (),
    row_factors: Sequence[RowFactor] = (),
    on_trellis: bool = False,
) -> tuple[Integers, float]:
    """Symbols i32[groups, rows, K], and the mean squared rounding error of a weight in squares of its bin width.

    The error is not counted, 0, where errors are fed forward along rows.

    Args:
        matrix: W [groups, rows, K], in any float type.
        widths: bin widths > 0 of columns, f64[groups, K].
        scales: of the bin widths of rows, f64[groups, rows]; None: all are 1.
        factors: of all columns, in order; errors stay within a factor's columns. Empty: they are not fed forward.
        row_factors: of all rows of all groups. Empty: errors are not fed forward along rows.
        on_trellis: round along the best paths of a trellis whose lanes are the rows, and return levels.
    """
    return _Rounding(matrix, widths, scales, factors, on_trellis).run(row_factors)


class _Rounding:
    """The rounding of one layer's matrices."""

    def __init__(
        self,
        matrix: Floats,
        widths: NDArray[np.float64],
        scales: NDArray[np.float64] | None,
        factors: Sequence[Factor | PackedFactor],
        on_trellis: bool,
    ) -> None:
        self._matrix, self._on_trellis = matrix, on_trellis
        self._factors = [factor.whole() for factor in factors]
        self._peak = float(max(matrix.max(), -matrix.min())) or 1.0
        self._widths, self._scales = widths / self._peak, scales
        self._diagonal = np.concatenate([factor.diagonal for factor in factors], axis=1) if factors else None
        self._error = 0.0

    def run(self, row_factors: Sequence[RowFactor]) -> tuple[Integers, float]:
        """Symbols or levels, and the error that they leave."""
        groups, _, columns = self._matrix.shape
        symbols = np.empty(self._matrix.shape, np.int32)
        if row_factors:
            for together in self._together(row_factors):
                self._on_wavefront(together, symbols)
        else:
            step = max((_LANES if self._on_trellis else _AT_ONCE // columns) // groups, 1)
            for begin in range(0, self._matrix.shape[1], step):
                part = slice(begin, begin + step)
                symbols[:, part] = self._at_once(part)
        return symbols, self._error / self._matrix.size

    def _together(self, row_factors: Sequence[RowFactor]) -> Iterator[Sequence[RowFactor]]:
        """Runs of factors of a group with as many rows each: they are rounded side by side."""
        for (_, shape), run in itertools.groupby(row_factors, key=lambda factor: (factor.group, factor.rows.shape)):
            equal, most = list(run), max(1, _TOGETHER // (math.prod(shape) * self._matrix.shape[2]))
            for first in range(0, len(equal), most):
                yield equal[first : first + most]

    def _at_once(self, chosen: slice) -> Integers:
        """Symbols of some rows of all groups, among which no errors are fed forward."""
        part = self._matrix[:, chosen]
        groups, rows, size = part.shape
        left = np.empty((groups, size, rows), np.float32)
        # float32 holds columns of W / peak, whatever the scale of the weights
        np.divide(part.transpose(0, 2, 1), self._peak, out=left, dtype=np.float64, casting="same_kind")
        bins = self._bins(_ALL, chosen)
        symbols, errors = np.empty(left.shape, np.int32), np.empty_like(left)
        paths = Viterbi(groups, rows) if self._on_trellis else None
        round_all(left, np.broadcast_to(bins, left.shape), self._factors, symbols, errors, paths)
        relative = errors / bins if self._diagonal is None else errors * (self._diagonal[..., None] / bins)
        self._error += float(np.einsum("gkn,gkn->", relative, relative, dtype=np.float64))
        return symbols.transpose(0, 2, 1)

    def _on_wavefront(self, row_factors: Sequence[RowFactor], symbols: Integers) -> None:
        """Round the rows of factors of one shape, and write their symbols."""
        rows = np.stack([factor.rows for factor in row_factors], axis=1)
        feedback = [
            np.stack([factor.feedback[block] for factor in row_factors], dtype=np.float32) for block in range(len(rows))
        ]
        paths = Viterbi(len(rows), rows[0].size) if self._on_trellis else None
        size = self._matrix.shape[2]
        step = size if self._factors else _ALONE
        for begin in range(0, size, step):
            part = slice(begin, begin + step)
            self._columns(row_factors[0].group, rows, part, feedback, paths, symbols[row_factors[0].group, :, part])

    def _columns(
        self,
        group: int,
        rows: NDArray[np.int64],
        columns: slice,
        feedback: Sequence[Floats],
        paths: Viterbi | None,
        symbols: Integers,
    ) -> None:
        """Round some columns of the rows i64[blocks, factors, length], and write them to symbols [rows, columns]."""
        flat, beside = rows.reshape(-1), rows.swapaxes(0, 1)
        there = flat >= 0
        part = self._matrix[group, beside.reshape(-1), columns].T
        size = len(part)
        goal = np.empty((size, *beside.shape), np.float32)
        np.divide(part.reshape(goal.shape), self._peak, out=goal, dtype=np.float64, casting="same_kind")
        del part
        goal *= beside >= 0

        def bins(block: int, chosen: slice) -> Floats:
            within = slice(columns.start + chosen.start, columns.start + chosen.stop)
            found = self._bins(slice(group, group + 1), rows[block].reshape(-1), within)[0]
            return np.broadcast_to(found, (chosen.stop - chosen.start, rows[block].size))

        front = Wavefront(goal, bins, feedback, self._factors, group, paths)
        del goal  # it is used up
        front.run()
        symbols[flat[there]] = front.symbols.swapaxes(1, 2).reshape(-1, size)[there]

    def _bins(self, groups: slice, rows: slice | NDArray[np.int64], columns: slice = _ALL) -> Floats:
        """Bin widths of some weights where the largest weight is 1, f32[groups, columns, rows or 1]."""
        widths = self._widths[groups, columns, None]
        scales = np.ones(1) if self._scales is None else self._scales[groups, None, rows]
        found = np.empty(np.broadcast_shapes(widths.shape, scales.shape), np.float32)
        return np.multiply(widths, scales, out=found, dtype=np.float64, casting="same_kind")
