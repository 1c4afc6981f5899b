"""The log of a search: JSON lines, each written when it happens."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from riq_cli.files import growing_file
from riq_cli.text import finite

if TYPE_CHECKING:
    from riq_cli.codec import Progress

Write = Callable[[dict[str, Any]], None]


@contextlib.contextmanager
def search_log(path: str | None, overwrite: bool) -> Iterator[Write]:
    """What writes an object as a line of the log, with the seconds since it was opened; of nothing without a path.

    An error or an interruption that ends the block is the last line.

    Raises:
        OutputError: the file exists and `overwrite` is false, or it cannot be written.
    """
    if path is None:
        yield lambda _: None
        return
    began = time.monotonic()
    with growing_file(path, overwrite) as file:

        def write(record: dict[str, Any]) -> None:
            line = {"seconds": round(time.monotonic() - began, 3)} | record
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")

        try:
            yield write
        except Exception as error:
            write({"phase": "failed", "error": str(error) or type(error).__name__})
            raise
        except BaseException:
            write({"phase": "failed", "error": "interrupted"})
            raise


def step_record(step: Progress) -> dict[str, Any] | None:
    """The line that tells of a step; None where there is no news: layers coded, or not probed again."""
    if step.phase == "search":
        return {
            "phase": "search",
            "evaluation": step.done,
            "allocation": step.allocation,
            "rounding": step.rounding,
            "k": step.k,
            step.measure: finite(step.value),
            "failed_below": step.low or None,
            "held_from": finite(step.high),
        }
    if step.phase == "probe" and step.layer:
        deviation = finite(step.value)
        return {"phase": "probe", "done": step.done, "total": step.total, "layer": step.layer, "deviation": deviation}
    return None
