"""Models and samples by URL, such as s3://bucket/model.onnx; the only file that imports fsspec, and only for a URL."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from riq_cli.errors import RiqError
from riq_cli.files import TEMPORARY
from riq_cli.text import first_line

_QUERY = re.compile(r"\?(.*=.*|\w*)$")  # ?key=value or ?download; a?b.npz is the name of a file

Loaded = TypeVar("Loaded")


def is_url(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


def local(path: str) -> str:
    """The path, without the file:// or local:// of a URL that leads to a file of this machine."""
    return re.sub("^(file|local)://", "", path)


def read_here(url: str) -> str:
    """The path of the file of this machine that a URL such as zip://a.npz::file:///b.zip leads to.

    For a URL that leads elsewhere, such as s3://bucket/model.onnx, it is a path at which nothing lies.
    """
    return local(url.rpartition("::")[2])


def without_query(url: str) -> str:
    """The URL without the query of one such as https://host/model.onnx?signature=1/2."""
    return _QUERY.sub("", url)


def loaded(url: str, load: Callable[[Path], Loaded], beside: Callable[[Path], Iterable[str]] = lambda _: ()) -> Loaded:
    """What is loaded from a copy of what a URL leads to; the copy is removed when nothing uses the result.

    Args:
        url: of a file or a folder.
        load: loads from the copy. What it returns may read from there later.
        beside: given the path of the copy of a file, gives those of other files that belong to it, relative to its
            folder. They are copied, too, and found by the query of the URL.

    Raises:
        RiqError: fsspec is not installed, or what the URL leads to cannot be read; or an error of `load`.
    """
    parent, _, name = without_query(url).rstrip("/").rpartition("/")
    folder = tempfile.mkdtemp(prefix=TEMPORARY)
    try:
        with _explained(url):
            files, place = _opened(url)
            found = files.find(place) if files.isdir(place) else [place]
            below = len(place.rstrip("/"))
            _copy(files, {name + other[below:]: other for other in found}, folder)
        source = without_query(place)
        folder_there, query = source.rpartition("/")[0], place[len(source) :]
        for other in beside(Path(folder, name)):
            with _explained(f"{parent}/{other}"):
                _copy(files, {other: f"{folder_there}/{PurePosixPath(other)}{query}"}, folder)
        result = load(Path(folder, name))
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, RiqError):
            raise type(error)(str(error).replace(folder, parent)) from error
        raise
    weakref.finalize(result, shutil.rmtree, folder, ignore_errors=True)
    return result


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the place there."""
    try:
        import fsspec
    except ImportError as error:
        raise RiqError(f"{url}: URLs need fsspec; install it with: pip install fsspec") from error
    files, place = fsspec.core.url_to_fs(url)
    return files, place


def _copy(files: Any, places: Mapping[str, str], folder: str) -> None:
    """Copy files to those of other names below a folder; names that lead elsewhere are left out, and loading says so.

    Places are in a list, or fsspec would take * in one for a pattern, and copy all below one that is a folder.
    """
    names = {name: PurePosixPath(name) for name in places}
    inside = [name for name, path in names.items() if path.name and not path.is_absolute() and ".." not in path.parts]
    copies = [Path(folder, name) for name in inside]
    for copy in copies:
        copy.parent.mkdir(parents=True, exist_ok=True)
    files.get([places[name] for name in inside], list(map(str, copies)))


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except RiqError:
        raise
    except FileNotFoundError as error:
        raise RiqError(f"{url}: no such file or folder") from error
    except Exception as error:  # each file system raises what it likes
        raise RiqError(f"{url}: cannot be read: {first_line(error) or type(error).__name__}") from error
