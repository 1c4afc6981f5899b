"""What an archive holds, from its manifest alone: rates, bytes, and how it was made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from riq_cli.archive import DTYPE_BYTES, HEADER, Archive, CodesEntry, LayerEntry
from riq_cli.text import shown

SortKey = Literal["bytes", "rate", "name", "model"]

PARTS = {  # of an archive, in words
    "streams": "coded weights",
    "tables": "distributions of symbols",
    "codes": "scales of rows and columns",
    "skeleton": "rest of the model",
    "manifest": "list of layers, settings",
}


@dataclass(frozen=True)
class Totals:
    """Sums over an archive; sizes in bytes, rates in bits/weight.

    `rate` counts codes, tables and streams; `ratio_eq2` is the paper's eq. (2), with each layer's own bits in place of
    32; `ratio` is real: bytes of the source over bytes of the archive, None if the source is not known.
    """

    layers: int
    weights: int
    rate: float
    ratio_eq2: float
    ratio: float | None
    source_bytes: int | None
    archive_bytes: int
    header_bytes: int
    manifest_bytes: int
    skeleton_bytes: int
    table_bytes: int
    stream_bytes: int
    code_bytes: int

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """The archive's bytes by the names of `PARTS`: they add up, the header goes with the manifest."""
        return (
            ("streams", self.stream_bytes),
            ("tables", self.table_bytes),
            *([("codes", self.code_bytes)] if self.code_bytes else []),
            ("skeleton", self.skeleton_bytes),
            ("manifest", self.manifest_bytes + self.header_bytes),
        )


def totals(archive: Archive) -> Totals:
    """The sums over all layers and sections of an archive."""
    layers = archive.manifest.layers
    weights = sum(layer.size for layer in layers)
    tables = sum(layer.table for layer in layers)
    streams = sum(sum(layer.streams) for layer in layers)
    codes = sum(_code_bytes(layer) for layer in layers)
    before = sum(layer.size * 8 * DTYPE_BYTES[layer.dtype] for layer in layers)
    after = sum(_entropy_bits(layer) for layer in layers)
    source = archive.manifest.source.get("bytes")
    return Totals(
        layers=len(layers),
        weights=weights,
        rate=8 * (codes + tables + streams) / weights if weights else 0.0,
        ratio_eq2=before / max(after, 1.0) if layers else 1.0,
        ratio=source / archive.size if source else None,
        source_bytes=source,
        archive_bytes=archive.size,
        header_bytes=HEADER.size,
        manifest_bytes=archive.manifest_bytes,
        skeleton_bytes=archive.manifest.skeleton.bytes,
        table_bytes=tables,
        stream_bytes=streams,
        code_bytes=codes,
    )


def fixed_rate(archive: Archive) -> float:
    """Bits/weight of the coded layers without an entropy coder: log₂ of the levels that are in use in each."""
    layers = archive.manifest.layers
    weights = sum(layer.size for layer in layers)
    bits = sum(8 * layer.stored if layer.coding == "raw" else layer.size * math.log2(layer.symbols) for layer in layers)
    return bits / weights if weights else 0.0


_ORDERS: dict[SortKey, Callable[[LayerEntry], Any]] = {
    "bytes": lambda layer: -layer.stored,
    "rate": lambda layer: -layer.rate,
    "name": lambda layer: layer.name,
}


def rows(archive: Archive, sort: SortKey = "bytes") -> list[dict[str, Any]]:
    """One row per layer, with the keys that `riq report --json` documents."""
    layers = archive.manifest.layers
    return [
        {
            "name": layer.name,
            "op": layer.op,
            "shape": list(layer.shape),
            "dtype": layer.dtype,
            "coding": layer.coding,
            "symbols": layer.symbols,
            "bin_width": layer.bin_width,
            "scales": [_codes(layer, scale) for scale in layer.scales],
            "classes": None if layer.classes is None else _codes(layer, layer.classes),
            "magnitudes": [_codes(layer, item) for item in layer.magnitudes],
            "trellis": None if layer.trellis is None else {"axes": list(layer.trellis)},
            "entropy": layer.entropy,
            "rate": layer.rate,
            "bytes": layer.stored,
            "share": layer.stored / archive.size,
        }
        for layer in (layers if sort == "model" else sorted(layers, key=_ORDERS[sort]))
    ]


def _codes(layer: LayerEntry, codes: CodesEntry) -> dict[str, Any]:
    """What is told of codes: along which axes they are, how many, and their bytes."""
    return {"axes": list(codes.axes), "codes": math.prod(codes.shape(layer.shape)), "bytes": codes.bytes}


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """The cells of a row as people read them, by the headers of their columns.

    Its codes are `scales 64+576, classes 64`: bin widths of 64 slices and of 576 others, one over the other, and the
    classes of 64 slices.
    """
    shape = "×".join(map(str, row["shape"])) or "scalar"
    several = {"scales": row["scales"], "classes": [row["classes"]] if row["classes"] else [],
               "magnitudes": row["magnitudes"]}  # fmt: skip
    codes = [f"{key} {'+'.join(str(item['codes']) for item in items)}" for key, items in several.items() if items]
    return {
        "layer": row["name"],
        "op": row["op"],
        "shape": shape if row["dtype"] == "float32" else f"{shape} {row['dtype']}",
        "coding": row["coding"],
        "symbols": f"{row['symbols'] or '–'}",
        "bin width": shown(row["bin_width"]),
        "codes": ", ".join([*codes, *(["trellis"] if row["trellis"] else [])]) or "–",
        "entropy": f"{row['entropy']:.2f}" if row["symbols"] else "–",
        "bits/weight": f"{row['rate']:.2f}",
        "bytes": f"{row['bytes']:,}",
        "share": f"{row['share']:.1%}",
    }


def _code_bytes(layer: LayerEntry) -> int:
    return sum(codes.bytes for codes in layer.codes)


def _entropy_bits(layer: LayerEntry) -> float:
    """Bits n · H + |T| of eq. (2), codes counted with the table; what is stored raw counts as it is."""
    if layer.coding == "raw":
        return 8.0 * layer.stored
    return layer.size * layer.entropy + 8 * (layer.table + _code_bytes(layer))
