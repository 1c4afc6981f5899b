"""What the default preset does to real models."""

from __future__ import annotations

from collections.abc import Sequence

import riq_cli as riq
from tests import zoo

from . import subjects
from .measuring import Measurement, measure
from .tables import deviation, header, line, number, task

COLUMNS = ("model", "MB", "target", "ratio", "deviation", "held-out", "task metric: before → after", "evaluations", "s")


def models(names: Sequence[str], targets: Sequence[float], samples: int | None, heldout: int | None) -> None:
    """A table: one row a model and target, everything measured on the restored file."""
    print(header(COLUMNS), flush=True)
    for name in names:
        try:
            subject = subjects.get(name, samples, heldout)
        except zoo.ZooUnavailable as error:
            print(line([subjects.title(name), f"cannot be had: {error}"]), flush=True)
            continue
        for target in targets:
            print(line(row(name, target, measure(subject, riq.Settings(deviation=target)))), flush=True)


def row(name: str, target: float, found: Measurement) -> list[str]:
    """The cells of a row."""
    return [
        subjects.title(name),
        f"{found.source_bytes / 1e6:.2f}",
        f"{target:g}",
        number(found.ratio, "×{:.2f}") if found.reached else "not reached",
        deviation(found),
        number(found.heldout, "{:.5f}"),
        task(found),
        f"{found.evaluations}",
        f"{found.seconds:.1f}",
    ]
