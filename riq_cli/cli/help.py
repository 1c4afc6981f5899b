"""Help as a manual has it: a synopsis, options by what they are for, examples, exit codes; 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

WIDTH = 80
_TERMS = 30  # columns that the names of options take at most
FAILED, USAGE, TARGET = 1, 2, 3  # exit codes; the last: a target, a bound of verify or a gate is missed
_CODES = (
    (0, "done"),
    (FAILED, "failed: a file, the model or the data is not what it should be"),
    (USAGE, "wrong usage"),
)


def grouped(heading: str, *options: Callable[[Any], Any]) -> Callable[[Decorated], Decorated]:
    """One decorator that adds several options, in the order given, below a heading of the help."""

    def decorate(command: Decorated) -> Decorated:
        for option in reversed(options):
            command = option(command)
            command.__click_params__[-1].heading = heading  # type: ignore[attr-defined]  # click keeps them there
        return command

    return decorate


def alternatives(name: str, names: Sequence[str]) -> str:
    """The end of an error about an unknown name: the name that was probably meant, and all that there are."""
    close = get_close_matches(name, names, 1)
    meant = f"Did you mean {close[0]}? " if close else ""
    return f"{meant}There are {', '.join(names)}."


class Command(click.Command):
    """A command with a synopsis and examples; some have an exit code 3 too, or a table with a heading."""

    def __init__(
        self,
        *arguments: Any,
        synopsis: str,
        examples: str,
        target: str | None = None,
        table: tuple[str, list[tuple[str, str]]] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(*arguments, **others)
        self._synopsis, self._examples, self._target, self._table = synopsis, examples, target, table

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the synopsis."""
        formatter.write_usage(ctx.command_path, self._synopsis)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by heading; what has none, such as --help, goes with the last ones."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                heading = getattr(param, "heading", None) or next(reversed(sections), "Options")
                sections.setdefault(heading, []).append(record)
        width = min(_TERMS, max(len(term) for records in sections.values() for term, _ in records))
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl([(term.ljust(width), text) for term, text in records], col_max=_TERMS)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table, the examples and the exit codes."""
        if self._table is not None:
            heading, rows = self._table
            with formatter.section(heading):
                formatter.write_dl(rows)
        with formatter.section("Examples"):
            for line in self._examples.strip().splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
        codes = [*_CODES, *([(TARGET, self._target)] if self._target else [])]
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), text) for code, text in codes])
