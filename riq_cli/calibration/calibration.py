"""Calibration data: from files, folders and callables to samples that fit a model's inputs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from riq_cli.calibration.arrays import cut, read_numpy
from riq_cli.calibration.feeds import called, random_samples, test_data, whole_feeds
from riq_cli.calibration.images import IMAGE_SUFFIXES, ImageOptions, image_samples
from riq_cli.calibration.inputs import Sample, Warn, describe, unknown_dimensions
from riq_cli.errors import CalibrationError
from riq_cli.model import ModelInput
from riq_cli.text import counted, fingerprint

RANDOM_SAMPLES = 4
_ENOUGH = 8  # samples that differ from each other: fewer tell little of others
_WANTED = 16


@dataclass(frozen=True)
class Calibration:
    """Calibration data that still has to be fitted to a model's inputs, by `samples`.

    `kind` says where it came from (`npz`, `npy`, `test-data`, `images`, `python`, `random`); `fit` makes the feeds.
    """

    kind: str
    fit: Callable[[Sequence[ModelInput], Mapping[str, int], int, Warn], list[Sample]] = field(repr=False)

    @classmethod
    def load(
        cls, source: str | os.PathLike[str], images: ImageOptions | None = None, without: str | None = None
    ) -> Calibration:
        """The calibration data in a file or folder, or from `module:callable`.

        Args:
            source: `.npz` (input name → array), `.npy` (for a model with one input), a folder of ONNX test data
                (`test_data_set_*/input_*.pb`), a folder of images, or `module:callable`.
            images: how images become inputs.
            without: an array of an `.npz` that is no input, such as labels.

        Raises:
            CalibrationError: it cannot be read or is none of these.
        """
        text, path = os.fspath(source), Path(source)
        if path.is_dir():
            return _from_folder(path, images or ImageOptions())
        if path.suffix in (".npz", ".npy"):
            return cls.from_arrays(read_numpy(path, without), "npz" if path.suffix == ".npz" else "npy")
        module, colon, name = text.partition(":")
        if colon and not path.exists():
            return cls("python", lambda inputs, dims, batch, warn: called(module, name, inputs, batch, warn))
        if not path.exists():
            raise CalibrationError(f"{path}: no such file or folder")
        raise CalibrationError(
            f"{path}: not calibration data: give an .npz or .npy file, a folder of images or tests, module:callable"
        )

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]] | NDArray[Any], kind: Literal["npz", "npy"] = "npz"
    ) -> Calibration:
        """Calibration data in memory: input name → array, or one array for a model with one input.

        An array with as many axes as the input is cut along the batch axis; with one axis more, each row is a whole
        input; an array of one sample stands for all.
        """
        return cls(kind, lambda inputs, dims, batch, warn: cut(arrays, inputs, batch, warn))

    @classmethod
    def from_feeds(cls, feeds: Iterable[Mapping[str, NDArray[Any]]]) -> Calibration:
        """Calibration data as whole feeds, each what one run of the model takes."""
        kept = [dict(feed) for feed in feeds]
        return cls("python", lambda inputs, dims, batch, warn: whole_feeds(kept, inputs, warn))

    @classmethod
    def random(cls, seed: int = 0, samples: int = RANDOM_SAMPLES) -> Calibration:
        """Seeded random samples fitted to every input: the paper's Fig. 1a shows that they predict poorly."""
        return cls("random", lambda inputs, dims, batch, warn: random_samples(inputs, dims, seed, samples))

    def samples(
        self,
        inputs: Sequence[ModelInput],
        dims: Mapping[str, int] | None = None,
        batch: int = 1,
        warn: Warn | None = None,
    ) -> list[Sample]:
        """What to run the model on, at least one sample.

        Args:
            inputs: the model's inputs.
            dims: sizes of free dimensions, by name; only random data and images need them.
            batch: samples in one run, where the batch axis is free.
            warn: called with what the user should know, such as conversions, or sizes of dimensions that are not there.

        Raises:
            CalibrationError: names, shapes or types do not fit the inputs, or a free dimension has no size.
        """
        taken = ", ".join(map(describe, inputs)) or "no inputs"
        notes = [
            f"no dimension is named {name!r}; the model takes {taken}"
            for name in unknown_dimensions(dims or {}, inputs)
        ]
        samples = self.fit(inputs, dims or {}, batch, notes.append)
        for note in dict.fromkeys(notes):  # each feed may have the same to say
            if warn is not None:
                warn(note)
        if not samples:
            raise CalibrationError("the data holds no samples")
        return samples


def digest(samples: Iterable[Sample]) -> str:
    """The fingerprint of samples, from a SHA-256 of their names, types, shapes and values, in order."""
    result = hashlib.sha256()
    for sample in samples:
        for name, array in sorted(sample.feed.items()):
            result.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
            if array.dtype.kind == "O":  # strings; the array itself holds addresses
                for text in map(str, array.ravel()):
                    result.update(f"{len(text)}\0{text}".encode(errors="surrogatepass"))
            else:
                result.update(np.ascontiguousarray(array).tobytes())
    return fingerprint(result.hexdigest())


def scarcity(samples: Sequence[Sample]) -> str | None:
    """A warning that there are few samples, or few that differ, and what to do; None if there are enough."""
    count = sum(sample.rows for sample in samples)
    rows: dict[str, int] = {}  # of samples that differ from each other
    for sample in samples:
        rows.setdefault(digest([sample]), sample.rows)
        if sum(rows.values()) >= _ENOUGH:
            return None
    different = sum(rows.values())
    if different == count:
        found = f"only {counted(count, 'sample')}"
    elif len(rows) == 1:
        found = f"the {count} samples are all the same"
    else:
        found = f"only {different} of the {count} samples differ"
    return f"{found}: on others the deviation may be many times as large; give {_WANTED} samples or more that differ"


def _from_folder(path: Path, options: ImageOptions) -> Calibration:
    sets = sorted(folder for folder in path.glob("test_data_set_*") if folder.is_dir())
    if not sets and any(path.glob("input_*.pb")):
        sets = [path]
    if sets:
        return Calibration("test-data", lambda inputs, dims, batch, warn: test_data(sets, inputs, warn))
    images = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise CalibrationError(f"{path}: holds neither images nor ONNX test data (test_data_set_*/input_*.pb)")
    return Calibration("images", lambda inputs, dims, batch, warn: image_samples(images, inputs, dims, batch, options))
