"""Activations → the ranges that their integers are to hold."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from riq_cli.model import Activation
from riq_cli.runtime.deviation import Array
from riq_cli.runtime.observer import Observer

ActivationMethod = Literal["minmax", "entropy", "percentile"]

_BINS = {"entropy": 512, "percentile": 2048}  # of histograms
_INTEGERS = 128  # bins that stand for those of the grid, in the divergence
_PERCENTILE = 99.99


def activation_ranges(observer: Observer, tensors: Sequence[str], method: ActivationMethod) -> dict[str, Activation]:
    """What is seen of activations, by their names; those that are not float32, or always 0, are left out.

    Args:
        observer: runs the samples.
        tensors: names in its form's main graph.
        method: `minmax`: the range of all values. `percentile`: that of 99.99 % of them. `entropy`: the range at which
            the values and their integers have the least Kullback–Leibler divergence. The last two are onnxruntime's.

    Raises:
        ModelError: onnxruntime cannot run the model.
    """
    found: dict[str, Activation] = {}
    for name, values in _finite(observer, tensors):
        low, high = float(values.min()), float(values.max())
        if name in found:
            low, high = min(low, found[name].low), max(high, found[name].high)
        found[name] = Activation(low, high, values.shape)
    found = {name: one for name, one in found.items() if one.low or one.high}
    if method == "minmax" or not found:
        return found
    from onnxruntime.quantization.calibrate import HistogramCollector  # it takes a while, and most do without

    collector = HistogramCollector(method, False, _BINS[method], _INTEGERS, _PERCENTILE, "same")
    with contextlib.redirect_stdout(io.StringIO()):  # to which the collector prints
        for name, one in found.items():  # so that bins span the whole range: they would multiply with it
            collector.collect({name: np.array([one.low, one.high], np.float32)})
        for name, values in _finite(observer, list(found)):
            collector.collect({name: values})
        ranges = collector.compute_collection_result()
    return {name: replace(one, low=float(ranges[name][0]), high=float(ranges[name][1])) for name, one in found.items()}


def _finite(observer: Observer, tensors: Sequence[str]) -> Iterator[tuple[str, Array]]:
    """Names and values of those activations that are float32, sample by sample; 0 in place of NaN and infinity."""
    for name, _, values in observer.activations(tensors):
        if values.dtype == np.float32 and values.size:
            yield name, np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
