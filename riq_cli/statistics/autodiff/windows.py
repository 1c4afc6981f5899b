"""How kernels slide over a tensor, and maps that act on each axis alone: what the rules of windows are made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.statistics.autodiff.rule import Floats

Places = tuple[slice | EllipsisType, ...]
_BLOCK = 128  # windows of an axis that one dense matrix maps; long axes would make a single one huge


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

    def taps(self) -> Iterator[tuple[int, Places, Places]]:
        """For every tap of the kernel: its number, which windows have it on an element, and these elements.

        Taps that lie on padding in all windows are left out.
        """
        axes = [self.along(axis) for axis in range(len(self.kernel))]
        for number, places in enumerate(itertools.product(*axes)):
            found = [place for place in places if place is not None]
            if len(found) == len(places):
                yield number, (..., *(place[0] for place in found)), (..., *(place[1] for place in found))

    def along(self, axis: int) -> list[tuple[slice, slice] | None]:
        """For every tap on one axis: which windows have it on an element, and these elements; None for no windows."""
        return [self._tap(axis, tap) for tap in range(self.kernel[axis])]

    def _tap(self, axis: int, tap: int) -> tuple[slice, slice] | None:
        stride, place = self.strides[axis], tap * self.dilations[axis] - self.before[axis]
        first = max(0, -(place // stride))
        last = min(self.counts[axis] - 1, (self.sizes[axis] - 1 - place) // stride)
        if last < first:
            return None
        return slice(first, last + 1), slice(first * stride + place, last * stride + place + 1, stride)

    def trivial(self) -> bool:
        """Whether every window is one element, and every element one window."""
        return self.sizes == self.counts and {*self.kernel, *self.strides} <= {1} and not any(self.before)


def sliding(
    attributes: Mapping[str, Any], kernel: Sequence[int], sizes: Sequence[int], counts: Sequence[int]
) -> Windows:
    """Windows of a convolution or pooling, from a tensor with `sizes` to one with `counts`."""
    strides, dilations = _steps(attributes, len(kernel))
    word = attributes.get("auto_pad", "NOTSET")
    before = _pads(attributes, len(kernel))
    if word.startswith("SAME"):
        totals = [
            max(0, (count - 1) * stride + (taps - 1) * dilation + 1 - size)
            for count, stride, taps, dilation, size in zip(counts, strides, kernel, dilations, sizes, strict=True)
        ]
        before = _halves(totals, word)
    return Windows(tuple(kernel), strides, dilations, before, tuple(sizes), tuple(counts))


def spreading(
    attributes: Mapping[str, Any], kernel: Sequence[int], sizes: Sequence[int], counts: Sequence[int]
) -> Windows:
    """Windows of a transposed convolution, on its output with `sizes`: one for each element of its input, `counts`."""
    strides, dilations = _steps(attributes, len(kernel))
    word = attributes.get("auto_pad", "NOTSET")
    before = _pads(attributes, len(kernel))
    if attributes.get("output_shape") or word.startswith("SAME"):
        more = attributes.get("output_padding") or [0] * len(kernel)
        totals = [
            max(0, (count - 1) * stride + (taps - 1) * dilation + 1 + extra - size)
            for count, stride, taps, dilation, extra, size in zip(
                counts, strides, kernel, dilations, more, sizes, strict=True
            )
        ]
        before = _halves(totals, word)
    return Windows(tuple(kernel), strides, dilations, before, tuple(sizes), tuple(counts))


def _steps(attributes: Mapping[str, Any], axes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    ones = [1] * axes
    return tuple(attributes.get("strides") or ones), tuple(attributes.get("dilations") or ones)


def _pads(attributes: Mapping[str, Any], axes: int) -> tuple[int, ...]:
    if attributes.get("auto_pad", "NOTSET") == "VALID":
        return (0,) * axes
    return tuple((attributes.get("pads") or [0] * axes)[:axes])


def _halves(totals: Sequence[int], word: str) -> tuple[int, ...]:
    """Padding in front, of an axis' padding in all."""
    return tuple(total // 2 if word == "SAME_UPPER" else total - total // 2 for total in totals)


@dataclass(frozen=True)
class AxisMap:
    """A linear map of one axis: output element i is the sum over taps t of `weights[t, i]` · input `places[t, i]`.

    Places do not fall along i, and are within `size`, the input's length.
    """

    places: NDArray[np.int64]
    weights: Floats
    size: int

    def transposed(self, gradient: Floats, axis: int) -> Floats:
        """The map's transpose along an axis of a tensor."""
        length = gradient.shape[axis]
        if length == self.size and self._same():
            return gradient
        outer, inner = gradient.shape[:axis], gradient.shape[axis + 1 :]
        last = axis == gradient.ndim - 1
        source = gradient.reshape(-1, length) if last else gradient.reshape(-1, length, int(np.prod(inner)))
        if length <= _BLOCK:
            matrix = self._matrix(slice(0, length), 0, self.size)
            return np.asarray(source @ matrix if last else matrix.T @ source).reshape(*outer, self.size, *inner)
        result = np.zeros((*source.shape[:1], self.size, *source.shape[2:]), np.float32)
        for begin in range(0, length, _BLOCK):
            block = slice(begin, min(begin + _BLOCK, length))
            low, high = int(self.places[:, block].min()), int(self.places[:, block].max()) + 1
            matrix = self._matrix(block, low, high)
            result[:, low:high] += source[:, block] @ matrix if last else matrix.T @ source[:, block]
        return result.reshape(*outer, self.size, *inner)

    def _same(self) -> bool:
        here = self.places == np.arange(self.size)
        kept = np.where(here, self.weights, 0).sum(axis=0)
        return bool((kept == 1).all() and not self.weights[~here].any())

    def _matrix(self, block: slice, low: int, high: int) -> Floats:
        places, weights = self.places[:, block], self.weights[:, block]
        matrix = np.zeros((places.shape[1], high - low), np.float32)
        for place, weight in zip(places, weights, strict=True):  # several taps may lie on one element
            matrix[np.arange(len(place)), place - low] += weight
        return matrix
