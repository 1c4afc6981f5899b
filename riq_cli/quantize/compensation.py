"""Weights → symbols with error compensation: each column's rounding error is pushed onto the columns after it.

With second moments H = E[x xᵀ] of what a matrix W is multiplied with, rounding to Ŵ moves the outputs by
tr((Ŵ − W) H (Ŵ − W)ᵀ) on average. Columns are rounded one after another; what the error of one does to the outputs is
undone as well as later columns can (optimal brain quantization; GPTQ's order and factorization). With H⁻¹ = UᵀU, U
upper triangular, the error left is Σ_j ‖w_j − ŵ_j‖² / U_jj² of the columns as they were when they were rounded: bin
widths proportional to U_jj make all columns contribute alike, which costs the least rate (WaterSIC's allocation).

Where it is known how rows matter to the model's outputs, errors are pushed onto later rows in the same way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from riq_cli.quantize.columns import round_all
from riq_cli.quantize.factor import Factor, Floats, Integers
from riq_cli.quantize.spread import Spread
from riq_cli.quantize.trellis import Viterbi
from riq_cli.quantize.waves import Waves

_LANES = 1024  # whose ways through a trellis are followed side by side: so many stay in the processor's cache
_TOGETHER = 1 << 20  # weights of spreads that are rounded side by side, at most, if they are several
_ALL = slice(None)
_ALONE = 4096  # columns that are held at a time where errors do not spread to others


def compensated(
    matrix: Floats,
    factors: Sequence[Factor],
    widths: NDArray[np.float64],
    spreads: Sequence[Spread] = (),
    importance: NDArray[np.float64] | None = None,
    scales: NDArray[np.float64] | None = None,
) -> tuple[Integers, float]:
    """Symbols i32[groups, rows, K] of error-compensated rounding, and the error of the outputs that they leave.

    Args:
        matrix: W [groups, rows, K], in any float type.
        factors: of all columns, in order; errors stay within a factor's columns. Empty: they do not spread.
        widths: bin widths > 0, broadcastable to W.
        spreads: of all rows of all groups, if errors spread among rows too.
        importance: weights of rows in the error, f64[groups, rows]; None: all are 1.
        scales: of the bin widths of rows, f64[groups, rows]; None: all are 1.

    Returns:
        The symbols, and Σ tr((Ŵ − W)(H + λI)(Ŵ − W)ᵀ) / max |W|² in the units of H, each row by its importance.
    """
    return _Rounding(matrix, factors, widths, importance, scales, False).run(spreads)


def trellised(
    matrix: Floats,
    factors: Sequence[Factor],
    widths: NDArray[np.float64],
    spreads: Sequence[Spread] = (),
    importance: NDArray[np.float64] | None = None,
    scales: NDArray[np.float64] | None = None,
) -> tuple[Integers, float]:
    """Levels i32[groups, rows, K] of a trellis whose lanes are the rows, and the error, as `compensated` has it."""
    return _Rounding(matrix, factors, widths, importance, scales, True).run(spreads)


class _Rounding:
    """The rounding of one layer's matrices."""

    def __init__(
        self,
        matrix: Floats,
        factors: Sequence[Factor],
        widths: NDArray[np.float64],
        importance: NDArray[np.float64] | None,
        scales: NDArray[np.float64] | None,
        trellised: bool,
    ) -> None:
        groups, _, size = matrix.shape
        self._matrix, self._factors, self._importance, self._trellised = matrix, factors, importance, trellised
        self._peak = float(max(matrix.max(), -matrix.min())) or 1.0
        self._widths, self._scales = np.broadcast_to(widths, (groups, widths.shape[1], size)), scales
        self._uppers = [factor.upper for factor in factors]
        self._total = 0.0

    def run(self, spreads: Sequence[Spread]) -> tuple[Integers, float]:
        """Symbols or levels, and the error that they leave."""
        if spreads:
            symbols = np.empty(self._matrix.shape, np.int32)
            for together in self._together(spreads):
                self._in_waves(together, symbols)
            return symbols, self._total
        groups, rows, _ = self._matrix.shape
        step = max(_LANES // groups, 1) if self._trellised else rows
        parts = [self._at_once(slice(begin, begin + step)) for begin in range(0, rows, step)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1), self._total

    def _together(self, spreads: Sequence[Spread]) -> Iterator[Sequence[Spread]]:
        """Runs of spreads of a group with as many rows each: what is done for one may as well be done for several."""
        for (_, shape), run in itertools.groupby(spreads, key=lambda spread: (spread.group, spread.rows.shape)):
            alike, most = list(run), max(1, _TOGETHER // (math.prod(shape) * self._matrix.shape[2]))
            for first in range(0, len(alike), most):
                yield alike[first : first + most]

    def _at_once(self, chosen: slice) -> Integers:
        """Symbols of some rows of all groups, whose errors do not spread to others."""
        part = self._matrix[:, chosen]
        groups, rows, size = part.shape
        left = np.empty((groups, size, rows), np.float32)
        # float32 holds columns of W / peak, whatever the scale of the weights
        np.divide(part.transpose(0, 2, 1), self._peak, out=left, dtype=np.float64, casting="same_kind")
        bins = self._bins(left.shape, _ALL, chosen)
        symbols, errors = np.empty(left.shape, np.int32), np.empty_like(left)
        ways = Viterbi(groups, rows) if self._trellised else None
        round_all(left, bins, self._factors, self._uppers, symbols, errors, ways)
        if self._importance is None:
            self._total += float(np.einsum("gkn,gkn->", errors, errors, dtype=np.float64))
        else:
            squares = np.einsum("gkn,gkn->gn", errors, errors, dtype=np.float64)
            self._total += float(np.sum(squares * self._importance[:, chosen]))
        return symbols.transpose(0, 2, 1)

    def _in_waves(self, spreads: Sequence[Spread], symbols: Integers) -> None:
        """Round the rows of spreads that are alike, and write their symbols."""
        rows = np.stack([spread.rows for spread in spreads], axis=1)
        shares = [
            np.stack([spread.shares[block] for spread in spreads], dtype=np.float32) for block in range(len(rows))
        ]
        ways = Viterbi(len(rows), rows[0].size) if self._trellised else None
        size = self._matrix.shape[2]
        step = size if self._factors else _ALONE
        for begin in range(0, size, step):
            part = slice(begin, begin + step)
            self._columns_in_waves(spreads[0].group, rows, part, shares, ways, symbols[spreads[0].group, :, part])

    def _columns_in_waves(
        self,
        group: int,
        rows: NDArray[np.int64],
        columns: slice,
        shares: Sequence[Floats],
        ways: Viterbi | None,
        symbols: Integers,
    ) -> None:
        """Round some columns of the rows i64[blocks, spreads, length], and write them to symbols [rows, columns]."""
        flat, beside = rows.reshape(-1), rows.swapaxes(0, 1)
        there = flat >= 0
        part = self._matrix[group, beside.reshape(-1), columns].T
        size = len(part)
        goal = np.empty((size, *beside.shape), np.float32)
        np.divide(part.reshape(goal.shape), self._peak, out=goal, dtype=np.float64, casting="same_kind")
        del part
        goal *= beside >= 0

        def bins(block: int, chosen: slice) -> Floats:
            own = rows[block].reshape(-1)
            within = slice(columns.start + chosen.start, columns.start + chosen.stop)
            shape = 1, chosen.stop - chosen.start, own.size
            result: Floats = self._bins(shape, slice(group, group + 1), own, within)[0]
            return result

        waves = Waves(goal, bins, shares, self._factors, [upper[group] for upper in self._uppers], ways)
        del goal  # waves use it up
        waves.run()
        symbols[flat[there]] = waves.symbols.swapaxes(1, 2).reshape(-1, size)[there]
        squares = np.einsum("bkn,bkn->bn", waves.errors, waves.errors, dtype=np.float64).reshape(-1)[there]
        if self._importance is not None:
            squares *= self._importance[group, flat[there]]
        self._total += float(squares.sum())

    def _bins(
        self, shape: tuple[int, ...], groups: slice, rows: slice | NDArray[np.int64], columns: slice = _ALL
    ) -> Floats:
        """Bin widths of some weights, f32[groups, columns, rows], where the largest weight is 1; not to be written."""
        widths = self._widths[groups, :, columns]
        if widths.shape[1] > 1:
            widths = widths[:, rows]
        widths = widths.transpose(0, 2, 1) / self._peak
        if self._scales is None:
            return np.broadcast_to(widths.astype(np.float32), shape)
        bins = np.empty(shape, np.float32)
        return np.multiply(widths, self._scales[groups, None, rows], out=bins, dtype=np.float64, casting="same_kind")
