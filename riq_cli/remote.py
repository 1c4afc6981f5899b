"""Models and samples by URL, such as s3://bucket/model.onnx; the only file that imports fsspec, and only for a URL."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import TypeVar

from riq_cli.errors import RiqError
from riq_cli.files import TEMPORARY
from riq_cli.text import first_line

Loaded = TypeVar("Loaded")


def is_url(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


def local(path: str) -> str:
    """The path, without the file:// of a URL that leads to a file of this machine."""
    return path.removeprefix("file://")


def loaded(url: str, load: Callable[[Path], Loaded], beside: Callable[[Path], Iterable[str]] = lambda _: ()) -> Loaded:
    """What is loaded from a copy of what a URL leads to; the copy is removed when nothing uses the result.

    Args:
        url: of a file or a folder.
        load: loads from the copy. What it returns may read from there later.
        beside: given the path of the copy of a file, gives those of other files that belong to it, relative to its
            folder. They are copied, too.

    Raises:
        RiqError: fsspec is not installed, or what the URL leads to cannot be read; or an error of `load`.
    """
    source, _, name = url.rstrip("/").rpartition("/")
    folder = tempfile.mkdtemp(prefix=TEMPORARY)
    try:
        _copy(url, Path(folder, name))
        for other in map(PurePosixPath, beside(Path(folder, name))):
            if not other.is_absolute() and ".." not in other.parts:  # or loading says so
                _copy(f"{source}/{other}", Path(folder, other))
        result = load(Path(folder, name))
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, RiqError):
            raise type(error)(str(error).replace(folder, source)) from error
        raise
    weakref.finalize(result, shutil.rmtree, folder, ignore_errors=True)
    return result


def _copy(url: str, path: Path) -> None:
    try:
        import fsspec
    except ImportError as error:
        raise RiqError(f"{url}: URLs need fsspec; install it with: pip install fsspec") from error
    try:
        files, place = fsspec.core.url_to_fs(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.get(place, str(path), recursive=files.isdir(place))
    except FileNotFoundError as error:
        raise RiqError(f"{url}: no such file or folder") from error
    except Exception as error:  # each file system raises what it likes
        raise RiqError(f"{url}: cannot be read: {first_line(error) or type(error).__name__}") from error
