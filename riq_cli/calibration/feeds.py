"""Whole feeds: what callables give, what ONNX test data holds, and what is drawn at random."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.calibration.arrays import cut
from riq_cli.calibration.inputs import Feed, Sample, Warn, as_taken, check_names, fits, shape_error, sizes
from riq_cli.callables import blamed, imported
from riq_cli.errors import CalibrationError, ModelError
from riq_cli.model import ModelInput, read_tensor_file

_NUMBERS_MAX = 1 << 28  # of one random input: 2 GiB where they are drawn


def whole_feeds(feeds: Iterable[Mapping[str, NDArray[Any]]], inputs: Sequence[ModelInput], warn: Warn) -> list[Sample]:
    """Samples from feeds that are each what one run takes."""
    return [Sample(_whole_feed(feed, inputs, warn)) for feed in feeds]


def _whole_feed(feed: Mapping[str, NDArray[Any]], inputs: Sequence[ModelInput], warn: Warn) -> Feed:
    check_names(feed, inputs)
    taken = {}
    for item in inputs:
        array = taken[item.name] = as_taken(np.asarray(feed[item.name]), item, warn)
        if not fits(array.shape, item):
            raise shape_error(array.shape, item, partial(fits, item=item))
    return taken


def called(module: str, name: str, inputs: Sequence[ModelInput], batch: int, warn: Warn) -> list[Sample]:
    """Samples from `module:callable`: arrays by input, as in an .npz file; feeds; or a CalibrationDataReader.

    Raises:
        CalibrationError: whatever goes wrong in the module, which is the user's own, or samples that do not fit.
    """
    source = imported(f"{module}:{name}", CalibrationError)
    with blamed(f"{module}:{name}", CalibrationError):
        result = source() if callable(source) else source
        reader = getattr(result, "get_next", None)
        feeds = list(iter(reader, None)) if reader is not None else list(result)
    if isinstance(result, Mapping):
        return cut({key: np.asarray(array) for key, array in result.items()}, inputs, batch, warn)
    for feed in feeds:
        if not isinstance(feed, Mapping):
            raise CalibrationError(
                f"{module}:{name}: gives a list of {type(feed).__name__}; give one mapping from input names to arrays, "
                "with a row for each sample, or a list of such mappings, one for each run of the model"
            )
    return whole_feeds(feeds, inputs, warn)


def test_data(sets: Sequence[Path], inputs: Sequence[ModelInput], warn: Warn) -> list[Sample]:
    """Samples from folders of ONNX test data.

    Raises:
        CalibrationError: a file that holds no tensor or has no number, or not as many as the model has inputs.
    """
    feeds = []
    for folder in sets:
        try:
            tensors = [read_tensor_file(file) for file in sorted(folder.glob("input_*.pb"), key=_number)]
        except ModelError as error:
            raise CalibrationError(str(error)) from error
        if len(tensors) != len(inputs):
            raise CalibrationError(f"{folder}: holds {len(tensors)} inputs, the model has {len(inputs)}")
        named = {name for name, _ in tensors} == {item.name for item in inputs}
        feeds.append({name if named else item.name: array for (name, array), item in zip(tensors, inputs, strict=True)})
    return whole_feeds(feeds, inputs, warn)


def _number(file: Path) -> int:
    digits = file.stem.removeprefix("input_")
    if not digits.isdecimal():
        raise CalibrationError(f"{file}: has no number; ONNX test data is input_0.pb, input_1.pb and so on")
    return int(digits)


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
