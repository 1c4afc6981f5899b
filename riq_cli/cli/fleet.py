"""Many archives in one table, with their sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from riq_cli.archive import Archive
from riq_cli.cli.terminal import table
from riq_cli.report import SortKey, totals, with_derived
from riq_cli.text import counted, human_size, shown, times

_HEADER = ("archive", "size", "ratio", "bits/weight", "deviation")
_ORDERS = {"bytes": lambda row: -row["archive_bytes"], "rate": lambda row: -row["rate"]}


def row(archive: Archive) -> dict[str, Any]:
    """What --json prints of one of many archives: its totals and its result."""
    manifest = archive.manifest
    return {
        **asdict(totals(archive)),
        "target": manifest.settings.get("deviation"),
        "deviation": None,
        **with_derived(manifest.result),
    }


def in_order(rows: Sequence[dict[str, Any]], sort: SortKey) -> list[dict[str, Any]]:
    """Rows by bytes or rate, the largest first; else by name."""
    return sorted(rows, key=_ORDERS.get(sort, lambda row: row["archive"]))


def sums(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums over archives; bytes of the sources and their ratio are None if one is not known."""
    sources = [row["source_bytes"] for row in rows]
    found = {key: sum(row[key] for row in rows) for key in ("archive_bytes", "layers", "weights")}
    source = None if None in sources else sum(sources)
    deviations = [row["deviation"] for row in rows if row["deviation"] is not None]
    return {
        "archives": len(rows),
        **found,
        "source_bytes": source,
        "ratio": source / found["archive_bytes"] if source else None,
        "largest_deviation": max(deviations, default=None),
    }


def cells(row: Mapping[str, Any]) -> list[str]:
    """The cells of a row; without an archive, its status is the last one."""
    if "archive_bytes" not in row:
        return [row["archive"], "–", "–", "–", row["status"]]
    ratio = "–" if row["ratio"] is None else f"×{row['ratio']:.2f}"
    return [row["archive"], human_size(row["archive_bytes"]), ratio, f"{row['rate']:.2f}", shown(row["deviation"])]


def text(rows: Sequence[Mapping[str, Any]], whole: Mapping[str, Any], wide: bool = False) -> list[str]:
    """The lines of a table of archives, and of their sums; names are shortened to 80 columns unless it is wide."""
    summed = f"{counted(whole['archives'], 'archive')}, {human_size(whole['archive_bytes'])}"
    if whole["ratio"] is not None:
        summed += f", {times(whole['ratio'])} than their models ({human_size(whole['source_bytes'])})"
    if whole["largest_deviation"] is not None:
        summed += f"; largest deviation {shown(whole['largest_deviation'])}"
    return [*table(_HEADER, list(map(cells, rows)), left=1, narrow=not wide), "", summed]
