"""Linear layers: the matrices times the rows that enter are the rows that the operators give out, by onnxruntime."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import (
    FORMS,
    Random,
    constant,
    feeds,
    graph,
    info,
    matrix,
    model,
    node,
    save,
    tensor,
    unknown,
)

from riq_cli.errors import ModelError
from riq_cli.model import GateOutput, Model, linear_layers, observed_form, operations
from riq_cli.model.linear_inputs import LookupInput, ProductInput
from riq_cli.runtime import Observer, Runtime
from riq_cli.statistics.autodiff import gate_gradients


class Found:
    """A model's linear layers by the names of their tensors, and what onnxruntime gives for any tensor."""

    def __init__(self, proto: onnx.ModelProto, folder: Path, samples: int = 2) -> None:
        self.model = Model.load(save(proto, folder))
        self.form, by_number = linear_layers(self.model.session_form(), self.model.layers)
        self.numbers = {layer.name: number for number, layer in enumerate(self.model.layers)}
        self.linear = {self.model.layers[number].name: linear for number, linear in by_number.items()}
        self.samples = [(feed, 1) for feed in feeds(proto, samples)]

    def values(self, name: str) -> np.ndarray:
        return self.model.layers[self.numbers[name]].values

    def observed(self, name: str) -> list[np.ndarray]:
        observer = Observer(
            self.form, [layer.values for layer in self.model.layers], self.samples, runtime=Runtime(threads=1)
        )
        return [value for _, _, value in observer.activations([name])]

    def products(self, name: str, number: int = 0) -> list[np.ndarray]:
        """W @ x for every row, [groups, rows, positions], one for each sample."""
        linear = self.linear[name]
        entering = linear.inputs[number]
        matrices = linear.matrix.view(self.values(name))
        assert matrices.shape == linear.matrix.shape
        result = []
        for activation in self.observed(entering.tensor):
            rows = entering.rows(activation)
            assert rows.dtype in (np.float32, np.float64)
            assert rows.shape == (matrices.shape[0], entering.positions(activation.shape), matrices.shape[2])
            result.append(matrices @ rows.swapaxes(1, 2))
        return result


def assert_products(found: Found, layer: str = "w", output: str = "y", number: int = 0) -> None:
    """Rows that the operator gives out are W @ x for the rows x that enter, in pieces of any size too."""
    linear = found.linear[layer]
    entering, leaving = linear.products[number]
    assert leaving.operation == (output,)
    values = found.values(layer)
    matrices = linear.matrix.view(values)
    np.testing.assert_array_equal(linear.matrix.restore(matrices.copy(), values.shape), values)
    groups, height, width = matrices.shape
    for x, y in zip(found.observed(entering.tensor), found.observed(output), strict=True):
        rows, wanted = entering.rows(x), leaving.rows(y, groups)
        positions = entering.positions(x.shape)
        assert (rows.shape, wanted.shape) == ((groups, positions, width), (groups, positions, height))
        assert rows.dtype in (np.float32, np.float64)
        turned = matrices.swapaxes(1, 2)
        np.testing.assert_allclose(rows @ turned, wanted, rtol=1e-4, atol=1e-5)
        for count in (1, 4, 10**6):
            pieces = list(entering.products(x, turned, count))
            assert all(piece.shape[1] == count and piece.dtype == turned.dtype for piece in pieces[:-1])
            np.testing.assert_allclose(np.concatenate(pieces, axis=1), wanted, rtol=1e-4, atol=1e-5)


def one(
    op: str, weight: np.ndarray, x: Sequence[int], inputs: str = "x w", opset: int = 17, **attributes: Any
) -> onnx.ModelProto:
    """A model of one operator."""
    domains = [("com.microsoft", 1)] if attributes.get("domain") else []
    return model(
        [node(op, inputs, "y", **attributes)],
        [info("x", *x)],
        [unknown("y")],
        [tensor("w", weight)],
        domains=domains,
        opset=opset,
    )


# ---- Conv -----------------------------------------------------------------------------------------------------------

CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    # input, weight, attributes
    ((2, 3, 6, 7), (5, 3, 3, 3), {}),
    ((1, 3, 6, 7), (5, 3, 1, 1), {}),
    ((1, 3, 6, 7), (5, 3, 1, 1), {"strides": [2, 3]}),
    ((2, 3, 6, 7), (5, 3, 3, 2), {"pads": [1, 0, 2, 1]}),
    ((1, 3, 9, 8), (5, 3, 3, 3), {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
    ((1, 3, 9, 8), (5, 3, 2, 3), {"dilations": [3, 2]}),
    ((1, 3, 9, 8), (5, 3, 2, 3), {"dilations": [2, 1], "strides": [1, 2], "pads": [2, 2, 2, 2]}),
    ((2, 6, 6, 7), (4, 3, 3, 3), {"group": 2}),
    ((2, 6, 6, 7), (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
    ((2, 6, 6, 7), (12, 1, 3, 3), {"group": 6, "strides": [2, 2]}),
    *(
        ((1, 3, *size), (5, 3, 3, 4), {"auto_pad": word, "strides": strides})
        for word in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for size in ((7, 8), (8, 9))
        for strides in ([1, 1], [2, 2], [3, 1])
    ),
    ((2, 4, 11), (6, 4, 3), {"pads": [1, 1], "strides": [2]}),
    ((2, 4, 11), (6, 2, 3), {"group": 2, "dilations": [2]}),
    ((1, 2, 4, 5, 6), (3, 2, 2, 3, 2), {"pads": [1, 0, 1, 0, 1, 1], "strides": [1, 2, 2]}),
    ((1, 2, 4, 4), (3, 2, 3, 3), {"pads": [4, 4, 4, 4]}),  # windows that lie in the pad alone
]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("x", "weight", "attributes"), CONVOLUTIONS)
def test_conv(
    x: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, Any], fused: bool, tmp_path: Path
) -> None:
    domain = {"domain": "com.microsoft"} if fused else {}
    proto = one("FusedConv" if fused else "Conv", Random(0)(*weight), x, **attributes, **domain)
    assert_products(Found(proto, tmp_path))


TRANSPOSED: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 4, 5), (3, 4, 3, 3), {}),
    ((1, 3, 4, 5), (3, 4, 2, 2), {"strides": [2, 2]}),
    ((1, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 3], "pads": [1, 0, 1, 2]}),
    ((1, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ((1, 3, 4, 5), (3, 4, 3, 2), {"dilations": [2, 3], "strides": [1, 2]}),
    ((2, 6, 4, 5), (6, 2, 3, 3), {"group": 3, "strides": [2, 2]}),
    ((1, 6, 4, 5), (6, 1, 4, 4), {"group": 6, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((2, 3, 7), (3, 4, 4), {"strides": [2], "pads": [1, 1]}),
    ((1, 2, 3, 4, 2), (2, 3, 2, 2, 2), {"strides": [2, 1, 2]}),
    ((1, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 2], "output_shape": [8, 10]}),
    ((1, 3, 4, 5), (3, 4, 4, 3), {"strides": [3, 2], "output_shape": [11, 10], "auto_pad": "SAME_UPPER"}),
    ((1, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((1, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 2], "auto_pad": "VALID"}),
    ((1, 3, 4, 5), (3, 4, 2, 3), {"strides": [3, 2], "dilations": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 3, 4, 5), (3, 4, 2, 3), {"strides": [2, 2], "pads": [3, 4, 3, 4], "dilations": [4, 3]}),
    ((1, 3, 4, 5), (3, 4, 1, 1), {"strides": [3, 2]}),
    ((1, 3, 4, 5), (3, 4, 1, 1), {"strides": [3, 2], "output_shape": [12, 10]}),
]


@pytest.mark.parametrize(("x", "weight", "attributes"), TRANSPOSED)
def test_conv_transpose(
    x: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, Any], tmp_path: Path
) -> None:
    assert_products(Found(one("ConvTranspose", Random(0)(*weight), x, **attributes), tmp_path))


# ---- Gemm, MatMul ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "other", "alpha"), list(itertools.product([0, 1], [0, 1], [1.0, 0.5])))
@pytest.mark.parametrize("op", ["Gemm", "FusedMatMul", "FusedGemm"])
@pytest.mark.parametrize("left", [False, True])
def test_gemm(op: str, left: bool, own: int, other: int, alpha: float, tmp_path: Path) -> None:
    weight = Random(0)(6, 4)
    x = (4 if own == other else 6, 3)
    if left:  # w [6, 4] or its transpose, times x
        inner = 6 if own else 4
        x = (3, inner) if other else (inner, 3)
        attributes = {"transA": own, "transB": other}
    else:
        inner = 4 if own else 6
        x = (inner, 3) if other else (3, inner)
        attributes = {"transA": other, "transB": own}
    domain: dict[str, Any] = {} if op == "Gemm" else {"domain": "com.microsoft"}
    if op == "FusedGemm":
        domain |= {"activation": "LeakyRelu", "activation_alpha": 1.0}  # which changes nothing
    proto = one(op, weight, x, "w x" if left else "x w", alpha=alpha, **attributes, **domain)
    found = Found(proto, tmp_path)
    assert_products(found)
    columns = 0 if bool(own) == left else 1
    assert found.linear["w"].matrix.column_axes == (columns,)
    assert found.linear["w"].matrix.row_axes == (1 - columns,)


RIGHT = [((6, 4), x) for x in ((6,), (3, 6), (2, 3, 6), (2, 2, 3, 6))] + [
    ((3, 6, 4), (3, 2, 6)),
    ((3, 6, 4), (5, 3, 2, 6)),
    ((3, 6, 4), (5, 1, 2, 6)),
    ((3, 6, 4), (2, 6)),
    ((3, 6, 4), (6,)),
    ((2, 3, 6, 4), (2, 3, 5, 6)),
    ((2, 1, 6, 4), (2, 3, 5, 6)),
    ((1, 6, 4), (2, 5, 6)),
    ((6,), (2, 3, 6)),
    ((6,), (6,)),
]
LEFT = [((4, 6), x) for x in ((6,), (6, 3), (2, 6, 3), (2, 2, 6, 3))] + [
    ((3, 4, 6), (2, 3, 6, 5)),
    ((2, 3, 4, 6), (3, 6, 5)),
    ((3, 4, 6), (6,)),
    ((6,), (2, 6, 3)),
]


@pytest.mark.parametrize(
    ("weight", "x", "inputs"), [(*shapes, "x w") for shapes in RIGHT] + [(*shapes, "w x") for shapes in LEFT]
)
def test_matmul(weight: tuple[int, ...], x: tuple[int, ...], inputs: str, tmp_path: Path) -> None:
    found = Found(one("MatMul", Random(0)(*weight), x, inputs), tmp_path)
    assert_products(found)
    assert found.linear["w"].matrix.shape[0] == math.prod(weight[:-2])


# ---- LSTM, GRU, RNN -------------------------------------------------------------------------------------------------

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, FEATURES, HIDDEN = 5, 2, 3, 4


def recurrent(op: str, direction: str, initial: bool, outputs: str, opset: int = 17) -> onnx.ModelProto:
    r, directions = Random(0), 2 if direction == "bidirectional" else 1
    attributes = {"linear_before_reset": 1} if op == "GRU" else {}
    inputs = [info("x", STEPS, BATCH, FEATURES)] + [info("h", directions, BATCH, HIDDEN)] * initial
    return model(
        [
            node(
                op,
                "x w r _ _ h" if initial else "x w r",
                outputs,
                hidden_size=HIDDEN,
                direction=direction,
                **attributes,
            ),
            node("Identity", outputs.split()[-1], "z"),
        ],
        inputs,
        [unknown("z")],
        [
            tensor("w", r(directions, GATES[op] * HIDDEN, FEATURES)),
            tensor("r", r(directions, GATES[op] * HIDDEN, HIDDEN)),
        ],
        opset=opset,
    )


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("outputs", ["states", "_ end"])
def test_recurrent_layers(op: str, direction: str, initial: bool, outputs: str, tmp_path: Path) -> None:
    """What the cells make of the two products, at every step, is the state that comes next."""
    found = Found(recurrent(op, direction, initial, outputs, opset=12 if outputs == "states" else 17), tmp_path)
    directions = 2 if direction == "bidirectional" else 1
    assert found.linear["w"].matrix.shape == (directions, GATES[op] * HIDDEN, FEATURES)
    assert found.linear["r"].matrix.column_axes == ((0, 2) if directions == 2 else (2,))
    (entering,) = found.linear["r"].inputs
    # ruff: noqa: N806
    shape = (directions, GATES[op], HIDDEN, STEPS, BATCH)
    for W, R, observed in zip(found.products("w"), found.products("r"), found.observed(entering.tensor), strict=True):
        states = (observed[1:] if initial else observed).transpose(1, 3, 0, 2)  # [directions, hidden, steps, batch]
        w, r = W.reshape(shape), R.reshape(shape)
        before = entering.rows(observed).swapaxes(1, 2).reshape(directions, HIDDEN, STEPS, BATCH)
        if op == "RNN":
            np.testing.assert_allclose(np.tanh(w + r)[:, 0], states, atol=1e-5)
        elif op == "GRU":
            z, reset = sigmoid(w[:, 0] + r[:, 0]), sigmoid(w[:, 1] + r[:, 1])
            np.testing.assert_allclose((1 - z) * np.tanh(w[:, 2] + reset * r[:, 2]) + z * before, states, atol=1e-5)
        else:
            i, o, f = (sigmoid(w[:, gate] + r[:, gate]) for gate in range(3))
            c = np.tanh(w[:, 3] + r[:, 3])
            for number in range(directions):
                order = range(STEPS)[::-1] if direction == "reverse" or number else range(STEPS)
                cell = np.zeros((HIDDEN, BATCH))
                for step in order:
                    cell = f[number, :, step] * cell + i[number, :, step] * c[number, :, step]
                    np.testing.assert_allclose(o[number, :, step] * np.tanh(cell), states[number, :, step], atol=1e-5)


def test_the_state_that_comes_first_is_the_one_given(tmp_path: Path) -> None:
    found = Found(recurrent("LSTM", "bidirectional", True, "states"), tmp_path)
    (entering,) = found.linear["r"].inputs
    for (feed, _), observed in zip(found.samples, found.observed(entering.tensor), strict=True):
        rows = entering.rows(observed).reshape(2, STEPS, BATCH, HIDDEN)
        np.testing.assert_array_equal(rows[0, 0], feed["h"][0])
        np.testing.assert_array_equal(rows[0, 1:], observed[1:-1, 0])
        np.testing.assert_array_equal(rows[1, -1], feed["h"][1])
        np.testing.assert_array_equal(rows[1, :-1], observed[2:, 1])


def test_what_multiplies_no_state_or_not_every_step_is_left_out(tmp_path: Path) -> None:
    proto = recurrent("GRU", "forward", False, "states")
    assert {item.name for item in proto.graph.node[0].attribute} == {"hidden_size", "direction", "linear_before_reset"}
    for item in proto.graph.node[0].attribute:
        if item.name == "linear_before_reset":
            item.i = 0
    assert set(Found(proto, tmp_path).linear) == {"w"}
    proto = recurrent("LSTM", "forward", False, "states")
    proto.graph.node[0].input.extend(["", "lengths"])
    proto.graph.input.append(info("lengths", BATCH, dtype=onnx.TensorProto.INT32))
    assert set(Found(proto, tmp_path).linear) == set()


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


# ---- on the way to the operator -------------------------------------------------------------------------------------


def test_a_weight_is_followed_through_what_hands_it_on(tmp_path: Path) -> None:
    """[2, 3, 4] → transposed, cast, squeezed, reshaped, unsqueezed, flattened: its axes are those of the layer."""
    proto = model(
        [
            constant("w", Random(0)(2, 1, 3, 4)),
            node("Identity", "w", "w1"),
            node("Transpose", "w1", "w2", perm=[3, 1, 0, 2]),  # 4, 1, 2, 3
            node("Cast", "w2", "w3", to=onnx.TensorProto.DOUBLE),
            node("Squeeze", "w3 one", "w4"),  # 4, 2, 3
            node("Reshape", "w4 shape", "w5"),  # 4, 6
            node("Unsqueeze", "w5 one", "w6"),  # 4, 1, 6
            node("Flatten", "w6", "w7"),
            node("MatMul", "x w7", "y"),
        ],
        [matrix("x", onnx.TensorProto.DOUBLE)],
        [matrix("y", onnx.TensorProto.DOUBLE)],
        [tensor("one", np.array([1])), tensor("shape", np.array([0, -1]))],
    )
    proto.graph.input[0].CopyFrom(info("x", 5, 4, dtype=onnx.TensorProto.DOUBLE))
    found = Found(proto, tmp_path)
    assert_products(found)
    assert found.linear["w"].matrix.shape == (1, 6, 4)
    assert found.linear["w"].matrix.column_axes == (3,)
    assert found.linear["w"].matrix.row_axes == (0, 2)
    rows = found.linear["w"].inputs[0].rows(found.observed("x")[0])
    assert rows.dtype == np.float64


@pytest.mark.parametrize(
    ("shape", "expected"), [([2, 3, 2, 2], True), ([12, 2], True), ([3, 8], True), ([8, 3], False)]
)
def test_a_weight_is_cut_where_its_axes_can_be(shape: list[int], expected: bool, tmp_path: Path) -> None:
    """[6, 4] in the order of its memory can be cut anywhere that leaves whole rows."""
    proto = model(
        [node("Reshape", "w shape", "v"), node("MatMul", "x v", "y")],
        [info("x", *shape[:-2], 5, shape[-2])],
        [unknown("y")],
        [tensor("w", Random(0)(6, 4)), tensor("shape", np.array(shape))],
    )
    found = Found(proto, tmp_path)
    assert ("w" in found.linear) == expected
    if expected:
        assert_products(found)


AXES: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any], Any, Any]] = [
    ("Conv", (1, 3, 6, 7), (5, 3, 3, 3), {}, (1, 2, 3), (0,)),
    ("Conv", (1, 3, 6, 7), (5, 3, 1, 1), {}, (1,), (0,)),
    ("Conv", (1, 6, 6, 7), (4, 3, 3, 3), {"group": 2}, None, (0,)),
    ("Conv", (1, 6, 6, 7), (6, 1, 3, 3), {"group": 6}, (0, 2, 3), (0,)),
    ("ConvTranspose", (1, 3, 4, 5), (3, 4, 3, 3), {}, (0, 2, 3), (1,)),
    ("ConvTranspose", (1, 6, 4, 5), (6, 2, 3, 3), {"group": 3}, (0, 2, 3), None),
    ("MatMul", (2, 6), (6, 4), {}, (0,), (1,)),
    ("MatMul", (3, 2, 6), (3, 6, 4), {}, (0, 1), (0, 2)),
]


@pytest.mark.parametrize(("op", "x", "weight", "attributes", "columns", "rows"), AXES)
def test_axes_along_which_columns_and_rows_lie(
    op: str,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    attributes: dict[str, Any],
    columns: Any,
    rows: Any,
    tmp_path: Path,
) -> None:
    matrix = Found(one(op, Random(0)(*weight), x, **attributes), tmp_path).linear["w"].matrix
    assert (matrix.column_axes, matrix.row_axes) == (columns, rows)
    # What is given for every column, or row, does not change along the other axes.
    groups, height, width = matrix.shape
    for axes, values in (
        (columns, np.arange(groups * width).reshape(groups, 1, width)),
        (rows, np.arange(groups * height).reshape(groups, height, 1)),
    ):
        whole = matrix.restore(np.broadcast_to(values, matrix.shape), weight)
        varying = tuple(axis for axis in range(whole.ndim) if np.ptp(whole, axis=axis).any())
        if axes is not None:
            assert varying == axes
            assert np.prod([weight[axis] for axis in axes]) == values.size


# ---- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 4), (7, 2, 3)])
@pytest.mark.parametrize("ids", [(), (3,), (2, 5)])
def test_what_is_looked_up_is_a_product(shape: tuple[int, ...], ids: tuple[int, ...], tmp_path: Path) -> None:
    proto = model(
        [node("Gather", "w i", "y")],
        [info("i", *ids, dtype=onnx.TensorProto.INT64)],
        [unknown("y")],
        [tensor("w", Random(0)(*shape))],
    )
    loaded = Model.load(save(proto, tmp_path))
    form, linear = linear_layers(loaded.session_form(), loaded.layers)
    (found,) = linear.values()
    ((entering, leaving),) = found.products
    assert found.is_table and found.bias is None
    assert found.matrix.shape == (1, math.prod(shape[1:]), 7)
    assert (found.matrix.row_axes, found.matrix.column_axes) == (tuple(range(1, len(shape))), (0,))
    indices = np.random.default_rng(0).integers(-7, 7, ids)
    values = loaded.layers[0].values
    observer = Observer(form, [values], [({"i": indices}, 1)], runtime=Runtime(threads=1))
    given, came = (value for _, _, value in observer.activations(["i", "y"]))
    rows = entering.rows(given)
    assert rows.shape == (1, max(math.prod(ids), 1), 7) and entering.positions(given.shape) == rows.shape[1]
    products = leaving.rows(came, 1)
    np.testing.assert_array_equal(rows @ found.matrix.view(values).swapaxes(1, 2), products)
    for matrices in (found.matrix.view(values).swapaxes(1, 2), np.ones((1, 7, 2), np.float32)):
        pieces = list(entering.products(given, matrices, 3))
        assert all(piece.shape[1] <= 3 for piece in pieces)
        np.testing.assert_array_equal(np.concatenate(pieces, axis=1), rows @ matrices)


def test_matrices_of_fewer_columns_are_looked_up_again_and_again() -> None:
    matrices = np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    (found,) = LookupInput("i", 10).products(np.array([0, 4, 9, -1]), matrices, 100)
    np.testing.assert_array_equal(found, matrices[:, [0, 1, 0, 2]])


# ---- several uses, and none -----------------------------------------------------------------------------------------


def test_a_shared_weight_has_several_inputs(tmp_path: Path) -> None:
    proto = model(
        [
            node("Conv", "x w", "a", pads=[1, 1, 1, 1]),
            node("MaxPool", "x", "p", kernel_shape=[2, 2], strides=[2, 2]),
            node("Conv", "p twin", "b", pads=[1, 1, 1, 1]),
        ],
        [info("x", 1, 3, 6, 6)],
        [unknown("a"), unknown("b")],
        [tensor("w", Random(0)(4, 3, 3, 3)), tensor("twin", Random(0)(4, 3, 3, 3))],
    )
    found = Found(proto, tmp_path)
    assert [entering.tensor for entering in found.linear["w"].inputs] == ["x", "p"]
    assert_products(found, "w", "a", 0)
    assert_products(found, "w", "b", 1)


LEFT_OUT: dict[str, tuple[list[onnx.NodeProto], list[str]]] = {
    "elementwise": ([node("Mul", "x w", "y")], ["y"]),
    "looked up along its second axis": ([node("Cast", "x", "i", to=7), node("Gather", "w i", "y", axis=1)], ["y"]),
    "looked up by constants": ([node("Gather", "w numbers", "z"), node("Add", "x z", "y")], ["y"]),
    "looked up, and added": (
        [node("Cast", "x", "i", to=7), node("Gather", "w i", "z"), node("Add", "x w", "a"), node("Add", "z a", "y")],
        ["y"],
    ),
    "both ways": ([node("MatMul", "x w", "a"), node("Add", "a w", "y")], ["y"]),
    "given out": ([node("MatMul", "x w", "y")], ["y", "w"]),
    "two views": (
        [node("MatMul", "x w", "a"), node("Transpose", "w", "v"), node("MatMul", "x v", "y")],
        ["a", "y"],
    ),
    "constant product": ([node("MatMul", "other w", "a"), node("Add", "x a", "y")], ["y"]),
    "with itself": ([node("MatMul", "w w", "a"), node("Add", "x a", "y")], ["y"]),
    "scaled": ([node("Mul", "w half", "v"), node("MatMul", "x v", "y")], ["y"]),
    "reshaped by what is fed": (
        [node("Shape", "x", "s"), node("Reshape", "w s", "v"), node("MatMul", "x v", "y")],
        ["y"],
    ),
    "another domain": ([node("MatMul", "x w", "y", domain="elsewhere")], ["y"]),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_no_product_with_an_activation_is_left_out(name: str, tmp_path: Path) -> None:
    nodes, outputs = LEFT_OUT[name]
    proto = model(
        nodes,
        [info("x", 4, 4)],
        [unknown(output) for output in outputs],
        [
            tensor("w", Random(0)(4, 4)),
            tensor("other", np.arange(16).reshape(4, 4).astype(np.float32)),
            tensor("half", np.float32([0.5])),
            tensor("numbers", np.arange(4)),
        ],
    )
    loaded = Model.load(save(proto, tmp_path))
    assert linear_layers(loaded.session_form(), loaded.layers)[1] == {}


def test_weights_that_a_subgraph_uses_are_left_out(tmp_path: Path) -> None:
    """Even where the main graph multiplies them too, or a branch only gives them out."""
    branch = graph([node("MatMul", "x w", "in_branch")], [], [unknown("in_branch")], name="then")
    inner = graph([], [], [unknown("v")], name="inner")
    nested = node("If", "condition", "in_other", then_branch=inner, else_branch=inner)
    other = graph([nested], [], [unknown("in_other")], name="else")
    proto = model(
        [
            node("If", "condition", "a", then_branch=branch, else_branch=other),
            node("MatMul", "x w", "b"),
            node("MatMul", "x v", "c"),
            node("MatMul", "x u", "d"),
        ],
        [info("x", 4, 4), info("condition", dtype=onnx.TensorProto.BOOL)],
        [unknown(name) for name in "abcd"],
        [tensor(name, Random(seed)(4, 4)) for seed, name in enumerate("uvw")],
    )
    found = Found(proto, tmp_path)
    assert set(found.linear) == {"u"}
    assert_products(found, "u", "d")


@pytest.mark.parametrize("name", sorted(FORMS.keys() - {"resize"}))  # its scales cannot come from outside
def test_every_product_found_in_any_model_can_be_observed(name: str, tmp_path: Path) -> None:
    found = Found(FORMS[name](), tmp_path)
    for layer, linear in found.linear.items():
        for product in found.products(layer):
            assert product.shape[:2] == linear.matrix.shape[:2]
            assert np.isfinite(product).all() or name == "not_finite"


LAYERS_OF = {
    "conv": {"conv.weight", "head.weight"},
    "lstm": {"W", "R"},
    "embedding": {"table", "w"},
    "tied": {"other"},
    "if_nested": set(),
    "trained_for_int8": {"w", "v"},
}


@pytest.mark.parametrize("name", LAYERS_OF)
def test_layers_found(name: str, tmp_path: Path) -> None:
    assert set(Found(FORMS[name](), tmp_path).linear) == LAYERS_OF[name]


# ---- bias -----------------------------------------------------------------------------------------------------------

BIASED: dict[str, tuple[list[onnx.NodeProto], str | None]] = {
    "conv": ([node("Conv", "image cw b", "y")], "b"),
    "conv_transpose": ([node("ConvTranspose", "image tw b", "y")], "b"),
    "gemm": ([node("Gemm", "x w b", "y")], "b"),
    "gemm, beta": ([node("Gemm", "x w b", "y", beta=0.5)], None),
    "gemm, weight on the left": ([node("Gemm", "w x b", "y")], None),
    "gemm without": ([node("Gemm", "x w", "y")], None),
    "matmul": ([node("MatMul", "x w", "p"), node("Add", "p b", "y")], "b"),
    "matmul, added to": ([node("MatMul", "x w", "p"), node("Add", "b p", "y")], "b"),
    "matmul, used twice": ([node("MatMul", "x w", "p"), node("Add", "b p", "q"), node("Mul", "p q", "y")], None),
    "matmul, scaled": ([node("MatMul", "x w", "p"), node("Mul", "p b", "y")], None),
    "bias of two": ([node("Gemm", "x w b", "p"), node("Gemm", "p v b", "y")], None),
    "weight of two": ([node("Gemm", "x w b", "p"), node("MatMul", "p w", "y")], None),
    "a matrix": ([node("Gemm", "x w v", "y")], None),
}


@pytest.mark.parametrize("name", BIASED)
def test_the_bias_is_found_where_it_is_of_that_use_only(name: str, tmp_path: Path) -> None:
    nodes, bias = BIASED[name]
    r = Random(0)
    weights = {"w": r(4, 4), "v": r(4, 4), "b": r(4), "cw": r(4, 3, 2, 2), "tw": r(3, 4, 2, 2)}
    proto = model(
        nodes,
        [info("x", 4, 4), info("image", 1, 3, 5, 5)],
        [unknown("y")],
        [tensor(key, value) for key, value in weights.items()],
    )
    found = Found(proto, tmp_path)
    (linear,) = (found.linear[key] for key in ("w", "cw", "tw") if key in found.linear)
    assert linear.bias == (None if bias is None else found.numbers[bias])


def test_what_is_added_to_a_state_is_no_bias(tmp_path: Path) -> None:
    """The rows of W are as many as the elements of a state, but an activation lies between."""
    r = Random(0)
    proto = model(
        [node("RNN", "x w r", "states", hidden_size=HIDDEN), node("Add", "states b", "y")],
        [info("x", STEPS, BATCH, FEATURES)],
        [unknown("y")],
        [tensor("w", r(1, HIDDEN, FEATURES)), tensor("r", r(1, HIDDEN, HIDDEN)), tensor("b", r(HIDDEN))],
    )
    assert {name: linear.bias for name, linear in Found(proto, tmp_path).linear.items()} == {"w": None, "r": None}


# ---- rows that are taken --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "MatMul", "LSTM"])
def test_fewer_rows_are_some_of_all_rows_in_order(op: str, tmp_path: Path) -> None:
    protos = {
        "Conv": lambda: one("Conv", Random(0)(4, 3, 3, 3), (3, 3, 6, 7), pads=[1, 1, 1, 1]),
        "ConvTranspose": lambda: one("ConvTranspose", Random(0)(3, 4, 3, 3), (3, 3, 6, 7), strides=[2, 2]),
        "MatMul": lambda: one("MatMul", Random(0)(3, 6, 4), (2, 3, 20, 6)),
        "LSTM": lambda: recurrent("LSTM", "bidirectional", True, "states"),
    }
    found = Found(protos[op](), tmp_path)
    for linear in found.linear.values():
        (entering,) = linear.inputs
        activation = found.observed(entering.tensor)[0]
        every = entering.rows(activation)
        for limit in (1, 7, every.shape[1] - 1, every.shape[1], 10**9):
            chosen, again = (entering.chosen(activation.shape, limit, np.random.default_rng(5)) for _ in range(2))
            assert len(chosen) == min(limit, every.shape[1]) and np.all(np.diff(chosen) > 0)
            np.testing.assert_array_equal(chosen, again)
            np.testing.assert_array_equal(entering.rows_at(activation, chosen), every[:, chosen])


def test_rows_are_spread_evenly() -> None:
    entering = ProductInput("x", transposed=False)
    np.testing.assert_array_equal(entering.chosen((1000, 1), 10, np.random.default_rng(0)) // 100, np.arange(10))
    np.testing.assert_array_equal(entering.chosen((1000, 1), 10), np.arange(10) * 100 + 50)


def test_rows_of_half_precision_are_in_single() -> None:
    rows = ProductInput("x", transposed=True, scale=2.0).rows(np.ones((3, 5), np.float16))
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, np.full((1, 5, 3), 2))


# ---- observed -------------------------------------------------------------------------------------------------------


def test_an_observer_gives_every_tensor_in_every_sample_however_little_memory_there_is(tmp_path: Path) -> None:
    found = Found(FORMS["conv"](), tmp_path, samples=3)
    weights = [layer.values for layer in found.model.layers]
    observer = Observer(found.form, weights, found.samples, runtime=Runtime(threads=1))
    names = ["x", "c", "a", "p", "f", "y"]
    every = {(name, sample): value for name, sample, value in observer.activations(names)}
    assert set(every) == {(name, sample) for name in names for sample in range(3)}
    np.testing.assert_array_equal(every["a", 1], np.maximum(every["c", 1], 0))
    np.testing.assert_array_equal(every["x", 2], found.samples[2][0]["x"])
    little = list(observer.activations(names, budget=1))
    assert [(name, sample) for name, sample, _ in little[12:]] == [(name, s) for name in "fy" for s in range(3)]
    for name, sample, value in little:
        np.testing.assert_allclose(value, every[name, sample], atol=1e-6)


def test_a_model_that_cannot_run_is_no_traceback(tmp_path: Path) -> None:
    found = Found(FORMS["conv"](), tmp_path)
    weights = [layer.values for layer in found.model.layers]
    wrong = Observer(found.form, weights, [({"x": np.zeros((1, 2, 6, 6), np.float32)}, 1)], runtime=Runtime(threads=1))
    with pytest.raises(ModelError, match="onnxruntime cannot run the model"):
        list(wrong.activations(["c"]))


def test_an_observed_form_is_the_part_that_computes_its_tensors(tmp_path: Path) -> None:
    found = Found(FORMS["conv"](), tmp_path)
    form = observed_form(found.form, ["a"])
    proto = onnx.ModelProto.FromString(form.model)
    assert [item.op_type for item in proto.graph.node] == ["Conv", "Relu"]
    assert [item.name for item in proto.graph.output] == ["a"]
    assert {name for name, _ in form.weights} == {"conv.weight", "conv.bias"}
    assert form.measured == ("a",)


def test_bfloat16_is_observed_as_float32(tmp_path: Path) -> None:
    found = Found(FORMS["bfloat16"](), tmp_path)
    for linear in found.linear.values():
        for entering in linear.inputs:
            assert {value.dtype.name for value in found.observed(entering.tensor)} <= {"float32"}
