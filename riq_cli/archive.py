"""The container: a manifest and sections in one checksummed file. FORMAT.md is its specification.

Standard library only: `riq report` imports nothing heavier than this file.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

from riq_cli import limits
from riq_cli.errors import CorruptArchive, LimitExceeded, NotAnArchive, UnsupportedArchive
from riq_cli.files import atomic_write

MAGIC = b"\x89RIQZ\r\n\x1a"
VERSION = 1
HEADER = struct.Struct("<8sHHIQ")  # magic, version, reserved, CRC-32 of the manifest, its stored length

DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
CODINGS = ("ans", "constant", "raw")
FEATURES: frozenset[str] = frozenset()  # what `requires` may name
PLACE = re.compile(
    r"(graph|functions\[\d{1,9}\])"
    r"(\.node\[\d{1,9}\]\.attribute\[\d{1,9}\]\.(g|graphs\[\d{1,9}\]))*"
    r"(\.initializer\[\d{1,9}\]|\.node\[\d{1,9}\]\.attribute\[\d{1,9}\]\.t)"
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
        """Canonical JSON, deflated."""
        document = asdict(self)
        for layer in document["layers"]:
            if layer["bin_width"] is None:
                del layer["bin_width"]
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return zlib.compress(text.encode(), 9)

    @classmethod
    def from_bytes(cls, stored: bytes) -> Manifest:
        """The manifest that `to_bytes` stored, checked field by field.

        Raises:
            CorruptArchive: not the JSON that FORMAT.md describes.
            UnsupportedArchive: it requires a feature that this version does not know.
        """
        document = _Checked(_parse(inflate(stored, limits.MANIFEST_INFLATED, "the manifest")), "manifest")
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


class Archive:
    """A manifest and the sections that belong to it, in memory or in an open file."""

    def __init__(
        self, manifest: Manifest, sections: BinaryIO, start: int = 0, manifest_bytes: int | None = None
    ) -> None:
        """Take the sections from `sections`, where they begin at byte `start`."""
        self.manifest = manifest
        self._file = sections
        self._start = start
        self.manifest_bytes = len(manifest.to_bytes()) if manifest_bytes is None else manifest_bytes
        self._offsets = [0]
        for length in self._lengths():
            self._offsets.append(self._offsets[-1] + length)

    @classmethod
    def build(cls, manifest: Manifest, sections: Sequence[bytes]) -> Archive:
        """An archive in memory; `sections` are the skeleton and then each layer's table and streams."""
        return cls(manifest, io.BytesIO(b"".join(sections)))

    @classmethod
    def open(cls, source: str | os.PathLike[str] | BinaryIO, max_size: int = limits.RESTORED) -> Archive:
        """The archive in a file or a binary stream; reads the manifest only, sections when they are asked for.

        Args:
            source: a path, or a binary stream; one that cannot seek (a pipe) is read to its end.
            max_size: bound on the bytes of the restored model.

        Raises:
            ArchiveError: not an archive, from a newer version, damaged, or larger than `max_size`.
            FileNotFoundError, OSError: the file cannot be read.
        """
        if isinstance(source, (str, os.PathLike)):
            file: BinaryIO = Path(source).open("rb")
        else:
            file = source if source.seekable() else io.BytesIO(source.read())
        try:
            return cls._read(file, max_size)
        except BaseException:
            file.close()
            raise

    @classmethod
    def _read(cls, file: BinaryIO, max_size: int) -> Archive:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        header = file.read(HEADER.size)
        if header[: len(MAGIC)] != MAGIC:
            raise NotAnArchive("not a riq archive")
        if len(header) < HEADER.size:
            raise CorruptArchive("the archive is cut off in its header")
        _, version, reserved, checksum, stored = HEADER.unpack(header)
        if version != VERSION:
            raise UnsupportedArchive(
                f"archive version {version}; this riq reads version {VERSION}: install a newer riq"
            )
        if reserved:
            raise CorruptArchive("the header's reserved field is not 0; the archive is damaged")
        if stored > limits.MANIFEST_STORED:
            raise LimitExceeded(
                f"the manifest is said to have {stored} bytes; at most {limits.MANIFEST_STORED} are read"
            )
        manifest_bytes = file.read(stored)
        if len(manifest_bytes) < stored:
            raise CorruptArchive("the archive is cut off in its manifest")
        if zlib.crc32(manifest_bytes) != checksum:
            raise CorruptArchive("the manifest's checksum differs; the archive is damaged")
        manifest = Manifest.from_bytes(manifest_bytes)
        if manifest.restored > max_size:
            raise LimitExceeded(
                f"the restored model needs {manifest.restored} bytes, the limit is {max_size}; "
                "if you trust the archive, raise it with --max-size"
            )
        archive = cls(manifest, file, HEADER.size + stored, stored)
        if archive.size != length:
            what = "cut off" if length < archive.size else "longer than its manifest says"
            raise CorruptArchive(f"the archive is {what}: {length} bytes instead of {archive.size}")
        return archive

    def described(self, **fields: Mapping[str, Any]) -> Archive:
        """The same sections with other `calibration`, `settings`, `source` or `result` in the manifest."""
        return Archive(replace(self.manifest, **fields), self._file, self._start)  # type: ignore[arg-type]

    @property
    def size(self) -> int:
        """Bytes of the archive as a file."""
        return HEADER.size + self.manifest_bytes + self._offsets[-1]

    def skeleton(self) -> bytes:
        """The serialized model without its layers' data, inflated and checked."""
        entry = self.manifest.skeleton
        data = inflate(self._section(0), entry.size, "the skeleton")
        if len(data) != entry.size or zlib.crc32(data) != entry.crc32:
            raise CorruptArchive("skeleton: checksum differs; the archive is damaged")
        return data

    def layer_sections(self) -> Iterator[tuple[LayerEntry, bytes, list[bytes]]]:
        """Each layer's entry, table and streams, in the order of the manifest, read one layer at a time."""
        number = 1
        for layer in self.manifest.layers:
            count = 1 + len(layer.streams)
            table, *streams = (self._section(index) for index in range(number, number + count))
            number += count
            yield layer, table, streams

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the archive to `path`, whole or not at all.

        Raises:
            OutputError: the file exists and `overwrite` is false, or it cannot be written.
        """
        with atomic_write(path, overwrite) as file:
            self.write(file)

    def write(self, file: BinaryIO) -> None:
        """Write the archive's bytes to an open binary file."""
        manifest = self.manifest.to_bytes()
        file.write(HEADER.pack(MAGIC, VERSION, 0, zlib.crc32(manifest), len(manifest)))
        file.write(manifest)
        self._file.seek(self._start)
        shutil.copyfileobj(self._file, file)

    def close(self) -> None:
        """Close the file that the sections are read from."""
        self._file.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lengths(self) -> Iterator[int]:
        yield self.manifest.skeleton.bytes
        for layer in self.manifest.layers:
            yield layer.table
            yield from layer.streams

    def _section(self, index: int) -> bytes:
        begin, end = self._offsets[index], self._offsets[index + 1]
        self._file.seek(self._start + begin)
        data = self._file.read(end - begin)
        if len(data) < end - begin:
            raise CorruptArchive("the archive is cut off")
        return data


def deflate(data: bytes | memoryview[Any]) -> bytes:
    """A zlib stream of `data`, as small as zlib makes it."""
    return zlib.compress(data, 9)


def inflate(stored: bytes, limit: int, what: str) -> bytes:
    """The inflated bytes of one zlib stream.

    Args:
        limit: bytes that are inflated at most.
        what: name of the data for the message.

    Raises:
        CorruptArchive: not a zlib stream, bytes after its end, or more than `limit` inflated bytes.
    """
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(stored, limit + 1)
    except zlib.error as error:
        raise CorruptArchive(f"{what} cannot be inflated; the archive is damaged") from error
    if len(data) > limit or not inflater.eof or inflater.unused_data:
        raise CorruptArchive(f"{what} does not have the size that was announced; the archive is damaged")
    return data


def _parse(text: bytes) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            raise ValueError("duplicate key")
        return result

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not a number of JSON")

    try:
        return json.loads(text.decode(), object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise CorruptArchive(f"the manifest is not the JSON it should be: {error}") from error


def _layer(entry: _Checked) -> LayerEntry:
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
    entry.require(0 < layer.size <= limits.LAYER_SYMBOLS, "shape without weights or beyond all bounds")
    entry.require(bool(layer.tensors), "no tensor to restore into")
    entry.require(all(PLACE.fullmatch(place) for place in layer.tensors), "not the path of a tensor")
    streams = {"ans": -(-layer.size // limits.STREAM_SYMBOLS), "constant": 0, "raw": 1}[coding]
    entry.require(len(layer.streams) == streams, f"{len(layer.streams)} streams instead of {streams}")
    entry.require(layer.bin_width is None or layer.bin_width > 0, "a bin width that is not positive")
    return layer


class _Checked:
    """A JSON object whose values are taken by type; anything else is a CorruptArchive that says where."""

    def __init__(self, value: Any, where: str) -> None:
        self.where = where
        if not isinstance(value, dict):
            raise CorruptArchive(f"{where}: an object is expected")
        self._value = value

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            raise CorruptArchive(f"{self.where}: {message}; the archive is damaged")

    def _take(self, key: str, accepts: Callable[[Any], bool], kind: str) -> Any:
        self.require(key in self._value, f"{key!r} is missing")
        value = self._value[key]
        self.require(accepts(value), f"{key!r} is not {kind}")
        return value

    def _list(self, key: str, accepts: Callable[[Any], bool], kind: str) -> list[Any]:
        value: list[Any] = self._take(key, lambda v: isinstance(v, list) and all(map(accepts, v)), f"a list of {kind}")
        return value

    def integer(self, key: str) -> int:
        value: int = self._take(key, _is_length, "a non-negative integer")
        return value

    def integers(self, key: str) -> list[int]:
        return self._list(key, _is_length, "non-negative integers")

    def number(self, key: str) -> float:
        return float(self._take(key, _is_number, "a finite number"))

    def string(self, key: str) -> str:
        value: str = self._take(key, _is_string, "a string")
        return value

    def strings(self, key: str) -> list[str]:
        return self._list(key, _is_string, "strings")

    def mapping(self, key: str) -> dict[str, Any]:
        value: dict[str, Any] = self._take(key, lambda v: isinstance(v, dict), "an object")
        return value

    def object(self, key: str) -> _Checked:
        return _Checked(self.mapping(key), f"{self.where}: {key}")

    def objects(self, key: str) -> list[_Checked]:
        entries = self._list(key, lambda v: isinstance(v, dict), "objects")
        return [_Checked(entry, f"{self.where}: {key}[{index}]") for index, entry in enumerate(entries)]


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= 1.7976931348623157e308


def _is_string(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)
