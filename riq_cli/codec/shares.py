"""Samples → how much what enters a layer matters to the outputs, position by position."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from riq_cli.codec.product_gradients import ProductGradients
from riq_cli.gradients import Array, Floats
from riq_cli.model import Linear
from riq_cli.moments import Shares

_PROBES = 8  # directions of the output in each run: squares over all rows of a layer average over more than these
_PROBES_LEAN = 2  # … of a large model, which takes them one by one
_EVEN = 0.1  # part of the shares that all positions have alike: what few gradients say is not all there is
_ENOUGH = 2  # times as many positions as columns, at least: where there are fewer, each of them is needed
_LEAST = 1024  # weights of a layer that is worth it


def position_shares(
    gradients: ProductGradients, linear: Mapping[int, Linear], progress: Callable[[int, int], None]
) -> Shares:
    """How much an error at each position of a product moves the outputs, with a mean of 1 for each layer.

    It is the squared gradient there: of what comes out of a convolution and is then pooled, or of steps of a sequence,
    most may not matter; and a loud sample matters no more than a quiet one.

    Args:
        gradients: at the products of layers.
        linear: layers that multiply activations.
        progress: called with steps through the model done, and their number in all.

    Returns:
        For the products of layers whose gradients are known and that have enough positions.

    Raises:
        ModelError: onnxruntime cannot run the model so that its inner tensors are seen.
    """
    chosen = {n: item for n, item in linear.items() if not item.is_table and math.prod(item.matrix.shape) >= _LEAST}
    squares: dict[tuple[int, int], dict[int, Any]] = {}

    def found(number: int, index: int, run: int, _: Array | None, gradient: Floats) -> None:
        item = linear[number]
        runs = squares.setdefault((number, index), {})
        for one in gradient:
            rows = item.products[index][1].rows(one, item.matrix.shape[0])
            runs[run] = runs.get(run, 0.0) + np.einsum("gpn,gpn->p", rows, rows, dtype=np.float64)

    probes = _PROBES_LEAN if gradients.observer.is_lean else _PROBES
    known = gradients.run(chosen, found, progress, probes, entering=False) if chosen else set[int]()
    shares: dict[Any, list[Array]] = {}
    for number in known:
        products = [squares.get((number, index), {}) for index in range(len(chosen[number].products))]
        values = [[runs.get(run, np.zeros(0)) for run in range(len(gradients.rows))] for runs in products]
        total = sum(float(part.sum()) for runs in values for part in runs)
        count = sum(part.size for runs in values for part in runs)
        if not 0 < total < math.inf or not all(part.size for runs in values for part in runs):
            continue
        if count < _ENOUGH * chosen[number].matrix.shape[2]:
            continue
        scale = (1 - _EVEN) * count / total
        for (_, leaving), runs in zip(chosen[number].products, values, strict=True):
            shares[leaving] = [(_EVEN + scale * part).astype(np.float32) for part in runs]
    return shares
