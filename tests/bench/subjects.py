"""What is measured: a model with its calibration and held-out data, and the task that it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

import riq_cli as riq
from tests import zoo
from tests.zoo.recipe import batched, runner

SAMPLES = ("cnn", "lstm", "transformer")  # in sample_models/
_FOLDER = Path(__file__).parent.parent.parent / "sample_models"


@dataclass(frozen=True)
class Subject:
    """A model, and all that is needed to judge what compressing does to it.

    Attributes:
        path: the .onnx file.
        calibration: what compress may see.
        heldout: from other sources than the calibration data; nothing but the judge sees it.
        metric: what `score` measures; None where there is no task.
        score: task metric, in [0, 1], of this model or a changed version of it, on all task data.
    """

    path: Path
    calibration: riq.Calibration
    heldout: riq.Calibration
    metric: str | None
    score: Callable[[Path | bytes], float]

    @cached_property
    def before(self) -> float | None:
        """Task metric of the original; None where there is no task."""
        return None if self.metric is None else self.score(self.path)


def title(name: str) -> str:
    """The name as tables show it."""
    return f"{name} (sample)" if name in SAMPLES else name


def get(name: str, samples: int | None = None, heldout: int | None = None) -> Subject:
    """The sample model or the zoo's model of that name, with so many samples; None: all.

    Raises:
        ZooUnavailable: it cannot be had.
    """
    found = entry(name)
    return Subject(
        found.path, some(found.calibration, samples), some(found.heldout, heldout), found.metric, found.score
    )


def entry(name: str) -> _Sample | zoo.ZooModel:
    """The sample model or the zoo's model of that name, with the files of its samples.

    Raises:
        ZooUnavailable: it cannot be had.
    """
    return _Sample(_FOLDER / f"{name}.onnx") if name in SAMPLES else zoo.get(name)


def some(path: Path, count: int | None, draw: int | None = None) -> riq.Calibration:
    """Samples of an .npz file, `count` of them; arrays that stand once for all stay whole.

    They are taken evenly from all, or, with the number of a `draw`, at random.
    """
    with np.load(path) as loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    total = max(len(array) for array in arrays.values() if array.ndim)
    if count is not None and count < total:
        taken = [number * total // count for number in range(count)]
        if draw is not None:
            taken = sorted(np.random.default_rng(draw).permutation(total)[:count])
        arrays = {name: array[taken] if array.ndim and len(array) == total else array for name, array in arrays.items()}
    return riq.Calibration.from_arrays(arrays)


@dataclass(frozen=True)
class _Sample:
    """A model of sample_models/ with what a model of the zoo has."""

    path: Path
    calibration: Path = _FOLDER / "calibration.npz"
    heldout: Path = _FOLDER / "heldout.npz"
    metric: str | None = "accuracy"

    def score(self, model: Path | bytes) -> float:
        """Share of the held-out images whose class is right."""
        with np.load(self.heldout) as loaded:
            logits = batched(runner(model), "image", loaded["image"])
        return float(np.mean(logits.argmax(1) == np.load(_FOLDER / "heldout_labels.npy")))
