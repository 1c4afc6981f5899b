"""What goes to the terminal: messages, tables, progress."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from riq_cli.cli.help import WIDTH
from riq_cli.text import finite, printable, shortened

if TYPE_CHECKING:
    from riq_cli.pipeline import Progress

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


_UNITS = {"search": " evaluations", "statistics": " layers", "gradients": " steps", "probe": " layers"}


class ProgressBar:
    """A tqdm bar on stderr, only where that is a terminal; call it with each `Progress`."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._phase = ""

    def __call__(self, step: Progress) -> None:
        """Show a step."""
        if self._quiet or not sys.stderr.isatty():
            return
        if step.phase != self._phase:
            self.close()
            self._open(step)
        self._bar.update(step.done - self._bar.n)
        if step.phase == "search":
            upper = "…" if math.isinf(step.high) else f"{step.high:.5g}"
            value = f"{step.measure} {step.value:.3g}"
            self._bar.set_postfix_str(f"k {step.k:.5g}, {value}, k in [{step.low:.5g}, {upper}]")

    def _open(self, step: Progress) -> None:
        from tqdm import tqdm

        self._phase = step.phase
        search = step.phase == "search"
        self._bar = tqdm(
            desc=step.phase,
            total=None if search else step.total,
            unit=_UNITS.get(step.phase, " weights"),
            unit_scale=step.phase not in _UNITS,
            bar_format="{desc}: {n_fmt}{unit} [{elapsed}{postfix}]" if search else None,
            leave=False,
            file=sys.stderr,
            dynamic_ncols=True,
        )

    def warn(self, message: str) -> None:
        """Print a warning in the bar's place, unless nothing is to be printed."""
        self.close()
        if not self._quiet:
            warn_line(message)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar, self._phase = None, ""
