"""Trellis-coded quantization: the levels of least error along many lanes, by Viterbi's algorithm.

`riq_cli.decode.trellis` tells what levels are, and which symbols stand for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from riq_cli.decode.trellis import PARTS

Integers = NDArray[np.int32]
Float32 = NDArray[np.float32]

SYMBOL_MAX = 1 << 18  # |symbol| at most that `Viterbi` finds levels for: float32 represents quarters of bins up to it
_NEVER = np.float32(1e30)  # cost of a state that cannot be


class Viterbi:
    """The best ways so far through many lanes, one to each state: f32[2, 2, groups, rows] costs.

    A state is the sign of the next weight (first axis) and that of the one before it; 0 is plus.
    """

    def __init__(self, groups: int, rows: int) -> None:
        """At the beginning of all lanes."""
        self._costs = np.full((2, 2, groups, rows), _NEVER)
        self._costs[0, 0] = 0

    def of(self, groups: Sequence[int]) -> Viterbi:
        """The ways through the lanes of some groups, for `put` to take back."""
        result = Viterbi(0, 0)
        result._costs = self._costs[:, :, groups]
        return result

    def put(self, groups: Sequence[int], ways: Viterbi) -> None:
        """Go on in some groups from where their ways have come to."""
        self._costs[:, :, groups] = ways._costs

    def extend(self, left: Float32, bins: Float32, upper: Float32 | None, levels: Integers, errors: Float32) -> None:
        """Go on through some columns, and settle on the ways of least Σ errors² that lead there.

        Args:
            left: the weights f32[groups, K, rows], as errors of earlier columns left them.
            bins: bin widths f32[groups, K, rows].
            upper: how errors spread, as in `rounding.Factor`, f32[groups, K, K]; None: they do not.
            levels: written, i32[groups, K, rows].
            errors: written, what is missing from the weights over U_jj.
        """
        groups, size, rows = left.shape
        shape = (2, 2, groups, rows)
        sign = np.array([1, -1], np.float32)[:, None, None, None]
        spread = np.empty((2, 2, groups, size if upper is not None else 0, rows), np.float32)  # errors on each way
        other = np.empty_like(spread)
        level, error = np.empty((size, *shape), np.float32), np.empty((size, *shape), np.float32)
        second = np.empty((size, *shape), bool)
        points, missing = np.empty((2, *shape), np.float32), np.empty((2, *shape), np.float32)  # by parity of symbols
        for column in range(size):
            weights = left[:, column]
            if upper is not None and column:
                weights = weights - np.matmul(upper[:, None, :column, column], spread[:, :, :, :column])[:, :, :, 0]
            scaled = (weights / bins[:, column]) * sign
            scaled -= np.float32(0.25)
            scaled *= np.float32(0.5)
            for parity in (0, 1):
                np.rint(scaled, out=points[parity])
                np.subtract(scaled, points[parity], out=missing[parity])
                scaled -= np.float32(0.5)
            unit = 2 * bins[:, column]
            missing *= unit if upper is None else unit / upper[:, column, column, None]
            costs = np.square(missing)
            costs += self._costs
            # A state (sign, before) comes from one whose sign is `before`: from (before, plus) by a symbol whose parity
            # is `sign`, or from (before, minus) by one of the other parity.
            choice = np.negative(np.less(costs[::-1, :, 1], costs[:, :, 0], out=second[column]), dtype=np.int32)
            _select(costs[:, :, 0], costs[::-1, :, 1], choice, self._costs)
            points *= 2 * PARTS
            points += np.array([1, PARTS + 1], np.float32)[:, None, None, None, None]
            for values, chosen in ((points, level[column]), (missing, error[column])):
                values *= sign
                _select(values[:, :, 0], values[::-1, :, 1], choice, chosen)
            if upper is not None and column + 1 < size:
                before = spread[None, :, :, :, :column]
                _select(before[:, :, 0], before[:, :, 1], choice[:, :, :, None], other[:, :, :, :column])
                other[:, :, :, column] = error[column]
                spread, other = other, spread
        self._settle(level, error, second, levels, errors)

    def _settle(
        self, level: Float32, error: Float32, second: NDArray[np.bool_], levels: Integers, errors: Float32
    ) -> None:
        """Keep the best way alone, and write what it goes through."""
        state = self._costs.reshape(4, *self._costs.shape[2:]).argmin(axis=0)[None]
        self._costs[:] = _NEVER
        np.put_along_axis(self._costs.reshape(4, *self._costs.shape[2:]), state, 0, axis=0)
        for column in range(len(level) - 1, -1, -1):
            at = [part[column].reshape(4, *part.shape[3:]) for part in (level, error, second)]
            levels[:, column], errors[:, column], back = (np.take_along_axis(part, state, 0)[0] for part in at)
            state = 2 * (state & 1) + back


def _select(first: Float32, second: Float32, choice: Integers, out: Float32) -> None:
    """Write `second` where the choice is −1 and `first` where it is 0, bit by bit: faster than a masked copy."""
    one, found = first.view(np.int32), out.view(np.int32)
    np.bitwise_xor(one, second.view(np.int32), out=found)
    found &= choice
    found ^= one
