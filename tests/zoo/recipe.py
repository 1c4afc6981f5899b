"""What a family file says of one model, and the few helpers all families share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], list[np.ndarray]]  # feeds one batch, returns all outputs in the graph's order
Score = Callable[[Run, Arrays, Arrays], float]  # (run, held-out arrays, task arrays) -> metric

THREADS = 2  # fixed: sums over threads round differently, and scores are to repeat


@dataclass(frozen=True)
class Recipe:
    """How one model of the zoo is made.

    Attributes:
        build: writes model.onnx, calibration.npz, heldout.npz and, for a task, task.npz into a folder.
        metric: what `score` measures; None where there is no task.
        score: task metric of a model from its run function, the held-out arrays and the task arrays.
        revision: raised when `build` changes what it writes; names the folder in the cache.
    """

    build: Callable[[Path], None]
    metric: str | None = None
    score: Score | None = None
    revision: int = 1


def runner(model: Path | bytes) -> Run:
    """A function feeds -> outputs that runs the model in onnxruntime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # several of these models draw warnings about unused initializers
    options.intra_op_num_threads = THREADS
    options.use_deterministic_compute = True
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, dict(feeds))


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Save as compressed .npz; the same arrays give the same bytes."""
    np.savez_compressed(path, allow_pickle=False, **arrays)


def write_samples(folder: Path, calibration: Arrays, heldout: Arrays, task: Arrays | None = None) -> None:
    """calibration.npz, heldout.npz and, if given, task.npz."""
    write_arrays(folder / "calibration.npz", calibration)
    write_arrays(folder / "heldout.npz", heldout)
    if task is not None:
        write_arrays(folder / "task.npz", task)


def batched(run: Run, name: str, rows: np.ndarray, size: int = 16) -> np.ndarray:
    """First output for all rows of a one-input model, `size` rows at a time."""
    return np.concatenate([run({name: rows[i : i + size]})[0] for i in range(0, len(rows), size)])
