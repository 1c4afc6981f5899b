"""Layers that multiply activations as matrices, and the activations: what error-compensated rounding has to know.

Found in the hoisted form, in its main graph. A table that indices are looked up in, as an embedding is, counts as a
matrix whose columns these number. A layer is left out where any use of it is something else: an elementwise factor, a
weight inside of a subgraph. Rows may be brought into another order only where they are gates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from riq_cli.model.layer import Layer
from riq_cli.model.linear_inputs import (
    LinearInput,
    LookupInput,
    ProductInput,
    SequenceInput,
    StateInput,
    WindowInput,
)
from riq_cli.model.linear_outputs import GateOutput, LinearOutput, LookupOutput, ProductOutput, WindowOutput
from riq_cli.model.matrix import Arrangement, Matrix
from riq_cli.model.places import CONTRIB, OWN_DOMAINS, attributes_of, constant_places, opset_of, subgraphs
from riq_cli.model.session_form import SessionForm
from riq_cli.model.tensors import FLOAT_TYPES
from riq_cli.model.uses import Use, captured

_OWN = "riq/linear{}"  # names of tensors that are added
_DOMAINS = (*OWN_DOMAINS, CONTRIB)
_WITH_BIAS = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm")
_SAME_VALUES = ("Identity", "QuantizeLinear", "DequantizeLinear")  # … but for a grid, as training for int8 puts it in
_AXES_MAX = 64  # of a tensor: longer lists of integers are no shapes
_UNSQUEEZE_BY_INPUT = 13  # the opset from which on Unsqueeze takes its axes as an input

_Product = tuple[Matrix, LinearInput, LinearOutput]


@dataclass(frozen=True)
class Linear:
    """A layer as matrices, and the activations that they multiply: several where nodes share the layer.

    `products` hold each activation with what comes out of it. `bias` is the number of the layer that is added to the
    products, one element for each of `groups` × `rows`; None unless there is one such layer, of no other use.
    """

    matrix: Matrix
    products: tuple[tuple[LinearInput, LinearOutput], ...]
    bias: int | None = None

    @property
    def inputs(self) -> tuple[LinearInput, ...]:
        """The activations, each once."""
        return tuple(dict.fromkeys(entering for entering, _ in self.products))

    @property
    def is_table(self) -> bool:
        """Whether indices are looked up in the layer, and no activations multiplied."""
        return any(isinstance(entering, LookupInput) for entering, _ in self.products)


def linear_layers(form: SessionForm, layers: Sequence[Layer]) -> tuple[SessionForm, dict[int, Linear]]:
    """The form with all tensors that the inputs name, and the linear layers by their numbers.

    Args:
        form: a hoisted form.
        layers: the layers of its model.
    """
    model = onnx.ModelProto.FromString(form.model)
    graph = _Graph(model, form, layers)
    found = {}
    for number, names in graph.names.items():
        products = graph.products(names, layers[number])
        if products and len({matrix for (matrix, _, _), _ in products}) == 1:
            matrix = products[0][0][0]
            pairs = tuple((entering, leaving) for (_, entering, leaving), _ in products)
            bias = graph.bias(matrix, products[0][1]) if len(products) == 1 else None
            found[number] = Linear(matrix, pairs, bias)
    return replace(form, model=model.SerializeToString()), found


class _Graph:
    """A form's main graph."""

    def __init__(self, model: onnx.ModelProto, form: SessionForm, layers: Sequence[Layer]) -> None:
        self._graph = model.graph
        self._layers = layers
        self._opset = opset_of(model)
        self._functions = {(function.domain, function.name) for function in model.functions}
        self._numbers = dict(form.weights)
        self.names: dict[int, list[str]] = {}
        for name, number in form.weights:
            self.names.setdefault(number, []).append(name)
        self._consumers: dict[str, list[Use]] = {}
        self._elsewhere = {output.name for output in model.graph.output}  # outputs, and what subgraphs capture
        for node in model.graph.node:
            for number, name in enumerate(node.input):
                self._consumers.setdefault(name, []).append((node, number))
            for _, inner in subgraphs(node):
                self._elsewhere |= captured(inner)
        self._added = 0
        constants = [node for node in model.graph.node if node.op_type == "Constant"]
        self._constants = {tensor.name for tensor in model.graph.initializer}.union(
            *(node.output for node in constants)
        )
        self._integers: dict[str, list[int]] = {}
        for place in constant_places(model):
            is_integer = place.tensor.data_type == onnx.TensorProto.INT64
            if place.scope == "graph" and is_integer and math.prod(place.tensor.dims) <= _AXES_MAX:
                self._integers[place.value_name] = onnx.numpy_helper.to_array(place.tensor).ravel().tolist()

    def products(self, names: Sequence[str], layer: Layer) -> list[tuple[_Product, Use]] | None:
        """The products of a layer with an activation; None if it has any other use."""
        result = []
        pending: list[tuple[str, Arrangement, tuple[int, ...]]] = [
            (name, Arrangement.of(layer.shape), ()) for name in names
        ]
        while pending:
            name, arrangement, order = pending.pop(0)
            if name in self._elsewhere:
                return None
            if not order and (reordered := self._reordered(name, arrangement.shape)):
                pending.append((reordered[0], arrangement, reordered[1]))
                continue
            for node, number in self._consumers.get(name, ()):
                turned = self._turned(node, arrangement) if number == 0 else None
                if turned is not None and (not order or node.op_type == "Unsqueeze"):
                    pending.append((node.output[0], turned, order))
                    continue
                product = self._product(node, number, arrangement)
                if product is None or product[1].tensor in self._constants:
                    return None
                if order:
                    matrix, entering, leaving = product
                    if not isinstance(leaving, GateOutput):
                        return None
                    product = matrix, entering, replace(leaving, order=order)
                result.append((product, (node, number)))
        return result

    def _reordered(self, name: str, shape: Sequence[int]) -> tuple[str, tuple[int, ...]] | None:
        """The value that holds all rows of another in a different order, and that order; None if there is none.

        By Slices along the first axis, and a Concat of these, exporters bring gates into the order of ONNX.
        """
        slices = {}
        for node, number in self._consumers.get(name, ()):
            if node.op_type != "Slice" or number or len(node.input) < 4:
                return None
            begin, end, *rest = (self._integers.get(value, []) for value in node.input[1:])
            if len(begin) != 1 or len(end) != 1 or rest not in ([[0]], [[0], [1]]):  # axes, steps
                return None
            slices[node.output[0]] = range(shape[0])[begin[0] : end[0]]
        joined = [node for value in slices for node, _ in self._consumers.get(value, ())]
        if not joined or any(node is not joined[0] for node in joined) or self._elsewhere & slices.keys():
            return None
        order = tuple(index for value in joined[0].input for index in slices.get(value, ()))
        if joined[0].op_type != "Concat" or attributes_of(joined[0])["axis"] or sorted(order) != [*range(shape[0])]:
            return None
        return joined[0].output[0], order

    def bias(self, matrix: Matrix, use: Use) -> int | None:
        """The number of the layer that is added to a product, one element for each group and row."""
        node, number = use
        if number != 1 or node.op_type not in (*_WITH_BIAS, "MatMul", "FusedMatMul"):
            return None
        if node.op_type in _WITH_BIAS:
            name = node.input[2] if len(node.input) > 2 and attributes_of(node).get("beta", 1.0) == 1 else ""
        else:
            uses = self._consumers.get(node.output[0], [])
            if len(uses) != 1 or uses[0][0].op_type != "Add" or node.output[0] in self._elsewhere:
                return None
            name = uses[0][0].input[1 - uses[0][1]]
        found = self._numbers.get(name)
        if found is None or len(self.names[found]) > 1 or len(self._consumers[name]) > 1 or name in self._elsewhere:
            return None
        return found if self._layers[found].shape == (matrix.shape[0] * matrix.shape[1],) else None

    def _turned(self, node: onnx.NodeProto, value: Arrangement) -> Arrangement | None:
        """What a node makes of a weight that it only transposes, reshapes or rounds to a grid; None if it does more."""
        attributes = attributes_of(node)
        if self._is_foreign(node):
            return None
        if node.op_type in _SAME_VALUES or (node.op_type == "Cast" and attributes.get("to") in FLOAT_TYPES):
            return value
        if node.op_type == "Transpose":
            return value.transposed(attributes.get("perm", range(len(value.shape))[::-1]))
        shape = self._shape(node, attributes, value.shape)
        return None if shape is None else value.reshaped(shape)

    def _shape(self, node: onnx.NodeProto, attributes: Mapping[str, Any], shape: Sequence[int]) -> list[int] | None:
        """The shape that a node gives to a value, where it is known; None if the node does something else."""
        given = self._integers.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type == "Flatten":
            axis = attributes.get("axis", 1)
            return [math.prod(shape[:axis]), math.prod(shape[axis:])]
        if node.op_type == "Reshape" and given is not None:
            sizes = [shape[i] if size == 0 and i < len(shape) else size for i, size in enumerate(given)]
            known = math.prod(size for size in sizes if size != -1)
            return [math.prod(shape) // max(known, 1) if size == -1 else size for size in sizes]
        axes = given if given is not None else attributes.get("axes")
        if node.op_type == "Unsqueeze" and axes is not None:
            added = {axis % (len(shape) + len(axes)) for axis in axes}
            rest = iter(shape)
            return [1 if axis in added else next(rest) for axis in range(len(shape) + len(axes))]
        if node.op_type == "Squeeze" and axes is not None:
            dropped = {axis % len(shape) for axis in axes}
            return [size for axis, size in enumerate(shape) if axis not in dropped]
        return None

    def _product(self, node: onnx.NodeProto, number: int, value: Arrangement) -> _Product | None:
        """Matrix and input of the product of a weight, which enters a node at an input; None if it is none."""
        if self._is_foreign(node):
            return None
        attributes = attributes_of(node)
        if node.op_type in ("MatMul", "FusedMatMul", "Gemm", "FusedGemm") and number < 2:
            return _matrix_product(node, attributes, number, value)
        if node.op_type in ("Conv", "FusedConv", "ConvTranspose") and number == 1:
            return _convolution(node, attributes, value)
        if node.op_type == "Gather" and number == 0 and attributes.get("axis", 0) == 0 and len(value.shape) > 1:
            return _lookup(node, value)
        if node.op_type in ("LSTM", "GRU", "RNN") and number in (1, 2):
            return self._recurrence(node, attributes, number, value)
        return None

    def _is_foreign(self, node: onnx.NodeProto) -> bool:
        return node.domain not in _DOMAINS or (node.domain, node.op_type) in self._functions

    def _recurrence(
        self, node: onnx.NodeProto, attributes: Mapping[str, Any], number: int, value: Arrangement
    ) -> _Product | None:
        inputs = [*node.input, *[""] * 8]
        if attributes.get("layout", 0) or inputs[4]:  # with lengths, what lies behind the end is not computed
            return None
        if not node.output[0]:
            node.output[0] = self._fresh()  # what it remembers
        directions = value.shape[0]
        matrix = value.matrix((0,), (1,), (2,))
        if number == 1:
            return matrix, SequenceInput(node.input[0], directions), GateOutput(tuple(node.output), False)
        if node.op_type == "GRU" and not attributes.get("linear_before_reset", 0):  # one gate multiplies another state
            return None
        direction = attributes.get("direction", b"forward")
        backward = (False, True) if direction == b"bidirectional" else (direction == b"reverse",)
        entering = StateInput(self._states(node, inputs[5]), backward, bool(inputs[5]))
        return matrix, entering, GateOutput(tuple(node.output), True)

    def _states(self, node: onnx.NodeProto, initial: str) -> str:
        """Name of the outputs of a recurrent node at all steps, the initial state before them if there is any."""
        if not initial:
            return str(node.output[0])
        first, states = self._fresh(), self._fresh()
        if self._opset >= _UNSQUEEZE_BY_INPUT:
            axes = onnx.numpy_helper.from_array(np.zeros(1, np.int64), self._fresh())
            self._graph.initializer.append(axes)
            added = onnx.helper.make_node("Unsqueeze", [initial, axes.name], [first])
        else:
            added = onnx.helper.make_node("Unsqueeze", [initial], [first], axes=[0])
        self._graph.node.append(added)
        self._graph.node.append(onnx.helper.make_node("Concat", [first, node.output[0]], [states], axis=0))
        return states

    def _fresh(self) -> str:
        self._added += 1
        return _OWN.format(self._added)


def _matrix_product(
    node: onnx.NodeProto, attributes: Mapping[str, Any], number: int, value: Arrangement
) -> _Product | None:
    """Of MatMul and Gemm: a weight on the left is a matrix as it is, one on the right is its transpose."""
    if attributes.get("transBatchA", 0) or attributes.get("transBatchB", 0):
        return None
    on_the_left, is_vector = number == 0, len(value.shape) == 1
    if is_vector:
        vector = value.reshaped((1, *value.shape) if on_the_left else (*value.shape, 1))
        if vector is None:
            return None
        value = vector
    turned, other_turned = attributes.get("transA", 0), attributes.get("transB", 0)
    if not on_the_left:
        turned, other_turned = other_turned, turned
    batch, last = range(len(value.shape) - 2), len(value.shape) - 1
    rows, columns = (last - 1, last) if on_the_left != bool(turned) else (last, last - 1)
    entering = ProductInput(
        tensor=node.input[1 - number],
        transposed=on_the_left != bool(other_turned),
        batch=value.shape[:-2],
        scale=attributes.get("alpha", 1.0),
    )
    leaving = ProductOutput(tuple(node.output), on_the_left, value.shape[:-2], is_vector)
    return value.matrix(batch, (rows,), (columns,)), entering, leaving


def _convolution(node: onnx.NodeProto, attributes: Mapping[str, Any], value: Arrangement) -> _Product | None:
    """Of Conv and ConvTranspose; a column is an input channel of the group and a tap of the kernel."""
    groups = attributes.get("group", 1)
    outer, inner, *kernel = value.shape
    grouped = value.reshaped((groups, outer // groups, inner, *kernel))
    if grouped is None or not kernel:
        return None
    taps, ones, zeros = range(3, 3 + len(kernel)), (1,) * len(kernel), (0,) * len(kernel)
    auto_pad, is_transposed = attributes.get("auto_pad", b"NOTSET").decode(), node.op_type == "ConvTranspose"
    entering = WindowInput(
        tensor=node.input[0],
        kernel=tuple(kernel),
        strides=tuple(attributes.get("strides", ones)),
        dilations=tuple(attributes.get("dilations", ones)),
        pads=2 * zeros if auto_pad == "VALID" else tuple(attributes.get("pads", 2 * zeros)),
        auto_pad=auto_pad,
        groups=groups,
        transposed=is_transposed,
        output_padding=tuple(attributes.get("output_padding", zeros)),
        output_shape=tuple(attributes.get("output_shape", ()))[-len(kernel) :],
    )
    rows, columns = (2, 1) if is_transposed else (1, 2)
    return grouped.matrix((0,), (rows,), (columns, *taps)), entering, WindowOutput(tuple(node.output))


def _lookup(node: onnx.NodeProto, value: Arrangement) -> _Product:
    """Of Gather along the first axis: every entry of the table is a column."""
    inner = range(1, len(value.shape))
    entering = LookupInput(node.input[1], value.shape[0])
    return value.matrix((), inner, (0,)), entering, LookupOutput(tuple(node.output), len(inner))
