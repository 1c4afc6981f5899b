"""One model and one set of settings: compressed, saved, opened again, and judged on data that compress did not see."""

from __future__ import annotations

import math
import shutil
import subprocess
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
        seconds: of compress, of the processor.
        evaluations: of all layers together.
        metric: the task's, `before` and `after`; None where there is no task.
        bytes: of the archive's file.
        rate: bits per coded weight, tables included.
        deviation: of the restored model on the calibration data, `heldout` on the held-out data.
    """

    source_bytes: int
    seconds: float
    evaluations: int = 0
    metric: str | None = None
    before: float | None = None
    after: float | None = None
    bytes: int | None = None
    rate: float | None = None
    deviation: float | None = None
    heldout: float | None = None

    @property
    def ratio(self) -> float | None:
        """Real bytes over real bytes."""
        return None if self.bytes is None else self.source_bytes / self.bytes


def measure(subject: Subject, settings: riq.Settings) -> Measurement:
    """Compress a model, and measure what the archive's file restores."""
    model = riq.Model.load(subject.path)
    assert model.source is not None
    began = time.process_time()
    if _is_hopeless(subject, model, settings):
        return Measurement(model.source.bytes, time.process_time() - began)
    began = time.process_time()
    try:
        archive = riq.compress(model, subject.calibration, settings)
    except TargetError:
        return Measurement(model.source.bytes, time.process_time() - began)
    seconds = time.process_time() - began
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.riqz"
        archive.save(path)
        with riq.Archive.open(path) as opened:
            result = opened.manifest.result
            return Measurement(
                source_bytes=model.source.bytes,
                seconds=seconds,
                evaluations=result.get("evaluations", 0),
                metric=subject.metric,
                before=subject.before,
                after=None if subject.metric is None else subject.score(riq.decompress(opened).to_bytes()),
                bytes=path.stat().st_size,
                rate=report.totals(opened).rate,
                deviation=finite(result.get("deviation", 0.0)),  # none where there was nothing to code
                heldout=finite(riq.verify(opened, model, subject.heldout).mean),
            )


def zipped(path: Path) -> int | None:
    """Bytes of a file after `zstd -19`; None where there is no zstd."""
    if not shutil.which("zstd"):
        return None
    return len(subprocess.run(["zstd", "-19", "-c", path], capture_output=True, check=True).stdout)


def finite(value: float) -> float | None:
    """The value, or None for what JSON cannot hold."""
    return value if math.isfinite(value) else None


def _is_hopeless(subject: Subject, model: riq.Model, settings: riq.Settings) -> bool:
    """Whether Algorithm 1 is asked for and even its largest k is far from the target.

    It would walk up to there in √(k_max − k_min) steps, hundreds of evaluations, to say the same.
    """
    target, epsilon = settings.deviation, settings.epsilon
    sizes = [layer.size for layer in model.layers if is_matrix(layer, settings.min_size)]
    if settings.search != "algorithm1" or not epsilon or target is None or not sizes:
        return False
    k = search.upper_bound(max(sizes), epsilon)
    try:
        riq.compress(model, subject.calibration, replace(settings, k=k, deviation=min(1.0, target * HOPELESS)))
    except TargetError:
        return True
    return False
