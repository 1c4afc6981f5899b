"""A graph as plain data: operations in their order, constants by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import BOOL, FORMS, Random, constant, graph, info, model, node, save, tensor, unknown
from onnx import helper

from riq_cli.model import Model, Operation, operations


def of(proto: onnx.ModelProto, folder: Path) -> tuple[list[Operation], dict[str, np.ndarray]]:
    return operations(Model.load(save(proto, folder)).session_form())


def chain(*nodes: onnx.NodeProto, initializers: tuple[onnx.TensorProto, ...] = ()) -> onnx.ModelProto:
    """From x [2, 6] to y, which come out of the nodes."""
    return model(list(nodes), [info("x", 2, 6)], [unknown("y")], initializers, domains=[("com.microsoft", 1)])


def test_operations_come_in_the_order_in_which_they_run(tmp_path: Path) -> None:
    found, constants = of(
        chain(
            node("MatMul", "x w", "h"),
            node("Clip", "h _ most", "c"),
            node("Split", "c sizes", "a b", axis=1),
            node("Sub", "a b", "y"),
            initializers=(
                tensor("w", Random(0)(6, 4)),
                tensor("most", np.array(1, np.float32)),
                tensor("sizes", np.array([2, 2])),
            ),
        ),
        tmp_path,
    )
    assert found == [
        Operation("MatMul", ("x", "w"), ("h",), {}, 17),
        Operation("Clip", ("h", "", "most"), ("c",), {}, 17),
        Operation("Split", ("c", "sizes"), ("a", "b"), {"axis": 1}, 17),
        Operation("Sub", ("a", "b"), ("y",), {}, 17),
    ]
    assert list(constants) == ["sizes"]
    np.testing.assert_array_equal(constants["sizes"], [2, 2])


def test_an_output_that_is_left_out_is_an_empty_name(tmp_path: Path) -> None:
    r = Random(0)
    proto = chain(
        node("Unsqueeze", "x axis", "s"),
        helper.make_node("LSTM", ["s", "w", "r"], ["", "", "y"], hidden_size=4),
        initializers=(tensor("axis", np.array([0])), tensor("w", r(1, 16, 6)), tensor("r", r(1, 16, 4))),
    )
    assert of(proto, tmp_path)[0][1].outputs == ("", "", "y")


def test_attributes_are_plain_values(tmp_path: Path) -> None:
    (cast, custom, _), _ = of(
        chain(
            helper.make_node("Cast", ["x"], ["a"], to=onnx.TensorProto.FLOAT),
            helper.make_node(
                "Anything",
                ["a"],
                ["b"],
                domain="own",
                number=3,
                part=0.5,
                word="SAME_UPPER",
                numbers=[1, 2],
                parts=[0.5, 0.25],
                words=["Sigmoid", "Tanh"],
                values=tensor("", np.array([[1, 2]], np.int64)),
            ),
            node("Identity", "b", "y"),
        ),
        tmp_path,
    )
    assert cast.attributes == {"to": 1}
    values = dict(custom.attributes)
    np.testing.assert_array_equal(values.pop("values"), np.array([[1, 2]], np.int64))
    assert values == {
        "number": 3,
        "part": 0.5,
        "word": "SAME_UPPER",
        "numbers": [1, 2],
        "parts": [0.5, 0.25],
        "words": ["Sigmoid", "Tanh"],
    }


def test_kinds_and_versions_tell_the_domain(tmp_path: Path) -> None:
    proto = model(
        [
            node("Relu", "x", "a", domain="ai.onnx"),
            node("Gelu", "a", "b", domain="com.microsoft"),
            node("Gelu", "b", "c", domain="nowhere"),
            node("Relu", "c", "y"),
        ],
        [info("x", 2, 6)],
        [unknown("y")],
        [],
        domains=[("com.microsoft", 1), ("other", 5)],
        opset=13,
    )
    found, _ = of(proto, tmp_path)
    assert [(item.kind, item.version) for item in found] == [
        ("Relu", 13),
        ("com.microsoft:Gelu", 1),
        ("nowhere:Gelu", 1),
        ("Relu", 13),
    ]


def test_constant_nodes_are_constants_and_layers_are_not(tmp_path: Path) -> None:
    found, constants = of(
        chain(
            constant("shape", np.array([3, 4])),
            constant("w", Random(0)(6, 30)),
            node("MatMul", "x w", "h"),
            node("Constant", "", "half", value_float=0.5),
            node("Mul", "h half", "y"),
        ),
        tmp_path,
    )
    assert [item.kind for item in found] == ["MatMul", "Constant", "Mul"]
    assert found[1] == Operation("Constant", (), ("half",), {"value_float": 0.5}, 17)
    assert list(constants) == ["shape"]
    np.testing.assert_array_equal(constants["shape"], [3, 4])


def test_subgraphs_are_left_out_but_what_they_read_is_an_input(tmp_path: Path) -> None:
    """It comes after the operation's own inputs, each once; what a branch computes for itself is no input."""
    then = graph([node("Neg", "h", "n"), node("Add", "n k", "o")], [], [unknown("o")], name="then")
    other = graph([node("Mul", "h x", "o")], [], [unknown("o")], name="else")
    proto = model(
        [node("MatMul", "x w", "h"), node("If", "flag", "y", then_branch=then, else_branch=other)],
        [info("x", 2, 6), info("flag", dtype=BOOL)],
        [unknown("y")],
        [tensor("w", Random(0)(6, 6)), tensor("k", np.array(1, np.float32))],
    )
    found, _ = of(proto, tmp_path)
    assert [item.kind for item in found] == ["MatMul", "If"]
    assert found[1].attributes == {}
    assert found[1].inputs[0] == "flag"
    assert sorted(found[1].inputs[1:]) == ["h", "k", "x"]


@pytest.mark.parametrize("name", sorted(FORMS))
def test_every_form_is_told(name: str, tmp_path: Path) -> None:
    """Every input of every operation is a graph's input, a constant, a layer, or an output of an operation before."""
    form = Model.load(save(FORMS[name](), tmp_path)).session_form()
    found, constants = operations(form)
    assert constants.keys().isdisjoint(name for name, _ in form.weights)
    given = onnx.ModelProto.FromString(form.model).graph
    known = {item.name for item in given.input} | {item.values.name for item in given.sparse_initializer}
    known |= constants.keys() | {name for name, _ in form.weights} | {""}
    for operation in found:
        assert known.issuperset(operation.inputs)
        known |= set(operation.outputs)
    assert known.issuperset(form.measured)
