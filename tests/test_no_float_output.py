"""Models none of whose outputs is float: a score of one's own can be kept, an inner tensor can be measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import riq_cli as riq
from riq_cli.constraint import MetricConstraint
from riq_cli.errors import SettingsError
from riq_cli.pipeline import PRESETS, FixedLayout
from tests import builders

INT64, STRING, BOOL = onnx.TensorProto.INT64, onnx.TensorProto.STRING, onnx.TensorProto.BOOL
Predict = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
WHAT_HELPS = "keep a score of your own with --metric, without --deviation"


def tokens() -> onnx.ModelProto:
    """A decoder in a Loop: six tokens for an input, and no float leaves the graph."""
    body = builders.graph(
        [
            builders.node("Gather", "E token", "e"),
            builders.node("Add", "e a", "ea"),
            builders.node("MatMul", "ea D", "logits"),
            builders.node("ArgMax", "logits", "next", axis=1, keepdims=0),
            builders.node("Identity", "go", "on"),
            builders.node("Identity", "next", "said"),
        ],
        [builders.info("i", dtype=INT64), builders.info("go", dtype=BOOL), builders.info("token", 1, dtype=INT64)],
        [builders.info("on", dtype=BOOL), builders.info("next", 1, dtype=INT64), builders.info("said", 1, dtype=INT64)],
    )
    r = builders.Random(3)
    tensors = [
        *(builders.tensor(name, r(*shape)) for name, shape in (("W", (32, 32)), ("E", (50, 32)), ("D", (32, 50)))),
        *(builders.tensor(name, np.array(value)) for name, value in (("n", 6), ("yes", True), ("first", [1]))),
    ]
    nodes = [builders.node("MatMul", "x W", "a"), builders.node("Loop", "n yes first", "last y", body=body)]
    return builders.model(nodes, [builders.info("x", 1, 32)], [builders.info("y", None, 1, dtype=INT64)], tensors)


def words() -> onnx.ModelProto:
    """A text for the larger of two scores."""
    nodes = [
        builders.node("MatMul", "x W", "scores"),
        builders.node("ArgMax", "scores", "best", axis=1, keepdims=0),
        builders.node("Gather", "texts best", "y"),
    ]
    texts = onnx.helper.make_tensor("texts", STRING, [2], [b"no", b"yes"])
    tensors = [builders.tensor("W", builders.Random(3)(32, 2)), texts]
    return builders.model(nodes, [builders.info("x", 1, 32)], [builders.info("y", 1, dtype=STRING)], tensors)


def loaded(proto: onnx.ModelProto, folder: Path) -> riq.Model:
    return riq.Model.load(builders.save(proto, folder))


def agreement() -> MetricConstraint:
    """The share of inputs for which a model says what the first one said."""
    x = np.random.default_rng(1).standard_normal((20, 1, 32)).astype(np.float32)
    first: list[np.ndarray] = []

    def score(predict: Predict) -> float:
        said = [predict({"x": one})["y"] for one in x]
        first[:] = first or said
        return float(np.mean([np.array_equal(a, b) for a, b in zip(said, first, strict=True)]))

    return MetricConstraint(score, max_drop=0.2)


@pytest.mark.parametrize(
    "options",
    [PRESETS["fast"], PRESETS["small"], {"layout": FixedLayout((4, 8, "float"))}],
    ids=["fast", "small", "fixed"],
)
def test_a_metric_needs_no_float_output(options: dict[str, Any], tmp_path: Path) -> None:
    model, constraint = loaded(tokens(), tmp_path), agreement()
    archive = riq.compress(model, settings=riq.Settings(constraint=constraint, **options))
    result = archive.manifest.result
    assert result["constraint"]["holds"]
    assert not result.keys() & {"deviation", "worst", "measured", "holdout", "standard_error"}
    assert len(archive.manifest.layers) >= 2
    assert riq.check(archive, model, riq.Calibration.random(), agreement()).limit == 0.2
    assert riq.verify(archive, model, riq.Calibration.random(), needed=False).tensors == ()


def test_a_deviation_beside_a_metric_needs_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no float output to measure: its outputs are y int64; .*" + WHAT_HELPS):
        riq.compress(loaded(tokens(), tmp_path), settings=riq.Settings(constraint=agreement(), deviation=0.01))


def test_an_inner_tensor_is_suggested_and_measured(tmp_path: Path) -> None:
    model = loaded(tokens(), tmp_path)
    with pytest.raises(SettingsError, match="measure an inner tensor with --output, such as a, or " + WHAT_HELPS):
        riq.compress(model)
    archive = riq.compress(model, outputs=("a",), **PRESETS["fast"])
    assert 0 < archive.manifest.result["deviation"] <= 0.01


def test_the_nearest_tensors_are_suggested_first(tmp_path: Path) -> None:
    """Five at most; neither integers nor weights are among them."""
    nodes = [builders.node("Relu", "x" if n == 0 else f"t{n - 1}", f"t{n}") for n in range(7)]
    nodes += [builders.node("MatMul", "t6 W", "m"), builders.node("Shape", "m", "y")]
    tensors = [builders.tensor("W", builders.Random(3)(32, 32))]
    ends = [builders.info("x", 1, 32)], [builders.info("y", 2, dtype=INT64)]
    with pytest.raises(SettingsError, match="with --output, such as m, t6, t5, t4, t3, or keep"):
        riq.compress(loaded(builders.model(nodes, *ends, tensors), tmp_path))


def test_only_string_outputs_are_named(tmp_path: Path) -> None:
    """Behind them lies no activation that riq would know to saturate."""
    with pytest.raises(SettingsError, match=r"its outputs are y string; .* --output, such as scores, or keep"):
        riq.compress(loaded(words(), tmp_path))
