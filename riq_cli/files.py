"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from riq_cli.errors import OutputError


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Return nothing if `path` can be written; meant to be asked before long work.

    Raises:
        OutputError: the file exists and `overwrite` is false, it is not a regular file, or its folder cannot be
            written.
    """
    path = Path(path)
    with _explained(path):
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; name a file")
        if path.exists() and not path.is_file():
            raise OutputError(f"{path}: is not a regular file and would be replaced by one; name another file")
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: exists already; use --force to replace it, or name another file with -o")
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def refuse_source(path: str | os.PathLike[str], *sources: str | os.PathLike[str]) -> None:
    """Return nothing if `path` is none of the files that are read; `--force` does not change that.

    Raises:
        OutputError: it is one of them, perhaps under another name.
    """
    path = Path(path)
    for source in sources:
        if path.exists() and Path(source).exists() and path.samefile(source):
            raise OutputError(f"{path}: is read by this command and never overwritten; name another file with -o")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` when the block ends well, and vanishes when it does not.

    Raises:
        OutputError: as `check_output`, or the disk is full. Other errors of the block stay what they are.
    """
    path = Path(path)
    check_output(path, overwrite)
    with _explained(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".riq.")
    try:
        with io.BufferedWriter(_Output(handle, path)) as file:
            yield file
        with _explained(path):
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def growing_file(path: str | os.PathLike[str], overwrite: bool = False, keep: int = 0) -> Iterator[BinaryIO]:
    """A binary file for what is read while it is written: named from the first byte on, never buffered, kept on errors.

    Args:
        path: of the file.
        overwrite: whether it may exist.
        keep: bytes of what is there already that stay, and that writing goes on behind.

    Raises:
        OutputError: as `check_output`, or the disk is full.
    """
    path = Path(path)
    check_output(path, overwrite)
    with _explained(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    with _Output(handle, path) as file:
        with _explained(path):
            file.truncate(keep)
            file.seek(keep)
        yield file


class _Output(io.FileIO):
    """A file whose own failures are OutputErrors, so that they differ from those of what is read meanwhile."""

    def __init__(self, handle: int, path: Path) -> None:
        super().__init__(handle, "wb")
        self._path = path

    def write(self, data: Any) -> int:
        with _explained(self._path):
            return super().write(data)

    def close(self) -> None:
        with _explained(self._path):
            super().close()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
