"""The smallest k whose measured value meets the limit. Only a k that was measured is ever returned.

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
_COARSE = 4
_NEAR = 1.5  # times the limit: a value up to that may meet it at a k a little coarser, where the value is rough


def bisection(measure: Measure, limit: float, lowest: float, highest: float, rough: bool = False) -> Found:
    """A small k that holds, on a ladder of k that is the same for all limits: a larger limit ends at no larger k.

    An octave of k is found by bisection, of which the coarse end fails and the fine end holds. In it the search begins
    a little below where the value comes to the limit, goes up to the first rung that holds, and bisects the way to
    that. Which rung is tried next depends on nothing but how those before it compare with the limit. So, however rough
    the value is: at the first rung where two limits decide differently, the larger one goes to the coarser side.

    Args:
        measure: k → value.
        limit: what the value must not exceed.
        lowest, highest: ends of the ladder.
        rough: end with two rungs of which one fails and the other, at most 9 % finer, holds.

    Raises:
        TargetError: neither the last rung nor any other that was tried meets the limit.
    """
    values: dict[int, float] = {}

    def k(rung: int) -> float:
        return min(lowest * 2 ** (rung / _FINE), highest)

    def at(rung: int) -> float:
        if rung not in values:
            values[rung] = measure(k(rung))
        return values[rung]

    def halved(low: int, high: int, bound: float, apart: int, step: int = _COARSE) -> tuple[int, int]:
        """Two rungs at most so far apart, between one that is beyond a bound and one that is not."""
        while high - low > apart:
            middle = (low + high) // (2 * step) * step
            low, high = (low, middle) if at(middle) <= bound else (middle, high)
        return low, high

    last = math.ceil(_FINE / _COARSE * math.log2(highest / lowest)) * _COARSE
    low, high = halved(-_COARSE, last, limit, 2 * _COARSE if rough else _FINE)
    if at(high) > limit:  # the last: no other rung held
        raise TargetError("not reached", min(values.values()))
    if not rough:
        _, near = halved(low, high, _NEAR * limit, _COARSE)
        high = next(rung for rung in range(near, high + 1, _COARSE) if at(rung) <= limit)
        _, high = halved(max(high - _COARSE, 0), high, limit, 1, 1)
    return Found(k(high), at(high))


_RUNG = 2 ** (1 / 16)  # between neighbouring k of `scan`: less than 0.07 bits/weight
_LEAP = math.sqrt(2)  # eight rungs: how far it goes at a time until it has seen a k that holds, and one that fails


def scan(measure: Measure, limit: float, start: float, lowest: float, highest: float) -> Found:
    """The first k that holds, upward from the coarse end, for a value that need not fall as k grows.

    The coarse end is found by leaps from `start`, down to one that fails, or up to one that holds. From there every
    rung is measured, each 4 % finer than the one before, and the first that holds is the solution. (Tried: that one or
    two finer neighbours have to hold as well. Under a loss, archives grew by 2 to 12 % in the mean, and what held for
    luck on few samples mostly held for luck beside its neighbours; a margin in standard errors is what helps.)

    Args:
        measure: k → value.
        limit: what the value must not exceed.
        start: first k to try.
        lowest, highest: the smallest and largest k to try.

    Raises:
        TargetError: no leap up to `highest` met the limit.
    """
    k = min(max(start, lowest), highest)
    value = best = measure(k)
    failed = None
    while value > limit:
        if k >= highest:
            raise TargetError("not reached", best)
        failed, k = k, min(k * _LEAP, highest)
        value = measure(k)
        best = min(best, value)
    while failed is None and k > lowest:
        coarser = max(k / _LEAP, lowest)
        found = measure(coarser)
        if found <= limit:
            k, value = coarser, found
        else:
            failed = coarser
    rung = math.inf if failed is None else failed * _RUNG
    while rung * math.sqrt(_RUNG) < k:
        found = measure(rung)
        if found <= limit:
            return Found(rung, found)
        rung *= _RUNG
    return Found(k, value)
