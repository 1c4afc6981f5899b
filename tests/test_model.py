"""Models: which tensors become layers, and that everything else comes back as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from builders import (
    FORMS,
    Random,
    conv,
    embedding,
    feeds,
    folded_transpose,
    graph,
    info,
    initializers_as_inputs,
    int8_qdq,
    lstm,
    matmul,
    model,
    node,
    resize,
    save,
    save_external,
    tensor,
    trees,
    unknown,
)
from google.protobuf.message import Message

from riq_cli.errors import CorruptArchive, ModelError, OutputError
from riq_cli.model import Layer, Model, ModelInput, Source

BRANCH = "graph.node[0].attribute[{}].g"  # of the If that is the first node; 0 is the else branch

# name | operators | dtype and shape | places
LAYERS = {
    "conv": [
        "conv.weight | Conv | float32[8, 3, 3, 3] | graph.initializer[0]",
        "conv.bias | Conv | float32[8] | graph.initializer[1]",
        "head.weight | Gemm | float32[5, 8] | graph.initializer[2]",
        "head.bias | Gemm | float32[5] | graph.initializer[3]",
    ],
    "dense": [
        "first.weight | Gemm | float32[32, 16] | graph.initializer[0]",
        "first.bias | Gemm | float32[32] | graph.initializer[1]",
        "second.weight | Gemm | float32[10, 32] | graph.initializer[2]",
        "second.bias | Gemm | float32[10] | graph.initializer[3]",
    ],
    "matmul": [
        "w | MatMul | float32[6, 5] | graph.initializer[0]",
        "b | Add | float32[5] | graph.initializer[1]",
    ],
    "lstm": [
        "W | LSTM | float32[1, 16, 3] | graph.initializer[0]",
        "R | LSTM | float32[1, 16, 4] | graph.initializer[1]",
        "B | LSTM | float32[1, 32] | graph.initializer[2]",
    ],
    "embedding": [
        "table | Gather | float32[11, 6] | graph.initializer[0]",
        "w | MatMul | float32[6, 4] | graph.initializer[1]",
    ],
    "folded_transpose": [
        "w | MatMul | float32[5, 6] | graph.initializer[0]",
        "b | Add | float32[5, 1] | graph.initializer[1]",
    ],
    "initializers_as_inputs": [
        "w | Gemm | float32[6, 4] | graph.initializer[0]",
        "b | Gemm | float32[4] | graph.initializer[1]",
    ],
    "shared": ["w | Gemm, MatMul | float32[6, 6] | graph.initializer[0]"],
    "through_identity": ["w | Gemm, MatMul | float32[6, 6] | graph.initializer[0]"],
    "tied": [
        "encoder | Gemm, MatMul | float32[40, 40] | graph.initializer[0], graph.initializer[2]",
        "other | MatMul | float32[40, 40] | graph.initializer[1]",
    ],
    "float_data": [
        "w | MatMul | float32[6, 5] | graph.initializer[0]",
        "half | MatMul | float16[5, 5] | graph.initializer[1]",
        "double | Mul | float64[5] | graph.initializer[2]",
    ],
    "constants": [
        "w | MatMul | float32[6, 5] | graph.node[0].attribute[0].t",
        "b | Add | float32[5] | graph.node[4].attribute[0].t",
    ],
    "if_branches": [
        f"w ({BRANCH.format(0)}.node[0].attribute[0].t) | MatMul | float32[6, 5] | "
        f"{BRANCH.format(0)}.node[0].attribute[0].t",
        f"b ({BRANCH.format(0)}.node[1].attribute[0].t) | Sub | float32[5] | {BRANCH.format(0)}.node[1].attribute[0].t",
        f"w ({BRANCH.format(1)}.initializer[0]) | MatMul | float32[6, 5] | {BRANCH.format(1)}.initializer[0]",
        f"b ({BRANCH.format(1)}.initializer[1]) | Add | float32[5] | {BRANCH.format(1)}.initializer[1]",
    ],
    "if_nested": [
        "w | MatMul | float32[6, 6] | graph.node[0].attribute[0].t, "
        "graph.node[3].attribute[1].g.node[2].attribute[0].g.initializer[0]",
        "low | MatMul | float32[6, 6] | graph.node[3].attribute[0].g.initializer[0]",
        "middle | MatMul | float32[6, 6] | graph.node[3].attribute[1].g.node[0].attribute[0].t",
        "deep | MatMul | float32[6, 6] | graph.node[3].attribute[1].g.node[2].attribute[1].g.node[0].attribute[0].t",
    ],
    "if_constant_output": [
        f"o ({BRANCH.format(0)}.node[0].attribute[0].t) | output | float32[6, 5] | "
        f"{BRANCH.format(0)}.node[0].attribute[0].t",
        f"o ({BRANCH.format(1)}.initializer[0]) | output | float32[6, 5] | {BRANCH.format(1)}.initializer[0]",
    ],
    "if_outer_scope": [
        "w | MatMul | float32[6, 5] | graph.initializer[0]",
        "v | MatMul | float32[6, 5] | graph.node[0].attribute[0].t",
    ],
    "loop": [
        f"w | Add | float32[1, 6] | {BRANCH.format(0)}.initializer[0]",
        f"c | MatMul | float32[6, 6] | {BRANCH.format(0)}.node[0].attribute[0].t",
    ],
    "scan": [
        "start | Scan | float32[1, 6] | graph.initializer[0]",
        f"w | MatMul | float32[6, 6] | {BRANCH.format(0)}.initializer[0]",
    ],
    "function": [
        "w | MatMul | float32[6, 6] | functions[0].node[0].attribute[0].t",
        "bias | Add | float32[6] | functions[0].node[1].attribute[0].t",
    ],
    "function_of_functions": [
        "w (functions[0].node[0].attribute[0].t) | MatMul | float32[6, 6] | functions[0].node[0].attribute[0].t",
        "w (functions[1].node[0].attribute[0].t) | MatMul | float32[6, 6] | functions[1].node[0].attribute[0].t",
        "c | Add | float32[6] | functions[1].node[2].attribute[0].g.initializer[0]",
        "v | MatMul | float32[6, 6] | functions[1].node[2].attribute[0].g.node[0].attribute[0].t",
    ],
    "function_with_optional_input": [
        "low | Clipped | float32[] | graph.initializer[0]",
        "high | Clipped | float32[] | graph.initializer[1]",
        "w | MatMul | float32[6, 6] | functions[0].node[0].attribute[0].t",
    ],
    "weights_as_outputs": [
        "w | MatMul | float32[6, 5] | graph.initializer[0]",
        "grid | output | float32[3, 2] | graph.initializer[1]",
        "anchors | output | float32[4, 2] | graph.node[0].attribute[0].t",
    ],
    "unused_initializer": [
        "w | MatMul | float32[6, 5] | graph.initializer[0]",
        "b | Add | float32[5] | graph.initializer[1]",
        "orphan | unused | float32[20, 30] | graph.initializer[2]",
    ],
    "unused_initializer_as_input": [
        "w | Gemm | float32[6, 4] | graph.initializer[0]",
        "b | Gemm | float32[4] | graph.initializer[1]",
        "orphan | unused | float32[20, 30] | graph.initializer[3]",
    ],
    "unused_constant": [
        "w | MatMul | float32[6, 5] | graph.initializer[0]",
        "b | Add | float32[5] | graph.initializer[1]",
        "orphan | unused | float32[20, 30] | graph.node[0].attribute[0].t",
    ],
    "uncalled_function": [
        "w (functions[0].node[0].attribute[0].t) | MatMul | float32[6, 6] | functions[0].node[0].attribute[0].t",
        "bias | Add | float32[6] | functions[0].node[1].attribute[0].t",
        "w (functions[1].node[0].attribute[0].t) | MatMul | float32[6, 6] | functions[1].node[0].attribute[0].t",
    ],
    "float16": [
        "w | MatMul | float16[6, 5] | graph.initializer[0]",
        "b | Add | float16[5] | graph.node[1].attribute[0].t",
    ],
    "bfloat16": [
        "w | MatMul | bfloat16[6, 5] | graph.initializer[0]",
        "typed | Add | bfloat16[5] | graph.initializer[1]",
        "v | MatMul | bfloat16[5, 5] | graph.node[4].attribute[1].g.node[0].attribute[0].t",
    ],
    "float64": [
        "w | MatMul | float64[6, 5] | graph.initializer[0]",
        "b | Add | float64[5] | graph.node[1].attribute[0].t",
    ],
    "zeros_and_single_weights": [
        "zeros | MatMul | float32[6, 5] | graph.initializer[1]",
        "w | MatMul | float32[6, 5] | graph.initializer[2]",
        "scalar | Mul | float32[] | graph.initializer[3]",
        "one | Add | float32[1, 1] | graph.initializer[4]",
    ],
    "not_finite": [
        "w | MatMul | float32[6, 5] | graph.initializer[0]",
        "v | MatMul | float32[6, 5] | graph.initializer[1]",
        "u | MatMul | float32[6, 5] | graph.initializer[2]",
    ],
    "int8_qdq": [
        "w_scale | DequantizeLinear | float32[16] | graph.initializer[1]",
        "x_scale | DequantizeLinear, QuantizeLinear | float32[] | graph.initializer[3]",
    ],
    "trained_for_int8": [
        "w | Gemm | float32[16, 24] | graph.initializer[0]",
        "w_steps | DequantizeLinear, QuantizeLinear | float32[16] | graph.initializer[1]",
        "b | Gemm | float32[16] | graph.initializer[3]",
        "v | MatMul | float32[8, 16] | graph.initializer[4]",
        "step | DequantizeLinear, QuantizeLinear | float32[] | graph.initializer[5]",
    ],
    "sparse": ["w | MatMul | float32[4, 5] | graph.initializer[0]"],
    "integers_and_strings": [
        "w | MatMul | float32[6, 5] | graph.initializer[4]",
        "zero | Where | float32[] | graph.initializer[5]",
    ],
    "trees": ["w | MatMul | float32[1, 5] | graph.initializer[0]"],
    "documented": [
        "w | MatMul | float32[6, 5] | graph.initializer[0]",
        "b | Add | float32[5] | graph.initializer[1]",
    ],
    "resize": [
        "scales | Resize | float32[4] | graph.initializer[0]",
        "w | Conv | float32[2, 3, 1, 1] | graph.initializer[1]",
    ],
    "batch_norm": [
        "conv.weight | Conv | float32[4, 3, 1, 1] | graph.initializer[0]",
        "norm.scale | BatchNormalization | float32[4] | graph.initializer[1]",
        "norm.shift | BatchNormalization | float32[4] | graph.initializer[2]",
        "norm.mean | BatchNormalization | float32[4] | graph.initializer[3]",
        "norm.variance | BatchNormalization | float32[4] | graph.initializer[4]",
    ],
    "arguments": [
        "w | MatMul | float32[6, 5] | graph.initializer[0]",
        "exponents | Pow | float32[5] | graph.initializer[1]",
        "size | Reshape | float32[2] | graph.initializer[2]",
        "factors | Resize | float64[2] | graph.initializer[3]",
        "low | Clip | float32[] | graph.node[2].attribute[0].t",
    ],
}


def described(layer: Layer) -> str:
    return f"{layer.name} | {layer.op} | {layer.dtype}{list(layer.shape)} | {', '.join(layer.places)}"


def tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor in a message, wherever it is."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in [value] if isinstance(value, Message) else value:
                yield from tensors(item)


def raw(proto: onnx.ModelProto) -> bytes:
    """A model with every tensor's numbers in raw_data: what loading and saving may change."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    for item in tensors(copy):
        if item.data_type != onnx.TensorProto.STRING and not item.HasField("raw_data"):
            values = onnx.numpy_helper.to_array(item)
            for name in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                item.ClearField(name)
            item.raw_data = values.tobytes()
    return copy.SerializeToString(deterministic=True)


def outputs(path: Path, proto: onnx.ModelProto) -> list[list[np.ndarray]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed) for feed in feeds(proto)]


def assert_same_outputs(path: Path, other: Path, proto: onnx.ModelProto) -> None:
    for run, again in zip(outputs(path, proto), outputs(other, proto), strict=True):
        for y, z in zip(run, again, strict=True):
            np.testing.assert_array_equal(y, z)


# ---- layers ---------------------------------------------------------------------------------------------------------


def test_every_form_is_described_here() -> None:
    assert set(LAYERS) == set(FORMS)


@pytest.mark.parametrize("name", FORMS)
def test_layers_hold_the_weights_bit_for_bit(name: str, tmp_path: Path) -> None:
    proto = FORMS[name]()
    loaded = Model.load(save(proto, tmp_path))
    expected = {  # from onnx, by its own path, in its own type
        item.SerializeToString(): onnx.numpy_helper.to_array(item).tobytes()
        for item in tensors(proto)
        if item.data_type in (1, 10, 11, 16)
    }
    for layer in loaded.layers:
        assert layer.values.shape == layer.shape
        assert layer.size == layer.values.size
        assert layer.values.tobytes() in expected.values()


# All others are data to compute with.
STRUCTURAL = {
    "arguments": {"exponents", "size", "factors", "low"},
    "batch_norm": {"norm.variance"},
    "function_with_optional_input": {"low", "high"},
    "int8_qdq": {"w_scale", "x_scale"},
    "integers_and_strings": {"zero"},
    "resize": {"scales"},
    "trained_for_int8": {"w_steps", "step"},
    "zeros_and_single_weights": {"scalar", "one"},
}


@pytest.mark.parametrize("name", FORMS)
def test_exactly_the_float_tensors_become_layers(name: str, tmp_path: Path) -> None:
    layers = Model.load(save(FORMS[name](), tmp_path)).layers
    assert [described(layer) for layer in layers] == LAYERS[name]
    assert {layer.name for layer in layers if layer.structural} == STRUCTURAL.get(name, set())


@pytest.mark.parametrize(
    ("nodes", "structural"),
    [
        ([node("Add", "x v", "y")], False),
        ([node("Clip", "v low", "y")], False),
        ([node("Clip", "x v", "y")], True),
        ([node("Clip", "x _ v", "y")], True),
        ([node("Identity", "v", "i"), node("Cast", "i", "c", to=10), node("Pad", "x pads c", "y")], True),
        ([node("Add", "x v", "a"), node("Pow", "a v", "y")], True),  # one use is enough
        ([node("Pow", "v x", "y")], False),
        ([node("Range", "v low low", "y")], True),
        ([node("Greater", "x v", "y")], True),
        ([node("NonMaxSuppression", "v x", "y")], False),
        ([node("NonMaxSuppression", "x x n n v", "y")], True),
        ([node("DequantizeLinear", "q v", "y")], True),
        ([node("Cast", "v", "c", to=7), node("Reshape", "x c", "y")], True),
        ([node("Cast", "v", "c", to=11), node("Add", "x c", "y")], False),
        ([node("Floor", "v", "r"), node("Cast", "r", "c", to=7), node("Gather", "x c", "y")], True),
        ([node("Ceil", "v", "r"), node("Identity", "r", "i"), node("Cast", "i", "c", to=6)], True),
        ([node("Round", "v", "r"), node("Cast", "r", "c", to=10), node("Add", "x c", "y")], False),
        ([node("BatchNormalization", "x v v v o", "y")], False),
        ([node("BatchNormalization", "x o o o v", "y")], True),
        ([node("If", "f", "y", then_branch=graph([node("Resize", "x _ v", "o")], [], [unknown("o")]))], True),
        ([node("If", "f", "y", then_branch=graph([node("Add", "x v", "o")], [], [unknown("o")]))], False),
    ],
)
def test_a_layer_is_structural_by_the_inputs_that_take_it(
    nodes: list[onnx.NodeProto], structural: bool, tmp_path: Path
) -> None:
    values = np.arange(4, dtype=np.float32)
    proto = model(nodes, [unknown("x")], [unknown("y")], [tensor("v", values)])
    assert [layer.structural for layer in Model.load(save(proto, tmp_path)).layers] == [structural]


def test_a_tensor_that_is_equal_to_a_structural_one_is_structural_with_it(tmp_path: Path) -> None:
    ones = np.ones(4, np.float32)
    proto = model(
        [node("BatchNormalization", "x scale shift mean variance", "y")],
        [unknown("x")],
        [unknown("y")],
        [tensor("scale", ones), tensor("shift", 0 * ones), tensor("mean", 0 * ones), tensor("variance", ones)],
    )
    found = {layer.name: layer.structural for layer in Model.load(save(proto, tmp_path)).layers}
    assert found == {"scale": True, "shift": False}


def test_equal_tensors_of_other_shape_or_type_are_layers_of_their_own(tmp_path: Path) -> None:
    ones = np.ones((2, 3), np.float32)
    half = np.arange(6, dtype=np.float16).reshape(2, 3)
    names = {"a": ones, "b": ones.T.copy(), "c": half, "d": ones, "plus": 0 * ones, "minus": -0.0 * ones}
    proto = model([node("Abs", "x", "y")], [info("x", 3)], [info("y", 3)], [tensor(n, v) for n, v in names.items()])
    brain = onnx.TensorProto(name="e", data_type=onnx.TensorProto.BFLOAT16, dims=[2, 3], raw_data=half.tobytes())
    proto.graph.initializer.append(brain)
    found = {layer.name: layer.places for layer in Model.load(save(proto, tmp_path)).layers}
    assert found == {
        "a": ("graph.initializer[0]", "graph.initializer[3]"),
        "b": ("graph.initializer[1]",),
        "c": ("graph.initializer[2]",),
        "plus": ("graph.initializer[4]",),
        "minus": ("graph.initializer[5]",),
        "e": ("graph.initializer[6]",),
    }


def test_tensors_that_begin_alike_are_one_layer_only_if_they_end_alike(tmp_path: Path) -> None:
    values = Random(0)(3, 400)
    values[:, 5] = np.nan
    values[1:, :-1] = values[0, :-1]
    names = {"a": 0, "b": 1, "c": 2, "d": 1, "e": 0}
    proto = model(
        [node("Sum", f"x {' '.join(names)}", "y")],
        [info("x", 400)],
        [info("y", 400)],
        [tensor(name, values[number]) for name, number in names.items()],
    )
    found = {layer.name: layer.places for layer in Model.load(save(proto, tmp_path)).layers}
    places = [f"graph.initializer[{number}]" for number in range(5)]
    assert found == {"a": (places[0], places[4]), "b": (places[1], places[3]), "c": (places[2],)}


# ---- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
def test_loading_and_serializing_changes_nothing_but_where_numbers_are_stored(name: str, tmp_path: Path) -> None:
    proto = FORMS[name]()
    back = Model.load(save(proto, tmp_path)).to_bytes()
    assert raw(onnx.ModelProto.FromString(back)) == raw(proto)
    if name not in ("float_data", "bfloat16"):
        assert back == proto.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", FORMS)
def test_select_puts_layers_back_into_the_skeleton(name: str, tmp_path: Path) -> None:
    proto = FORMS[name]()
    whole = Model.load(save(proto, tmp_path))
    before = whole.skeleton_bytes()
    matrices = whole.select(lambda layer: len(layer.shape) >= 2)
    assert [layer.name for layer in matrices.layers] == [x.name for x in whole.layers if len(x.shape) >= 2]
    assert matrices.source == whole.source
    assert raw(onnx.ModelProto.FromString(matrices.to_bytes())) == raw(proto)
    nothing = matrices.select(lambda _: False)
    assert nothing.layers == ()
    assert nothing.skeleton_bytes() == proto.SerializeToString(deterministic=True)  # typed fields as they were
    assert whole.skeleton_bytes() == before  # and leaves the model as it was


@pytest.mark.parametrize("name", FORMS)
def test_a_skeleton_and_its_layers_make_the_model_again(name: str, tmp_path: Path) -> None:
    first = Model.load(save(FORMS[name](), tmp_path))
    again = Model.from_skeleton(first.skeleton_bytes(), first.layers)
    assert again.to_bytes() == first.to_bytes()
    assert again.skeleton_bytes() == first.skeleton_bytes()
    assert again.inputs == first.inputs


@pytest.mark.parametrize("name", FORMS)
def test_a_saved_model_passes_the_checker_and_runs_the_same(name: str, tmp_path: Path) -> None:
    proto = FORMS[name]()
    source = save(proto, tmp_path)
    Model.load(source).save(tmp_path / "saved.onnx")
    # The shape inference of onnx's checker knows no sparse tensors.
    onnx.checker.check_model(tmp_path / "saved.onnx", full_check=name != "sparse")
    assert_same_outputs(source, tmp_path / "saved.onnx", proto)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "saved.onnx"]


def test_saving_leaves_an_existing_file_alone_unless_told(tmp_path: Path) -> None:
    source = save(matmul(), tmp_path)
    (tmp_path / "saved.onnx").write_bytes(b"precious")
    loaded = Model.load(source)
    with pytest.raises(OutputError, match=r"saved\.onnx: exists already"):
        loaded.save(tmp_path / "saved.onnx")
    assert (tmp_path / "saved.onnx").read_bytes() == b"precious"
    loaded.save(tmp_path / "saved.onnx", overwrite=True)
    assert (tmp_path / "saved.onnx").read_bytes() == source.read_bytes()


# ---- source and inputs ----------------------------------------------------------------------------------------------


def test_the_source_is_the_size_and_hash_of_the_file_and_of_those_beside_it(tmp_path: Path) -> None:
    path = save(conv(), tmp_path, "inside.onnx")
    assert Model.load(path).source == Source(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    path = save_external(conv(), tmp_path)
    both = path.read_bytes() + (tmp_path / "weights.bin").read_bytes()
    assert Model.load(path).source == Source(len(both), hashlib.sha256(both).hexdigest())


def absolute(fed: onnx.ValueInfoProto) -> onnx.ModelProto:
    return model([node("Abs", "x", "y")], [fed], [unknown("y")])


INPUTS = {
    "embedding": (
        embedding(),
        ModelInput("ids", "int64", ("batch", "length"), 11),
        ModelInput("mask", "int64", ("batch", "length")),
        ModelInput("rate", "int64", ()),
    ),
    "lstm": (
        lstm(),
        ModelInput("x", "float32", ("time", "batch", 3)),
        ModelInput("h", "float32", (1, "batch", 4)),
        ModelInput("c", "float32", (1, "batch", 4)),
    ),
    "initializers among them": (initializers_as_inputs(), ModelInput("x", "float32", (3, 6))),
    "no name": (absolute(info("x", None, 6)), ModelInput("x", "float32", (None, 6))),
    "size 0": (absolute(info("x", 0, 6)), ModelInput("x", "float32", (0, 6))),
    "size −1": (absolute(info("x", -1, 6)), ModelInput("x", "float32", (None, 6))),
    "no shape": (absolute(unknown("x")), ModelInput("x", "float32", None)),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_name_their_free_dimensions_and_the_vocabulary_behind_them(name: str, tmp_path: Path) -> None:
    proto, *inputs = INPUTS[name]
    assert Model.load(save(proto, tmp_path)).inputs == tuple(inputs)


TURNED = node("Transpose", "table", "t")
DEQUANTIZED = node("DequantizeLinear", "bytes scale", "t")
VOCABULARY: list[tuple[list[onnx.NodeProto], int | None]] = [
    ([node("Gather", "table ids", "y")], 11),
    ([node("Gather", "table ids", "y", axis=1)], 6),
    ([node("Gather", "table ids", "y", axis=-2)], 11),
    ([node("Gather", "table ids", "y", axis=5)], None),
    ([node("Cast", "ids", "i", to=7), node("Gather", "table i", "y")], 11),
    ([node("Unsqueeze", "ids zero", "i"), node("Squeeze", "i zero", "j"), node("Gather", "table j", "y")], 11),
    ([node("Gather", "table ids", "a"), node("Gather", "small ids", "b"), node("Add", "a b", "y")], 4),
    ([node("Gather", "ids zero", "y")], None),
    ([node("Add", "ids zero", "i"), node("Gather", "table i", "y")], None),
    ([DEQUANTIZED, node("Gather", "t ids", "y")], 11),
    ([DEQUANTIZED, node("Identity", "t", "u"), node("Cast", "u", "v", to=10), node("Gather", "v ids", "y")], 11),
    ([TURNED, node("Gather", "t ids", "y")], 6),
    ([TURNED, node("Gather", "t ids", "y", axis=1)], 11),
    ([node("Transpose", "table", "t", perm=[1, 0]), node("Gather", "t ids", "y", axis=-1)], 11),
    ([node("Reshape", "table shape", "t"), node("Gather", "t ids", "y")], None),  # any number may have come of it
]


@pytest.mark.parametrize(("nodes", "size"), VOCABULARY)
def test_the_vocabulary_is_the_smallest_table_that_ids_index(
    nodes: list[onnx.NodeProto], size: int | None, tmp_path: Path
) -> None:
    r = Random(0)
    constants = {
        "table": r(11, 6), "small": r(4, 6), "bytes": np.ones((11, 6), np.int8), "scale": np.array(0.5, np.float32),
        "zero": np.array([0]), "shape": np.array([6, 11]),
    }  # fmt: skip
    proto = model(
        nodes,
        [info("ids", 2, dtype=onnx.TensorProto.INT64)],
        [info("y", None, None)],
        [tensor(name, values) for name, values in constants.items()],
    )
    assert Model.load(save(proto, tmp_path)).inputs[0].vocabulary == size


@pytest.mark.parametrize("rows", [(5, 50), (50, 5)])
def test_the_vocabulary_respects_the_tables_of_both_branches(rows: tuple[int, int], tmp_path: Path) -> None:
    branches = {
        f"{name}_branch": graph([node("Gather", "table ids", "o")], [], [info("o", 2, 6)], [tensor("table", table)])
        for name, table in zip(("then", "else"), (np.ones((count, 6), np.float32) for count in rows), strict=True)
    }
    proto = model(
        [node("If", "flag", "y", **branches)],
        [info("ids", 2, dtype=onnx.TensorProto.INT64), info("flag", dtype=onnx.TensorProto.BOOL)],
        [info("y", 2, 6)],
    )
    assert Model.load(save(proto, tmp_path)).inputs[0].vocabulary == 5


def test_an_input_that_is_no_tensor_is_an_error_with_its_name(tmp_path: Path) -> None:
    sequence = onnx.helper.make_tensor_sequence_value_info("many", onnx.TensorProto.FLOAT, None)
    proto = model([node("SequenceLength", "many", "y")], [sequence], [info("y", dtype=onnx.TensorProto.INT64)])
    loaded = Model.load(save(proto, tmp_path))
    with pytest.raises(ModelError, match="input 'many' is not a tensor; riq cannot feed it"):
        _ = loaded.inputs


# ---- skeletons that lie ---------------------------------------------------------------------------------------------


def _parts(tmp_path: Path) -> tuple[onnx.ModelProto, Layer]:
    loaded = Model.load(save(matmul(), tmp_path))
    return onnx.ModelProto.FromString(loaded.skeleton_bytes()), loaded.layers[0]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("graph.initializer[9]", r"graph\.initializer\[9\]: the skeleton holds nothing there"),
        ("graph.node[0].attribute[0].t", "the skeleton holds nothing there"),
        ("graph.node[0]", "not the path of a tensor"),
        ("graph.initializer", "not the path of a tensor"),
        ("graph.name", "not the path of a tensor"),
        ("functions[0].node[0]", "the skeleton holds nothing there"),
        ("graph.initializer[0].dims[0]", "not the path of a tensor"),
        ("graph.initializer[-1]", "not the path of a tensor"),
        ("graph..initializer[0]", "not the path of a tensor"),
        ("__class__.graph", "not the path of a tensor"),
        ("", "not the path of a tensor"),
        ("graph[0]", "holds nothing there"),
        ("graph.node.attribute", "not the path of a tensor"),
        ("graph.initializer[99999999999999999999]", "holds nothing there"),
    ],
)
def test_a_layer_whose_place_does_not_exist_is_corrupt(place: str, message: str, tmp_path: Path) -> None:
    skeleton, layer = _parts(tmp_path)
    with pytest.raises(CorruptArchive, match=message):
        Model.from_skeleton(skeleton.SerializeToString(), [replace(layer, places=(place,))])


def test_a_layer_of_another_shape_or_type_is_corrupt(tmp_path: Path) -> None:
    skeleton, layer = _parts(tmp_path)
    for other in (replace(layer, shape=(5, 6), values=layer.values.T), replace(layer, dtype="float16")):
        with pytest.raises(CorruptArchive, match=r"layer 'w': graph\.initializer\[0\] has another shape or type"):
            Model.from_skeleton(skeleton.SerializeToString(), [other])


@pytest.mark.parametrize("field", ["raw_data", "float_data", "int32_data", "external_data"])
def test_a_place_that_holds_data_of_its_own_is_corrupt(field: str, tmp_path: Path) -> None:
    skeleton, layer = _parts(tmp_path)
    target = skeleton.graph.initializer[0]
    if field == "raw_data":
        target.raw_data = bytes(120)
    elif field == "external_data":
        target.external_data.add(key="location", value="secrets.bin")
    else:
        getattr(target, field).append(1)
    with pytest.raises(CorruptArchive, match=r"layer 'w': graph\.initializer\[0\] holds data of its own"):
        Model.from_skeleton(skeleton.SerializeToString(), [layer])


@pytest.mark.parametrize("where", ["initializer", "constant", "branch", "function", "sparse", "attribute", "training"])
def test_a_skeleton_that_points_at_a_file_is_corrupt(where: str, tmp_path: Path) -> None:
    skeleton, layer = _parts(tmp_path)
    outside = onnx.TensorProto(name="o", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="/etc/passwd")
    inner = onnx.GraphProto(initializer=[outside])
    if where == "initializer":
        skeleton.graph.initializer.append(outside)
    elif where == "constant":
        skeleton.graph.node.append(onnx.helper.make_node("Constant", [], ["c"], value=outside))
    elif where == "branch":
        skeleton.graph.node.append(onnx.helper.make_node("If", ["f"], ["i"], then_branch=inner, else_branch=inner))
    elif where == "function":
        skeleton.functions.add(node=[onnx.helper.make_node("Constant", [], ["c"], value=outside)])
    elif where == "sparse":
        skeleton.graph.sparse_initializer.add(dims=[4]).values.CopyFrom(outside)
    elif where == "attribute":
        skeleton.graph.node.append(onnx.helper.make_node("Anything", [], ["c"], domain="some.where", pieces=[outside]))
    else:
        skeleton.training_info.add().initialization.CopyFrom(inner)
    with pytest.raises(CorruptArchive, match="the skeleton refers to external data, which archives never do"):
        Model.from_skeleton(skeleton.SerializeToString(), [layer])


def test_a_skeleton_that_is_no_model_is_corrupt() -> None:
    with pytest.raises(CorruptArchive, match="the skeleton is not an ONNX model; the archive is damaged"):
        Model.from_skeleton(b"\xff\xff\xff\xff", [])


# ---- files that are no models ---------------------------------------------------------------------------------------


NO_MODELS = {
    "cut off": conv().SerializeToString()[:-100], "empty": b"", "text": b"# A text\n\nthat is no model.\n",
    "zeros": bytes(64), "png": b"\x89PNG\r\n\x1a\n", "zip": b"PK\x03\x04", "version only": b"\x08\x08",
}  # fmt: skip


@pytest.mark.parametrize("content", NO_MODELS.values(), ids=NO_MODELS)
def test_a_file_that_is_no_model_is_an_error_that_names_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx: not an ONNX model"):
        Model.load(path)


def test_a_missing_model_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.onnx"):
        Model.load(tmp_path / "nowhere.onnx")


def test_raw_data_that_does_not_fill_the_shape_is_an_error_that_names_the_tensor(tmp_path: Path) -> None:
    proto = matmul()
    proto.graph.initializer[0].raw_data = bytes(116)
    with pytest.raises(ModelError, match=r"tensor 'w': 116 bytes do not fill the shape \[6, 5\]"):
        Model.load(save(proto, tmp_path))


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"])
def test_typed_data_that_does_not_fill_the_shape_is_an_error_that_names_the_tensor(kind: str, tmp_path: Path) -> None:
    number = onnx.TensorProto.DataType.Value(kind)
    wrong = onnx.TensorProto(name="wrong", data_type=number, dims=[2, 3])
    field = {"FLOAT": "float_data", "DOUBLE": "double_data"}.get(kind, "int32_data")
    getattr(wrong, field).extend([1, 2, 3, 4, 5])
    proto = matmul()
    proto.graph.initializer.append(wrong)
    with pytest.raises(ModelError, match=r"tensor 'wrong'.*\[2, 3\]"):
        Model.load(save(proto, tmp_path))


# ---- external data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
def test_external_data_makes_the_same_model(name: str, tmp_path: Path) -> None:
    proto = FORMS[name]()
    inside = Model.load(save(proto, tmp_path, "inside.onnx"))
    outside = Model.load(save_external(proto, tmp_path))
    assert [described(layer) for layer in outside.layers] == LAYERS[name]
    assert raw(onnx.ModelProto.FromString(outside.to_bytes())) == raw(onnx.ModelProto.FromString(inside.to_bytes()))


def test_references_to_files_that_are_left_behind_are_dropped(tmp_path: Path) -> None:
    proto = folded_transpose()
    for item in proto.graph.initializer:
        item.external_data.add(key="location", value="long-gone.bin")
    loaded = Model.load(save(proto, tmp_path))
    Model.from_skeleton(loaded.skeleton_bytes(), loaded.layers)  # refuses skeletons that refer to files
    assert loaded.to_bytes() == folded_transpose().SerializeToString(deterministic=True)


@pytest.mark.parametrize("builder", [folded_transpose, int8_qdq, trees, resize])
def test_serializing_twice_gives_the_same_bytes(builder: object, tmp_path: Path) -> None:
    path = save(builder(), tmp_path)  # type: ignore[operator]
    assert Model.load(path).to_bytes() == Model.load(path).to_bytes()
    assert Model.load(path).skeleton_bytes() == Model.load(path).skeleton_bytes()
