"""The files that hold tensors' data, a model's own and those beside it: mapped, and only where the model may look."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
from pathlib import Path, PurePath

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from riq_cli.errors import ModelError
from riq_cli.memory import give_back_mapped_memory, mapped
from riq_cli.model.places import tensors
from riq_cli.model.tensors import clear_data, named, size_of
from riq_cli.model.wire import without_raw_data

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # a FIFO without a writer is no wait
_LARGE = 1 << 24  # bytes of a model's own file that is not just read: it has to stay as it is while it is mapped
_INSIDE = 1 << 16  # bytes of a tensor in it that are not read either
_TOKEN = 16  # bytes that stand for them
_HASHED = 1 << 24  # bytes of a file that are in memory at a time as it is hashed


def files_beside(path: Path) -> list[str]:
    """Locations of a model's external data, as the model gives them; none if the file is no model."""
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(DataFiles(path).message())
    except (DecodeError, OSError):
        return []
    entries = (entry for tensor in tensors(proto) for entry in tensor.external_data)
    return sorted({entry.value for entry in entries if entry.key == "location" and isinstance(entry.value, str)})


class DataFiles:
    """A model's own file, if it is large, and the files beside it that its tensors' external data lies in."""

    def __init__(self, path: Path | None, follow_links: bool = False) -> None:
        """Map a file that holds a model; None: it came from elsewhere.

        External data is looked for in its folder, and nowhere above it; through links only if these may be followed.
        """
        self._path, self._folder = path, path.parent if path else Path()
        self._follow_links = follow_links
        self._external: dict[str, NDArray[np.uint8]] = {}
        self._own: mmap.mmap | None = None
        self._inside: dict[bytes, tuple[int, int]] = {}  # where data begins and ends in it, by tokens
        if path is not None and path.stat().st_size >= _LARGE and hasattr(mmap, "MADV_DONTNEED"):
            with path.open("rb") as file:
                self._own = mapped(file.fileno(), mmap.ACCESS_READ)

    @property
    def is_mapped(self) -> bool:
        """Whether the model's own file is."""
        return self._own is not None

    def message(self) -> bytes:
        """The model's own file; if it is mapped, tokens stand in it for what `data_of` gives."""
        assert self._path is not None
        if self._own is None:
            return self._path.read_bytes()
        try:
            return b"".join(without_raw_data(self._own, _INSIDE, self._token))
        except ValueError:  # it is no message, as protobuf will find too
            return self._own[:]
        finally:
            give_back_mapped_memory()

    def _token(self, begin: int, end: int) -> bytes:
        token = os.urandom(_TOKEN)  # which no file can hold already
        self._inside[token] = begin, end
        return token

    def data_of(self, tensor: onnx.TensorProto) -> NDArray[np.uint8] | None:
        """The bytes of a tensor as they lie in a file, u8[bytes]; None if they are in the message.

        Raises:
            ModelError: see `external`.
        """
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return self.external(tensor)
        if self._own is None or (place := self._inside.get(tensor.raw_data)) is None:
            return None
        begin, end = place
        return np.frombuffer(self._own, np.uint8, end - begin, begin)

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
        """Put a tensor's data into the message itself, if it is in a file."""
        data = self.data_of(tensor)
        if data is not None:
            clear_data(tensor)
            tensor.raw_data = data.tobytes()

    @property
    def beside(self) -> list[Path]:
        """The files beside the model that were used so far."""
        return [self._folder / location for location in self._external]

    def hash_mapped(self, digest: hashlib._Hash) -> int:
        """Add the bytes of the model's own file, if it is mapped, and of those beside it to a hash; returns how many.

        Those beside it are in the order of their names.
        """
        own = [] if self._own is None else [np.frombuffer(self._own, np.uint8)]
        files = [*own, *(file for _, file in sorted(self._external.items()))]
        for file in files:
            for begin in range(0, file.size, _HASHED):
                digest.update(file[begin : begin + _HASHED].data)
                give_back_mapped_memory()
        return sum(file.size for file in files)

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
