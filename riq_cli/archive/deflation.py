"""zlib streams, inflated in bounded memory."""

from __future__ import annotations

import zlib
from typing import Any

from riq_cli.errors import CorruptArchive


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
