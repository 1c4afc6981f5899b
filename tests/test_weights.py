"""All layers of a model together: what is measured of them is what is coded, and costs what is counted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from riq_cli.decode.dequantize import Quantized
from riq_cli.model import Layer
from riq_cli.pipeline.settings import Settings
from riq_cli.pipeline.weights import Weights
from riq_cli.quantize.factor import Factor
from riq_cli.quantize.plan import LayerPlan
from riq_cli.statistics.hessian import FIXED, factorized
from tests.archives import layer_of

FACTOR = Factor(0, 30, factorized(np.eye(30)[None] + 0.5, FIXED))


def layer(*shape: int, seed: int = 1) -> Layer:
    return layer_of(np.random.default_rng(seed).standard_normal(shape))


def test_what_is_measured_is_what_is_coded(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the nearest, in rows of their own bin widths, fed forward with a bias, along a trellis, exact; in parts.

    Mapped memory is given back after each part, or each layer that is rounded as a whole, and each that is counted.
    """
    layers = [layer(40, 30), layer(40, 3, 10), layer(8, 30), layer(16, 30), layer(8), layer(7)]
    parted = replace(LayerPlan.nearest(layers[1]), rows=np.arange(40, dtype=np.int32)[None] % 9)
    fed = replace(LayerPlan.nearest(layers[2]), factors=(FACTOR,), bias=4, mean=np.ones((1, 30)))
    plans = {1: parted, 2: fed, 3: replace(LayerPlan.nearest(layers[3]), trellis=True)}
    widths = [0.3, 0.4, 0.2, 0.5, 0.1, None]
    bits = []
    given_back: list[None] = []
    monkeypatch.setattr("riq_cli.pipeline.weights.give_back_mapped_memory", lambda: given_back.append(None))
    for piece, parts in ((1 << 20, 2), (100, 2 * 14)):
        monkeypatch.setattr("riq_cli.pipeline.weights._PIECE", piece)
        weights = Weights(layers, Settings(threads=1))
        with ThreadPoolExecutor(2) as pool:
            given_back.clear()
            found = weights.requantize(widths, plans, weights.buffers(), pool)
            assert len(given_back) == parts + 2
            bits.append(weights.bits(widths, plans, pool))
            assert len(given_back) == parts + 2 + len(layers)
        for number, width in enumerate(widths[:5]):
            assert width is not None
            plan, shift = plans.get(number), fed.shift(layers[2], found[2]) if number == 4 else None
            quantized = weights.quantized(number, width, plan, shift)
            restored = quantized.restored("float32", layers[number].shape).reshape(layers[number].shape)
            np.testing.assert_array_equal(found[number], restored)
            if number != 4:
                np.testing.assert_array_equal(weights.alone(number, width, plan)[number], restored)
        assert list(weights.alone(2, 0.2, fed)) == [2, 4]
        assert found[5] is layers[5].values
    assert bits[0] == bits[1]


def test_what_was_rounded_to_be_measured_is_not_rounded_again_to_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [layer(8, 30), layer(40, 30), layer(16, 30)]
    plans = {number: replace(LayerPlan.nearest(each), factors=(FACTOR,)) for number, each in enumerate(layers)}
    rounded: list[tuple[int, float]] = []
    before = LayerPlan.quantized

    def noted(plan: LayerPlan, each: Layer, width: float) -> Quantized:
        rounded.append((each.shape[0], width))
        return before(plan, each, width)

    monkeypatch.setattr(LayerPlan, "quantized", noted)
    bits = []
    with ThreadPoolExecutor(1) as pool:
        for measured_first in (True, False):
            weights = Weights(layers, Settings(threads=1))
            if measured_first:
                weights.requantize([0.3, 0.4, 0.5], plans, weights.buffers(), pool)
            bits.append(weights.bits([0.3, 0.4, 0.5], plans, pool))
            assert rounded == [(40, 0.4), (16, 0.5), (8, 0.3)]  # the largest first
            rounded.clear()
        weights.bits([0.3, 0.4, 0.6], plans, pool)
    assert bits[0] == bits[1] and rounded == [(16, 0.6)]
