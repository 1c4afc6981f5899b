"""An archive as one HTML page that needs nothing else: no network, no fonts, no further files.

Text that stands in a manifest is untrusted and goes through `html_text`; numbers are what its schema says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from riq_cli.archive import Archive
from riq_cli.report import figures
from riq_cli.report.document import cards, document, key_of, table
from riq_cli.report.facts import command, facts, judgement, top1_text
from riq_cli.report.histogram import Histogram, histograms
from riq_cli.report.totals import PARTS, Totals, cells, rows, totals
from riq_cli.text import deviation_text, html_text, human_size, percent, relative_error, shortened, shown

_HISTOGRAMS = 6
_SMALLEST = 1e-30  # on a logarithmic axis
_LARGE = 0.01  # share of the archive from which a layer's rate matters
_MEASURED = {"deviation": "Deviation", "constraint": "Value of the constraint"}
_LIMITS = {"deviation": "target", "constraint": "limit"}
_MOST = 2.0  # times the largest rate of a large layer at which a bar is full
_NAME = 56  # characters of a layer's name, two lines of the table
_CODES = "scales 576+64, classes 64: bin widths of 576 slices and of 64 others, and the classes of 64"
_HOW_TO_PLOT = (
    '<h2>The search</h2>\n<p class="soft">For a plot of the search, keep its log with <code>riq compress --log FILE'
    "</code>, and make this page with <code>riq report --html PAGE --log FILE</code>.</p>\n"
)
# By header: the key in the page's address, and the number that sorts, largest first; None: the text does.
_COLUMNS: dict[str, tuple[str, Callable[[Mapping[str, Any]], float] | None]] = {
    "layer": ("name", None),
    "shape": ("shape", lambda row: math.prod(row["shape"])),
    "bits/weight": ("rate", lambda row: row["rate"]),
    "bytes": ("bytes", lambda row: row["bytes"]),
    "share": ("share", lambda row: row["share"]),
    "op": ("op", None),
    "coding": ("coding", None),
    "symbols": ("symbols", lambda row: row["symbols"]),
    "bin width": ("bin_width", lambda row: row["bin_width"] or 0),
    "codes": ("codes", None),
    "entropy": ("entropy", lambda row: row["entropy"]),
}


@dataclass(frozen=True)
class SearchLog:
    """What the log of a compression tells that the archive does not.

    Attributes:
        trace: k and deviation, or value of the constraint, of each evaluation of the chosen scheme, in order.
        others: the same of schemes that were tried beside it.
        command: the command as it was typed, if the log tells it.
    """

    trace: Sequence[Sequence[float]]
    others: Sequence[Sequence[float]]
    command: str | None


def page(archive: Archive, name: str, log: SearchLog | None = None) -> str:
    """The page about an archive that is called `name`.

    Args:
        archive: its manifest is read, and its largest layers are.
        name: for the title.
        log: that of its compression; None: what an old archive itself holds of the search is shown.

    Raises:
        CorruptArchive: a layer is damaged.
    """
    sums = totals(archive)
    sections = (
        _totals(archive, sums),
        _parts(sums),
        _layers(archive),
        _histograms(histograms(archive, _HISTOGRAMS)),
        _search(archive, log),
        _made(archive, log.command if log else None),
    )
    return document(f"{name}: riq report", name, sections)


# ---- totals ----


def _totals(archive: Archive, sums: Totals) -> str:
    result, settings, source = archive.manifest.result, archive.manifest.settings, sums.source_bytes
    whence = f"from {human_size(source)}" if source else f"{sums.archive_bytes:,} bytes"
    boxes = [
        ("size", human_size(sums.archive_bytes), whence),
        ("compression ratio", f"×{shown(sums.ratio, '.2f')}", f"×{sums.ratio_eq2:.2f} by eq. (2), layers alone"),
        ("rate", f"{sums.rate:.3g}", f"bits/weight; {sums.weights:,} weights in {sums.layers} layers"),
    ]
    if "deviation" in result:
        target, error = settings.get("deviation"), result.get("standard_error")
        notes = [] if error is None else [f"± {error:.2g}"]
        notes += [f"target {target:g}" if target else "cosine distance"]
        notes += [f"relative error {percent(relative_error(result['deviation'], error)[0])}"]
        notes += [f"worst sample {shown(result.get('worst'), '.3g')}"]
        if "holdout" in result:
            notes.append(f"held out {deviation_text(result['holdout'], result.get('holdout_standard_error'))}")
        boxes.append(("deviation", shown(result["deviation"], ".3g"), "; ".join(notes)))
    for found in result.get("top1", ()):
        notes = [top1_text(found, brief=True), f"at {html_text(shortened(found['name']))}"]
        held = [one for one in result.get("holdout_top1", ()) if one["name"] == found["name"]]
        notes += [f"held out {top1_text(one)}" for one in held]
        boxes.append(("top-1 kept", percent(found["kept"] / found["choices"]), "; ".join(notes)))
    if "constraint" in result:
        note = judgement(result["constraint"], brief=True)
        if "constraint_holdout" in result:
            note += f"; held out: {judgement(result['constraint_holdout'], brief=True)}"
        boxes.append(("constraint", html_text(settings.get("objective", "–")), html_text(note)))
    return cards(boxes)


def _parts(sums: Totals) -> str:
    bar = "".join(f'<span class="part-{name}" style="flex: {max(size, 1)} 0 0"></span>' for name, size in sums.parts)
    key = "".join(
        f'<li{_title(name)}><i class="part-{name}"></i>{PARTS[name]} <span class="soft">({name})</span> '
        f"{human_size(size)}, {size / sums.archive_bytes:.1%}</li>"
        for name, size in sums.parts
    )
    return (
        f'<h2>Where the bytes are</h2>\n<div class="parts" aria-hidden="true">{bar}</div><ul class="key">{key}</ul>\n'
    )


# ---- layers ----


def _layers(archive: Archive) -> str:
    layers = rows(archive, "model")
    if not layers:
        return "<h2>Layers</h2>\n<p>Nothing was coded: all of the model is in the skeleton.</p>\n"
    large = [row for row in layers if row["share"] >= _LARGE] or layers  # a bias may have many times their rate
    largest = {key: max(row[key] for row in layers) or 1 for key in ("rate", "bytes")}
    largest["rate"] = min(largest["rate"], _MOST * max(row["rate"] for row in large)) or 1
    head = _header("number", "#", "none", "ascending") + "".join(
        _header(key, header, "descending" if key == "bytes" else "none", "ascending" if value is None else "descending")
        for header, (key, value) in _COLUMNS.items()
    )
    numbered = sorted(enumerate(layers, 1), key=lambda pair: -pair[1]["bytes"])
    body = "\n".join(_row(number, row, largest) for number, row in numbered)
    return (
        "<h2>Layers</h2>\n"
        '<div class="controls" hidden><label>Filter by name, operator, shape or coding'
        '<input type="search" id="filter" autocomplete="off"></label><span id="shown" role="status"></span>'
        '<span class="soft">A click on a header sorts.<span class="hint"> The table scrolls sideways →</span></span>'
        "</div>\n"
        '<div class="scroll"><table class="layers">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
    )


def _header(key: str, header: str, order: str, first: str) -> str:
    """The header of a column that is sorted in an order, and that a first click sorts in another."""
    right = ' class="number"' if key == "number" or first == "descending" else ""
    return (
        f'<th scope="col" aria-sort="{order}" data-key="{key}" data-first="{first}"{right}>'
        f'<button type="button"{_title(_CODES) if key == "codes" else ""}>{header}</button></th>'
    )


def _row(number: int, row: Mapping[str, Any], largest: Mapping[str, float]) -> str:
    texts = cells(row)
    line = [f'<td class="number" data-value="{number}">{number}</td>']
    for header, (key, value) in _COLUMNS.items():
        text = html_text(texts[header])
        if key == "name":
            name = shortened(row["name"], _NAME)
            line.append(f'<td class="name"{_title(row["name"]) if name != row["name"] else ""}>{_breakable(name)}</td>')
        elif value is None:
            line.append(f'<td class="{key}">{text}</td>')
        elif key in largest:  # a bar beside the number
            width = 100 * min(value(row) / largest[key], 1)
            pale = "" if row["share"] >= _LARGE else ' class="pale"'
            bar = f'<i aria-hidden="true"><b{pale} style="width: {width:.2f}%"></b></i>'
            text = f"<div>{bar}<span>{text}</span></div>"
            line.append(f'<td class="number barred {key}" data-value="{value(row)!r}">{text}</td>')
        else:
            line.append(f'<td class="number" data-value="{value(row)!r}">{text}</td>')
    words = html_text(" ".join(texts[header] for header in ("layer", "op", "shape", "coding")))
    return f'<tr data-text="{words}" data-bytes="{row["bytes"]}">{"".join(line)}</tr>'


def _breakable(name: str) -> str:
    """A name that takes a new line between its parts where it has to."""
    return re.sub(r"([./:_]+)", r"\1<wbr>", html_text(name))  # none of these is part of what escapes a letter


def _title(text: str) -> str:
    """The attribute that shows a text where the pointer rests."""
    return f' title="{html_text(text)}"' if text else ""


# ---- figures ----


def _histograms(found: Sequence[Histogram]) -> str:
    if not found:
        return ""
    pictures = "".join(
        f'<figure><figcaption><span class="name"{_title(one.layer.name)}>'
        f"{html_text(shortened(one.layer.name, _NAME))}</span><br>"
        f"{one.layer.size:,} weights, {one.layer.symbols} symbols in use, {one.zero:.0%} zero"
        + (f", {one.beyond:.2%} beyond the picture" if one.beyond else "")
        + f"</figcaption>{figures.histogram(one)}</figure>"
        for one in found
    )
    return (
        "<h2>Symbols of the largest layers</h2>\n"
        '<p class="soft">Share of the weights at each symbol. A symbol times its bin width is the weight (with a '
        "trellis a quarter more or less); with codes, slices of a layer have bin widths of their own.</p>\n"
        f'<div class="histograms">{pictures}</div>\n'
    )


def measured_in_search(result: Mapping[str, Any]) -> figures.Measure:
    """What the search for k of an archive with such a result was about."""
    return "constraint" if "constraint" in result and "layout" not in result else "deviation"


def _search(archive: Archive, log: SearchLog | None) -> str:
    """The plot of the search; without its measurements, how to get it."""
    result = archive.manifest.result
    measure = measured_in_search(result)
    k, value, limit = result.get("k"), result.get("deviation"), archive.manifest.settings.get("deviation")
    old = "trace"
    if measure == "constraint":
        value, limit, old = result["constraint"]["value"], result["constraint"]["limit"], "constraint_trace"
    is_drawn = _plottable if measure == "deviation" else _known
    chosen = (k, value) if _plottable(k) and is_drawn(value) else None
    points, others = (
        [(k, value) for k, value in measured if is_drawn(value)]
        for measured in ((log.trace, log.others) if log else (result.get(old, ()), ()))
    )
    if not points:
        return _HOW_TO_PLOT if log is None and chosen else ""
    limit = limit if is_drawn(limit) else None
    numbers = [(f"{n}", f"{k:.5g}", f"{value:.4g}") for n, (k, value) in enumerate(points, 1)]
    key = [
        (figures.mark("holds", 11, 8), "an evaluation" if limit is None else "holds"),
        *([] if limit is None else [(figures.mark("misses", 11, 8), "does not hold")]),
        *([(figures.mark("other", 11, 8), "another allocation, rounding or ε₀")] if others else []),
        (figures.mark("chosen", 11, 8), "the solution, as restored"),
        *([(figures.line("theory", 0, 8, 22, 8), "1/k², what theory expects")] if measure == "deviation" else []),
        *([] if limit is None else [(figures.line("target", 0, 8, 22, 8), f"{_LIMITS[measure]} {limit:g}")]),
    ]
    return (
        "<h2>The search</h2>\n"
        f'<p class="soft">{_MEASURED[measure]} at each k of the {html_text(result.get("allocation", "–"))} allocation '
        f"with {html_text(result.get('rounding', 'nearest'))} rounding that was evaluated: "
        "on the samples of the search, on those held out, and of the restored model. What is far off is drawn pale, at "
        "the edge.</p>\n"
        f'<figure class="trace">{figures.trace(points, others, limit, chosen, measure)}'
        f"{key_of(key)}</figure>\n"
        f"<details><summary>The numbers</summary>{table(('#', 'k', measure), numbers, left=0)}</details>\n"
    )


def _known(value: float | None) -> TypeGuard[float]:
    """Whether a linear axis can show a number."""
    return value is not None


def _plottable(value: float | None) -> TypeGuard[float]:
    """Whether a logarithmic axis can show a number; a deviation may be 0."""
    return value is not None and value > _SMALLEST


# ---- how it was made ----


def _made(archive: Archive, typed: str | None) -> str:
    manifest = archive.manifest
    found = [*facts(archive), ("source SHA-256", manifest.source.get("sha256", "–"))]
    lines = "".join(
        f'<tr><th scope="row">{key}</th><td><code>{html_text(value)}</code></td></tr>' for key, value in found
    )
    names = (
        "The command is as it was typed, from the log."
        if typed is not None
        else "An archive keeps no names of files: MODEL and DATA stand for them. A page made with "
        "<code>--log</code> has the command as it was typed."
    )
    return (
        f'<h2>How it was made</h2>\n<div class="scroll"><table class="facts"><tbody>{lines}</tbody></table></div>\n'
        f"<h2>How to reproduce</h2>\n<pre><code>{html_text(typed or command(manifest))}</code></pre>\n"
        '<p class="soft">With the model and the samples of the SHA-256 above, the same versions and the same machine, '
        f"the archive is the same byte for byte. {names}</p>\n"
    )
