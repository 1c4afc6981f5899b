"""JSON from an untrusted file: parsed strictly, values taken by type."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from riq_cli import limits
from riq_cli.errors import CorruptArchive


def parse(text: bytes) -> Any:
    """The JSON document in a text.

    Raises:
        CorruptArchive: not UTF-8, not JSON, a duplicate key, nesting beyond all bounds, or what could not be written
            again: NaN, infinity, lone surrogates, endless integers.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            raise ValueError("duplicate key")
        return result

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not a number of JSON")

    def real(digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            raise ValueError(f"{digits[:40]} is beyond all doubles")
        return value

    try:
        document = json.loads(text.decode(), object_pairs_hook=pairs, parse_constant=constant, parse_float=real)
        _check(document, 0)
        return document
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise CorruptArchive(f"the manifest is not the JSON it should be: {error}") from error


def _check(value: Any, depth: int) -> None:
    """Nothing, or a ValueError for lone surrogates and deep nesting."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, (dict, list)):
        if depth == limits.MANIFEST_DEPTH:
            raise ValueError(f"nested more than {limits.MANIFEST_DEPTH} deep")
        for item in value:
            _check(item, depth + 1)
        for item in value.values() if isinstance(value, dict) else ():
            _check(item, depth + 1)


class Checked:
    """A JSON object whose values are taken by type; anything else is a CorruptArchive that says where."""

    def __init__(self, value: Any, where: str) -> None:
        self.where = where
        if not isinstance(value, dict):
            raise CorruptArchive(f"{where}: an object is expected")
        self._value = value

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def require(self, condition: bool, message: str) -> None:
        """Nothing if the condition holds; a CorruptArchive that says where, if not."""
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
        """A non-negative integer below 2⁶³."""
        value: int = self._take(key, _is_length, "a non-negative integer")
        return value

    def integers(self, key: str) -> list[int]:
        """A list of them."""
        return self._list(key, _is_length, "non-negative integers")

    def number(self, key: str) -> float:
        """A finite number."""
        return float(self._take(key, _is_number, "a finite number"))

    def string(self, key: str) -> str:
        """A string."""
        value: str = self._take(key, _is_string, "a string")
        return value

    def strings(self, key: str) -> list[str]:
        """A list of them."""
        return self._list(key, _is_string, "strings")

    def mapping(self, key: str) -> dict[str, Any]:
        """An object, unchecked inside."""
        value: dict[str, Any] = self._take(key, lambda v: isinstance(v, dict), "an object")
        return value

    def object(self, key: str) -> Checked:
        """An object, to be checked."""
        return Checked(self.mapping(key), f"{self.where}: {key}")

    def objects(self, key: str) -> list[Checked]:
        """A list of them."""
        entries = self._list(key, lambda v: isinstance(v, dict), "objects")
        return [Checked(entry, f"{self.where}: {key}[{index}]") for index, entry in enumerate(entries)]


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= 1.7976931348623157e308


def _is_string(value: Any) -> bool:
    return isinstance(value, str)
