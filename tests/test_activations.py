"""Quantized activations: where their grids are put, whose ranges these have, and that the deviation is of both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from builders import FORMS, feeds, info, model, nodes, perceptron, save, tensor
from command import fails, riq
from onnx import numpy_helper

import riq_cli
from riq_cli.constraint import Constraint, FlipsConstraint, KLConstraint
from riq_cli.errors import SettingsError, TargetError
from riq_cli.model import (
    Activation,
    Model,
    Stored,
    multiplied_activations,
    with_quantized_activations,
    with_stored,
)
from riq_cli.pipeline import FixedLayout
from riq_cli.pipeline.samples import roles
from riq_cli.runtime import Observer, activation_ranges, cosine_distance

SAMPLES = Path(__file__).parent.parent / "sample_models"
GRIDS = ("QuantizeLinear", "DequantizeLinear")


def run(proto: bytes, inputs: list[dict[str, np.ndarray]], rounded: bool = True) -> list[np.ndarray]:
    """The first output of a session; unless `rounded`, of one that takes no kernels for integers."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if not rounded:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed)[0] for feed in inputs]


def deviation(ours: bytes, others: bytes, inputs: list[dict[str, np.ndarray]]) -> float:
    pairs = zip(run(ours, inputs), run(others, inputs), strict=True)
    return float(np.mean([cosine_distance(one, other) for one, other in pairs]))


def loaded(proto: onnx.ModelProto, folder: Path) -> Model:
    return Model.load(save(proto, folder))


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in proto.graph.node if not node.input}


def mobile(opset: int = 21) -> onnx.ModelProto:
    """A convolution with channels of very different ranges, a skip connection, and a dense layer."""
    generator = np.random.default_rng(0)
    scales = np.exp2(-np.arange(32) / 3)
    return model(
        nodes(
            "Conv x w > c group=32 pads=[1,1,1,1]; Add c x > s; GlobalMaxPool s > p; Flatten p > f;"
            "Gemm f v b > y transB=1"
        ),
        [info("x", "batch", 32, 6, 6)],
        [info("y", "batch", 16)],
        [
            tensor("w", (generator.standard_normal((32, 1, 3, 3)) * scales[:, None, None, None]).astype(np.float32)),
            tensor("v", (generator.standard_normal((16, 32)) / scales).astype(np.float32)),
            tensor("b", generator.standard_normal(16).astype(np.float32)),
        ],
        opset=opset,
    )


def images(count: int = 16) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 32, 6, 6)).astype(np.float32)


# ---- grids ----------------------------------------------------------------------------------------------------------


def test_a_product_is_of_the_integers_of_what_enters_it(tmp_path: Path) -> None:
    source = loaded(perceptron(0), tmp_path)
    seen = {"x": Activation(-1.0, 3.0, (2, 64)), "b": Activation(0.5, 2.0, (2, 64))}
    quantized = with_quantized_activations(source, seen).to_bytes()
    rows = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)

    def grid(values: np.ndarray, low: float, high: float) -> np.ndarray:
        step = np.float32((high - low) / 255)
        zero = np.rint(-low / step)
        return ((np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step).astype(np.float32)

    w, v = (layer.values for layer in source.layers)
    expected = grid(np.maximum(grid(rows, -1, 3) @ w, 0), 0, 2) @ v  # 0 is one of the levels
    np.testing.assert_allclose(run(quantized, [{"x": rows}], False)[0], expected, rtol=0, atol=1e-4)


def test_only_what_weights_multiply_is_quantized(tmp_path: Path) -> None:
    quantized = with_quantized_activations(
        loaded(mobile(), tmp_path), {"x": Activation(-3, 3, (1, 32, 6, 6)), "f": Activation(0, 9, (1, 32))}
    ).skeleton
    found = [(node.op_type, list(node.input)) for node in quantized.graph.node if node.op_type != "Constant"]
    x, f = ([f"{name}/{kind}" for kind in GRIDS] for name in "xf")
    assert [(kind, names[:2] if kind not in GRIDS else names[:1]) for kind, names in found] == [
        ("QuantizeLinear", ["x"]),
        ("DequantizeLinear", [x[0]]),
        ("Conv", [x[1], "w"]),
        ("Add", ["c", "x"]),
        ("GlobalMaxPool", ["s"]),
        ("Flatten", ["p"]),
        ("QuantizeLinear", ["f"]),
        ("DequantizeLinear", [f[0]]),
        ("Gemm", [f[1], "v"]),
    ]


@pytest.mark.parametrize("name", sorted(FORMS))
def test_layers_are_found_wherever_grids_move_them(name: str, tmp_path: Path) -> None:
    source = loaded(FORMS[name](), tmp_path).select(lambda layer: not layer.structural)
    form, inputs = source.session_form(hoist=False), feeds(source.skeleton)
    observer = Observer(form, [layer.values for layer in source.layers], [(feed, 1) for feed in inputs])
    seen = activation_ranges(observer, multiplied_activations(source), "minmax")
    quantized = with_quantized_activations(source, seen)
    restored = Model.from_skeleton(quantized.skeleton_bytes(), quantized.layers)
    assert [layer.values.tobytes() for layer in restored.layers] == [layer.values.tobytes() for layer in source.layers]
    if seen:
        onnx.checker.check_model(restored.to_bytes())
        assert deviation(source.to_bytes(), restored.to_bytes(), inputs) < 0.01


def test_what_is_quantized_already_stays(tmp_path: Path) -> None:
    source = loaded(FORMS["trained_for_int8"](), tmp_path)
    assert multiplied_activations(source) == ["h"]
    quantized = [node.output[0] for node in source.skeleton.graph.node if node.op_type == "DequantizeLinear"]
    assert quantized and "h" not in quantized


@pytest.mark.parametrize(("opset", "domain"), [(9, "com.microsoft"), (12, "com.microsoft"), (13, ""), (21, "")])
def test_onnxruntime_does_not_round_float_weights_behind_the_grids(opset: int, domain: str, tmp_path: Path) -> None:
    seen = {"x": Activation(-3, 3, (1, 32, 6, 6)), "f": Activation(0, 9, (1, 32))}
    quantized = with_quantized_activations(loaded(mobile(opset), tmp_path), seen)
    assert {node.domain for node in quantized.skeleton.graph.node if node.op_type in GRIDS} == {domain}
    proto, inputs = quantized.to_bytes(), [{"x": images(1)}]
    np.testing.assert_allclose(run(proto, inputs)[0], run(proto, inputs, False)[0], rtol=1e-4, atol=1e-4)


def test_what_has_one_channel_stays_in_float(tmp_path: Path) -> None:
    weights = [tensor("w", np.ones((4, 1, 3, 3), np.float32))]
    proto = model(nodes("Conv x w > y"), [info("x", 1, 1, 6, 6)], [info("y", 1, 4, 4, 4)], weights)
    quantized = with_quantized_activations(loaded(proto, tmp_path), {"x": Activation(-1, 1, (1, 1, 6, 6))})
    assert [node.op_type for node in quantized.skeleton.graph.node] == ["Conv"]


# ---- ranges ---------------------------------------------------------------------------------------------------------


def ranges(values: np.ndarray, method: str, folder: Path) -> Activation:
    proto = model(
        nodes("MatMul x w > y"), [info("x", 1, 64)], [info("y", 1, 64)], [tensor("w", np.eye(64, dtype=np.float32))]
    )
    form = loaded(proto, folder).session_form()
    samples = [({"x": row[None]}, 1) for row in values]
    return activation_ranges(Observer(form, [np.eye(64, dtype=np.float32)], samples), ["x"], method)["x"]


def test_a_range_holds_all_values_or_almost_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(1).standard_normal((1024, 64)).astype(np.float32)
    values[100, 5] = 1000.0
    every = ranges(values, "minmax", tmp_path)
    assert (every.low, every.high, every.shape) == (values.min(), 1000.0, (1, 64))
    most = ranges(values, "percentile", tmp_path)
    assert (most.low, most.high) == pytest.approx((-3.9, 3.9), abs=1.1)  # a bin is nearly 1 wide
    assert ranges(values, "entropy", tmp_path).high < 1000
    assert capsys.readouterr() == ("", "")


# ---- archives -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples() -> riq_cli.Calibration:
    return riq_cli.Calibration.from_arrays({"x": images()})


@pytest.mark.parametrize("preset", ["fast", "small", "deployable"])
@pytest.mark.parametrize("opset", [12, 21])
def test_the_deviation_is_from_the_float_model(
    preset: str, opset: int, samples: riq_cli.Calibration, tmp_path: Path
) -> None:
    source = loaded(mobile(opset), tmp_path)
    archive = riq_cli.compress(source, samples, preset=preset, deviation=0.002, activations="int8")
    restored = riq_cli.decompress(archive)
    found = deviation(source.to_bytes(), restored.to_bytes(), [{"x": row[None]} for row in images()])
    assert archive.manifest.result["deviation"] == pytest.approx(found, rel=1e-6)
    assert found < 0.002
    assert riq_cli.verify(archive, source, samples).mean == archive.manifest.result["deviation"]
    assert sum(node.op_type in GRIDS for node in restored.skeleton.graph.node) == 4


def test_activations_alone_may_miss_the_target(samples: riq_cli.Calibration, tmp_path: Path) -> None:
    source = loaded(mobile(), tmp_path)
    with pytest.raises(TargetError, match="activations in int8 alone cause a deviation of") as caught:
        riq_cli.compress(source, samples, deviation=1e-7, activations="int8")
    archive = riq_cli.compress(source, samples, preset="fast", k=1e9, epsilon=0.0, activations="int8")
    restored = riq_cli.decompress(archive)
    values = {layer.name: layer for layer in source.layers}
    assert {layer.name for layer in restored.layers} == {"w", "v"}
    exact = Model(restored.skeleton, [replace(layer, values=values[layer.name].values) for layer in restored.layers])
    found = deviation(source.to_bytes(), exact.to_bytes(), [{"x": row[None]} for row in images()])
    # Sums in another order bring a value here and there to the other side of a level.
    assert caught.value.best == pytest.approx(found, rel=0.03)
    assert archive.manifest.result["deviation"] == pytest.approx(found, rel=0.03)


def test_a_target_that_activations_miss_is_an_outcome_of_a_sweep(samples: riq_cli.Calibration, tmp_path: Path) -> None:
    goals = [riq_cli.Settings(deviation=target, activations="int8", allocation="norm") for target in (1e-7, 0.01)]
    outcomes = list(riq_cli.sweep(loaded(mobile(), tmp_path), samples, goals))
    assert [outcome.archive is None for outcome in outcomes] == [True, False]
    assert outcomes[0].deviation > 1e-7


def test_ranges_are_those_of_samples_not_held_out(tmp_path: Path) -> None:
    rows = images()
    parts = roles(len(rows), 0.25)
    rows[list(parts.held_out)] *= 100
    calibration = riq_cli.Calibration.from_arrays({"x": rows})
    archive = riq_cli.compress(
        loaded(mobile(), tmp_path), calibration, preset="fast", deviation=1.0, activations="int8"
    )
    restored = riq_cli.decompress(archive).skeleton
    seen = rows[list(parts.others)]
    assert constants(restored)["x/QuantizeLinear/scale"] == pytest.approx((seen.max() - seen.min()) / 255)


@pytest.mark.parametrize("constraint", [FlipsConstraint(0.1), KLConstraint(0.02)])
def test_a_constraint_judges_the_model_with_quantized_activations(constraint: Constraint) -> None:
    source, data = Model.load(SAMPLES / "cnn.onnx"), riq_cli.Calibration.load(SAMPLES / "calibration.npz")
    archive = riq_cli.compress(source, data, preset="fast", constraint=constraint, activations="int8")
    found = archive.manifest.result["constraint"]
    assert found["holds"] and found["value"] <= found["limit"] == constraint.limit
    assert any(node.op_type in GRIDS for node in riq_cli.decompress(archive).skeleton.graph.node)
    assert riq_cli.check(archive, source, data, constraint).recorded() == found


def test_a_constraint_that_activations_may_miss_says_so() -> None:
    source, data = Model.load(SAMPLES / "cnn.onnx"), riq_cli.Calibration.load(SAMPLES / "calibration.npz")
    with pytest.raises(TargetError, match="or leave out --activations, which alone may miss it"):
        riq_cli.compress(source, data, preset="fast", constraint=KLConstraint(1e-9), activations="int8")


def test_integers_of_weights_meet_integers_of_activations(samples: riq_cli.Calibration, tmp_path: Path) -> None:
    source = loaded(mobile(), tmp_path)
    archive = riq_cli.compress(source, samples, preset="deployable", deviation=0.002, activations="int8")
    restored = riq_cli.decompress(archive, format="int8").skeleton
    values = constants(restored)
    grids = [node for node in restored.graph.node if node.op_type in GRIDS and node.input[1] in values]
    assert [node.op_type for node in grids] == [*GRIDS, *GRIDS]  # of x and f
    assert [values[node.input[1]].shape for node in grids] == [(), (), (), ()]
    assert riq_cli.verify(archive, source, samples, format="int8").mean < 0.003


@pytest.mark.parametrize("opset", [11, 13])
def test_a_session_opens_integers_of_channels_with_a_bias_whatever_the_opset(opset: int, tmp_path: Path) -> None:
    """Up to opset 12, onnxruntime would bring the bias to integers with an operator that the opset lacks."""
    generator = np.random.default_rng(0)
    weights = [tensor(name, generator.standard_normal((32, 32, 1, 1)).astype(np.float32)) for name in "wv"]
    proto = model(
        nodes("Conv x w b > c; Conv c v > y"),
        [info("x", "batch", 32, 6, 6)],
        [info("y", "batch", 32, 6, 6)],
        [*weights, tensor("b", np.ones(32, np.float32))],
        opset=opset,
    )
    seen = {name: Activation(-20, 20, (1, 32, 6, 6)) for name in "xc"}
    quantized = with_quantized_activations(loaded(proto, tmp_path), seen)
    stored = {}
    for number, layer in enumerate(quantized.layers):
        if layer.name != "b":
            steps = np.abs(layer.values).max((1, 2, 3)) / 127
            integers = np.rint(layer.values / steps[:, None, None, None]).astype(np.int8)
            stored[number] = Stored("int8", integers, steps, axis=0)
    assert deviation(quantized.to_bytes(), with_stored(quantized, stored).to_bytes(), [{"x": images(1)}]) < 1e-3


def test_what_cannot_be_done_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no activations is named 'int4'; there are int8"):
        riq_cli.Settings(activations="int4")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="quantized activations do not go with a fixed layout"):
        riq_cli.Settings(activations="int8", layout=FixedLayout(), constraint=FlipsConstraint(0.01))
    weights = tensor("w", np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32))
    rows = np.random.default_rng(1).standard_normal((2, 32, 32)).astype(np.float32)
    samples = riq_cli.Calibration.from_arrays({"x": rows})
    with pytest.raises(SettingsError, match="there are no activations to quantize"):
        proto = model(nodes("Mul x w > y"), [info("x", 32, 32)], [info("y", 32, 32)], [weights])
        riq_cli.compress(loaded(proto, tmp_path), samples, preset="fast", activations="int8")


def test_the_command_line_and_the_report_name_activations(tmp_path: Path) -> None:
    save(mobile(), tmp_path)
    np.savez(tmp_path / "samples.npz", x=images())
    words = ("compress", "model.onnx", "--calibration", "samples.npz", "--preset", "fast")
    method = ("--activation-method", "percentile")
    done = riq(*words, "--activations", "int8", *method, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    settings = json.loads(done.stdout)["settings"]
    assert (settings["activations"], settings["activation_method"]) == ("int8", "percentile")
    report = riq("report", "model.riqz", folder=tmp_path)
    assert b"--activation-method percentile --activations int8" in report.stdout
    missed = "activations in int8 alone cause a deviation of"
    fails(3, missed, *words, "-f", "--activations", "int8", "--deviation", "1e-7", folder=tmp_path)
    alone = riq(*words, "-f", *method, folder=tmp_path)
    assert (alone.returncode, alone.stdout) == (2, b"")
    assert b"--activation-method belongs to --activations int8" in alone.stderr
