"""The log of a search: JSON lines, each written when it happens; and what is read from it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riq_cli import limits
from riq_cli.archive import schema
from riq_cli.errors import LogError
from riq_cli.files import growing_file
from riq_cli.report import SearchLog, measured_in_search, with_derived
from riq_cli.text import finite

if TYPE_CHECKING:
    from riq_cli.archive import Archive
    from riq_cli.pipeline import Progress

Write = Callable[[dict[str, Any] | None], None]

_LONGEST = limits.MANIFEST_INFLATED  # bytes of a line: the result holds what a manifest does
_SCHEME = ("allocation", "rounding", "epsilon")  # what lines of a search have in common with the result that it led to


@contextlib.contextmanager
def search_log(path: str | None, overwrite: bool, goes_on: bool = False) -> Iterator[Write]:
    """What writes an object as a line of the log, with the seconds since it was opened; None, or no path, is no line.

    An error or an interruption that ends the block is the last line.

    Args:
        path: of the log.
        overwrite: replace a file that is there.
        goes_on: write behind what is there instead.

    Raises:
        OutputError: the file exists and neither is wanted, or it cannot be written.
    """
    if path is None:
        yield lambda _: None
        return
    began = time.monotonic()
    keep = Path(path).stat().st_size if goes_on and Path(path).is_file() else 0
    with growing_file(path, overwrite or goes_on, keep) as file:

        def write(record: dict[str, Any] | None) -> None:
            if record is None:
                return
            line = {"seconds": round(time.monotonic() - began, 3)} | record
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")

        try:
            yield write
        except BaseException as error:
            said = str(error) or type(error).__name__
            write({"phase": "failed", "error": said if isinstance(error, Exception) else "interrupted"})
            raise


def step_record(step: Progress) -> dict[str, Any] | None:
    """The line that tells of a step; None of a phase of many like it, but for the first and the last."""
    if step.phase == "search":
        return {
            "phase": "search",
            "evaluation": step.done,
            "allocation": step.allocation,
            "rounding": step.rounding,
            "epsilon": step.epsilon,
            "k": step.k,
            step.measure: finite(step.value),
            "failed_below": step.low or None,
            "held_from": finite(step.high),
        }
    if step.phase == "resumed":
        return {"phase": "resumed", "steps": step.done, "took": round(step.value, 3)}
    done = {"phase": step.phase, "done": step.done, "total": step.total}
    if step.layer:
        return done | {"layer": step.layer, "deviation": finite(step.value)}
    return done if step.done in (1, step.total) else None


def trace(
    records: Iterable[Mapping[str, Any]], result: Mapping[str, Any], measure: str = "deviation"
) -> list[list[Any]]:
    """Pairs of k and value, one for each evaluation of the chosen scheme, in order; infinite values are left out.

    Args:
        records: lines of a log.
        result: names the allocation, rounding and epsilon that were chosen.
        measure: `deviation` or `constraint`.
    """
    return _traces(records, result, measure)[0]


def _traces(
    records: Iterable[Mapping[str, Any]], result: Mapping[str, Any], measure: str
) -> tuple[list[list[Any]], list[list[Any]]]:
    """The pairs of the chosen scheme, and those of the others."""
    chosen: list[list[Any]] = []
    others: list[list[Any]] = []
    for record in records:
        if record["phase"] != "search" or measure not in record:
            continue
        if record.get("evaluation") == 1:  # a search begins: of another run, or without unchangeable layers
            chosen.clear()
            others.clear()
        if record[measure] is not None:
            found = chosen if all(record.get(key) == result.get(key) for key in _SCHEME) else others
            found.append([record.get("k"), record[measure]])
    return chosen, others


def read_log(path: str, archive: Archive) -> SearchLog:
    """What the log of an archive's compression tells.

    Raises:
        LogError: the file is no such log, or that of another archive.
    """
    no_log = LogError(f"{path}: is no log of a search; give the file that riq compress --log wrote")
    try:
        with open(path, "rb") as file:
            records = [json.loads(line) for line in iter(lambda: file.readline(_LONGEST), b"")]
    except OSError as error:
        raise LogError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise no_log from error
    if not all(isinstance(record, dict) and "phase" in record for record in records):
        raise no_log
    last = max((number for number, record in enumerate(records) if record["phase"] == "result"), default=None)
    if last is None:
        raise LogError(f"{path}: holds no result; give the log of the riq compress that wrote this archive")
    for key, value in ({"archive_bytes": archive.size} | with_derived(archive.manifest.result)).items():
        if not key.endswith("trace") and records[last].get(key) != value:
            raise LogError(
                f"{path}: is the log of another archive ({key} differs); give the one written with this archive"
            )
    chosen, others = _traces(records[:last], archive.manifest.result, measured_in_search(archive.manifest.result))
    command = records[last].get("command")
    if not (schema.PAIRS.accepts(chosen) and schema.PAIRS.accepts(others) and isinstance(command, str | None)):
        raise no_log
    return SearchLog(chosen, others, command)
