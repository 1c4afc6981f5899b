"""A layer: one float tensor of a model, wherever it lives."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from riq_cli.model.tensors import Array


@dataclass(frozen=True, eq=False)
class Layer:
    """A float tensor, the places in the model that hold it, and its values.

    `values` has the layer's shape and storage type (bfloat16 as uint16) and may be mapped from a file. `op` names the
    operators that use it, "output" if it is only given out, "unused" if nothing uses it. `structural` layers tell an
    operator what to do (Resize's scales, Clip's bounds) and must keep their values: they are never quantized. A tensor
    that the model holds several times is one layer with several places.
    """

    name: str
    op: str
    places: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    values: Array
    structural: bool = False

    @property
    def size(self) -> int:
        """Number of weights n."""
        return math.prod(self.shape)

    @property
    def is_quantized(self) -> bool:
        """Whether it belongs to an operator that works on quantized data, such as its scales or its bias."""
        return any(map(is_quantizing, self.op.split(", ")))


def is_quantizing(op_type: str) -> bool:
    """Whether an operator works on quantized data: QLinearConv, MatMulInteger, DynamicQuantizeLSTM, MatMulNBits."""
    return re.search("[Qq]uantize|QLinear|Integer|^Q[A-Z]|NBits|Bnb4", op_type) is not None
