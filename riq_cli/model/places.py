"""Places: paths to the tensors inside a model's protobuf messages, such as `graph.node[5].attribute[0].t`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from google.protobuf.message import Message

from riq_cli.errors import CorruptArchive, ModelError

_STEP = re.compile(r"([a-z]+)(?:\[(\d+)\])?")
OWN_DOMAINS = ("", "ai.onnx")  # both are ONNX's
CONTRIB = "com.microsoft"  # onnxruntime's own domain, whose operators do not depend on the model's opset
AXIS_OPSET = 13  # from which on DequantizeLinear knows axes
FIELDS = {"graph", "functions", "node", "attribute", "g", "graphs", "t", "initializer"}


@dataclass(frozen=True)
class Place:
    """Where a tensor lives: its path, its message, the name that nodes know it by, and the path of the graph around."""

    path: str
    tensor: onnx.TensorProto
    value_name: str
    scope: str


def check_names(model: onnx.ModelProto) -> None:
    """Return nothing if all names that riq looks at are text; protobuf gives those that are not UTF-8 as bytes.

    Raises:
        ModelError: one that is not.
    """
    try:
        for path, scope in scopes(model):
            for name in _names(scope):
                if not isinstance(name, str):
                    raise ModelError(f"the name {name!r} in {path} is not valid UTF-8; rename it")
    except UnicodeDecodeError as error:  # of other implementations of protobuf
        raise ModelError(f"a name in the model is not valid UTF-8 ({error}); rename it") from error


def _names(scope: onnx.GraphProto | onnx.FunctionProto) -> Iterator[object]:
    """All names of a graph or function, without those of its subgraphs."""
    for node in scope.node:
        yield from (node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    if isinstance(scope, onnx.FunctionProto):
        yield from (scope.name, scope.domain, *scope.input, *scope.output)
        return
    yield from (item.name for items in (scope.input, scope.output, scope.initializer) for item in items)
    for value in scope.input:
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)


def taken_names(model: onnx.ModelProto) -> set[str]:
    """The names that a model uses anywhere, in subgraphs and functions too."""
    return {str(name) for _, scope in scopes(model) for name in _names(scope)}


def free_name(name: str, taken: set[str]) -> str:
    """A name that no tensor has, like the given one; it is taken from then on."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def opset_of(importing: onnx.ModelProto | onnx.FunctionProto) -> int:
    """The version of ONNX's own operators that a model or function is written in."""
    return max((item.version for item in importing.opset_import if item.domain in OWN_DOMAINS), default=1)


def import_contrib(importing: onnx.ModelProto | onnx.FunctionProto) -> None:
    """Have a model or function import the operators of onnxruntime's own domain."""
    if all(item.domain != CONTRIB for item in importing.opset_import):
        importing.opset_import.add(domain=CONTRIB, version=1)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """The values of a node's attributes by their names."""
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def put_nodes(scope: onnx.GraphProto | onnx.FunctionProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Give a graph or function other nodes in place of its own, which may be among them."""
    fresh = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # its own end with what held them
    del scope.node[:]
    scope.node.extend(fresh)


def drop(items: Any, names: Collection[str]) -> None:
    """Remove those items of a repeated field that have one of these names."""
    for index in reversed(range(len(items))):
        if items[index].name in names:
            del items[index]


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors of a graph other names, in its subgraphs too."""
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = names.get(sparse.values.name, sparse.values.name)
    for node in graph.node:
        for used in (node.input, node.output):
            used[:] = [names.get(name, name) for name in used]
        for _, inner in subgraphs(node):
            rename(inner, names)


def scopes(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.GraphProto | onnx.FunctionProto]]:
    """Every graph with its path, subgraphs and functions included; an outer one before those inside it."""
    yield from _scopes("graph", model.graph)
    for index, function in enumerate(model.functions):
        yield from _scopes(f"functions[{index}]", function)


def _scopes(
    path: str, scope: onnx.GraphProto | onnx.FunctionProto
) -> Iterator[tuple[str, onnx.GraphProto | onnx.FunctionProto]]:
    yield path, scope
    for index, node in enumerate(scope.node):
        for name, graph in subgraphs(node):
            yield from _scopes(f"{path}.node[{index}].{name}", graph)


def subgraphs(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs that a node holds in its attributes, each with its path from the node."""
    for index, attribute in enumerate(node.attribute):
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield f"attribute[{index}].g", attribute.g
        for number, graph in enumerate(attribute.graphs):
            yield f"attribute[{index}].graphs[{number}]", graph


def constant_places(model: onnx.ModelProto) -> Iterator[Place]:
    """Every constant tensor of the model: initializers, and the values of Constant nodes."""
    for path, scope in scopes(model):
        if isinstance(scope, onnx.GraphProto):
            for index, tensor in enumerate(scope.initializer):
                yield Place(f"{path}.initializer[{index}]", tensor, tensor.name, path)
        for index, node in enumerate(scope.node):
            if node.op_type == "Constant" and node.domain in OWN_DOMAINS and node.output:
                for number, attribute in enumerate(node.attribute):
                    if attribute.name == "value" and attribute.HasField("t"):
                        place = f"{path}.node[{index}].attribute[{number}].t"
                        yield Place(place, attribute.t, node.output[0], path)


def tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor in a message, wherever it is."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in [value] if isinstance(value, Message) else value:
                yield from tensors(item)


def find_tensor(model: onnx.ModelProto, path: str) -> onnx.TensorProto:
    """The tensor at a place.

    Raises:
        CorruptArchive: nothing is there, or it is not a tensor.
    """
    message: object = model
    for step in path.split("."):
        match = _STEP.fullmatch(step)
        if match is None or match[1] not in FIELDS or not hasattr(message, match[1]):
            raise CorruptArchive(f"{path}: not the path of a tensor; the archive is damaged")
        message = getattr(message, match[1])
        if match[2] is not None:
            if isinstance(message, (onnx.GraphProto, onnx.TensorProto)) or int(match[2]) >= len(message):  # type: ignore[arg-type]
                raise CorruptArchive(f"{path}: the skeleton holds nothing there; the archive is damaged")
            message = message[int(match[2])]  # type: ignore[index]
    if not isinstance(message, onnx.TensorProto):
        raise CorruptArchive(f"{path}: not the path of a tensor; the archive is damaged")
    return message
