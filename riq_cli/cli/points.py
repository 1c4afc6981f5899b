"""The CSV of a sweep as a file: read, checked, and gone on with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from riq_cli.errors import PointsError
from riq_cli.files import growing_file
from riq_cli.points import HEADER, Point, read_points

Write = Callable[[Point], None]


def points_of(path: str) -> list[Point]:
    """The points of a CSV.

    Raises:
        PointsError: it is not the CSV of a sweep.
    """
    try:
        return _read(path)[0]
    except PointsError as error:
        raise PointsError(f"{path}: is not the CSV of a sweep: {error}") from error


def present(path: str) -> tuple[list[Point], int]:
    """The points of a CSV to go on with and its bytes up to the last whole line; none of a file that is not there.

    Raises:
        PointsError: it is not the CSV of a sweep.
    """
    if not Path(path).exists():
        return [], 0
    try:
        return _read(path)
    except PointsError as error:
        raise PointsError(
            f"{path}: exists already and is no sweep to go on with: {error}; "
            "use --force to replace it, or name another file with -o"
        ) from error


def check_model(path: str | None, points: Sequence[Point], model: str) -> None:
    """Return nothing if all points are of a model.

    Raises:
        PointsError: one is of another.
    """
    other = next((point.model for point in points if point.model != model), None)
    if other is not None:
        raise PointsError(
            f"{path}: holds points of another model (SHA-256 {other}…, not {model}…); "
            "use --force to replace it, or name another file with -o"
        )


@contextlib.contextmanager
def lines(path: str | None, size: int, as_json: bool) -> Iterator[Write]:
    """What writes a point: behind `size` bytes of the file, or to stdout unless that is for JSON."""
    if path is None:
        if not as_json:
            click.echo(HEADER, nl=False)
        yield (lambda _: None) if as_json else (lambda point: click.echo(point.line(), nl=False))
        return
    with growing_file(path, overwrite=True, keep=size) as file:

        def write(point: Point) -> None:
            file.write(point.line().encode())

        if size == 0:
            file.write(HEADER.encode())
        yield write


def _read(path: str) -> tuple[list[Point], int]:
    try:
        text = Path(path).read_bytes().decode(errors="surrogateescape")  # a half-written letter is passed over too
    except OSError as error:
        raise PointsError(str(error.strerror)) from error
    points, size = read_points(text)
    return points, len(text[:size].encode(errors="surrogateescape"))
