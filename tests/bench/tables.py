"""Markdown tables, row by row as they come."""

from __future__ import annotations

from collections.abc import Sequence

from .measuring import Measurement

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


def deviation(found: Measurement) -> str:
    """The deviation on the calibration data, or what came closest to the target."""
    if found.reached:
        return number(found.deviation, "{:.5f}")
    if found.k is not None:
        return number(found.deviation, "{:.5f} at k = " + f"{found.k:.0f}")
    return number(found.deviation, "best {:.5f}")


def task(found: Measurement) -> str:
    """The task metric before and after."""
    if found.metric is None or found.before is None or found.after is None:
        return NONE
    return f"{found.metric}: {found.before:.3f} → {found.after:.3f}"
