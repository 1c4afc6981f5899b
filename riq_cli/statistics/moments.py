"""Rows that enter a layer's product → their second moments, which say which errors of its weights reach the output."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
_PENDING = 1 << 19  # bytes of rows that wait to be multiplied together; more where that is little beside their moments


@dataclass(frozen=True)
class PositionShares:
    """What each of the `count` positions of a product counts for in one run: position n for `values[n // step]`."""

    count: int
    step: int
    values: Array


Shares = Mapping[LinearOutput, Sequence[PositionShares]]  # by run


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


Halves = tuple[Moments, Moments]  # of the samples


class Collected(NamedTuple):
    """Moments of what enters a layer: where positions count `alike`, and where they count by what is known of them."""

    alike: Halves
    shared: Halves | None


def collect(
    linear: Mapping[int, Linear],
    activations: Iterable[tuple[str, int, Array]],
    samples: int,
    second: Collection[int],
    seed: int = 0,
    block: int = BLOCK,
    shares: Shares | None = None,
) -> dict[int, Collected]:
    """For each layer the moments over two halves of the samples; layers with the same inputs may share them.

    About 8192 rows of each layer are used, more of one with many columns: as many of each sample, evenly spread.
    Those of an activation with more positions count for more.

    Args:
        linear: the layers by their numbers.
        activations: name, number of the sample and value of every tensor in `inputs_of(linear)`, in any order.
        samples: how many there are.
        second: numbers of those in the second half.
        seed: decides which rows are used, together with the numbers of layer, input and sample.
        block: columns at most of a block.
        shares: what positions count for, where that is known; layers with such products share nothing.
    """
    shares = shares or {}
    halves: dict[tuple[object, ...], Collected] = {}
    uses: dict[str, list[_Use]] = {}
    found = {}
    for number, item in linear.items():
        groups, _, columns = item.matrix.shape
        sources = _sources(item, shares)
        key = (sources, groups, columns)
        if key not in halves:
            alike, shared = ((Moments(groups, columns, block), Moments(groups, columns, block)) for _ in range(2))
            told = any(leaving is not None for _, leaving in sources)
            halves[key] = Collected(alike, shared if told else None)
            wanted = min(max(_ROWS_PER_COLUMN * columns, _ROWS_MIN), _ROWS_MAX)
            limit = -(-wanted // (samples * len(sources)))
            for index, (entering, leaving) in enumerate(sources):
                use = _Use((seed, number, index), entering, leaving, limit, halves[key])
                uses.setdefault(entering.tensor, []).append(use)
        found[number] = halves[key]
    for name, sample, activation in activations:
        for use in uses.get(name, ()):
            random = np.random.default_rng((*use.seed, sample))
            chosen = use.entering.chosen(activation.shape, use.limit, random)
            if chosen.size:
                weight: float | Array = use.entering.positions(activation.shape) / chosen.size
                taken = use.entering.rows_at(activation, chosen)
                use.collected.alike[sample in second].add(taken, weight)
                if use.collected.shared is not None and use.leaving is not None:  # neither or both
                    known = shares[use.leaving][sample]
                    if known.count == use.entering.positions(activation.shape):
                        weight = weight * known.values[chosen // known.step]
                    use.collected.shared[sample in second].add(taken, weight)
    for each in halves.values():  # layers that share moments may be fitted at the same time
        for half in (*each.alike, *(each.shared or ())):
            half.flush()
    return found


@dataclass(frozen=True, eq=False)
class _Use:
    """An activation that enters layers, and what comes of it: moments of some rows; `leaving` tells their shares."""

    seed: tuple[int, ...]
    entering: LinearInput
    leaving: LinearOutput | None
    limit: int
    collected: Collected


def _sources(item: Linear, shares: Shares) -> tuple[tuple[LinearInput, LinearOutput | None], ...]:
    """What enters a layer, each once, and with it the product that tells the shares of its positions, if any does."""
    if all(leaving in shares for _, leaving in item.products):
        return item.products
    return tuple((entering, None) for entering in item.inputs)


def inputs_of(linear: Mapping[int, Linear]) -> list[str]:
    """Names of the tensors that layers are multiplied with, each once."""
    return list(dict.fromkeys(entering.tensor for item in linear.values() for entering in item.inputs))


def nbytes(linear: Mapping[int, Linear], block: int = BLOCK, shares: Shares | None = None) -> int:
    """Bytes that `collect` takes for the moments of layers, both halves."""
    shapes = {(_sources(item, shares or {}), item.matrix.shape[0], item.matrix.shape[2]) for item in linear.values()}
    kinds = {sources: 1 + any(leaving is not None for _, leaving in sources) for sources, _, _ in shapes}
    return sum(kinds[sources] * 2 * 8 * groups * columns * min(columns, block) for sources, groups, columns in shapes)
