"""Deviation: the cosine distance by hand, and what is made of it over samples and tensors."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import (
    FORMS,
    SATURATED,
    conv,
    dense,
    feeds,
    graph,
    info,
    matmul,
    matrix,
    model,
    node,
    save,
    tensor,
    unknown,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from riq_cli.errors import ModelError, SettingsError
from riq_cli.model import Model
from riq_cli.runtime import (
    Deviation,
    Evaluator,
    Observer,
    Runtime,
    TensorDeviation,
    cosine_distance,
    sample_deviations,
)
from tests.llama import Llama

NAN, INF = math.nan, math.inf


def array(*values: float, dtype: type = np.float32) -> np.ndarray:
    return np.array(values, dtype)


# ---- cosine distance ------------------------------------------------------------------------------------------------


HALF, DOUBLE = np.float16, np.float64
ODD = np.concatenate([np.random.default_rng(1).standard_normal(99), [NAN, INF, -INF, 0.0]])
DISTANCES: dict[str, tuple[np.ndarray, np.ndarray, float]] = {
    "a right angle": (array(1, 0), array(0, 1), 1.0),
    "45°": (array(1, 0), array(1, 1), 1 - math.sqrt(0.5)),
    "3, 4": (array(3, 4), array(4, 3), 1 - 24 / 25),
    "opposite": (array(1, 2, 2), array(-1, -2, -2), 2.0),
    "a small angle": (array(1, 0), array(math.cos(1e-4), math.sin(1e-4), dtype=DOUBLE), 1e-8 / 2),
    "larger": (array(1, 2), array(8, 16), 0.0),
    "several axes": (array(3, 0, 0, 4).reshape(2, 2), array(4, 0, 0, 3).reshape(2, 2), 1 - 24 / 25),
    "squares above float16": (array(300, 400, dtype=HALF), array(400, 300, dtype=HALF), 1 - 24 / 25),
    "squares below float16": (array(3e-6, 4e-6, dtype=HALF), array(-3e-6, -4e-6, dtype=HALF), 2.0),
    "largest float32": (array(3e38, 3e38), array(-3e38, -3e38), 2.0),
    "smallest float32": (array(1e-45, 0), array(0, 1e-45), 1.0),
    **{
        f"float64 {size}": (array(size, size, dtype=DOUBLE), array(-size, -size, dtype=DOUBLE), 2.0)
        for size in (1.7e308, 1e200, 1e-200, 1e-310)
    },
    "zeros": (array(0, 0), array(0, -0.0), 0.0),
    "from zero": (array(0, 0), array(0, 1e-30), 1.0),
    "to zero": (array(0, 1e-30), array(0, 0), 1.0),
    "no elements": (np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32), 0.0),
    "numbers of one sign": (np.array(3.0), np.array(7.0), 0.0),
    "numbers of two signs": (np.array(3.0), np.array(-7.0), 2.0),
    "another size": (array(1, 2, 3, 4), array(1, 2, 3), 1.0),
    "another shape": (array(1, 2, 3, 4), array(1, 2, 3, 4).reshape(2, 2), 1.0),
    **{f"{odd} in both": (array(3, odd, 4), array(4, odd, 3), 1 - 24 / 25) for odd in (NAN, INF, -INF)},
    "nothing finite": (array(NAN, INF), array(NAN, INF), 0.0),
    **{
        f"{y} and {z}": (array(*y), array(*z), INF)
        for y, z in [
            ((1, NAN), (1, 2)), ((1, INF), (1, 2)), ((1, INF), (1, -INF)), ((1, INF), (1, NAN)), ((1, NAN), (1, INF)),
            ((1, 2), (1, NAN)), ((1, 2), (1, INF)), ((NAN, 2), (NAN, INF)), ((0, 0), (0, NAN)),
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("name", DISTANCES)
def test_distance_by_hand(name: str) -> None:
    y, z, wanted = DISTANCES[name]
    before = y.tobytes(), z.tobytes()
    assert cosine_distance(y, z) == pytest.approx(wanted, rel=1e-6 if name == "a small angle" else 1e-12, abs=0)
    assert (y.tobytes(), z.tobytes()) == before


def test_distance_of_identical_outputs_is_exactly_zero() -> None:
    generator = np.random.default_rng(0)
    for size in range(1, 200):
        y = generator.standard_normal(size).astype(np.float32)
        assert cosine_distance(y, y.copy()) == 0.0
    for scale in (1e-300, 1e-200, 1.0, 3e200, 1e307):
        assert cosine_distance(ODD * scale, ODD * scale) == 0.0


@given(st.data())
def test_distance_is_between_0_and_2_and_symmetric(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([np.float16, np.float32]))
    shape = data.draw(hnp.array_shapes(max_dims=3, max_side=5))
    finite = hnp.arrays(dtype, shape, elements={"allow_nan": False, "allow_infinity": False})
    y, z = data.draw(finite), data.draw(finite)
    distance = cosine_distance(y, z)
    assert 0.0 <= distance <= 2.0 + 1e-9
    assert distance == pytest.approx(cosine_distance(z, y), abs=1e-15)


# ---- samples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "z", "rows", "wanted"),
    [
        (array(1, 0, 1, 0, 1, 0).reshape(3, 2), array(1, 0, 0, 1, -1, 0).reshape(3, 2), 3, [0.0, 1.0, 2.0]),
        # Without a row for each sample, the whole counts for each of them.
        (array(1, 0), array(0, 1), 3, [1.0] * 3),
        (array(1, 0).reshape(1, 2), array(0, 1).reshape(1, 2), 3, [1.0] * 3),
        (np.array(1.0), np.array(-1.0), 2, [2.0, 2.0]),
        (array(1, 0, 1, 0).reshape(2, 2), array(1, 0, -1, 0).reshape(2, 2), 1, [1.0]),
        (np.ones((2, 3)), np.ones((2, 4)), 2, [1.0, 1.0]),
    ],
)
def test_a_batch_has_one_deviation_for_each_row(y: np.ndarray, z: np.ndarray, rows: int, wanted: list[float]) -> None:
    assert sample_deviations(y, z, rows) == wanted


def test_the_deviation_of_a_model_is_that_of_its_worst_tensor() -> None:
    deviation = Deviation(("a", "b"), (((0.125, 0.0), (0.25, 0.5)), ((0.875, 0.0), (0.5, 0.25))))
    errors = statistics.stdev([0.125, 0.0, 0.875, 0.0]) / 2, statistics.stdev([0.25, 0.5, 0.5, 0.25]) / 2
    assert deviation.tensors == (
        TensorDeviation("a", 0.25, 0.875, 4, pytest.approx(errors[0], rel=1e-12)),
        TensorDeviation("b", 0.375, 0.5, 4, pytest.approx(errors[1], rel=1e-12)),
    )
    assert deviation.standard_error == pytest.approx(errors[1], rel=1e-12)
    assert list(deviation.samples) == [0.25, 0.5, 0.5, 0.25]
    assert deviation.mean == 0.375
    assert deviation.worst == 0.875


def test_some_runs_may_have_another_worst_tensor() -> None:
    deviation = Deviation(("a", "b"), (((0.5,), (0.25,)), ((0.125,), (1.0,)), ((0.0,), (0.25,))))
    assert deviation.mean == 0.5
    assert list(deviation.samples) == [0.25, 1.0, 0.25]
    assert deviation.of([0]) == Deviation(("a", "b"), (((0.5,), (0.25,)),))
    assert deviation.of([2, 0]).tensors == (
        TensorDeviation("a", 0.25, 0.5, 2, 0.25),
        TensorDeviation("b", 0.25, 0.25, 2, 0.0),
    )
    assert deviation.of([0]).standard_error is None
    assert list(deviation.of([0]).samples) == [0.5]


def test_a_mean_that_is_infinite_has_no_standard_error() -> None:
    deviation = Deviation(("a",), (((math.inf,),), ((0.5,),)))
    assert (deviation.mean, deviation.standard_error) == (math.inf, None)


# ---- running --------------------------------------------------------------------------------------------------------


def load(proto: onnx.ModelProto, tmp_path: Path) -> Model:
    return Model.load(save(proto, tmp_path))


def weights(model: Model) -> list[np.ndarray]:
    return [layer.values for layer in model.layers]


def evaluator_of(model: Model, proto: onnx.ModelProto, rows: int = 3, **options: Any) -> Evaluator:
    """The evaluator of a model's hoisted form on samples for `proto`."""
    form = options.pop("form", None) or model.session_form()
    samples = [(feed, rows) for feed in feeds(proto)]
    return Evaluator(form, weights(model), samples, runtime=Runtime(threads=1), **options)


def test_original_weights_deviate_by_less_than_rounding(tmp_path: Path) -> None:
    model = load(conv(), tmp_path)
    deviation = evaluator_of(model, conv()).deviation(model.session_form(), weights(model))
    assert deviation.mean < 1e-15
    assert [(tensor.name, tensor.samples) for tensor in deviation.tensors] == [("y", 6)]


def test_negated_weights_turn_the_output_around(tmp_path: Path) -> None:
    proto = model(
        [node("MatMul", "x w", "y")],
        [info("x", 1, 3)],
        [info("y", 1, 2)],
        [onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")],
    )
    loaded = load(proto, tmp_path)
    form, evaluator = loaded.session_form(), evaluator_of(loaded, proto, 1)
    assert evaluator.deviation(form, [-w for w in weights(loaded)]).mean == pytest.approx(2.0, abs=1e-12)
    assert evaluator.deviation(form, [0 * w for w in weights(loaded)]).mean == 1.0
    assert evaluator.deviation(form, [np.full_like(w, NAN) for w in weights(loaded)]).mean == INF


def test_mean_and_worst_are_those_of_the_rows_by_hand(tmp_path: Path) -> None:
    """A unit matrix whose columns are exchanged: e1 and e2 move by 1, e3 stays."""
    unit = np.eye(3, dtype=np.float32)
    proto = model(
        [node("MatMul", "x w", "y")],
        [info("x", "batch", 3)],
        [info("y", "batch", 3)],
        [onnx.numpy_helper.from_array(unit, "w")],
    )
    loaded = load(proto, tmp_path)
    form = loaded.session_form()
    exchanged = [unit[:, [1, 0, 2]].copy()]
    batched = Evaluator(form, [unit], [({"x": unit}, 3)], runtime=Runtime(threads=1)).deviation(form, exchanged)
    assert batched == Deviation(("y",), (((1.0, 1.0, 0.0),),))
    assert batched.tensors == (TensorDeviation("y", 2 / 3, 1.0, 3, pytest.approx(1 / 3)),)
    evaluator = Evaluator(form, [unit], [({"x": unit[i : i + 1]}, 1) for i in range(3)], runtime=Runtime(threads=1))
    single = evaluator.deviation(form, exchanged)
    assert single.tensors == batched.tensors
    assert list(single.samples) == list(batched.samples) == [1.0, 1.0, 0.0]
    whole = Evaluator(form, [unit], [({"x": unit}, 1)], runtime=Runtime(threads=1)).deviation(form, exchanged)
    assert whole.tensors == (TensorDeviation("y", pytest.approx(2 / 3), pytest.approx(2 / 3), 1, None),)
    assert list(whole.samples) == [pytest.approx(2 / 3)]


def test_every_measured_tensor_has_its_own_mean(tmp_path: Path) -> None:
    proto = SATURATED["sigmoid_of_argmax_and_softmax"][0]()
    loaded = load(proto, tmp_path)
    form = loaded.session_form()
    evaluator = evaluator_of(loaded, proto, form=form)
    changed = [w + np.float32(0.1) * np.sign(w) for w in weights(loaded)]
    deviation = evaluator.deviation(form, changed)
    means = {tensor.name: tensor.mean for tensor in deviation.tensors}
    assert list(means) == ["y", "s", "z"]
    assert deviation.mean == max(means.values())
    assert deviation.worst == max(tensor.worst for tensor in deviation.tensors)
    # By numpy:
    weight, z = weights(loaded)[0], []
    for w in (weight, changed[0]):
        z.append(np.concatenate([feed["x"] @ w for feed in feeds(proto)]).astype(np.float64))
    softmax = [np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in z]
    sigmoid = [1 / (1 + np.exp(-v)) for v in z]
    for name, (a, b) in {"z": z, "y": softmax, "s": sigmoid}.items():
        rows = 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert means[name] == pytest.approx(rows.mean(), rel=1e-4)


@pytest.mark.parametrize("name", ["conv", "lstm", "if_nested", "float16", "bfloat16", "float64", "loop"])
def test_two_evaluations_are_bit_equal(name: str, tmp_path: Path) -> None:
    proto, other = FORMS[name](seed=0), FORMS[name](seed=1)
    first, second = load(proto, tmp_path), Model.load(save(other, tmp_path, "other.onnx"))
    form = first.session_form()
    samples = [(feed, 1) for feed in feeds(proto)]
    found = [
        Evaluator(form, weights(first), samples, runtime=Runtime(threads=2)).deviation(form, weights(second))
        for _ in range(2)
    ]
    assert found[0] == found[1]
    assert 0 < found[0].mean <= 2


def test_the_hoisted_and_the_restored_form_are_the_same_evaluator(tmp_path: Path) -> None:
    loaded = load(FORMS["constants"](), tmp_path)
    other = Model.load(save(FORMS["constants"](seed=1), tmp_path, "other.onnx"))
    evaluator = evaluator_of(loaded, FORMS["constants"](), 1)
    hoisted = evaluator.deviation(loaded.session_form(), weights(other))
    assert hoisted.mean > 0.01
    assert evaluator.deviation(other.session_form(hoist=False), weights(other)) == hoisted


def test_an_unknown_provider_is_an_error_with_those_there_are(tmp_path: Path) -> None:
    loaded = load(matmul(), tmp_path)
    with pytest.raises(SettingsError, match=r"onnxruntime has no .QuantumExecutionProvider. here; it has .*CPUExec"):
        Evaluator(loaded.session_form(), weights(loaded), [], runtime=Runtime(provider="QuantumExecutionProvider"))


UNHEARD = model([node("Unheard", "x", "y")], [info("x", 3)], [info("y", 3)])
RESHAPED = model(
    [node("Reshape", "x shape", "y")],
    [info("x", 6), info("shape", 2, dtype=onnx.TensorProto.INT64)],
    [info("y", None, None)],
)
FAILING = {
    "unknown operator": (UNHEARD, {"x": np.zeros(3, np.float32)}, "Unheard"),
    "refused feed": (matmul(), {"x": np.zeros((1, 9, 9), np.float32)}, "x"),
    "failing node": (RESHAPED, {"x": np.zeros(6, np.float32), "shape": np.array([4, 4])}, "Reshape"),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_model_that_cannot_be_run_is_an_error_of_one_line(name: str, tmp_path: Path) -> None:
    proto, feed, told = FAILING[name]
    loaded = load(proto, tmp_path)
    with pytest.raises(ModelError, match=rf"^onnxruntime cannot run the model: [^\n]*{told}[^\n]*$"):
        Evaluator(loaded.session_form(), weights(loaded), [(feed, 1)])


def test_outputs_that_are_not_float_are_left_out(tmp_path: Path) -> None:
    """Their type is not declared, so it shows only in what comes out."""
    proto = matmul()
    proto.graph.node.append(node("Shape", "y", "size"))
    loaded = load(proto, tmp_path)
    loaded.skeleton.graph.output.append(onnx.ValueInfoProto(name="size"))
    form = loaded.session_form()
    assert form.measured == ("y", "size")
    evaluator = evaluator_of(loaded, proto, form=form)
    assert evaluator.measured == ["y"]


def test_without_a_float_output_the_error_names_the_flag(tmp_path: Path) -> None:
    argmax = SATURATED["argmax"][0]()
    loaded = load(argmax, tmp_path)
    form = loaded.session_form(["y"])
    samples = [(feed, 3) for feed in feeds(argmax)]
    with pytest.raises(SettingsError) as error:
        Evaluator(form, weights(loaded), samples)
    assert str(error.value) == (
        "the model has no float output to measure: its outputs are y int64; measure an inner tensor with --output, "
        "such as z, or keep a score of your own with --metric, without --deviation"
    )
    with pytest.raises(SettingsError, match="tensor 'y' is not float; its deviation cannot be measured"):
        Evaluator(form, weights(loaded), samples, strict=True)


def test_a_bfloat16_output_is_measured(tmp_path: Path) -> None:
    proto = matmul()
    proto.graph.node.append(node("Cast", "y", "brain", to=onnx.TensorProto.BFLOAT16))
    proto.graph.output.append(info("brain", "batch", 4, 5, dtype=onnx.TensorProto.BFLOAT16))
    loaded = load(proto, tmp_path)
    form = loaded.session_form()
    evaluator = evaluator_of(loaded, proto, form=form)
    assert evaluator.measured == ["y", "brain"]
    assert evaluator.deviation(form, weights(loaded)).mean < 1e-12
    assert evaluator.deviation(form, [-w for w in weights(loaded)]).tensors[1].mean == pytest.approx(2.0)


def test_a_bfloat16_tensor_inside_is_measured_under_its_own_name(tmp_path: Path) -> None:
    """It is also used further on, in the graph and in a branch; the pre-activation's type is not declared."""
    kind = onnx.TensorProto.BFLOAT16
    then = graph([node("Cast", "brain", "o", to=1)], [], [unknown("o")], name="then")
    other = graph([node("Neg", "z", "o")], [], [unknown("o")], name="else")
    proto = model(
        [
            node("MatMul", "x w", "z"),
            node("Cast", "z", "brain", to=kind),
            node("If", "flag", "plain", then_branch=then, else_branch=other),
            node("Cast", "brain", "back", to=1),
            node("Sigmoid", "back", "s"),
            node("Cast", "s", "y", to=kind),
        ],
        [info("x", "batch", 6), info("flag", dtype=onnx.TensorProto.BOOL)],
        [info("y", "batch", 5, dtype=kind), matrix("plain")],
        [onnx.numpy_helper.from_array(np.linspace(-1, 1, 30, dtype=np.float32).reshape(6, 5), "w")],
    )
    loaded = load(proto, tmp_path)
    for names, measured in ([], ["y", "plain", "back"]), (["brain", "back"], ["brain", "back"]):
        form = loaded.session_form(names)
        evaluator = evaluator_of(loaded, proto, form=form, strict=True)
        assert evaluator.measured == measured
        assert evaluator.deviation(form, weights(loaded)).worst == 0.0
        assert evaluator.deviation(form, [-w for w in weights(loaded)]).tensors[-1].mean == pytest.approx(2.0)


def test_a_bfloat16_weight_that_is_an_output_is_measured(tmp_path: Path) -> None:
    proto = matmul()
    grid = onnx.TensorProto(name="grid", data_type=onnx.TensorProto.BFLOAT16, dims=[2], raw_data=b"\x80\x3f\0\x40")
    proto.graph.initializer.append(grid)
    proto.graph.output.append(info("grid", 2, dtype=onnx.TensorProto.BFLOAT16))
    loaded = load(proto, tmp_path)
    for hoist in (True, False):
        form = loaded.session_form(hoist=hoist)
        evaluator = evaluator_of(loaded, proto, 1, form=form)
        assert evaluator.measured == ["y", "grid"]
        flipped = [w ^ np.uint16(0x8000) if w.dtype == np.uint16 else w for w in weights(loaded)]
        assert [t.mean for t in evaluator.deviation(form, flipped).tensors] == [0.0, pytest.approx(2.0)]


def test_layers_mapped_from_an_odd_place_of_a_file_are_run(tmp_path: Path) -> None:
    proto = dense()
    weight = proto.graph.initializer[0]
    (tmp_path / "w.bin").write_bytes(b"odd" + weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="w.bin")
    weight.external_data.add(key="offset", value="3")
    mapped, inside = load(proto, tmp_path), Model.load(save(dense(), tmp_path, "inside.onnx"))
    assert evaluator_of(inside, dense()).deviation(mapped.session_form(), weights(mapped)).mean < 1e-15


# ---- lean -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """All models count as large."""
    for file in ("evaluator", "sessions"):
        monkeypatch.setattr(f"riq_cli.runtime.{file}.LARGE", 0)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("name", sorted({"conv", "lstm", "embedding", "if_nested", "loop", "function", "float16"}))
def test_layers_as_inputs_deviate_as_they_do_as_initializers(name: str, tmp_path: Path) -> None:
    proto = FORMS[name]()
    first, second = load(proto, tmp_path), Model.load(save(FORMS[name](seed=1), tmp_path, "other.onnx"))
    form = first.session_form()
    lean, usual = (evaluator_of(first, proto, 1, form=form, lean=lean) for lean in (True, False))
    assert (lean.is_lean, usual.is_lean) == (True, False)
    assert lean.measured == usual.measured
    assert lean.deviation(form, weights(first)).mean == 0.0  # the same session as the original's
    for among in (None, [1]):
        found, wanted = (each.deviation(form, weights(second), among).mean for each in (lean, usual))
        assert found == pytest.approx(wanted, rel=1e-4) and wanted > 0
    # Any other form is run as it is.
    assert lean.deviation(first.session_form(hoist=False), weights(first)).mean < 1e-6


def test_float16_weights_are_multiplied_as_onnxruntime_does_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    decoder = Llama(2, 32, 48, 4, 2, 64)
    decoder.save(tmp_path / "x.onnx")
    model = Model.load(tmp_path / "x.onnx")
    samples = [({"words": words}, 1) for words in decoder.samples(2, 5)]
    form, values = model.session_form(), [layer.values for layer in model.layers]
    monkeypatch.setattr("riq_cli.runtime.evaluator.LARGE", 0)
    evaluator = Evaluator(form, values, samples, lean=True)
    assert evaluator.is_lean and evaluator.deviation(form, values).mean == 0.0
    other = model.session_form(hoist=False)
    assert evaluator.deviation(other, values).mean < 1e-6  # by onnxruntime's own conversions
    with monkeypatch.context() as patch:
        patch.setattr("riq_cli.runtime.sessions.start", None)
        patch.setattr("riq_cli.runtime.evaluator.HUGE", 0)
        assert evaluator.deviation(other, values).mean == 0.0  # as inputs, too
        assert Evaluator(other, values, samples).is_lean


@pytest.mark.usefixtures("large")
def test_an_input_that_is_left_out_is_not_converted(tmp_path: Path) -> None:
    half = onnx.TensorProto.FLOAT16
    weights_in_half = [tensor("w", np.random.default_rng(0).standard_normal((8, 4)).astype(np.float16))]
    inputs, outputs = [info("x", 2, 8, dtype=half)], [info("y", 2, 4, dtype=half)]
    proto = model([node("Gemm", "x w", "y")], inputs, outputs, weights_in_half, opset=13)
    proto.graph.node[0].input.append("")
    assert evaluator_of(load(proto, tmp_path), proto, lean=True).is_lean


def test_small_models_are_never_lean(tmp_path: Path) -> None:
    assert not evaluator_of(load(conv(), tmp_path), conv(), lean=True).is_lean


@pytest.mark.usefixtures("large")
def test_what_cannot_be_run_with_layers_as_inputs_is_run_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("weights have to be constant")

    monkeypatch.setattr("riq_cli.runtime.sessions.fed_runner", refuse)
    model = load(conv(), tmp_path)
    evaluator = evaluator_of(model, conv(), lean=True)
    assert not evaluator.is_lean
    assert evaluator.deviation(model.session_form(), weights(model)).mean < 1e-15


@pytest.mark.usefixtures("large")
def test_an_observer_shows_the_same_with_layers_as_inputs(tmp_path: Path) -> None:
    proto = conv()
    model = load(proto, tmp_path)
    inner = [name for each in proto.graph.node[:-1] for name in each.output]
    found, wanted = (
        list(Observer(model.session_form(), weights(model), [(feed, 3) for feed in feeds(proto)], lean=lean)
             .activations(inner))
        for lean in (True, False)
    )  # fmt: skip
    assert [step[:2] for step in found] == [step[:2] for step in wanted]
    for (*_, one), (*_, other) in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_deviation_of_constant_outputs_tells_how_much_samples_change(tmp_path: Path) -> None:
    proto = model(
        [node("Add", "x w", "y")],
        [info("x", "batch", 2)],
        [info("y", "batch", 2)],
        [onnx.numpy_helper.from_array(np.zeros(2, np.float32), "w")],
    )
    form = load(proto, tmp_path).select(lambda _: False).session_form()

    def constant(*runs: list[list[float]]) -> float:
        samples = [({"x": np.array(rows, np.float32)}, len(rows)) for rows in runs]
        return Evaluator(form, [], samples, runtime=Runtime(threads=1)).of_constant_outputs()

    assert constant([[1, 0]], [[0, 1]]) == pytest.approx(1 - np.sqrt(0.5))  # their mean is (½, ½)
    assert constant([[1, 0], [0, 1]], [[1, 0]], [[0, 1]]) == pytest.approx(1 - np.sqrt(0.5))
    assert constant([[1, 0.1]], [[1, -0.1]]) == pytest.approx(1 - 1 / np.sqrt(1.01))
    assert constant([[1, 2]]) == 1  # one sample tells nothing
