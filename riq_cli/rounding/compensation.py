"""Weights → symbols with error compensation: each column's rounding error is pushed onto the columns after it.

With second moments H = E[x xᵀ] of what a matrix W is multiplied with, rounding to Ŵ moves the outputs by
tr((Ŵ − W) H (Ŵ − W)ᵀ) on average. Columns are rounded one after another; what the error of one does to the outputs is
undone as well as later columns can (optimal brain quantization; GPTQ's order and factorization). With H⁻¹ = UᵀU, U
upper triangular, the error left is Σ_j ‖w_j − ŵ_j‖² / U_jj² of the columns as they were when they were rounded: bin
widths proportional to U_jj make all columns contribute alike, which costs the least rate (WaterSIC's allocation).

Where it is known how rows matter to the model's outputs, errors are pushed onto later rows in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from riq_cli import trellis
from riq_cli.rounding.columns import round_all, round_alone, round_columns
from riq_cli.rounding.factor import Factor, Floats, Integers
from riq_cli.rounding.spread import Spread
from riq_cli.trellis import Ways

_LANES = 1024  # whose ways through a trellis are followed side by side: so many stay in the processor's cache
_PANELS = 16  # about, into which columns are cut where blocks of rows follow each other
_PANEL_MIN, _PANEL_MAX = 8, 64  # columns
_ALONE = 4096  # columns that are held at a time where errors do not spread to others
_WAYS_MIN = (
    32  # of a panel along a trellis: at its end a way is settled on, which costs a part of what the trellis saves
)


def compensated(
    matrix: Floats,
    factors: Sequence[Factor],
    widths: NDArray[np.float64],
    spreads: Sequence[Spread] = (),
    importance: NDArray[np.float64] | None = None,
) -> tuple[Integers, float]:
    """Symbols i32[groups, rows, K] of error-compensated rounding, and the error of the outputs that they leave.

    Args:
        matrix: W [groups, rows, K], in any float type.
        factors: of all columns, in order; errors stay within a factor's columns. Empty: they do not spread.
        widths: bin widths > 0, broadcastable to W.
        spreads: of all rows of all groups, if errors spread among rows too.
        importance: weights of rows in the error, f64[groups, rows]; None: all are 1.

    Returns:
        The symbols, and Σ tr((Ŵ − W)(H + λI)(Ŵ − W)ᵀ) / max |W|² in the units of H, each row by its importance.
    """
    return _Rounding(matrix, factors, widths, importance, False).run(spreads)


def trellised(
    matrix: Floats,
    factors: Sequence[Factor],
    widths: NDArray[np.float64],
    spreads: Sequence[Spread] = (),
    importance: NDArray[np.float64] | None = None,
) -> tuple[Integers, float]:
    """Levels i32[groups, rows, K] of a trellis whose lanes are the rows, and the error, as `compensated` has it."""
    return _Rounding(matrix, factors, widths, importance, True).run(spreads)


class _Rounding:
    """The rounding of one layer's matrices."""

    def __init__(
        self,
        matrix: Floats,
        factors: Sequence[Factor],
        widths: NDArray[np.float64],
        importance: NDArray[np.float64] | None,
        trellised: bool,
    ) -> None:
        groups, rows, size = matrix.shape
        self._matrix, self._factors, self._importance, self._trellised = matrix, factors, importance, trellised
        self._peak = float(max(matrix.max(), -matrix.min())) or 1.0
        self._widths = np.broadcast_to(widths / self._peak, (groups, widths.shape[1], size))
        self._uppers = [factor.upper for factor in factors]
        self._symbols = np.empty((groups, rows, size), np.int32)
        self._total = 0.0

    def run(self, spreads: Sequence[Spread]) -> tuple[Integers, float]:
        """Symbols or levels, and the error that they leave."""
        for spread in spreads:
            self._in_waves(spread)
        groups, rows, _ = self._matrix.shape
        step = max(_LANES // groups, 1) if self._trellised else rows
        for begin in () if spreads else range(0, rows, step):
            self._at_once(slice(begin, begin + step))
        return self._symbols, self._total

    def _at_once(self, chosen: slice) -> None:
        """Round some rows of all groups, whose errors do not spread to others."""
        part = self._matrix[:, chosen]
        groups, rows, size = part.shape
        left = np.empty((groups, size, rows), np.float32)
        # float32 holds columns of W / peak, whatever the scale of the weights
        np.divide(part.transpose(0, 2, 1), self._peak, out=left, dtype=np.float64, casting="same_kind")
        widths = self._widths[:, chosen] if self._widths.shape[1] > 1 else self._widths
        bins = np.broadcast_to(widths.transpose(0, 2, 1), left.shape).astype(np.float32)
        symbols, errors = np.empty(left.shape, np.int32), np.empty_like(left)
        ways = Ways(groups, rows) if self._trellised else None
        round_all(left, bins, self._factors, self._uppers, symbols, errors, ways)
        self._symbols[:, chosen] = symbols.transpose(0, 2, 1)
        if self._importance is None:
            self._total += float(np.einsum("gkn,gkn->", errors, errors, dtype=np.float64))
        else:
            squares = np.einsum("gkn,gkn->gn", errors, errors, dtype=np.float64)
            self._total += float(np.sum(squares * self._importance[:, chosen]))

    def _in_waves(self, spread: Spread) -> None:
        """Round the rows of a spread: a block follows the one before it one panel of columns behind.

        So many blocks are rounded side by side: what errors of a panel move in later blocks is that panel alone.
        """
        ways = Ways(*spread.rows.shape) if self._trellised else None
        size = self._matrix.shape[2]
        step = size if self._factors else _ALONE
        for begin in range(0, size, step):
            self._columns_in_waves(spread, slice(begin, begin + step), ways)

    def _columns_in_waves(self, spread: Spread, columns: slice, ways: Ways | None) -> None:
        group, rows = spread.group, spread.rows
        blocks, length = rows.shape
        there, flat = rows.reshape(-1) >= 0, rows.reshape(-1)
        part = self._matrix[group, flat, columns].T
        size = len(part)
        goal = np.empty(part.shape, np.float32)  # the weights, and what earlier rows are off
        np.divide(part, self._peak, out=goal, dtype=np.float64, casting="same_kind")
        goal *= there
        left = goal.copy()  # and what earlier columns are off
        widths = self._widths[group, flat if self._widths.shape[1] > 1 else slice(None), columns]
        bins = np.broadcast_to(widths.T, left.shape).astype(np.float32)
        symbols, errors = np.empty(left.shape, np.int32), np.empty_like(left)
        panels = self._panels(size)
        for step in range(len(panels) + blocks - 1):
            active = [
                (block, slice(block * length, (block + 1) * length), *panels[step - block])
                for block in range(blocks)
                if 0 <= step - block < len(panels)
            ]
            for extent in {end - begin for _, _, _, begin, end in active}:
                wave = [item for item in active if item[4] - item[3] == extent]
                self._round_wave(group, wave, left, bins, symbols, errors, ways)
            for block, lanes, factor, begin, end in active:
                if factor is not None and end < self._factors[factor].end:
                    first, last = self._factors[factor].begin, self._factors[factor].end
                    upper = self._uppers[factor][group, begin - first : end - first, end - first :]
                    left[end:last, lanes] -= upper.T @ errors[begin:end, lanes]
                if lanes.stop < flat.size:
                    restored = symbols[begin:end, lanes] * bins[begin:end, lanes]
                    residual = goal[begin:end, lanes] - (restored / trellis.PARTS if self._trellised else restored)
                    moved = residual @ spread.shares[block]
                    goal[begin:end, lanes.stop :] -= moved
                    left[begin:end, lanes.stop :] -= moved
        self._symbols[group, flat[there], columns] = symbols.T[there]
        squares = np.einsum("kn,kn->n", errors, errors, dtype=np.float64)[there]
        if self._importance is not None:
            squares *= self._importance[group, flat[there]]
        self._total += float(squares.sum())

    def _panels(self, size: int) -> list[tuple[int | None, int, int]]:
        """Runs of columns with the number of their factor, each with its begin and end."""
        extent = min(max(size // _PANELS, _WAYS_MIN if self._trellised else _PANEL_MIN), _PANEL_MAX)
        bounds: list[tuple[int | None, int, int]] = [(n, item.begin, item.end) for n, item in enumerate(self._factors)]
        return [
            (number, first, min(first + extent, end))
            for number, begin, end in bounds or [(None, 0, size)]
            for first in range(begin, end, extent)
        ]

    def _round_wave(
        self,
        group: int,
        wave: Sequence[tuple[int, slice, int | None, int, int]],
        left: Floats,
        bins: Floats,
        symbols: Integers,
        errors: Floats,
        ways: Ways | None,
    ) -> None:
        """Round a panel of each of some blocks, panels of the same length, side by side."""

        def of(array: Floats) -> Floats:
            return np.stack([array[begin:end, lanes] for _, lanes, _, begin, end in wave])

        weights = of(left)
        found, missing = np.empty(weights.shape, np.int32), np.empty_like(weights)
        blocks = [item[0] for item in wave]
        own = None if ways is None else ways.of(blocks)
        if self._factors:
            upper = np.stack([self._upper(group, *item[2:]) for item in wave])
            round_columns(weights, of(bins), upper, found, missing, own)
        else:
            round_alone(weights, of(bins), found, missing, own)
        if ways is not None and own is not None:
            ways.put(blocks, own)
        for number, (_, lanes, _, begin, end) in enumerate(wave):
            symbols[begin:end, lanes], errors[begin:end, lanes] = found[number], missing[number]

    def _upper(self, group: int, number: int | None, begin: int, end: int) -> Floats:
        assert number is not None
        first = self._factors[number].begin
        part = slice(begin - first, end - first)
        return self._uppers[number][group, part, part]
