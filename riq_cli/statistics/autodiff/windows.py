"""How kernels slide over a tensor, and the rules made of it: Conv, ConvTranspose and MaxPool."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import EllipsisType

import numpy as np

from riq_cli.statistics.autodiff.rule import Array, Call, Floats, Gradients, Rule

Places = tuple[slice, ...]
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
                yield number, having, places

    def _along(self, axis: int, tap: int) -> tuple[slice, slice]:
        """Which windows of one axis have a tap on an element, and these elements."""
        stride, place = self.strides[axis], tap * self.dilations[axis] - self.before[axis]
        first = max(0, -(place // stride))
        last = min(self.counts[axis] - 1, (self.sizes[axis] - 1 - place) // stride)
        if last < first:
            return slice(0), slice(0)
        return slice(first, last + 1, 1), slice(first * stride + place, last * stride + place + 1, stride)

    def trivial(self) -> bool:
        """Whether every window is one element, and every element one window."""
        return self.sizes == self.counts and {*self.kernel, *self.strides} <= {1} and not any(self.before)


# ---- Convolutions ---------------------------------------------------------------------------------------------------


def _index(*parts: slice | int | EllipsisType) -> tuple[slice | int | EllipsisType, ...]:
    return parts


def _convolution(call: Call, transposed: bool) -> Gradients:
    x, kernel, gradient = call.value(0), call.floats(1), call.gradient
    sizes, counts = (gradient.shape[3:], x.shape[2:]) if transposed else (x.shape[2:], gradient.shape[3:])
    windows, groups = Windows.of(call, kernel.shape[2:], sizes, counts), call.attributes.get("group", 1)
    found: Gradients = [None, None, None]
    if call.wanted[0]:
        samples = gradient.reshape(-1, *gradient.shape[2:])
        matrices = kernel.reshape(groups, len(kernel) // groups, kernel.shape[1], -1)
        if not transposed:
            matrices = matrices.swapaxes(1, 2)
        if windows.trivial():
            back = matrices[..., 0] @ samples.reshape(len(samples), groups, matrices.shape[2], -1)
        elif not transposed and matrices.shape[1:3] == (1, 1):
            back = _scaled(windows, samples, matrices.reshape(groups, -1))
        else:
            taps = [
                (tap, having, places) if transposed else (tap, places, having) for tap, having, places in windows.taps()
            ]
            back = _products(taps, samples, matrices, x.shape[2:])
        found[0] = back.reshape(len(gradient), *x.shape)
    if call.wanted[1]:
        one = call.floats(0)[None]
        found[1] = _correlated(windows, *((one, gradient) if transposed else (gradient, one)), kernel)
    if call.wants(2):
        found[2] = gradient.sum(axis=(1, *range(3, gradient.ndim)))
    return found


def _products(
    taps: Sequence[tuple[int, Places, Places]], values: Floats, kernel: Floats, shape: tuple[int, ...]
) -> Floats:
    """For every tap its matrix times the values at its sources, summed at its targets: [samples, made, *shape].

    Args:
        taps: the number of each, its targets, and its sources.
        values: [samples, channels, …], the last axes those that sources are on.
        kernel: [groups, made, channels, taps], made and channels of a group.
        shape: of the axes that targets are on.
    """
    groups, made, channels, _ = kernel.shape
    result = np.zeros((len(values), groups * made, *shape), np.float32)
    together: dict[tuple[int, ...], list[tuple[int, Places, Places]]] = {}
    for tap, targets, sources in taps:  # those with the same rows, whose other targets lie on the same grid
        key = targets[0].start, sources[0].start, *(part.start % part.step for part in targets[1:])
        together.setdefault(key, []).append((tap, targets, sources))
    for members in together.values():
        matrices = np.take(kernel, [tap for tap, _, _ in members], axis=3).reshape(groups, made, -1)
        _, (rows, *others), (source_rows, *_) = members[0]
        target = result[_index(..., rows, *(slice(part.start % part.step, None, part.step) for part in others))]
        source = values[:, :, source_rows]
        step = max(1, _BUFFER // (values.shape[1] * len(members) * math.prod(target.shape[3:])))
        count = max(1, step // target.shape[2])
        for first, row in itertools.product(range(0, len(values), count), range(0, target.shape[2], step)):
            part = target[first : first + count, :, row : row + step]
            samples = source[first : first + count, :, row : row + step].swapaxes(0, 1)
            under = np.zeros((values.shape[1], len(members), len(part), *part.shape[2:]), np.float32)
            for i, (_, targets, sources) in enumerate(members):
                places = (slice(part.start // part.step, (part.stop - 1) // part.step + 1) for part in targets[1:])
                under[:, i][_index(..., *places)] = samples[_index(..., *sources[1:])]
            product = matrices @ under.reshape(groups, channels * len(members), -1)
            part += product.reshape(groups * made, len(part), *part.shape[2:]).swapaxes(0, 1)
    return result


def _scaled(windows: Windows, values: Floats, factors: Floats) -> Floats:
    """For every tap its factors [channels, taps] times the values of windows, summed under it: [samples, channels, …].

    Channels go last, and factors are repeated along a row: what is done to rows then goes through long stretches.
    """
    weights = np.repeat(np.ascontiguousarray(factors.T)[:, None], windows.counts[-1], axis=1)
    result = np.zeros((*values.shape[:2], *windows.sizes), np.float32)
    for sample, target in zip(values, result, strict=True):
        last = np.ascontiguousarray(np.moveaxis(sample, 0, -1))
        total = np.zeros((*windows.sizes, len(sample)), np.float32)
        for tap, having, places in windows.taps():
            total[places] += last[having] * weights[tap, having[-1]]
        target[...] = np.moveaxis(total, -1, 0)
    return result


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
            for part in (values[_index(..., *having)], under[_index(..., *places)])
        )
        of_taps[..., tap] = (left @ right.swapaxes(-1, -2)).sum(axis=1)
    return result


# ---- Pooling --------------------------------------------------------------------------------------------------------


def _max_pool(call: Call) -> Gradients:
    """Of equal elements of a window, the first takes the gradient."""
    x, gradient = call.value(0), call.gradient
    windows = Windows.of(call, call.attributes["kernel_shape"], x.shape[2:], gradient.shape[3:])
    maps = x.reshape(-1, *windows.sizes)
    changes = gradient.reshape(len(gradient), len(maps), *windows.counts)
    result = np.zeros((len(gradient), *maps.shape), np.float32)
    taps = [(_index(..., *having), _index(..., *places)) for _, having, places in windows.taps()]
    step = max(1, _BUFFER // 2 // max(1, math.prod(windows.sizes)))
    for begin in range(0, len(maps), step):
        block = slice(begin, begin + step)
        part = maps[block].astype(np.float32, copy=False)
        largest = np.full((len(part), *windows.counts), -np.inf, np.float32)
        for having, places in taps:
            np.maximum(largest[having], part[places], out=largest[having])
        left = np.ones(largest.shape, bool)  # windows whose largest element is not found yet
        for having, places in taps:
            won = (part[places] == largest[having]) & left[having]
            left[having] ^= won
            result[:, block][places] += changes[:, block][having] * won.astype(np.float32)
    return [result.reshape(len(gradient), *x.shape)]


RULES: dict[str, Rule] = {
    "Conv": partial(_convolution, transposed=False),
    "ConvTranspose": partial(_convolution, transposed=True),
    "MaxPool": _max_pool,
}
