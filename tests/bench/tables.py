"""Markdown tables, row by row as they come."""

from __future__ import annotations

from collections.abc import Sequence

NONE = "–"


def header(columns: Sequence[str]) -> str:
    """The two lines that begin a table."""
    return line(columns) + "\n|" + "---|" * len(columns)


def line(cells: Sequence[str]) -> str:
    """One row; what would end a cell or the line is taken out."""
    return "| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |"


def number(value: float | None, form: str) -> str:
    """The value in its form; a dash for None."""
    return NONE if value is None else form.format(value)
