"""One model compressed for one goal after the other: the points of a rate–distortion curve."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from riq_cli.archive import Archive
from riq_cli.calibration import Calibration
from riq_cli.errors import TargetError
from riq_cli.model import Model
from riq_cli.pipeline.checkpoint import Checkpoint
from riq_cli.pipeline.compression import Compression
from riq_cli.pipeline.progress import Report, Warn
from riq_cli.pipeline.settings import Settings
from riq_cli.pipeline.unchangeable import UnchangeableError
from riq_cli.pipeline.workers import OnCluster
from riq_cli.runtime import Deviation


@dataclass(frozen=True)
class Outcome:
    """What came of one goal.

    Attributes:
        settings: the goal, and all else that was asked for.
        archive: None where the target is out of reach.
        deviation: of the archive on the calibration samples; the best that was measured where there is no archive.
        validation: of the archive on the validation samples, if there are any.
        evaluations: of the search, those included that an earlier goal has measured already.
        probes, seconds: what it took; the first goal's include what all share.
    """

    settings: Settings
    archive: Archive | None
    deviation: float
    validation: Deviation | None
    evaluations: int
    probes: int
    seconds: float


def sweep(
    model: Model,
    calibration: Calibration,
    goals: Sequence[Settings],
    *,
    about: float | None = None,
    validation: Calibration | None = None,
    progress: Report | None = None,
    warn: Warn | None = None,
    executor: Executor | None = None,
    on_cluster: OnCluster | None = None,
) -> Iterator[Outcome]:
    """The outcomes of several goals for the same model and samples, one after the other, each when it is there.

    Layers are probed and error compensation is fitted once, for the solution of the deviation `about`; the allocation
    is filled anew for each goal. So the bin widths of a goal do not depend on which others there are.

    Args:
        model: what to compress; not changed.
        calibration: samples on which deviations are measured.
        goals: settings that differ in `deviation` or in `k`, and in nothing else.
        about: a deviation in the middle of the goals'; None: each goal probes and fits for itself, as compress does.
        validation: further samples, on which archives are measured and nothing else.
        progress, warn, executor, on_cluster: as in compress.

    Raises:
        ModelError, CalibrationError, SettingsError: see there. A target that is out of reach is an outcome.
    """
    began = time.monotonic()
    if not goals:
        return
    job = Compression(model, calibration, goals[0], progress, warn, Checkpoint(), on_cluster)
    done = 0
    while done < len(goals):
        try:
            for outcome in _outcomes(job, goals[done:], about, validation, executor, began):
                done += 1
                yield outcome
        except UnchangeableError as error:
            job.keep_exact(error.layers)


def _outcomes(
    job: Compression,
    goals: Sequence[Settings],
    about: float | None,
    validation: Calibration | None,
    executor: Executor | None,
    began: float,
) -> Iterator[Outcome]:
    with job.bench() as bench:
        if bench is not None and about is not None:
            with contextlib.suppress(TargetError):  # then each goal starts from a solution of its own
                bench.preparation.keep(about)
        shared, before = 0 if bench is None else bench.measuring.evaluations, 0
        judge = None if validation is None or bench is None else bench.judge(validation)
        for goal in goals:
            job.aim(goal, bench)
            archive, deviation = None, math.inf
            try:
                archive = job.archive(bench, executor)
                deviation = archive.manifest.result.get("deviation", 0.0)
            except TargetError as error:
                if bench is not None:
                    bench.measuring.explain(error)
                deviation = error.best
            found = None if archive is None or judge is None else judge(archive, executor)
            evaluations, probes = (0, 0) if bench is None else (bench.measuring.evaluations, bench.preparation.probes)
            seconds = time.monotonic() - began
            yield Outcome(goal, archive, deviation, found, shared + evaluations, probes - before, seconds)
            shared, before, began = 0, probes, time.monotonic()
