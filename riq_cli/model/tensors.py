"""TensorProto ↔ numpy; bfloat16 as its uint16 bits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from riq_cli.errors import ModelError
from riq_cli.limits import STORAGE
from riq_cli.text import shortened

FLOAT_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
}
ONNX_TYPES = {name: number for number, name in FLOAT_TYPES.items()}
# Bits of an element where several share a byte, by the numbers of their types: older versions of onnx lack some names.
_PACKED = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}  # UINT4, INT4, FLOAT4E2M1, UINT2, INT2
_TYPED_FIELDS = [f"{kind}_data" for kind in ("float", "int32", "int64", "double", "uint64", "string")]
_DATA_FIELDS = ("raw_data", *_TYPED_FIELDS, "external_data")

Array = NDArray[Any]  # weights in storage type: float16, float32, float64, or uint16 for bfloat16


def named(tensor: onnx.TensorProto) -> str:
    """How errors name a tensor."""
    return f"tensor {shortened(str(tensor.name))!r}" if tensor.name else "a tensor without a name"  # it may be bytes


def size_of(tensor: onnx.TensorProto) -> int:
    """Bytes that the data of a tensor takes by its shape and type.

    Raises:
        ModelError: a type that riq does not know, or a shape of negative length.
    """
    if tensor.data_type in _PACKED:
        bits = _PACKED[tensor.data_type]
    else:
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        except KeyError:
            dtype = np.dtype(object)
        if dtype.hasobject:  # strings too are of no fixed size
            raise ModelError(f"{named(tensor)}: riq does not know how large its data type {tensor.data_type} is")
        bits = 8 * dtype.itemsize
    if min(tensor.dims, default=0) < 0:
        raise ModelError(f"{named(tensor)}: its shape {list(tensor.dims)} has a negative length")
    return int(-(-math.prod(tensor.dims) * bits // 8))


def float_array(tensor: onnx.TensorProto, data: NDArray[np.uint8] | None = None) -> Array:
    """The values of a float tensor in its own shape, in storage type; from `data` where they are not in the message.

    Raises:
        ModelError: the data does not fill the shape.
    """
    storage = np.dtype(STORAGE[FLOAT_TYPES[tensor.data_type]])
    values: Array
    if data is not None:
        values = data
    elif tensor.HasField("raw_data"):
        values = np.frombuffer(tensor.raw_data, np.uint8)
    elif storage.itemsize == 2:
        values = np.array(tensor.int32_data, np.int32).astype("<u2")
    else:
        values = np.array(tensor.double_data if storage.itemsize == 8 else tensor.float_data, storage)
    shape = tuple(tensor.dims)
    if values.nbytes != size_of(tensor):
        raise ModelError(f"{named(tensor)}: {values.nbytes} bytes do not fill the shape {list(shape)}")
    return values.view(storage).reshape(shape)


def clear_data(tensor: onnx.TensorProto) -> None:
    """Remove a tensor's data and keep its name, type, shape and description."""
    for name in _DATA_FIELDS:
        tensor.ClearField(name)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        tensor.ClearField("data_location")


def has_data(tensor: onnx.TensorProto) -> bool:
    """Whether a message holds any data, or a reference to a file."""
    return tensor.HasField("raw_data") or any(len(getattr(tensor, name)) for name in _DATA_FIELDS)


def read_tensor_file(path: Path) -> tuple[str, NDArray[Any]]:
    """Name and values of a serialized TensorProto, as ONNX test data has them (`input_0.pb`).

    Raises:
        ModelError: not a tensor, or one whose data is in another file.
    """
    tensor = onnx.TensorProto()
    data = path.read_bytes()
    try:
        tensor.ParseFromString(data)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelError(f"{path}: a tensor whose data is in another file; riq reads those with models only")
        return tensor.name, onnx.numpy_helper.to_array(tensor)
    except (DecodeError, LookupError, ArithmeticError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: not an ONNX tensor") from error


def computable(weights: Array, dtype: str) -> Array:
    """The weights in a type that numpy computes with, in their own shape: themselves, but for bfloat16 in float32."""
    return (weights.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else weights
