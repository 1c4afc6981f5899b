"""Rules of Resize and Upsample: gradients of what is resized, taken back along one axis after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.gradients.rule import Array, Floats, Gradients, NoRuleError
from riq_cli.gradients.windows import AxisMap
from riq_cli.model import Operation

_Places = NDArray[np.int64]


def upsample(
    operation: Operation,
    inputs: Sequence[Array | None],
    outputs: Sequence[Floats | None],
    wanted: Sequence[bool],
) -> Gradients:
    """The rule of Upsample, and of Resize before it knew coordinates."""
    scales = operation.attributes.get("scales")
    if len(inputs) > 1 and inputs[1] is not None:
        scales = [float(scale) for scale in inputs[1]]
    if scales is None:
        raise NoRuleError("Upsample without scales")
    mode = operation.attributes.get("mode", "nearest")
    words = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return _resized(words, inputs, outputs[0], wanted, range(len(scales)), scales)


def resize(
    operation: Operation,
    inputs: Sequence[Array | None],
    outputs: Sequence[Floats | None],
    wanted: Sequence[bool],
) -> Gradients:
    """The rule of Resize."""
    if operation.version < 11:
        return upsample(operation, inputs, outputs, wanted)
    source, attributes = inputs[0], operation.attributes
    if source is None:
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
    attributes: Any,
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


def _axis_map(attributes: Any, scale: float, size: int, length: int) -> AxisMap:
    mode = attributes.get("mode", "nearest")
    exact = _coordinates(attributes.get("coordinate_transformation_mode", "half_pixel"), scale, size, length)
    if mode == "nearest":
        places = _nearest(attributes.get("nearest_mode", "round_prefer_floor"), exact)[None]
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


def _nearest(word: str, exact: Floats) -> _Places:
    if word == "round_prefer_floor":
        found = np.ceil(exact - np.float32(0.5))
    elif word == "round_prefer_ceil":
        found = np.floor(exact + np.float32(0.5))
    elif word == "floor":
        found = np.floor(exact)
    elif word == "ceil":
        found = np.ceil(exact)
    else:
        raise NoRuleError(f"Resize with nearest_mode {word}")
    return found.astype(np.int64)


def _cubic(attributes: Any, exact: Floats, size: int) -> AxisMap:
    sharpness = attributes.get("cubic_coeff_a", -0.75)
    places = np.floor(exact) + np.arange(-1, 3)[:, None]
    far = np.abs(exact - places)
    near = (sharpness + 2) * far**3 - (sharpness + 3) * far**2 + 1
    weights = np.where(far <= 1, near, sharpness * (far**3 - 5 * far**2 + 8 * far - 4))
    if attributes.get("exclude_outside"):
        weights = np.where((places >= 0) & (places < size), weights, 0)
        weights /= weights.sum(axis=0)
    return AxisMap(np.clip(places, 0, size - 1).astype(np.int64), weights.astype(np.float32), size)
