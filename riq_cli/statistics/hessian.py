"""The Hessian of a layer's squared error: its damping, and its factor U with A⁻¹ = UᵀU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from riq_cli.statistics.moments import Float64, Moments

_HALVED = 64  # columns beyond which an inverse is made by halves
_LARGE = 1e70  # second moments beyond which U, in float32, has no digits left, or is 0
TINY = 1e-30  # what the mean of a diagonal counts as at least: second moments may be all zero


class Damping(NamedTuple):
    """How little a Hessian is trusted: A + uniform · mean(diag A) · I + diagonal · diag(A) stands for A."""

    uniform: float
    diagonal: float = 0.0

    @classmethod
    def of(cls, half: int, share: float) -> Damping:
        """10^(half / 2) in all, of which a share is of the diagonal's own."""
        level = 10 ** (half / 2)
        return cls(level * (1 - share), level * share)


FIXED = Damping(0.01)  # GPTQ's own, where none is searched for
_FIRST, _HIGHEST = -2, 2  # halves of a decade: the damping that is tried first, and the largest
_SHARES = (0.5, 0.0)  # of the diagonal's own; the first is tried first


def least_damping(cost: Callable[[Damping], float], lowest: int) -> tuple[Damping, float]:
    """The damping of least cost, and that cost: first in decades, then of which kind, then in half decades.

    Args:
        cost: of a damping, asked once for each.
        lowest: the least damping, in halves of a decade.
    """

    @functools.cache
    def tried(half: int, share: float) -> float:
        return cost(Damping.of(half, share))

    def descended(begin: int, step: int, share: float) -> int:
        """From one damping to the next as long as the cost falls, upwards or else downwards."""
        half = begin
        for move in (step, -step):
            while lowest <= half + move <= _HIGHEST and tried(half + move, share) < tried(half, share):
                half += move
            if half != begin:
                break
        return half

    half = descended(_FIRST, 2, _SHARES[0])
    share = min(_SHARES, key=lambda share: tried(half, share))
    half = descended(half, 1, share)
    return Damping.of(half, share), tried(half, share)


def factorized(moments: NDArray[np.float64], damping: Damping) -> NDArray[np.float32]:
    """U, upper triangular f32[groups, K, K], with Â⁻¹ = UᵀU for the damped moments Â.

    Args:
        moments: A f64[groups, K, K], symmetric and positive semidefinite.
        damping: `uniform` > 0.
    """
    groups, size, _ = moments.shape
    result = np.empty((groups, size, size), np.float32)
    for group, moment in enumerate(moments):
        # A = MMᵀ with M upper triangular comes from the Cholesky factor of A with rows and columns in reverse; U = M⁻¹.
        result[group] = _inverse(_cholesky(moment[::-1, ::-1], damping)[::-1, ::-1])
    return result


def _cholesky(moment: NDArray[np.float64], damping: Damping) -> NDArray[np.float64]:
    """The Cholesky factor of a damped moment; damped more, where what was summed in float32 leaves it indefinite."""
    level = max(float(np.einsum("ii->", moment)) / len(moment), TINY)
    while True:
        damped = moment.copy()
        diagonal = np.einsum("ii->i", damped)
        diagonal *= 1 + damping.diagonal
        diagonal += damping.uniform * level
        try:
            return np.asarray(np.linalg.cholesky(damped), np.float64)
        except np.linalg.LinAlgError:
            damping = damping._replace(uniform=10 * damping.uniform)  # a diagonal below zero would grow by its own


def _inverse(upper: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of an upper triangular matrix, by halves: mostly matrix products."""
    size = len(upper)
    if size <= _HALVED:
        result: NDArray[np.float64] = np.triu(np.linalg.inv(upper))
        return result
    middle = size // 2
    result = np.zeros_like(upper)
    first, second = _inverse(upper[:middle, :middle]), _inverse(upper[middle:, middle:])
    result[:middle, :middle], result[middle:, middle:] = first, second
    result[:middle, middle:] = -first @ upper[:middle, middle:] @ second
    return result


class Hessian:
    """The second moments A of a layer's inputs; without the part of their mean where a bias takes over that."""

    def __init__(self, moments: Moments, centred: bool) -> None:
        """Take moments.

        Args:
            moments: of the inputs.
            centred: a bias takes over what rounding adds to the outputs on average.
        """
        self._moments, self.mean, self.bounds, self._centred = moments, moments.mean, moments.bounds, centred
        diagonals, is_finite = [], True
        for number in range(len(self.bounds)):
            block = moments.block(number)
            diagonals.append(np.einsum("gii->gi", block).copy())
            is_finite = is_finite and bool(np.isfinite(block).all())
        self.diagonal = np.concatenate(diagonals, axis=1)  # of A itself
        self.is_usable = moments.count > 0 and is_finite and bool(self.diagonal.max() < _LARGE)

    @property
    def blocks(self) -> Iterator[Float64]:
        """The blocks on the diagonal, one after the other: together they may be much larger than the layer."""
        for number, (begin, end) in enumerate(self.bounds):
            block = self._moments.block(number)
            if self._centred:
                mean = self.mean[:, begin:end]
                for row in range(end - begin):  # no second array as large as the block
                    block[:, row] -= mean[:, row, None] * mean
            yield block

    def error(self, difference: Float64, bias_mean: Float64) -> float:
        """E ‖(Ŵ − W) x‖² of these inputs, f64[groups, rows, columns]; the bias has taken over that at `bias_mean`."""
        total = 0.0
        for block, (begin, end) in zip(self.blocks, self.bounds, strict=True):
            part = difference[:, :, begin:end]
            total += float(np.sum(np.matmul(part, block) * part))
        if self._centred:
            total += float(np.sum(np.square(np.einsum("gnk,gk->gn", difference, self.mean - bias_mean))))
        return total
