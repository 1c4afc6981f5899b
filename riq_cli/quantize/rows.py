"""Second moments G of output gradients → bin widths of rows, and how errors are fed forward from rows to later rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from riq_cli.quantize.factor import CODES_MAX, Integers, half
from riq_cli.statistics.fisher import Fisher
from riq_cli.statistics.hessian import TINY, Damping, factorized
from riq_cli.statistics.moments import Float64

Halves = NDArray[np.float16]

_BLOCKS = 32  # at most, in which rows are rounded one after another


@dataclass(frozen=True, eq=False)
class RowFactor:
    """How errors of some rows of a group are fed forward to others: they are rounded block after block.

    `rows` i64[blocks, length] are the numbers of the rows in that order, −1 where there is none. `feedback` holds for
    each block what part of its errors later rows take over, f16[length, rows after the block].
    """

    group: int
    rows: NDArray[np.int64]
    feedback: tuple[Halves, ...]

    def kept(self, keep: Callable[[Halves], Halves]) -> RowFactor:
        """The same, what is fed forward in memory that `keep` gives."""
        flat = keep(np.concatenate([part.reshape(-1) for part in self.feedback]))
        ends = np.cumsum([part.size for part in self.feedback])
        feedback = (
            flat[end - part.size : end].reshape(part.shape) for end, part in zip(ends, self.feedback, strict=True)
        )
        return replace(self, feedback=tuple(feedback))

    def sparing(self, spared: NDArray[np.bool_]) -> RowFactor:
        """The same, except that some rows of the group take over nothing; theirs are fed forward as before."""
        if not spared.any():
            return self
        flat = self.rows.reshape(-1)
        taking = ((flat >= 0) & ~spared[flat]).astype(np.float16)
        length = self.rows.shape[1]
        feedback = (part * taking[(block + 1) * length :] for block, part in enumerate(self.feedback))
        return replace(self, feedback=tuple(feedback))


def row_factor(group: int, rows: NDArray[np.int64], moments: Float64, damping: Damping) -> tuple[RowFactor, Float64]:
    """How errors of rows are fed forward by the factor of G, as those of columns are by that of A.

    Args:
        group: that the rows are in.
        rows: their numbers in it, ascending.
        moments: G f64[rows, rows] of these, in their order.
        damping: of G, `uniform` > 0.

    Returns:
        The factor, and how much each row matters when it is rounded, f64[rows]: G's diagonal without what later blocks
        make up for.
    """
    count = len(rows)
    blocks = min(_BLOCKS, count)
    length = -(-count // blocks)
    blocks = -(-count // length)
    order = np.arange(blocks * length).reshape(length, blocks).T  # neighbours often correlate: into different blocks
    places = np.where(order < count, order, -1)
    flat = places.reshape(-1)
    there = np.flatnonzero(flat >= 0)
    turned = moments[np.ix_(flat[there], flat[there])]
    upper = np.eye(flat.size)
    upper[np.ix_(there, there)] = factorized(turned[None], damping)[0]
    importance = np.empty(count)
    feedback = []
    for block in range(blocks):
        begin, end = block * length, (block + 1) * length
        own = np.linalg.inv(upper[begin:end, begin:end])
        used = flat[begin:end] >= 0
        importance[flat[begin:end][used]] = np.einsum("ij,ij->i", own, own)[used]
        feedback.append(half(own @ upper[begin:end, end:]))
    return RowFactor(group, np.where(places >= 0, rows[places], -1), tuple(feedback)), importance


@dataclass(frozen=True, eq=False)
class RowMoments:
    """Second moments G of a layer's rows: within blocks of rows of a group, and the diagonal f64[groups, rows]."""

    blocks: Sequence[tuple[int, NDArray[np.int64]]]
    moments: Sequence[Float64]
    squares: Float64

    @classmethod
    def of(cls, *parts: Fisher) -> RowMoments:
        """The sum of those of several sets of samples."""
        moments = [sum(same[1:], same[0]) for same in zip(*(part.moments for part in parts), strict=True)]
        squares = np.sum([part.squares for part in parts], axis=0)
        return cls(parts[0].blocks if moments else (), moments, squares)

    def error(self, difference: Float64) -> float:
        """tr(Eᵀ G E) of errors E f64[groups, rows, columns]."""
        if not self.blocks:
            return float(np.einsum("gnk,gnk,gn->", difference, difference, self.squares))
        total = 0.0
        for (group, rows), moments in zip(self.blocks, self.moments, strict=True):
            part = difference[group, rows]
            total += float(np.sum(part * (moments @ part)))
        return total

    def factors(self, damping: Damping) -> tuple[Integers, tuple[RowFactor, ...]]:
        """Relative bin widths of rows, i32[groups, rows] in quarters of an octave, and the factors of all rows.

        At equal rate, bin widths ∝ 1/√importance cause least.
        """
        level = self.squares.mean()
        importance = self.squares / level * (1 + damping.diagonal) + damping.uniform
        factors = []
        for (group, rows), moments in zip(self.blocks, self.moments, strict=True):
            relative = moments / level
            own = max(float(np.trace(relative)) / len(rows), TINY)  # rows of all blocks have the same damping
            factor, importance[group, rows] = row_factor(
                group, rows, relative, damping._replace(uniform=damping.uniform / own)
            )
            factors.append(factor)
        importance /= np.exp(np.log(importance).mean())
        codes = np.clip(np.rint(-2 * np.log2(importance)), -CODES_MAX, CODES_MAX)
        return codes.astype(np.int32), tuple(factors)
