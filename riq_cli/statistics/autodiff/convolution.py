"""Rules of Conv and ConvTranspose: gradients with respect to what the kernel slides over, the kernel and the bias."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from riq_cli.model import Operation
from riq_cli.statistics.autodiff.arrays import floats
from riq_cli.statistics.autodiff.rule import Array, Floats, Gradients, Rule
from riq_cli.statistics.autodiff.windows import Windows, sliding, spreading

_BUFFER = 1 << 18  # elements worked on at a time: what a processor's cache holds


def _convolution(
    operation: Operation,
    inputs: Sequence[Array | None],
    outputs: Sequence[Floats | None],
    wanted: Sequence[bool],
) -> Gradients:
    result, gradient = list[Floats | None]([None] * len(inputs)), outputs[0]
    source, kernel = inputs[:2]
    if gradient is None or source is None or kernel is None:
        return result
    groups = operation.attributes.get("group", 1)
    windows = sliding(operation.attributes, kernel.shape[2:], source.shape[2:], gradient.shape[3:])
    probes = len(gradient)
    if wanted[0]:
        merged = gradient.reshape(-1, *gradient.shape[2:])
        result[0] = _spread(windows, merged, _taps(kernel, groups), groups).reshape(probes, *source.shape)
    if wanted[1]:
        # [groups, outputs, inputs, taps] of every probe
        found = _correlated(windows, gradient, floats(source)[None], groups)
        result[1] = found.reshape(probes, *kernel.shape)
    return _with_bias(result, inputs, gradient, wanted)


def _transposed_convolution(
    operation: Operation,
    inputs: Sequence[Array | None],
    outputs: Sequence[Floats | None],
    wanted: Sequence[bool],
) -> Gradients:
    result, gradient = list[Floats | None]([None] * len(inputs)), outputs[0]
    source, kernel = inputs[:2]
    if gradient is None or source is None or kernel is None:
        return result
    groups = operation.attributes.get("group", 1)
    windows = spreading(operation.attributes, kernel.shape[2:], gradient.shape[3:], source.shape[2:])
    probes = len(gradient)
    if wanted[0]:
        merged = gradient.reshape(-1, *gradient.shape[2:])
        result[0] = _gathered(windows, merged, floats(kernel), groups).reshape(probes, *source.shape)
    if wanted[1]:
        found = _correlated(windows, floats(source)[None], gradient, groups)
        result[1] = found.reshape(probes, *kernel.shape)
    return _with_bias(result, inputs, gradient, wanted)


def _with_bias(
    result: Gradients, inputs: Sequence[Array | None], gradient: Floats, wanted: Sequence[bool]
) -> Gradients:
    if len(inputs) > 2 and inputs[2] is not None and wanted[2]:
        result[2] = gradient.sum(axis=(1, *range(3, gradient.ndim)))
    return result


def _taps(kernel: Array, groups: int) -> Floats:
    """A kernel [outputs, inputs of a group, …] as [taps, groups, inputs, outputs] matrices."""
    outputs, inputs = kernel.shape[:2]
    split = floats(kernel).reshape(groups, outputs // groups, inputs, -1)
    return np.ascontiguousarray(split.transpose(3, 0, 2, 1))


def _spread(windows: Windows, values: Floats, matrices: Floats, groups: int) -> Floats:
    """Puts what each tap's matrix makes of the value of a window where that tap lies, and sums.

    `values` are [samples, channels, *counts], `matrices` [taps, groups, …, channels of a group].
    """
    samples, channels = values.shape[:2]
    made = groups * matrices.shape[2]
    columns = values.reshape(samples, groups, channels // groups, -1)
    if windows.trivial():
        return np.asarray(matrices[0] @ columns).reshape(samples, made, *windows.sizes)
    result = np.zeros((samples, made, *windows.sizes), np.float32)
    if groups == channels == made:
        _spread_each(windows, values, matrices.reshape(-1, channels), result)
        return result
    step = max(1, _BUFFER // max(1, made * columns.shape[-1]))
    for begin in range(0, samples, step):
        part, target = columns[begin : begin + step], result[begin : begin + step]
        buffer = np.empty((len(part), groups, matrices.shape[2], part.shape[-1]), np.float32)
        shaped = buffer.reshape(len(part), made, *windows.counts)
        for tap, having, places in windows.taps():
            np.matmul(matrices[tap], part, out=buffer)
            target[places] += shaped[having]
    return result


def _spread_each(windows: Windows, values: Floats, factors: Floats, result: Floats) -> None:
    """`_spread` of channels that do not mix; `factors` are [taps, channels].

    Channels go last, and factors are repeated along a row: what is done to rows then goes through long stretches.
    """
    weights = np.repeat(factors[:, None], windows.counts[-1], axis=1)
    for sample, target in zip(values, result, strict=True):
        last = np.ascontiguousarray(np.moveaxis(sample, 0, -1))
        total = np.zeros((*windows.sizes, len(sample)), np.float32)
        for tap, (_, *having), (_, *places) in windows.taps():
            total[tuple(places)] += last[tuple(having)] * weights[tap, having[-1]]
        target[...] = np.moveaxis(total, -1, 0)


def _gathered(windows: Windows, values: Floats, kernel: Floats, groups: int) -> Floats:
    """For every window the product of the kernel with what lies under its taps.

    `values` are [samples, channels, *sizes], the kernel [outputs, channels of a group, …].
    """
    samples, channels = values.shape[:2]
    matrices = kernel.reshape(groups, len(kernel) // groups, -1)
    if windows.trivial():
        columns = values.reshape(samples, groups, channels // groups, -1)
        return np.asarray(matrices @ columns).reshape(samples, len(kernel), *windows.counts)
    result = np.empty((samples, groups, len(kernel) // groups, math.prod(windows.counts)), np.float32)
    under = np.zeros((channels, math.prod(windows.kernel), *windows.counts), np.float32)
    rows = under.reshape(groups, matrices.shape[2], -1)
    for sample in range(samples):
        for tap, having, places in windows.taps():
            under[:, tap][having] = values[sample][places]
        np.matmul(matrices, rows, out=result[sample])
    return result.reshape(samples, len(kernel), *windows.counts)


def _correlated(windows: Windows, values: Floats, under: Floats, groups: int) -> Floats:
    """Gradient of a kernel: for every tap, products of windows' values with what lies under it, summed over windows.

    `values` are [probes, samples, channels, *counts], `under` [probes, samples, others, *sizes]; either may have one
    probe for all. Gives [probes, groups, channels of a group, others of a group, taps].
    """
    probes, samples = max(len(values), len(under)), values.shape[1]
    channels, others = values.shape[2] // groups, under.shape[2] // groups
    result = np.zeros((probes, groups, channels, others, math.prod(windows.kernel)), np.float32)
    for tap, having, places in windows.taps():
        left, right = values[having], under[places]
        left = left.reshape(len(left), samples, groups, channels, -1)
        right = right.reshape(len(right), samples, groups, others, -1)
        result[..., tap] = (left @ right.swapaxes(-1, -2)).sum(axis=1)
    return result


RULES: dict[str, Rule] = {"Conv": _convolution, "ConvTranspose": _transposed_convolution}
