"""Trellis-coded quantization: the levels of least error along many lanes, by Viterbi's algorithm.

`riq_cli.decode.trellis` tells what levels are, and which symbols stand for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int32]
Float32 = NDArray[np.float32]

SYMBOL_MAX = 1 << 18  # |symbol| at most that `Viterbi` finds levels for: float32 represents quarters of bins up to it
_NEVER = np.float32(1e30)  # cost of a state that cannot be


class Viterbi:
    """The best paths so far through many lanes, one to each state: f32[2, 2, groups, rows] costs.

    A state is the sign of the next weight (first axis) and that of the one before it; 0 is plus.
    """

    def __init__(self, groups: int, rows: int) -> None:
        """At the beginning of all lanes."""
        self._costs = np.full((2, 2, groups, rows), _NEVER)
        self._costs[0, 0] = 0

    def of(self, groups: Sequence[int]) -> Viterbi:
        """The paths through the lanes of some groups, for `put` to take back."""
        result = Viterbi(0, 0)
        result._costs = np.ascontiguousarray(self._costs[:, :, groups])  # `_traced_back` writes through a view of it
        return result

    def put(self, groups: Sequence[int], paths: Viterbi) -> None:
        """Go on in some groups from where their paths have come to."""
        self._costs[:, :, groups] = paths._costs

    def extend(self, left: Float32, bins: Float32, upper: Float32 | None, levels: Integers, errors: Float32) -> None:
        """Go on through some columns, and keep in each lane the path of least Σ errors² that leads there.

        Args:
            left: the weights f32[groups, K, rows], as errors of earlier columns left them.
            bins: bin widths f32[groups, K, rows].
            upper: how errors are fed forward, as in `Factor`, f32[groups, K, K]; None: they are not.
            levels: written, i32[groups, K, rows].
            errors: written, what is missing from the weights over U_jj.
        """
        groups, size, rows = left.shape
        shape = (2, 2, groups, rows)
        sign = np.array([1, -1], np.float32)[:, None, None, None]
        before = np.empty((2, 2, groups, size if upper is not None else 0, rows), np.float32)  # errors on each path
        other = np.empty_like(before)
        error, second = np.empty((size, *shape), np.float32), np.empty((size, *shape), bool)
        nearest, missing = np.empty(shape, np.float32), np.empty((2, *shape), np.float32)  # by parity of symbols
        for column in range(size):
            weights = left[:, column]
            if upper is not None and column:
                weights = weights - np.matmul(upper[:, None, :column, column], before[:, :, :, :column])[:, :, :, 0]
            unit = 2 * bins[:, column] * sign
            scaled = weights / unit
            scaled -= np.float32(0.125)
            for parity in (0, 1):
                np.rint(scaled, out=nearest)
                np.subtract(scaled, nearest, out=missing[parity])
                scaled -= np.float32(0.5)
            missing *= unit if upper is None else unit / upper[:, column, column, None]
            costs = np.square(missing)
            costs += self._costs
            # A state (sign, before) comes from one whose sign is `before`: from (before, plus) by a symbol whose parity
            # is `sign`, or from (before, minus) by one of the other parity.
            np.less(costs[::-1, :, 1], costs[:, :, 0], out=second[column])
            np.minimum(costs[:, :, 0], costs[::-1, :, 1], out=self._costs)
            choice = np.negative(second[column], dtype=np.int32)
            _select(missing[:, :, 0], missing[::-1, :, 1], choice, error[column])
            if upper is not None and column + 1 < size:
                known = before[None, :, :, :, :column]
                _select(known[:, :, 0], known[:, :, 1], choice[:, :, :, None], other[:, :, :, :column])
                other[:, :, :, column] = error[column]
                before, other = other, before
        minus = self._traced_back(error, second, errors)
        restored = left - (errors if upper is None else np.matmul(upper.swapaxes(1, 2), errors))
        restored /= bins
        signs = np.where(minus, np.float32(-1), np.float32(1))
        levels[:] = (4 * np.rint(restored * signs - np.float32(0.25)) + 1) * signs

    def _traced_back(self, error: Float32, second: NDArray[np.bool_], errors: Float32) -> NDArray[np.bool_]:
        """Keep the best path alone, write its errors, and return which of its weights lie on the minus side."""
        size, _, _, groups, rows = error.shape
        costs, second = self._costs.reshape(4, -1), second.reshape(size, -1)
        lanes = np.arange(groups * rows)
        state = costs.argmin(axis=0)
        costs[:] = _NEVER
        costs[state, lanes] = 0
        minus, places = np.empty((size, lanes.size), bool), np.empty((size, lanes.size), np.intp)
        for column in range(size - 1, -1, -1):
            np.multiply(state, lanes.size, out=places[column])
            places[column] += lanes
            state &= 1
            minus[column] = state
            state *= 2
            state += second[column].take(places[column])
        errors[:] = np.take_along_axis(error.reshape(size, -1), places, 1).reshape(size, groups, rows).swapaxes(0, 1)
        return minus.reshape(size, groups, rows).swapaxes(0, 1)


def _select(first: Float32, second: Float32, choice: Integers, out: Float32) -> None:
    """Write `second` where the choice is −1 and `first` where it is 0, bit by bit: faster than a masked copy."""
    one, found = first.view(np.int32), out.view(np.int32)
    np.bitwise_xor(one, second.view(np.int32), out=found)
    found &= choice
    found ^= one
