"""Seeded random samples, fitted to every input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.calibration.inputs import Sample, sizes
from riq_cli.errors import CalibrationError
from riq_cli.model import ModelInput

_NUMBERS_MAX = 1 << 28  # of one input: 2 GiB where they are drawn


def random_samples(inputs: Sequence[ModelInput], dims: Mapping[str, int], seed: int, count: int) -> list[Sample]:
    """Gaussian floats, token ids within the vocabulary, ones for masks and scalars; the same for the same seed."""
    generator = np.random.default_rng(seed)
    shapes = {item.name: sizes(item, dims) for item in inputs}
    return [
        Sample({item.name: _random_array(item, shapes[item.name], generator) for item in inputs}) for _ in range(count)
    ]


def _random_array(item: ModelInput, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[Any]:
    try:
        dtype = np.dtype(item.fed)
    except TypeError as error:  # such as 8-bit floats
        raise CalibrationError(f"input {item.name!r}: nothing can be made up in {item.dtype}") from error
    if math.prod(shape) > _NUMBERS_MAX:
        raise CalibrationError(
            f"input {item.name!r}: its shape {list(shape)} is too large to make up samples for; give real ones with "
            "--calibration"
        )
    if dtype.kind == "f":
        return np.asarray(generator.standard_normal(shape)).astype(dtype)
    if item.vocabulary is not None:
        return np.asarray(generator.integers(0, item.vocabulary, shape)).astype(dtype)
    if dtype.kind == "O":
        raise CalibrationError(f"input {item.name!r} takes strings; random ones mean nothing: give --calibration")
    if dtype == np.uint8 and math.prod(shape) > 1:  # most often an image
        return np.asarray(generator.integers(0, 256, shape)).astype(dtype)
    return np.ones(shape, dtype)
