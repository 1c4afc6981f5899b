"""The files that hold tensors' data, a model's own and those beside it: mapped, and only where the model may look."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from riq_cli.errors import ModelError
from riq_cli.memory import give_back_mapped_memory, mapped
from riq_cli.model.tensors import Array, clear_data, named, size_of
from riq_cli.model.wire import MODEL, RAW_DATA, TENSOR, fields, steps

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # a FIFO without a writer is no wait
_LARGE = 1 << 24  # bytes of a model's own file that is not just read: it has to stay as it is while it is mapped
_HASHED = 1 << 26  # bytes of a file that are in memory at a time as it is hashed


class DataFiles:
    """A model's own file, if it is large, and the files beside it that its tensors' external data lies in."""

    def __init__(self, path: Path | None, follow_links: bool = False) -> None:
        """Map a file that holds a model; None: it came from elsewhere.

        External data is looked for in its folder, and nowhere above it; through links only if these may be followed.
        """
        self._folder = path.parent if path else Path()
        self._follow_links = follow_links
        self._external: dict[str, NDArray[np.uint8]] = {}
        self._own: mmap.mmap | None = None
        self._ranges: dict[str, tuple[int, int]] = {}
        if path is not None and path.stat().st_size >= _LARGE and hasattr(mmap, "MADV_DONTNEED"):
            with path.open("rb") as file:
                self._own = mapped(file.fileno(), mmap.ACCESS_READ)
            self._ranges = dict(_raw_data(self._own, 0, len(self._own), MODEL, ""))

    def mapped(self, place: str, values: Array) -> Array:
        """The values of the tensor at a place as they lie in the model's own file, if they do; else `values`."""
        begin, size = self._ranges.get(place, (0, -1))
        if self._own is None or size != values.nbytes:
            return values
        found = np.frombuffer(self._own, values.dtype, values.size, begin).reshape(values.shape)
        bits = f"u{values.itemsize}"
        return found if np.array_equal(found.view(bits), values.view(bits)) else values

    def external(self, tensor: onnx.TensorProto) -> NDArray[np.uint8]:
        """The bytes of a tensor whose data is external, u8[bytes], mapped from the file.

        Without a length, or with one of 0, there are as many as its shape says.

        Raises:
            ModelError: the file is missing, may not be read, or is too short; or no place in it is given.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location: object = entries.get("location", "")
        if not isinstance(location, str):  # protobuf gives what is not UTF-8 as bytes
            raise ModelError(f"{named(tensor)}: the location {location!r} of its external data is not valid UTF-8")
        file = self._file(location)
        begin = _place(tensor, "offset", entries.get("offset", "0"))
        length = _place(tensor, "length", entries.get("length", "0")) or size_of(tensor)
        if begin + length > file.size:
            raise ModelError(f"{named(tensor)}: its data ends behind the end of {location}; the file is cut off")
        return file[begin : begin + length]

    def load(self, tensor: onnx.TensorProto) -> None:
        """Put a tensor's external data into the message itself."""
        data = self.external(tensor).tobytes()
        clear_data(tensor)
        tensor.raw_data = data

    @property
    def beside(self) -> list[Path]:
        """The files beside the model that were used so far."""
        return [self._folder / location for location in self._external]

    def hash_beside(self, digest: hashlib._Hash) -> int:
        """Add the bytes of the files beside the model to a hash, in the order of their names; returns how many."""
        for _, file in sorted(self._external.items()):
            for begin in range(0, file.size, _HASHED):
                digest.update(file[begin : begin + _HASHED].data)
                give_back_mapped_memory()
        return sum(file.size for file in self._external.values())

    def _file(self, location: str) -> NDArray[np.uint8]:
        if location not in self._external:
            try:
                handle = self._opened(location)
                try:
                    self._external[location] = self._mapped(location, handle)
                finally:
                    os.close(handle)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise ModelError(f"external data {self._folder / location}: cannot be read: {reason}") from error
        return self._external[location]

    def _mapped(self, location: str, handle: int) -> NDArray[np.uint8]:
        """The bytes of an open file, looked at as it was opened: its name may have another by now."""
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if found.st_nlink > 1 and not self._follow_links:
            raise _link(location, "a file with several names (hard links)")
        if not found.st_size:  # which cannot be mapped
            return np.zeros(0, np.uint8)
        return np.frombuffer(mapped(handle, mmap.ACCESS_READ), np.uint8)

    def _opened(self, location: str) -> int:
        """Descriptor of a file, opened folder by folder so that none of them is a link unless links may be followed."""
        parts = PurePath(location).parts
        if PurePath(location).is_absolute() or ".." in parts:
            raise ModelError(f"external data {location!r} lies outside of the model's folder; it is not read")
        if self._follow_links or not parts:
            return os.open(self._folder / location, _READ)
        links = [Path(self._folder, *parts[: count + 1]).is_symlink() for count in range(len(parts))]
        if any(links):
            raise _link(location, "reached through a symbolic link")
        if os.open not in os.supports_dir_fd:
            return os.open(self._folder / location, _READ)
        folder = os.open(self._folder, _READ)
        for part in parts:  # what became a link since then fails
            try:
                inner = os.open(part, _READ | _NO_LINK, dir_fd=folder)
            finally:
                os.close(folder)
            folder = inner
        return folder


def _link(location: str, what: str) -> ModelError:
    return ModelError(
        f"external data {location!r} is {what}; it is not read, since it could be any file of yours; "
        "use --follow-links for a model that you trust"
    )


def _place(tensor: onnx.TensorProto, key: str, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise ModelError(f"{named(tensor)}: {key} {text!r} of its external data is not a number of bytes")
    return number


def _raw_data(data: Any, begin: int, end: int, message: Any, path: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Path of every tensor with raw data in the message at `path`, and where that begins and how long it is."""
    if message is TENSOR:
        for field in fields(data, begin, end, message):
            if field.number == RAW_DATA and field.has_length:
                yield path, (field.begin, field.end - field.begin)
    for step, field in steps(data, begin, end, message):
        inner = f"{path}.{step}" if path else step
        yield from _raw_data(data, field.begin, field.end, field.descriptor.message_type, inner)
