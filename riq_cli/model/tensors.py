"""TensorProto ↔ numpy, external data included; bfloat16 as its uint16 bits."""

from __future__ import annotations

import hashlib
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from riq_cli.errors import ModelError

FLOAT_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
}
ONNX_TYPES = {name: number for number, name in FLOAT_TYPES.items()}
_STORAGE = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8"}
_DATA_FIELDS = (
    "raw_data",
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "string_data",
    "external_data",
)

Array = NDArray[Any]  # weights in storage type: float16, float32, float64, or uint16 for bfloat16


class ExternalData:
    """The files beside a model that hold its tensors' data; they are mapped, not read."""

    def __init__(self, folder: Path) -> None:
        """Files are looked for in `folder`, and nowhere above it."""
        self._folder = folder
        self._maps: dict[str, mmap.mmap] = {}

    def data(self, tensor: onnx.TensorProto) -> NDArray[np.uint8]:
        """The bytes of a tensor whose data is external, u8[bytes], mapped from the file.

        Raises:
            ModelError: the file is missing, outside of the model's folder, or too short; or no place in it is given.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        file = self._map(location)
        begin = _place(tensor, "offset", entries.get("offset", "0"))
        length = _place(tensor, "length", entries["length"]) if "length" in entries else max(0, len(file) - begin)
        if begin + length > len(file):
            raise ModelError(f"tensor {tensor.name!r}: its data ends behind the end of {location}; the file is cut off")
        return np.frombuffer(file, np.uint8, length, begin)

    def _map(self, location: str) -> mmap.mmap:
        if location not in self._maps:
            path = self._folder / location
            if Path(location).is_absolute() or ".." in Path(location).parts:
                raise ModelError(f"external data {location!r} lies outside of the model's folder; it is not read")
            try:
                with path.open("rb") as file:
                    self._maps[location] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise ModelError(f"external data {path}: cannot be read: {error}") from error
        return self._maps[location]

    @property
    def files(self) -> list[Path]:
        """The files used so far."""
        return [self._folder / location for location in self._maps]

    @property
    def size(self) -> int:
        """Bytes of the files used so far."""
        return sum(map(len, self._maps.values()))

    def hash_into(self, digest: hashlib._Hash) -> None:
        """Add the files' bytes to a hash, in the order of their names."""
        for _, file in sorted(self._maps.items()):
            digest.update(file)
        self.release()

    def release(self) -> None:
        """Give back the memory of what was read; it is read again from the files when it is needed."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for file in self._maps.values():
                file.madvise(mmap.MADV_DONTNEED)


def _place(tensor: onnx.TensorProto, key: str, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise ModelError(f"tensor {tensor.name!r}: {key} {text!r} of its external data is not a number of bytes")
    return number


def float_array(tensor: onnx.TensorProto, external: ExternalData) -> Array:
    """The values of a float tensor in its own shape, in storage type; external data is mapped, not read.

    Raises:
        ModelError: the data does not fill the shape.
    """
    storage = np.dtype(_STORAGE[FLOAT_TYPES[tensor.data_type]])
    shape = tuple(tensor.dims)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        data: Array = external.data(tensor)
    elif tensor.HasField("raw_data"):
        data = np.frombuffer(tensor.raw_data, np.uint8)
    elif storage.itemsize == 2:
        data = np.array(tensor.int32_data, np.int32).astype("<u2")
    else:
        data = np.array(tensor.double_data if storage.itemsize == 8 else tensor.float_data, storage)
    if min(shape, default=0) < 0 or data.nbytes != math.prod(shape) * storage.itemsize:
        raise ModelError(f"tensor {tensor.name!r}: {data.nbytes} bytes do not fill the shape {list(shape)}")
    return data.view(storage).reshape(shape)


def load_external(tensor: onnx.TensorProto, external: ExternalData) -> None:
    """Put a tensor's external data into the message itself."""
    data = external.data(tensor).tobytes()
    clear_data(tensor)
    tensor.raw_data = data


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
