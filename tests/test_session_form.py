"""What a session runs computes what the file computes, whatever weights are given from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from builders import (
    FORMS,
    SATURATED,
    feeds,
    folded_transpose,
    if_nested,
    info,
    matmul,
    save,
    tensor,
    tied,
    unused_initializer_as_input,
)

from riq_cli.model import Layer, Model, SessionForm
from riq_cli.model.places import find_tensor
from riq_cli.model.tensors import Array

BFLOAT16 = onnx.TensorProto.BFLOAT16


# A float that decides a shape cannot come from outside. It is 1-D, and such tensors stay in the skeleton.
NOT_FROM_OUTSIDE = {"resize"}
# Numbers of the layers that nothing uses: onnxruntime drops their initializers, and so must the form.
DROPPED = {
    "unused_initializer": {2},
    "unused_initializer_as_input": {2},
    "unused_constant": {2},
    "uncalled_function": {2},
}


def options() -> onnxruntime.SessionOptions:
    result = onnxruntime.SessionOptions()
    result.intra_op_num_threads = 1
    result.use_deterministic_compute = True
    result.log_severity_level = 4
    return result


def run_file(proto: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    """Outputs by name of a plain session on the serialized model, one for each feed."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(names, feed), strict=True)) for feed in feeds(proto)]


def run_form(form: SessionForm, weights: Sequence[Array], proto: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    """Measured tensors by name of a session that is given `weights` from outside, one for each feed."""
    given = options()
    if form.weights:
        values = [
            onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(weights[number], BFLOAT16)
            if weights[number].dtype == np.uint16
            else onnxruntime.OrtValue.ortvalue_from_numpy(weights[number])
            for _, number in form.weights
        ]
        given.add_external_initializers([name for name, _ in form.weights], values)
    session = onnxruntime.InferenceSession(form.model, given, providers=["CPUExecutionProvider"])
    names = list(form.measured)
    return [dict(zip(names, session.run(names, feed), strict=True)) for feed in feeds(proto)]


def values(layers: Sequence[Layer]) -> list[Array]:
    return [layer.values for layer in layers]


def with_values(model: Model, weights: Sequence[Array]) -> Model:
    """The model as decompress restores it, with other weights."""
    layers = [replace(layer, values=w) for layer, w in zip(model.layers, weights, strict=True)]
    return Model.from_skeleton(model.skeleton_bytes(), layers)


def assert_same(found: Sequence[dict[str, np.ndarray]], wanted: Sequence[dict[str, np.ndarray]]) -> None:
    """Bit for bit equal at every tensor that both measured, at least one."""
    for run, truth in zip(found, wanted, strict=True):
        names = run.keys() & truth.keys()
        assert names
        for name in names:
            assert run[name].dtype == truth[name].dtype
            np.testing.assert_array_equal(run[name], truth[name])


def is_matrix(layer: Layer) -> bool:
    return len(layer.shape) >= 2


def cases(names: Sequence[str]) -> list[tuple[str, str]]:
    """Every builder with all tensors coded, and with matrices only."""
    result = []
    for name in names:
        for coded in ("all", "matrices"):
            if coded == "all" and name in NOT_FROM_OUTSIDE:
                continue
            result.append((name, coded))
    return result


BUILDERS = {**FORMS, **{name: builder for name, (builder, _) in SATURATED.items()}}


@pytest.mark.parametrize(("name", "coded"), cases(list(BUILDERS)))
def test_both_forms_compute_what_the_file_computes(name: str, coded: str, tmp_path: Path) -> None:
    proto = BUILDERS[name]()
    model = Model.load(save(proto, tmp_path))
    if coded == "matrices":
        model = model.select(is_matrix)
    truth = run_file(proto)
    unhoisted = run_form(model.session_form(hoist=False), values(model.layers), proto)
    hoisted = run_form(model.session_form(), values(model.layers), proto)
    outputs = {output.name for output in proto.graph.output}
    if outputs & set(model.session_form().measured):
        assert_same(unhoisted, truth)
        assert_same(hoisted, truth)
    assert_same(hoisted, unhoisted)


@pytest.mark.parametrize(("name", "coded"), cases(list(FORMS)))
def test_both_forms_compute_what_a_file_with_changed_weights_computes(name: str, coded: str, tmp_path: Path) -> None:
    proto, changed = FORMS[name](seed=0), FORMS[name](seed=1)
    model, other = Model.load(save(proto, tmp_path)), Model.load(save(changed, tmp_path, "changed.onnx"))
    if coded == "matrices":  # the other tensors are those of the changed file, in both
        model, other = with_values(model, values(other.layers)).select(is_matrix), other.select(is_matrix)
    assert [layer.places for layer in model.layers] == [layer.places for layer in other.layers]
    weights = values(other.layers)
    truth = run_file(changed)
    assert_same(run_form(with_values(model, weights).session_form(hoist=False), weights, proto), truth)
    assert_same(run_form(model.session_form(), weights, proto), truth)


@pytest.mark.parametrize("name", FORMS)
def test_changed_weights_show(name: str) -> None:
    """So that the comparisons above can fail."""
    if name == "int8_qdq":
        return  # nothing in it depends on the seed
    before, after = run_file(FORMS[name](seed=0)), run_file(FORMS[name](seed=1))
    assert any(
        not np.array_equal(run[key], again[key]) for run, again in zip(before, after, strict=True) for key in run
    )


@pytest.mark.parametrize("hoist", [True, False])
def test_a_weight_behind_a_transpose_that_is_folded_takes_its_new_value(hoist: bool, tmp_path: Path) -> None:
    proto = folded_transpose()
    model = Model.load(save(proto, tmp_path))
    doubled = [layer.values * 2 for layer in model.layers]
    truth = [{"y": run["y"] * 2} for run in run_file(proto)]  # both layers are linear in the output
    assert_same(run_form(model.session_form(hoist=hoist), doubled, proto), truth)
    assert_same(run_file(onnx.ModelProto.FromString(with_values(model, doubled).to_bytes())), truth)


@pytest.mark.parametrize("name", FORMS)
def test_hoisting_gives_every_place_of_every_layer_that_is_used_from_outside(name: str, tmp_path: Path) -> None:
    """Without it, these are the initializers of the main graph. Making a form changes nothing and is repeatable."""
    model = Model.load(save(FORMS[name](), tmp_path))
    before = model.skeleton_bytes()
    hoisted, restored = model.session_form(), model.session_form(hoist=False)
    assert (model.session_form(), model.session_form(hoist=False)) == (hoisted, restored)
    assert model.skeleton_bytes() == before
    used = [number for number in range(len(model.layers)) if number not in DROPPED.get(name, ())]
    places = [(place, number) for number in used for place in model.layers[number].places]
    outer = [(find_tensor(model.skeleton, place).name, n) for place, n in places if place.startswith("graph.init")]
    assert sorted(number for _, number in hoisted.weights) == [number for _, number in places]
    assert len({name for name, _ in hoisted.weights}) == len(hoisted.weights)
    assert list(restored.weights) == outer
    every = [place for layer in model.layers for place in layer.places]
    assert hoisted.hoisted == any(not place.startswith("graph.initializer") for place in every)
    assert not restored.hoisted


def test_a_tied_weight_is_given_to_both_names(tmp_path: Path) -> None:
    form = Model.load(save(tied(), tmp_path)).session_form()
    assert form.weights == (("encoder", 0), ("decoder", 0), ("other", 1))


def test_a_weight_at_several_depths_is_hoisted_from_each(tmp_path: Path) -> None:
    model = Model.load(save(if_nested(), tmp_path))
    form = model.session_form()
    names = [name for name, number in form.weights if number == 0]
    assert len(names) == 2
    assert "w" in names
    proto = onnx.ModelProto.FromString(form.model)
    assert {tensor.name for tensor in proto.graph.initializer} == {name for name, _ in form.weights}
    assert not [node for node in proto.graph.node if node.op_type == "Constant"]


def test_only_unused_layers_go_and_those_that_are_inputs_with_their_input(tmp_path: Path) -> None:
    """The unused integers stay, and what is equal in value to the orphan but used."""
    proto = unused_initializer_as_input()
    proto.graph.initializer.append(tensor("numbers", np.array([1, 2])))
    proto.graph.input.append(info("numbers", 2, dtype=onnx.TensorProto.INT64))
    form = onnx.ModelProto.FromString(Model.load(save(proto, tmp_path)).session_form().model)
    assert [item.name for item in form.graph.initializer] == ["w", "b", "shape", "numbers"]
    assert [item.name for item in form.graph.input] == ["x", "w", "b", "shape", "numbers"]


def test_without_layers_the_form_is_the_file(tmp_path: Path) -> None:
    proto = matmul()
    form = Model.load(save(proto, tmp_path)).select(lambda _: False).session_form()
    assert form.weights == ()
    assert onnx.ModelProto.FromString(form.model) == proto
