"""Whole feeds: from callables, and checked against the inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.calibration.inputs import Sample, check_dtype, check_names, fits, shape_error
from riq_cli.callables import imported
from riq_cli.errors import CalibrationError
from riq_cli.model import ModelInput
from riq_cli.text import first_line


def whole_feeds(feeds: Iterable[Mapping[str, NDArray[Any]]], inputs: Sequence[ModelInput]) -> list[Sample]:
    """Samples from feeds that are each what one run takes."""
    samples = []
    for feed in feeds:
        check_names(feed, inputs)
        for item in inputs:
            array = np.asarray(feed[item.name])
            check_dtype(array, item)
            if not fits(array.shape, item):
                raise shape_error(array, item)
        samples.append(Sample({name: np.asarray(array) for name, array in feed.items()}))
    return samples


def call(module: str, name: str) -> Iterable[Mapping[str, NDArray[Any]]]:
    """The feeds from `module:callable`: an iterable, or an onnxruntime CalibrationDataReader.

    Raises:
        CalibrationError: whatever goes wrong in the module, which is the user's own.
    """
    source = imported(f"{module}:{name}", CalibrationError)
    try:
        result = source() if callable(source) else source
        reader = getattr(result, "get_next", None)
        feeds = list(iter(reader, None)) if reader is not None else list(result)
    except Exception as error:
        raise CalibrationError(f"{module}:{name}: {type(error).__name__}: {first_line(error)}") from error
    for feed in feeds:
        if not isinstance(feed, Mapping):
            raise CalibrationError(
                f"{module}:{name}: gives {type(feed).__name__}, not feeds: mappings from input names to arrays"
            )
    return feeds
