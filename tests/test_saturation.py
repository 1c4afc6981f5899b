"""Where the deviation is measured: float outputs, and what enters a saturating end."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from builders import (
    FORMS,
    INT64,
    SATURATED,
    feeds,
    graph,
    if_branches,
    info,
    matmul,
    model,
    node,
    save,
    tensor,
    unknown,
)

from riq_cli.errors import SettingsError
from riq_cli.model import Model
from riq_cli.runtime import Evaluator, Runtime


def load(proto: onnx.ModelProto, tmp_path: Path) -> Model:
    return Model.load(save(proto, tmp_path))


def measure(model: Model, proto: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    """The measured tensors by name, one for each feed, of a model whose weights are all inside."""
    form = model.select(lambda _: False).session_form()
    session = onnxruntime.InferenceSession(form.model, providers=["CPUExecutionProvider"])
    return [dict(zip(form.measured, session.run(form.measured, feed), strict=True)) for feed in feeds(proto)]


@pytest.mark.parametrize("name", SATURATED)
def test_exactly_these_tensors_are_measured_and_z_is_what_the_weights_computed(name: str, tmp_path: Path) -> None:
    builder, measured = SATURATED[name]
    proto = builder()
    loaded = load(proto, tmp_path)
    for hoist in (True, False):
        assert list(loaded.session_form(hoist=hoist).measured) == measured
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    for run, feed in zip(measure(loaded, proto), feeds(proto), strict=True):
        assert list(run) == measured
        assert all(value.dtype == np.float32 for value in run.values())
        if "z" in run:
            np.testing.assert_allclose(run["z"], feed["x"] @ weight, rtol=1e-5, atol=1e-6)


def test_a_branch_without_saturation_gives_its_own_output(tmp_path: Path) -> None:
    proto = SATURATED["if_sigmoid_in_one_branch"][0]()
    saturated, plain = measure(load(proto, tmp_path), proto)
    np.testing.assert_allclose(saturated["out"], 1 / (1 + np.exp(-saturated["y/pre_activation"])), rtol=1e-5)
    np.testing.assert_array_equal(plain["out"], plain["y/pre_activation"])


def test_nested_branches_hand_their_pre_activation_up(tmp_path: Path) -> None:
    proto = SATURATED["if_nested_softmax"][0]()
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    for run, feed in zip(measure(load(proto, tmp_path), proto), feeds(proto), strict=True):
        sign = -1 if feed["which"] else 1
        np.testing.assert_allclose(run["y/pre_activation"], sign * (feed["x"] @ weight), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FORMS)
def test_models_without_saturated_ends_are_measured_at_their_float_outputs(name: str, tmp_path: Path) -> None:
    proto = FORMS[name]()
    floats = [
        o.name for o in proto.graph.output if o.type.tensor_type.elem_type not in (INT64, onnx.TensorProto.STRING)
    ]
    assert list(load(proto, tmp_path).session_form().measured) == floats


def test_the_restored_model_has_no_further_outputs(tmp_path: Path) -> None:
    loaded = load(SATURATED["softmax"][0](), tmp_path)
    loaded.session_form()
    assert [output.name for output in onnx.ModelProto.FromString(loaded.to_bytes()).graph.output] == ["y"]


def test_softmax_of_an_input_is_measured_there_only_if_it_runs(tmp_path: Path) -> None:
    """What enters the activation is an input of the model: it does not depend on the weights, and never moves."""
    proto = model(
        [node("Softmax", "x", "p"), node("MatMul", "x w", "y")],
        [info("x", "batch", 6)],
        [info("p", "batch", 6), info("y", "batch", 5)],
        [tensor("w", np.ones((6, 5), np.float32))],
    )
    loaded = load(proto, tmp_path)
    samples = [(feed, 1) for feed in feeds(proto)]
    weights = [layer.values for layer in loaded.layers]
    form = loaded.session_form()
    assert Evaluator(form, weights, samples, runtime=Runtime(threads=1)).deviation(form, weights).mean < 1e-12


def test_both_forms_measure_the_same_where_a_number_is_hoisted_from_a_branch(tmp_path: Path) -> None:
    loaded = load(SATURATED["if_logistic_by_div"][0](), tmp_path)
    assert [len(layer.places) for layer in loaded.layers] == [1, 2]
    for hoist in (True, False):
        assert loaded.session_form(hoist=hoist).measured == ("y", "y/pre_activation")


@pytest.mark.parametrize("hoist", [True, False])
@pytest.mark.parametrize("in_a_branch", [True, False])
def test_bfloat16_is_given_out_as_float_though_no_type_is_declared(
    in_a_branch: bool, hoist: bool, tmp_path: Path
) -> None:
    """onnxruntime has no Softmax of bfloat16 on the CPU, so onnx's inference judges."""
    kind = onnx.TensorProto.BFLOAT16
    end = node("Softmax", "z", "y")
    if in_a_branch:
        then = graph([node("Softmax", "z", "o")], [], [unknown("o", kind)], name="then")
        other = graph([node("Neg", "z", "n"), node("Softmax", "n", "o")], [], [unknown("o", kind)], name="else")
        end = node("If", "flag", "y", then_branch=then, else_branch=other)
    weight = onnx.TensorProto(name="w", data_type=kind, dims=[6, 5], raw_data=bytes(60))
    proto = model(
        [node("MatMul", "x w", "z"), end],
        [info("x", "batch", 6, dtype=kind), info("flag", dtype=onnx.TensorProto.BOOL)],
        [info("y", "batch", 5, dtype=kind)],
        [weight],
    )
    form = load(proto, tmp_path).session_form(hoist=hoist)
    assert form.measured == ("y", "y/pre_activation" if in_a_branch else "z")
    inferred = onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(form.model), strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*inferred.output, *inferred.value_info]}
    assert [types[name] for name in form.measured] == [onnx.TensorProto.FLOAT] * 2
    assert [output.name for output in inferred.output] == list(form.measured)


# ---- named tensors --------------------------------------------------------------------------------------------------


def test_named_tensors_replace_the_default(tmp_path: Path) -> None:
    loaded = load(SATURATED["softmax"][0](), tmp_path)
    assert loaded.session_form(["z"]).measured == ("z",)
    assert loaded.session_form(["y"]).measured == ("y",)
    assert loaded.session_form(["z", "y", "z"]).measured == ("z", "y")


def test_an_inner_tensor_becomes_an_output_once(tmp_path: Path) -> None:
    form = load(matmul(), tmp_path).session_form(["m"])
    assert [output.name for output in onnx.ModelProto.FromString(form.model).graph.output] == ["y", "m"]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["logit"], "no tensor 'logit' in the model's main graph; did you mean logits?"),
        (["y", "nothing-like-it"], "no tensor 'nothing-like-it' in the model's main graph; did you mean y?"),
        *(([name], f"no tensor '{name}' in the model's main graph; did you mean ") for name in ("", "x", "w", "m")),
    ],
)
def test_inputs_weights_and_what_is_not_in_the_main_graph_cannot_be_measured(
    names: list[str], told: str, tmp_path: Path
) -> None:
    proto = if_branches()  # w and m are of its branches
    proto.graph.node.append(node("Neg", "y", "logits"))
    for hoist in (True, False):
        with pytest.raises(SettingsError, match=f"^{re.escape(told)}"):
            load(proto, tmp_path).session_form(names, hoist=hoist)


def test_a_model_without_float_outputs_or_saturation_has_nothing_to_measure(tmp_path: Path) -> None:
    proto = model(
        [node("MatMul", "x w", "m"), node("Shape", "m", "y")],
        [info("x", "batch", 6)],
        [info("y", 2, dtype=INT64)],
        [tensor("w", np.ones((6, 5), np.float32))],
    )
    assert load(proto, tmp_path).session_form().measured == ()
    assert load(proto, tmp_path).session_form(["m"]).measured == ("m",)


def test_an_output_that_is_a_sequence_is_not_measured(tmp_path: Path) -> None:
    sequence = onnx.helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, None)
    proto = matmul()
    proto.graph.node.append(node("SequenceConstruct", "y", "s"))
    proto.graph.output.append(sequence)
    assert load(proto, tmp_path).session_form().measured == ("y",)
