"""Noise that is looked up in a table instead of being drawn, so that every run of every model sees the same.

The deviation compares runs of the original with runs of other weights. Where a model draws random numbers, as samplers
of speech and images do, two runs differ even with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx

from riq_cli.model.places import OWN_DOMAINS, attributes_of, opset_of, put_nodes, scopes
from riq_cli.model.tensors import Array
from riq_cli.model.types import tensor_types

_NAME = "riq/noise{}/{}"
_NUMBERS = 65_537  # in a table: a prime, so that rows of common lengths do not repeat each other
_STEP = 7_919  # between the places in the table where two operators begin
_OPSET = 9  # the first with all operators that are needed here
_CAST_LIKE, _ALLOW_ZERO = 15, 14  # opsets from which on these exist

Attributes = Mapping[str, Any]


def feed_noise(model: onnx.ModelProto) -> None:
    """Replace operators of `model` that draw random numbers by ones that look them up.

    What replaces them keeps no state: the numbers depend on the operator and on the shape of its output alone. It lies
    in the same graph or function. Models of an opset below 9 stay as they are.
    """
    drawing = [scope for _, scope in scopes(model) if any(_draws(node) for node in scope.node)]
    if not drawing:
        return
    number = 0
    types = tensor_types(model)
    for scope in reversed(drawing):  # inner scopes first: their messages move with an outer's edit
        opset = opset_of(scope if isinstance(scope, onnx.FunctionProto) else model)
        if opset < _OPSET:
            continue
        nodes: list[onnx.NodeProto] = []
        for node in scope.node:
            if _draws(node):
                graph = _Replacement(number, opset, types)
                _REPLACED[node.op_type](graph, node, attributes_of(node))
                nodes += graph.nodes
                number += 1
            else:
                nodes.append(node)
        put_nodes(scope, nodes)


def _draws(node: onnx.NodeProto) -> bool:
    """Whether a node may draw random numbers, and its attributes are known here."""
    if node.op_type not in _REPLACED or node.domain not in OWN_DOMAINS:
        return False
    if any(attribute.ref_attr_name for attribute in node.attribute):
        return False
    if not node.output or not (node.input or node.op_type in ("RandomNormal", "RandomUniform")):
        return False  # no session runs it
    # A Dropout drops nothing unless its third input tells it to train.
    return node.op_type != "Dropout" or (len(node.input) > 2 and node.input[2] != "")


class _Replacement:
    """Nodes that take the place of one."""

    def __init__(self, number: int, opset: int, types: Mapping[str, int]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._number, self._opset, self._types = number, opset, types

    def add(self, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Name of the output of a new node."""
        output = output or _NAME.format(self._number, len(self.nodes))
        self.nodes.append(onnx.helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        """Name of a constant."""
        return self.add("Constant", value=onnx.numpy_helper.from_array(np.array(values, dtype)))

    def drawn(self, table: Array, shape: str) -> str:
        """Name of numbers f32 from a table, in the shape that a tensor holds."""
        length = self.add("Concat", shape, self.constant([1], np.int64), axis=0)  # never empty
        count = self.add("ReduceProd", length, keepdims=1)
        one = onnx.numpy_helper.from_array(np.array([1], np.int64))
        numbers = self.add("NonZero", self.add("ConstantOfShape", count, value=one))  # 0 … count − 1
        shifted = self.add("Add", numbers, self.constant(self._number * _STEP, np.int64))
        size = self.constant(_NUMBERS, np.int64)
        rounds = self.add("Mul", self.add("Div", shifted, size), size)
        places = self.add("Sub", shifted, rounds)  # modulo the size; Mod is younger than the other operators
        found = self.add("Gather", self.constant(table), places, axis=0)
        allowed: dict[str, Any] = {"allowzero": 1} if self._opset >= _ALLOW_ZERO else {}
        return self.add("Reshape", found, shape, **allowed)

    def cast(self, value: str, like: str, dtype: int | None = None, output: str = "") -> str:
        """Name of a value in a type, or, if that is None, in the type of another tensor."""
        if dtype is None and self._opset >= _CAST_LIKE:
            return self.add("CastLike", value, like, output=output)
        return self.add("Cast", value, output=output, to=dtype or self._types.get(like, onnx.TensorProto.FLOAT))


def _random(table: Callable[[], Array], graph: _Replacement, node: onnx.NodeProto, given: Attributes) -> None:
    """RandomNormal, RandomUniform, and the same in the shape of an input."""
    if node.input:
        shape, like, dtype = graph.add("Shape", node.input[0]), node.input[0], given.get("dtype")
    else:
        shape, like = graph.constant(given.get("shape", []), np.int64), ""
        dtype = given.get("dtype", onnx.TensorProto.FLOAT)
    low, high = given.get("low", 0.0), given.get("high", 1.0)
    scale, mean = (given.get("scale", 1.0), given.get("mean", 0.0)) if table is _normal else (high - low, low)
    scaled = graph.add("Mul", graph.drawn(table(), shape), graph.constant(scale))
    graph.cast(graph.add("Add", scaled, graph.constant(mean)), like, dtype, node.output[0])


def _bernoulli(graph: _Replacement, node: onnx.NodeProto, given: Attributes) -> None:
    """1 with the probability that the input holds, else 0."""
    source = node.input[0]
    drawn = graph.drawn(_uniform(), graph.add("Shape", source))
    hit = graph.add("Less", drawn, graph.cast(source, "", onnx.TensorProto.FLOAT))
    graph.cast(hit, source, given.get("dtype"), node.output[0])


def _multinomial(graph: _Replacement, node: onnx.NodeProto, given: Attributes) -> None:
    """Classes drawn by logarithms of their probabilities: the largest sum of such a logarithm and Gumbel noise."""
    source = node.input[0]
    shape = graph.add("Shape", source)
    batch, classes = (graph.add("Gather", shape, graph.constant([axis], np.int64), axis=0) for axis in (0, 1))
    count = graph.constant([given.get("sample_size", 1)], np.int64)
    noise = graph.drawn(_gumbel(), graph.add("Concat", batch, count, classes, axis=0))
    logarithms = graph.add("Reshape", source, graph.constant([0, 1, -1], np.int64))
    sums = graph.add("Add", graph.cast(logarithms, "", onnx.TensorProto.FLOAT), noise)
    found = graph.add("ArgMax", sums, axis=2, keepdims=0)
    graph.cast(found, "", given.get("dtype", onnx.TensorProto.INT32), node.output[0])


def _dropout(graph: _Replacement, node: onnx.NodeProto, given: Attributes) -> None:
    """The input without a share of its elements where it is told to train, else the input."""
    source, ratio, training = node.input[:3]
    ratio = graph.cast(ratio, "", onnx.TensorProto.FLOAT) if ratio else graph.constant(0.5)
    drawn = graph.drawn(_uniform(), graph.add("Shape", source))
    hit = graph.add("And", graph.add("Less", drawn, ratio), training)
    mask = graph.add("Not", hit, output=node.output[1] if len(node.output) > 1 else "")
    one = graph.constant(1.0)
    scale = graph.add("Where", training, graph.add("Div", one, graph.add("Sub", one, ratio)), one)
    scaled = graph.add("Mul", source, graph.cast(scale, source))
    graph.add("Where", mask, scaled, graph.cast(graph.constant(0.0), source), output=node.output[0])


def _normal() -> Array:
    return np.random.default_rng(0).standard_normal(_NUMBERS, np.float32)


def _uniform() -> Array:
    return np.random.default_rng(0).random(_NUMBERS, np.float32)


def _gumbel() -> Array:
    return np.random.default_rng(0).gumbel(size=_NUMBERS)


_REPLACED: dict[str, Callable[[_Replacement, onnx.NodeProto, Attributes], None]] = {
    **dict.fromkeys(("RandomNormal", "RandomNormalLike"), partial(_random, _normal)),
    **dict.fromkeys(("RandomUniform", "RandomUniformLike"), partial(_random, _uniform)),
    "Bernoulli": _bernoulli,
    "Multinomial": _multinomial,
    "Dropout": _dropout,
}
