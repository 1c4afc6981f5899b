"""Files named on the command line, and how a shell completes them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click
from click.shell_completion import CompletionItem

_BARE = re.compile(r"[\w./~+,@%=:-]*")  # what a shell takes as one word without quotes


class FileOf(click.Path):
    """A file to read; shells complete folders and names that end in one of the suffixes."""

    def __init__(self, *suffixes: str, allow_dash: bool = False, must_be_file: bool = True) -> None:
        super().__init__(exists=must_be_file, dir_okay=not must_be_file, allow_dash=allow_dash)
        self._suffixes = suffixes

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
