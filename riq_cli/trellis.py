"""Trellis-coded quantization: symbols that also tell on which of two sets of points the weights after them lie.

Along a lane of weights, symbol q stands for +(q + ¼) or −(q + ¼) bin widths. The sign is not stored: that of a lane's
first weight is plus, and the sign after a weight is the one before it, turned if the weight's symbol is odd. The points
for plus and for minus are each other's mirror images, half a bin width apart.

Symbols cost as many bits as those of a uniform quantizer of the same bin width, but there are many ways through a lane:
a symbol that is not the nearest turns a sign, which may bring later weights closer to their points. The best way has
0.8 times the squared error, which is worth 0.15 of the 0.25 bits/weight that no scalar quantizer can reach (Marcellin
and Fischer 1990; theirs is the trellis of four states, here the signs of the next weight and of the one before it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int32]
Float32 = NDArray[np.float32]

PARTS = 4  # of a bin width: a level is a whole number of them
SYMBOL_MAX = 1 << 18  # |symbol| at most that `Ways` finds points for: float32 tells quarters of bins apart so far
_SYMBOL_BOUND = 1 << 29  # |symbol| in any archive is below (FORMAT.md, "Codings")
_PART = 1 << 20  # values whose signs are found at once
_NEVER = np.float32(1e30)  # cost of a state that cannot be


def positive_levels(symbols: Integers) -> Integers:
    """The levels 4q + 1 that symbols stand for where the sign is plus, in the same shape.

    Raises:
        ValueError: a symbol so large that no level is.
    """
    if max(-int(symbols.min()), int(symbols.max())) >= _SYMBOL_BOUND:
        raise ValueError("a symbol whose level is not below 2^31")
    result: Integers = 4 * symbols + 1
    return result


def set_signs(values: NDArray[Any], odd: NDArray[np.uint8], shape: Sequence[int], axes: Sequence[int]) -> None:
    """Turn the sign bit of each of a layer's values that lies on the minus side of its trellis.

    Args:
        values: of the layer, one-dimensional, of a type whose highest bit is its sign.
        odd: whether the symbol of each is odd, one bit each, the first in the highest bit of a byte.
        shape: of the layer.
        axes: at one index of each of these lies a lane, row-major along the others.
    """
    bits = values.view(f"<u{values.itemsize}")
    _Signs(bits, odd).turn(0, tuple(shape), tuple(axis in axes for axis in range(len(shape))), None)


class _Signs(NamedTuple):
    """The bits of a layer's values, and whether the symbol of each is odd, one bit each."""

    bits: NDArray[Any]
    odd: NDArray[np.uint8]

    def turn(
        self, begin: int, shape: tuple[int, ...], is_lane: tuple[bool, ...], state: NDArray[np.uint8] | None
    ) -> None:
        """Turn the signs of the part of the layer that begins at number `begin` and has this shape.

        Args:
            begin: of the part.
            shape: of the part.
            is_lane: whether lanes lie at one index of each of its axes.
            state: for each lane, 1 if its next sign is minus and 2 more if the one before it is, of the shape of the
                part along the axes of lanes; written when the part is through. None: its lanes begin and end in it.
        """
        size = math.prod(shape)
        if size <= _PART:
            self._turn_at_once(begin, shape, is_lane, state)
            return
        if state is None and not is_lane[0]:
            state = np.zeros([size for size, lane in zip(shape, is_lane, strict=True) if lane], np.uint8)
        row = size // shape[0]
        rows = max(1, _PART // row)
        for first in range(0, shape[0], rows):
            count = min(rows, shape[0] - first)
            there = state[first : first + count] if state is not None and is_lane[0] else state
            part, lanes = (count, *shape[1:]), is_lane
            if count == 1:
                there = there.reshape(there.shape[1:]) if there is not None and is_lane[0] else there  # a view
                part, lanes = part[1:], lanes[1:]
            self.turn(begin + first * row, part, lanes, there)

    def _turn_at_once(
        self, begin: int, shape: tuple[int, ...], is_lane: tuple[bool, ...], state: NDArray[np.uint8] | None
    ) -> None:
        """What `turn` does, for a small part."""
        bits = self.bits[begin : begin + math.prod(shape)]
        order = sorted(range(len(shape)), key=lambda axis: not is_lane[axis])  # lanes first
        lanes = math.prod(size for size, lane in zip(shape, is_lane, strict=True) if lane)
        flags = np.unpackbits(self.odd[begin // 8 : -(-(begin + bits.size) // 8)])[begin % 8 :][: bits.size].view(bool)
        turned = flags.reshape(shape).transpose(order)
        flags = turned.reshape(lanes, -1)
        minus = np.zeros((lanes, flags.shape[1] + 1), bool)  # of the values, and of those that come next
        for first in (0, 1):
            after = minus[:, first + 1 :: 2]
            np.logical_xor.accumulate(flags[:, first::2], axis=1, out=after)
        if state is not None:
            now = state.reshape(-1)
            minus[:, ::2] ^= (now & 1).astype(bool)[:, None]
            minus[:, 1::2] ^= (now >> 1).astype(bool)[:, None]
            state[...] = (minus[:, -1] + 2 * minus[:, -2].astype(np.uint8)).reshape(state.shape)
        back = minus[:, :-1].reshape(turned.shape).transpose(np.argsort(order))
        sign = bits.dtype.type(1 << (8 * bits.itemsize - 1))
        bits ^= back.reshape(-1) * sign


def symbols(levels: Integers) -> Integers:
    """The symbols of levels, in the same shape: q of 4q + 1 and of −(4q + 1)."""
    result: Integers = np.where(levels & 2, -levels, levels) >> 2
    return result


class Ways:
    """The best ways so far through many lanes, one to each state: f32[2, 2, groups, rows] costs.

    A state is the sign of the next weight (first axis) and that of the one before it; 0 is plus.
    """

    def __init__(self, groups: int, rows: int) -> None:
        """At the beginning of all lanes."""
        self._costs = np.full((2, 2, groups, rows), _NEVER)
        self._costs[0, 0] = 0

    def of(self, groups: Sequence[int]) -> Ways:
        """The ways through the lanes of some groups, for `put` to take back."""
        result = Ways(0, 0)
        result._costs = self._costs[:, :, groups]
        return result

    def put(self, groups: Sequence[int], ways: Ways) -> None:
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
