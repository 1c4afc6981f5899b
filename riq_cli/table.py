"""The table of a layer, read: which symbols are in use, and how often (FORMAT.md, "Table"). Standard library only."""

from __future__ import annotations

from riq_cli.errors import CorruptArchive
from riq_cli.limits import TABLE_SYMBOLS

ROOT_MAX = 1 << 24
COUNT_ORDER, FIRST_ORDER, ROOT_ORDER, GAP_ORDER = 4, 4, 8, 0  # of the Exp-Golomb codes
_ZEROS = 40  # before the first one of a code


def read_table(stored: bytes) -> tuple[list[int], list[int]]:
    """The symbols in use, ascending, and the rounded square roots of their counts.

    Raises:
        CorruptArchive: cut off, too long, or with values that no encoder writes.
    """
    reader = _Bits(stored)
    order = reader.bits(4)
    count = reader.golomb(COUNT_ORDER) + 1
    if count > TABLE_SYMBOLS:
        raise CorruptArchive("a table has more symbols than allowed; the archive is damaged")
    symbols = [_unzigzag(reader.golomb(FIRST_ORDER))]
    roots = [reader.golomb(ROOT_ORDER) + 1]
    for _ in range(count - 1):
        symbols.append(symbols[-1] + 1 + reader.golomb(GAP_ORDER))
        roots.append(roots[-1] + _unzigzag(reader.golomb(order)))
    reader.finish()
    if min(roots) < 1 or max(roots) > ROOT_MAX or max(abs(symbols[0]), abs(symbols[-1])) >= 1 << 31:
        raise CorruptArchive("a table holds impossible values; the archive is damaged")
    return symbols, roots


def _unzigzag(value: int) -> int:
    return value // 2 if value % 2 == 0 else -(value + 1) // 2


class _Bits:
    """Reads the bits of a table from the first to the last."""

    def __init__(self, data: bytes) -> None:
        self._text = format(int.from_bytes(data, "big"), f"0{8 * len(data)}b") if data else ""
        self._position = 0

    def bits(self, count: int) -> int:
        text = self._text[self._position : self._position + count]
        if len(text) < count:
            raise CorruptArchive("a table is cut off; the archive is damaged")
        self._position += count
        return int(text, 2)

    def golomb(self, order: int) -> int:
        one = self._text.find("1", self._position)
        zeros = one - self._position
        if one < 0 or zeros > _ZEROS:
            raise CorruptArchive("a table holds an impossible code; the archive is damaged")
        self._position = one
        return self.bits(zeros + 1 + order) - (1 << order)

    def finish(self) -> None:
        rest = self._text[self._position :]
        if len(rest) >= 8 or "1" in rest:
            raise CorruptArchive("a table is longer than its symbols; the archive is damaged")
