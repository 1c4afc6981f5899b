"""Second moments → how errors of columns spread to the columns after them, and bin widths that suit that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int32]

CODES_MAX = 16  # of a column: 2⁴ times wider or narrower than the layer's bin width
_HALF_MAX = 65504.0  # largest number of half precision
_HALVED = 64  # columns beyond which an inverse is made by halves
TINY = 1e-30  # what the mean of a diagonal counts as at least: second moments may be all zero


class Damping(NamedTuple):
    """How little second moments H are trusted: H + even · mean(diag H) · I + own · diag(H) stands for them.

    The first takes all columns for equal, the second each for as loud as it was, but for unlike the others.
    """

    even: float
    own: float = 0.0

    @classmethod
    def of(cls, level: float, share: float) -> Damping:
        """As much as this in all, of which a share is for each column by its own."""
        return cls(level * (1 - share), level * share)

    @property
    def level(self) -> float:
        """How much in all."""
        return self.even + self.own

    def added(self, moment: NDArray[np.float64]) -> NDArray[np.float64]:
        """What stands for a moment f64[K, K]."""
        result = moment.copy()
        diagonal = np.einsum("ii->i", result)
        level = max(float(diagonal.mean()), TINY)
        diagonal *= 1 + self.own
        diagonal += self.even * level
        return result


class Factor:
    """How errors spread among the columns `begin … end` of every group: U, upper triangular.

    Only the triangle is kept, beside its diagonal in half precision: the factors of all layers are held as long as the
    search goes on, and what an error is spread by need not be exact.
    """

    def __init__(self, begin: int, end: int, upper: NDArray[np.float32]) -> None:
        """Pack `upper`, f32[groups, columns, columns]."""
        self.begin, self.end = begin, end
        groups, size, _ = upper.shape
        self.diagonal: NDArray[np.float32] = np.einsum("gii->gi", upper).copy()  # U_jj, f32[groups, columns]
        self._packed = np.empty((groups, size * (size - 1) // 2), np.float16)
        for row, place in enumerate(self._rows()):
            part, own = upper[:, row, row + 1 :], self.diagonal[:, row, None]  # 0 where moments are beyond float32
            relative = np.divide(part, own, out=np.zeros_like(part), where=own != 0)
            self._packed[:, place] = half(relative)

    @property
    def upper(self) -> NDArray[np.float32]:
        """U, f32[groups, columns, columns], in memory of its own."""
        size = self.end - self.begin
        result = np.zeros((len(self._packed), size, size), np.float32)
        for row, place in enumerate(self._rows()):
            result[:, row, row] = self.diagonal[:, row]
            np.multiply(self._packed[:, place], self.diagonal[:, row, None], out=result[:, row, row + 1 :])
        return result

    def _rows(self) -> Iterator[slice]:
        """Where what each row of the triangle has beside the diagonal is among the packed numbers."""
        end = 0
        for length in reversed(range(self.end - self.begin)):
            begin, end = end, end + length
            yield slice(begin, end)


def half(numbers: Floats) -> NDArray[np.float16]:
    """The numbers in half precision, those beyond it at its ends."""
    return np.clip(numbers, -_HALF_MAX, _HALF_MAX).astype(np.float16)


def factorized(moments: NDArray[np.float64], damping: Damping) -> NDArray[np.float32]:
    """U, upper triangular f32[groups, K, K], with Ĥ⁻¹ = UᵀU for the damped moments Ĥ.

    Args:
        moments: H f64[groups, K, K], symmetric and positive semidefinite.
        damping: `even` > 0.
    """
    groups, size, _ = moments.shape
    result = np.empty((groups, size, size), np.float32)
    for group, moment in enumerate(moments):
        # H = MMᵀ with M upper triangular comes from the Cholesky factor of H with rows and columns in reverse; U = M⁻¹.
        result[group] = _inverse(_cholesky(moment[::-1, ::-1], damping)[::-1, ::-1])
    return result


def _cholesky(moment: NDArray[np.float64], damping: Damping) -> NDArray[np.float64]:
    """The Cholesky factor of a damped moment; damped more, where what was summed in float32 leaves it indefinite."""
    result: NDArray[np.float64]
    while True:
        try:
            result = np.asarray(np.linalg.cholesky(damping.added(moment)), np.float64)
            return result
        except np.linalg.LinAlgError:
            damping = damping._replace(even=10 * damping.even)  # a diagonal below zero would grow by its own


def column_codes(factors: Sequence[Factor], exercised: NDArray[np.bool_]) -> Integers:
    """Relative bin widths of columns as codes i32[groups, K], quarters of an octave around their mean: ∝ U_jj.

    Args:
        factors: of all columns.
        exercised: bool[groups, K]: columns that the samples do not exercise get no wider bins than the mean.
    """
    diagonal = np.concatenate([factor.diagonal for factor in factors], axis=1)
    steps = np.log2(diagonal.astype(np.float64))
    codes = np.rint(4 * (steps - steps.mean()))
    result: Integers = np.clip(codes, -CODES_MAX, np.where(exercised, CODES_MAX, 0)).astype(np.int32)
    return result


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
