"""Numbers as people write them on the command line: 1%, 8x, 1.5 GiB, 0.5,0.25, height=224."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal

import click

_UNITS = {
    "": 1,
    **{prefix: 1000**power for power, prefix in enumerate("kmgt", 1)},
    **{prefix + "i": 1024**power for power, prefix in enumerate("kmgt", 1)},
}


def parse_size(text: str | int) -> int:
    """Bytes from a text such as 500000, 1e6, 500kB, 5 MB or 1.5GiB."""
    words = str(text).strip().lower()
    number = words.rstrip("bkmgti ")
    unit = words[len(number) :].strip().removesuffix("b")
    try:
        size = int(float(number) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size < 1:
        raise click.BadParameter(f"{text!r} is not a size; write 500kB, 5MB or 2GiB")
    return size


def parse_number(text: str | float) -> float:
    """The number that a text is; infinity and what is not a number mean nothing to any option."""
    number = _number(str(text))
    if number is None:
        raise click.BadParameter(f"{text!r} is not a finite number; write it as 0.25")
    return number


def parse_fraction(text: str | float) -> float:
    """The fraction that a text is, such as 0.01 or 1%; it is not negative."""
    return parse_drop(text)[0]


def parse_drop(text: str | float) -> tuple[float, bool]:
    """A number that is not negative, and whether it was given in percent: 0.4% is, 0.004 is not."""
    words = str(text).strip()
    relative = words.endswith("%")
    number = _number(words.removesuffix("%"), -2 if relative else 0)
    if number is None or number < 0:
        raise click.BadParameter(f"{text!r} is not a fraction; write 0.01 or 1%")
    return number, relative


def parse_target(text: str | float) -> float:
    """The deviation that a text is, such as 0.01 or 1%."""
    if str(text).strip() == "1":
        raise click.BadParameter("1 is 100 %, where outputs have nothing in common; write 1% or 0.01, or else 100%")
    return parse_fraction(text)


def parse_ratio(text: str | float) -> float:
    """The positive number that a text such as 8, 8x or ×8 is."""
    number = _number(str(text).strip().lower().replace("×", "x").removesuffix("x").removeprefix("x"))
    if number is None or number <= 0:
        raise click.BadParameter(f"{text!r} is not a ratio; write 8 or 8x")
    return number


def parse_numbers(text: str) -> tuple[float, ...]:
    """The numbers in a text such as 0.5,0.25."""
    return _list(text, parse_number, "0.5,0.25")


def parse_targets(text: str) -> tuple[float, ...]:
    """The deviations in a text such as 0.01,0.1%."""
    return _list(text, parse_target, "0.01,0.001")


def parse_dimension(text: str) -> tuple[str, int]:
    """Name and size of a free dimension from a text such as height=224; it may be empty: past=0."""
    name, _, number = text.rpartition("=")
    if not name or not number.isdecimal():
        raise click.BadParameter(f"{text!r} is not a name and a size; write height=224")
    return name, int(number)


def parse_bits(text: str) -> tuple[int | str, ...]:
    """Widths from a text such as 4,8,float."""
    words = [word.strip() for word in text.split(",")]
    if not all(word == "float" or word.isdecimal() for word in words):
        raise click.BadParameter(f"{text!r} is not a list of widths in bits; write 4,8,float")
    return tuple(dict.fromkeys(word if word == "float" else int(word) for word in words))


def _number(text: str, exponent: int = 0) -> float | None:
    """The finite number that a text is, times a power of ten, rounded once; None if it is none."""
    try:
        number = float(Decimal(text).scaleb(exponent))
    except (ArithmeticError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _list(text: str, parse: Callable[[str], float], example: str) -> tuple[float, ...]:
    try:
        return tuple(parse(part) for part in text.split(","))
    except click.BadParameter as error:
        raise click.BadParameter(f"{error.message}; a list is written as {example}") from None
