"""Points of rate–distortion curves: the rows of the CSV that a sweep writes and goes on with."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from riq_cli.errors import PointsError


@dataclass(frozen=True)
class Point:
    """What came of one preset and one target; None where there is nothing to say.

    Attributes:
        preset: its name.
        target: D; None where k was given.
        reached: whether an archive keeps the target; None where k was given.
        deviation: measured on the calibration samples; the best that was measured where the target is out of reach.
        validation: measured on the validation samples.
        rate: bits/weight of the coded layers, tables included.
        fixed_rate: bits/weight of the same symbols without the entropy coder, log₂ of the levels in each layer.
        ratio: bytes of the model over bytes of the archive.
        bytes: of the archive.
        k, epsilon: of the solution.
        evaluations: of the search, those included that an earlier point has measured already.
        probes, seconds: what it took; the first point of a run includes what all share.
        model: first digits of the SHA-256 of the model's file.
        calibration: kind of the samples and the first digits of their SHA-256.
        validated: the same of the validation samples.
        settings: what was asked for beside preset and target.
    """

    preset: str
    target: float | None
    reached: bool | None
    deviation: float | None
    validation: float | None
    rate: float | None
    fixed_rate: float | None
    ratio: float | None
    bytes: int | None
    k: float | None
    epsilon: float | None
    evaluations: int
    probes: int
    seconds: float
    model: str
    calibration: str
    validated: str
    settings: str

    def line(self) -> str:
        """The point as a line of CSV."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerow(_text(value) for value in asdict(self).values())
        return out.getvalue()

    def rounded(self) -> Point:
        """The point as it comes back from its line."""
        return _point(next(csv.reader([self.line()])))


COLUMNS = tuple(field.name for field in fields(Point))
HEADER = ",".join(COLUMNS) + "\n"
_TYPES = {field.name: str(field.type) for field in fields(Point)}
_SAME = ("preset", "target", "model", "calibration", "validated", "settings")
_DIGITS = 6


def key(point: Mapping[str, Any]) -> tuple[str, ...]:
    """What makes two points the same, of the fields of a point: the same work would give both."""
    return tuple(_text(point[name]) for name in _SAME)


def read_points(path: str) -> tuple[list[Point], int]:
    """The points of a CSV, and how many bytes of it are whole lines: a half-written last one is passed over.

    Raises:
        PointsError: it is not the CSV of a sweep, or cannot be read; the message does not name it.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PointsError(str(error.strerror)) from error
    size = data.rfind(b"\n") + 1
    if not size and HEADER.encode().startswith(data):
        return [], 0
    text = data[:size].decode(errors="replace")
    if not text.startswith(HEADER):
        raise PointsError("does not begin with the columns of a sweep")
    points = []
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        if number == 1:
            continue
        try:
            points.append(_point(row))
        except (ValueError, KeyError) as error:
            raise PointsError(f"line {number} is not a point of a sweep") from error
    return points, size


def _point(row: list[str]) -> Point:
    return Point(**{name: _value(_TYPES[name], text) for name, text in zip(COLUMNS, row, strict=True)})


def _value(kind: str, text: str) -> Any:
    if kind == "str":
        return text
    if not text and kind.endswith("None"):
        return None
    if kind.startswith("bool"):
        return {"yes": True, "no": False}[text]
    if kind.startswith("int"):
        return int(text)
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{_DIGITS}g}" if math.isfinite(value) else ""
    return str(value)
