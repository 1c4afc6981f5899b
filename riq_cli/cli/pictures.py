"""Pictures that commands write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from riq_cli.cli.terminal import say
from riq_cli.files import atomic_write
from riq_cli.text import human_size

_SUFFIXES = (".png", ".svg")


class _PictureFile(click.Path):
    """A picture to write: its name says the format."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        if Path(str(path)).suffix.lower() not in _SUFFIXES:
            self.fail(f"{path!r} ends neither in .png nor in .svg", param, ctx)
        return path


picture_type = _PictureFile()


def write_picture(path: str, data: bytes, force: bool, quiet: bool = False) -> None:
    """Write a picture, and say so on stderr."""
    with atomic_write(path, force) as file:
        file.write(data)
    if not quiet:
        say(f"{path}: {human_size(len(data))}", err=True)
