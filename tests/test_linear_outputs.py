"""What products give out: cut into rows, it is the matrices times the rows of what entered, position by position."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Random, info, model, node, tensor, unknown
from test_linear import BATCH, BATCHED, GATES, STEPS, Found, recurrent

from riq_cli.model import GateOutput, operations
from riq_cli.runtime import Observer, Runtime
from riq_cli.statistics.autodiff import gate_gradients

KERNELS: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [  # weight, x, attributes
    ("Conv", (4, 3, 3), (2, 3, 9), {"strides": [2], "pads": [1, 0]}),
    ("Conv", (4, 3, 3, 2), (2, 3, 7, 6), {"pads": [1, 0, 0, 1], "dilations": [2, 1]}),
    ("Conv", (6, 2, 3, 3), (2, 4, 6, 5), {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    ("Conv", (6, 1, 3), (2, 6, 8), {"group": 6}),
    ("Conv", (4, 3, 1, 1), (3, 3, 4, 5), {}),
    ("ConvTranspose", (3, 4, 3), (2, 3, 5), {"strides": [2], "output_padding": [1]}),
    ("ConvTranspose", (4, 3, 2, 3), (2, 4, 4, 3), {"group": 2, "strides": [2, 1], "pads": [0, 1, 1, 1]}),
    ("ConvTranspose", (4, 1, 3, 3), (2, 4, 4, 3), {"group": 4}),
]
PRODUCTS: list[tuple[str, tuple[int, ...], tuple[int, ...], bool, dict[str, Any]]] = [  # weight, x, left, attributes
    ("MatMul", (6, 4), (3, 6), False, {}),
    ("MatMul", (6, 4), (6,), False, {}),
    ("MatMul", (6, 4), (2, 5, 3, 6), False, {}),
    ("MatMul", (6, 4), (4, 3), True, {}),
    ("MatMul", (6, 4), (4,), True, {}),
    ("MatMul", (6, 4), (2, 5, 4, 3), True, {}),
    *(("MatMul", weight, x, False, {}) for weight, x, _ in BATCHED),
    ("MatMul", (3, 4, 6), (2, 3, 6, 5), True, {}),
    ("MatMul", (2, 3, 4, 6), (3, 6, 5), True, {}),
    ("MatMul", (3, 6, 4), (6,), False, {}),
    ("MatMul", (3, 4, 6), (6,), True, {}),
    ("MatMul", (6,), (2, 3, 6), False, {}),
    ("MatMul", (6,), (2, 6, 3), True, {}),
    ("MatMul", (6,), (6,), False, {}),
    ("Gemm", (6, 4), (3, 6), False, {}),
    ("Gemm", (4, 6), (3, 6), False, {"transB": 1, "alpha": 0.5}),
    ("Gemm", (6, 4), (6, 3), False, {"transA": 1}),
    ("Gemm", (4, 6), (6, 3), False, {"transA": 1, "transB": 1}),
    ("Gemm", (4, 6), (6, 3), True, {"alpha": 2.0}),
    ("Gemm", (6, 4), (6, 3), True, {"transA": 1}),
    ("Gemm", (4, 6), (3, 6), True, {"transB": 1}),
    ("Gemm", (6, 4), (3, 6), True, {"transA": 1, "transB": 1}),
]


def one(kind: str, weight: Sequence[int], x: Sequence[int], names: str = "x w", **attributes: Any) -> onnx.ModelProto:
    """x and the layer w → y."""
    return model(
        [node(kind, names, "y", **attributes)],
        [info("x", *x)],
        [unknown("y")],
        [tensor("w", Random(0)(*weight))],
    )


def assert_rows(proto: onnx.ModelProto, folder: Path) -> None:
    """Rows of the output are W @ x, for the rows x of every piece, in pieces of any size."""
    found = Found(proto, folder)
    linear = found.linear["w"]
    ((entering, leaving),) = linear.products
    assert leaving.operation == ("y",)
    matrices = linear.matrix.view(found.values("w"))
    groups, rows, _ = matrices.shape
    for x, y in zip(found.observed(entering.tensor), found.observed("y"), strict=True):
        at = leaving.rows(y, groups)
        assert at.shape == (groups, entering.positions(x.shape), rows)
        for count in (1, 4, 10**6):
            pieces = list(entering.products(x, matrices.swapaxes(1, 2), count))
            assert all(piece.shape[1] == count for piece in pieces[:-1])
            whole = np.concatenate(pieces, axis=1)
            assert whole.dtype == np.float32
            np.testing.assert_allclose(whole, entering.rows(x) @ matrices.swapaxes(1, 2), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(at, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "weight", "x", "attributes"), KERNELS)
def test_of_convolutions(
    kind: str, weight: tuple[int, ...], x: tuple[int, ...], attributes: dict[str, Any], tmp_path: Path
) -> None:
    assert_rows(one(kind, weight, x, **attributes), tmp_path)


@pytest.mark.parametrize(("kind", "weight", "x", "left", "attributes"), PRODUCTS)
def test_of_matrix_products(
    kind: str, weight: tuple[int, ...], x: tuple[int, ...], left: bool, attributes: dict[str, Any], tmp_path: Path
) -> None:
    assert_rows(one(kind, weight, x, "w x" if left else "x w", **attributes), tmp_path)


def test_a_shared_layer_has_a_product_for_each_use(tmp_path: Path) -> None:
    proto = model(
        [node("MatMul", "x w", "a"), node("Tanh", "a", "b"), node("MatMul", "b w", "y")],
        [info("x", 3, 6)],
        [unknown("y")],
        [tensor("w", Random(0)(6, 6))],
    )
    linear = Found(proto, tmp_path).linear["w"]
    assert [(entering.tensor, leaving.operation) for entering, leaving in linear.products] == [
        ("x", ("a",)),
        ("b", ("y",)),
    ]
    assert [entering for entering, _ in linear.products] == list(linear.inputs)


# ---- LSTM, GRU, RNN -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("outputs", ["states", "_ end"])
def test_of_recurrent_layers(op: str, direction: str, initial: bool, outputs: str, tmp_path: Path) -> None:
    """Both layers tell the same operation; gradients at its gates are cut as the rows that enter."""
    proto = recurrent(op, direction, initial, outputs)
    for item in proto.graph.node:
        item.output[:] = ["" if name == "_" else name for name in item.output]
    found = Found(proto, tmp_path)
    ((reads, of_input),) = found.linear["w"].products
    ((remembers, of_state),) = found.linear["r"].products
    assert isinstance(of_input, GateOutput) and isinstance(of_state, GateOutput)
    assert (of_input.of_state, of_state.of_state) == (False, True)
    graph, constants = operations(found.form)
    (operation,) = [item for item in graph if item.outputs == of_input.operation]
    assert operation.outputs == of_state.operation and operation.kind == op
    layers = {name: found.model.layers[number].values for name, number in found.form.weights}
    names = [name for name in operation.inputs if name and name not in layers]
    wanted = list(dict.fromkeys([*names, reads.tensor, remembers.tensor, *filter(None, operation.outputs)]))
    observer = Observer(
        found.form, [layer.values for layer in found.model.layers], found.samples, runtime=Runtime(threads=1)
    )
    run = observer.runner(wanted)
    for number in range(len(found.samples)):
        values = constants | layers | run(number)
        inputs = [values[name] if name else None for name in operation.inputs]
        gradients = [
            np.random.default_rng(0).standard_normal((3, *values[name].shape), np.float32) if name else None
            for name in operation.outputs
        ]
        gates = gate_gradients(operation, inputs, gradients)
        for entering, leaving in ((reads, of_input), (remembers, of_state)):
            gradient = gates[leaving.of_state]
            matrix = found.linear["r" if leaving.of_state else "w"].matrix
            directions, rows, _ = matrix.shape
            at = leaving.rows(gradient[1], directions)
            assert at.shape == (directions, entering.positions(values[entering.tensor].shape), rows)
            steps, batch = values["x"].shape[:2]
            np.testing.assert_array_equal(at.reshape(directions, steps, batch, rows), gradient[1])


def test_gates_of_one_step_are_told_by_the_cell(tmp_path: Path) -> None:
    """An RNN of one step: tanh(W x), whose gradient at W x is that of the output times 1 − tanh²."""
    proto = model(
        [node("RNN", "x w r", "y", hidden_size=4)],
        [info("x", 1, 2, 3)],
        [unknown("y")],
        [tensor("w", Random(0)(1, 4, 3)), tensor("r", Random(1)(1, 4, 4))],
    )
    found = Found(proto, tmp_path)
    ((entering, leaving),) = found.linear["w"].products
    assert isinstance(leaving, GateOutput)
    operation = operations(found.form)[0][0]
    for x, y in zip(found.observed("x"), found.observed("y"), strict=True):
        gradient = np.random.default_rng(0).standard_normal((2, *y.shape), np.float32)
        inputs = [x, found.values("w"), found.values("r")]
        at = leaving.rows(gate_gradients(operation, inputs, [gradient])[0][0], 1)
        np.testing.assert_allclose(at[0], (gradient[0] * (1 - y**2)).reshape(2, 4), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            np.tanh(entering.rows(x) @ found.linear["w"].matrix.view(found.values("w")).swapaxes(1, 2)),
            y.reshape(1, 2, 4),
            rtol=1e-4,
            atol=1e-5,
        )


# PyTorch's gates are i, f, g, o, and r, z, n; ONNX's are i, o, f, g, and z, r, n.
SLICES = {"LSTM": [(0, 4), (12, 16), (4, 12)], "GRU": [(4, 8), (0, 4), (8, 12)]}


def exported(op: str, slices: Sequence[tuple[int, int]]) -> onnx.ModelProto:
    """A recurrent model whose layers hold the gates in the order of PyTorch, put into ONNX's by the graph."""
    proto = recurrent(op, "forward", True, "states")
    nodes = list(proto.graph.node)
    r, weights = Random(1), {item.name: item for item in proto.graph.initializer}
    for name in ("w", "r"):
        shape = list(weights[name].dims)
        weights[name].CopyFrom(tensor(f"{name}0", r(*shape[1:])))
        parts = [f"{name}{number}" for number in range(1, 1 + len(slices))]
        nodes = [
            *(
                node("Slice", f"{name}0 {begin} {end} 0", part)
                for part, (begin, end) in zip(parts, slices, strict=True)
            ),
            node("Concat", " ".join(parts), f"{name}/joined", axis=0),
            node("Unsqueeze", f"{name}/joined 0", name),
            *nodes,
        ]
    numbers = sorted({0}.union(*slices))
    proto.graph.initializer.extend(tensor(str(number), np.array([number])) for number in numbers)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


@pytest.mark.parametrize("op", SLICES)
def test_gates_that_the_graph_brings_into_order_belong_to_the_rows_of_the_layer(op: str, tmp_path: Path) -> None:
    """What the operator's weights make of an input, cut into rows, is what the layer's make of it."""
    found = Found(exported(op, SLICES[op]), tmp_path)
    for name in ("w", "r"):
        layer, weights = found.values(f"{name}0"), found.observed(name)[0]
        assert not np.array_equal(weights[0], layer)
        ((_, leaving),) = found.linear[f"{name}0"].products
        x = np.random.default_rng(0).standard_normal((STEPS, BATCH, layer.shape[1])).astype(np.float32)
        rows = leaving.rows((x @ weights[0].T)[None], 1)
        np.testing.assert_allclose(rows, (x @ layer.T).reshape(1, STEPS * BATCH, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "slices", [[(0, 4), (8, 16), (4, 12)], [(0, 4), (12, 16), (4, 8)], [(0, 8), (0, 8)]]
)  # with rows twice, or left out
def test_slices_that_are_no_new_order_of_all_rows_are_no_layer_of_gates(
    slices: Sequence[tuple[int, int]], tmp_path: Path
) -> None:
    assert not Found(exported("LSTM", slices), tmp_path).linear
