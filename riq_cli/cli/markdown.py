"""Markdown as GitHub reads it, of text that nobody vouches for; and a report in it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from riq_cli.archive import Archive
from riq_cli.report import SortKey, judgement, rows, totals
from riq_cli.text import code_span, estimate, human_size, shown

ROWS = 100  # of a table: a comment on GitHub holds 65,536 characters


def table(header: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """A table of at most `ROWS` lines, the first `left` columns to the left, and a word on how many are not shown."""
    rules = [":--" if column < left else "--:" for column in range(len(header))]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (header, rules, *lines[:ROWS])]
    drawn = "\n".join(f"| {' | '.join(line)} |" for line in cells)
    rest = len(lines) - ROWS
    return drawn if rest <= 0 else f"{drawn}\n\n… and {rest} more"


def folded(summary: str, content: str) -> str:
    """Content that opens at a click."""
    return f"<details><summary>{escape(summary)}</summary>\n\n{content}\n\n</details>"


def report(archive: Archive, name: str, sort: SortKey) -> str:
    """An archive for the summary of a job."""
    sums, result = totals(archive), archive.manifest.result
    target = archive.manifest.settings.get("deviation")
    facts = [
        ("size", human_size(sums.archive_bytes)),
        ("source", "–" if sums.source_bytes is None else human_size(sums.source_bytes)),
        ("ratio", f"×{shown(sums.ratio, '.2f')}"),
        ("bits/weight", f"{sums.rate:.3g}"),
    ]
    if "constraint" in result:
        facts.append(("constraint", code_span(judgement(result["constraint"]))))
    if "deviation" in result:
        found = estimate(result["deviation"], result.get("standard_error"))
        facts.append(("deviation", found + (f" (target {target:g})" if target else "")))
        facts.append(("worst sample", shown(result.get("worst"))))
    if "holdout" in result:
        facts.append(("held out", estimate(result["holdout"], result.get("holdout_standard_error"))))
    lines = [
        (
            code_span(row["name"]),
            code_span(row["op"]),
            "×".join(map(str, row["shape"])),
            row["coding"],
            shown(row["bin_width"]),
            f"{row['rate']:.2f}",
            f"{row['bytes']:,}",
            f"{row['share']:.1%}",
        )
        for row in rows(archive, sort)
    ]
    header = ("layer", "op", "shape", "coding", "bin width", "bits/weight", "bytes", "share")
    blocks = [f"### {code_span(name)}", table([key for key, _ in facts], [[value for _, value in facts]], left=0)]
    if lines:
        summary = f"{sums.layers} layers, {sums.weights:,} weights"
        blocks.append(folded(summary, table(header, lines, left=4)))
    return "\n\n".join(blocks)
