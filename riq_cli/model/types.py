"""Types of a model's tensors, and those that could be measured in place of its outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import onnx

from riq_cli.model.places import scopes, subgraphs
from riq_cli.model.tensors import FLOAT_TYPES
from riq_cli.model.uses import captured


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Types of tensors in all graphs by their names, as `onnx.TensorProto` numbers them, as far as they are known."""
    with contextlib.suppress(Exception):  # it raises what it likes; then those that are declared are known
        model = onnx.shape_inference.infer_shapes(model)
    found = {}
    for _, scope in reversed(list(scopes(model))):  # the main graph last: functions may use its names for others
        values = list(scope.value_info)
        if isinstance(scope, onnx.GraphProto):
            values += [*scope.input, *scope.output]
            found.update({tensor.name: tensor.data_type for tensor in scope.initializer})
        found.update({value.name: value.type.tensor_type.elem_type for value in values})
    return {name: kind for name, kind in found.items() if kind}


def type_name(value: onnx.ValueInfoProto, types: Mapping[str, int]) -> str:
    """Type of a value as messages show it: `int64`, `string`, `sequence`; `undefined` if it is not known."""
    kind = value.type.WhichOneof("value")
    if kind not in (None, "tensor_type"):
        return str(kind).removesuffix("_type")
    return str(onnx.TensorProto.DataType.Name(types.get(value.name, 0))).lower()


def inner_floats(model: onnx.ModelProto, types: Mapping[str, int], most: int) -> list[str]:
    """Names of float tensors that nodes of the main graph compute, those nearest to its outputs first."""
    producers = {name: node for node in model.graph.node for name in node.output if name}
    names = [output.name for output in model.graph.output]
    seen = set(names)
    for name in names:  # which grows
        node = producers.get(name)
        if node is not None:
            behind = [*node.input, *(inner for _, graph in subgraphs(node) for inner in sorted(captured(graph)))]
            names += [one for one in dict.fromkeys(behind) if one and one not in seen]
            seen.update(behind)
    return [name for name in names if name in producers and types.get(name) in FLOAT_TYPES][:most]
