"""Markdown tables, row by row as they come, and the pages that they stand in."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

NONE = "–"
_ROOT = Path(__file__).parent.parent.parent
PAGE, README = _ROOT / "riq_cli" / "docs" / "results.md", _ROOT / "README.md"


def header(columns: Sequence[str]) -> str:
    """The two lines that begin a table."""
    return line(columns) + "\n|" + "---|" * len(columns)


def line(cells: Sequence[str]) -> str:
    """One row; what would end a cell or the line is taken out."""
    return "| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |"


def number(value: float | None, form: str) -> str:
    """The value in its form; a dash for None."""
    return NONE if value is None else form.format(value)


def commit() -> str:
    """The commit that is measured, short."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, cwd=_ROOT).stdout.strip()


def write(path: Path, part: str, text: str) -> None:
    """Put a text between the two marks of a part of a page."""
    begin, end = f"<!-- {part}:begin -->\n", f"<!-- {part}:end -->"
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    path.write_text(f"{before}{begin}{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
