"""Tensor data in files beside a model: mapped, not read, and only where the model may look."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
from pathlib import Path, PurePath

import numpy as np
import onnx
from numpy.typing import NDArray

from riq_cli.errors import ModelError
from riq_cli.model.tensors import clear_data, named, size_of

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # a FIFO without a writer is no wait


class ExternalData:
    """The files beside a model that hold its tensors' data."""

    def __init__(self, folder: Path, follow_links: bool = False) -> None:
        """Files are looked for in `folder`, and nowhere above it; through links only if these may be followed."""
        self._folder = folder
        self._follow_links = follow_links
        self._files: dict[str, NDArray[np.uint8]] = {}
        self._maps: list[mmap.mmap] = []

    def data(self, tensor: onnx.TensorProto) -> NDArray[np.uint8]:
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
        data = self.data(tensor).tobytes()
        clear_data(tensor)
        tensor.raw_data = data

    @property
    def files(self) -> list[Path]:
        """The files used so far."""
        return [self._folder / location for location in self._files]

    @property
    def size(self) -> int:
        """Bytes of the files used so far."""
        return sum(file.size for file in self._files.values())

    def hash_into(self, digest: hashlib._Hash) -> None:
        """Add the files' bytes to a hash, in the order of their names."""
        for _, file in sorted(self._files.items()):
            digest.update(file.data)
        self.release()

    def release(self) -> None:
        """Give back the memory of what was read; it is read again from the files when it is needed."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for file in self._maps:
                file.madvise(mmap.MADV_DONTNEED)

    def _file(self, location: str) -> NDArray[np.uint8]:
        if location not in self._files:
            try:
                handle = self._opened(location)
                try:
                    self._files[location] = self._mapped(location, handle)
                finally:
                    os.close(handle)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise ModelError(f"external data {self._folder / location}: cannot be read: {reason}") from error
        return self._files[location]

    def _mapped(self, location: str, handle: int) -> NDArray[np.uint8]:
        """The bytes of an open file, looked at as it was opened: its name may have another by now."""
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if found.st_nlink > 1 and not self._follow_links:
            raise _link(location, "a file with several names (hard links)")
        if not found.st_size:  # which cannot be mapped
            return np.zeros(0, np.uint8)
        self._maps.append(mmap.mmap(handle, 0, access=mmap.ACCESS_READ))
        return np.frombuffer(self._maps[-1], np.uint8)

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
