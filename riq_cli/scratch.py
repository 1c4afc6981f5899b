"""Temporary files for what is too large to stay in memory, in the system's folder for them (`TMPDIR`)."""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from riq_cli.errors import OutputError
from riq_cli.memory import give_back_mapped_memory, mapped

HUGE = 1 << 29  # bytes of a model's weights above which what is made of them is spilled, and no session copies them
_SMALL = 1 << 16  # bytes of an array that stays in memory
_FILE = 1 << 32  # bytes of a file that arrays share: each has a descriptor for as long as they are used
_ZEROS = bytes(1 << 20)

Array = NDArray[Any]


class Scratch:
    """Arrays that are mapped from files without a name: they end with the last array, or with the process."""

    def __init__(self) -> None:
        """No files yet."""
        self._maps: list[mmap.mmap] = []
        self._file: BinaryIO | None = None  # that the last map is of
        self._end = 0

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Array:
        """An array to be written to, mapped from a file; in memory if it is small.

        Raises:
            OutputError: the files cannot be written.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < _SMALL:
            return np.empty(shape, dtype)
        with explained():
            if self._file is None or self._end + size > len(self._maps[-1]):
                self._file, self._end = temporary_file(), 0
                self._file.truncate(max(_FILE, size))  # which takes no room yet
                self._maps.append(mapped(self._file.fileno()))
            _reserve(self._file, self._end, size)
        found = np.frombuffer(self._maps[-1], np.uint8, size, self._end).view(dtype).reshape(shape)
        self._end += size + -size % mmap.PAGESIZE
        return found

    def kept(self, values: Array) -> Array:
        """The same values in memory of `empty`.

        Raises:
            OutputError: the files cannot be written.
        """
        found = self.empty(values.shape, values.dtype)
        found[...] = values
        give_back_mapped_memory()
        return found


class _Unnamed(io.BufferedRandom):
    def __del__(self) -> None:
        self.close()  # or Python warns that nobody did


def temporary_file() -> BinaryIO:
    """An empty file without a name, which ends when nothing uses it, and with the process.

    Raises:
        OutputError: it cannot be made.
    """
    with explained():
        return _Unnamed(tempfile.TemporaryFile(buffering=0))


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """A block in which a temporary file that cannot be written is an OutputError.

    Raises:
        OutputError: it cannot.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"temporary files in {tempfile.gettempdir()} cannot be written: {error.strerror or error}; "
            "name another folder with --scratch"
        ) from error


def _reserve(file: BinaryIO, begin: int, size: int) -> None:
    """Take room on the disk: where there is none, writing to a map would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), begin, size)
        return
    file.seek(begin)
    for first in range(0, size, len(_ZEROS)):
        file.write(_ZEROS[: size - first])
    file.flush()
