"""Whole feeds: from callables, and checked against the inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.calibration.inputs import Feed, Sample, Warn, as_taken, check_names, fits, shape_error
from riq_cli.callables import blamed, imported
from riq_cli.errors import CalibrationError
from riq_cli.model import ModelInput


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


def call(module: str, name: str) -> Iterable[Mapping[str, NDArray[Any]]]:
    """The feeds from `module:callable`: an iterable, or an onnxruntime CalibrationDataReader.

    Raises:
        CalibrationError: whatever goes wrong in the module, which is the user's own.
    """
    source = imported(f"{module}:{name}", CalibrationError)
    with blamed(f"{module}:{name}", CalibrationError):
        result = source() if callable(source) else source
        reader = getattr(result, "get_next", None)
        feeds = list(iter(reader, None)) if reader is not None else list(result)
    for feed in feeds:
        if not isinstance(feed, Mapping):
            raise CalibrationError(
                f"{module}:{name}: gives {type(feed).__name__}, not feeds: mappings from input names to arrays"
            )
    return feeds
