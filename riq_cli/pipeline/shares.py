"""Samples → how much what enters a layer matters to the outputs, position by position."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from riq_cli.model import Linear, LinearOutput
from riq_cli.pipeline.product_gradients import LEAST, ProductGradients
from riq_cli.statistics.autodiff import Array, Floats
from riq_cli.statistics.moments import PositionShares, Shares

_PROBES = 8  # directions of the output in each run: squares over all rows of a layer average over more than these
_ENOUGH = 2  # times as many positions as columns, at least: where there are fewer, each of them is needed
_TOLD_APART = 4096  # positions of a product in one run, about; of more, some that follow each other are taken together


def position_shares(
    gradients: ProductGradients,
    linear: Mapping[int, Linear],
    progress: Callable[[int, int], None],
    probes: int = _PROBES,
) -> Shares:
    """How much an error at each position of a product moves the outputs, with a mean of 1 for each layer.

    It is the squared gradient there: of what comes out of a convolution and is then pooled, or of steps of a sequence,
    most may not matter; and a loud sample matters no more than a quiet one.

    Args:
        gradients: at the products of layers.
        linear: layers that multiply activations.
        progress: called with steps through the model done, and their number in all.
        probes: directions of the output in each run.

    Returns:
        For the products of layers whose gradients are known and that have enough positions.

    Raises:
        ModelError: onnxruntime cannot run the model so that its inner tensors are seen.
    """
    chosen = {n: item for n, item in linear.items() if not item.is_table and math.prod(item.matrix.shape) >= LEAST}
    squares: dict[tuple[int, int], dict[int, PositionShares]] = {}  # sums of them

    def take_in(number: int, index: int, run: int, _: Array | None, gradient: Floats) -> None:
        item = linear[number]
        runs = squares.setdefault((number, index), {})
        for one in gradient:
            rows = item.products[index][1].rows(one, item.matrix.shape[0])
            sums = np.einsum("gpn,gpn->p", rows, rows, dtype=np.float64)
            step = -(-sums.size // _TOLD_APART) or 1
            together = np.add.reduceat(sums, np.arange(0, sums.size, step)) if step > 1 else sums
            before = runs[run].values if run in runs else 0.0
            runs[run] = PositionShares(sums.size, step, before + together)

    known = gradients.run(chosen, take_in, progress, probes, entering=False) if chosen else set[int]()
    shares: dict[LinearOutput, list[PositionShares]] = {}
    for number in known:
        item = chosen[number]
        products = [squares.get((number, index), {}) for index in range(len(item.products))]
        parts = [part for runs in products for part in runs.values()]
        total = sum(float(part.values.sum()) for part in parts)
        count = sum(part.count for part in parts)
        if not 0 < total < math.inf or len(parts) < len(products) * len(gradients.rows):
            continue
        if count < _ENOUGH * item.matrix.shape[2]:
            continue
        for (_, leaving), runs in zip(item.products, products, strict=True):
            shares[leaving] = [_share(runs[run], count / total) for run in range(len(gradients.rows))]
    return shares


def _share(squares: PositionShares, scale: float) -> PositionShares:
    """What positions count for, by the sums of squared gradients at those taken together."""
    sizes = np.full(squares.values.size, squares.step)
    sizes[-1:] = squares.count - (sizes.size - 1) * squares.step
    return PositionShares(squares.count, squares.step, (scale * squares.values / sizes).astype(np.float32))
