"""Inputs of a layer's product → their second moments, the Hessian A = E[x xᵀ] of the layer's squared error."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.model import Linear, LinearInput, LinearOutput

Array = NDArray[Any]
Float64 = NDArray[np.float64]

BLOCK = 4096  # columns at most of one block of second moments: 128 MiB in float64
_ROWS_MIN = 8192  # of a layer, where there are as many
_ROWS_PER_COLUMN = 4  # so that second moments of many columns have full rank, in each half of the samples
_ROWS_MAX = 65536
_CHUNK = 1024  # rows that are multiplied at a time: sums of so many are exact enough in float32
_SEED = 0  # of the rows that are used, beside the numbers of layer, input and run
_PENDING = 1 << 19  # bytes of rows that wait to be multiplied together; more where that is little beside their moments


@dataclass(frozen=True)
class PositionWeights:
    """What each of the `count` positions of a product counts for in one run: position n for `values[n // step]`."""

    count: int
    step: int
    values: Array


Weights = Mapping[LinearOutput, Sequence[PositionWeights]]  # by run


def bounds_of(size: int, count: int) -> tuple[tuple[int, int], ...]:
    """Where each of `count` parts of about the same length begins and ends."""
    return tuple(itertools.pairwise(number * size // count for number in range(count + 1)))


class Moments:
    """Second moments E[x xᵀ] and means E[x] of a layer's inputs, over all rows that were added.

    Of many columns, only the blocks on the diagonal of E[x xᵀ] are kept; `bounds` tells where each begins and ends.
    """

    def __init__(self, groups: int, columns: int, block: int = BLOCK) -> None:
        """No rows yet.

        Args:
            groups: matrices of the layer, each with rows of its own.
            columns: length of a row.
            block: columns at most whose moments with each other are kept.
        """
        self.bounds = bounds_of(columns, -(-columns // block))
        self.count = 0
        self._weight = 0.0
        self._sums = [np.zeros((groups, end - begin, end - begin)) for begin, end in self.bounds]
        self._sum = np.zeros((groups, columns))
        self._pending: list[Array] = []
        self._pending_max = max(_PENDING, sum(total.nbytes for total in self._sums) // 4)

    def add(self, rows: Array, weight: float | Array = 1.0) -> None:
        """Take rows in, [groups, m, columns]; those not finite are left out.

        Args:
            rows: float32 or float64.
            weight: as how many a row counts: one number for all, or one for each, f[m].
        """
        with np.errstate(over="ignore", invalid="ignore"):
            finite = bool(np.isfinite(rows.sum(axis=1)).all())
        if not finite:
            kept = np.isfinite(rows).all(axis=(0, 2))
            rows, weight = rows[:, kept], weight[kept] if isinstance(weight, np.ndarray) else weight
        count = rows.shape[1]
        if count == 0:
            return
        self.count += count
        weights = np.broadcast_to(np.asarray(weight, np.float64), (count,))
        self._weight += float(weights.sum())
        self._sum += np.einsum("m,gmk->gk", weights, rows, dtype=np.float64)
        roots = np.sqrt(weights).astype(rows.dtype)
        with np.errstate(over="ignore"):
            self._pending.append(rows if np.ndim(weight) == 0 and weight == 1 else rows * roots[:, None])
        count, size = (sum(part.shape[1] for part in self._pending), sum(part.nbytes for part in self._pending))
        if count >= _CHUNK or size >= self._pending_max:
            self.flush()

    def block(self, number: int) -> Float64:
        """E[x xᵀ] of one of the blocks, f64[groups, columns, columns] of its own memory; zeros of no rows."""
        self.flush()
        result: Float64 = self._sums[number] / (self._weight or 1.0)
        return result

    @property
    def mean(self) -> Float64:
        """E[x], f64[groups, columns]; zeros of no rows."""
        return self._sum / (self._weight or 1.0)

    def joined(self, *others: Moments) -> Moments:
        """The moments over the rows of all, which have the same groups, columns and blocks."""
        result = Moments(*self._sum.shape, max(end - begin for begin, end in self.bounds))
        for part in (self, *others):
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


Halves = tuple[Moments, Moments]  # of the samples: one judges what is fitted to the other


def collect(
    linear: Mapping[int, Linear],
    activations: Iterable[tuple[str, int, Array]],
    runs: int,
    second: Collection[int],
    weights: Weights,
    block: int = BLOCK,
) -> dict[int, Halves]:
    """For each layer the moments of its inputs over two halves of the samples; layers with equal inputs share them.

    About 8192 rows of each layer are used, more of one with many columns: as many of each run, evenly spaced. Those of
    an activation with more positions count for more.

    Args:
        linear: the layers by their numbers.
        activations: name, number of the run and value of every tensor in `inputs_of(linear)`, in any order.
        runs: how many there are.
        second: numbers of those in the second half.
        weights: what positions count for, where that is known.
        block: columns at most of a block.
    """
    shared: dict[tuple[object, ...], Halves] = {}
    uses: dict[str, list[_Use]] = {}
    found = {}
    for number, item in linear.items():
        groups, _, columns = item.matrix.shape
        sources = _sources(item, weights)
        key = (sources, groups, columns)
        if key not in shared:
            shared[key] = Moments(groups, columns, block), Moments(groups, columns, block)
            wanted = min(max(_ROWS_PER_COLUMN * columns, _ROWS_MIN), _ROWS_MAX)
            limit = -(-wanted // (runs * len(sources)))
            for index, (entering, leaving) in enumerate(sources):
                known = None if leaving is None else weights[leaving]
                use = _Use((_SEED, number, index), entering, known, limit, shared[key])
                uses.setdefault(entering.tensor, []).append(use)
        found[number] = shared[key]
    for name, run, activation in activations:
        for use in uses.get(name, ()):
            use.take(activation, run, run in second)
    for one, other in shared.values():  # layers that share moments may be fitted at the same time
        one.flush()
        other.flush()
    return found


@dataclass(frozen=True, eq=False)
class _Use:
    """An activation that enters layers, and the moments of some of its rows."""

    seed: tuple[int, ...]
    entering: LinearInput
    weights: Sequence[PositionWeights] | None
    limit: int
    halves: Halves

    def take(self, activation: Array, run: int, half: bool) -> None:
        chosen = self.entering.chosen(activation.shape, self.limit, np.random.default_rng((*self.seed, run)))
        if not chosen.size:
            return
        positions = self.entering.positions(activation.shape)
        weight: float | Array = positions / chosen.size
        if self.weights is not None and self.weights[run].count == positions:
            known = self.weights[run]
            weight = weight * known.values[chosen // known.step]
        self.halves[half].add(self.entering.rows_at(activation, chosen), weight)


def _sources(item: Linear, weights: Weights) -> tuple[tuple[LinearInput, LinearOutput | None], ...]:
    """What enters a layer, each once, and with it the product whose positions have weights, if all have."""
    if all(leaving in weights for _, leaving in item.products):
        return item.products
    return tuple((entering, None) for entering in item.inputs)


def inputs_of(linear: Mapping[int, Linear]) -> list[str]:
    """Names of the tensors that layers are multiplied with, each once."""
    return list(dict.fromkeys(entering.tensor for item in linear.values() for entering in item.inputs))


def nbytes(linear: Mapping[int, Linear], block: int, weights: Weights) -> int:
    """Bytes that `collect` takes for the moments of layers, both halves."""
    shapes = {(_sources(item, weights), item.matrix.shape[0], item.matrix.shape[2]) for item in linear.values()}
    return sum(2 * 8 * groups * columns * min(columns, block) for _, groups, columns in shapes)
