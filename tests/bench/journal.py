"""Rows of a table that takes hours, kept as JSON lines, so that an interrupted run goes on."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

CaseT = TypeVar("CaseT")
RowT = TypeVar("RowT")


class Journal(Generic[CaseT, RowT]):
    """Rows by case, both dataclasses, and the file of JSON lines that keeps them, if any."""

    def __init__(self, case: type[CaseT], row: type[RowT], path: Path | None = None, resume: bool = False) -> None:
        """Read the rows that the file holds if the run is to be resumed; new ones are appended."""
        self.rows: dict[CaseT, RowT] = {}
        self._case, self._row = case, row
        self._path = path
        if path is None or not path.exists():
            return
        text = path.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):  # the run was interrupted while it wrote
            self._append("\n")
        if resume:
            for number_of_line, text_of_line in enumerate(text.splitlines(), 1):
                self._read(text_of_line, f"{path}:{number_of_line}")

    def add(self, case: Any, found: Any) -> None:
        """Keep a row."""
        self.rows[case] = found
        row = {**asdict(case), **asdict(found)}
        self._append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

    def _read(self, text: str, where: str) -> None:
        if not text.strip():
            return
        try:
            row = json.loads(text)
            case = self._case(**{field.name: row.pop(field.name) for field in fields(self._case)})  # type: ignore[arg-type]
            self.rows[case] = self._row(**row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"{where}: no row of this table, passed over: {error}", file=sys.stderr)

    def _append(self, text: str) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
