"""Two archives side by side, as text and as markdown for a pull request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from riq_cli.cli import markdown
from riq_cli.cli.terminal import table
from riq_cli.report import NUMBERS
from riq_cli.text import code_span, human_size, shown

_HEADER = ("", "old", "new", "change", "")
_LAYERS = ("layer", "", "old bytes", "new bytes", "change", "", "old rate", "new rate")
_NARROW = ("layer", "old bytes", "new bytes", "change", "bits/weight")
_ALWAYS = ("archive_bytes", "ratio", "rate", "deviation")  # the others are left out where they are equal
_STATUSES = ("changed", "added", "removed", "unchanged")


def text(found: Mapping[str, Any], old: str, new: str, wide: bool) -> list[str]:
    """The lines of a difference for a terminal."""
    lines = [f"{old} → {new}: {_headline(found)}", "", *table(_HEADER, _totals(found), left=1), ""]
    layers = _layers(found)
    if layers and wide:
        lines += [*table(_LAYERS, layers, left=2), ""]
    elif layers:
        narrow = [
            (name, old_bytes, new_bytes, percent or status, f"{old_rate} → {new_rate}")
            for name, status, old_bytes, new_bytes, _, percent, old_rate, new_rate in layers
        ]
        lines += [*table(_NARROW, narrow, left=1, narrow=True), ""]
    return [*lines, _counts(found), *_notes(found, str)]


def as_markdown(found: Mapping[str, Any], old: str, new: str) -> list[str]:
    """The lines of a difference for a comment on a pull request."""
    (name, *size), *others = _totals(found)
    lines = [
        f"### {code_span(old)} → {code_span(new)}: {_headline(found)}",
        "",
        *markdown.table(_HEADER, [(f"**{name}**", *size), *others], left=1),
        "",
    ]
    if layers := _layers(found):
        rows = [(code_span(name), *rest) for name, *rest in layers]
        lines += markdown.folded(_counts(found), markdown.table(_LAYERS, rows, left=2))
    else:
        lines.append(_counts(found))
    if notes := _notes(found, code_span):
        lines += ["", *(f"- {note}" for note in notes)]
    return lines


def _headline(found: Mapping[str, Any]) -> str:
    old, new = found["old"]["archive_bytes"], found["new"]["archive_bytes"]
    if old == new:
        return f"{human_size(new)} as before"
    return f"{human_size(old)} → {human_size(new)} ({_percent(old, new)})"


def _totals(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One line for each number that is known and not the same; that of the archive's bytes is the first."""
    lines: list[tuple[str, ...]] = []
    for name, (words, style) in NUMBERS.items():
        old, new, change = (found[key][name] for key in ("old", "new", "change"))
        if old == new and (name not in _ALWAYS or old is None):
            continue
        signed = "" if change is None else _signed(change, style)
        lines.append((words, shown(old, style), shown(new, style), signed, _percent(old, new)))
    return lines


def _layers(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One line for each layer that is not the same; its name is untrusted still."""
    lines = []
    for layer in found["layers"]:
        sizes, rates = ([layer[side] and layer[side][key] for side in ("old", "new")] for key in ("bytes", "rate"))
        if layer["status"] != "unchanged":
            lines.append(
                (
                    layer["name"],
                    layer["status"],
                    *(shown(size, ",") for size in sizes),
                    _signed(layer["bytes"], ","),
                    _percent(*sizes),
                    *(shown(rate, ".2f") for rate in rates),
                )
            )
    return lines


def _counts(found: Mapping[str, Any]) -> str:
    counts = Counter(layer["status"] for layer in found["layers"])
    said = ", ".join(f"{counts[status]} {status}" for status in _STATUSES if counts[status])
    return f"layers: {said}" if said else "no layers in either"


def _notes(found: Mapping[str, Any], safe: Callable[[str], str]) -> list[str]:
    """What else is not the same; `safe` makes untrusted text fit for where it is printed."""
    old, new = (found["presets"][side] or "none" for side in ("old", "new"))
    notes = [f"preset: {old} in both" if old == new else f"preset: {old} → {new}"]
    for key, pair in found["settings"].items():
        old, new = ("default" if pair[side] is None else str(pair[side]) for side in ("old", "new"))
        notes.append(f"setting {safe(key)}: {safe(old)} → {safe(new)}")
    if found["same_source"] is False:
        notes.append("the source models differ (SHA-256)")
    if found["same_calibration"] is False:
        notes.append("the calibration samples differ (SHA-256): the deviations are not measured on the same data")
    return notes


def _signed(change: float, style: str) -> str:
    return "0" if change == 0 else f"{change:+{style}}".replace("-", "−", 1)


def _percent(old: float | None, new: float | None) -> str:
    if old is None or new is None or old <= 0 or old == new:
        return ""
    return f"{(new - old) / old:+.1%}".replace("-", "−", 1)
