"""Numbers ↔ bits: the Exp-Golomb codes in which tables and distributions are stored (FORMAT.md, "Table")."""

from __future__ import annotations

from collections.abc import Iterable

from riq_cli.errors import CorruptArchive

TOO_LONG = "a table is longer than its symbols; the archive is damaged"
_ZEROS = 40  # in front of a code at most
_PIECE = 1 << 10  # bytes that are turned into bits at a time


def zigzag(value: int) -> int:
    """The place of an integer in 0, −1, 1, −2, 2 and so on."""
    return 2 * value if value >= 0 else -2 * value - 1


def unzigzag(value: int) -> int:
    """The integer at a place in 0, −1, 1, −2, 2 and so on."""
    return value // 2 if value % 2 == 0 else -(value + 1) // 2


def golomb(value: int, order: int) -> str:
    """The digits of EG(order) for a value ≥ 0."""
    digits = format(value + (1 << order), "b")
    return "0" * (len(digits) - 1 - order) + digits


def golomb_bits(value: int, order: int) -> int:
    """The number of digits of EG(order) for a value ≥ 0."""
    return 2 * (value + (1 << order)).bit_length() - 1 - order


def packed(parts: Iterable[str]) -> bytes:
    """Digits, most significant bit of each byte first, filled up with 0 bits to a whole byte."""
    bits = "".join(parts)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


class Bits:
    """Reads the bits of a table from the first to the last; of what may lie behind it, next to nothing."""

    def __init__(self, data: bytes, begin: int = 0) -> None:
        self._data = data
        self._next = begin  # byte that is not in the text yet
        self._text = ""
        self._position = 0

    def _fill(self, count: int) -> None:
        """Have `count` bits in the text, or all that are left; a count is at most a few dozen."""
        if len(self._text) - self._position < count and self._next < len(self._data):
            piece = self._data[self._next : self._next + _PIECE]
            more = format(int.from_bytes(piece, "big"), f"0{8 * len(piece)}b")
            self._text, self._position = self._text[self._position :] + more, 0
            self._next += len(piece)

    def bits(self, count: int) -> int:
        """The next `count` bits as a number."""
        self._fill(count)
        return self._taken(count)

    def _taken(self, count: int) -> int:
        """The next `count` bits, which are in the text if there are so many."""
        text = self._text[self._position : self._position + count]
        if len(text) < count:
            raise CorruptArchive("a table is cut off; the archive is damaged")
        self._position += count
        return int(text, 2)

    def golomb(self, order: int) -> int:
        """The value of the EG(order) code that comes next."""
        self._fill(2 * _ZEROS + 1 + order)
        one = self._text.find("1", self._position, self._position + _ZEROS + 1)
        if one < 0:
            raise CorruptArchive("a table holds an impossible code; the archive is damaged")
        zeros = one - self._position
        self._position = one
        return self._taken(zeros + 1 + order) - (1 << order)

    def finish(self) -> int:
        """The byte behind the last one that was read from; what is left of that one must be 0."""
        left = len(self._text) - self._position
        if "1" in self._text[self._position : self._position + left % 8]:
            raise CorruptArchive(TOO_LONG)
        return self._next - left // 8
