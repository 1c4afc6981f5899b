"""Activations that enter a layer's product, and how they are cut into the rows that its matrices multiply.

`W @ x` for every row x of an input is what the operator gives out at that position, its bias left out.
"""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.model.tensors import Array

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class LinearInput(abc.ABC):
    """An activation that enters a layer's product; `tensor` is its name in the main graph."""

    tensor: str

    def rows(self, activation: Array) -> Array:
        """All inputs of the product, [groups, m, columns] in float32 or float64, from the tensor's value in one run."""
        return self.rows_at(activation, self.chosen(activation.shape))

    def chosen(
        self, shape: Sequence[int], limit: int | None = None, random: np.random.Generator | None = None
    ) -> Positions:
        """Positions of the rows of an activation of a shape: all, or where there are more than a limit, as many.

        They are taken evenly: `random` tells where in each stretch of even length; without it, in its middle.
        """
        available = self.positions(shape)
        if limit is None or available <= limit:
            return np.arange(available)
        bounds = np.arange(limit + 1) * available // limit
        lengths = np.diff(bounds)
        offsets = lengths // 2 if random is None else (random.random(limit) * lengths).astype(np.int64)
        return bounds[:-1] + offsets

    def rows_at(self, activation: Array, chosen: Positions) -> Array:
        """The rows at some positions in order, [groups, len(chosen), columns] in float32 or float64."""
        rows = self._take(activation, np.unravel_index(chosen, self._grid(activation.shape)))
        return rows if rows.dtype == np.float64 else rows.astype(np.float32, copy=False)

    def products(self, activation: Array, matrices: Array, count: int) -> Iterator[Array]:
        """What matrices f32[groups, columns, n] make of all rows in order, [groups, m, n], `count` rows at a time."""
        available = self.positions(activation.shape)
        for begin in range(0, available, count):
            rows = self.rows_at(activation, np.arange(begin, min(begin + count, available)))
            yield rows.astype(np.float32, copy=False) @ matrices

    def positions(self, shape: Sequence[int]) -> int:
        """Number of rows that an activation of a shape has."""
        return math.prod(self._grid(shape))

    @abc.abstractmethod
    def _grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Lengths of the axes along which the rows of an activation of a shape lie."""

    @abc.abstractmethod
    def _take(self, activation: Array, places: tuple[Positions, ...]) -> Array:
        """The rows at some places, given along each axis of the grid, [groups, places, columns]."""


@dataclass(frozen=True)
class ProductInput(LinearInput):
    """The other operand of MatMul or Gemm: rows lie along the last axis, or the last but one if `transposed`.

    `batch` are the layer's axes before its matrix, those longer than 1 tell its groups; rows are `scale` times the
    operand's.
    """

    transposed: bool
    batch: tuple[int, ...] = ()
    scale: float = 1.0

    def _grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        return turned_operand(np.broadcast_to(np.float32(), shape), self.transposed, self.batch)[1]

    def _take(self, activation: Array, places: tuple[Positions, ...]) -> Array:
        operand, _ = turned_operand(activation, self.transposed, self.batch)
        index: tuple[Any, ...] = (..., *places, slice(None))
        rows: Array = operand[index].reshape(-1, len(places[0]), operand.shape[-1])
        return rows if self.scale == 1 else rows.astype(np.result_type(rows, np.float32)) * self.scale


@dataclass(frozen=True)
class WindowInput(LinearInput):
    """What the windows of a Conv are cut from, [batch, channels, …]; a row holds (channel, tap) of a group of channels.

    `pads` are those before every axis, then those behind; `auto_pad` is ONNX's word. Of a ConvTranspose, `transposed`,
    windows lie around the places of the output, and most taps fall between inputs; `output_shape` is empty where it
    follows from the pads.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str
    groups: int
    transposed: bool
    output_padding: tuple[int, ...]
    output_shape: tuple[int, ...]

    def _grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (shape[0], *(self._layout(axis, size)[0] for axis, size in enumerate(shape[2:])))

    def _take(self, activation: Array, places: tuple[Positions, ...]) -> Array:
        batch, channels, *sizes = activation.shape
        sample, *windows = places
        source = np.zeros((1, len(sample)), np.int64)  # place of every tap at every position, all axes as one
        inside = np.ones(source.shape, bool)
        for axis, size in enumerate(sizes):
            index, exists = self._source(axis, size, windows[axis])
            source = (source[:, None] * size + np.clip(index, 0, size - 1)).reshape(-1, len(sample))
            inside = (inside[:, None] & exists).reshape(-1, len(sample))
        flat = activation.reshape(batch, channels, math.prod(sizes))
        bounds = np.searchsorted(sample, np.arange(batch + 1))  # positions are in order, so those of a sample are too
        parts = [
            np.take(flat[number], source[:, begin:end], axis=1, mode="clip")
            for number, (begin, end) in enumerate(itertools.pairwise(bounds))
            if begin < end
        ]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
        if not inside.all():
            np.copyto(rows, 0, where=~inside)
        # Columns lie before positions in memory, as the activation has them: turning them would take longer than this.
        return rows.reshape(self.groups, -1, len(sample)).swapaxes(1, 2)

    def _layout(self, axis: int, size: int) -> tuple[int, int]:
        """How many windows there are along an axis of the activation, and the pad before the first."""
        stride, reach = self.strides[axis], (self.kernel[axis] - 1) * self.dilations[axis] + 1
        before, total = self.pads[axis], self.pads[axis] + self.pads[axis + len(self.kernel)]
        is_same = self.auto_pad.startswith("SAME")
        if self.transposed:
            full = (size - 1) * stride + reach + self.output_padding[axis]
            count = full - total
            if self.output_shape or is_same:
                count = self.output_shape[axis] if self.output_shape else size * stride
                total = max(0, full - count)
        else:
            if is_same:
                total = max(0, (-(-size // stride) - 1) * stride + reach - size)
            count = max(0, (size + total - reach) // stride + 1)
        if self.output_shape or is_same:
            before = total // 2 if self.auto_pad == "SAME_UPPER" else total - total // 2
        return count, before

    def _source(self, axis: int, size: int, window: Positions) -> tuple[Positions, NDArray[np.bool_]]:
        """Where along an axis the taps of windows lie, [taps, windows], and whether anything is there."""
        _, before = self._layout(axis, size)
        taps = np.arange(self.kernel[axis])[:, None] * self.dilations[axis]
        if self.transposed:
            index, between = np.divmod(window + before - taps, self.strides[axis])
            return index, (index >= 0) & (index < size) & (between == 0)
        index = window * self.strides[axis] - before + taps
        return index, (index >= 0) & (index < size)


@dataclass(frozen=True)
class SequenceInput(LinearInput):
    """What a recurrent layer reads, [steps, batch, columns]; every direction reads the same."""

    directions: int

    def _grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape[:2])

    def _take(self, activation: Array, places: tuple[Positions, ...]) -> Array:
        rows = activation[places]
        return np.broadcast_to(rows, (self.directions, *rows.shape))


@dataclass(frozen=True)
class StateInput(LinearInput):
    """What a recurrent layer remembers of the step before, from its outputs [steps, directions, batch, columns].

    `backward` tells for each direction whether the step before is the later one. With `initial`, the state before the
    first step comes first; without, it is zero.
    """

    backward: tuple[bool, ...]
    initial: bool

    def _grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        return shape[0] - self.initial, shape[2]

    def _take(self, activation: Array, places: tuple[Positions, ...]) -> Array:
        step, sample = places
        last = activation.shape[0] - self.initial - 1
        rows = np.empty((len(self.backward), len(step), activation.shape[3]), activation.dtype)
        for direction, backward in enumerate(self.backward):
            first = step == (last if backward else 0)
            before = step + (1 if backward else -1) + self.initial
            rows[direction] = activation[np.where(first, 0, before), direction, sample]
            if not self.initial:
                rows[direction, first] = 0
        return rows


@dataclass(frozen=True)
class LookupInput(LinearInput):
    """Indices into a table, whose entries are `columns` in number: each row is 0 but for the 1 at its index."""

    columns: int

    def products(self, activation: Array, matrices: Array, count: int) -> Iterator[Array]:
        """What matrices f32[1, columns, n] make of all rows in order, [1, m, n], `count` rows at a time.

        Those of fewer columns are used again and again.
        """
        indices = activation.reshape(-1) % matrices.shape[1]
        return (matrices[:, indices[first : first + count]] for first in range(0, indices.size, count))

    def _grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (math.prod(shape),)

    def _take(self, activation: Array, places: tuple[Positions, ...]) -> Array:
        indices = activation.reshape(-1)[places]
        rows = np.zeros((1, len(indices), self.columns), np.float32)
        rows[0, np.arange(len(indices)), indices] = 1
        return rows


def turned_operand(value: Array, transposed: bool, batch: Sequence[int]) -> tuple[Array, tuple[int, ...]]:
    """An operand or product with axes groups, positions, column; and the lengths of the axes of positions.

    Args:
        value: as the operator has it.
        transposed: whether its columns lie along the last axis but one.
        batch: the layer's axes before its matrix.
    """
    if value.ndim == 1:
        value = value[None]
    elif transposed:
        value = value.swapaxes(-1, -2)
    outer = np.broadcast_shapes(value.shape[:-2], tuple(size if size > 1 else 1 for size in batch))
    operand = np.broadcast_to(value, outer + value.shape[-2:])
    grouped = [axis for axis, size in enumerate(batch, len(outer) - len(batch)) if size > 1]
    others = [axis for axis in range(operand.ndim - 1) if axis not in grouped]
    operand = operand.transpose(*grouped, *others, operand.ndim - 1)
    return operand, operand.shape[len(grouped) : -1]
