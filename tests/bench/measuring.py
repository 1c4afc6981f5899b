"""One model and one set of settings: compressed, saved, opened again, and judged on data that compress did not see."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import riq_cli as riq
from riq_cli import report
from riq_cli.errors import TargetError
from riq_cli.pipeline import search
from riq_cli.pipeline.weights import is_matrix

from .subjects import Subject

# The deviation is rough near the floor that ε0 sets: at the largest k it was up to 1.6 times the least of Algorithm 1's
# steps, on seven models. Where it is this much above the target, no step would reach.
HOPELESS = 2.5


@dataclass(frozen=True)
class Measurement:
    """What compressing one model with one set of settings gave.

    What the archive would have told is None where the target was not reached; so is what is NaN or infinite.

    Attributes:
        source_bytes: of the model's file, external data included.
        deviation: of the restored model on the calibration data; where the target was not reached, the best measured,
            or, with a `k`, the only one.
        evaluations: of all layers together.
        probes: of one layer each.
        seconds: of compress.
        metric: the task's, `before` and `after`; None where there is no task.
        bytes: of the archive's file.
        weights: number of coded ones.
        rate: bits per coded weight, tables included.
        heldout: deviation of the restored model on the held-out data.
        worst: the largest deviation of any calibration sample, heldout_worst of any held-out one.
        note: why the target was not reached, or what compress warned of.
    """

    source_bytes: int
    deviation: float | None
    evaluations: int
    probes: int
    seconds: float
    metric: str | None = None
    before: float | None = None
    bytes: int | None = None
    weights: int | None = None
    rate: float | None = None
    worst: float | None = None
    heldout: float | None = None
    heldout_worst: float | None = None
    after: float | None = None
    k: float | None = None
    epsilon: float | None = None
    allocation: str | None = None
    note: str = ""

    @property
    def reached(self) -> bool:
        """Whether there is an archive."""
        return self.bytes is not None

    @property
    def ratio(self) -> float | None:
        """Real bytes over real bytes."""
        return None if self.bytes is None else self.source_bytes / self.bytes


def measure(subject: Subject, settings: riq.Settings) -> Measurement:
    """Compress a model, and measure what the archive's file restores."""
    began = time.perf_counter()
    model = riq.Model.load(subject.path)
    assert model.source is not None
    steps = {"search": 0, "probe": 0}
    warnings: list[str] = []

    def missed(best: float, note: str, k: float | None = None) -> Measurement:
        seconds, evaluations = time.perf_counter() - began, max(1, steps["search"])
        return Measurement(model.source.bytes, finite(best), evaluations, steps["probe"], seconds, k=k, note=note)

    hopeless = _hopeless(subject, model, settings)
    if hopeless is not None:
        return missed(*hopeless)
    began = time.perf_counter()
    try:
        archive = riq.compress(
            model,
            subject.calibration,
            settings,
            progress=lambda step: steps.update({step.phase: step.done}),
            warn=warnings.append,
        )
    except TargetError as error:
        return missed(error.best, str(error))
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.riqz"
        archive.save(path)
        size = path.stat().st_size
        with riq.Archive.open(path) as opened:
            totals, result = report.totals(opened), opened.manifest.result
            heldout = riq.verify(opened, model, subject.heldout)
            after = None if subject.metric is None else subject.score(riq.decompress(opened).to_bytes())
    return Measurement(
        source_bytes=model.source.bytes,
        deviation=finite(result.get("deviation", 0.0)),  # none where there was nothing to code
        evaluations=result.get("evaluations", 0),
        probes=result.get("probes", 0),
        seconds=seconds,
        metric=subject.metric,
        before=subject.before,
        bytes=size,
        weights=totals.weights,
        rate=totals.rate,
        worst=finite(result.get("worst", 0.0)),
        heldout=finite(heldout.mean),
        heldout_worst=finite(heldout.worst),
        after=after,
        k=result.get("k"),
        epsilon=result.get("epsilon"),
        allocation=result.get("allocation"),
        note="; ".join(warnings),
    )


def finite(value: float) -> float | None:
    """The value, or None for what JSON cannot hold."""
    return value if math.isfinite(value) else None


def _hopeless(subject: Subject, model: riq.Model, settings: riq.Settings) -> tuple[float, str, float] | None:
    """The deviation at the largest k of Algorithm 1, a note and that k, if the target is far off there; None if not.

    Algorithm 1 would walk up to it in √(k_max − k_min) steps, hundreds of evaluations, to say the same.
    """
    target, epsilon = settings.deviation, settings.epsilon
    sizes = [layer.size for layer in model.layers if is_matrix(layer, settings.min_size)]
    if settings.search != "algorithm1" or not epsilon or target is None or not sizes:
        return None
    lowest, k = search.lower_bound(max(sizes), epsilon), search.upper_bound(max(sizes), epsilon)
    try:
        riq.compress(model, subject.calibration, replace(settings, k=k, deviation=min(1.0, target * HOPELESS)))
    except TargetError as error:
        steps = math.isqrt(int(k - lowest))
        note = f"far from the target at the largest k, so the {steps} steps of Algorithm 1 up to it were not taken"
        return error.best, note, k
    return None
