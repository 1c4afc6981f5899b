"""Trellis-coded quantization: symbols that also tell on which of two sets of points the weights after them lie.

Along a lane of weights, symbol q stands for +(q + ¼) or −(q + ¼) bin widths. The sign is not stored: that of a lane's
first weight is plus, and the sign after a weight is the one before it, turned if the weight's symbol is odd. The points
for plus and for minus are each other's mirror images, half a bin width apart.

Symbols cost as many bits as those of a uniform quantizer of the same bin width, but there are many paths through a
lane: a symbol that is not the nearest turns a sign, which may bring later weights closer to their points. The best path
has 0.8 times the squared error, which is worth 0.15 of the 0.25 bits/weight that no scalar quantizer can reach
(Marcellin and Fischer 1990; theirs is the trellis of four states, here the signs of the next weight and of the one
before it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int32]

PARTS = 4  # of a bin width: a level is a whole number of them
_SYMBOL_BOUND = 1 << 29  # |symbol| in any archive is below (FORMAT.md, "Codings")
_PART = 1 << 20  # values whose signs are found at once


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
    flat = levels.reshape(-1)
    result = np.empty_like(flat)
    for begin in range(0, flat.size, _PART):  # copies of all would be the most memory that rounding takes
        part = flat[begin : begin + _PART]
        result[begin : begin + _PART] = np.where(part & 2, -part, part) >> 2
    return result.reshape(levels.shape)
