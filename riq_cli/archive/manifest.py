"""What an archive says about itself: its layers, its skeleton, and how it was made."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from riq_cli import limits
from riq_cli.archive.checked import Checked, parse
from riq_cli.archive.deflation import deflate, inflate
from riq_cli.errors import CorruptArchive, LimitExceeded, UnsupportedArchive

DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
CODINGS = ("ans", "constant", "raw")
FEATURES: frozenset[str] = frozenset()  # what `requires` may name
_INDEX = r"\[(0|[1-9][0-9]{0,8})\]"  # one spelling for each number
PLACE = re.compile(
    rf"(graph|functions{_INDEX})"
    rf"(\.node{_INDEX}\.attribute{_INDEX}\.(g|graphs{_INDEX}))*"
    rf"(\.initializer{_INDEX}|\.node{_INDEX}\.attribute{_INDEX}\.t)"
)


@dataclass(frozen=True)
class LayerEntry:
    """One layer of the manifest; the fields are those of FORMAT.md, "Manifest"."""

    name: str
    op: str
    tensors: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    coding: str
    symbols: int
    entropy: float
    table: int
    streams: tuple[int, ...]
    crc32: int
    bin_width: float | None = None

    @property
    def size(self) -> int:
        """Number of weights n."""
        return math.prod(self.shape)

    @property
    def stored(self) -> int:
        """Bytes of the table and the streams in the archive."""
        return self.table + sum(self.streams)

    @property
    def restored(self) -> int:
        """Bytes of the tensor in the model, each copy counted."""
        return self.size * DTYPE_BYTES[self.dtype] * len(self.tensors)

    @property
    def rate(self) -> float:
        """Stored bits per weight, table included."""
        return 8 * self.stored / self.size


@dataclass(frozen=True)
class SkeletonEntry:
    """The skeleton's stored length, inflated length and the CRC-32 of the inflated bytes."""

    bytes: int
    size: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """Everything that is known of an archive without decoding it."""

    skeleton: SkeletonEntry
    layers: tuple[LayerEntry, ...]
    source: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    creator: str = ""
    requires: tuple[str, ...] = ()

    @property
    def restored(self) -> int:
        """Bytes that restoring needs: all tensors and the skeleton."""
        return self.skeleton.size + sum(layer.restored for layer in self.layers)

    def to_bytes(self) -> bytes:
        """Canonical JSON, deflated.

        Raises:
            LimitExceeded: more than `from_bytes` reads.
        """
        document = asdict(self)
        for layer in document["layers"]:
            if layer["bin_width"] is None:
                del layer["bin_width"]
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        data = text.encode()
        if len(data) > limits.MANIFEST_INFLATED:
            raise LimitExceeded(f"the manifest has {len(data)} bytes; at most {limits.MANIFEST_INFLATED} are read")
        return deflate(data)

    @classmethod
    def from_bytes(cls, stored: bytes) -> Manifest:
        """The manifest that `to_bytes` stored, checked field by field.

        Raises:
            CorruptArchive: not the JSON that FORMAT.md describes.
            UnsupportedArchive: it requires a feature that this version does not know.
        """
        document = Checked(parse(inflate(stored, limits.MANIFEST_INFLATED, "the manifest")), "manifest")
        requires = tuple(document.strings("requires"))
        if unknown := sorted(set(requires) - FEATURES):
            raise UnsupportedArchive(f"needs a newer riq: this one does not know {', '.join(unknown)}")
        skeleton = document.object("skeleton")
        layers = tuple(_layer(entry) for entry in document.objects("layers"))
        places = [place for layer in layers for place in layer.tensors]
        if len(set(places)) != len(places):
            raise CorruptArchive("manifest: two layers claim the same tensor")
        return cls(
            skeleton=SkeletonEntry(*(skeleton.integer(name.name) for name in fields(SkeletonEntry))),
            layers=layers,
            source=document.mapping("source"),
            calibration=document.mapping("calibration"),
            settings=document.mapping("settings"),
            result=document.mapping("result"),
            creator=document.string("creator"),
            requires=requires,
        )


def _layer(entry: Checked) -> LayerEntry:
    name = entry.string("name")
    entry.where = f"layer {name!r}"
    shape = tuple(entry.integers("shape"))
    coding = entry.string("coding")
    layer = LayerEntry(
        name=name,
        op=entry.string("op"),
        tensors=tuple(entry.strings("tensors")),
        dtype=entry.string("dtype"),
        shape=shape,
        coding=coding,
        symbols=entry.integer("symbols"),
        entropy=entry.number("entropy"),
        table=entry.integer("table"),
        streams=tuple(entry.integers("streams")),
        crc32=entry.integer("crc32"),
        bin_width=None if coding == "raw" else entry.number("bin_width"),
    )
    entry.require(layer.dtype in DTYPE_BYTES, f"unknown dtype {layer.dtype!r}")
    entry.require(coding in CODINGS, f"unknown coding {coding!r}")
    entry.require(len(shape) <= limits.DIMENSIONS, f"{len(shape)} dimensions; at most {limits.DIMENSIONS} are read")
    entry.require(0 < layer.size <= limits.LAYER_SYMBOLS, "shape without weights or beyond all bounds")
    entry.require(bool(layer.tensors), "no tensor to restore into")
    entry.require(all(PLACE.fullmatch(place) for place in layer.tensors), "not the path of a tensor")
    streams = {"ans": -(-layer.size // limits.STREAM_SYMBOLS), "constant": 0, "raw": 1}[coding]
    entry.require(len(layer.streams) == streams, f"{len(layer.streams)} streams instead of {streams}")
    fewest, most = {"ans": (2, limits.TABLE_SYMBOLS), "constant": (1, 1), "raw": (0, 0)}[coding]
    entry.require(fewest <= layer.symbols <= most, f"{layer.symbols} symbols with coding {coding!r}")
    entry.require(coding != "raw" or not layer.table, f"a table of {layer.table} bytes with coding {coding!r}")
    entry.require(layer.bin_width is None or layer.bin_width > 0, "a bin width that is not positive")
    return layer
