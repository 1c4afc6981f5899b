"""Trained weights out of safetensors and PyTorch files, with numpy alone."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

DTYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64}
STORAGES = {"FloatStorage": np.float32, "HalfStorage": np.float16, "LongStorage": np.int64}


def safetensors(data: bytes) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file, by name."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[start:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


@dataclass
class _Storage:
    """A flat array that tensors of the file are views of; its data may come later in the file."""

    dtype: type
    data: bytes = b""


@dataclass
class _Tensor:
    """Where a tensor lies in its storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """A copy of the tensor."""
        flat: np.ndarray = np.frombuffer(self.storage.data, self.storage.dtype)[self.offset :]
        strides = [s * flat.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides).copy()


class _Unpickler(pickle.Unpickler):
    """Knows the few names a state dict needs and refuses all others."""

    def __init__(self, file: BinaryIO, storages: dict[str, _Storage], archive: zipfile.ZipFile | None = None) -> None:
        super().__init__(file)
        self.storages, self.archive = storages, archive

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a state dict")

    def persistent_load(self, pid: tuple[Any, ...]) -> _Storage:
        _, dtype, key = pid[:3]
        if key not in self.storages:
            data = b""
            if self.archive is not None:
                root = self.archive.namelist()[0].split("/")[0]
                data = self.archive.read(f"{root}/data/{key}")
            self.storages[key] = _Storage(dtype, data)
        return self.storages[key]


def state_dict(data: bytes) -> dict[str, np.ndarray]:
    """Tensors of a PyTorch state dict by name; the zip form, or the older one of several pickles in a row."""
    storages: dict[str, _Storage] = {}
    file = io.BytesIO(data)
    if zipfile.is_zipfile(file):
        archive = zipfile.ZipFile(file)
        pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        tensors = _Unpickler(io.BytesIO(archive.read(pickled)), storages, archive).load()
    else:
        file.seek(0)
        for _ in range(3):  # magic number, protocol version, byte order and sizes
            _Unpickler(file, storages).load()
        tensors = _Unpickler(file, storages).load()
        for key in _Unpickler(file, storages).load():  # then for each: number of elements i64, elements
            (count,) = struct.unpack("<q", file.read(8))
            storages[key].data = file.read(count * np.dtype(storages[key].dtype).itemsize)
    return {name: tensor.array() for name, tensor in tensors.items()}
