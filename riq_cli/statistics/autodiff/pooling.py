"""Rules of MaxPool, AveragePool, BatchNormalization, Resize and Upsample: gradients of what is pooled or resized.

Averages and resizing act on each axis alone, so they go back as products with one matrix for each axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.model import Operation
from riq_cli.statistics.autodiff.rule import Array, Floats, Gradients, NoRuleError, Rule
from riq_cli.statistics.autodiff.windows import AxisMap, Windows, sliding

_BUFFER = 1 << 17  # elements worked on at a time: what a processor's cache holds
_HALF = 1e-5  # coordinates are no more exact than this, those about as near to a half are taken as one


def _max_pool(
    operation: Operation,
    inputs: Sequence[Array | None],
    outputs: Sequence[Floats | None],
    wanted: Sequence[bool],
) -> Gradients:
    source, gradient = inputs[0], outputs[0]
    if gradient is None or source is None or not wanted[0]:
        return [None]
    windows = sliding(operation.attributes, operation.attributes["kernel_shape"], source.shape[2:], gradient.shape[3:])
    maps = source.reshape(-1, *windows.sizes)
    changes = gradient.reshape(len(gradient), len(maps), *windows.counts)
    result = np.zeros((len(gradient), *maps.shape), np.float32)
    apart = all(size <= stride for size, stride in zip(windows.kernel, windows.strides, strict=True))
    step = max(1, _BUFFER // max(1, math.prod(windows.sizes)))
    for begin in range(0, len(maps), step):
        block = slice(begin, begin + step)
        winners = _winners(windows, maps[block].astype(np.float32, copy=False))
        for tap, having, places in windows.taps():
            won = (winners[having] == tap).astype(np.float32)
            change, target = changes[:, block][having], result[:, block][places]
            if apart and windows.dilations == (1,) * len(windows.kernel):
                np.multiply(change, won, out=target)
            else:
                target += change * won
    return [result.reshape(len(gradient), *source.shape)]


def _winners(windows: Windows, maps: Floats) -> NDArray[np.unsignedinteger]:
    """Number of the tap that has each window's largest element; of equal ones, the first."""
    best = np.full((len(maps), *windows.counts), -np.inf, np.float32)
    kind = np.min_scalar_type(math.prod(windows.kernel))
    winners = np.zeros(best.shape, kind)
    for tap, having, places in windows.taps():
        elements = np.ascontiguousarray(maps[places])
        better = elements > best[having]
        np.maximum(best[having], elements, out=best[having])
        # Taps come in order: the last that is larger than all before it has the largest number.
        np.maximum(winners[having], better * kind.type(tap), out=winners[having])
    return winners


def _average_pool(
    operation: Operation,
    inputs: Sequence[Array | None],
    outputs: Sequence[Floats | None],
    wanted: Sequence[bool],
) -> Gradients:
    source, gradient = inputs[0], outputs[0]
    if gradient is None or source is None or not wanted[0]:
        return [None]
    attributes = operation.attributes
    windows = sliding(attributes, attributes["kernel_shape"], source.shape[2:], gradient.shape[3:])
    for axis in range(len(windows.kernel)):
        gradient = _averaging(windows, axis, _end(attributes, windows, axis)).transposed(gradient, axis + 3)
    return [gradient]


def _end(attributes: Mapping[str, Any], windows: Windows, axis: int) -> int | None:
    """Where on an axis what AveragePool counts as elements ends; None where it counts none of the padding."""
    if not attributes.get("count_include_pad"):
        return None
    word, axes = attributes.get("auto_pad", "NOTSET"), len(windows.kernel)
    if word.startswith("SAME"):
        return windows.sizes[axis] + (windows.kernel[axis] - 1) * windows.dilations[axis]
    behind = (attributes.get("pads") or [0] * 2 * axes)[axes + axis] if word == "NOTSET" else 0
    return windows.sizes[axis] + int(behind)


def _averaging(windows: Windows, axis: int, end: int | None) -> AxisMap:
    """The mean of every window along an axis; padding before `end` counts as zeros."""
    taps = np.arange(windows.kernel[axis])[:, None] * windows.dilations[axis]
    places = np.arange(windows.counts[axis]) * windows.strides[axis] - windows.before[axis] + taps
    size = windows.sizes[axis]
    exist = (places >= 0) & (places < size)
    counted = exist if end is None else places < end
    weights = exist / np.maximum(1, counted.sum(axis=0))
    return AxisMap(np.clip(places, 0, size - 1), weights.astype(np.float32), size)


def _batch_normalization(
    operation: Operation,
    inputs: Sequence[Array | None],
    outputs: Sequence[Floats | None],
    wanted: Sequence[bool],
) -> Gradients:
    attributes = operation.attributes
    if outputs[0] is None:
        return [None] * len(inputs)
    if attributes.get("training_mode") or (operation.version < 14 and any(operation.outputs[1:])):
        raise NoRuleError("BatchNormalization in training")
    result, gradient = list[Floats | None]([None] * len(inputs)), outputs[0]
    source, scale, _, mean, variance = inputs
    if source is None or scale is None or mean is None or variance is None:
        return result
    if (
        source.ndim < 2
        or attributes.get("spatial", 1) == 0
        or (operation.version < 7 and not attributes.get("is_test"))
    ):
        raise NoRuleError("BatchNormalization of other statistics than the channels'")
    deviation = np.sqrt(variance.astype(np.float32) + np.float32(attributes.get("epsilon", 1e-5)))
    slope = scale.astype(np.float32) / deviation
    if wanted[0]:
        result[0] = gradient * slope.reshape(-1, *[1] * (source.ndim - 2))
    if not any(wanted[1:]):
        return result
    sums = gradient.sum(axis=(1, *range(3, gradient.ndim)))
    centred = source.astype(np.float32, copy=False) - mean.astype(np.float32).reshape(-1, *[1] * (source.ndim - 2))
    products = np.einsum("pnc...,nc...->pc...", gradient, centred).reshape(*sums.shape, -1).sum(axis=-1) / deviation
    found = [products, sums, -sums * slope, -0.5 * products * slope / deviation]
    return [result[0], *(value if want else None for value, want in zip(found, wanted[1:], strict=True))]


def _upsample(
    operation: Operation,
    inputs: Sequence[Array | None],
    outputs: Sequence[Floats | None],
    wanted: Sequence[bool],
) -> Gradients:
    """The rule of Upsample, and of Resize before it knew coordinates."""
    if outputs[0] is None:
        return [None] * len(inputs)
    scales = operation.attributes.get("scales")
    if len(inputs) > 1 and inputs[1] is not None:
        scales = [float(scale) for scale in inputs[1]]
    if scales is None:
        raise NoRuleError("Upsample without scales")
    mode = operation.attributes.get("mode", "nearest")
    words = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "simple"}
    return _resized(words, inputs, outputs[0], wanted, range(len(scales)), scales)


def _resize(
    operation: Operation,
    inputs: Sequence[Array | None],
    outputs: Sequence[Floats | None],
    wanted: Sequence[bool],
) -> Gradients:
    """The rule of Resize."""
    if operation.version < 11:
        return _upsample(operation, inputs, outputs, wanted)
    source, attributes = inputs[0], operation.attributes
    if source is None or outputs[0] is None:
        return [None] * len(inputs)
    if attributes.get("antialias") or attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NoRuleError("Resize with antialias or keep_aspect_ratio_policy")
    axes = [axis % source.ndim for axis in attributes.get("axes") or range(source.ndim)]
    given, sizes = (inputs[place] if len(inputs) > place else None for place in (2, 3))
    if given is not None and given.size:
        scales = [float(scale) for scale in given]
    elif sizes is not None and sizes.size:
        scales = [int(size) / source.shape[axis] for size, axis in zip(sizes, axes, strict=True)]
    else:
        raise NoRuleError("Resize without scales or sizes")
    return _resized(attributes, inputs, outputs[0], wanted, axes, scales)


def _resized(
    attributes: Mapping[str, Any],
    inputs: Sequence[Array | None],
    gradient: Floats | None,
    wanted: Sequence[bool],
    axes: Sequence[int],
    scales: Sequence[float],
) -> Gradients:
    result, source = list[Floats | None]([None] * len(inputs)), inputs[0]
    if gradient is None or source is None or not wanted[0]:
        return result
    for axis, scale in reversed(list(zip(axes, scales, strict=True))):
        size, length = source.shape[axis], gradient.shape[axis + 1]
        if scale != 1 or size != length:
            gradient = _axis_map(attributes, scale, size, length).transposed(gradient, axis + 1)
    result[0] = gradient
    return result


def _axis_map(attributes: Mapping[str, Any], scale: float, size: int, length: int) -> AxisMap:
    mode = attributes.get("mode", "nearest")
    exact = _coordinates(attributes.get("coordinate_transformation_mode", "half_pixel"), scale, size, length)
    if mode == "nearest":
        word = attributes.get("nearest_mode", "round_prefer_floor")
        if word == "simple":  # what runtimes do where the version knows no such attribute
            word = "floor" if scale >= 1 else "ceil"
        places = _nearest(word, exact)[None]
        return AxisMap(np.clip(places, 0, size - 1), np.ones(places.shape, np.float32), size)
    if mode in ("linear", "bilinear", "trilinear"):
        exact = np.clip(exact, 0, size - 1)
        first = np.floor(exact)
        part = exact - first
        places, weights = np.stack([first, first + 1]).astype(np.int64), np.stack([1 - part, part])
        return AxisMap(np.clip(places, 0, size - 1), weights.astype(np.float32), size)
    if mode == "cubic":
        return _cubic(attributes, exact, size)
    raise NoRuleError(f"Resize with mode {mode}")


def _coordinates(word: str, scale: float, size: int, length: int) -> Floats:
    """Where on an axis of the input each element of the output lies; in float32, as runtimes round."""
    place, factor = np.arange(length, dtype=np.float32), np.float32(scale)
    half = np.float32(0.5)
    if word == "asymmetric":
        return place / factor
    if word == "align_corners":
        return place * np.float32(size - 1) / np.float32(max(1, length - 1))
    if word == "pytorch_half_pixel" and length == 1:
        return np.zeros(1, np.float32)
    if word in ("half_pixel", "pytorch_half_pixel"):
        return (place + half) / factor - half
    if word == "half_pixel_symmetric":
        lost = np.float32(1) - np.float32(length) / (factor * np.float32(size))
        return np.float32(size / 2) * lost + (place + half) / factor - half
    raise NoRuleError(f"Resize with coordinate_transformation_mode {word}")


def _nearest(word: str, exact: Floats) -> NDArray[np.int64]:
    if word.startswith("round"):
        halves = np.rint(2 * exact) / 2
        exact = np.where(np.abs(exact - halves) < _HALF, halves, exact)
    if word == "round_prefer_floor":
        found = np.ceil(exact - 0.5)
    elif word == "round_prefer_ceil":
        found = np.floor(exact + 0.5)
    elif word == "floor":
        found = np.floor(exact)
    elif word == "ceil":
        found = np.ceil(exact)
    else:
        raise NoRuleError(f"Resize with nearest_mode {word}")
    return np.asarray(found, np.int64)


def _cubic(attributes: Mapping[str, Any], exact: Floats, size: int) -> AxisMap:
    sharpness = attributes.get("cubic_coeff_a", -0.75)
    places = np.floor(exact) + np.arange(-1, 3)[:, None]
    far = np.abs(exact - places)
    near = (sharpness + 2) * far**3 - (sharpness + 3) * far**2 + 1
    weights = np.where(far <= 1, near, sharpness * (far**3 - 5 * far**2 + 8 * far - 4))
    if attributes.get("exclude_outside"):
        weights = np.where((places >= 0) & (places < size), weights, 0)
        weights /= weights.sum(axis=0)
    return AxisMap(np.clip(places, 0, size - 1).astype(np.int64), weights.astype(np.float32), size)


RULES: dict[str, Rule] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Resize": _resize,
    "Upsample": _upsample,
}
