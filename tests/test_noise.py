"""Operators that draw random numbers: every run of every session form sees the same ones, of the right distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import riq_cli as riq
from riq_cli.pipeline import PRESETS
from riq_cli.runtime import Evaluator
from tests import builders

FLOAT, DOUBLE, HALF, INT64 = 1, 11, 10, 7
TRUE, FALSE = np.array(True), np.array(False)


def noisy(node: onnx.NodeProto, *tensors: onnx.TensorProto, opset: int = 17, kind: int = FLOAT) -> onnx.ModelProto:
    """A model that gives out what a node makes of x, and, so that there is a layer, x times a matrix."""
    nodes = [builders.node("Cast", "input", "x", to=kind), node, builders.node("MatMul", "input w", "y")]
    weights = [builders.tensor("w", builders.Random(1)(8, 8)), *tensors]
    outputs = [onnx.ValueInfoProto(name="noise"), builders.info("y", "N", 8)]
    return builders.model(nodes, [builders.info("input", "N", 8)], outputs, weights, opset=opset)


def scalar(name: str, value: np.ndarray | float) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(value, None if isinstance(value, np.ndarray) else np.float32), name)


def loaded(proto: onnx.ModelProto, folder: Path) -> riq.Model:
    return riq.Model.load(builders.save(proto, folder))


def run(serialized: bytes, feed: dict[str, np.ndarray], names: list[str]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    found: list[np.ndarray] = onnxruntime.InferenceSession(serialized, options).run(names, feed)
    return found


def both(proto: onnx.ModelProto, folder: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The noise of the session form, and that which onnxruntime draws for the file."""
    form = loaded(proto, folder).select(lambda layer: False).session_form()
    mine = run(form.model, {"input": x}, ["noise"])[0]
    onnxruntime.set_seed(7)
    return mine, run(proto.SerializeToString(), {"input": x}, ["noise"])[0]


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


CASES: dict[str, tuple[onnx.NodeProto, list[onnx.TensorProto], dict[str, Any]]] = {
    "normal": (builders.node("RandomNormal", "", "noise", shape=[50, 40], mean=3.0, scale=0.5), [], {}),
    "normal double": (builders.node("RandomNormal", "", "noise", shape=[50, 40], dtype=DOUBLE), [], {}),
    "normal like": (builders.node("RandomNormalLike", "x", "noise", mean=-1.0, scale=2.0), [], {}),
    "normal like half": (builders.node("RandomNormalLike", "x", "noise"), [], {"kind": HALF}),
    "normal like half, old": (builders.node("RandomNormalLike", "x", "noise"), [], {"kind": HALF, "opset": 11}),
    "normal like, typed": (builders.node("RandomNormalLike", "x", "noise", dtype=DOUBLE), [], {"opset": 11}),
    "normal like, very old": (builders.node("RandomNormalLike", "x", "noise"), [], {"opset": 9}),
    "uniform": (builders.node("RandomUniform", "", "noise", shape=[50, 40], low=-2.0, high=6.0), [], {}),
    "uniform like": (builders.node("RandomUniformLike", "x", "noise", high=0.25), [], {}),
    "bernoulli": (builders.node("Bernoulli", "x", "noise"), [], {}),
    "bernoulli, typed": (builders.node("Bernoulli", "x", "noise", dtype=INT64), [], {}),
    "multinomial": (builders.node("Multinomial", "x", "noise", sample_size=20, dtype=INT64), [], {}),
    "dropout": (builders.node("Dropout", "x ratio train", "noise"), [scalar("ratio", 0.3), scalar("train", TRUE)], {}),
    "dropout, old": (
        builders.node("Dropout", "x _ train", "noise"),
        [scalar("train", TRUE)],
        {"opset": 12},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_noise_is_distributed_as_what_it_replaces(case: str, tmp_path: Path) -> None:
    node, tensors, options = CASES[case]
    x = np.tile(np.linspace(0.1, 0.9, 8, dtype=np.float32), (400, 1))
    mine, drawn = both(noisy(node, *tensors, **options), tmp_path, x)
    assert (mine.dtype, mine.shape) == (drawn.dtype, drawn.shape)
    spread = float(drawn.std())
    assert float(mine.mean()) == pytest.approx(float(drawn.mean()), abs=0.1 * spread)
    assert float(mine.std()) == pytest.approx(spread, rel=0.1)
    if case.startswith(("normal", "uniform")):
        rank = np.linspace(0.05, 0.95, 10)
        np.testing.assert_allclose(np.quantile(mine, rank), np.quantile(drawn, rank), atol=0.25 * spread)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1,), (300, 400)])
def test_noise_has_any_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    node = builders.node("RandomNormal", "", "noise", shape=list(shape))
    mine, drawn = both(noisy(node), tmp_path, ones(1, 8))
    assert mine.shape == drawn.shape == shape


def test_a_dropout_that_is_not_told_to_train_changes_nothing(tmp_path: Path) -> None:
    train, ratio = scalar("train", FALSE), scalar("ratio", 0.5)
    node = builders.node("Dropout", "x ratio train", "noise mask")
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    mine, plain = both(noisy(node, ratio, train), tmp_path, x)
    np.testing.assert_array_equal(mine, plain)
    form = loaded(noisy(builders.node("Dropout", "x", "noise")), tmp_path).session_form()
    assert [node.op_type for node in onnx.ModelProto.FromString(form.model).graph.node][1] == "Dropout"


def test_the_mask_of_a_dropout_tells_what_it_dropped(tmp_path: Path) -> None:
    """Elements that are kept are scaled; NaN among those that are dropped is gone."""
    node = builders.node("Dropout", "x ratio train", "noise mask")
    proto = noisy(node, scalar("ratio", 0.25), scalar("train", TRUE))
    proto.graph.output.append(onnx.ValueInfoProto(name="mask"))
    model = loaded(proto, tmp_path).select(lambda layer: False)
    x = np.full((50, 8), 3, np.float32)
    noise, mask = run(model.session_form().model, {"input": x}, ["noise", "mask"])
    np.testing.assert_array_equal(noise, np.where(mask, np.float32(4), 0))
    assert 0.6 < mask.mean() < 0.9
    x[~mask] = np.nan
    again = run(model.session_form().model, {"input": x}, ["noise"])[0]
    np.testing.assert_array_equal(again, noise)


def test_two_operators_see_different_noise(tmp_path: Path) -> None:
    node = builders.node("RandomNormalLike", "x", "noise")
    proto = noisy(node)
    proto.graph.node.append(builders.node("RandomNormalLike", "x", "other"))
    proto.graph.output.append(onnx.ValueInfoProto(name="other"))
    form = loaded(proto, tmp_path).select(lambda layer: False).session_form()
    one, other = run(form.model, {"input": ones(100, 8)}, ["noise", "other"])
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.15


# ---- wherever it is -------------------------------------------------------------------------------------------------


def sampler(where: str) -> onnx.ModelProto:
    """y = (x W + noise) V, with the noise in the main graph, a branch, a loop's body, or a function."""
    draw = builders.node("RandomNormalLike", "m", "e")
    add = builders.node("Add", "m e", "z")
    functions = []
    if where == "main":
        inner = [draw, add]
    elif where == "branch":
        branches = {
            name: builders.graph([draw, add], [], [builders.unknown("z")], name=name)
            for name in ("then_branch", "else_branch")
        }
        inner = [builders.node("If", "yes", "z", **branches)]
    elif where == "loop":
        body = builders.graph(
            [builders.node("RandomNormalLike", "s", "e"), builders.node("Add", "s e", "t"),
             builders.node("Identity", "go", "on")],
            [builders.info("i", dtype=INT64), builders.info("go", dtype=9), builders.unknown("s")],
            [builders.info("on", dtype=9), builders.unknown("t")],
        )  # fmt: skip
        inner = [builders.node("Loop", "three yes m", "z", body=body)]
    else:
        opset = [onnx.helper.make_opsetid("", 17)]
        functions = [onnx.helper.make_function("own", "Noisy", ["m"], ["z"], [draw, add], opset)]
        inner = [builders.node("Noisy", "m", "z", domain="own")]
    nodes = [builders.node("MatMul", "x W", "m"), *inner, builders.node("MatMul", "z V", "y")]
    r = builders.Random(2)
    tensors = [
        builders.tensor("W", r(32, 32)),
        builders.tensor("V", r(32, 32)),
        scalar("yes", TRUE),
        scalar("three", np.array(3)),
    ]
    proto = builders.model(nodes, [builders.info("x", "N", 32)], [builders.info("y", "N", 32)], tensors)
    if functions:
        proto.functions.extend(functions)
        proto.opset_import.add(domain="own", version=1)
        proto.ir_version = max(proto.ir_version, 8)
    return proto


@pytest.mark.parametrize("where", ["main", "branch", "loop", "function"])
def test_original_and_candidate_see_the_same_noise_whatever_ran_before(where: str, tmp_path: Path) -> None:
    model = loaded(sampler(where), tmp_path)
    weights = [layer.values for layer in model.layers]
    feeds = [({"x": np.random.default_rng(n).standard_normal((1, 32)).astype(np.float32)}, 1) for n in range(3)]
    hoisted, plain = model.session_form(), model.session_form(hoist=False)
    evaluator = Evaluator(hoisted, weights, feeds)
    assert evaluator.deviation(hoisted, weights).worst == 0.0
    assert evaluator.deviation(hoisted, weights, [2, 0]).worst == 0.0
    assert evaluator.deviation(plain, weights, [1]).worst < 1e-12


def test_a_sampler_is_compressed(tmp_path: Path) -> None:
    model = loaded(sampler("main"), tmp_path)
    x = np.random.default_rng(3).standard_normal((16, 32)).astype(np.float32)
    data = riq.Calibration.from_arrays({"x": x})
    archive = riq.compress(model, data, **PRESETS["fast"])
    assert 0 < archive.manifest.result["deviation"] <= 0.01
    assert riq.verify(archive, model, data).mean == archive.manifest.result["deviation"]
    kinds = [node.op_type for node in riq.decompress(archive).skeleton.graph.node]
    assert kinds == ["MatMul", "RandomNormalLike", "Add", "MatMul"]
