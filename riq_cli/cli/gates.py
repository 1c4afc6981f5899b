"""Bounds that `riq report` checks, so that a pipeline stops at an archive that is too large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from riq_cli.cli.help import grouped
from riq_cli.cli.quantities import parse_number, parse_ratio, parse_size
from riq_cli.errors import TargetError
from riq_cli.report import Totals
from riq_cli.text import human_size

gate_options = grouped(
    "Bounds",
    click.option("--max-size", type=parse_size, metavar="SIZE", help="Exit with 3 if the archive is larger."),
    click.option(
        "--min-ratio",
        type=parse_ratio,
        metavar="X",
        help="Exit with 3 if the archive is above 1/X of the source.",
    ),
    click.option(
        "--max-rate", type=parse_number, metavar="R", help="Exit with 3 if layers take more than R bits/weight."
    ),
)


@dataclass(frozen=True)
class Gate:
    """A bound, what was found, and how a message says it."""

    name: str
    bound: float
    found: float | None
    message: str

    @property
    def holds(self) -> bool:
        """Whether the bound is kept; what is not known does not keep it."""
        if self.found is None:
            return False
        return self.found >= self.bound if self.name.startswith("min") else self.found <= self.bound

    def document(self) -> dict[str, Any]:
        """The gate as --json prints it."""
        return {"gate": self.name, "bound": self.bound, "found": self.found, "holds": self.holds}


def gates(sums: Totals, max_size: int | None, min_ratio: float | None, max_rate: float | None) -> list[Gate]:
    """The gates that were asked for, checked against the totals of an archive."""
    found = []
    if max_size is not None:
        size = f"{sums.archive_bytes:,} bytes ({human_size(sums.archive_bytes)})"
        found.append(Gate("max-size", max_size, sums.archive_bytes, f"{size} are above --max-size {max_size:,}"))
    if min_ratio is not None:
        message = (
            "the archive does not say how large its source is, so --min-ratio cannot be checked"
            if sums.ratio is None
            else f"a ratio of {sums.ratio:.4g} is below --min-ratio {min_ratio:g}"
        )
        found.append(Gate("min-ratio", min_ratio, sums.ratio, message))
    if max_rate is not None:
        message = f"{sums.rate:.4g} bits/weight are above --max-rate {max_rate:g}"
        found.append(Gate("max-rate", max_rate, sums.rate, message))
    return found


def check(path: str, found: list[Gate]) -> None:
    """Return nothing if all gates hold.

    Raises:
        TargetError: one does not; the message names all of them.
    """
    missed = [gate for gate in found if not gate.holds]
    if missed:
        raise TargetError(f"{path}: {'; '.join(gate.message for gate in missed)}", missed[0].found or 0.0)
