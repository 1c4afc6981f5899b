"""A model whose activations are 8-bit integers where weights multiply them: QuantizeLinear, then DequantizeLinear.

That is what enters Conv, ConvTranspose, Gemm or MatMul beside constants. What else uses an activation, such as a skip
connection, takes it in float as before.

onnxruntime would round the float weights of Conv, ConvTranspose and Gemm to 8 bits, with one scale for all of them,
where it finds a single scale in front of them. Nobody asked for that, and it can ruin a model. So there, the scale is
written once for each channel, and what has only one channel stays in float. `take_single_scales` brings the scales
together where weights are integers of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from riq_cli.model.model import Model
from riq_cli.model.places import (
    AXIS_OPSET,
    CONTRIB,
    OWN_DOMAINS,
    attributes_of,
    free_name,
    import_contrib,
    opset_of,
    put_nodes,
    taken_names,
)
from riq_cli.model.saturation import producers_of
from riq_cli.model.uses import consumed, operand

_LEVELS = 255  # of unsigned 8-bit integers, besides 0
_WITH_CHANNELS = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class Activation:
    """What was seen of an activation.

    Attributes:
        low, high: the range that its integers are to hold, besides 0.
        shape: of one of its values.
    """

    low: float
    high: float
    shape: tuple[int, ...]

    @property
    def grid(self) -> tuple[np.float32, np.uint8]:
        """Scale and zero point: 0 is one of 256 levels."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = np.float32((high - low) / _LEVELS)
        return scale, np.uint8(np.clip(np.rint(-low / scale), 0, _LEVELS))


def multiplied_activations(model: Model) -> list[str]:
    """Names of the activations that weights multiply, in the order of their use; those already quantized left out."""
    graph = model.skeleton.graph
    constants = _constants(graph)
    quantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    numbers = ((node, _activation(node, constants)) for node in graph.node)
    names = [node.input[number] for node, number in numbers if number is not None]
    return [name for name in dict.fromkeys(names) if name not in quantized]


def with_quantized_activations(model: Model, seen: Mapping[str, Activation]) -> Model:
    """The model with these activations on 8-bit grids where weights multiply them; nothing else of it changes."""

    def quantize(proto: onnx.ModelProto) -> None:
        graph, constants = proto.graph, _constants(proto.graph)
        taken = taken_names(proto)
        domain = "" if opset_of(proto) >= AXIS_OPSET else CONTRIB
        if domain == CONTRIB:
            import_contrib(proto)
        nodes: list[onnx.NodeProto] = []
        integers: dict[str, str] = {}  # by the activation
        floats: dict[tuple[str, int | None], str] = {}  # by the activation and the axis of its channels

        def add(kind: str, name: str, value: str, length: int | None, axis: int | None) -> str:
            """Add a node to or from the grid of an activation, its scale written `length` times along an axis."""
            output = free_name(f"{name}/{kind}", taken)
            parts = []
            for number, part in zip(seen[name].grid, ("scale", "zero"), strict=True):
                parts.append(free_name(f"{output}/{part}", taken))
                array = np.asarray(number) if length is None else np.full(length, number)
                tensor = onnx.numpy_helper.from_array(array)
                nodes.append(onnx.helper.make_node("Constant", [], [parts[-1]], value=tensor))
            nodes.append(onnx.helper.make_node(kind, [value, *parts], [output], domain=domain, axis=axis))
            return output

        for node in graph.node:
            number = _activation(node, constants)
            if number is not None and node.input[number] in seen:
                name, axis = node.input[number], _channels(node, number)
                length = None if axis is None else seen[name].shape[axis]
                if length != 1 and name not in integers:
                    integers[name] = add("QuantizeLinear", name, name, None, None)
                if length != 1 and (name, axis) not in floats:
                    floats[name, axis] = add("DequantizeLinear", name, integers[name], length, axis)
                node.input[number] = floats.get((name, axis), name)
            nodes.append(node)
        put_nodes(graph, nodes)

    return model.edited(quantize)


def take_single_scales(graph: onnx.GraphProto) -> None:
    """Have grids of activations with one scale, in `graph`, which is changed, where it is the same for all channels.

    Kernels for integers take no other grids; and weights that are integers are not rounded again.
    """
    producers = producers_of(graph)
    constants = {
        node.output[0]: attribute.t
        for node in graph.node
        for attribute in node.attribute
        if node.op_type == "Constant" and attribute.name == "value"
    }
    spared: set[str] = set()
    for node in graph.node:
        behind = producers.get(operand(node, 0))
        if node.op_type != "DequantizeLinear" or behind is None or behind.op_type != "QuantizeLinear":
            continue
        own, other = ([constants.get(name) for name in one.input[1:]] for one in (node, behind))
        if len(own) == len(other) and all(map(_repeats, own, other)):
            spared.update(node.input[1:])
            node.input[1:] = behind.input[1:]
            node.ClearField("attribute")
    spared -= consumed(graph)
    put_nodes(graph, [node for node in graph.node if spared.isdisjoint(node.output)])


def _repeats(many: onnx.TensorProto | None, one: onnx.TensorProto | None) -> bool:
    """Whether the first tensor holds the number of the second, again and again."""
    if many is None or one is None or len(many.dims) != 1 or one.dims:
        return False
    return bool((onnx.numpy_helper.to_array(many) == onnx.numpy_helper.to_array(one)).all())


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Names of the values of a graph that depend on no input."""
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" or (node.input and constants.issuperset(filter(None, node.input))):
            constants.update(node.output)
    return constants


def _activation(node: onnx.NodeProto, constants: Collection[str]) -> int | None:
    """The number of the input by which a node takes an activation that it multiplies by constants; None without one."""
    if node.domain not in OWN_DOMAINS or node.op_type not in (*_WITH_CHANNELS, "MatMul"):
        return None
    left, right = (operand(node, number) in constants for number in range(2))
    if left == right or (left and node.op_type in ("Conv", "ConvTranspose")):
        return None
    return int(left)


def _channels(node: onnx.NodeProto, number: int) -> int | None:
    """The axis of an activation's channels where onnxruntime would round the weights behind a single scale."""
    if node.op_type not in _WITH_CHANNELS or number:
        return None
    return 0 if node.op_type == "Gemm" and attributes_of(node).get("transA", 0) else 1
