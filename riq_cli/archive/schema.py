"""JSON from an untrusted file, parsed strictly, and the manifest's schema.

Which keys each of its objects has, and what their values may be, is in FORMAT.md, "Manifest".

A new key that a command reads is one line in a table here. Keys that stand in no table are not checked, and not read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from riq_cli import limits
from riq_cli.errors import CorruptArchive

_LARGEST = 1e30  # of numbers that are told: far beyond all that are measured, and within what a picture can show
_ENTROPY_MAX = 128.0  # bits/weight: a symbol takes 24 + 15 at most, and a stream of one symbol the coder's 64 beside


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
        _check_writable(document, 0)
        return document
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise CorruptArchive(f"the manifest is not the JSON it should be: {error}") from error


def _check_writable(value: Any, depth: int) -> None:
    """Nothing, or a ValueError for lone surrogates and deep nesting."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, (dict, list)):
        if depth == limits.MANIFEST_DEPTH:
            raise ValueError(f"nested more than {limits.MANIFEST_DEPTH} deep")
        for item in value:
            _check_writable(item, depth + 1)
        for item in value.values() if isinstance(value, dict) else ():
            _check_writable(item, depth + 1)


@dataclass(frozen=True)
class Kind:
    """A kind of values: its name for messages, which values belong to it, and what is checked inside of them."""

    name: str
    accepts: Callable[[Any], bool]
    inside: Callable[[Any, str], None] = lambda value, where: None


@dataclass(frozen=True)
class Record:
    """The keys of an object, each with the kind of its value; unknown keys are ignored."""

    required: Mapping[str, Kind] = field(default_factory=dict)
    optional: Mapping[str, Kind] = field(default_factory=dict)

    def check(self, value: Mapping[str, Any], where: str) -> None:
        """Return nothing for an object with these keys.

        Raises:
            CorruptArchive: a key is missing, or a value is not of its kind; the message begins with `where`.
        """
        for key in self.required:
            if key not in value:
                raise CorruptArchive(f"{where}: {key!r} is missing; the archive is damaged")
        for key, kind in {**self.optional, **self.required}.items():
            if key in value:
                if not kind.accepts(value[key]):
                    raise CorruptArchive(f"{where}: {key!r} is not {kind.name}; the archive is damaged")
                kind.inside(value[key], f"{where}: {key}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1.7976931348623157e308


def _within(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: _is_number(value) and low <= value <= high


def _object(record: Record) -> Kind:
    return Kind("an object", lambda value: isinstance(value, dict), record.check)


def _list(kind: Kind, plural: str) -> Kind:
    def accepts(value: Any) -> bool:
        return isinstance(value, list) and all(map(kind.accepts, value))

    def inside(value: Any, where: str) -> None:
        for index, item in enumerate(value):
            kind.inside(item, f"{where}[{index}]")

    return Kind(f"a list of {plural}", accepts, inside)


def _mapping(kind: Kind, plural: str) -> Kind:
    def accepts(value: Any) -> bool:
        return isinstance(value, dict) and all(map(kind.accepts, value.values()))

    return Kind(f"an object of {plural}", accepts)


def _or_null(kind: Kind) -> Kind:
    return Kind(f"{kind.name} or null", lambda value: value is None or kind.accepts(value))


def _pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _POSITIVE.accepts(value[0]) and _NUMBER.accepts(value[1])


_INTEGER = Kind("a non-negative integer", _is_integer)
_INTEGERS = _list(_INTEGER, "non-negative integers")
_COUNT = Kind("a positive integer", lambda value: _is_integer(value) and value > 0)
_FINITE = Kind("a finite number", _is_number)
_NUMBER = Kind(f"a number within ±{_LARGEST:g}", _within(-_LARGEST, _LARGEST))
_POSITIVE = Kind(f"a positive number below {_LARGEST:g}", _within(1 / _LARGEST, _LARGEST))
_NOT_NEGATIVE = Kind(f"a number from 0 to {_LARGEST:g}", _within(0, _LARGEST))
_STRING = Kind("a string", lambda value: isinstance(value, str))
_STRINGS = _list(_STRING, "strings")
_BOOLEAN = Kind("true or false", lambda value: isinstance(value, bool))
_FACT = Kind("a number, a string, true, false or null", lambda value: value is None or isinstance(value, (str, bool))
             or _NUMBER.accepts(value))  # fmt: skip
PAIRS = _list(Kind("a pair of k and a number", _pair), "pairs of k and a number")
_OBJECT = Kind("an object", lambda value: isinstance(value, dict))

_CODES = Record({"axes": _INTEGERS, "bytes": _INTEGER})
LAYER = Record(
    {
        "name": _STRING,
        "op": _STRING,
        "tensors": _STRINGS,
        "dtype": _STRING,
        "shape": _INTEGERS,
        "coding": _STRING,
        "symbols": _INTEGER,
        "entropy": Kind(f"a number from 0 to {_ENTROPY_MAX:g}", _within(0, _ENTROPY_MAX)),
        "table": _INTEGER,
        "streams": _INTEGERS,
        "crc32": _INTEGER,
    },
    {
        "bin_width": _FINITE,
        "scales": _list(_object(_CODES), "objects"),
        "classes": _object(_CODES),
        "trellis": _INTEGERS,
        "magnitudes": _list(_object(_CODES), "objects"),
    },
)

# How an archive was made. All of it is optional: other versions of riq tell other things, and some archives nothing.

_SOURCE = Record(optional={"bytes": _COUNT, "sha256": _STRING})
_CALIBRATION = Record(optional={"kind": _STRING, "samples": _INTEGER, "sha256": _STRING})
_SETTINGS = Record(
    optional={
        "deviation": _or_null(_NOT_NEGATIVE),
        "outputs": _STRINGS,
        "objective": _STRING,
        "max_loss_increase": _NOT_NEGATIVE,
        "max_flips": _NOT_NEGATIVE,
        "max_kl": _NOT_NEGATIVE,
        "margin": _NUMBER,
        "max_drop": Kind("a number or a string", lambda value: isinstance(value, str) or _NOT_NEGATIVE.accepts(value)),
        "direction": Kind("'higher' or 'lower'", lambda value: value in ("higher", "lower")),
    }
)
_MEASURED = Record({"name": _STRING, "mean": _NOT_NEGATIVE, "worst": _NOT_NEGATIVE},
                   {"samples": _INTEGER, "standard_error": _or_null(_NOT_NEGATIVE)})  # fmt: skip


def _check_top1(value: Mapping[str, Any], where: str) -> None:
    """Nothing, or a CorruptArchive for what is not how often the top-1 of a tensor was kept."""
    counts = dict.fromkeys(("samples", "choices"), _COUNT)
    Record({"name": _STRING, "kept": _INTEGER, **counts}, {"effective": _COUNT}).check(value, where)
    if value["kept"] > value["choices"]:
        raise CorruptArchive(f"{where}: more are 'kept' than there are 'choices'; the archive is damaged")


_TOP1 = _list(Kind("an object", lambda value: isinstance(value, dict), _check_top1), "objects")
_JUDGEMENT = Kind(
    "an object", lambda value: isinstance(value, dict),
    lambda value, where: Record(
        {"value": _or_null(_NUMBER), "limit": _or_null(_NUMBER)}, {**dict.fromkeys(value, _FACT), "holds": _BOOLEAN}
    ).check(value, where),
)  # fmt: skip
_RESULT = Record(
    optional={
        "k": _POSITIVE,
        "epsilon": _NOT_NEGATIVE,
        "allocation": _STRING,
        "rounding": _STRING,
        "deviation": _NOT_NEGATIVE,
        "worst": _NOT_NEGATIVE,
        "standard_error": _or_null(_NOT_NEGATIVE),
        "measured": _list(_object(_MEASURED), "objects"),
        "evaluations": _INTEGER,
        "probes": _INTEGER,
        "trace": PAIRS,
        "holdout": _NOT_NEGATIVE,
        "holdout_samples": _INTEGER,
        "holdout_standard_error": _or_null(_NOT_NEGATIVE),
        "top1": _TOP1,
        "holdout_top1": _TOP1,
        "constraint": _JUDGEMENT,
        "constraint_holdout": _JUDGEMENT,
        "constraint_trace": PAIRS,
        "layout": _mapping(_INTEGER, "non-negative integers"),
    }
)
REQUIRES = Record({"requires": _STRINGS})
MANIFEST = Record(
    {
        "skeleton": _object(Record(dict.fromkeys(("bytes", "size", "crc32"), _INTEGER))),
        "layers": _list(_OBJECT, "objects"),
        "creator": _STRING,
        "source": _object(_SOURCE),
        "calibration": _object(_CALIBRATION),
        "settings": _object(_SETTINGS),
        "result": _object(_RESULT),
    }
)
