"""Markdown as GitHub reads it, of text that nobody vouches for; and a report in it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from riq_cli.archive import Archive
from riq_cli.report import SortKey, cells, judgement, rows, top1_text, totals
from riq_cli.text import code_span, deviation_text, human_size, shown

_ROWS = 100  # of a table: a comment on GitHub holds 65,536 characters
_COLUMNS = ("layer", "op", "shape", "coding", "bin width", "bits/weight", "bytes", "share")


def table(header: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """A table of at most 100 rows, the first `left` columns to the left, and how many more there are."""
    rules = [":--" if column < left else "--:" for column in range(len(header))]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, rules, *lines[:_ROWS])]
    drawn = [f"| {' | '.join(row)} |" for row in cells]
    rest = len(lines) - _ROWS
    return [*drawn, "", f"… and {rest} more"] if rest > 0 else drawn


def folded(summary: str, lines: Sequence[str]) -> list[str]:
    """Lines that open at a click."""
    return [f"<details><summary>{escape(summary)}</summary>", "", *lines, "", "</details>"]


def report(archive: Archive, name: str, sort: SortKey) -> list[str]:
    """The lines about an archive for the summary of a job."""
    sums, result = totals(archive), archive.manifest.result
    target = archive.manifest.settings.get("deviation")
    facts = {
        "size": human_size(sums.archive_bytes),
        "source": "–" if sums.source_bytes is None else human_size(sums.source_bytes),
        "ratio": f"×{shown(sums.ratio, '.2f')}",
        "bits/weight": f"{sums.rate:.3g}",
    }
    if "constraint" in result:
        facts["constraint"] = code_span(judgement(result["constraint"]))
    if "deviation" in result:
        found = deviation_text(result["deviation"], result.get("standard_error"))
        facts["deviation"] = found + (f"; target {target:g}" if target else "")
        facts["worst sample"] = shown(result.get("worst"))
    if "holdout" in result:
        facts["held out"] = deviation_text(result["holdout"], result.get("holdout_standard_error"))
    for key, column in (("top1", "top-1 kept"), ("holdout_top1", "top-1 held out")):
        if key in result:
            facts[column] = "; ".join(map(top1_text, result[key]))
    lines = [f"### {code_span(name)}", "", *table(list(facts), [list(facts.values())], left=0)]
    layers = [cells(row | {"name": code_span(row["name"]), "op": code_span(row["op"])}) for row in rows(archive, sort)]
    if layers:
        content = table(_COLUMNS, [[layer[column] for column in _COLUMNS] for layer in layers], left=4)
        lines += ["", *folded(f"{sums.layers} layers, {sums.weights:,} weights", content)]
    return lines
