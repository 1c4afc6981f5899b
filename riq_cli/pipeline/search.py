"""The smallest k whose measured value meets the limit. Only a k that was measured is ever returned.

`algorithm1` is the paper's search, `bisection` that of allocations by a formula and of constraints, `largest` that of
budgets. Where plans are fitted to samples, a deviation goes by `root.root`, a line through several measurements.

The search sees a function k → value and a limit; what is measured is the caller's. Deviation falls as 1/k² in the
high-rate regime (Proposition 1), but not monotonically at a fine scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from riq_cli.errors import TargetError

K_UNBOUNDED = float(1 << 31)  # upper bound of k for ε0 = 0 (footnote 4 of the paper)

Measure = Callable[[float], float]


@dataclass(frozen=True)
class Found:
    """The solution of a search: `k`, and the value measured there."""

    k: float
    value: float


def upper_bound(largest: int, epsilon: float) -> float:
    """Upper bound of k, √(n*/24) / (ε0 √ε0), Proposition 2; the bound of footnote 4 for ε0 = 0.

    Args:
        largest: number of weights n* of the largest layer.
        epsilon: ε0 in [0, 1).
    """
    if epsilon == 0:
        return K_UNBOUNDED
    return min(K_UNBOUNDED, math.sqrt(largest / 24) / (epsilon * math.sqrt(epsilon)))


def lower_bound(largest: int, epsilon: float) -> float:
    """Lower bound of k, √(n*/24) / (1 − ε0), Proposition 2."""
    return math.sqrt(largest / 24) / (1 - epsilon)


def algorithm1(measure: Measure, limit: float, lowest: float, highest: float) -> Found:
    """The solution of the paper's Algorithm 1: ascending steps, refined to their square root at each success.

    The listing ends when a step ≤ 3 succeeds. Two things it leaves open: where rounding carries k over the last success
    before that, the last success is the solution, since it was measured; and after a success near `lowest`, the step
    back ends at `lowest`, not at a negative k.

    Args:
        measure: k → value.
        limit: what the value must not exceed.
        lowest: k_min of Proposition 2.
        highest: k_max of Proposition 2.

    Raises:
        TargetError: no k up to `highest` meets the limit.
    """
    k, step = lowest, math.sqrt(max(highest - lowest, 0.0))
    best, found = math.inf, None
    while k <= highest:
        value = measure(k)
        best = min(best, value)
        if value <= limit:
            found = Found(k, value)
            if step <= 3:
                break
            highest = k
            step = math.sqrt(step)
            k = max(k - step * math.floor(step), lowest - step)
        k += step
    if found is None:
        raise TargetError("not reached", best)
    return found


_FINE = 64  # rungs of an octave, of which each step until the end takes four: 4.4 % of k
_COARSE, _LEAP = 4, 32
_NEAR = 1.5  # times the limit: a value up to that may meet it at a k a little coarser, where the value is rough


def bisection(
    measure: Measure,
    limit: float,
    lowest: float,
    highest: float,
    start: float | None = None,
    roughly: Measure | None = None,
) -> Found:
    """A small k that holds, on a ladder of k that is the same for all limits: a larger limit ends at no larger k.

    An octave of k is found by bisection, of which the coarse end fails and the fine end holds. In it the search begins
    a little below where the value comes to the limit, goes up to the first rung that holds, and bisects the way to
    that. Which rung is tried next depends on nothing but how those before it compare with the limit. So, however rough
    the value is: at the first rung where two limits decide differently, the larger one goes to the coarser side.

    Args:
        measure: k → value.
        limit: what the value must not exceed.
        lowest, highest: ends of the ladder.
        start: where k is looked for first, by half octaves, for a value that need not fall as k grows: in the half
            octave whose fine end holds, every rung is tried upward. Limits with other starts may end in another order.
            None: the whole ladder is halved.
        roughly: k → about the value, at less cost: the search begins where it comes to the limit, and the first rung
            from there on that holds is the solution. None: the value itself, and the rungs between are bisected.

    Raises:
        TargetError: neither the last rung nor any other that was tried meets the limit.
    """
    values: dict[int, float] = {}
    about: dict[int, float] = {}

    def k(rung: int) -> float:
        return min(lowest * 2 ** (rung / _FINE), highest)

    def at(rung: int) -> float:
        if rung not in values:
            values[rung] = measure(k(rung))
        return values[rung]

    def near(rung: int) -> float:
        if roughly is None:
            return at(rung)
        if rung not in about:
            about[rung] = roughly(k(rung))
        return about[rung]

    def halved(low: int, high: int, bound: float, apart: int, step: int = _COARSE) -> tuple[int, int]:
        """Two rungs at most so far apart, between one that is beyond a bound and one that is not."""
        while high - low > apart:
            middle = (low + high) // (2 * step) * step
            low, high = (low, middle) if near(middle) <= bound else (middle, high)
        return low, high

    last = math.ceil(_FINE / _COARSE * math.log2(highest / lowest)) * _COARSE
    if start is None:
        low, high = halved(-_COARSE, last, limit, _FINE)
    else:
        high = min(max(round(_FINE / _COARSE * math.log2(start / lowest)) * _COARSE, 0), last)
        low = -_COARSE
        while at(high) > limit and high < last:
            low, high = high, min(high + _LEAP, last)
        while low < 0 < high and at(max(high - _LEAP, 0)) <= limit:
            high = max(high - _LEAP, 0)
        low = max(low, high - _LEAP)
    if roughly is None and at(high) > limit:  # the last: no other rung held
        raise TargetError("not reached", min(values.values()))
    first = low + _COARSE if start is not None else halved(low, high, _NEAR * limit, _COARSE)[1]
    held = first
    while at(held) > limit:
        if held >= last or (held >= first + _FINE and at(last) > limit):  # the value is far from what it roughly is
            raise TargetError("not reached", min(values.values()))
        held = min(held + _COARSE, last)
    if roughly is None:
        _, held = halved(max(held - _COARSE, 0), held, limit, 1, 1)
    return Found(k(held), at(held))


_TRIES = 20
_CLOSE = 1.001  # between a k within a budget and one beyond it
_OCTAVES = 32  # of k that a step takes at most


def largest(bits: Measure, budget: float, weights: int, start: float, lowest: float) -> float:
    """The largest k whose bits are within a budget, `lowest` if none is.

    Args:
        bits: k → bits, which grow about as weights · log₂ k.
        budget: of bits.
        weights: number of them.
        start: first k to try.
        lowest: the smallest k to try.
    """
    low, high, k = 0.0, math.inf, start
    bits_low = bits_high = 0.0
    for _ in range(_TRIES):
        found = bits(k)
        if found <= budget:
            low, bits_low = k, found
        else:
            high, bits_high = k, found
        if low and high < low * _CLOSE:
            break
        if low and high < math.inf:  # between the ends, but not too near to either
            share = min(max((budget - bits_low) / (bits_high - bits_low), 0.1), 0.9)
            k = low * (high / low) ** share
        else:
            octaves = max(min((budget - found) / weights, _OCTAVES), -_OCTAVES)
            k *= 2 ** (max(1.1 * octaves, 0.05) if found <= budget else min(1.1 * octaves, -0.05))
            k = min(max(k, lowest), K_UNBOUNDED)
        if k == low:
            break
    return low or lowest
