"""A form's main graph as plain data: its operations in the order in which they run, and its constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from riq_cli.model.places import OWN_DOMAINS, opset_of, subgraphs
from riq_cli.model.session_form import SessionForm
from riq_cli.model.tensors import Array
from riq_cli.model.uses import captured


@dataclass(frozen=True)
class Operation:
    """One node: what it does, and the names of the tensors it reads and writes; "" stands for one that is left out.

    What its subgraphs read of the main graph comes after the node's own inputs, sorted.
    `attributes` hold numbers, strings, lists of these, and arrays. `version` is the opset of the node's domain. The
    kind of a node from another domain than ONNX's own is "domain:type".
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    version: int


def operations(form: SessionForm) -> tuple[list[Operation], dict[str, Array]]:
    """The operations of a form's main graph, and the constants in it that are not layers from outside.

    Subgraphs are no part of any operation; only what they read is among its inputs.
    """
    model = onnx.ModelProto.FromString(form.model)
    opset = opset_of(model)
    versions = {item.domain: item.version for item in model.opset_import}
    layers = {name for name, _ in form.weights}
    constants = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name not in layers
    }
    known = {item.name for item in model.graph.input} | layers  # so far, besides constants
    found = []
    for node in model.graph.node:
        attributes = {item.name: _value(item) for item in node.attribute if item.g.ByteSize() == 0 and not item.graphs}
        own = node.domain in OWN_DOMAINS
        if own and node.op_type == "Constant" and "value" in attributes:
            constants[node.output[0]] = attributes["value"]
            continue
        inside = set[str]().union(*(captured(graph) for _, graph in subgraphs(node))) - set(node.input)
        found.append(
            Operation(
                node.op_type if own else f"{node.domain}:{node.op_type}",
                (*node.input, *sorted(name for name in inside if name in known or name in constants)),
                tuple(node.output),
                attributes,
                opset if own else versions.get(node.domain, 1),
            )
        )
        known |= set(node.output)
    return found, constants


def _value(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list):
        return [item.decode(errors="replace") if isinstance(item, bytes) else item for item in value]
    return value
