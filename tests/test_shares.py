"""How much the positions of products matter, by what is known of small networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import Random, info, model, node, save, tensor, unknown

from riq_cli.model import Model, linear_layers
from riq_cli.pipeline.product_gradients import ProductGradients
from riq_cli.pipeline.shares import position_shares
from riq_cli.pipeline.weights import Weights
from riq_cli.runtime import Observer, Runtime

Feeds = Sequence[dict[str, np.ndarray]]


def shares_of(proto: onnx.ModelProto, feeds: Feeds, folder: Path) -> dict[str, list[np.ndarray]]:
    """Shares by the output of the operation, one array for each feed."""
    loaded = Model.load(save(proto, folder))
    form, linear = linear_layers(loaded.session_form(), loaded.layers)
    observer = Observer(
        form, [layer.values for layer in loaded.layers], [(feed, 1) for feed in feeds], runtime=Runtime(threads=1)
    )
    gradients = ProductGradients(
        Weights(loaded.layers), form, observer, form.measured, [1] * len(feeds), (range(6), range(6, len(feeds)))
    )
    steps: list[tuple[int, int]] = []
    found = position_shares(gradients, linear, lambda done, total: steps.append((done, total)))
    assert steps == [(number, len(feeds)) for number in range(1, len(feeds) + 1)]
    return {
        leaving.operation[0]: [np.repeat(share.values, share.step)[: share.count] for share in shares]
        for leaving, shares in found.items()
    }


def inputs(*shape: int, count: int = 3) -> Feeds:
    random = np.random.default_rng(5)
    return [{"x": random.standard_normal(shape, np.float32)} for _ in range(count)]


def test_positions_that_lead_nowhere_do_not_count(tmp_path: Path) -> None:
    """Only the first and the last of twelve steps are looked at."""
    proto = model(
        [
            node("MatMul", "x w", "a"),
            node("Gather", "a ends", "b", axis=1),
            node("Tanh", "b", "c"),
            node("MatMul", "c v", "y"),
        ],
        [info("x", 1, 12, 16)],
        [unknown("y")],
        [tensor("w", Random(0)(16, 64)), tensor("v", Random(1)(64, 32)), tensor("ends", np.array([0, 11]))],
    )
    found = shares_of(proto, inputs(1, 12, 16), tmp_path)
    assert sorted(found) == ["a"], "6 positions say little of 64 columns"
    assert [share.shape for share in found["a"]] == [(12,)] * 3
    assert np.mean(found["a"]) == pytest.approx(1, rel=1e-5)
    for share in found["a"]:
        np.testing.assert_array_equal(share[1:11], 0)
        assert share[[0, 11]].min() > 2


def test_of_what_is_pooled_the_largest_counts(tmp_path: Path) -> None:
    proto = model(
        [node("Conv", "x w", "a"), node("MaxPool", "a", "y", kernel_shape=[4, 4], strides=[4, 4])],
        [info("x", 1, 32, 8, 8)],
        [unknown("y")],
        [tensor("w", np.repeat(Random(0)(1, 32, 1, 1), 32, axis=0))],  # all channels alike
    )
    feeds = inputs(1, 32, 8, 8)
    found = shares_of(proto, feeds, tmp_path)["a"]
    for share, feed in zip(found, feeds, strict=True):
        product = np.tensordot(Random(0)(1, 32, 1, 1)[0, :, 0, 0], feed["x"][0], 1)
        largest = product == product.reshape(2, 4, 2, 4).max(axis=(1, 3)).repeat(4, axis=0).repeat(4, axis=1)
        np.testing.assert_array_equal(share.reshape(8, 8) > 0, largest)


def test_of_many_positions_those_that_follow_each_other_are_taken_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = model(
        [node("Conv", "x w", "a"), node("MaxPool", "a", "y", kernel_shape=[5, 5])],
        [info("x", 1, 32, 67, 67)],
        [unknown("y")],
        [tensor("w", Random(0)(32, 32, 1, 1))],
    )
    feeds = inputs(1, 32, 67, 67, count=2)
    together = shares_of(proto, feeds, tmp_path)["a"]
    monkeypatch.setattr("riq_cli.pipeline.shares._TOLD_APART", 67 * 67)
    for share, each in zip(together, shares_of(proto, feeds, tmp_path)["a"], strict=True):
        assert share.shape == each.shape == (67 * 67,)
        starts = np.arange(0, 67 * 67, 2)
        means = np.add.reduceat(each, starts) / np.add.reduceat(np.ones(67 * 67), starts)
        np.testing.assert_allclose(share, np.repeat(means, 2)[: 67 * 67], rtol=1e-5)


def test_a_loud_sample_counts_no_more_than_a_quiet_one(tmp_path: Path) -> None:
    """What an error adds to a loud one's output is as loud, but the deviation is of directions."""
    proto = model([node("MatMul", "x w", "y")], [info("x", 40, 32)], [unknown("y")], [tensor("w", Random(0)(32, 64))])
    quiet, loud = inputs(40, 32, count=2)[0]["x"], 1000 * inputs(40, 32, count=2)[0]["x"]
    found = shares_of(proto, [{"x": quiet}, {"x": loud}], tmp_path)["y"]
    energies = [float(np.sum(share * np.square(x).sum(1))) for share, x in zip(found, (quiet, loud), strict=True)]
    assert energies[1] == pytest.approx(energies[0], rel=0.5)


def test_nothing_is_said_before_an_operation_without_a_rule_nor_of_tables(tmp_path: Path) -> None:
    proto = model(
        [
            node("Gather", "table i", "t"),
            node("MatMul", "t w", "a"),
            node("Reshape", "a cube", "b"),
            node("Det", "b", "c"),
            node("ReduceSum", "c", "d", keepdims=0),
            node("Mul", "t d", "e"),
            node("MatMul", "e v", "y"),
        ],
        [info("i", 150, dtype=onnx.TensorProto.INT64)],
        [unknown("y")],
        [
            tensor("table", Random(2)(50, 64)),
            tensor("w", Random(0)(64, 16)),
            tensor("v", Random(1)(64, 32)),
            tensor("cube", np.array([-1, 4, 4])),
        ],
    )
    assert sorted(shares_of(proto, [{"i": np.arange(150) % 50}], tmp_path)) == ["y"]
