"""What a model is fed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx.helper import tensor_dtype_to_np_dtype

from riq_cli.errors import ModelError
from riq_cli.model.places import constant_places, scopes
from riq_cli.model.tensors import FLOAT_TYPES
from riq_cli.model.uses import Uses

# Operators that keep the shape of a table.
_SAME_ROWS = frozenset("Identity Cast Dropout QuantizeLinear DequantizeLinear".split())


@dataclass(frozen=True)
class ModelInput:
    """An input of the model: `dtype` as numpy, or ml_dtypes, names it; free dimensions are a name or None.

    `shape` is None where the model declares none: any array fits. `vocabulary` is the number of ids that the embedding
    behind it has, None if there is no embedding.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None
    vocabulary: int | None = None

    @property
    def fed(self) -> str:
        """The type of the arrays that sessions take for it."""
        return "float32" if self.dtype == "bfloat16" else self.dtype  # which numpy does not have


def model_inputs(model: onnx.ModelProto) -> tuple[ModelInput, ...]:
    """The graph's inputs, those that are initializers left out.

    Raises:
        ModelError: an input that is not a tensor.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    uses, tables = Uses(model), _Tables(model)
    return tuple(_input(value, uses, tables) for value in model.graph.input if value.name not in constants)


def _input(value: onnx.ValueInfoProto, uses: Uses, tables: _Tables) -> ModelInput:
    if value.type.WhichOneof("value") != "tensor_type":
        raise ModelError(f"input {value.name!r} is not a tensor; riq cannot feed it")
    tensor = value.type.tensor_type
    try:
        dtype = FLOAT_TYPES.get(tensor.elem_type) or np.dtype(tensor_dtype_to_np_dtype(tensor.elem_type)).name
    except KeyError:
        raise ModelError(f"input {value.name!r} has no data type that riq knows ({tensor.elem_type})") from None
    shape = tuple(map(_dimension, tensor.shape.dim)) if tensor.HasField("shape") else None
    sizes: list[int] = []
    for node, number in uses.consumers("graph", value.name):
        if node.op_type == "Gather" and number == 1:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            sizes += tables.sizes(node.input[0], axis)
    return ModelInput(value.name, dtype, shape, min(sizes, default=None))


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value") and dim.dim_value >= 0:  # some write −1 for a free one, as onnxruntime takes it
        return dim.dim_value
    return dim.dim_param or None


class _Tables:
    """The constants of a model, by the names under which Gather may take them.

    Two branches may use one name for different tensors: all of them count.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._shapes: dict[str, list[Sequence[int]]] = {}
        for place in constant_places(model):
            self._shapes.setdefault(place.value_name, []).append(place.tensor.dims)
        self._producers: dict[str, list[onnx.NodeProto]] = {}
        for _, scope in scopes(model):
            for node in scope.node:
                if node.input and node.output and (node.op_type in _SAME_ROWS or node.op_type == "Transpose"):
                    self._producers.setdefault(node.output[0], []).append(node)

    def sizes(self, name: str, axis: int) -> Iterator[int]:
        """Lengths, along an axis, of the constants that come under a name."""
        seen, pending = set(), [(name, axis)]
        while pending:
            name, axis = pending.pop()
            seen.add((name, axis))
            yield from (shape[axis] for shape in self._shapes.get(name, ()) if -len(shape) <= axis < len(shape))
            behind = [(node.input[0], _axis_before(node, axis)) for node in self._producers.get(name, ())]
            pending += [item for item in behind if item not in seen]


def _axis_before(node: onnx.NodeProto, axis: int) -> int:
    """Which axis of a node's input became `axis` of its output."""
    if node.op_type != "Transpose":
        return axis
    perm = next((attribute.ints for attribute in node.attribute if attribute.name == "perm"), ())
    return perm[axis] if -len(perm) <= axis < len(perm) else -1 - axis
