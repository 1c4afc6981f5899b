"""Linear maps that act on each axis alone, and the rules made of them: AveragePool, Resize and Upsample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from riq_cli.statistics.autodiff.rule import Array, Call, Floats, Gradients, NoRuleError, Rule
from riq_cli.statistics.autodiff.windows import Windows

_BLOCK = 128  # elements of an axis that one dense matrix maps; long axes would make a single one huge
_HALF = 1e-5  # coordinates are no more exact than this, those about as near to a half are taken as one


def mapped_back(gradient: Floats, axis: int, places: Array, weights: Array, size: int) -> Floats:
    """Gradient of the input of a linear map of one axis, from that of its output.

    Args:
        gradient: of the output.
        axis: of the gradient.
        places: [taps, outputs] along the input's axis; those beyond its ends stand for the ends.
        weights: [taps, outputs] of the input's elements at these places, which are summed over taps.
        size: of the input's axis.
    """
    length, places = gradient.shape[axis], np.clip(places, 0, size - 1).astype(np.intp)
    outer, inner = gradient.shape[:axis], gradient.shape[axis + 1 :]
    last = axis == gradient.ndim - 1
    source = gradient.reshape(-1, length) if last else gradient.reshape(-1, length, math.prod(inner))
    result = np.zeros((source.shape[0], size, *source.shape[2:]), np.float32)
    for begin in range(0, length, _BLOCK):
        block = slice(begin, begin + _BLOCK)
        low, high = int(places[:, block].min()), int(places[:, block].max()) + 1
        matrix = np.zeros((min(_BLOCK, length - begin), high - low), np.float32)
        for place, weight in zip(places[:, block], weights[:, block], strict=True):
            matrix[np.arange(len(place)), place - low] += weight  # several taps may lie on one element
        part = source[:, block] @ matrix if last else matrix.T @ source[:, block]
        if part.shape == result.shape and length <= _BLOCK:
            result = part  # it is the only one
        else:
            result[:, low:high] += part
    return result.reshape(*outer, size, *inner)


def _average_pool(call: Call) -> Gradients:
    attributes, gradient = call.attributes, call.gradient
    windows = Windows.of(call, attributes["kernel_shape"], call.value(0).shape[2:], gradient.shape[3:])
    word, pads = attributes.get("auto_pad", "NOTSET"), attributes.get("pads")
    for axis, size in enumerate(windows.sizes):
        taps = np.arange(windows.kernel[axis])[:, None] * windows.dilations[axis]
        places = np.arange(windows.counts[axis]) * windows.strides[axis] - windows.before[axis] + taps
        exist = counted = (places >= 0) & (places < size)
        if attributes.get("count_include_pad"):  # padding counts as zeros, but not what a last window has beyond it
            behind = pads[len(windows.kernel) + axis] if pads and word == "NOTSET" else 0
            counted = places < (places.max() + 1 if word.startswith("SAME") else size + behind)
        gradient = mapped_back(gradient, axis + 3, places, exist / np.maximum(1, counted.sum(axis=0)), size)
    return [gradient]


def _resize(call: Call) -> Gradients:
    attributes, x, gradient = call.attributes, call.value(0), call.gradient
    scales = call.optional(2)
    if call.operation.version < 11:  # Upsample, and Resize before it knew coordinates
        scales = np.asarray(attributes["scales"]) if "scales" in attributes else call.value(1)
        words = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "simple"}
        attributes = {"mode": attributes.get("mode", "nearest"), **words}
    if attributes.get("antialias") or attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NoRuleError("Resize with antialias or keep_aspect_ratio_policy")
    axes = [axis % x.ndim for axis in attributes.get("axes") or range(x.ndim)]
    if scales is None or not scales.size:
        scales = np.array([size / x.shape[axis] for size, axis in zip(call.value(3), axes, strict=True)])
    for axis, scale in reversed(list(zip(axes, scales.tolist(), strict=True))):
        size, length = x.shape[axis], gradient.shape[axis + 1]
        if scale != 1 or size != length:
            places, weights = _interpolation(attributes, scale, size, length)
            gradient = mapped_back(gradient, axis + 1, places, weights, size)
    return [gradient]


def _interpolation(attributes: Mapping[str, Any], scale: float, size: int, length: int) -> tuple[Array, Array]:
    """Places and weights of a Resize of an axis from `size` to `length`."""
    exact = _coordinates(attributes.get("coordinate_transformation_mode", "half_pixel"), scale, size, length)
    mode = attributes.get("mode", "nearest")
    if mode == "nearest":
        places = _nearest(attributes.get("nearest_mode", "round_prefer_floor"), exact, scale)[None]
        return places, np.ones(places.shape)
    if mode in ("linear", "bilinear", "trilinear"):
        exact = np.clip(exact, 0, size - 1)
        places = np.floor(exact) + np.arange(2)[:, None]
        return places, 1 - np.abs(exact - places)
    if mode != "cubic":
        raise NoRuleError(f"Resize with mode {mode}")
    sharpness = attributes.get("cubic_coeff_a", -0.75)
    places = np.floor(exact) + np.arange(-1, 3)[:, None]
    far = np.abs(exact - places)
    near = (sharpness + 2) * far**3 - (sharpness + 3) * far**2 + 1
    weights = np.where(far <= 1, near, sharpness * (far**3 - 5 * far**2 + 8 * far - 4))
    if attributes.get("exclude_outside"):
        weights = np.where((places >= 0) & (places < size), weights, 0)
        weights /= weights.sum(axis=0)
    return places, weights


def _coordinates(word: str, scale: float, size: int, length: int) -> Array:
    """Where on an axis of the input each element of the output lies; in float32, as runtimes round."""
    place, factor, half = np.arange(length, dtype=np.float32), np.float32(scale), np.float32(0.5)
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


def _nearest(word: str, exact: Array, scale: float) -> Array:
    if word.startswith("round"):
        halves = np.rint(2 * exact) / 2
        exact = np.where(np.abs(exact - halves) < _HALF, halves, exact)
    if word == "simple":  # what runtimes do where the version knows no such attribute
        word = "floor" if scale >= 1 else "ceil"
    places: dict[str, Array] = {
        "round_prefer_floor": np.ceil(exact - 0.5),
        "round_prefer_ceil": np.floor(exact + 0.5),
        "floor": np.floor(exact),
        "ceil": np.ceil(exact),
    }
    if word not in places:
        raise NoRuleError(f"Resize with nearest_mode {word}")
    return places[word]


RULES: dict[str, Rule] = {"AveragePool": _average_pool, "Resize": _resize, "Upsample": _resize}
