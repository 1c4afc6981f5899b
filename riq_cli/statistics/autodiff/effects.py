"""Gradients at a layer's products, and what it multiplies → what errors of its rows do to the outputs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from riq_cli.model import LinearInput, LinearOutput
from riq_cli.statistics.autodiff.rule import Array, Floats

Float64 = NDArray[np.float64]

_PIECE = 1 << 20  # numbers of a layer's input that are held as rows at a time
_PANELS = 8  # into which moments of a run are cut
_ABOVE = 1e6  # an effect that is so much larger than those before it changes the scale of what is kept


class Effects:
    """Second moments of what errors of rows do to the outputs, over all that were added.

    Errors of weights are random, the same at all positions of a sample; an effect is how far the outputs move along one
    direction, by an error of each row: f32[groups, rows]. Of many rows, only moments within `runs` of them are kept.
    """

    def __init__(self, groups: int, rows: int, most: int = 1024, alone: bool = False) -> None:
        """None yet.

        Args:
            groups: matrices of the layer.
            rows: of each.
            most: rows of a run.
            alone: keep only the squares.
        """
        self.count = 0
        self.runs = [(group, run) for group in range(groups) for run in _runs(rows, most)]
        self._squares = np.zeros((groups, rows))
        self._moments = None if alone else [_zeros(len(run)) for _, run in self.runs]
        self._scale = 0.0  # of what is in the moments: float32 holds no squares of very small numbers

    def add(self, effects: Floats) -> None:
        """Take effects in, [count, groups, rows]; those not finite are left out."""
        if not np.isfinite(effects).all():
            effects = effects[np.isfinite(effects).all(axis=(1, 2))]
        self.count += len(effects)
        self._squares += np.einsum("cgn,cgn->gn", effects, effects, dtype=np.float64)
        if self._moments is None:
            return
        largest = float(np.max(np.abs(effects), initial=0))
        if largest > _ABOVE * self._scale:
            for panel in itertools.chain(*self._moments):
                panel *= np.float32((self._scale / largest) ** 2)
            self._scale = largest
        for panels, (group, run) in zip(self._moments, self.runs, strict=True):
            part = effects[:, group, run] / np.float32(self._scale or 1)
            for panel in panels:
                rest = part[:, len(run) - panel.shape[1] :]
                panel += rest[:, : len(panel)].T @ rest

    @property
    def squares(self) -> Float64:
        """Means of squares, f64[groups, rows]."""
        result: Float64 = self._squares / max(self.count, 1)
        return result

    def moments(self, group: int, rows: NDArray[np.int64]) -> Float64:
        """Second moments of some rows of one run of a group, f64[rows, rows]."""
        assert self._moments is not None
        for panels, (other, run) in zip(self._moments, self.runs, strict=True):
            if other == group and run[0] <= rows[0] and rows[-1] <= run[-1]:
                chosen = _whole(panels)[np.ix_(rows - run[0], rows - run[0])]
                return chosen * (self._scale**2 / max(self.count, 1))
        raise ValueError("rows of no one run")


def _zeros(rows: int) -> list[Floats]:
    """Moments of a run, a few rows after another, each with the columns from its own on: the others are the same."""
    cuts = [number * rows // _PANELS for number in range(_PANELS + 1)]
    return [np.zeros((end - begin, rows - begin), np.float32) for begin, end in itertools.pairwise(cuts) if end > begin]


def _whole(panels: Sequence[Floats]) -> Float64:
    """All moments of a run, f64[rows, rows]."""
    rows = panels[0].shape[1]
    result = np.empty((rows, rows))
    for panel in panels:
        begin = rows - panel.shape[1]
        result[begin : begin + len(panel), begin:] = panel
        result[begin:, begin : begin + len(panel)] = panel.T
    return result


def _runs(rows: int, most: int) -> list[NDArray[np.int64]]:
    """All rows in runs of about the same length, `most` at most."""
    count = -(-rows // most)
    cuts = [number * rows // count for number in range(count + 1)]
    return [np.arange(begin, end) for begin, end in itertools.pairwise(cuts)]


def effects(entering: LinearInput, leaving: LinearOutput, value: Array, gradients: Floats, errors: Floats) -> Floats:
    """What errors of a layer's weights do to the outputs by one of its products in one run, f32[n, groups, rows].

    Args:
        entering: how the layer's input is cut into rows.
        leaving: how the product is.
        value: of the layer's input.
        gradients: at the product, [probes, *shape].
        errors: of a row of weights, f32[groups, columns, errors]; the same for all rows.

    Returns:
        One for every probe and error.
    """
    groups, columns, count = errors.shape
    step = max(_PIECE // (groups * max(columns, count)), 1)
    at = [leaving.rows(gradient, groups) for gradient in gradients]  # [groups, positions, rows]
    found = np.zeros((len(at), groups, at[0].shape[2], count), np.float32)
    for number, products in enumerate(entering.products(value, errors, step)):
        piece = slice(number * step, number * step + products.shape[1])
        for total, gradient in zip(found, at, strict=True):
            total += np.matmul(gradient[:, piece].swapaxes(1, 2), products)
    return found.transpose(0, 3, 1, 2).reshape(len(at) * count, *found.shape[1:3])
