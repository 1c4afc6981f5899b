"""Layers that cannot be changed at all are found where a model fails, named, and stored exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import riq_cli as riq
from riq_cli.constraint import LossConstraint, MetricConstraint
from riq_cli.errors import ModelError, TargetError
from riq_cli.pipeline import PRESETS, FixedLayout
from riq_cli.quantize.scalar import SYMBOL_MAX
from tests import builders

INT64 = onnx.TensorProto.INT64
Predict = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def warning(name: str) -> str:
    return (
        f"layer {name!r} cannot be changed: even at the finest bin width the model fails, or gives NaN or infinity; "
        "it is stored exactly"
    )


def head(r: builders.Random) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """relu(x W) V, whose first column is zero."""
    nodes = [
        builders.node("MatMul", "x W", "m"),
        builders.node("Relu", "m", "r"),
        builders.node("MatMul", "r V", "a"),
    ]
    v = r(32, 32)
    v[:, 0] = 0
    return nodes, [builders.tensor("W", r(32, 32)), builders.tensor("V", v)]


def indices() -> onnx.ModelProto:
    """Outputs in an order that a table of floats tells, scaled and cast: the largest index is the last that exists."""
    nodes, tensors = head(builders.Random(4))
    # Even the finest bins move 31.0, which the least number above makes 32: out of bounds.
    peak = next(p for p in np.linspace(31.2, 31.8, 50, dtype=np.float32) if 0.5 < 31 * SYMBOL_MAX / float(p) % 1 < 0.7)
    grid = np.tile(np.array([-peak, 0, 1, 31], np.float32), (8, 8))
    nodes += [
        builders.node("Mul", "grid one", "scaled"),
        builders.node("Ceil", "scaled", "whole"),
        builders.node("Cast", "whole", "order", to=INT64),
        builders.node("Gather", "a order", "g", axis=1),
        builders.node("ReduceSum", "g axis", "y", keepdims=0),
    ]
    tensors += [
        builders.tensor("grid", grid),
        builders.tensor("one", np.float32(1)),
        builders.tensor("axis", np.array([1])),
    ]
    return builders.model(nodes, [builders.info("x", "N", 32)], [builders.info("y", "N", 32)], tensors)


def divisor(*shape: int) -> onnx.ModelProto:
    """Outputs divided by a layer whose first element is next to nothing where the output is 0."""
    nodes, tensors = head(builders.Random(4))
    d = np.random.default_rng(5).uniform(1, 2, shape).astype(np.float32)
    d[..., 0] = 1e-30
    nodes.append(builders.node("Div", "a d", "y"))
    tensors.append(builders.tensor("d", d))
    return builders.model(nodes, [builders.info("x", 8, 32)], [builders.info("y", 8, 32)], tensors)


def loaded(proto: onnx.ModelProto, folder: Path) -> riq.Model:
    return riq.Model.load(builders.save(proto, folder))


def samples(count: int = 8, rows: int = 2) -> riq.Calibration:
    x = np.random.default_rng(1).standard_normal((count, rows, 32)).astype(np.float32)
    return riq.Calibration.from_feeds([{"x": one} for one in x])


def coded(archive: riq.Archive) -> list[str]:
    return [entry.name for entry in archive.manifest.layers]


def score() -> MetricConstraint:
    """How near the sums of some outputs are to those of the first model that is judged."""
    x = np.random.default_rng(2).standard_normal((4, 32)).astype(np.float32)
    first: list[np.ndarray] = []

    def function(predict: Predict) -> float:
        y = predict({"x": x})["y"]
        first[:] = first or [y]
        return -float(np.abs(y - first[0]).max())

    return MetricConstraint(function, max_drop=1.0)


GOALS: dict[str, dict[str, Any]] = {
    "fast": PRESETS["fast"],
    "small": PRESETS["small"],
    "paper": PRESETS["paper"],
    "uniform": PRESETS["uniform"],
    "k": {"k": 200.0},
    "size": {"size": 3000, **PRESETS["fast"]},
    "metric": {"constraint": score(), **PRESETS["fast"]},
    "loss": {"constraint": LossConstraint(np.zeros((16, 32), np.float32), 0.05), **PRESETS["fast"]},
    "layout": {"constraint": score(), "layout": FixedLayout((4, 8, "float"))},
}


@pytest.mark.parametrize("goal", GOALS)
def test_a_table_of_indices_stays_exact_under_any_goal(goal: str, tmp_path: Path) -> None:
    model, warnings = loaded(indices(), tmp_path), list[str]()
    archive = riq.compress(model, samples(), riq.Settings(**GOALS[goal]), warn=warnings.append)
    assert warnings == [warning("grid")]
    assert "V" in coded(archive)
    assert "grid" not in coded(archive)
    assert 0 < archive.manifest.result["deviation"] < 0.2
    restored = {layer.name: layer.values for layer in model.layers}
    found = {t.name: t for t in riq.decompress(archive).skeleton.graph.initializer}
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(found["grid"]), restored["grid"])


@pytest.mark.parametrize("preset", ["fast", "small"])
@pytest.mark.parametrize("shape", [(8, 32), (32,)], ids=str)
def test_a_divisor_next_to_0_stays_exact(shape: tuple[int, ...], preset: str, tmp_path: Path) -> None:
    """A vector is none of those that the norm allocation codes."""
    warnings: list[str] = []
    archive = riq.compress(loaded(divisor(*shape), tmp_path), samples(8, 8), warn=warnings.append, **PRESETS[preset])
    assert warnings == ([] if shape == (32,) and preset == "fast" else [warning("d")])
    assert {"W", "V"} <= set(coded(archive))
    assert "d" not in coded(archive)


def brittle() -> onnx.ModelProto:
    """As `indices`, but what the table holds is not near to the next integer: fine bins do no harm."""
    proto = indices()
    for item in proto.graph.initializer:
        if item.name == "grid":
            values = np.random.default_rng(8).uniform(-31.9, 30.9, item.dims).astype(np.float32)
            item.CopyFrom(builders.tensor("grid", values + np.float32(0.05)))
    return proto


@pytest.mark.parametrize("goal", ["fast", "small", "size", "metric", "loss", "layout"])
def test_a_table_that_only_coarse_bins_break_is_no_reason_to_stop(goal: str, tmp_path: Path) -> None:
    """Where a model fails with some weights, that is infinitely bad, and finer ones are tried."""
    warnings: list[str] = []
    archive = riq.compress(loaded(brittle(), tmp_path), samples(), riq.Settings(**GOALS[goal]), warn=warnings.append)
    assert not [text for text in warnings if "cannot be changed" in text]
    assert "V" in coded(archive)
    assert archive.manifest.result["deviation"] < 1


def test_a_sweep_keeps_it_exact_at_every_point(tmp_path: Path) -> None:
    warnings: list[str] = []
    goals = [riq.Settings(deviation=target, **PRESETS["fast"]) for target in (0.02, 0.01)]
    outcomes = list(riq.sweep(loaded(indices(), tmp_path), samples(), goals, about=0.01, warn=warnings.append))
    assert warnings == [warning("grid")]
    assert [outcome.archive is not None and coded(outcome.archive) for outcome in outcomes] == [["W", "V"]] * 2


def test_samples_are_read_once(tmp_path: Path) -> None:
    """A generator of the user's cannot be asked twice."""
    asked = []
    whole = samples()
    data = riq.Calibration("python", lambda *given: asked.append(1) or whole.fit(*given))
    riq.compress(loaded(indices(), tmp_path), data, **PRESETS["fast"])
    assert asked == [1]


def test_what_fails_for_another_reason_is_told_as_it_is(tmp_path: Path) -> None:
    """A target out of reach, and a model that does not run at all."""
    model = loaded(divisor(8, 32), tmp_path).select(lambda layer: layer.name != "d")
    warnings: list[str] = []
    with pytest.raises(TargetError, match="with weights as fine as they can be coded"):
        riq.compress(model, samples(8, 8), max_bits=2, warn=warnings.append, **PRESETS["fast"])
    proto = divisor(8, 32)
    proto.graph.node[0].op_type = "Unheard"
    with pytest.raises(ModelError, match="Unheard"):
        riq.compress(loaded(proto, tmp_path), samples(8, 8), warn=warnings.append)
    assert warnings == []


def test_a_table_that_is_rounded_and_cast_is_told_from_the_graph(tmp_path: Path) -> None:
    r = builders.Random(4)
    nodes, tensors = head(r)
    nodes += [
        builders.node("Floor", "grid", "whole"),
        builders.node("Cast", "whole", "order", to=INT64),
        builders.node("Gather", "a order", "g", axis=1),
        builders.node("ReduceSum", "g axis", "y", keepdims=0),
    ]
    grid = np.random.default_rng(3).uniform(0, 31.9, (8, 32)).astype(np.float32)
    tensors += [builders.tensor("grid", grid), builders.tensor("axis", np.array([1]))]
    proto = builders.model(nodes, [builders.info("x", "N", 32)], [builders.info("y", "N", 32)], tensors)
    warnings: list[str] = []
    archive = riq.compress(loaded(proto, tmp_path), samples(), warn=warnings.append, **PRESETS["fast"])
    assert warnings == ["1 layer kept exact, single numbers, or values that tell an operator what to do: 'grid'"]
    assert coded(archive) == ["W", "V"]
