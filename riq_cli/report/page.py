"""An archive as one HTML page that needs nothing else: no network, no fonts, no further files.

Text that stands in a manifest is untrusted and goes through `html_text`; numbers are what its schema says. The
page's policy also forbids all scripts but the one that is written here, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, TypeGuard

from riq_cli.archive import Archive
from riq_cli.report import codes, figures
from riq_cli.report.histogram import Count, Histogram, histograms
from riq_cli.report.judgement import judgement, reservation
from riq_cli.report.reproduction import command
from riq_cli.report.totals import Totals, rows, totals
from riq_cli.text import estimate, fingerprint, html_text, human_size, shortened, shown

_HISTOGRAMS = 6
_SMALLEST = 1e-30  # on a logarithmic axis
_NAME = 56  # characters of a layer's name, two lines of the table
_FOUND = ("allocation", "rounding", "k", "epsilon", "evaluations", "probes")  # of the result
_CODES = "576+64, 64 in 5 tables: slices with bin widths of their own, 576 and 64 of them, and 64 that share 5 tables"
_HOW_TO_PLOT = (
    '<h2>The search</h2>\n<p class="soft">For a plot of the search, keep its log with <code>riq compress --log FILE'
    "</code>, and make this page with <code>riq report --html PAGE --log FILE</code>.</p>\n"
)
# Key, header, whether numbers (their first click sorts them descending, that of text ascending).
_COLUMNS = (
    ("number", "#", False),
    ("name", "layer", False),
    ("op", "op", False),
    ("shape", "shape", True),
    ("coding", "coding", False),
    ("symbols", "symbols", True),
    ("bin_width", "bin width", True),
    ("codes", "codes", True),
    ("entropy", "entropy", True),
    ("rate", "bits/weight", True),
    ("bytes", "bytes", True),
    ("share", "share", True),
)


def page(
    archive: Archive, name: str, count: Count | None = None, trace: Sequence[Sequence[float]] | None = None
) -> str:
    """The page about an archive that is called `name`.

    Args:
        archive: its manifest and tables are read, and all of some of its layers.
        name: for the title.
        count: what counts the symbols of a layer without tables; None: those have no picture.
        trace: k and deviation of each evaluation of the search; None: what an old archive holds of them, if anything.

    Raises:
        CorruptArchive: a table is damaged.
    """
    folder = files("riq_cli.report")
    style = folder.joinpath("page.css").read_text(encoding="utf-8")
    script = folder.joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    sums = totals(archive)
    symbols = histograms(archive, count, _HISTOGRAMS)
    sections = (
        _totals(archive, sums),
        _parts(sums),
        _layers(archive, symbols),
        _histograms(sorted(filter(None, symbols), key=lambda one: -one.layer.stored)[:_HISTOGRAMS]),
        _search(archive, trace),
        _made(archive, name),
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html_text(name)}: riq report</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{html_text(name)}</h1>
{"".join(sections)}
</main>
<script>{script}</script>
</body>
</html>
"""


# ---- totals ----


def _totals(archive: Archive, sums: Totals) -> str:
    result = archive.manifest.result
    target, source = archive.manifest.settings.get("deviation"), sums.source_bytes
    cards = [
        (
            "size",
            human_size(sums.archive_bytes),
            f"from {human_size(source)}" if source else f"{sums.archive_bytes:,} bytes",
        ),
        ("compression ratio", f"×{shown(sums.ratio, '.2f')}", f"×{sums.ratio_eq2:.2f} by eq. (2), layers alone"),
        ("rate", f"{sums.rate:.3g}", f"bits/weight; {sums.weights:,} weights in {sums.layers} layers"),
    ]
    if "deviation" in result:
        bound = f"target {target:g}" if target else "cosine distance"
        held, error = result.get("holdout"), result.get("standard_error")
        cards.append(
            (
                "deviation",
                shown(result["deviation"], ".3g"),
                ("" if error is None else f"± {error:.2g}; ")
                + f"{bound}; worst sample {shown(result.get('worst'), '.3g')}"
                + ("" if held is None else f"; held out {estimate(held, result.get('holdout_standard_error'))}"),
            )
        )
    if "constraint" in result:
        held = result.get("constraint_holdout")
        note = judgement(result["constraint"], brief=True)
        note += "" if held is None else f"; held out: {judgement(held, brief=True)}"
        cards.append(("constraint", html_text(archive.manifest.settings.get("objective", "–")), html_text(note)))
    return (
        '<dl class="totals">'
        + "".join(f"<div><dt>{term}</dt><dd>{value} <small>{note}</small></dd></div>" for term, value, note in cards)
        + "</dl>\n"
    )


def _parts(sums: Totals) -> str:
    bar = "".join(f'<span class="{name}" style="flex: {max(size, 1)} 0 0"></span>' for name, size in sums.parts)
    key = "".join(
        f'<li><i class="{name}"></i>{name} {human_size(size)} ({size / sums.archive_bytes:.1%})</li>'
        for name, size in sums.parts
    )
    return (
        f'<h2>Where the bytes are</h2>\n<div class="parts" aria-hidden="true">{bar}</div><ul class="key">{key}</ul>\n'
    )


# ---- layers ----


def _layers(archive: Archive, symbols: Sequence[Histogram | None]) -> str:
    layers = rows(archive)
    if not layers:
        return "<h2>Layers</h2>\n<p>Nothing was coded: all of the model is in the skeleton.</p>\n"
    largest = {key: max(row[key] for row in layers) or 1 for key in ("rate", "bytes")}
    head = "".join(
        f'<th scope="col" aria-sort="{"ascending" if key == "number" else "none"}" data-key="{key}" '
        f'data-first="{"descending" if numbers else "ascending"}"{_right(numbers or key == "number")}>'
        f'<button type="button"{_title(_CODES) if key == "codes" else ""}>{header}</button></th>'
        for key, header, numbers in _COLUMNS
    )
    body = "\n".join(
        _row(number, row, 1 if one is None else one.tables, largest)
        for number, (row, one) in enumerate(zip(layers, symbols, strict=True), 1)
    )
    return (
        "<h2>Layers</h2>\n"
        '<div class="controls" hidden><label>Filter by name, operator, shape or coding'
        '<input type="search" id="filter" autocomplete="off"></label><span id="shown" role="status"></span>'
        '<span class="soft">A click on a header sorts.</span></div>\n'
        '<div class="scroll"><table class="layers">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
    )


def _right(numbers: bool) -> str:
    return ' class="number"' if numbers else ""


def _row(number: int, row: Mapping[str, Any], tables: int, largest: Mapping[str, float]) -> str:
    shape = "×".join(map(str, row["shape"])) or "scalar"
    shape += "" if row["dtype"] == "float32" else f" {row['dtype']}"
    width = row["bin_width"]
    entropy = f"{row['entropy']:.2f}" if row["symbols"] else "–"
    size = 1
    for length in row["shape"]:
        size *= length
    words = html_text(" ".join((row["name"], row["op"], shape, row["coding"])))
    name = shortened(row["name"], _NAME)
    several = [*row["scales"], *row["magnitudes"], *([row["classes"]] if row["classes"] else [])]
    every = sum(item["codes"] for item in several)
    return (
        f'<tr data-text="{words}" data-bytes="{row["bytes"]}">'
        f'<td class="number" data-value="{number}">{number}</td>'
        f'<td class="name"{_title(row["name"]) if name != row["name"] else ""}>{_breakable(name)}</td>'
        f"<td>{html_text(row['op'])}</td>"
        f'<td class="number" data-value="{size}">{html_text(shape)}</td>'
        f"<td>{row['coding']}</td>"
        f'<td class="number" data-value="{row["symbols"]}">{row["symbols"] or "–"}</td>'
        f'<td class="number" data-value="{width or 0!r}">{shown(width)}</td>'
        f'<td class="number slices" data-value="{every}"{_title(codes.sentence(row, tables))}>'
        f"{_unbroken(codes.brief(row, tables)) or '–'}</td>"
        f'<td class="number" data-value="{row["entropy"]!r}">{entropy}</td>'
        + _barred("rate", row["rate"], f"{row['rate']:.2f}", largest)
        + _barred("bytes", row["bytes"], f"{row['bytes']:,}", largest)
        + f'<td class="number" data-value="{row["share"]!r}">{row["share"]:.1%}</td></tr>'
    )


def _breakable(name: str) -> str:
    """A name that takes a new line between its parts where it has to."""
    return re.sub(r"([./:_]+)", r"\1<wbr>", html_text(name))  # none of these is part of what escapes a letter


def _unbroken(text: str) -> str:
    """A text that takes a new line after commas only."""
    return text.replace(" ", "\N{NO-BREAK SPACE}").replace(",\N{NO-BREAK SPACE}", ", ")


def _title(text: str) -> str:
    """The attribute that shows a text where the pointer rests."""
    return f' title="{html_text(text)}"' if text else ""


def _barred(key: str, value: float, text: str, largest: Mapping[str, float]) -> str:
    """A cell with a number and a bar beside it, as long as its share of the largest in the column."""
    bar = f'<i aria-hidden="true"><b style="width: {100 * value / largest[key]:.2f}%"></b></i>'
    return f'<td class="number barred {key}" data-value="{value!r}"><div>{bar}<span>{text}</span></div></td>'


# ---- figures ----


def _histograms(found: Sequence[Histogram]) -> str:
    if not found:
        return ""
    pictures = "".join(
        f'<figure><figcaption><span class="name"{_title(one.layer.name)}>'
        f"{html_text(shortened(one.layer.name, _NAME))}</span><br>"
        f"{one.layer.size:,} weights, {one.layer.symbols} symbols in use, {one.zero:.0%} zero"
        + (f", {one.tables} tables" if one.tables > 1 else "")
        + (f", {one.beyond:.2%} beyond the picture" if one.beyond else "")
        + f"</figcaption>{figures.histogram(one)}</figure>"
        for one in found
    )
    return (
        "<h2>Symbols of the largest layers</h2>\n"
        '<p class="soft">Share of the weights at each symbol; tables in the archive keep it to a few '
        "per cent. A symbol times its bin width is the weight (with a trellis a quarter more or less); with codes, "
        "slices of a layer have bin widths of their own.</p>\n"
        f'<div class="histograms">{pictures}</div>\n'
    )


def _search(archive: Archive, trace: Sequence[Sequence[float]] | None) -> str:
    """The plot of the search; without its measurements, how to get it."""
    result = archive.manifest.result
    target = archive.manifest.settings.get("deviation")
    k, deviation = result.get("k"), result.get("deviation")
    chosen = (k, deviation) if _plottable(k) and _plottable(deviation) else None
    measured = result.get("trace", ()) if trace is None else trace
    points = [(k, value) for k, value in measured if _plottable(value)]
    if not points:
        return _HOW_TO_PLOT if trace is None and chosen else ""
    target = target if _plottable(target) else None
    numbers = "".join(
        f'<tr><td class="number">{n}</td><td class="number">{k:.5g}</td><td class="number">{value:.4g}</td></tr>'
        for n, (k, value) in enumerate(points, 1)
    )
    circle = '<svg viewBox="0 0 22 16" aria-hidden="true">{}</svg>'
    key = [
        circle.format('<circle class="holds" cx="11" cy="8" r="4.5"/>')
        + ("meets the target" if target else "an evaluation"),
        circle.format('<circle class="chosen" cx="11" cy="8" r="7"/>') + "the solution, as restored",
        circle.format('<line class="theory" x1="0" x2="22" y1="8" y2="8"/>') + "1/k², what theory expects",
    ]
    if target:
        key.append(circle.format('<line class="target" x1="0" x2="22" y1="8" y2="8"/>') + f"target {target:g}")
        key.insert(1, circle.format('<path class="misses" d="M7 4L15 12M7 12L15 4"/>') + "misses it")
    return (
        "<h2>The search</h2>\n"
        f'<p class="soft">Deviation of the {html_text(result.get("allocation", "–"))} allocation with '
        f"{html_text(result.get('rounding', 'nearest'))} rounding at each k that was evaluated: "
        "on the samples of the search, on those held out, and of the restored model.</p>\n"
        f'<figure class="trace">{figures.trace(points, target, chosen)}'
        f'<ul class="key">{"".join(f"<li>{item}</li>" for item in key)}</ul></figure>\n'
        "<details><summary>The numbers</summary><table><thead>"
        '<tr><th scope="col" class="number">#</th><th scope="col" class="number">k</th>'
        f'<th scope="col" class="number">deviation</th></tr></thead><tbody>{numbers}</tbody></table></details>\n'
    )


def _plottable(value: float | None) -> TypeGuard[float]:
    """Whether a logarithmic axis can show a number; a deviation may be 0."""
    return value is not None and value > _SMALLEST


# ---- how it was made ----


def _made(archive: Archive, name: str) -> str:
    manifest = archive.manifest
    found = [(key, manifest.result.get(key)) for key in _FOUND]
    for tensor in manifest.result.get("measured", ()):
        mean = estimate(tensor["mean"], tensor.get("standard_error"))
        found.append((f"deviation at {shortened(tensor['name'])}", f"{mean}, worst {shown(tensor['worst'])}"))
    if manifest.calibration:
        samples, kind = shown(manifest.calibration.get("samples"), "d"), manifest.calibration.get("kind", "–")
        found.append(("calibration", f"{samples} samples, {kind}{reservation(kind)}"))
        digest = manifest.calibration.get("sha256")
        found.append(("calibration SHA-256", digest and f"{fingerprint(digest)}…"))
    found += [("source SHA-256", manifest.source.get("sha256")), ("made by", manifest.creator)]
    return (
        f"<h2>How it was made</h2>\n{_facts('asked for', [*manifest.settings.items()])}{_facts('found', found)}"
        "<h2>How to reproduce</h2>\n"
        f"<pre><code>{html_text(command(manifest, name))}</code></pre>\n"
        '<p class="soft">With the model and the samples of the SHA-256 above, the same versions and the same machine, '
        "the archive is the same byte for byte. It keeps no file names: those of the model and the samples are "
        "placeholders.</p>\n"
    )


def _facts(caption: str, facts: Sequence[tuple[str, Any]]) -> str:
    """A table of names and values; those that are not known are left out."""
    lines = "".join(
        f'<tr><th scope="row">{html_text(key)}</th><td><code>{html_text(_setting(value))}</code></td></tr>'
        for key, value in facts
        if value is not None
    )
    table = f'<table class="facts"><caption>{caption}</caption><tbody>{lines}</tbody></table>'
    return f'<div class="scroll">{table}</div>\n' if lines else ""


def _setting(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    return ", ".join(f"{key}={item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
