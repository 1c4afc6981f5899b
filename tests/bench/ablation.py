"""What each stage of the search is worth: bytes at equal held-out deviation, and processor time, without it."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import riq_cli as riq
from riq_cli.pipeline.checkpoint import Checkpoint
from riq_cli.pipeline.compression import Compression
from riq_cli.pipeline.deviation_objective import DeviationObjective
from riq_cli.pipeline.settings import STAGES
from riq_cli.pipeline.solver import Solver
from tests import zoo

from . import subjects
from .journal import Journal
from .tables import header, line

TARGETS = (0.01, 0.001)
SMALL = ("cnn", "lstm", "transformer", "mnist-cnn", "silero-vad-seq", "basic-pitch", "romanizer-encoder")
LARGE = ("ppocr4-det", "efficientnet-lite0", "minilm-l6")
COSTLY = ("gptq", "damping", "gradients", "augmentation", "trellis")  # all that is left out of large models
DRAWS = 3  # of the calibration samples of a small model; large ones have one
ALL = ""  # the case that others are compared with: nothing is left out

_AROUND = (2**-0.25, 1.0, 2**0.25)  # factors on k: archives there tell how bytes depend on the deviation
_SAMPLES, _HELDOUT = 32, 256
_COLUMNS = ("left out", "pairs", "bytes: mean", "least … most", "standard error", "processor time")


@dataclass(frozen=True)
class Case:
    """A model, a draw of its calibration samples, and the stage that is left out."""

    model: str
    draw: int
    without: str


@dataclass(frozen=True)
class Row:
    """What a case gave: bytes at each target, and the processor seconds of the search for both."""

    bytes: tuple[float, ...]
    seconds: float


def cases(models: Sequence[str]) -> Iterator[Case]:
    """All cases: every model before any is drawn again, so that what an interruption leaves is even."""
    for draw in range(DRAWS):
        for model in models:
            if draw and model in LARGE:
                continue
            for without in (ALL, *(COSTLY if model in LARGE else STAGES)):
                yield Case(model, draw, without)


def ablation(models: Sequence[str], path: Path | None) -> None:
    """Measure all cases that the file does not hold, and print the table.

    Args:
        models: names of the models.
        path: JSON lines, one for each case; new ones are appended.
    """
    journal = Journal(Case, Row, path, resume=True)
    subject: tuple[Case, riq.Model, riq.Calibration, riq.Calibration] | None = None
    for case in cases(models):
        if case in journal.rows:
            continue
        if subject is None or (subject[0].model, subject[0].draw) != (case.model, case.draw):
            try:
                entry = subjects.entry(case.model)
            except zoo.ZooUnavailable as error:
                print(f"{case.model}: cannot be had: {error}", file=sys.stderr)
                continue
            drawn = subjects.some(entry.calibration, _SAMPLES, case.draw)
            subject = case, riq.Model.load(entry.path), drawn, subjects.some(entry.heldout, _HELDOUT)
        journal.add(case, measure(*subject[1:], case.without))
        print(f"{case}: {journal.rows[case]}", file=sys.stderr, flush=True)
    print("\n".join(table(journal.rows)))


def measure(model: riq.Model, calibration: riq.Calibration, heldout: riq.Calibration, without: str) -> Row:
    """Bytes at equal held-out deviation, for each of the targets; one fit serves all."""
    left_out = (without,) if without else ()
    goals = [riq.Settings(deviation=target, without=left_out) for target in TARGETS]
    began = time.process_time()
    job = Compression(model, calibration, goals[0], progress=None, warn=None, checkpoint=Checkpoint())
    sizes, seconds = [], 0.0
    with job.bench() as bench:
        assert bench is not None, "there is something to code"
        bench.preparation.keep(math.sqrt(math.prod(TARGETS)))
        measuring, solver = bench.measuring, Solver(bench.measuring, bench.preparation)
        judge = bench.judge(heldout)
        for goal in goals:
            assert goal.deviation is not None
            job.aim(goal, bench)
            solution = solver.for_objective(DeviationObjective(measuring, goal.deviation))
            seconds += time.process_time() - began
            points = []
            for factor in _AROUND:
                archive, _ = job.archive_of(measuring.solution(solution.scheme, solution.k * factor), bench, None)
                points.append((judge(archive, None).mean, archive.size))
            sizes.append(bytes_at(goal.deviation, points))
            began = time.process_time()
    return Row(tuple(sizes), seconds)


def bytes_at(deviation: float, points: Sequence[tuple[float, int]]) -> float:
    """Bytes at a deviation, by the line of least squares through (log deviation, bytes).

    Args:
        deviation: where the line is read.
        points: held-out deviation > 0 and bytes of archives around it.
    """
    x, y = np.log([point[0] for point in points]), np.array([point[1] for point in points])
    slope, height = np.polyfit(x, y, 1)
    return float(height + slope * math.log(deviation))


def table(rows: Mapping[Case, Row]) -> list[str]:
    """The lines of a markdown table: a row for each stage that was left out, compared with the whole search."""
    lines = [header(_COLUMNS)]
    for stage in STAGES:
        pairs = [
            (row, rows[whole])
            for case, row in rows.items()
            if case.without == stage and (whole := Case(case.model, case.draw, ALL)) in rows
        ]
        ratios = [
            math.log(one / other) for row, whole in pairs for one, other in zip(row.bytes, whole.bytes, strict=True)
        ]
        if not ratios:
            continue
        error = statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else 0.0
        times = statistics.geometric_mean(row.seconds / whole.seconds for row, whole in pairs)
        lines.append(
            line(
                [
                    stage,
                    f"{len(ratios)}",
                    _percent(statistics.fmean(ratios)),
                    f"{_percent(min(ratios))} … {_percent(max(ratios))}",
                    f"± {100 * error:.1f}",
                    f"×{times:.2f}",
                ]
            )
        )
    return lines


def _percent(logarithm: float) -> str:
    return f"{100 * math.expm1(logarithm):+.1f} %"
