"""zlib streams, inflated in bounded memory."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from riq_cli.errors import CorruptArchive

_GIVEN, _PIECE = 1 << 14, 1 << 17  # bytes that are taken and inflated at a time


def deflate(data: bytes | memoryview[Any]) -> bytes:
    """A zlib stream of `data`, as small as zlib makes it."""
    return zlib.compress(data, 9)


def inflate(stored: bytes | Iterable[bytes], limit: int, what: str) -> bytes:
    """The inflated bytes of one zlib stream, which is whole or in pieces of a few kilobytes; `what` names it in errors.

    Raises:
        CorruptArchive: not a zlib stream, bytes after its end, or more than `limit` inflated bytes.
    """
    data = io.BytesIO()  # which gives out what it holds without a copy
    for piece in _inflated(stored, what):
        if data.tell() + len(piece) > limit:
            raise _wrong_size(what)
        data.write(piece)
    return data.getvalue()


def inflate_into(stored: bytes | Iterable[bytes], out: memoryview[Any], what: str) -> None:
    """Write the inflated bytes of one zlib stream into `out`, a view of bytes that they have to fill.

    Raises:
        CorruptArchive: not a zlib stream, bytes after its end, or not as many inflated bytes.
    """
    begin = 0
    for piece in _inflated(stored, what):
        if begin + len(piece) > len(out):
            raise _wrong_size(what)
        out[begin : begin + len(piece)] = piece
        begin += len(piece)
    if begin < len(out):
        raise _wrong_size(what)


def _inflated(stored: bytes | Iterable[bytes], what: str) -> Iterator[bytes]:
    """The inflated bytes of a stream piece by piece: zlib itself holds all that it gives out twice for a moment."""
    inflater = zlib.decompressobj()
    try:
        for given in _sliced(stored) if isinstance(stored, bytes) else stored:
            if inflater.eof:
                raise _wrong_size(what)
            while data := inflater.decompress(given, _PIECE):
                yield data
                given = inflater.unconsumed_tail
    except zlib.error as error:
        raise CorruptArchive(f"{what} cannot be inflated; the archive is damaged") from error
    if not inflater.eof or inflater.unused_data:
        raise _wrong_size(what)


def _sliced(data: bytes) -> Iterator[bytes]:
    return (data[begin : begin + _GIVEN] for begin in range(0, len(data), _GIVEN))


def _wrong_size(what: str) -> CorruptArchive:
    return CorruptArchive(f"{what} does not have the size that was announced; the archive is damaged")
