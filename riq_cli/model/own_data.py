"""The tensor data inside of a model's own file, mapped: memory that was read can be given back."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from riq_cli.model.tensors import Array
from riq_cli.model.wire import MODEL, RAW_DATA, TENSOR, fields, steps

_LARGE = 1 << 24  # bytes of a file that is not just read: it has to stay as it is while it is mapped


class OwnData:
    """The raw data of tensors that lies in a large model's own file; of any other file nothing."""

    def __init__(self, path: Path | None) -> None:
        """Map a file that holds a model; None: it came from elsewhere."""
        self._file: mmap.mmap | None = None
        self._ranges: dict[str, tuple[int, int]] = {}
        can_give_back = hasattr(mmap, "MADV_DONTNEED")
        if path is not None and path.stat().st_size >= _LARGE and can_give_back:
            with path.open("rb") as file:
                self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._ranges = dict(_raw_data(self._file, 0, len(self._file), MODEL, ""))

    def mapped(self, place: str, values: Array) -> Array:
        """The values of the tensor at a place as they lie in the file, if they do; else `values` themselves."""
        begin, size = self._ranges.get(place, (0, -1))
        if self._file is None or size != values.nbytes:
            return values
        found = np.frombuffer(self._file, values.dtype, values.size, begin).reshape(values.shape)
        bits = f"u{values.itemsize}"
        return found if np.array_equal(found.view(bits), values.view(bits)) else values

    def release(self) -> None:
        """Give back the memory of what was read; it is read again from the file when it is needed."""
        if self._file is not None:
            self._file.madvise(mmap.MADV_DONTNEED)


def _raw_data(data: Any, begin: int, end: int, message: Any, path: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Path of every tensor with raw data in a serialized message, and where that begins and how long it is.

    Args:
        data: bytes that protobuf has read without an error.
        begin: of the message.
        end: of the message.
        message: its descriptor.
        path: of the message itself.
    """
    if message is TENSOR:
        for field in fields(data, begin, end, message):
            if field.number == RAW_DATA and field.has_length:
                yield path, (field.begin, field.end - field.begin)
    for step, field in steps(data, begin, end, message):
        inner = f"{path}.{step}" if path else step
        yield from _raw_data(data, field.begin, field.end, field.descriptor.message_type, inner)
