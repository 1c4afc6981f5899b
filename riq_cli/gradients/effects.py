"""Gradients at a layer's products, and what it multiplies → what errors of its rows do to the outputs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from riq_cli.gradients.rule import Array, Floats
from riq_cli.model import LinearInput, LinearOutput

Float64 = NDArray[np.float64]

_PIECE = 1 << 20  # numbers of a layer's input that are held as rows at a time


class Effects:
    """Second moments of what errors of rows do to the outputs, over all that were added.

    Errors of weights are random, the same at all positions of a sample; an effect is how far the outputs move along one
    direction, by an error of each row: f32[groups, rows].
    """

    def __init__(self, groups: int, rows: int, alone: bool = False) -> None:
        """None yet; if they are for rows `alone`, only their squares are kept."""
        self.count = 0
        self._effects: list[Floats] | None = None if alone else []
        self._squares = np.zeros((groups, rows))

    def add(self, effects: Floats) -> None:
        """Take effects in, [count, groups, rows]; those not finite are left out."""
        if not np.isfinite(effects).all():
            effects = effects[np.isfinite(effects).all(axis=(1, 2))]
        self.count += len(effects)
        self._squares += np.einsum("cgn,cgn->gn", effects, effects, dtype=np.float64)
        if self._effects is not None:
            self._effects.append(effects)

    @property
    def squares(self) -> Float64:
        """Means of squares, f64[groups, rows]."""
        result: Float64 = self._squares / max(self.count, 1)
        return result

    def moments(self, group: int, rows: NDArray[np.int64]) -> Float64:
        """Second moments of some rows of a group, f64[rows, rows]."""
        scale = math.sqrt(self._squares.max(initial=0)) or 1.0  # squares of float32 may be too small for it
        total = np.zeros((len(rows), len(rows)))
        for part in self._effects or ():
            chosen = (part[:, group, rows] / scale).astype(np.float32)
            total += chosen.T @ chosen
        total *= scale**2 / max(self.count, 1)
        return total


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
    groups, columns, _ = errors.shape
    products = np.concatenate(
        [rows @ errors for rows in entering.pieces(value, max(_PIECE // (groups * columns), 1))], axis=1
    )
    found = []
    for gradient in gradients:
        at = leaving.rows(gradient, groups)  # [groups, positions, rows]
        found.append(np.matmul(at.swapaxes(1, 2), products).transpose(2, 0, 1))
    return np.concatenate(found).astype(np.float32, copy=False)
