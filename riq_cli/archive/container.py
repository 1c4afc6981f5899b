"""The container: a header, the manifest and sections in one checksummed file. FORMAT.md is its specification."""

from __future__ import annotations

import contextlib
import io
import os
import stat
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
from riq_cli.kinds import HEAD, instead

MAGIC = b"\x89RIQZ\r\n\x1a"
VERSION = 1
_PIECE = 1 << 14  # bytes that are read at a time
HEADER = struct.Struct("<8sHHIQ")  # magic, version, reserved, CRC-32 of the manifest, its stored length


class Archive:
    """A manifest and the sections that belong to it, in memory or in a file.

    A file that has a name is opened only to be read.
    """

    def __init__(
        self,
        manifest: Manifest,
        source: bytes | Path | BinaryIO,
        start: int = 0,
        manifest_bytes: int | None = None,
        max_size: int | None = None,
    ) -> None:
        """Take the sections from `source`, where they begin at byte `start`.

        `max_size` bounds the memory that restoring takes; None: nothing does, the archive is one's own.
        """
        self.manifest = manifest
        self.max_size = max_size
        self._source = source
        self._start = start
        self.manifest_bytes = len(manifest.to_bytes()) if manifest_bytes is None else manifest_bytes
        self._section_bytes = manifest.skeleton.bytes + sum(layer.stored for layer in manifest.layers)

    @classmethod
    def build(cls, manifest: Manifest, sections: Sequence[bytes | memoryview], file: BinaryIO | None = None) -> Archive:
        """The archive of a manifest and its sections.

        Args:
            manifest: with an entry for each layer.
            sections: the skeleton and then each layer's, as its entry counts them.
            file: an empty one that sections are kept in as long as the archive is used; None: in memory.
        """
        if file is None:
            return cls(manifest, b"".join(sections))
        file.writelines(sections)
        return cls(manifest, file)

    @classmethod
    def open(cls, source: str | os.PathLike[str] | BinaryIO, max_size: int = limits.RESTORED) -> Archive:
        """The archive in a file or a binary stream.

        Of a regular file the manifest is read now, and sections when they are asked for: it has to stay as it is, but
        is not kept open. Anything else, such as a pipe, is read to its end.

        Args:
            source: a path, or a binary stream.
            max_size: bound on the bytes of the restored model.

        Raises:
            ArchiveError: not an archive, from a newer version, damaged, or larger than `max_size`.
            FileNotFoundError, OSError: the file cannot be read.
        """
        if not isinstance(source, (str, os.PathLike)):
            data = source.read()
            return cls._read(io.BytesIO(data), data, max_size)
        with Path(source).open("rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return cls._read(file, Path(source).absolute(), max_size)
            data = file.read()
            return cls._read(io.BytesIO(data), data, max_size)

    @classmethod
    def _read(cls, file: BinaryIO, source: bytes | Path, max_size: int) -> Archive:
        """The archive whose bytes are in `file` now and in `source` later."""
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        header = file.read(HEADER.size)
        if header[: len(MAGIC)] != MAGIC:
            file.seek(0)
            raise NotAnArchive(instead("a riq archive", file.read(HEAD)))
        if len(header) < HEADER.size:
            raise CorruptArchive("the archive is cut off in its header")
        _, version, reserved, checksum, stored = HEADER.unpack(header)
        if version < VERSION:
            raise CorruptArchive(f"unknown version {version}; the archive is damaged")
        if version > VERSION:
            raise UnsupportedArchive(
                f"archive version {version}; this riq reads version {VERSION}: install a newer one"
            )
        if reserved:
            raise CorruptArchive("the header's reserved field is not 0; the archive is damaged")
        if stored > limits.MANIFEST_STORED:
            raise LimitExceeded(f"the manifest has {stored} bytes; at most {limits.MANIFEST_STORED} are read")
        if stored > size - HEADER.size:
            raise CorruptArchive("the archive is cut off in its manifest")
        manifest_bytes = _take(file, stored)
        if zlib.crc32(manifest_bytes) != checksum:
            raise CorruptArchive("the manifest's checksum differs; the archive is damaged")
        manifest = Manifest.from_bytes(manifest_bytes)
        if manifest.restored > max_size:
            raise LimitExceeded(
                f"the restored model needs {manifest.restored:,} bytes, the limit is {max_size:,}; "
                "if you trust the archive, raise it with --max-size"
            )
        beside = max((layer.code_memory for layer in manifest.layers), default=0)
        if beside > max(max_size - manifest.restored, limits.BESIDE):
            raise LimitExceeded(
                f"the codes of a layer need {beside:,} bytes, which with those of the model are above the limit of "
                f"{max_size:,}; if you trust the archive, raise it with --max-size"
            )
        archive = cls(manifest, source, HEADER.size + stored, stored, max_size)
        if archive.size != size:
            what = "cut off" if size < archive.size else "longer than its manifest says"
            raise CorruptArchive(f"the archive is {what}: {size:,} bytes instead of {archive.size:,}")
        return archive

    def described(self, **fields: Mapping[str, Any]) -> Archive:
        """The same sections with other `calibration`, `settings`, `source` or `result` in the manifest."""
        manifest = replace(self.manifest, **fields)  # type: ignore[arg-type]
        return Archive(manifest, self._source, self._start, max_size=self.max_size)

    @property
    def size(self) -> int:
        """Bytes of the archive as a file."""
        return HEADER.size + self.manifest_bytes + self._section_bytes

    def skeleton(self) -> bytes:
        """The serialized model without its layers' data, inflated and checked."""
        entry = self.manifest.skeleton
        with self._opened() as file:
            pieces = (_take(file, min(_PIECE, entry.bytes - begin)) for begin in range(0, entry.bytes, _PIECE))
            data = inflate(pieces, entry.size, "the skeleton")
        if len(data) != entry.size or zlib.crc32(data) != entry.crc32:
            raise CorruptArchive("skeleton: checksum differs; the archive is damaged")
        return data

    def layer_sections(self) -> Iterator[tuple[LayerEntry, list[bytes]]]:
        """Each layer's entry and sections, in the order of the manifest, read one layer at a time."""
        with self._opened() as file:
            begin = self._start + self.manifest.skeleton.bytes
            for layer in self.manifest.layers:
                file.seek(begin)  # others may read a temporary file meanwhile
                yield layer, [_take(file, length) for length in layer.sections]
                begin += layer.stored

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
        with self._opened() as source:
            for length in (self.manifest.skeleton.bytes, *(layer.stored for layer in self.manifest.layers)):
                file.write(_take(source, length))

    def __enter__(self) -> Archive:
        return self  # for those who write `with`: there is nothing to close

    def __exit__(self, *_: object) -> None:
        pass

    @contextlib.contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """What the sections are read from, open at the first of them."""
        source = self._source
        with contextlib.ExitStack() as stack:
            if isinstance(source, bytes):
                file: BinaryIO = io.BytesIO(source)
            else:
                file = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
            if file.seek(0, os.SEEK_END) != self._start + self._section_bytes:
                raise CorruptArchive("the archive has changed since it was opened; open it again")
            file.seek(self._start)
            yield file


def _take(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise CorruptArchive("the archive is cut off")
    return data
