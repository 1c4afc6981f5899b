"""How a layer's tensor is a stack of matrices, however it is turned and cut on its way to the operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from riq_cli.model.tensors import Array


@dataclass(frozen=True)
class Matrix:
    """A layer's tensor as matrices W [groups, rows, columns] that multiply columns of inputs: out = W @ x.

    `column_axes` are the axes of the tensor whose indices tell group and column, `row_axes` those that tell group and
    row, both without axes of length 1; None where these are not whole axes: axis 0 of a grouped Conv holds both.
    """

    split: tuple[int, ...]  # values.reshape(split)
    order: tuple[int, ...]  # .transpose(order)
    shape: tuple[int, int, int]  # .reshape(groups, rows, columns)
    column_axes: tuple[int, ...] | None
    row_axes: tuple[int, ...] | None

    @property
    def lanes(self) -> tuple[int, ...] | None:
        """`row_axes`, if what lies at one index of each is a row in the order of its columns; else None."""
        columns = list(self.order)
        while math.prod(self.split[factor] for factor in columns) > self.shape[2]:
            del columns[0]
        return self.row_axes or None if columns == sorted(columns) else None

    def view(self, values: Array) -> Array:
        """The matrices of a tensor, [groups, rows, columns]; shares its memory where it can."""
        return values.reshape(self.split).transpose(self.order).reshape(self.shape)

    def restore(self, matrices: Array, shape: Sequence[int]) -> Array:
        """The tensor of the layer's shape whose matrices, [groups, rows, columns], these are."""
        turned = matrices.reshape([self.split[axis] for axis in self.order])
        return turned.transpose(np.argsort(self.order)).reshape(tuple(shape))


@dataclass(frozen=True)
class Arrangement:
    """A value made of a tensor by transposing and reshaping: which factors of the tensor's axes lie on each axis.

    The tensor's shape is refined to `split`, a product of factors for each axis; `origins` tells the axis that a factor
    is of, `axes` the factors that make up each axis of the value.
    """

    split: tuple[int, ...]
    origins: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, shape: Sequence[int]) -> Arrangement:
        """The tensor itself."""
        return cls(tuple(shape), tuple(range(len(shape))), tuple((axis,) for axis in range(len(shape))))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return tuple(math.prod(self.split[factor] for factor in axis) for axis in self.axes)

    def transposed(self, order: Sequence[int]) -> Arrangement:
        """The value with its axes in another order."""
        return Arrangement(self.split, self.origins, tuple(self.axes[axis] for axis in order))

    def reshaped(self, shape: Sequence[int]) -> Arrangement | None:
        """The value in another shape of the same size; None if an axis would begin inside a row of a factor."""
        pending = [(factor, self.split[factor]) for axis in self.axes for factor in axis][::-1]
        pieces: list[list[int]] = [[] for _ in self.split]  # sizes into which each factor is cut, outer ones first
        found: list[list[tuple[int, int]]] = []  # for each new axis: factor, number of the piece
        for size in shape:
            axis: list[tuple[int, int]] = []
            while size > 1 and pending:
                factor, rest = pending.pop()
                if rest == 1:
                    continue
                piece = math.gcd(size, rest)
                if piece != min(size, rest):
                    return None
                if rest > piece:
                    pending.append((factor, rest // piece))
                axis.append((factor, len(pieces[factor])))
                pieces[factor].append(piece)
                size //= piece
            if size != 1:
                return None
            found.append(axis)
        if any(rest != 1 for _, rest in pending):
            return None
        starts = np.cumsum([0, *map(len, pieces)]).tolist()
        return Arrangement(
            tuple(piece for sizes in pieces for piece in sizes),
            tuple(self.origins[factor] for factor, sizes in enumerate(pieces) for _ in sizes),
            tuple(tuple(starts[factor] + number for factor, number in axis) for axis in found),
        )

    def matrix(self, groups: Sequence[int], rows: Sequence[int], columns: Sequence[int]) -> Matrix:
        """The value as a stack of matrices; all its axes by what lies along them."""
        parts = [
            [factor for axis in axes for factor in self.axes[axis] if self.split[factor] > 1]
            for axes in (groups, rows, columns)
        ]
        kept = sorted(factor for part in parts for factor in part)  # without ones, equal matrices are the same Matrix
        sizes = [math.prod(self.split[factor] for factor in part) for part in parts]
        return Matrix(
            tuple(self.split[factor] for factor in kept),
            tuple(kept.index(factor) for part in parts for factor in part),
            (sizes[0], sizes[1], sizes[2]),
            self._whole_axes(parts[0] + parts[2], parts[1]),
            self._whole_axes(parts[0] + parts[1], parts[2]),
        )

    def _whole_axes(self, inside: Sequence[int], outside: Sequence[int]) -> tuple[int, ...] | None:
        """The tensor's axes on which the factors `inside` lie; None if any of those `outside` is there too."""
        within = {self.origins[factor] for factor in inside}
        return None if within & {self.origins[factor] for factor in outside} else tuple(sorted(within))
