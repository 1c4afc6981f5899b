"""Models that are odd or made to harm: what onnxruntime runs is compressed, anything else is one line of error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import FORMS, Random, constant, graph, info, model, node, save, tensor, unknown

import riq_cli as riq
from riq_cli.errors import ModelError, RiqError
from riq_cli.model import Model
from riq_cli.pipeline import PRESETS
from tests import builders
from tests.test_wire import field

MATMUL = node("MatMul", "x w", "a")
CONDITION = info("c", dtype=onnx.TensorProto.BOOL)


def with_nodes(*nodes: onnx.NodeProto, inputs: tuple[onnx.ValueInfoProto, ...] = ()) -> onnx.ModelProto:
    """A model whose first node is a product with its only weight."""
    weight = tensor("w", Random(0)(6, 6))
    return model([MATMUL, *nodes], [info("x", "batch", 6), *inputs], [info("y", "batch", 6)], [weight])


def compressed(proto: onnx.ModelProto, folder: Path, **options: Any) -> tuple[riq.Archive, list[str]]:
    """An archive by the fast preset that restores to a model, and the warnings."""
    warnings: list[str] = []
    loaded = Model.load(save(proto, folder))
    data = riq.Calibration.from_feeds(builders.feeds(proto, 8))
    archive = riq.compress(loaded, data, **PRESETS["fast"] | options, min_size=1, warn=warnings.append)
    assert riq.verify(archive, loaded, data).mean == archive.manifest.result.get("deviation", 0)
    return archive, warnings


def refused(proto: onnx.ModelProto, folder: Path, message: str = "") -> None:
    """It ends with one line, before a session or in it."""
    with pytest.raises(RiqError, match=message) as caught:
        riq.compress(Model.load(save(proto, folder)), **PRESETS["fast"], min_size=1)
    assert "\n" not in str(caught.value)


# ---- nodes ----------------------------------------------------------------------------------------------------------

LOOKED_INTO = sorted(
    {"Bernoulli", "Cast", "Constant", "Conv", "DequantizeLinear", "Div", "Gather", "Gemm", "Identity", "If", "LSTM",
     "Log", "Loop", "Multinomial", "QuantizeLinear", "RandomNormalLike", "Reciprocal", "Reshape", "Softmax", "Sub",
     "TopK", "Transpose"}
)  # fmt: skip


@pytest.mark.parametrize("op", LOOKED_INTO)
@pytest.mark.parametrize("inputs", ["", "w", "a w", "- -"])
@pytest.mark.parametrize("outputs", ["y", "", "- -"])
def test_a_node_may_lack_anything(op: str, inputs: str, outputs: str, tmp_path: Path) -> None:
    """Some of these run; of the others onnxruntime says what is wrong."""
    odd = onnx.helper.make_node(op, *([name.strip("-") for name in names.split()] for names in (inputs, outputs)))
    last = [] if outputs == "y" else [node("Identity", "a", "y")]
    loaded = Model.load(save(with_nodes(odd, *last), tmp_path))
    form = loaded.session_form()
    assert loaded.inputs[0].name == "x"
    assert "y" in form.measured


CIRCLES = {
    "of itself": [node("Identity", "y", "y")],
    "of two": [node("Identity", "b", "y"), node("Identity", "y", "b")],
    "of activations": [node("Softmax", "b", "y"), node("Sigmoid", "y", "b")],
    "of logarithms": [node("Log", "b", "y"), node("Log", "y", "b")],
    "behind a quotient": [node("Cast", "b", "c", to=1), node("Cast", "c", "b", to=1), node("Div", "b c", "y")],
}


@pytest.mark.parametrize("name", CIRCLES)
def test_a_graph_that_goes_in_a_circle_is_refused(name: str, tmp_path: Path) -> None:
    refused(with_nodes(*CIRCLES[name]), tmp_path, "onnxruntime cannot run the model")


def branch(*outputs: str) -> onnx.GraphProto:
    return graph([node("Softmax", "a", name) for name in outputs], [], [unknown(name) for name in outputs])


@pytest.mark.parametrize(
    "branches",
    [{}, {"then_branch": branch("s")}, {"then_branch": branch("s"), "else_branch": branch()},
     {"then_branch": branch(), "else_branch": branch()}],
)  # fmt: skip
def test_an_if_without_branches_or_with_too_few_outputs_is_refused(
    branches: dict[str, onnx.GraphProto], tmp_path: Path
) -> None:
    proto = with_nodes(node("If", "c", "y", **branches), inputs=(CONDITION,))
    refused(proto, tmp_path, "onnxruntime cannot run the model")


def test_a_quotient_of_constants_alone_is_no_activation(tmp_path: Path) -> None:
    quotient = [constant("one", np.ones((), np.float32)), node("Cast", "one", "b", to=1), node("Div", "one b", "c")]
    proto = with_nodes(*quotient, node("Mul", "a c", "y"))
    assert compressed(proto, tmp_path)[0].manifest.result["measured"][0]["name"] == "y"


# ---- functions and depth --------------------------------------------------------------------------------------------


def calling(*bodies: list[onnx.NodeProto]) -> onnx.ModelProto:
    """A model that calls function F0 of these; each takes a and gives b."""
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("f", 1)]
    functions = [
        onnx.helper.make_function("f", f"F{number}", ["a"], ["b"], body, opsets) for number, body in enumerate(bodies)
    ]
    nodes = [node("F0", "x", "y", domain="f")]
    main = graph(nodes, [info("x", "batch", 6)], [info("y", "batch", 6)])
    return onnx.helper.make_model(main, opset_imports=opsets, functions=functions, ir_version=8)


def call(number: int, inputs: str = "a", outputs: str = "b") -> onnx.NodeProto:
    return node(f"F{number}", inputs, outputs, domain="f")


LEAF = [constant("w", Random(0)(6, 6)), node("MatMul", "a w", "b")]


@pytest.mark.parametrize(
    ("bodies", "circle"),
    [([[call(0)]], "F0 → F0"), ([[call(1)], [call(2)], [call(1)]], "F1 → F2 → F1|F2 → F1 → F2"),
     ([LEAF, [call(1)]], "F1 → F1")],
)  # fmt: skip
def test_a_function_that_calls_itself_is_refused(
    bodies: list[list[onnx.NodeProto]], circle: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=f"^a function of the model calls itself: ({circle}); nothing can run that$"):
        Model.load(save(calling(*bodies), tmp_path))


def test_functions_that_call_each_other_in_a_chain_are_compressed(tmp_path: Path) -> None:
    archive, _ = compressed(calling(*([call(n + 1)] for n in range(12)), LEAF), tmp_path)
    assert [entry.name for entry in archive.manifest.layers] == ["w"]


def test_a_weight_goes_down_chains_of_any_length_and_ways_of_any_number(tmp_path: Path) -> None:
    """onnxruntime stops at some depth, with an error of its own; riq at none."""
    chain = calling(*([call(n + 1)] for n in range(3000)), LEAF)
    ways = calling(*([call(n + 1, "a", "c"), call(n + 1, "c", "b")] for n in range(40)), LEAF)  # 2⁴⁰ of them
    for proto in (chain, ways):
        form = onnx.ModelProto.FromString(Model.load(save(proto, tmp_path)).session_form().model)
        assert all(list(function.input) == ["a", "riq/layer0"] for function in form.functions)


def nested(depth: int) -> onnx.ModelProto:
    """A product inside of so many Ifs."""
    inner = graph([node("MatMul", "x w", "o0")], [], [unknown("o0")])
    for level in range(depth):
        other = graph([node("Identity", "x", f"e{level}")], [], [unknown(f"e{level}")])
        chosen = node("If", "c", f"o{level + 1}", then_branch=inner, else_branch=other)
        inner = graph([chosen], [], [unknown(f"o{level + 1}")])
    inner.input.extend([info("x", "batch", 6), CONDITION])
    inner.initializer.append(tensor("w", Random(0)(6, 6)))
    return model(list(inner.node), list(inner.input), list(inner.output), list(inner.initializer))


def test_subgraphs_are_as_deep_as_protobuf_reads(tmp_path: Path) -> None:
    loaded = Model.load(save(nested(31), tmp_path))
    assert len(onnx.ModelProto.FromString(loaded.session_form().model).graph.initializer) == 1
    deeper = b""
    for _ in range(60):  # by hand, since onnx refuses to
        for number in (6, 5, 1):  # GraphProto in AttributeProto in NodeProto
            deeper = field(number, deeper)
    (tmp_path / "deep.onnx").write_bytes(field(7, deeper))  # ModelProto.graph
    with pytest.raises(ModelError, match=r"deep\.onnx: not an ONNX model"):
        Model.load(tmp_path / "deep.onnx")


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["xxxx", "wwww", "aaaa", "yyyy", "dddd", "Relu"])
def test_a_name_that_is_not_utf8_is_an_error(name: str, tmp_path: Path) -> None:
    proto = model([node("MatMul", "xxxx wwww", "aaaa"), node("Relu", "aaaa", "yyyy")], [info("xxxx", "dddd", 6)],
                  [info("yyyy", "batch", 6)], [tensor("wwww", Random(0)(6, 6))])  # fmt: skip
    data = proto.SerializeToString().replace(name.encode(), b"\xff\xfe\xfd\xfc")
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(ModelError, match=r"is not valid UTF-8.*; rename it$"):
        Model.load(tmp_path / "model.onnx")


@pytest.mark.skipif(sys.platform == "win32", reason="names of files there are text")
def test_notes_that_are_not_utf8_come_back(tmp_path: Path) -> None:
    proto = with_nodes(node("Relu", "a", "y"))
    proto.doc_string, proto.graph.doc_string, proto.graph.node[0].doc_string = "ZZZ", "ZZZ", "ZZZ"
    data = proto.SerializeToString(deterministic=True).replace(b"ZZZ", b"gr\xfcn"[:3])
    (tmp_path / "model.onnx").write_bytes(data)
    assert Model.load(tmp_path / "model.onnx").to_bytes() == data


def test_a_name_given_twice_stays_exact_and_is_told(tmp_path: Path) -> None:
    proto = with_nodes(node("MatMul", "a v", "b"), node("Relu", "b", "y"))
    proto.graph.initializer.extend([tensor("v", Random(1)(6, 6)), tensor("w", Random(2)(6, 6))])
    archive, warnings = compressed(proto, tmp_path)
    assert [entry.name for entry in archive.manifest.layers] == ["v"]
    assert warnings == [
        "the model gives the name 'w' to several tensors, which are kept exact: which of them is used depends on the "
        "version of onnxruntime; rename or remove the others"
    ]
    restored = riq.decompress(archive).skeleton.graph.initializer
    assert [restored[n].raw_data for n in (0, 2)] == [proto.graph.initializer[n].raw_data for n in (0, 2)]


def test_tensors_without_a_name_are_nobodys(tmp_path: Path) -> None:
    proto = with_nodes(node("Relu", "a", "y"))
    proto.graph.initializer.extend(tensor("", Random(seed)(4, 3)) for seed in (1, 2))  # onnxruntime takes small ones
    archive, warnings = compressed(proto, tmp_path)
    assert [entry.name for entry in archive.manifest.layers] == ["w"]
    assert warnings == []


# ---- tensors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "message"),
    [([-6, 6], "its shape .* has a negative length"), ([-6, -6], "its shape .* has a negative length"),
     ([2**62, 2**62], "144 bytes do not fill the shape"), ([2**33, 2**31], "144 bytes do not fill the shape"),
     ([6], "144 bytes do not fill the shape"), ([], "144 bytes do not fill the shape")],
)  # fmt: skip
def test_an_impossible_shape_is_an_error_with_the_tensors_name(dims: list[int], message: str, tmp_path: Path) -> None:
    proto = with_nodes(node("Relu", "a", "y"))
    proto.graph.initializer[0].dims[:] = dims
    with pytest.raises(ModelError, match=f"^tensor 'w': {message}"):
        Model.load(save(proto, tmp_path))


def test_a_shape_of_more_axes_than_numpy_has_is_no_layer(tmp_path: Path) -> None:
    proto = with_nodes(node("Relu", "a", "y"))
    proto.graph.initializer.append(tensor("long", np.ones(4, np.float32)))
    proto.graph.initializer[-1].dims[:] = [4] + [1] * 99
    assert [layer.name for layer in Model.load(save(proto, tmp_path)).layers] == ["w"]


EDITS: dict[str, tuple[Callable[[onnx.GraphProto], object], str]] = {
    "input of no type": (lambda g: g.input[0].ClearField("type"), "input 'x' is not a tensor"),
    "input of type 0": (lambda g: setattr(g.input[0].type.tensor_type, "elem_type", 0), "input 'x' has no data type"),
    "input of type 99": (lambda g: setattr(g.input[0].type.tensor_type, "elem_type", 99), "input 'x' has no data type"),
    "input twice": (lambda g: g.input.add().CopyFrom(g.input[0]), "onnxruntime cannot run"),
    "output of nothing": (lambda g: setattr(g.output[0], "name", "nowhere"), "onnxruntime cannot run"),
    "weight of another type": (lambda g: setattr(g.initializer[0], "data_type", 11), "do not fill the shape"),
    "constant without a value": (lambda g: g.node.append(node("Constant", "", "k")), "onnxruntime cannot run"),
    "two nodes of one output": (lambda g: g.node.append(MATMUL), "onnxruntime cannot run"),
    "input of any size": (
        lambda g: setattr(g.input[0].type.tensor_type.shape.dim[0], "dim_value", 2**62),
        "input 'x': its shape .* is too large to make up samples for",
    ),
    "no nodes": (lambda g: g.ClearField("node"), "onnxruntime cannot run"),
    "nothing": (lambda g: g.Clear(), "not an ONNX model"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_what_no_session_runs_is_one_line(name: str, tmp_path: Path) -> None:
    proto = with_nodes(node("Relu", "a", "y"))
    edit, message = EDITS[name]
    edit(proto.graph)
    refused(proto, tmp_path, message)


def test_without_an_opset_onnxruntime_says_what_is_wrong(tmp_path: Path) -> None:
    proto = with_nodes(node("Relu", "a", "y"))
    proto.ClearField("opset_import")
    refused(proto, tmp_path, "onnxruntime cannot run the model")


@pytest.mark.parametrize("seed", range(10))
def test_damage_gives_a_model_or_an_error_of_its_own(seed: int, tmp_path: Path) -> None:
    """Bytes of forms that were changed at random, most of them in names, types, shapes and lengths."""
    random = np.random.default_rng(seed)
    name = list(FORMS)[random.integers(len(FORMS))]
    for _ in range(25):
        data = bytearray(FORMS[name]().SerializeToString())
        for _ in range(random.integers(1, 4)):
            data[random.integers(len(data))] = random.choice([0, 1, 2, 7, 11, 16, 127, 128, 255, random.integers(256)])
        (tmp_path / "model.onnx").write_bytes(data)
        try:
            loaded = Model.load(tmp_path / "model.onnx")
            assert loaded.inputs is not None
            loaded.session_form()
            loaded.session_form(hoist=False)
            loaded.select(lambda _: False).to_bytes()
        except RiqError as error:
            assert "\n" not in str(error)
