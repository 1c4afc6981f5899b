"""Rows of weights → symbols, block after block: errors of each block of rows are fed forward to those after it.

A block follows the one before it one panel of columns behind, so that many blocks are rounded side by side: a panel of
columns needs the errors of earlier blocks in the same columns alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from riq_cli.decode import trellis
from riq_cli.quantize.columns import round_alone, round_columns
from riq_cli.quantize.factor import Factor, Floats, Integers
from riq_cli.quantize.trellis import Viterbi

_PANELS = 16  # about, into which columns are cut
_PANEL_MIN, _PANEL_MAX = 8, 64  # columns
_TRELLIS_MIN = 32  # … of a panel along a trellis: at its end one path is kept, which costs a part of what it saves


class _Panel(NamedTuple):
    """Columns `begin` up to `end`, of a factor if there is one.

    Once they are rounded, errors of columns from `since` on are fed forward to columns up to `until`, in runs whose
    lengths are those of a binary counter: so most of the work is large matrix products.
    """

    factor: int | None
    begin: int
    end: int
    since: int
    until: int

    @property
    def columns(self) -> slice:
        """Its own."""
        return slice(self.begin, self.end)


class Wavefront:
    """Blocks of rows of one group while they are rounded.

    The same blocks of several row factors of one shape are one block here: its rows are the `lanes` of all.
    """

    def __init__(
        self,
        goal: Floats,
        bins: Callable[[int, slice], Floats],
        feedback: Sequence[Floats],
        factors: Sequence[Factor],
        group: int,
        paths: Viterbi | None,
    ) -> None:
        """Nothing is rounded yet.

        Args:
            goal: the weights, f32[K, factors, blocks, length]; used up.
            bins: gives the bin widths of some columns of a block, f32[columns, factors · length]: those of all weights
                would take as much memory as these.
            feedback: what part of the errors of each block later rows take over, f32[factors, length, rows after it].
            factors: of all columns, in order; none: no feedback along columns.
            group: of the rows.
            paths: through a trellis along the lanes of every block; None: to the nearest.
        """
        size, count, blocks, length = goal.shape
        self._goal, self._feedback, self._paths = goal, feedback, paths
        self._bins_of = bins
        self._bins: dict[int, Floats] = {}  # of the panels that are rounded now, by block
        self._factors, self._group = factors, group
        shape = blocks, size, count * length
        self._fed = np.zeros(shape, np.float32)  # what earlier columns feed forward
        self.symbols: Integers = np.empty(shape, np.int32)
        self.errors: Floats = np.empty(shape, np.float32)

    def run(self) -> None:
        """Write symbols i32[blocks, K, lanes], or levels, and scaled errors f32[blocks, K, lanes]; the rest goes."""
        blocks, size, _ = self.symbols.shape
        panels = self._panels(size)
        for step in range(len(panels) + blocks - 1):
            front = [(block, panels[step - block]) for block in range(blocks) if 0 <= step - block < len(panels)]
            self._bins = {block: self._bins_of(block, panel.columns) for block, panel in front}
            for extent in {panel.end - panel.begin for _, panel in front}:
                self._round([(block, panel) for block, panel in front if panel.end - panel.begin == extent])
            for block, panel in front:
                self._feed_columns(block, panel)
                if block + 1 < blocks:
                    self._feed_rows(block, panel.columns)
        del self._goal, self._fed  # what comes next takes memory of its own

    def _panels(self, size: int) -> list[_Panel]:
        """Runs of columns one after the other."""
        extent = min(max(size // _PANELS, _PANEL_MIN if self._paths is None else _TRELLIS_MIN), _PANEL_MAX)
        bounds: list[tuple[int | None, int, int]] = [(n, item.begin, item.end) for n, item in enumerate(self._factors)]
        found = []
        for factor, begin, end in bounds or [(None, 0, size)]:
            for number, first in enumerate(range(begin, end, extent), start=1):
                last, together = min(first + extent, end), extent * (number & -number)
                until = last if factor is None else min(last + together, end)
                found.append(_Panel(factor, first, last, first + extent - together, until))
        return found

    def _round(self, front: Sequence[tuple[int, _Panel]]) -> None:
        """Round a panel of each of some blocks, panels of the same length, side by side."""
        parts = [(block, panel.columns) for block, panel in front]
        lanes = self.symbols.shape[2]
        wanted = [self._goal[part, :, block].reshape(-1, lanes) - self._fed[block, part] for block, part in parts]
        weights, widths = np.stack(wanted), np.stack([self._bins[block] for block, _ in parts])
        found, missing = np.empty(weights.shape, np.int32), np.empty_like(weights)
        blocks = [block for block, _ in front]
        paths = None if self._paths is None else self._paths.of(blocks)
        if self._factors:
            upper = np.stack([self._upper(panel, panel.columns, panel.columns) for _, panel in front])
            round_columns(weights, widths, upper, found, missing, paths)
        else:
            round_alone(weights, widths, found, missing, paths)
        if self._paths is not None and paths is not None:
            self._paths.put(blocks, paths)
        for number, (block, part) in enumerate(parts):
            self.symbols[block, part], self.errors[block, part] = found[number], missing[number]

    def _feed_columns(self, block: int, panel: _Panel) -> None:
        """Feed errors of columns of a block forward to later columns of it."""
        if panel.until > panel.end:
            since, until = slice(panel.since, panel.end), slice(panel.end, panel.until)
            self._fed[block, until] += self._upper(panel, since, until).T @ self.errors[block, since]

    def _feed_rows(self, block: int, columns: slice) -> None:
        """Feed errors of some columns of a block forward to those of later blocks."""
        restored = np.multiply(self.symbols[block, columns], self._bins[block], dtype=np.float32)
        if self._paths is not None:
            restored /= trellis.PARTS
        goal = self._goal[columns]
        residual = goal[:, :, block] - restored.reshape(goal[:, :, block].shape)
        moved = (residual.swapaxes(0, 1) @ self._feedback[block]).swapaxes(0, 1)
        goal[:, :, block + 1 :] -= moved.reshape(goal[:, :, block + 1 :].shape)

    def _upper(self, panel: _Panel, rows: slice, columns: slice) -> Floats:
        """A part of U of the factor that a panel is of."""
        assert panel.factor is not None
        factor = self._factors[panel.factor]
        first = factor.begin
        return factor.upper[
            self._group, rows.start - first : rows.stop - first, columns.start - first : columns.stop - first
        ]
