"""Many rows in a few: how the presets compare over all models."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .measuring import HOPELESS, Measurement
from .tables import NONE, header, line

PAPER = "paper"
LEAST_RATE = 1.0  # bits/weight below which the high-rate law says nothing
COLUMNS = (
    *("target", "preset", "models", "not reached", "× paper", "larger than paper"),
    *("held-out ÷ target: median", "worst", "above 1", "× paper at equal held-out (estimate)"),
)
NOTES = (
    "× paper: real bytes of preset paper ÷ real bytes of this preset at the same target; geometric mean over models.",
    "Where the paper's ε0 = 0.01 does not reach a target, its row is that of a smaller ε0 found by bisection.",
    f"(Where the deviation at the largest k is above {HOPELESS:g} × the target, Algorithm 1 is not run up to it.)",
    "Estimate, not measured: both sizes scaled to a held-out deviation equal to the target by the high-rate law,",
    "deviation ∝ 4^(−bits/weight): bytes + weights · ½ · log2(held-out ÷ target) ÷ 8; left out where less than",
    f"{LEAST_RATE:g} bit/weight would remain.",
)


@dataclass(frozen=True)
class Case:
    """What a row is about, and what it is found again by.

    Attributes:
        model: name of the model.
        target: deviation asked for.
        preset: name of the preset.
        fallback: the preset's fixed ε0 did not reach the target; riq chose another, by bisection.
        samples: calibration samples asked for.
        heldout_samples: held-out samples asked for.
    """

    model: str
    target: float
    preset: str
    fallback: bool
    samples: int
    heldout_samples: int


Rows = dict[Case, Measurement]


def papers(rows: Mapping[Case, Measurement], case: Case) -> Rows:
    """The paper's row for a case's model and target, with its own ε0 if that reached; empty if there is none."""
    for fallback in (False, True):
        paper = replace(case, preset=PAPER, fallback=fallback)
        if paper in rows and rows[paper].reached:
            return {paper: rows[paper]}
    return {}


def summary(rows: Mapping[Case, Measurement]) -> list[str]:
    """Lines of a table with a row for each target and preset, and what its columns mean."""
    pairs = dict.fromkeys((case.target, case.preset) for case in rows)
    targets, presets = dict.fromkeys(pair[0] for pair in pairs), dict.fromkeys(pair[1] for pair in pairs)
    lines = [header(COLUMNS)]
    lines += [line(_row(rows, t, p)) for t in targets for p in presets if (t, p) in pairs]
    return [*lines, "", *NOTES]


def _row(rows: Mapping[Case, Measurement], target: float, preset: str) -> list[str]:
    """The cells of a target and preset."""
    own = {case: row for case, row in rows.items() if (case.target, case.preset) == (target, preset)}
    reached = {case: row for case, row in own.items() if row.reached}
    compared = [(row, paper) for case, row in reached.items() for paper in papers(rows, case).values()]
    scaled = [(at_target(row, target), at_target(paper, target)) for row, paper in compared]
    heldout = [math.inf if row.heldout is None else row.heldout / target for row in reached.values()]
    larger = sum(row.bytes > paper.bytes for row, paper in compared if row.bytes and paper.bytes)
    is_paper = preset == PAPER
    return [
        f"{target:g}",
        preset,
        f"{len(reached)}",
        f"{sum(not row.reached for row in own.values())}",
        NONE if is_paper else _mean((row.bytes, paper.bytes) for row, paper in compared),
        NONE if is_paper or not compared else f"{larger} of {len(compared)}",
        f"{statistics.median(heldout):.2f}" if heldout else NONE,
        f"{max(heldout):.2f}" if heldout else NONE,
        f"{sum(share > 1 for share in heldout)}" if heldout else NONE,
        NONE if is_paper else _mean(scaled),
    ]


def at_target(row: Measurement, target: float) -> float | None:
    """About the bytes at which the held-out deviation would be the target; None where the law does not say."""
    if row.bytes is None or row.weights is None or row.rate is None or not row.heldout:
        return None
    bits = 0.5 * math.log2(row.heldout / target)
    if row.rate + bits < LEAST_RATE:
        return None
    return row.bytes + row.weights * bits / 8


def _mean(sizes: Iterable[tuple[float | None, float | None]]) -> str:
    """Geometric mean of paper's ÷ own size, and of how many if some are not known."""
    pairs = list(sizes)
    ratios = [paper / own for own, paper in pairs if own and paper]
    if not ratios:
        return NONE
    text = f"×{statistics.geometric_mean(ratios):.3f}"
    return text if len(ratios) == len(pairs) else f"{text} ({len(ratios)} of {len(pairs)})"
