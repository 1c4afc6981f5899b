"""JSON from an untrusted file, parsed strictly."""

from __future__ import annotations

import json
import math
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
