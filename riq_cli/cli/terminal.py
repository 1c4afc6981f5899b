"""What goes to the terminal: messages, tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from riq_cli.cli.help import WIDTH
from riq_cli.text import finite, printable, shortened

_NAME = 16  # letters of a name in a narrow table, at least


def print_json(document: Mapping[str, Any]) -> None:
    """Print a document to stdout; what JSON has no number for, NaN or infinity, becomes null."""
    click.echo(json.dumps(_with_nulls(document), indent=2, allow_nan=False))


def _with_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_nulls(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_nulls(item) for item in value]
    return finite(value) if isinstance(value, float) else value


def say(*lines: str, err: bool = False) -> None:
    """Print lines for people; whatever names they hold, each stays one line and leaves the terminal alone."""
    click.echo("\n".join(map(printable, lines)), err=err)


def error_line(message: str) -> None:
    """Print an error to stderr, in one line."""
    say(f"riq: error: {' '.join(message.split())}", err=True)


def warn_line(message: str) -> None:
    """Print a warning to stderr, in one line."""
    say(f"riq: warning: {' '.join(message.split())}", err=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int, narrow: bool = False) -> list[str]:
    """Lines of aligned columns; the first `left` ones to the left, the others to the right.

    In a `narrow` table the middle of long names in the first column is left out, so that lines have 80 characters.
    """
    lines = [header, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    if narrow:
        widths[0] = min(widths[0], max(WIDTH - sum(widths[1:]) - 2 * len(widths[1:]), _NAME))
        lines = [[shortened(line[0], widths[0]), *line[1:]] for line in lines]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
