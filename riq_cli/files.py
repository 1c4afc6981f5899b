"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from riq_cli.errors import OutputError

_BINARY = getattr(os, "O_BINARY", 0)  # Windows

TEMPORARY = ".riq-"  # how names of unfinished files begin; whoever finds one that is old may delete it

_completed: list[str] = []


def completed() -> list[str]:
    """The files that this process has written whole and that are still there, in order."""
    return [path for path in _completed if Path(path).exists()]


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Return nothing if `path` can be written; meant to be asked before long work.

    A pipe or a device such as `/dev/null` always can: it is written to, and nothing is replaced.

    Raises:
        OutputError: the file exists and `overwrite` is false, it is a folder or something else that is not a file, or
            its folder cannot be written.
    """
    path = Path(path)
    with _explained(path):
        mode = _mode(path)
        if mode is None:
            if path.is_symlink() and not overwrite:
                raise _exists(path)
        elif stat.S_ISDIR(mode):
            raise OutputError(f"{path}: is a folder; name a file")
        elif _is_stream(mode):
            return
        elif not stat.S_ISREG(mode):
            raise OutputError(f"{path}: is not a regular file and would be replaced by one; name another file")
        elif not overwrite:
            raise _exists(path)
        with tempfile.TemporaryFile(dir=path.parent, prefix=TEMPORARY):
            pass


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` when the block ends well, and vanishes when it does not.

    Raises:
        OutputError: as `check_output`, or the disk is full. Other errors of the block stay what they are.
    """
    path = Path(path)
    check_output(path, overwrite)
    if _is_stream(_mode(path) or 0):
        with growing_file(path) as stream, io.BufferedWriter(stream) as file:
            yield file
        return
    name = path.with_name(TEMPORARY + os.urandom(8).hex())  # known before the file is there, so that none stays behind
    try:
        with _explained(path):
            handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o600)
        with io.BufferedWriter(_Output(handle, path)) as file:
            yield file
        with _explained(path):
            old = _mode(path) if overwrite else None
            os.chmod(name, 0o666 & ~_umask() if old is None else stat.S_IMODE(old))
            if overwrite:
                os.replace(name, path)
            else:
                _take_name(name, path)
        _completed.append(str(path))
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], overwrite: bool = False, last: str = "") -> Iterator[Path]:
    """An empty folder for files, which move into the folder `path` when the block ends well; it vanishes if not.

    A new `path` appears with all of its files at once. Into one that is there, files move one by one, and its other
    files stay; the file named `last` moves behind all others, so that whoever finds it finds them, too.

    Raises:
        OutputError: a file cannot be written, or it exists and `overwrite` is false. Other errors stay what they are.
    """
    path = Path(path)
    is_new = not path.exists()
    folder = path.parent if is_new else path
    temporary = folder / (TEMPORARY + os.urandom(8).hex())
    try:
        with _explained(path):
            temporary.mkdir()
        yield temporary
        with _explained(path):
            if is_new:
                temporary.rename(path)
            else:
                for file in sorted(temporary.iterdir(), key=lambda file: file.name == last):
                    if overwrite:
                        file.replace(path / file.name)
                    else:
                        _take_name(file, path / file.name)
        _completed.append(str(path))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def growing_file(path: str | os.PathLike[str], overwrite: bool = False, keep: int = 0) -> Iterator[io.FileIO]:
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
    stream = _is_stream(_mode(path) or 0)
    with _explained(path):
        try:
            new = 0 if overwrite or stream else os.O_EXCL
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | new | _BINARY, 0o666)
        except FileExistsError:
            raise _exists(path) from None
    with _Output(handle, path) as file:
        if not stream:
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
        """Write all of the data: the system may take a part at a time, and on Linux no more than 2 GiB."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        with _explained(self._path):
            while rest:
                rest = rest[super().write(rest) :]
        return size

    def close(self) -> None:
        with _explained(self._path):
            super().close()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _mode(path: Path) -> int | None:
    """Type and permissions of what a path leads to; None if there is nothing."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _is_stream(mode: int) -> bool:
    """Whether something of this mode is written to as it is: a pipe, or a device such as a terminal or /dev/null."""
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _exists(path: Path) -> OutputError:
    return OutputError(f"{path}: exists already; use --force to replace it, or name another file")


def _take_name(temporary: Path, path: Path) -> None:
    """Give a complete file its name, unless that is taken: of several writers, one wins.

    Raises:
        OutputError: it is taken.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError:  # some file systems have no hard links
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise _exists(path) from None
        try:
            os.replace(temporary, path)
        except BaseException:
            os.unlink(path)
            raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
