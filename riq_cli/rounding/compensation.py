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
from typing import NamedTuple

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
_TOGETHER = 1 << 20  # weights of spreads that are rounded side by side, at most, if they are several
_ALL = slice(None)
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


class _Panel(NamedTuple):
    """Columns `begin` up to `end`, of a factor if there is one.

    Once they are rounded, errors of those from `since` on are pushed onto those up to `until`: the later, the more
    panels go at a time, so that every two are met once.
    """

    factor: int | None
    begin: int
    end: int
    since: int
    until: int


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
        groups, rows, size = matrix.shape
        self._matrix, self._factors, self._importance, self._trellised = matrix, factors, importance, trellised
        self._peak = float(max(matrix.max(), -matrix.min())) or 1.0
        self._widths, self._scales = np.broadcast_to(widths, (groups, widths.shape[1], size)), scales
        self._uppers = [factor.upper for factor in factors]
        self._symbols = np.empty((groups, rows, size), np.int32)
        self._total = 0.0

    def run(self, spreads: Sequence[Spread]) -> tuple[Integers, float]:
        """Symbols or levels, and the error that they leave."""
        for together in self._together(spreads):
            self._in_waves(together)
        groups, rows, _ = self._matrix.shape
        step = max(_LANES // groups, 1) if self._trellised else rows
        for begin in () if spreads else range(0, rows, step):
            self._at_once(slice(begin, begin + step))
        return self._symbols, self._total

    def _together(self, spreads: Sequence[Spread]) -> Iterator[Sequence[Spread]]:
        """Runs of spreads of a group with as many rows each: what is done for one may as well be done for several."""
        for (_, shape), run in itertools.groupby(spreads, key=lambda spread: (spread.group, spread.rows.shape)):
            alike, most = list(run), max(1, _TOGETHER // (math.prod(shape) * self._matrix.shape[2]))
            for first in range(0, len(alike), most):
                yield alike[first : first + most]

    def _at_once(self, chosen: slice) -> None:
        """Round some rows of all groups, whose errors do not spread to others."""
        part = self._matrix[:, chosen]
        groups, rows, size = part.shape
        left = np.empty((groups, size, rows), np.float32)
        # float32 holds columns of W / peak, whatever the scale of the weights
        np.divide(part.transpose(0, 2, 1), self._peak, out=left, dtype=np.float64, casting="same_kind")
        bins = self._bins(left.shape, _ALL, chosen)
        symbols, errors = np.empty(left.shape, np.int32), np.empty_like(left)
        ways = Ways(groups, rows) if self._trellised else None
        round_all(left, bins, self._factors, self._uppers, symbols, errors, ways)
        self._symbols[:, chosen] = symbols.transpose(0, 2, 1)
        if self._importance is None:
            self._total += float(np.einsum("gkn,gkn->", errors, errors, dtype=np.float64))
        else:
            squares = np.einsum("gkn,gkn->gn", errors, errors, dtype=np.float64)
            self._total += float(np.sum(squares * self._importance[:, chosen]))

    def _in_waves(self, spreads: Sequence[Spread]) -> None:
        """Round the rows of spreads that are alike: a block follows the one before it one panel of columns behind.

        So many blocks are rounded side by side: what errors of a panel move in later blocks is that panel alone.
        """
        rows = np.stack([spread.rows for spread in spreads], axis=1)
        shares = [
            np.stack([spread.shares[block] for spread in spreads], dtype=np.float32) for block in range(len(rows))
        ]
        ways = Ways(len(rows), rows[0].size) if self._trellised else None
        size = self._matrix.shape[2]
        step = size if self._factors else _ALONE
        for begin in range(0, size, step):
            self._columns_in_waves(spreads[0].group, rows, shares, slice(begin, begin + step), ways)

    def _columns_in_waves(
        self,
        group: int,
        rows: NDArray[np.int64],
        shares: Sequence[Floats],
        columns: slice,
        ways: Ways | None,
    ) -> None:
        """Round some columns of the rows [blocks, spreads, length]; shares [spreads, length, rows after the block]."""
        blocks, flat = len(rows), rows.reshape(-1)
        there = flat >= 0
        beside = rows.swapaxes(0, 1)
        part = self._matrix[group, beside.reshape(-1), columns].T
        size = len(part)
        goal = np.empty((size, *beside.shape), np.float32)  # the weights, and what earlier rows are off
        np.divide(part.reshape(goal.shape), self._peak, out=goal, dtype=np.float64, casting="same_kind")
        del part
        goal *= beside >= 0
        extent = flat.size // blocks
        pushed = np.zeros((blocks, size, extent), np.float32)  # what earlier columns are off
        bins = self._bins((1, size, flat.size), slice(group, group + 1), flat, columns)[0]
        bins = np.ascontiguousarray(bins.reshape(size, blocks, extent).swapaxes(0, 1))
        symbols, errors = np.empty(pushed.shape, np.int32), np.empty_like(pushed)
        panels = self._panels(size)
        for step in range(len(panels) + blocks - 1):
            active = [(block, panels[step - block]) for block in range(blocks) if 0 <= step - block < len(panels)]
            for columns_each in {panel.end - panel.begin for _, panel in active}:
                wave = [item for item in active if item[1].end - item[1].begin == columns_each]
                self._round_wave(group, wave, goal, pushed, bins, symbols, errors, ways)
            for block, panel in active:
                own = slice(panel.begin, panel.end)
                if panel.until > panel.end:
                    upper = self._upper(group, panel, (panel.since, panel.end), (panel.end, panel.until))
                    pushed[block, panel.end : panel.until] += upper.T @ errors[block, panel.since : panel.end]
                if block + 1 < blocks:
                    restored = np.multiply(symbols[block, own], bins[block, own], dtype=np.float32)
                    if self._trellised:
                        restored /= trellis.PARTS
                    residual = goal[own, :, block].swapaxes(0, 1) - restored.reshape(-1, *rows.shape[1:]).swapaxes(0, 1)
                    moved = (residual @ shares[block]).swapaxes(0, 1)
                    goal[own, :, block + 1 :] -= moved.reshape(*moved.shape[:2], -1, rows.shape[2])
        self._symbols[group, flat[there], columns] = symbols.swapaxes(1, 2).reshape(-1, size)[there]
        squares = np.einsum("bkn,bkn->bn", errors, errors, dtype=np.float64).reshape(-1)[there]
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

    def _panels(self, size: int) -> list[_Panel]:
        """Runs of columns one after the other."""
        extent = min(max(size // _PANELS, _WAYS_MIN if self._trellised else _PANEL_MIN), _PANEL_MAX)
        bounds: list[tuple[int | None, int, int]] = [(n, item.begin, item.end) for n, item in enumerate(self._factors)]
        found = []
        for factor, begin, end in bounds or [(None, 0, size)]:
            for number, first in enumerate(range(begin, end, extent), start=1):
                last, together = min(first + extent, end), extent * (number & -number)
                until = last if factor is None else min(last + together, end)
                found.append(_Panel(factor, first, last, first + extent - together, until))
        return found

    def _round_wave(
        self,
        group: int,
        wave: Sequence[tuple[int, _Panel]],
        goal: Floats,
        pushed: Floats,
        bins: Floats,
        symbols: Integers,
        errors: Floats,
        ways: Ways | None,
    ) -> None:
        """Round a panel of each of some blocks, panels of the same length, side by side."""
        parts = [(block, slice(panel.begin, panel.end)) for block, panel in wave]
        weights = np.stack(
            [goal[part, :, block].reshape(-1, pushed.shape[2]) - pushed[block, part] for block, part in parts]
        )
        widths = np.stack([bins[block, part] for block, part in parts])
        found, missing = np.empty(weights.shape, np.int32), np.empty_like(weights)
        blocks = [block for block, _ in wave]
        own = None if ways is None else ways.of(blocks)
        if self._factors:
            among = [(panel, (panel.begin, panel.end)) for _, panel in wave]
            upper = np.stack([self._upper(group, panel, both, both) for panel, both in among])
            round_columns(weights, widths, upper, found, missing, own)
        else:
            round_alone(weights, widths, found, missing, own)
        if ways is not None and own is not None:
            ways.put(blocks, own)
        for number, (block, part) in enumerate(parts):
            symbols[block, part], errors[block, part] = found[number], missing[number]

    def _upper(self, group: int, panel: _Panel, rows: tuple[int, int], columns: tuple[int, int]) -> Floats:
        """A part of U of the factor that a panel is of."""
        assert panel.factor is not None
        first = self._factors[panel.factor].begin
        return self._uppers[panel.factor][
            group, rows[0] - first : rows[1] - first, columns[0] - first : columns[1] - first
        ]
