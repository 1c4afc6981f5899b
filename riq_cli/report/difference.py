"""What changed between two archives: in total, in how they were made, and layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from riq_cli.archive import Archive, LayerEntry
from riq_cli.report.facts import named
from riq_cli.report.totals import PARTS, SortKey, totals
from riq_cli.text import fingerprint, finite

NUMBERS = {  # compared in total: name, words for it, style
    "archive_bytes": ("archive, bytes", ","),
    "ratio": ("compression ratio", ".2f"),
    "rate": ("rate, bits/weight", ".3f"),
    "deviation": ("deviation", ".4g"),
    "worst": ("worst sample", ".4g"),
    "holdout": ("held out", ".4g"),
    "layers": ("layers", ","),
    "weights": ("weights", ","),
    "stream_bytes": (f"{PARTS['streams']}, bytes", ","),
    "table_bytes": (f"{PARTS['tables']}, bytes", ","),
    "code_bytes": (f"{PARTS['codes']}, bytes", ","),
    "skeleton_bytes": (f"{PARTS['skeleton']}, bytes", ","),
    "manifest_bytes": (f"{PARTS['manifest']}, bytes", ","),
    "source_bytes": ("source, bytes", ","),
}
_TOLD = ("shape", "dtype", "coding", "symbols", "bin_width", "entropy", "rate")  # of a layer
_SAME = ("shape", "dtype", "coding", "bin_width", "crc32", "stored")  # of one that restores the same from as much


def difference(old: Archive, new: Archive, sort: SortKey = "bytes") -> dict[str, Any]:
    """What changed from one archive to another, as --json prints it; layers are the same when their names are.

    Numbers that an archive does not tell are None. `same_source` and `same_calibration` compare fingerprints, which are
    all that an archive keeps of the samples' SHA-256; None where one of the two is not known. `settings` are those that
    differ, but for what the presets set.

    Args:
        old: the archive before.
        new: the archive after.
        sort: order of the layers: `bytes` and `rate` by how much these changed, `model` as in the new archive and then
            those removed.
    """
    layers = _layers(_numbered(old), _numbered(new))
    if sort == "name":
        layers.sort(key=lambda layer: layer["name"])
    elif sort != "model":
        layers.sort(key=lambda layer: -abs(layer[sort] or 0.0))
    before, after = _numbers(old), _numbers(new)
    first, second = old.manifest, new.manifest
    settings = {"old": named(first.settings), "new": named(second.settings)}
    presets = {side: those.pop("preset", None) for side, those in settings.items()}
    return {
        "old": before,
        "new": after,
        "change": {name: _minus(before[name], after[name]) for name in NUMBERS},
        "presets": presets,
        "settings": {
            key: {side: those.get(key) for side, those in settings.items()}
            for key in sorted({*settings["old"], *settings["new"]})
            if settings["old"].get(key) != settings["new"].get(key)
        },
        "same_source": _same(first.source, second.source),
        "same_calibration": _same(first.calibration, second.calibration),
        "layers": layers,
    }


def _numbered(archive: Archive) -> dict[tuple[str, int], LayerEntry]:
    """The layers by name; of a name that occurs twice, as it may in subgraphs, by its number too."""
    seen: Counter[str] = Counter()
    found = {}
    for layer in archive.manifest.layers:
        found[layer.name, seen[layer.name]] = layer
        seen[layer.name] += 1
    return found


def _layers(
    before: Mapping[tuple[str, int], LayerEntry], after: Mapping[tuple[str, int], LayerEntry]
) -> list[dict[str, Any]]:
    found = []
    for key in (*after, *(key for key in before if key not in after)):
        old, new = before.get(key), after.get(key)
        if old is None or new is None:
            status = "added" if old is None else "removed"
        else:
            same = all(getattr(old, name) == getattr(new, name) for name in _SAME)
            status = "unchanged" if same else "changed"
        found.append(
            {
                "name": key[0],
                "status": status,
                "bytes": (new.stored if new else 0) - (old.stored if old else 0),
                "rate": new.rate - old.rate if old and new else None,
                "old": _entry(old),
                "new": _entry(new),
            }
        )
    return found


def _entry(layer: LayerEntry | None) -> dict[str, Any] | None:
    return None if layer is None else {name: getattr(layer, name) for name in _TOLD} | {"bytes": layer.stored}


def _numbers(archive: Archive) -> dict[str, Any]:
    sums = asdict(totals(archive))
    sums["manifest_bytes"] += sums["header_bytes"]
    known = dict(archive.manifest.result) | sums
    return {name: known.get(name) for name in NUMBERS}


def _minus(old: float | None, new: float | None) -> float | None:
    return None if old is None or new is None else finite(new - old)


def _same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool | None:
    first, second = old.get("sha256"), new.get("sha256")
    return None if first is None or second is None else fingerprint(first) == fingerprint(second)
