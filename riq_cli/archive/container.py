"""The container: a header, the manifest and sections in one checksummed file. FORMAT.md is its specification."""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from riq_cli import limits
from riq_cli.archive.deflation import inflate
from riq_cli.archive.manifest import LayerEntry, Manifest
from riq_cli.errors import CorruptArchive, LimitExceeded, NotAnArchive, UnsupportedArchive
from riq_cli.files import atomic_write

MAGIC = b"\x89RIQZ\r\n\x1a"
VERSION = 1
HEADER = struct.Struct("<8sHHIQ")  # magic, version, reserved, CRC-32 of the manifest, its stored length


class Archive:
    """A manifest and the sections that belong to it, in memory or mapped from a file."""

    def __init__(
        self, manifest: Manifest, data: bytes | mmap.mmap, start: int = 0, manifest_bytes: int | None = None
    ) -> None:
        """Take the sections from `data`, where they begin at byte `start`."""
        self.manifest = manifest
        self._data = data
        self._start = start
        self.manifest_bytes = len(manifest.to_bytes()) if manifest_bytes is None else manifest_bytes
        self._offsets = [0]
        for length in self._lengths():
            self._offsets.append(self._offsets[-1] + length)

    @classmethod
    def build(cls, manifest: Manifest, sections: Sequence[bytes]) -> Archive:
        """An archive in memory; `sections` are the skeleton and then each layer's table and streams."""
        return cls(manifest, b"".join(sections))

    @classmethod
    def open(cls, source: str | os.PathLike[str] | BinaryIO, max_size: int = limits.RESTORED) -> Archive:
        """The archive in a file or a binary stream; of a file the manifest is read, and sections when they are needed.

        Args:
            source: a path, or a binary stream, which is read to its end.
            max_size: bound on the bytes of the restored model.

        Raises:
            ArchiveError: not an archive, from a newer version, damaged, or larger than `max_size`.
            FileNotFoundError, OSError: the file cannot be read.
        """
        if not isinstance(source, (str, os.PathLike)):
            return cls._read(source.read(), max_size)
        with Path(source).open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise NotAnArchive("not a riq archive; the file is empty")
            return cls._read(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), max_size)

    @classmethod
    def _read(cls, data: bytes | mmap.mmap, max_size: int) -> Archive:
        header = data[: HEADER.size]
        if header[: len(MAGIC)] != MAGIC:
            raise NotAnArchive("not a riq archive")
        if len(header) < HEADER.size:
            raise CorruptArchive("the archive is cut off in its header")
        _, version, reserved, checksum, stored = HEADER.unpack(header)
        if version != VERSION:
            raise UnsupportedArchive(
                f"archive version {version}; this riq reads version {VERSION}: install a newer one"
            )
        if reserved:
            raise CorruptArchive("the header's reserved field is not 0; the archive is damaged")
        if stored > limits.MANIFEST_STORED:
            raise LimitExceeded(f"the manifest has {stored} bytes; at most {limits.MANIFEST_STORED} are read")
        manifest_bytes = data[HEADER.size : HEADER.size + stored]
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
        archive = cls(manifest, data, HEADER.size + stored, stored)
        if archive.size != len(data):
            what = "cut off" if len(data) < archive.size else "longer than its manifest says"
            raise CorruptArchive(f"the archive is {what}: {len(data)} bytes instead of {archive.size}")
        return archive

    def described(self, **fields: Mapping[str, Any]) -> Archive:
        """The same sections with other `calibration`, `settings`, `source` or `result` in the manifest."""
        return Archive(replace(self.manifest, **fields), self._data, self._start)  # type: ignore[arg-type]

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
        with memoryview(self._data) as view:
            file.write(view[self._start :])

    def close(self) -> None:
        """Let go of the file that the sections are mapped from."""
        if isinstance(self._data, mmap.mmap):
            self._data.close()

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
        return self._data[self._start + begin : self._start + end]
