"""zlib streams, inflated in bounded memory."""

from __future__ import annotations

import zlib
from typing import Any

from riq_cli.errors import CorruptArchive

_GIVEN, _PIECE = 1 << 16, 1 << 20  # bytes that are taken and inflated at a time


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
    pieces, inflater = [], _Inflater(stored, what)
    while piece := inflater.piece(limit + 1):
        pieces.append(piece)
        limit -= len(piece)
        if limit < 0:
            raise _wrong_size(what)
    inflater.finish()
    return b"".join(pieces)


def inflate_into(stored: bytes, out: memoryview[Any], what: str) -> None:
    """Write the inflated bytes of one zlib stream into `out`, a view of bytes that they have to fill.

    Raises:
        CorruptArchive: not a zlib stream, bytes after its end, or not as many inflated bytes.
    """
    begin, inflater = 0, _Inflater(stored, what)
    while piece := inflater.piece(len(out) - begin + 1):
        if len(piece) > len(out) - begin:
            raise _wrong_size(what)
        out[begin : begin + len(piece)] = piece
        begin += len(piece)
    inflater.finish()
    if begin < len(out):
        raise _wrong_size(what)


class _Inflater:
    """Inflates a stream piece by piece: zlib itself holds all that it gives out twice for a moment."""

    def __init__(self, stored: bytes, what: str) -> None:
        self._stored, self._what = memoryview(stored), what
        self._inflater = zlib.decompressobj()
        self._next = 0

    def piece(self, most: int) -> bytes:
        """The next bytes, at most so many; none at the end."""
        try:
            while not self._inflater.eof:
                given = self._inflater.unconsumed_tail
                if not given:
                    given = bytes(self._stored[self._next : self._next + _GIVEN])
                    self._next += len(given)
                data = self._inflater.decompress(given, min(most, _PIECE))
                if data or not given:  # at the end of the stream some may still be inside
                    return data
        except zlib.error as error:
            raise CorruptArchive(f"{self._what} cannot be inflated; the archive is damaged") from error
        return b""

    def finish(self) -> None:
        """Nothing, or a CorruptArchive where the stream is cut off or has bytes behind it."""
        if not self._inflater.eof or self._inflater.unused_data or self._next < len(self._stored):
            raise _wrong_size(self._what)


def _wrong_size(what: str) -> CorruptArchive:
    return CorruptArchive(f"{what} does not have the size that was announced; the archive is damaged")
