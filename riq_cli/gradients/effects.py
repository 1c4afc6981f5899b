"""Gradients at a layer's products, and what it multiplies → what errors of its rows do to the outputs."""

from __future__ import annotations

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

    def __init__(self) -> None:
        """None yet."""
        self.count = 0
        self._effects: list[Floats] = []
        self._squares: Float64 | None = None

    def add(self, effects: Floats) -> None:
        """Take effects in, [count, groups, rows]; of many groups only the squares are kept."""
        self.count += len(effects)
        if effects.shape[1] == 1:
            self._effects.append(effects[:, 0])
        else:
            squares = np.einsum("cgn,cgn->gn", effects, effects, dtype=np.float64)
            self._squares = squares if self._squares is None else self._squares + squares

    @property
    def squares(self) -> Float64:
        """Means of squares, f64[groups, rows]."""
        if self._squares is None:
            total = sum(np.einsum("cn,cn->n", part, part, dtype=np.float64) for part in self._effects)
            return np.asarray(total, np.float64)[None] / max(self.count, 1)
        return self._squares / max(self.count, 1)

    def moments(self, rows: NDArray[np.int64]) -> Float64:
        """Second moments of some rows of the only group, f64[rows, rows]."""
        total = np.zeros((len(rows), len(rows)))
        for part in self._effects:
            chosen = part[:, rows]
            total += chosen.T @ chosen
        return total / max(self.count, 1)


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
    products = np.concatenate(
        [rows @ errors for rows in entering.pieces(value, max(_PIECE // (groups * columns), 1))], axis=1
    )
    found = []
    for gradient in gradients:
        at = leaving.rows(gradient, groups)  # [groups, positions, rows]
        found.append(np.matmul(at.swapaxes(1, 2), products).transpose(2, 0, 1))
    return np.concatenate(found).astype(np.float32, copy=False)
