"""Forms that experiments run: with layers as graph inputs, or with a constant added to activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx

from riq_cli.model.places import put_nodes
from riq_cli.model.session_form import SessionForm
from riq_cli.model.tensors import ONNX_TYPES

_OFFSET, _SHIFTED = "riq/offset", "riq/shifted{}"
_WIDE, _PRODUCT = "riq/wide/{}", "riq/product/{}"  # tensors in float32: what is multiplied, and what comes out


def probe_form(form: SessionForm) -> SessionForm:
    """The same model with its layers as inputs instead of initializers: one session serves every candidate.

    Outputs differ from those of the other forms in the last digits: other kernels run, and nothing is folded.
    """
    model = onnx.ModelProto.FromString(form.model)
    names = {name for name, _ in form.weights}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    declared = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name in names - declared:
            model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return replace(form, model=model.SerializeToString(), fed=True)


def lean_form(form: SessionForm) -> SessionForm:
    """The probe form of a large model: a float16 weight is converted to float32 only when it is multiplied.

    onnxruntime multiplies float16 in float32 on most processors. The conversions that it adds by itself come first of
    all nodes, so that all weights are in memory in float32; what is multiplied, and how, is the same.
    """
    form = probe_form(form)
    model = onnx.ModelProto.FromString(form.model)
    names = {name for name, _ in form.weights}
    weights = {
        value.name
        for value in model.graph.input
        if value.name in names and value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    }
    # onnxruntime goes back from the outputs and takes the inputs of a node from the last one in the graph to the first:
    # what is made of weights alone comes right before its use if it is at the beginning of the graph.
    first: list[onnx.NodeProto] = []
    rest: list[onnx.NodeProto] = []
    wide: set[str] = set()
    transposed: dict[str, onnx.NodeProto] = {}

    def widened(name: str, nodes: list[onnx.NodeProto]) -> str:
        result = _WIDE.format(name)
        if name not in wide and name in transposed:  # which onnxruntime makes part of the product, in float32 alone
            node = onnx.NodeProto()
            node.CopyFrom(transposed[name])
            node.input[0], node.output[0] = widened(node.input[0], nodes), result
            nodes.append(node)
        elif name not in wide:
            nodes.append(onnx.helper.make_node("Cast", [name], [result], to=onnx.TensorProto.FLOAT))
        wide.add(name)
        return result

    for node in model.graph.node:
        if node.op_type == "Transpose" and node.input[0] in weights:
            first.append(node)
            weights.add(node.output[0])
            transposed[node.output[0]] = node
        elif node.op_type in ("MatMul", "Gemm") and not weights.isdisjoint(node.input):
            output = node.output[0]
            node.input[:] = [name and widened(name, first if name in weights else rest) for name in node.input]
            node.output[0] = _PRODUCT.format(output)
            narrow = onnx.helper.make_node("Cast", node.output, [output], to=onnx.TensorProto.FLOAT16)
            rest += [node, narrow]
        else:
            rest.append(node)
    put_nodes(model.graph, [*first, *rest])
    return replace(form, model=model.SerializeToString())


def offset_form(form: SessionForm, tensors: Sequence[str], offset: float, dtype: str) -> SessionForm:
    """The form with `offset` added to tensors of its main graph, wherever that graph's nodes use them.

    Args:
        form: not changed.
        tensors: names of activations.
        offset: the constant.
        dtype: of the tensors, a key of `ONNX_TYPES`; none that numpy lacks.
    """
    model = onnx.ModelProto.FromString(form.model)
    graph = model.graph
    value = onnx.numpy_helper.from_array(np.array(offset, onnx.helper.tensor_dtype_to_np_dtype(ONNX_TYPES[dtype])))
    value.name = _OFFSET
    graph.initializer.append(value)
    for number, tensor in enumerate(tensors):
        shifted, place = _SHIFTED.format(number), 0
        for index, node in enumerate(graph.node):
            node.input[:] = [shifted if name == tensor else name for name in node.input]
            if tensor in node.output:
                place = index + 1
        graph.node.insert(place, onnx.helper.make_node("Add", [tensor, _OFFSET], [shifted]))
    return replace(form, model=model.SerializeToString())
