"""What changed between two archives: in total, in how they were made, and layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from riq_cli.archive import Archive, LayerEntry
from riq_cli.report.totals import SortKey, totals
from riq_cli.text import fingerprint

Status = Literal["changed", "unchanged", "added", "removed"]


@dataclass(frozen=True)
class Change:
    """One layer before and after; None where it does not exist."""

    name: str
    old: LayerEntry | None
    new: LayerEntry | None

    @property
    def status(self) -> Status:
        """Whether the layer is new, gone, other, or restores the same weights from as many bytes."""
        if self.old is None:
            return "added"
        if self.new is None:
            return "removed"
        same = all(
            getattr(self.old, field) == getattr(self.new, field)
            for field in ("shape", "dtype", "coding", "bin_width", "crc32", "stored")
        )
        return "unchanged" if same else "changed"

    @property
    def bytes(self) -> int:
        """Bytes that the new archive spends more."""
        return (self.new.stored if self.new else 0) - (self.old.stored if self.old else 0)

    @property
    def rate(self) -> float | None:
        """Bits/weight that the new archive spends more; None if one of the two does not have the layer."""
        return None if self.old is None or self.new is None else self.new.rate - self.old.rate


@dataclass(frozen=True)
class Difference:
    """What changed: numbers by name, each as (old, new), None where an archive does not tell; settings; layers.

    `same_source` and `same_calibration` compare fingerprints, which are all that an archive keeps of the samples'
    SHA-256; None where one of the two is not known.
    """

    numbers: Mapping[str, tuple[float | None, float | None]]
    settings: Mapping[str, tuple[Any, Any]]
    same_source: bool | None
    same_calibration: bool | None
    layers: tuple[Change, ...]


def difference(old: Archive, new: Archive, sort: SortKey = "size") -> Difference:
    """What changed from one archive to another; layers are the same when their names are.

    Args:
        old: the archive before.
        new: the archive after.
        sort: order of the layers: `size` and `rate` by how much these changed, `model` as in the new archive and then
            those removed.
    """
    changes = _paired(old.manifest.layers, new.manifest.layers)
    if sort == "size":
        changes.sort(key=lambda change: -abs(change.bytes))
    elif sort == "rate":
        changes.sort(key=lambda change: -abs(change.rate or 0.0))
    elif sort == "name":
        changes.sort(key=lambda change: change.name)
    before, after = _numbers(old), _numbers(new)
    first, second = old.manifest, new.manifest
    keys = sorted({*first.settings, *second.settings})
    return Difference(
        numbers={name: (before[name], after[name]) for name in before},
        settings={
            key: (first.settings.get(key), second.settings.get(key))
            for key in keys
            if first.settings.get(key) != second.settings.get(key)
        },
        same_source=_same(first.source, second.source),
        same_calibration=_same(first.calibration, second.calibration),
        layers=tuple(changes),
    )


def _paired(old: tuple[LayerEntry, ...], new: tuple[LayerEntry, ...]) -> list[Change]:
    """One change for each name; of a name that occurs twice, as it may in subgraphs, the first goes with the first."""
    before, after = _numbered(old), _numbered(new)
    return [Change(key[0], before.get(key), after.get(key)) for key in (*after, *(k for k in before if k not in after))]


def _numbered(layers: tuple[LayerEntry, ...]) -> dict[tuple[str, int], LayerEntry]:
    seen: Counter[str] = Counter()
    result = {}
    for layer in layers:
        result[layer.name, seen[layer.name]] = layer
        seen[layer.name] += 1
    return result


def _numbers(archive: Archive) -> dict[str, float | None]:
    sums, result = totals(archive), archive.manifest.result
    return {
        "archive_bytes": sums.archive_bytes,
        "ratio": sums.ratio,
        "rate": sums.rate,
        "deviation": result.get("deviation"),
        "worst": result.get("worst"),
        "holdout": result.get("holdout"),
        "layers": sums.layers,
        "weights": sums.weights,
        "stream_bytes": sums.stream_bytes,
        "table_bytes": sums.table_bytes,
        "code_bytes": sums.code_bytes,
        "skeleton_bytes": sums.skeleton_bytes,
        "manifest_bytes": sums.manifest_bytes + sums.header_bytes,
        "source_bytes": sums.source_bytes,
    }


def _same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool | None:
    first, second = old.get("sha256"), new.get("sha256")
    return None if first is None or second is None else fingerprint(first) == fingerprint(second)
