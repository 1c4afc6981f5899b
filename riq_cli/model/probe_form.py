"""Forms that experiments run: with layers as graph inputs, or with a constant added to activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx

from riq_cli.model.session_form import SessionForm
from riq_cli.model.tensors import ONNX_TYPES

_OFFSET, _SHIFTED = "riq/offset", "riq/shifted{}"


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
