"""What an archive says about itself: its layers, its skeleton, and how it was made."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from itertools import pairwise
from typing import Any

from riq_cli import limits
from riq_cli.archive import schema
from riq_cli.archive.deflation import deflate, inflate
from riq_cli.errors import CorruptArchive, LimitExceeded, UnsupportedArchive

DTYPE_BYTES = {name: int(code[2:]) for name, code in limits.STORAGE.items()}
CODINGS = ("ans", "constant", "raw", "student")
FEATURES = frozenset({"scales", "classes", "trellis", "student"})  # what `requires` may name
_OPTIONAL = ("scales", "classes", "trellis", "magnitudes")  # keys of a layer
_CODE_BYTES = 16  # of memory for a code: itself, and a copy as wide as an index
_INDEX = r"\[(0|[1-9][0-9]{0,8})\]"  # one spelling for each number
PLACE = re.compile(
    rf"(graph|functions{_INDEX})"
    rf"(\.node{_INDEX}\.attribute{_INDEX}\.(g|graphs{_INDEX}))*"
    rf"(\.initializer{_INDEX}|\.node{_INDEX}\.attribute{_INDEX}\.t)"
)


@dataclass(frozen=True)
class CodesEntry:
    """The axes of a layer along which it has codes, and the stored length of their section."""

    axes: tuple[int, ...]
    bytes: int

    def shape(self, layer: Sequence[int]) -> tuple[int, ...]:
        """Shape of the codes in a layer of a given shape."""
        return tuple(layer[axis] for axis in self.axes)


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
    scales: tuple[CodesEntry, ...] = ()
    classes: CodesEntry | None = None
    trellis: tuple[int, ...] | None = None
    magnitudes: tuple[CodesEntry, ...] = ()

    @property
    def size(self) -> int:
        """Number of weights n."""
        return math.prod(self.shape)

    @property
    def codes(self) -> tuple[CodesEntry, ...]:
        """All codes, in the order of their sections: those of the scales, then those of the classes or magnitudes."""
        return (*self.scales, *(() if self.classes is None else (self.classes,)), *self.magnitudes)

    @property
    def sections(self) -> tuple[int, ...]:
        """Stored lengths of the layer's sections, in the order of the file: codes, table, streams."""
        return (*(codes.bytes for codes in self.codes), self.table, *self.streams)

    @property
    def requires(self) -> frozenset[str]:
        """What a decoder must understand to decode the layer."""
        features = {"scales": self.scales, "classes": self.classes, "trellis": self.trellis}
        return frozenset(name for name in features if features[name]) | ({self.coding} & FEATURES)

    @property
    def stored(self) -> int:
        """Bytes of all its sections in the archive."""
        return sum(self.sections)

    @property
    def restored(self) -> int:
        """Bytes of the tensor in the model, each copy counted."""
        return self.size * DTYPE_BYTES[self.dtype] * len(self.tensors)

    @property
    def code_memory(self) -> int:
        """Bytes that its codes take at most while they are decoded."""
        return _CODE_BYTES * sum(math.prod(codes.shape(self.shape)) for codes in self.codes)

    @property
    def rate(self) -> float:
        """Stored bits per weight; table and codes are included."""
        return 8 * self.stored / self.size


@dataclass(frozen=True)
class SkeletonEntry:
    """The skeleton's stored length, inflated length and the CRC-32 of the inflated bytes."""

    bytes: int
    size: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """Everything that is known of an archive without decoding it; `requires` names what its layers need, at least."""

    skeleton: SkeletonEntry
    layers: tuple[LayerEntry, ...]
    source: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    creator: str = ""
    requires: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        required = set(self.requires).union(*(layer.requires for layer in self.layers))
        object.__setattr__(self, "requires", tuple(sorted(required)))

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
            for key in _OPTIONAL:
                if not layer[key]:
                    del layer[key]
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
        document = schema.parse(inflate(stored, limits.MANIFEST_INFLATED, "the manifest"))
        if not isinstance(document, dict):
            raise CorruptArchive("manifest: an object is expected")
        schema.REQUIRES.check(document, "manifest")  # alone: what an unknown feature may change is not known
        requires = tuple(document["requires"])
        if unknown := sorted(set(requires) - FEATURES):
            raise UnsupportedArchive(f"needs a newer riq: this one does not know {', '.join(unknown)}")
        schema.MANIFEST.check(document, "manifest")
        layers = tuple(_layer(entry, f"manifest: layers[{index}]") for index, entry in enumerate(document["layers"]))
        for layer in layers:
            for feature in sorted(layer.requires - set(requires)):
                raise CorruptArchive(f"layer {layer.name!r}: {feature} are not required; the archive is damaged")
        places = [place for layer in layers for place in layer.tensors]
        if len(set(places)) != len(places):
            raise CorruptArchive("manifest: two layers claim the same tensor")
        return cls(
            skeleton=SkeletonEntry(*(document["skeleton"][item.name] for item in fields(SkeletonEntry))),
            layers=layers,
            requires=requires,
            **{key: document[key] for key in ("source", "calibration", "settings", "result", "creator")},
        )


def _layer(entry: Mapping[str, Any], where: str) -> LayerEntry:
    """The layer that an object of the manifest describes.

    Raises:
        CorruptArchive: not as FORMAT.md has it.
    """
    if isinstance(entry.get("name"), str):
        where = f"layer {entry['name']!r}"
    schema.LAYER.check(entry, where)
    require = partial(_require, where)
    coding = entry["coding"]
    require(coding == "raw" or "bin_width" in entry, "'bin_width' is missing")
    values = {item.name: _frozen(entry[item.name]) for item in fields(LayerEntry) if item.name in entry}
    values["entropy"] = float(entry["entropy"])
    values["bin_width"] = None if coding == "raw" else float(entry["bin_width"])
    layer = LayerEntry(**values)
    dimensions = len(layer.shape)
    require(layer.dtype in DTYPE_BYTES, f"unknown dtype {layer.dtype!r}")
    require(coding in CODINGS, f"unknown coding {coding!r}")
    require(dimensions <= limits.DIMENSIONS, f"{dimensions} dimensions; at most {limits.DIMENSIONS} are read")
    require(0 < layer.size <= limits.LAYER_SYMBOLS, "shape without weights or beyond all bounds")
    require(bool(layer.tensors), "no tensor to restore into")
    require(all(PLACE.fullmatch(place) for place in layer.tensors), "not the path of a tensor")
    _check_codes(require, layer)
    _check_streams(require, layer)
    require(coding != "raw" or not layer.table, f"a table of {layer.table} bytes with coding {coding!r}")
    require(layer.bin_width is None or layer.bin_width > 0, "a bin width that is not positive")
    return layer


def _require(where: str, condition: bool, message: str) -> None:
    if not condition:
        raise CorruptArchive(f"{where}: {message}; the archive is damaged")


def _frozen(value: Any) -> Any:
    """A value of a layer's object as its entry holds it."""
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return CodesEntry(tuple(value["axes"]), value["bytes"]) if isinstance(value, dict) else value


def _check_codes(require: Callable[[bool, str], None], layer: LayerEntry) -> None:
    """Nothing, or a CorruptArchive for codes that a layer cannot have, whatever their sections hold."""
    for name, several in (("scales", layer.scales), ("magnitudes", layer.magnitudes)):
        count = len(several)
        require(count <= limits.SCALES, f"{count} {name}; at most {limits.SCALES} are read")
        require(len({item.axes for item in several}) == count, f"two {name} along the same axes")
    require(layer.coding != "raw" or not layer.scales, "scales with coding 'raw'")
    require(layer.coding == "ans" or not layer.classes, f"classes with coding {layer.coding!r}")
    require(layer.coding == "student" or not layer.magnitudes, f"magnitudes with coding {layer.coding!r}")
    require(layer.coding != "raw" or not layer.trellis, "a trellis with coding 'raw'")
    if layer.trellis is not None:
        require(_ascending(layer.trellis, layer), "a trellis along what are not ascending axes of its shape")
    for codes in layer.codes:
        require(_ascending(codes.axes, layer), "codes along what are not ascending axes of its shape")
        count = math.prod(codes.shape(layer.shape))
        require(count <= limits.CODES, f"{count} codes along some axes; at most {limits.CODES} are read")


def _ascending(axes: Sequence[int], layer: LayerEntry) -> bool:
    return bool(axes) and all(axis < other for axis, other in pairwise((*axes, len(layer.shape))))


def _check_streams(require: Callable[[bool, str], None], layer: LayerEntry) -> None:
    """Nothing, or a CorruptArchive for numbers of streams and symbols that a coding cannot have."""
    full = -(-layer.size // limits.STREAM_SYMBOLS)
    streams, fewest, most = {
        "ans": (full, 2, limits.TABLE_SYMBOLS),
        "student": (full, 2, layer.size),
        "constant": (0, 1, 1),
        "raw": (1, 0, 0),
    }[layer.coding]
    if layer.classes:  # how many weights each has is known once the codes are decoded, but none has more than all
        most *= limits.CLASSES
        possible = full + limits.CLASSES - 1
        require(len(layer.streams) <= possible, f"{len(layer.streams)} streams; at most {possible} are possible")
    else:
        require(len(layer.streams) == streams, f"{len(layer.streams)} streams instead of {streams}")
    require(fewest <= layer.symbols <= most, f"{layer.symbols} symbols with coding {layer.coding!r}")
