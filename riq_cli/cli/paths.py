"""Files named on the command line, and how a shell completes them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import click
from click.shell_completion import CompletionItem

from riq_cli.cli.terminal import say
from riq_cli.errors import OutputError
from riq_cli.files import atomic_write, check_output
from riq_cli.remote import is_url, local, read_here
from riq_cli.text import human_size

_BARE = re.compile(r"[\w./~+,@%=:-]*")  # what a shell takes as one word without quotes


def check_outputs(
    outputs: Iterable[str | None], sources: Sequence[str | None], force: bool, goes_on: Collection[str | None] = ()
) -> None:
    """Return nothing if all outputs can be written; meant to be asked before long work.

    Args:
        outputs: files to write; None and - are none.
        sources: what is read, which is never overwritten; None is nothing.
        force: whether outputs may exist.
        goes_on: outputs that may exist in any case.

    Raises:
        OutputError: one cannot be written, or is a source.
        UsageError: two outputs are the same file.
    """
    refuse_sources(outputs, sources)
    seen: set[Path] = set()
    for path in _files(outputs):
        check_output(path, force or path in goes_on)
        if (place := Path(path).resolve()) in seen:
            raise click.UsageError(f"{path}: two outputs have this name; give one of them another")
        seen.add(place)


def refuse_sources(outputs: Iterable[str | None], sources: Sequence[str | os.PathLike[str] | None]) -> None:
    """Return nothing if no output is a file that is read, perhaps under another name; --force does not change that.

    Raises:
        OutputError: one is.
    """
    read = [read_here(source) if isinstance(source, str) and is_url(source) else source for source in sources]
    for path in map(Path, _files(outputs)):
        for source in read:
            if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
                raise OutputError(f"{path}: is read by this command and never overwritten; name another file")


def stdin() -> BinaryIO:
    """The bytes on stdin.

    Raises:
        UsageError: it is a terminal, where nobody types a model, or closed.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError("- stands for stdin, on which there is no file; redirect one there, or name it")
    return sys.stdin.buffer


def check_binary(path: str, force: bool) -> None:
    """Return nothing if `path` is not stdout, or that takes bytes that are no text.

    Raises:
        UsageError: it is a terminal, and writing to it is not forced; or closed.
    """
    if path == "-" and (sys.stdout is None or (sys.stdout.isatty() and not force)):
        raise click.UsageError("stdout is a terminal, and the output no text; redirect it, or name a file with -o")


def check_stdout(wanted: Mapping[str, bool]) -> None:
    """Return nothing if at most one of the options wants stdout.

    Raises:
        UsageError: several do.
    """
    *others, last = [option for option, wants in wanted.items() if wants] or [""]
    if others:
        both = "both" if len(others) == 1 else "all"
        raise click.UsageError(f"{', '.join(others)} and {last} {both} want stdout; give one of them")


def _files(outputs: Iterable[str | None]) -> list[str]:
    return [path for path in outputs if path is not None and path != "-"]


class OutputFile(click.Path):
    """A file to write, or - for stdout."""

    def __init__(self) -> None:
        super().__init__(allow_dash=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; stdout is that by its other name too, where a file would be replaced if it leads to one."""
        path = super().convert(value, param, ctx)
        return "-" if path == "/dev/stdout" else path


class _PictureFile(click.Path):
    """A picture to write: its name says the format."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        if Path(str(path)).suffix.lower() not in (".png", ".svg"):
            self.fail(f"{path!r} ends neither in .png nor in .svg", param, ctx)
        return path


picture_type = _PictureFile()


def write(path: str, data: bytes, force: bool, quiet: bool = False) -> None:
    """Write a file whole, and say so on stderr; `-` is stdout."""
    if path == "-":
        click.echo(data, nl=False)
        return
    with atomic_write(path, force) as file:
        file.write(data)
    if not quiet:
        say(f"{path}: {human_size(len(data))}", err=True)


class FileOf(click.Path):
    """A file to read, or a folder of them; shells complete folders and names that end in one of the suffixes."""

    def __init__(
        self,
        *suffixes: str,
        allow_dash: bool = False,
        must_be_file: bool = True,
        folders: bool = False,
        urls: bool = False,
    ) -> None:
        super().__init__(exists=must_be_file, dir_okay=folders or not must_be_file, allow_dash=allow_dash)
        self._suffixes, self._urls = suffixes, urls

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, or the URL where these may be given."""
        path = local(value) if self._urls else value
        return path if self._urls and is_url(path) else super().convert(path, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The names that go on as typed; where there are none, or a shell would have to quote them, its own choice."""
        names = _matching(incomplete, self._suffixes)
        descends = len(names) == 1 and names[0].endswith("/")  # a shell adds no space after folders of its own
        if not names or descends or not all(_BARE.fullmatch(name) for name in names):
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(name) for name in names]


def _matching(incomplete: str, suffixes: tuple[str, ...]) -> list[str]:
    folder, beginning = os.path.split(incomplete)
    prefix = incomplete[: len(incomplete) - len(beginning)]
    try:
        entries = sorted(Path(folder or ".").expanduser().iterdir())
    except (OSError, RuntimeError):  # no such folder, or no such user
        return []
    return [
        prefix + entry.name + ("/" if entry.is_dir() else "")
        for entry in entries
        if entry.name.startswith(beginning)
        and (beginning or not entry.name.startswith("."))
        and (entry.is_dir() or entry.name.endswith(suffixes))
    ]
