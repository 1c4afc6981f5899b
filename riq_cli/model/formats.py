"""A model with layers in fewer bits: integers behind DequantizeLinear, or float16 behind a Cast to a layer's own type.

The tensor gets another name, and the nodes behind it give their result the old one: what used the tensor finds it as it
was. But a Gather takes rows of the stored tensor, so that a run converts no others. Constant nodes of graphs become
initializers, those of functions stay.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from riq_cli.model.activations import take_single_scales
from riq_cli.model.layer import Layer
from riq_cli.model.model import Model
from riq_cli.model.places import (
    AXIS_OPSET,
    CONTRIB,
    drop,
    free_name,
    import_contrib,
    opset_of,
    put_nodes,
    scopes,
    taken_names,
)
from riq_cli.model.tensors import ONNX_TYPES, Array
from riq_cli.model.uses import Use, captured, given_out, operand, uses_in

INTEGER_BITS = {"int8": 8, "int4": 4}
_TYPES = {"int8": onnx.TensorProto.INT8, "int4": onnx.TensorProto.INT4, "float16": onnx.TensorProto.FLOAT16}
_INT4_IR = 10  # version of ONNX's files that knows 4-bit integers
_OWN_INITIALIZERS_IR = 4  # … and from which on initializers need not be inputs of the graph

Scope = onnx.GraphProto | onnx.FunctionProto


@dataclass(frozen=True, eq=False)
class Stored:
    """How a layer is stored.

    Attributes:
        dtype: `int8`, `int4` or `float16`. onnxruntime takes no 4-bit Constant nodes: layers of functions have 8.
        values: i8 or f16, of the layer's shape, or of another one that is reshaped to it; 4-bit integers are i8 too.
        scales: f32, one for the layer, [], or one for each index along `axis`; None for float16.
        axis: along which scales lie; None: there is one.
        transposed: whether the values are the layer's transpose, and what multiplies by them has to know.
    """

    dtype: str
    values: Array
    scales: NDArray[np.float32] | None = None
    axis: int | None = None
    transposed: bool = False

    @property
    def data(self) -> Array:
        """The values as a file holds them: two 4-bit integers share a byte, the first one in its lower half."""
        if self.dtype != "int4":
            return self.values
        halves = np.append(self.values.reshape(-1), np.zeros(self.values.size % 2, np.int8)).reshape(-1, 2)
        packed: Array = (halves[:, 0] & 0x0F | halves[:, 1] << 4).view(np.uint8)
        return packed


def with_stored(model: Model, stored: Mapping[int, Stored]) -> Model:
    """The model with some layers, by their number, stored in another type.

    Opset and operators stay as they are. Where the opset's DequantizeLinear cannot do what is needed, nodes are
    onnxruntime's own, see `is_contributed`.

    Raises:
        CorruptArchive: a layer that is in an attribute of another node than a Constant.
    """
    stored = dict(stored)

    def convert(proto: onnx.ModelProto) -> None:
        taken = taken_names(proto)
        if opset_of(proto) >= AXIS_OPSET:
            stored.update(_for_products(proto, stored))
        for _, scope in reversed(list(scopes(proto))):  # inner ones first: their messages move with an outer's edit
            _convert(proto, scope, model.layers, stored, taken)
        # With such an axis, onnxruntime brings biases to integers too, by a DequantizeLinear that older opsets lack.
        if opset_of(proto) >= AXIS_OPSET or all(one.axis is None for one in stored.values()):
            take_single_scales(proto.graph)
        kinds = {one.dtype for one in stored.values()}
        if kinds:
            proto.ir_version = max(proto.ir_version, _INT4_IR if "int4" in kinds else _OWN_INITIALIZERS_IR)

    edited = model.edited(convert)
    layers = [
        replace(layer, dtype=stored[number].dtype, values=stored[number].data) if number in stored else layer
        for number, layer in enumerate(edited.layers)
    ]
    return Model(edited.skeleton, layers, model.source)


def in_half_precision(model: Model, convert: Callable[[onnx.ModelProto], onnx.ModelProto]) -> Model:
    """The model as a converter makes it, with all its data in the skeleton.

    Raises:
        ModelError: it is above protobuf's 2 GiB.
    """
    return Model(convert(onnx.ModelProto.FromString(model.to_bytes())), [])


def is_contributed(opset: int, stored: Stored) -> bool:
    """Whether an opset's DequantizeLinear lacks what a layer needs: an axis, from 13 on, or 4-bit integers, from 21."""
    needed = 21 if stored.dtype == "int4" else 10 if stored.axis is None else AXIS_OPSET
    return stored.scales is not None and opset < needed


def trial(opset: int, dtype: str) -> bytes:
    """A serialized model of this opset with a tensor in 8-bit or 4-bit integers, to see whether a session takes it."""
    values = np.ones((2, 2), np.int8)
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["w"], ["y"])],
            "trial",
            [],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 2])],
            [onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2, 2])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", opset)],
        ir_version=_OWN_INITIALIZERS_IR,
    )
    layer = Layer("w", "Identity", ("graph.initializer[0]",), "float32", (2, 2), values.astype(np.float32))
    stored = Stored(dtype, values, np.ones(2, np.float32), axis=1)
    return with_stored(Model(proto, [layer]), {0: stored}).to_bytes()


def _for_products(model: onnx.ModelProto, stored: Mapping[int, Stored]) -> dict[int, Stored]:
    """Matrices of integers as onnxruntime multiplies by them: not transposed, with a scale for each column.

    It makes floats of others in each run.
    """
    uses: dict[int, list[str]] = {}  # of each layer, in all its places
    for _, scope in scopes(model):
        found, outputs = uses_in(scope), given_out(scope)
        integers = {out for node in scope.node if node.op_type == "DequantizeLinear" for out in node.output}
        for tensor, name in _marked(scope):
            products = [
                _product(node) if place == 1 and _takes_integers(node, found, integers) else ""
                for node, place in found.get(name, ())
            ]
            products += [""] if name in outputs else []
            uses.setdefault(int(tensor.external_data[0].value), []).extend(products)
    changed = {}
    for number, one in stored.items():
        kinds = set(uses.get(number, ()))
        if one.scales is None or one.values.ndim != 2 or len(kinds) != 1:
            continue
        if kinds == {"transposed"} and one.axis != 1:
            values = np.ascontiguousarray(one.values.T)
            changed[number] = Stored(one.dtype, values, np.broadcast_to(one.scales, values.shape[1]), 1, True)
        elif kinds == {"plain"} and one.axis is None:
            changed[number] = replace(one, scales=np.broadcast_to(one.scales, one.values.shape[1]), axis=1)
    return changed


def _product(node: onnx.NodeProto) -> str:
    """How a node multiplies by its second input: `plain`, `transposed`, or not at all."""
    if node.op_type == "Gemm" and any(item.name == "transB" and item.i for item in node.attribute):
        return "transposed"
    return "plain" if node.op_type in ("Gemm", "MatMul") else ""


def _takes_integers(node: onnx.NodeProto, uses: Mapping[str, Sequence[Use]], integers: Collection[str]) -> bool:
    """Whether onnxruntime multiplies by integers at a MatMul or Gemm, if only their scales allow it.

    It does not where nothing but Relu or Clip follows, nor at a Gemm that has `integers` for its first input, too.
    """
    if node.op_type == "Gemm" and operand(node, 0) in integers:
        return False
    behind = uses.get(next(iter(node.output), ""), ())
    if node.op_type == "MatMul" and [follower.op_type for follower, _ in behind] == ["Add"]:
        behind = uses.get(next(iter(behind[0][0].output), ""), ())  # onnxruntime makes one Gemm of both
    return [follower.op_type for follower, _ in behind] not in (["Relu"], ["Clip"])


def _convert(
    model: onnx.ModelProto, scope: Scope, layers: Sequence[Layer], stored: Mapping[int, Stored], taken: set[str]
) -> None:
    """Store the layers of one graph or function in another type."""
    tensors: list[onnx.TensorProto] = []
    front: dict[str, list[onnx.NodeProto]] = {}  # what gives a layer in its own type
    behind: dict[str, list[onnx.NodeProto]] = {}  # what gives rows of it so, by the output of a Gather
    gathers: dict[str, list[onnx.NodeProto]] = {}  # those that take rows, by the table
    for node in filter(_takes_rows, scope.node):
        gathers.setdefault(node.input[0], []).append(node)
    uses = uses_in(scope) if any(one.transposed for one in stored.values()) else {}
    for marked, name in _marked(scope):
        number = int(marked.external_data[0].value)
        if number not in stored:
            continue
        one, layer = stored[number], layers[number]
        tensor = onnx.TensorProto()
        tensor.CopyFrom(marked)
        tensor.name, tensor.data_type = free_name(f"{name}/{one.dtype}", taken), _TYPES[one.dtype]
        tensor.ClearField("dims")
        tensor.dims.extend(one.values.shape)
        tensors.append(tensor)
        chain: list[onnx.NodeProto] = []
        if one.scales is not None:
            tensors.append(onnx.numpy_helper.from_array(one.scales, free_name(f"{name}/scale", taken)))
            chain.append(_dequantize(model, scope, one, tensors[-1].name))
        if one.transposed:
            for node, _ in uses.get(name, ()):
                drop(node.attribute, ["transB"])
        elif one.values.shape != layer.shape:
            shape = np.array(layer.shape, np.int64)
            tensors.append(onnx.numpy_helper.from_array(shape, free_name(f"{name}/shape", taken)))
            chain.append(onnx.helper.make_node("Reshape", [tensors[-1].name], []))
        if one.scales is None or layer.dtype != "float32":
            chain.append(onnx.helper.make_node("Cast", [], [], to=ONNX_TYPES[layer.dtype]))
        front[name] = _connected(chain, tensor.name, name, taken)
        has_rows = one.values.shape == layer.shape and one.axis != 0 and one.dtype != "int4"  # that Gather takes
        for node in gathers.get(name, ()) if has_rows else ():
            result = node.output[0]
            node.input[0], node.output[0] = tensor.name, free_name(f"{result}/{one.dtype}", taken)
            rows = _connected(chain, node.output[0], result, taken)
            if one.axis is not None:  # there may be any number of axes in front
                rows[0].attribute[0].i = one.axis - len(layer.shape)
            behind[node.output[0]] = rows
    used = captured(scope)
    added = [node for name, chain in front.items() if name in used for node in chain]
    if isinstance(scope, onnx.FunctionProto):
        added = [*(onnx.helper.make_node("Constant", [], [one.name], value=one) for one in tensors), *added]
    else:
        drop(scope.initializer, front)
        drop(scope.input, front)  # up to IR 3 initializers are inputs as well
        scope.initializer.extend(tensors)
    for node in scope.node:
        if front.keys().isdisjoint(node.output):
            added += [node, *behind.get(next(iter(node.output), ""), ())]
    put_nodes(scope, added)


def _takes_rows(node: onnx.NodeProto) -> bool:
    """Whether a node is a Gather along the first axis."""
    is_first = not any(item.i for item in node.attribute)
    return node.op_type == "Gather" and is_first and bool(node.input) and bool(node.output)


def _connected(chain: Sequence[onnx.NodeProto], value: str, name: str, taken: set[str]) -> list[onnx.NodeProto]:
    """Copies of nodes that lack their first input, one behind the other, from a value to a name."""
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in chain]
    for node in nodes:
        node.input.insert(0, value)
        value = name if node is nodes[-1] else free_name(f"{name}/{node.op_type}", taken)
        node.output.append(value)
    return nodes


def _dequantize(model: onnx.ModelProto, scope: Scope, stored: Stored, scales: str) -> onnx.NodeProto:
    """The node that multiplies what enters it by scales of a name, in the domain that has it."""
    importing = scope if isinstance(scope, onnx.FunctionProto) else model
    node = onnx.helper.make_node("DequantizeLinear", [scales], [])
    if is_contributed(opset_of(importing), stored):
        node.domain = CONTRIB
        import_contrib(importing)
        import_contrib(model)
    if stored.axis is not None:
        node.attribute.append(onnx.helper.make_attribute("axis", stored.axis))
    return node


def _marked(scope: Scope) -> Iterator[tuple[onnx.TensorProto, str]]:
    """The tensors of layers in a graph or function, and the names that nodes know them by."""
    if isinstance(scope, onnx.GraphProto):
        yield from ((tensor, tensor.name) for tensor in scope.initializer if tensor.external_data)
    for node in scope.node:
        yield from ((item.t, node.output[0]) for item in node.attribute if item.t.external_data)
