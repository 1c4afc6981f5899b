"""A model above protobuf's 2 GiB, saved in two files: the model, and the data of its large tensors.

The data's file is named after its content and gets its name before the model does. So at every moment the model that is
there has its own data beside it, the old one or the new one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from riq_cli.files import atomic_write
from riq_cli.memory import give_back_mapped_memory
from riq_cli.model.layer import Layer
from riq_cli.model.places import find_tensor, tensors

_ALIGNMENT = 4096  # of tensors in a file, so that they can be mapped
_DIGITS = 8  # of the SHA-256 of a file, in its name
_CHUNK = 1 << 24


def save_in_two_files(model: onnx.ModelProto, layers: Sequence[Layer], path: Path, overwrite: bool) -> Path:
    """The path of the data's file, after both files are written: whole, or none of them.

    Args:
        model: complete but for the data of `layers`, which is to lie apart; it is changed.
        layers: see there.
        path: of the model.
        overwrite: whether files may exist.

    Raises:
        OutputError: a file exists and `overwrite` is false, or cannot be written.
    """
    digest = hashlib.sha256()
    _write(layers, digest.update)
    data_path = path.with_name(f"{path.name}.{digest.hexdigest()[:_DIGITS]}.data")
    for layer, offset in _placed(layers):
        for place in layer.places:
            tensor = find_tensor(model, place)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            entries = {"location": data_path.name, "offset": offset, "length": layer.values.nbytes}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
    existed, complete = data_path.exists(), False
    try:
        with atomic_write(path, overwrite) as file:  # takes its name at the end, when the data has its own
            file.write(model.SerializeToString(deterministic=True))
            with atomic_write(data_path, overwrite) as data:
                _write(layers, data.write)
            complete = True
    except BaseException:
        if complete and not existed and data_path not in data_files_of(path):  # or the model was complete, too
            data_path.unlink(missing_ok=True)
        raise
    return data_path


def data_files_of(path: Path) -> list[Path]:
    """The data files that `save_in_two_files` wrote for the model that is at a path now.

    They bear the name and the content that it gives them, and the model refers to them.
    """
    pattern = re.compile(re.escape(path.name) + rf"\.([0-9a-f]{{{_DIGITS}}})\.data")
    names = [file.name for file in path.parent.glob("*.data") if pattern.fullmatch(file.name)]
    if not names or not path.is_file():
        return []
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except DecodeError:
        return []
    locations = {entry.value for tensor in tensors(model) for entry in tensor.external_data if entry.key == "location"}
    named = [path.with_name(name) for name in sorted(locations.intersection(names))]
    return [file for file in named if _sha256(file).startswith(file.name[len(path.name) + 1 : -len(".data")])]


def _placed(layers: Sequence[Layer]) -> Iterator[tuple[Layer, int]]:
    """Every layer with its place in the data's file."""
    end = 0
    for layer in layers:
        offset = end + -end % _ALIGNMENT
        yield layer, offset
        end = offset + layer.values.nbytes


def _write(layers: Sequence[Layer], write: Callable[[Any], object]) -> None:
    """Hand over the content of the data's file, piece by piece."""
    end = 0
    for layer, offset in _placed(layers):
        write(bytes(offset - end))
        write(np.ascontiguousarray(layer.values).reshape(-1).data)
        give_back_mapped_memory()
        end = offset + layer.values.nbytes


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()
