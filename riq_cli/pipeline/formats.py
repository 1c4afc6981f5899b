"""Restored model → the same in fewer bits: float16, or the integers of its layers with float32 scales.

A layer's integers are found from its restored weights, which are their products with bin widths, and are compared with
them: where the archive is deployable, the weights that DequantizeLinear computes are the restored ones, bit by bit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from riq_cli.archive import Archive, LayerEntry
from riq_cli.decode import decode_scales
from riq_cli.decode.dequantize import BLOCK, Width, block_widths, cast_product, scaled_widths
from riq_cli.decode.trellis import PARTS
from riq_cli.entropy.codes import Codes, sum_of
from riq_cli.errors import FormatError, ModelError
from riq_cli.model import (
    INTEGER_BITS,
    Layer,
    Model,
    Stored,
    in_half_precision,
    is_contributed,
    trial,
    with_stored,
)
from riq_cli.model.places import opset_of
from riq_cli.model.tensors import computable
from riq_cli.pipeline.weights import is_matrix
from riq_cli.quantize import scalar
from riq_cli.runtime import Array, Runtime, check_runs, half_precision_converter
from riq_cli.text import counted, shortened

Format = Literal["original", "float32", "float16", "int8", "int4"]
_SHARE = 16  # weights at least that share a scale, where that is a choice or lies along several axes


@dataclass(frozen=True)
class Converted:
    """A model in another format, and what became of its layers.

    Attributes:
        model: the model.
        stored: how many layers are stored as `int8`, as `int4`, as `float16`, or as `float32`.
        rounded: names of layers that were rounded, each with the relative error ‖ŵ − w‖ / ‖w‖ of its weights.
        inexact: how many layers differ from their float weights in the last digit, since their scales are no float32.
        contributed: whether nodes are onnxruntime's own, since the model's opset lacks what they do.
    """

    model: Model
    stored: Mapping[str, int]
    rounded: Mapping[str, float]
    inexact: int
    contributed: bool


def check_support(model: Model, most: int, runtime: Runtime) -> None:
    """Return nothing if onnxruntime runs a model with integers of such magnitude in place of weights.

    Raises:
        FormatError: it does not.
    """
    dtype = next(name for name in ("int4", "int8") if most <= _most(name))
    try:
        check_runs(trial(opset_of(model.skeleton), dtype), runtime)
    except ModelError as error:
        raise FormatError(f"a deployable archive would be of no use here: {error}; take another preset") from error


def converted(
    archive: Archive,
    model: Model,
    format: Format,  # noqa: A002
    nearest: bool = False,
    convert_activations: bool = False,
) -> Converted:
    """A restored model in another format.

    Args:
        archive: that the model was restored from.
        model: its layers in their own types.
        format: `float32`, which is the model as it is if its layers are that; `float16`; or `int8` or `int4` for coded
            layers of two axes and 256 weights or more. Layers that do not fit 4 bits have 8.
        nearest: round layers that do not fit 8 bits to the nearest integers that do.
        convert_activations: of float16: convert what the graph computes, too, by onnxruntime's own tool.

    Raises:
        FormatError: some do not fit, and `nearest` is false.
        ModelError: the graph cannot be converted.
    """
    if format == "float32":
        return _as_float32(model)
    stored: dict[int, Stored] = {}
    rounded: dict[str, float] = {}
    misfits: dict[str, list[str]] = {}
    inexact = 0
    opset = opset_of(model.skeleton)
    for number, (layer, (entry, sections)) in enumerate(zip(model.layers, archive.layer_sections(), strict=True)):
        if format == "float16":
            half = _half(layer)
            if half is not None:
                stored[number], rounded[layer.name] = half
        elif format in INTEGER_BITS and entry.bin_width is not None and is_matrix(layer, None):
            try:
                width, axes = _scaling(entry, decode_scales(entry, sections))
                stored[number], is_inexact = _integers(layer, width, axes, format)
                inexact += is_inexact
            except ValueError as error:
                misfits.setdefault(str(error), []).append(layer.name)
                if nearest:
                    stored[number], rounded[layer.name] = _nearest(layer)
    if misfits and not nearest:
        raise _misfit(misfits)
    if convert_activations:
        model = in_half_precision(model, half_precision_converter())
    elif stored:
        model = with_stored(model, stored)
    return Converted(
        model,
        Counter(one.dtype for one in stored.values()),
        rounded,
        inexact,
        any(is_contributed(opset, one) for one in stored.values()),
    )


def _as_float32(model: Model) -> Converted:
    """The model as it is.

    Raises:
        FormatError: layers are of another type; it would need another graph.
    """
    others = [layer for layer in model.layers if layer.dtype != "float32"]
    if others:
        raise FormatError(
            f"{counted(len(others), 'layer')} of the original {'is' if len(others) == 1 else 'are'} {others[0].dtype}, "
            f"such as {shortened(others[0].name)!r}, and what reads them expects that; leave out --format"
        )
    return Converted(model, Counter(layer.dtype for layer in model.layers), {}, 0, False)


def _half(layer: Layer) -> tuple[Stored, float] | None:
    """A layer in float16, and the relative error of its weights; None where float16 is no narrower, or has no range."""
    if layer.dtype not in ("float32", "float64"):
        return None
    with np.errstate(over="ignore"):
        values = layer.values.astype(np.float16)
    if not np.isfinite(values).all():
        return None
    return Stored("float16", values), _relative_error(values.astype(np.float64), layer)


def _scaling(entry: LayerEntry, scales: Sequence[Codes]) -> tuple[Width, range]:
    """What a layer's integers are multiplied by, a number or an array that broadcasts to its shape, and its axes.

    Raises:
        ValueError: scales along axes that cannot be reshaped to one, or nearly as many as weights.
    """
    assert entry.bin_width is not None
    width = entry.bin_width if entry.trellis is None else entry.bin_width / PARTS
    used = sorted(
        axis
        for scale in scales
        for position, axis in enumerate(scale.axes)
        if np.ptp(scale.values, axis=position).any()
    )
    axes = range(used[0], used[-1] + 1) if used else range(0)
    if len(axes) > 1 and _SHARE * math.prod(entry.shape[axis] for axis in axes) > entry.size:
        raise ValueError("with scales along rows and columns")
    if not scales:
        return width, axes
    codes = sum_of([scale.aligned(len(entry.shape)) for scale in scales])
    first = tuple(slice(None) if axis in axes else slice(0, 1) for axis in range(len(entry.shape)))
    return scaled_widths(width, codes[first]), axes


def _integers(layer: Layer, width: Width, axes: range, dtype: str) -> tuple[Stored, bool]:
    """A layer as integers, and whether their products with float32 scales differ from the restored weights.

    Raises:
        ValueError: 8 bits do not hold them.
    """
    values, largest, is_inexact = np.empty(layer.size, np.int8), 0.0, False
    weights, scratch = layer.values.reshape(-1), np.empty(min(BLOCK, layer.size))
    product = np.empty(scratch.size, weights.dtype)
    for begin, steps in zip(range(0, layer.size, BLOCK), block_widths(width, layer.shape), strict=False):
        part = weights[begin : begin + BLOCK]
        block, out = scratch[: part.size], product[: part.size]
        levels = np.rint(computable(part, layer.dtype) / np.float64(steps)) + 0.0  # −0 becomes +0, as integers have it
        largest = max(largest, float(np.abs(levels).max()))
        if largest > _most("int8"):
            raise ValueError("with levels beyond ±127")
        values[begin : begin + BLOCK] = levels
        np.multiply(levels.astype(np.float32), np.float32(steps), out=block)
        cast_product(block, layer.dtype, 1.0, block, out)
        is_inexact = is_inexact or out.tobytes() != part.tobytes()
    in_function = any(place.startswith("functions") for place in layer.places)
    is_gathered = "Gather" in layer.op.split(", ")  # onnxruntime's Gather takes no 4-bit integers
    kind = dtype if largest <= _most(dtype) and not in_function and not is_gathered else "int8"
    if not axes:
        return Stored(kind, values.reshape(layer.shape), np.asarray(width, np.float32).reshape(())), is_inexact
    along = [length if axis in axes else 1 for axis, length in enumerate(layer.shape)]
    scales = np.broadcast_to(width, along).astype(np.float32).reshape(-1)
    shape = (*layer.shape[: axes.start], scales.size, *layer.shape[axes.stop :])
    return Stored(kind, values.reshape(shape), scales, axes.start), is_inexact


def _nearest(layer: Layer) -> tuple[Stored, float]:
    """A layer rounded to 8-bit integers, with scales along the axis of least error, and its relative error."""
    weights = scalar.widened(layer.values, layer.dtype)
    axes: list[int | None] = [n for n, length in enumerate(layer.shape) if layer.size >= _SHARE * length > _SHARE]
    if layer.op == "MatMul" and 1 in axes:  # onnxruntime multiplies by integers with scales of columns alone
        axes = [1]
    found = []
    for axis in axes or [None]:
        others = tuple(other for other in range(weights.ndim) if other != axis)
        peaks = np.abs(weights).max(axis=others, keepdims=True)
        scales = scalar.short_width(np.where(peaks > 0, peaks, 1.0) / _most("int8"))
        levels = np.rint(weights / scales)
        flat = scales.astype(np.float32).reshape(() if axis is None else -1)
        error = _relative_error(levels * scales, layer)
        found.append((Stored("int8", levels.astype(np.int8), flat, axis), error))
    return min(found, key=lambda one: one[1])


def _most(dtype: str) -> int:
    """The largest magnitude of an integer: that of the smallest has no opposite, and stays unused."""
    return int(2 ** (INTEGER_BITS[dtype] - 1)) - 1


def _relative_error(values: Array, layer: Layer) -> float:
    """‖ŵ − w‖ / ‖w‖ of weights in float64; 0 where all are zero."""
    weights = scalar.widened(layer.values, layer.dtype)
    norm = float(np.linalg.norm(weights))
    return float(np.linalg.norm(values - weights)) / norm if norm else 0.0


def _misfit(misfits: Mapping[str, Sequence[str]]) -> FormatError:
    """The error that integers do not hold some layers, named by the reason."""
    reasons = "; ".join(
        f"{counted(len(names), 'layer')} {reason}, such as {shortened(names[0])!r}" for reason, names in misfits.items()
    )
    return FormatError(
        f"integers of 8 bits do not hold {reasons}; compress with --preset deployable, or round these layers to 8 bits "
        "with --nearest, which riq verify --nearest measures"
    )
