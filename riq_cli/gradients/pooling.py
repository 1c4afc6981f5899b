"""Rules of MaxPool, AveragePool, BatchNormalization, Resize and Upsample: gradients of what is pooled or resized.

Averages and resizing act on each axis alone, so they go back as products with one matrix for each axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from riq_cli.gradients.resizing import resize, upsample
from riq_cli.gradients.rule import Array, Floats, Gradients, NoRuleError, Rule
from riq_cli.gradients.windows import AxisMap, Windows, sliding
from riq_cli.model import Operation


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
    winners = _winners(windows, source.astype(np.float32, copy=False))
    result = np.zeros((len(gradient), *source.shape), np.float32)
    for tap, having, places in windows.taps():
        result[places] += gradient[having] * (winners[having] == tap)
    return [result]


def _winners(windows: Windows, source: Floats) -> Array:
    """Number of the tap that has each window's largest element; of equal ones, the first."""
    taps = list(windows.taps())
    best = np.full((*source.shape[:2], *windows.counts), -np.inf, np.float32)
    winners = np.full(
        best.shape, taps[0][0] if taps else 0, np.min_scalar_type(max((tap for tap, _, _ in taps), default=0))
    )
    for tap, having, places in taps:
        elements = source[places]
        np.copyto(winners[having], tap, where=elements > best[having])
        np.maximum(best[having], elements, out=best[having])
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
    behind = (attributes.get("pads") or [0] * 2 * len(windows.kernel))[len(windows.kernel) :]
    for axis in range(len(windows.kernel)):
        counted = None
        if attributes.get("count_include_pad"):
            fixed = attributes.get("auto_pad", "NOTSET") == "NOTSET"
            counted = windows.sizes[axis] + behind[axis] if fixed else None
        gradient = _averaging(windows, axis, counted, bool(attributes.get("count_include_pad"))).transposed(
            gradient, axis + 3
        )
    return [gradient]


def _averaging(windows: Windows, axis: int, end: int | None, padding: bool) -> AxisMap:
    """The mean of every window along an axis; with `padding`, of elements before `end` that do not exist as well."""
    taps = np.arange(windows.kernel[axis])[:, None] * windows.dilations[axis]
    places = np.arange(windows.counts[axis]) * windows.strides[axis] - windows.before[axis] + taps
    size = windows.sizes[axis]
    exist = (places >= 0) & (places < size)
    counted = exist if not padding else (places < end) if end is not None else np.ones(places.shape, bool)
    weights = exist / np.maximum(1, counted.sum(axis=0))
    return AxisMap(np.clip(places, 0, size - 1), weights.astype(np.float32), size)


def _batch_normalization(
    operation: Operation,
    inputs: Sequence[Array | None],
    outputs: Sequence[Floats | None],
    wanted: Sequence[bool],
) -> Gradients:
    attributes = operation.attributes
    if attributes.get("training_mode") or (operation.version < 14 and any(operation.outputs[1:])):
        raise NoRuleError("BatchNormalization in training")
    result, gradient = list[Floats | None]([None] * len(inputs)), outputs[0]
    source, scale, _, mean, variance = inputs
    if gradient is None or source is None or scale is None or mean is None or variance is None:
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
    centred = (source - mean.reshape(-1, *[1] * (source.ndim - 2))).astype(np.float32, copy=False)
    products = np.einsum("pnc...,nc...->pc...", gradient, centred).reshape(*sums.shape, -1).sum(axis=-1) / deviation
    found = [None, products, sums, -sums * slope, -0.5 * products * slope / deviation]
    return [result[0], *(value if want else None for value, want in zip(found[1:], wanted[1:], strict=True))]


RULES: dict[str, Rule] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Resize": resize,
    "Upsample": upsample,
}
