"""The codes of a layer in words: how many bin widths, slices that share tables, and magnitudes; and its trellis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def brief(row: Mapping[str, Any], tables: int | None = None) -> str:
    """The codes of a report's row for a column: `64+576, 64 classed`, or `64+576, 64 in 5 tables`; empty without any.

    Those are bin widths of 64 slices and of 576 others, one over the other, and 64 slices that share tables. `64+32
    loud` are magnitudes of 64 slices and of 32 others. A layer with a trellis has `trellis` behind them.

    Args:
        row: of the layer.
        tables: how many it has, where that is known; only the archive's sections tell.
    """
    parts = ["+".join(str(scale["codes"]) for scale in row["scales"])] if row["scales"] else []
    if row["classes"]:
        slices = row["classes"]["codes"]
        parts.append(f"{slices} classed" if tables is None else f"{slices} in {tables} tables")
    if row["magnitudes"]:
        parts.append("+".join(str(item["codes"]) for item in row["magnitudes"]) + " loud")
    if row["trellis"]:
        parts.append("trellis")
    return ", ".join(parts)


def sentence(row: Mapping[str, Any], tables: int) -> str:
    """The codes of a report's row, with the axes that they go along; empty without any."""
    parts = [f"{scale['codes']} bin widths along {_axes(scale['axes'])}" for scale in row["scales"]]
    if row["classes"]:
        parts.append(f"{row['classes']['codes']} slices along {_axes(row['classes']['axes'])} share {tables} tables")
    parts += [f"{item['codes']} magnitudes along {_axes(item['axes'])}" for item in row["magnitudes"]]
    if row["trellis"]:
        parts.append(f"a trellis with lanes along all but {_axes(row['trellis']['axes'])}")
    return "; ".join(parts)


def _axes(axes: Sequence[int]) -> str:
    return f"ax{'i' if len(axes) == 1 else 'e'}s {', '.join(map(str, axes))}"
