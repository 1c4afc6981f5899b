"""The form of a model whose layers are graph inputs: one session serves every candidate, and copies none of them."""

from __future__ import annotations

from dataclasses import replace

import onnx

from riq_cli.model.session_form import SessionForm


def probe_form(form: SessionForm) -> SessionForm:
    """The same model with its layers from outside as inputs instead of initializers.

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
