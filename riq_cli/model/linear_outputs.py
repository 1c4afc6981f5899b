"""What a layer's product gives out, and how that is cut into the rows that belong to its input's."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import numpy as np

from riq_cli.model.linear_inputs import turned_operand
from riq_cli.model.tensors import Array


@dataclass(frozen=True)
class LinearOutput(abc.ABC):
    """What an operation makes of a layer's product; `operation` are the names of the operation's outputs."""

    operation: tuple[str, ...]

    @abc.abstractmethod
    def rows(self, value: Array, groups: int) -> Array:
        """The product at all positions, in the order of the input's rows, [groups, positions, rows]."""


@dataclass(frozen=True)
class ProductOutput(LinearOutput):
    """Of MatMul or Gemm: rows lie along the last axis, or along the last but one if `transposed`.

    Of a layer that is a `vector` every element is the only row at its position.
    """

    transposed: bool
    batch: tuple[int, ...] = ()
    vector: bool = False

    def rows(self, value: Array, groups: int) -> Array:
        """The product at all positions, in the order of the input's rows, [groups, positions, rows]."""
        if self.vector:
            return value.reshape(groups, -1, 1)
        if value.ndim < len(self.batch) + 2:  # what entered is a vector: a single position
            return value.reshape(groups, 1, -1)
        operand, _ = turned_operand(value, self.transposed, self.batch)
        return operand.reshape(groups, -1, operand.shape[-1])


@dataclass(frozen=True)
class WindowOutput(LinearOutput):
    """Of Conv or ConvTranspose, [batch, channels, …]."""

    def rows(self, value: Array, groups: int) -> Array:
        """The product at all positions, in the order of the input's rows, [groups, positions, rows]."""
        batch, channels = value.shape[:2]
        cut = value.reshape(batch, groups, channels // groups, -1)
        return cut.transpose(1, 0, 3, 2).reshape(groups, -1, channels // groups)


@dataclass(frozen=True)
class LookupOutput(LinearOutput):
    """Of Gather from a table along its first axis; rows lie along the table's `inner` axes, the last ones."""

    inner: int

    def rows(self, value: Array, groups: int) -> Array:
        """The product at all positions, in the order of the input's rows, [groups, positions, rows]."""
        return value.reshape(groups, math.prod(value.shape[: value.ndim - self.inner]), -1)


@dataclass(frozen=True)
class GateOutput(LinearOutput):
    """Of a recurrent operation, at its gates before they are applied, [directions, steps, batch, rows].

    `of_state` tells whether it is the product of the state of the step before. `order` holds the layer's row of each
    row of the gates; empty if they are the same.
    """

    of_state: bool
    order: tuple[int, ...] = ()

    def rows(self, value: Array, groups: int) -> Array:
        """The product at all positions, in the order of the input's rows, [groups, positions, rows]."""
        rows = value.reshape(groups, -1, value.shape[-1])
        return rows[..., np.argsort(self.order)] if self.order else rows
