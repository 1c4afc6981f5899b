"""Rows that enter a layer's product → their second moments, which say which errors of its weights reach the output."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.model import Linear, LinearInput

Array = NDArray[Any]
Float64 = NDArray[np.float64]

BLOCK = 4096  # columns at most of one block of second moments: 128 MiB in float64
_ROWS_MIN = 8192  # of a layer, where there are as many
_ROWS_PER_COLUMN = 4  # so that second moments of many columns have full rank, in each half of the samples
_ROWS_MAX = 65536
_CHUNK = 1024  # rows that are multiplied at a time: sums of so many are exact enough in float32
_PENDING = 1 << 19  # bytes of rows that wait to be multiplied together; more where that is little beside their moments


class Moments:
    """Second moments E[x xᵀ] and means E[x] of a layer's rows, over all that were added.

    Of many columns, only the blocks on the diagonal of E[x xᵀ] are kept; `bounds` tells where each begins and ends.
    """

    def __init__(self, groups: int, columns: int, block: int = BLOCK) -> None:
        """No rows yet.

        Args:
            groups: matrices of the layer, each with rows of its own.
            columns: length of a row.
            block: columns at most whose moments with each other are kept.
        """
        cuts = [number * columns // -(-columns // block) for number in range(-(-columns // block) + 1)]
        self.bounds = tuple(itertools.pairwise(cuts))
        self.count = 0
        self._weight = 0.0
        self._sums = [np.zeros((groups, end - begin, end - begin)) for begin, end in self.bounds]
        self._sum = np.zeros((groups, columns))
        self._pending: list[Array] = []
        self._pending_max = max(_PENDING, sum(total.nbytes for total in self._sums) // 4)

    def add(self, rows: Array, weight: float = 1.0) -> None:
        """Take rows in, [groups, m, columns], each as if it occurred `weight` times; those not finite are left out."""
        with np.errstate(over="ignore", invalid="ignore"):
            sums = rows.sum(axis=1)
        if not np.isfinite(sums).all():
            rows = rows[:, np.isfinite(rows).all(axis=(0, 2))]
            sums = rows.sum(axis=1, dtype=np.float64)
        if rows.shape[1] == 0:
            return
        self.count += rows.shape[1]
        self._weight += weight * rows.shape[1]
        self._sum += weight * sums.astype(np.float64)
        self._pending.append(rows if weight == 1 else rows * rows.dtype.type(math.sqrt(weight)))
        count, size = (sum(part.shape[1] for part in self._pending), sum(part.nbytes for part in self._pending))
        if count >= _CHUNK or size >= self._pending_max:
            self.flush()

    @property
    def second(self) -> list[Float64]:
        """E[x xᵀ], [groups, columns, columns] of each block; zeros if nothing was added."""
        return [self.block(number) for number in range(len(self.bounds))]

    def block(self, number: int) -> Float64:
        """E[x xᵀ] of one of the blocks, in memory of its own."""
        self.flush()
        result: Float64 = self._sums[number] / (self._weight or 1.0)
        return result

    @property
    def mean(self) -> Float64:
        """E[x], [groups, columns]; zeros if nothing was added."""
        return self._sum / (self._weight or 1.0)

    def joined(self, other: Moments) -> Moments:
        """The moments over the rows of both, which have the same groups, columns and blocks."""
        result = Moments(*self._sum.shape, max(end - begin for begin, end in self.bounds))
        for part in (self, other):
            part.flush()
            result.count += part.count
            result._weight += part._weight
            result._sum += part._sum
            for total, added in zip(result._sums, part._sums, strict=True):
                total += added
        return result

    def flush(self) -> None:
        """Multiply what was added: many rows at once, since every time the whole matrix has to be added to."""
        if not self._pending:
            return
        rows = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending, axis=1)
        self._pending = []
        for first in range(0, rows.shape[1], _CHUNK):
            part = rows[:, first : first + _CHUNK]
            for total, (begin, end) in zip(self._sums, self.bounds, strict=True):
                block = part[..., begin:end]
                with np.errstate(over="ignore", invalid="ignore"):
                    product = block.swapaxes(1, 2) @ block
                    if not np.isfinite(product).all():  # squares beyond float32
                        product = block.swapaxes(1, 2).astype(np.float64) @ block.astype(np.float64)
                total += product


def collect(
    linear: Mapping[int, Linear],
    activations: Iterable[tuple[str, int, Array]],
    samples: int,
    second: Collection[int],
    seed: int = 0,
    block: int = BLOCK,
) -> dict[int, tuple[Moments, Moments]]:
    """For each layer the moments over two halves of the samples; layers with the same inputs share them.

    About 8192 rows of each layer are used, more of one with many columns: as many of each sample, evenly spread.
    Those of an activation with more positions count for more.

    Args:
        linear: the layers by their numbers.
        activations: name, number of the sample and value of every tensor in `inputs_of(linear)`, in any order.
        samples: how many there are.
        second: numbers of those in the second half.
        seed: decides which rows are used, together with the numbers of layer, input and sample.
        block: columns at most of a block.
    """
    halves: dict[tuple[object, ...], tuple[Moments, Moments]] = {}
    uses: dict[str, list[tuple[int, int, LinearInput, int, tuple[Moments, Moments]]]] = {}
    found = {}
    for number, item in linear.items():
        groups, _, columns = item.matrix.shape
        key = (item.inputs, groups, columns)
        if key not in halves:
            halves[key] = Moments(groups, columns, block), Moments(groups, columns, block)
            wanted = min(max(_ROWS_PER_COLUMN * columns, _ROWS_MIN), _ROWS_MAX)
            share = -(-wanted // (samples * len(item.inputs)))
            for index, entering in enumerate(item.inputs):
                uses.setdefault(entering.tensor, []).append((number, index, entering, share, halves[key]))
        found[number] = halves[key]
    for name, sample, activation in activations:
        for number, index, entering, share, pair in uses.get(name, ()):
            random = np.random.default_rng((seed, number, index, sample))
            rows = entering.rows(activation, share, random)
            if rows.shape[1]:
                pair[sample in second].add(rows, entering.positions(activation.shape) / rows.shape[1])
    for pair in halves.values():  # layers that share moments may be fitted at the same time
        for half in pair:
            half.flush()
    return found


def inputs_of(linear: Mapping[int, Linear]) -> list[str]:
    """Names of the tensors that layers are multiplied with, each once."""
    return list(dict.fromkeys(entering.tensor for item in linear.values() for entering in item.inputs))


def nbytes(linear: Mapping[int, Linear], block: int = BLOCK) -> int:
    """Bytes that `collect` takes for the moments of layers, both halves."""
    shapes = {(item.inputs, item.matrix.shape[0], item.matrix.shape[2]) for item in linear.values()}
    return sum(2 * 8 * groups * columns * min(columns, block) for _, groups, columns in shapes)
