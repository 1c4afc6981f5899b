"""How kernels slide over a tensor, and the rules made of it: Conv, ConvTranspose and MaxPool."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from riq_cli.statistics.autodiff.rule import Array, Call, Floats, Gradients, Rule

Places = tuple[slice | EllipsisType, ...]
_BUFFER = 1 << 18  # elements worked on at a time: what a processor's cache holds


@dataclass(frozen=True)
class Windows:
    """Windows of a kernel's taps on the last axes of a tensor with `sizes`; there are `counts` of them on each axis.

    `before` is the padding in front of the first element of each axis.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    sizes: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, call: Call, kernel: Sequence[int], sizes: Sequence[int], counts: Sequence[int]) -> Windows:
        """Those of a convolution or pooling on its input, or of a transposed convolution on its output."""
        attributes, zeros, ones = call.attributes, [0] * len(kernel), [1] * len(kernel)
        strides, dilations = attributes.get("strides") or ones, attributes.get("dilations") or ones
        word = attributes.get("auto_pad", "NOTSET")
        before = (zeros if word == "VALID" else attributes.get("pads") or zeros)[: len(kernel)]
        if word.startswith("SAME") or attributes.get("output_shape"):
            more = attributes.get("output_padding") or zeros
            ends = [
                (counts[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 + more[i] for i in range(len(kernel))
            ]
            totals = [max(0, end - size) for end, size in zip(ends, sizes, strict=True)]
            before = [total // 2 if word == "SAME_UPPER" else total - total // 2 for total in totals]
        return cls(*map(tuple, (kernel, strides, dilations, before, sizes, counts)))

    def taps(self) -> Iterator[tuple[int, Places, Places]]:
        """For every tap of the kernel: its number, which windows have it on an element, and these elements."""
        axes = range(len(self.kernel))
        for number, taps in enumerate(itertools.product(*map(range, self.kernel))):
            having, places = zip(*(self._along(axis, tap) for axis, tap in zip(axes, taps, strict=True)), strict=True)
            if all(one.stop for one in having):  # not on padding alone
                yield number, (..., *having), (..., *places)

    def _along(self, axis: int, tap: int) -> tuple[slice, slice]:
        """Which windows of one axis have a tap on an element, and these elements."""
        stride, place = self.strides[axis], tap * self.dilations[axis] - self.before[axis]
        first = max(0, -(place // stride))
        last = min(self.counts[axis] - 1, (self.sizes[axis] - 1 - place) // stride)
        if last < first:
            return slice(0), slice(0)
        return slice(first, last + 1), slice(first * stride + place, last * stride + place + 1, stride)

    def trivial(self) -> bool:
        """Whether every window is one element, and every element one window."""
        return self.sizes == self.counts and {*self.kernel, *self.strides} <= {1} and not any(self.before)


# ---- Convolutions ---------------------------------------------------------------------------------------------------


def _convolution(call: Call, transposed: bool) -> Gradients:
    x, kernel, gradient = call.value(0), call.value(1), call.gradient
    sizes, counts = (gradient.shape[3:], x.shape[2:]) if transposed else (x.shape[2:], gradient.shape[3:])
    windows, groups = Windows.of(call, kernel.shape[2:], sizes, counts), call.attributes.get("group", 1)
    found: Gradients = [None, None, None]
    if call.wanted[0]:
        back = _gathered if transposed else _spread
        samples = back(windows, gradient.reshape(-1, *gradient.shape[2:]), call.floats(1), groups)
        found[0] = samples.reshape(len(gradient), *x.shape)
    if call.wanted[1]:
        one = call.floats(0)[None]
        found[1] = _correlated(windows, *((one, gradient) if transposed else (gradient, one)), kernel)
    if call.wants(2):
        found[2] = gradient.sum(axis=(1, *range(3, gradient.ndim)))
    return found


def _spread(windows: Windows, values: Floats, kernel: Floats, groups: int) -> Floats:
    """Adds the kernel times the value of each window to what lies under its taps: [samples, others, *sizes].

    `values` are [samples, channels, *counts], the kernel [channels, others of a group, …].
    """
    samples, channels = values.shape[:2]
    others = groups * kernel.shape[1]
    matrices = kernel.reshape(groups, channels // groups, kernel.shape[1], -1).transpose(3, 0, 2, 1)
    columns = values.reshape(samples, groups, channels // groups, -1)
    if windows.trivial():
        return np.asarray(matrices[0] @ columns).reshape(samples, others, *windows.sizes)
    matrices = np.ascontiguousarray(matrices)
    result = np.zeros((samples, others, *windows.sizes), np.float32)
    if groups == channels == others:
        _spread_each(windows, values, matrices.reshape(-1, channels), result)
        return result
    step = max(1, _BUFFER // max(1, others * columns.shape[-1]))
    for begin in range(0, samples, step):
        part, target = columns[begin : begin + step], result[begin : begin + step]
        buffer = np.empty((len(part), groups, kernel.shape[1], part.shape[-1]), np.float32)
        for tap, having, places in windows.taps():
            np.matmul(matrices[tap], part, out=buffer)
            target[places] += buffer.reshape(len(part), others, *windows.counts)[having]
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
    """For every window the product of the kernel with what lies under its taps: [samples, channels, *counts].

    `values` are [samples, others, *sizes], the kernel [channels, others of a group, …].
    """
    matrices = kernel.reshape(groups, len(kernel) // groups, -1)
    result = np.empty((len(values), groups, len(kernel) // groups, math.prod(windows.counts)), np.float32)
    under = np.zeros((values.shape[1], math.prod(windows.kernel), *windows.counts), np.float32)
    for sample, product in zip(values, result, strict=True):
        for tap, having, places in windows.taps():
            under[:, tap][having] = sample[places]
        np.matmul(matrices, under.reshape(groups, matrices.shape[2], -1), out=product)
    return result.reshape(len(values), len(kernel), *windows.counts)


def _correlated(windows: Windows, values: Floats, under: Floats, kernel: Array) -> Floats:
    """The gradient of a kernel: for every tap, windows' values times what lies under it, summed over windows.

    `values` are [probes, samples, channels, *counts], `under` [probes, samples, others, *sizes]; one of them may have
    a single probe for all. The kernel is [channels, others of a group, …].
    """
    groups = under.shape[2] // kernel.shape[1]
    result = np.zeros((max(len(values), len(under)), *kernel.shape), np.float32)
    of_taps = result.reshape(len(result), groups, -1, kernel.shape[1], math.prod(windows.kernel))
    for tap, having, places in windows.taps():
        left, right = (
            part.reshape(*part.shape[:2], groups, part.shape[2] // groups, -1)
            for part in (values[having], under[places])
        )
        of_taps[..., tap] = (left @ right.swapaxes(-1, -2)).sum(axis=1)
    return result


# ---- Pooling --------------------------------------------------------------------------------------------------------


def _max_pool(call: Call) -> Gradients:
    x, gradient = call.value(0), call.gradient
    windows = Windows.of(call, call.attributes["kernel_shape"], x.shape[2:], gradient.shape[3:])
    maps = x.reshape(-1, *windows.sizes)
    changes = gradient.reshape(len(gradient), len(maps), *windows.counts)
    result = np.zeros((len(gradient), *maps.shape), np.float32)
    step = max(1, _BUFFER // 2 // max(1, math.prod(windows.sizes)))
    for begin in range(0, len(maps), step):
        block = slice(begin, begin + step)
        winners = _winners(windows, maps[block])
        for tap, having, places in windows.taps():
            result[:, block][places] += changes[:, block][having] * (winners[having] == tap).astype(np.float32)
    return [result.reshape(len(gradient), *x.shape)]


def _winners(windows: Windows, maps: Array) -> NDArray[np.unsignedinteger]:
    """Number of the tap that has each window's largest element; of equal ones, the first."""
    kind = np.min_scalar_type(math.prod(windows.kernel))
    best = np.full((len(maps), *windows.counts), -np.inf, np.float32)
    winners = np.zeros(best.shape, kind)
    for tap, having, places in windows.taps():
        elements = maps[places].astype(np.float32)
        # Taps come in order: the last that is larger than all before it has the largest number.
        np.maximum(winners[having], (elements > best[having]) * kind.type(tap), out=winners[having])
        np.maximum(best[having], elements, out=best[having])
    return winners


RULES: dict[str, Rule] = {
    "Conv": partial(_convolution, transposed=False),
    "ConvTranspose": partial(_convolution, transposed=True),
    "MaxPool": _max_pool,
}
