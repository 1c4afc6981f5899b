"""Deviation: the cosine distance by hand, and what is made of it over samples and tensors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import (
    FORMS,
    argmax,
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
    sigmoid_of_argmax_and_softmax,
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
    available_threads,
    cosine_distance,
    sample_deviations,
)

NAN, INF = math.nan, math.inf


def array(*values: float, dtype: type = np.float32) -> np.ndarray:
    return np.array(values, dtype)


# ---- cosine distance ------------------------------------------------------------------------------------------------


def test_distance_of_known_angles() -> None:
    assert cosine_distance(array(1, 0), array(0, 1)) == 1.0
    assert cosine_distance(array(1, 0), array(1, 1)) == pytest.approx(1 - math.sqrt(0.5), rel=1e-12)
    assert cosine_distance(array(3, 4), array(4, 3)) == pytest.approx(1 - 24 / 25, rel=1e-12)
    assert cosine_distance(array(1, 2, 2), array(-1, -2, -2)) == 2.0


def test_distance_of_a_small_angle_is_half_its_square() -> None:
    angle = 1e-4
    assert cosine_distance(array(1, 0), array(math.cos(angle), math.sin(angle), dtype=np.float64)) == pytest.approx(
        angle**2 / 2, rel=1e-6
    )


def test_distance_ignores_scale_and_shape_of_the_axes() -> None:
    y, z = array(1, 2, 3, 4).reshape(2, 2), array(2, 4, 6, 9).reshape(2, 2)
    assert cosine_distance(y, 8 * z) == cosine_distance(y, z) == cosine_distance(y.ravel(), z.ravel())


def test_distance_of_identical_outputs_is_exactly_zero() -> None:
    generator = np.random.default_rng(0)
    for size in range(1, 200):
        y = generator.standard_normal(size).astype(np.float32)
        assert cosine_distance(y, y.copy()) == 0.0


@given(st.data())
def test_distance_is_between_0_and_2_and_symmetric(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([np.float16, np.float32]))
    shape = data.draw(hnp.array_shapes(max_dims=3, max_side=5))
    finite = hnp.arrays(dtype, shape, elements={"allow_nan": False, "allow_infinity": False})
    y, z = data.draw(finite), data.draw(finite)
    distance = cosine_distance(y, z)
    assert 0.0 <= distance <= 2.0 + 1e-9
    assert distance == pytest.approx(cosine_distance(z, y), abs=1e-15)


def test_distance_in_float16_is_computed_in_float64() -> None:
    """The squares are above float16's 65504, and below its smallest number."""
    y, z = array(300, 400, dtype=np.float16), array(400, 300, dtype=np.float16)
    assert cosine_distance(y, z) == pytest.approx(1 - 24 / 25, rel=1e-12)
    y, z = array(3e-6, 4e-6, dtype=np.float16), array(-3e-6, -4e-6, dtype=np.float16)
    assert cosine_distance(y, z) == pytest.approx(2.0)


def test_distance_in_float32_holds_over_its_whole_range() -> None:
    assert cosine_distance(array(3e38, 3e38), array(-3e38, -3e38)) == pytest.approx(2.0)
    assert cosine_distance(array(1e-45, 0), array(0, 1e-45)) == 1.0


@pytest.mark.parametrize("size", [1.7e308, 1e200, 1e-200, 1e-310])
def test_distance_in_float64_holds_over_its_whole_range(size: float) -> None:
    y, z = array(size, size, dtype=np.float64), array(-size, -size, dtype=np.float64)
    assert cosine_distance(y, z) == pytest.approx(2.0)


def test_distance_of_identical_outputs_is_exactly_zero_at_any_size() -> None:
    y = np.random.default_rng(1).standard_normal(1000)
    for size in (1e-300, 1e-200, 1.0, 3e200, 1e307):
        assert cosine_distance(y * size, y * size) == 0.0
    odd = np.concatenate([y * 1e200, [NAN, INF, -INF, 0.0]])
    assert cosine_distance(odd, odd.copy()) == 0.0


def test_distance_does_not_change_what_it_is_given() -> None:
    y, z = np.array([3.0, 4.0]), np.array([[8.0, 6.0]]).ravel()
    assert cosine_distance(y, z) == pytest.approx(1 - 24 / 25, rel=1e-12)
    assert (y.tolist(), z.tolist()) == ([3.0, 4.0], [8.0, 6.0])


def test_distance_of_zeros() -> None:
    zeros, other = array(0, 0, 0), array(0, 1e-30, 0)
    assert cosine_distance(zeros, zeros) == 0.0
    assert cosine_distance(zeros, -zeros) == 0.0
    assert cosine_distance(zeros, other) == 1.0
    assert cosine_distance(other, zeros) == 1.0


def test_distance_of_outputs_without_elements_is_zero() -> None:
    assert cosine_distance(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32)) == 0.0


def test_distance_of_single_numbers_is_whether_their_signs_agree() -> None:
    assert cosine_distance(np.float32(3.0).reshape(()), np.float32(7.0).reshape(())) == 0.0
    assert cosine_distance(np.float32(3.0).reshape(()), np.float32(-7.0).reshape(())) == 2.0


def test_distance_of_other_shapes_is_one() -> None:
    y = array(1, 2, 3, 4)
    assert cosine_distance(y, y[:3]) == 1.0
    assert cosine_distance(y, y.reshape(2, 2)) == 1.0
    assert cosine_distance(y, y.reshape(1, 4)) == 1.0


@pytest.mark.parametrize("odd", [NAN, INF, -INF])
def test_elements_that_are_not_finite_in_both_are_left_out(odd: float) -> None:
    y, z = array(3, odd, 4), array(4, odd, 3)
    assert cosine_distance(y, z) == cosine_distance(array(3, 4), array(4, 3))


@pytest.mark.parametrize(
    ("y", "z"),
    [
        ((1, NAN), (1, 2)),
        ((1, INF), (1, 2)),
        ((1, INF), (1, -INF)),
        ((1, INF), (1, NAN)),
        ((1, NAN), (1, INF)),
        ((1, 2), (1, NAN)),
        ((1, 2), (1, INF)),
        ((NAN, 2), (NAN, INF)),
        ((0, 0), (0, NAN)),
    ],
)
def test_elements_that_are_not_finite_in_one_only_are_infinitely_far(y: Sequence[float], z: Sequence[float]) -> None:
    assert cosine_distance(array(*y), array(*z)) == INF


def test_outputs_of_nothing_but_nan_are_equal() -> None:
    assert cosine_distance(array(NAN, INF), array(NAN, INF)) == 0.0


# ---- samples --------------------------------------------------------------------------------------------------------


def test_a_batch_has_one_deviation_for_each_row() -> None:
    y, z = array(1, 0, 1, 0, 1, 0).reshape(3, 2), array(1, 0, 0, 1, -1, 0).reshape(3, 2)
    assert sample_deviations(y, z, rows=3) == [0.0, 1.0, 2.0]


def test_an_output_without_rows_counts_as_a_whole_for_each_of_them() -> None:
    y, z = array(1, 0), array(0, 1)
    assert sample_deviations(y, z, rows=3) == [1.0, 1.0, 1.0]
    assert sample_deviations(y.reshape(1, 2), z.reshape(1, 2), rows=3) == [1.0, 1.0, 1.0]
    assert sample_deviations(np.float32(1).reshape(()), np.float32(-1).reshape(()), rows=2) == [2.0, 2.0]


def test_one_row_is_compared_as_a_whole() -> None:
    y, z = array(1, 0, 1, 0).reshape(2, 2), array(1, 0, -1, 0).reshape(2, 2)
    assert sample_deviations(y, z) == [1.0]


def test_a_batch_whose_shape_changes_is_one_everywhere() -> None:
    assert sample_deviations(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32), rows=2) == [1.0, 1.0]


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


def test_original_weights_deviate_by_less_than_rounding(tmp_path: Path) -> None:
    model = load(conv(), tmp_path)
    form = model.session_form()
    evaluator = Evaluator(form, weights(model), [(feed, 3) for feed in feeds(conv())], runtime=Runtime(threads=1))
    deviation = evaluator.deviation(form, weights(model))
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
    form = loaded.session_form()
    evaluator = Evaluator(form, weights(loaded), [(feed, 1) for feed in feeds(proto)], runtime=Runtime(threads=1))
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
    proto = sigmoid_of_argmax_and_softmax()
    loaded = load(proto, tmp_path)
    form = loaded.session_form()
    evaluator = Evaluator(form, weights(loaded), [(feed, 3) for feed in feeds(proto)], runtime=Runtime(threads=1))
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
    samples = [(feed, 1) for feed in feeds(FORMS["constants"]())]
    evaluator = Evaluator(loaded.session_form(), weights(loaded), samples, runtime=Runtime(threads=1))
    hoisted = evaluator.deviation(loaded.session_form(), weights(other))
    assert hoisted.mean > 0.01
    assert evaluator.deviation(other.session_form(hoist=False), weights(other)) == hoisted


def test_an_unknown_provider_is_an_error_with_those_there_are(tmp_path: Path) -> None:
    loaded = load(matmul(), tmp_path)
    with pytest.raises(SettingsError, match=r"onnxruntime has no .QuantumExecutionProvider. here; it has .*CPUExec"):
        Evaluator(loaded.session_form(), weights(loaded), [], runtime=Runtime(provider="QuantumExecutionProvider"))


def test_a_model_that_cannot_be_run_is_an_error_of_one_line(tmp_path: Path) -> None:
    proto = model([node("Unheard", "x", "y")], [info("x", 3)], [info("y", 3)])
    loaded = load(proto, tmp_path)
    with pytest.raises(ModelError) as caught:
        Evaluator(loaded.session_form(), [], [(feed, 1) for feed in feeds(proto)])
    message = str(caught.value)
    assert message.startswith("onnxruntime cannot run the model: ")
    assert "Unheard" in message
    assert "\n" not in message


def test_a_feed_that_the_model_refuses_is_an_error_of_one_line(tmp_path: Path) -> None:
    loaded = load(matmul(), tmp_path)
    with pytest.raises(ModelError, match=r"onnxruntime cannot run the model: .*x") as caught:
        Evaluator(loaded.session_form(), weights(loaded), [({"x": np.zeros((1, 9, 9), np.float32)}, 1)])
    assert "\n" not in str(caught.value)


def test_a_node_that_fails_while_running_is_an_error_of_one_line(tmp_path: Path) -> None:
    proto = model(
        [node("Reshape", "x shape", "y")],
        [info("x", 6), info("shape", 2, dtype=onnx.TensorProto.INT64)],
        [info("y", None, None)],
    )
    loaded = load(proto, tmp_path)
    feed = {"x": np.zeros(6, np.float32), "shape": np.array([4, 4])}
    with pytest.raises(ModelError, match=r"onnxruntime cannot run the model: .*Reshape") as caught:
        Evaluator(loaded.session_form(), [], [(feed, 1)])
    assert "\n" not in str(caught.value)


def test_outputs_that_are_not_float_are_left_out(tmp_path: Path) -> None:
    """Their type is not declared, so it shows only in what comes out."""
    proto = matmul()
    proto.graph.node.append(node("Shape", "y", "size"))
    loaded = load(proto, tmp_path)
    loaded.skeleton.graph.output.append(onnx.ValueInfoProto(name="size"))
    form = loaded.session_form()
    assert form.measured == ("y", "size")
    evaluator = Evaluator(form, weights(loaded), [(feed, 3) for feed in feeds(proto)], runtime=Runtime(threads=1))
    assert evaluator.measured == ["y"]


def test_without_a_float_output_the_error_names_the_flag(tmp_path: Path) -> None:
    loaded = load(argmax(), tmp_path)
    form = loaded.session_form(["y"])
    samples = [(feed, 3) for feed in feeds(argmax())]
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
    evaluator = Evaluator(form, weights(loaded), [(feed, 3) for feed in feeds(proto)], runtime=Runtime(threads=1))
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
    samples = [(feed, 3) for feed in feeds(proto)]
    for names, measured in ([], ["y", "plain", "back"]), (["brain", "back"], ["brain", "back"]):
        form = loaded.session_form(names)
        evaluator = Evaluator(form, weights(loaded), samples, runtime=Runtime(threads=1), strict=True)
        assert evaluator.measured == measured
        assert evaluator.deviation(form, weights(loaded)).worst == 0.0
        assert evaluator.deviation(form, [-w for w in weights(loaded)]).tensors[-1].mean == pytest.approx(2.0)


def test_a_bfloat16_weight_that_is_an_output_is_measured(tmp_path: Path) -> None:
    proto = matmul()
    grid = onnx.TensorProto(name="grid", data_type=onnx.TensorProto.BFLOAT16, dims=[2], raw_data=b"\x80\x3f\0\x40")
    proto.graph.initializer.append(grid)
    proto.graph.output.append(info("grid", 2, dtype=onnx.TensorProto.BFLOAT16))
    loaded = load(proto, tmp_path)
    samples = [(feed, 1) for feed in feeds(proto)]
    for hoist in (True, False):
        form = loaded.session_form(hoist=hoist)
        evaluator = Evaluator(form, weights(loaded), samples, runtime=Runtime(threads=1))
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
    samples = [(feed, 3) for feed in feeds(dense())]
    evaluator = Evaluator(inside.session_form(), weights(inside), samples, runtime=Runtime(threads=1))
    assert evaluator.deviation(mapped.session_form(), weights(mapped)).mean < 1e-15


def test_there_is_at_least_one_processor() -> None:
    assert available_threads() >= 1


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
    form, samples = first.session_form(), [(feed, 1) for feed in feeds(proto)]
    lean = Evaluator(form, weights(first), samples, runtime=Runtime(threads=1), lean=True)
    usual = Evaluator(form, weights(first), samples, runtime=Runtime(threads=1))
    assert (lean.is_lean, usual.is_lean) == (True, False)
    assert lean.measured == usual.measured
    assert lean.deviation(form, weights(first)).mean == 0.0  # the same session as the original's
    for among in (None, [1]):
        found, wanted = (each.deviation(form, weights(second), among).mean for each in (lean, usual))
        assert found == pytest.approx(wanted, rel=1e-4) and wanted > 0
    # Any other form is run as it is.
    assert lean.deviation(first.session_form(hoist=False), weights(first)).mean < 1e-6


def test_small_models_are_never_lean(tmp_path: Path) -> None:
    model = load(conv(), tmp_path)
    form = model.session_form()
    assert not Evaluator(
        form, weights(model), [(feed, 3) for feed in feeds(conv())], runtime=Runtime(threads=1), lean=True
    ).is_lean


@pytest.mark.usefixtures("large")
def test_what_cannot_be_run_with_layers_as_inputs_is_run_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        def __init__(self, *_: object) -> None:
            raise RuntimeError("weights have to be constant")

    monkeypatch.setattr("riq_cli.runtime.sessions.FedSession", Refusing)
    model = load(conv(), tmp_path)
    form = model.session_form()
    evaluator = Evaluator(
        form, weights(model), [(feed, 3) for feed in feeds(conv())], runtime=Runtime(threads=1), lean=True
    )
    assert not evaluator.is_lean
    assert evaluator.deviation(form, weights(model)).mean < 1e-15


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
