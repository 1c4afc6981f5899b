"""Two archives side by side, as text, as markdown for a pull request, and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from riq_cli.archive import LayerEntry
from riq_cli.cli import markdown
from riq_cli.cli.terminal import table
from riq_cli.report import Change, Difference, Status
from riq_cli.text import code_span, finite, human_size, shown

_HEADER = ("", "old", "new", "change", "")
_LAYERS = ("layer", "", "old bytes", "new bytes", "change", "", "old rate", "new rate")
_NAMES = {
    "archive_bytes": "archive, bytes",
    "ratio": "compression ratio",
    "rate": "rate, bits/weight",
    "deviation": "deviation",
    "worst": "worst sample",
    "holdout": "held out",
    "layers": "layers",
    "weights": "weights",
    "stream_bytes": "streams, bytes",
    "table_bytes": "tables, bytes",
    "code_bytes": "codes, bytes",
    "skeleton_bytes": "skeleton, bytes",
    "manifest_bytes": "manifest, bytes",
    "source_bytes": "source, bytes",
}
_STYLES = {"ratio": ".2f", "rate": ".3f", "deviation": ".4g", "worst": ".4g", "holdout": ".4g"}
_ALWAYS = ("archive_bytes", "ratio", "rate", "deviation")  # the others are left out of text where they are equal


def text(found: Difference, old: str, new: str) -> list[str]:
    """The lines of the difference for a terminal."""
    lines = [f"{old} → {new}: {_headline(found)}", "", *table(_HEADER, _totals(found), left=1), ""]
    if layers := _layers(found):
        lines += [*table(_LAYERS, layers, left=2), ""]
    return [*lines, _counts(found), *_notes(found, str)]


def as_markdown(found: Difference, old: str, new: str) -> str:
    """The difference for a comment on a pull request."""
    totals = [(_bold(name) if name == _NAMES["archive_bytes"] else name, *rest) for name, *rest in _totals(found)]
    blocks = [
        f"### {code_span(old)} → {code_span(new)}: {_headline(found)}",
        markdown.table(_HEADER, totals, left=1),
    ]
    if lines := _layers(found):
        rows = [(code_span(name), *rest) for name, *rest in lines]
        blocks.append(markdown.folded(_counts(found), markdown.table(_LAYERS, rows, left=2)))
    else:
        blocks.append(_counts(found))
    if notes := _notes(found, code_span):
        blocks.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(blocks)


def document(found: Difference, old: str, new: str) -> dict[str, Any]:
    """The difference as --json prints it."""
    return {
        "old": {"archive": old, **{name: pair[0] for name, pair in found.numbers.items()}},
        "new": {"archive": new, **{name: pair[1] for name, pair in found.numbers.items()}},
        "change": {name: _minus(*pair) for name, pair in found.numbers.items()},
        "settings": {key: {"old": first, "new": second} for key, (first, second) in found.settings.items()},
        "same_source": found.same_source,
        "same_calibration": found.same_calibration,
        "layers": [
            {
                "name": change.name,
                "status": change.status,
                "bytes": change.bytes,
                "rate": change.rate,
                "old": _entry(change.old),
                "new": _entry(change.new),
            }
            for change in found.layers
        ],
    }


def _entry(layer: LayerEntry | None) -> dict[str, Any] | None:
    if layer is None:
        return None
    fields = asdict(layer)
    kept = {key: fields[key] for key in ("shape", "dtype", "coding", "symbols", "bin_width", "entropy")}
    return kept | {"rate": layer.rate, "bytes": layer.stored}


def _headline(found: Difference) -> str:
    old, new = found.numbers["archive_bytes"]
    assert old is not None and new is not None
    if old == new:
        return f"{human_size(new)} as before"
    return f"{human_size(old)} → {human_size(new)} ({_percent(old, new)})"


def _totals(found: Difference) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for name, (old, new) in found.numbers.items():
        if old == new and (name not in _ALWAYS or old is None):
            continue
        style = _STYLES.get(name, ",")
        change = _minus(old, new)
        lines.append(
            (
                _NAMES[name],
                shown(old, style),
                shown(new, style),
                "" if change is None else _signed(change, style),
                _percent(old, new),
            )
        )
    return lines


def _layers(found: Difference) -> list[tuple[str, ...]]:
    """One line for each layer that is not the same; its name is untrusted still."""
    return [_layer(change) for change in found.layers if change.status != "unchanged"]


def _layer(change: Change) -> tuple[str, ...]:
    old, new = change.old, change.new
    return (
        change.name,
        change.status,
        f"{old.stored:,}" if old else "–",
        f"{new.stored:,}" if new else "–",
        _signed(change.bytes, ","),
        _percent(old.stored, new.stored) if old and new else "",
        f"{old.rate:.2f}" if old else "–",
        f"{new.rate:.2f}" if new else "–",
    )


def _counts(found: Difference) -> str:
    counts = Counter(change.status for change in found.layers)
    order: tuple[Status, ...] = ("changed", "added", "removed", "unchanged")
    said = ", ".join(f"{counts[status]} {status}" for status in order if counts[status])
    return f"layers: {said}" if said else "no layers in either"


def _notes(found: Difference, safe: Callable[[str], str]) -> list[str]:
    """What else is not the same; `safe` makes untrusted text fit for where it is printed."""
    notes = [
        f"setting {safe(key)}: {safe(_setting(old))} → {safe(_setting(new))}"
        for key, (old, new) in found.settings.items()
    ]
    if found.same_source is False:
        notes.append("the source models differ (SHA-256)")
    if found.same_calibration is False:
        notes.append("the calibration samples differ (SHA-256): the deviations are not measured on the same data")
    return notes


def _setting(value: Any) -> str:
    return "default" if value is None else str(value)


def _minus(old: float | None, new: float | None) -> float | None:
    return None if old is None or new is None else finite(new - old)


def _signed(change: float, style: str) -> str:
    return "0" if change == 0 else f"{change:+{style}}".replace("-", "−", 1)


def _percent(old: float | None, new: float | None) -> str:
    if old is None or new is None or old <= 0 or old == new:
        return ""
    return f"{(new - old) / old:+.1%}".replace("-", "−", 1)


def _bold(word: str) -> str:
    return f"**{word}**"
