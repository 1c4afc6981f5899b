"""The factor U of a Hessian as GPTQ uses it: of all layers it is kept packed, for the whole search."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int32]

CODES_MAX = 16  # of a column: 2⁴ times wider or narrower than the layer's bin width
_HALF_MAX = 65504.0  # largest number of half precision


@dataclass(frozen=True, eq=False)
class Factor:
    """How errors are fed forward along the columns `begin … end` of every group: U, upper triangular.

    `upper` is U, f32[groups, columns, columns].
    """

    begin: int
    end: int
    upper: NDArray[np.float32]

    @cached_property
    def diagonal(self) -> NDArray[np.float32]:
        """U_jj, f32[groups, columns]."""
        result: NDArray[np.float32] = np.einsum("gii->gi", self.upper).copy()
        return result

    def whole(self) -> Factor:
        """Itself, as `PackedFactor` has it."""
        return self


class PackedFactor:
    """The same in less memory: U's triangle in half precision, each row relative to what it has on the diagonal.

    What is fed forward of an error need not be exact.
    """

    def __init__(self, begin: int, end: int, upper: NDArray[np.float32]) -> None:
        """Pack `upper`, f32[groups, columns, columns]."""
        self.begin, self.end = begin, end
        groups, size, _ = upper.shape
        self.diagonal: NDArray[np.float32] = np.einsum("gii->gi", upper).copy()  # U_jj, f32[groups, columns]
        self._packed: Floats = np.empty((groups, size * (size - 1) // 2), np.float16)
        for row, place in enumerate(self._rows()):
            part, own = upper[:, row, row + 1 :], self.diagonal[:, row, None]  # 0 where moments are beyond float32
            relative = np.divide(part, own, out=np.zeros_like(part), where=own != 0)
            self._packed[:, place] = half(relative)

    def kept(self, keep: Callable[[Floats], Floats]) -> PackedFactor:
        """The same factor, its triangle in memory that `keep` gives."""
        found = copy.copy(self)
        found._packed = keep(self._packed)
        return found

    def whole(self) -> Factor:
        """The factor in memory of its own."""
        size = self.end - self.begin
        result = np.zeros((len(self._packed), size, size), np.float32)
        for row, place in enumerate(self._rows()):
            result[:, row, row] = self.diagonal[:, row]
            np.multiply(self._packed[:, place], self.diagonal[:, row, None], out=result[:, row, row + 1 :])
        return Factor(self.begin, self.end, result)

    def _rows(self) -> Iterator[slice]:
        """Where what each row of the triangle has beside the diagonal is among the packed numbers."""
        end = 0
        for length in reversed(range(self.end - self.begin)):
            begin, end = end, end + length
            yield slice(begin, end)


def half(numbers: Floats) -> NDArray[np.float16]:
    """The numbers in half precision, those beyond it at its ends."""
    return np.clip(numbers, -_HALF_MAX, _HALF_MAX).astype(np.float16)


def column_codes(factors: Sequence[Factor | PackedFactor], exercised: NDArray[np.bool_]) -> Integers:
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
