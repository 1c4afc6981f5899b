"""Samples → what to say where they are too few, or too alike, to tell of others."""

from __future__ import annotations

from collections.abc import Sequence

from riq_cli.calibration.calibration import digest
from riq_cli.calibration.inputs import Sample
from riq_cli.text import counted

ENOUGH = 8  # samples that differ from each other
WANTED = 16


def scarcity(samples: Sequence[Sample]) -> str | None:
    """A warning that there are few samples, or few that differ, and what to do; None if there are enough."""
    count = sum(sample.rows for sample in samples)
    rows: dict[str, int] = {}  # of samples that differ from each other
    for sample in samples:
        rows.setdefault(digest([sample]), sample.rows)
        if sum(rows.values()) >= ENOUGH:
            return None
    different = sum(rows.values())
    if different == count:
        found = f"only {counted(count, 'sample')}"
    elif len(rows) == 1:
        found = f"the {count} samples are all alike"
    else:
        found = f"only {different} of the {count} samples differ"
    return f"{found}: on others the deviation may be many times as large; give {WANTED} samples or more that differ"
