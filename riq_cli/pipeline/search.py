"""The smallest k whose measured value meets the limit. Only a k that was measured is ever returned.

`algorithm1` is the paper's search, `bisection` that of allocations by a formula, `climb` that of constraints, and
`largest` that of budgets. Where plans are fitted to samples, a deviation goes by `root.root`, a line through several
measurements.

The search sees a function k → value and a limit; what is measured is the caller's. Deviation falls as 1/k² in the
high-rate regime (Proposition 1), but not monotonically at a fine scale.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

from riq_cli.errors import TargetError

K_LOWEST = 1e-3  # lower bound of k where Proposition 2 says nothing: it bounds that of nearest rounding by norm
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


_FINE = 64  # rungs of an octave
_COARSE = 4  # rungs that are taken at once until the end: 4.4 % of k
_LEAP = 32  # rungs of half an octave
_NEAR = 1.5  # times the limit: a value up to that may meet it at a k a little coarser, where the value is rough


class _Ladder:
    """Values at rungs of k, which are the same for all limits; each is measured once."""

    def __init__(self, measure: Measure, limit: float, lowest: float, highest: float) -> None:
        self._measure, self._limit, self._lowest, self._highest = measure, limit, lowest, highest
        self._values: dict[int, float] = {}
        self.last = math.ceil(_FINE / _COARSE * math.log2(highest / lowest)) * _COARSE

    def k(self, rung: int) -> float:
        """The k of a rung."""
        return min(self._lowest * 2 ** (rung / _FINE), self._highest)

    def value(self, rung: int) -> float:
        """The value at a rung."""
        if rung not in self._values:
            self._values[rung] = self._measure(self.k(rung))
        return self._values[rung]

    def holds(self, rung: int) -> bool:
        """Whether the value at a rung meets the limit."""
        return self.value(rung) <= self._limit

    def climbed(self, first: int) -> int:
        """The first coarse rung from one on that holds.

        Raises:
            TargetError: none in an octave does, nor the last of all.
        """
        rung = first
        while not self.holds(rung):
            if rung >= self.last or (rung >= first + _FINE and not self.holds(self.last)):
                raise self.failure()
            rung = min(rung + _COARSE, self.last)
        return rung

    def refined(self, rung: int) -> Found:
        """The solution at a coarse rung that holds, or at a rung between it and the coarse one before it."""
        _, rung = _halved(self.value, max(rung - _COARSE, 0), rung, self._limit, 1, 1)
        return self.found(rung)

    def found(self, rung: int) -> Found:
        """The solution at a rung."""
        return Found(self.k(rung), self.value(rung))

    def failure(self) -> TargetError:
        """The error that no rung meets the limit."""
        return TargetError("not reached", min(self._values.values()))


def _halved(
    value: Callable[[int], float], low: int, high: int, bound: float, apart: int, step: int = _COARSE
) -> tuple[int, int]:
    """Two rungs at most so far apart, between one that is beyond a bound and one that is not."""
    while high - low > apart:
        middle = (low + high) // (2 * step) * step
        low, high = (low, middle) if value(middle) <= bound else (middle, high)
    return low, high


def bisection(measure: Measure, limit: float, lowest: float, highest: float, roughly: Measure | None = None) -> Found:
    """A small k that holds, on a ladder of k that is the same for all limits: a larger limit ends at no larger k.

    An octave of k is found by bisection, of which the coarse end fails and the fine end holds. In it the search begins
    a little below where the value comes to the limit, goes up to the first rung that holds, and bisects the way to
    that. Which rung is tried next depends on nothing but how those before it compare with the limit. So, however rough
    the value is: at the first rung where two limits decide differently, the larger one goes to the coarser side.

    Args:
        measure: k → value.
        limit: what the value must not exceed.
        lowest, highest: ends of the ladder.
        roughly: k → about the value, at less cost: the search begins where it comes to the limit, and the first rung
            from there on that holds is the solution. None: the value itself, and the rungs between are bisected.

    Raises:
        TargetError: neither the last rung nor any other that was tried meets the limit.
    """
    ladder = _Ladder(measure, limit, lowest, highest)
    if roughly is None:
        low, high = _halved(ladder.value, -_COARSE, ladder.last, limit, _FINE)
        if not ladder.holds(high):  # the last: no other rung held
            raise ladder.failure()
        _, first = _halved(ladder.value, low, high, _NEAR * limit, _COARSE)
        return ladder.refined(ladder.climbed(first))

    @functools.cache
    def about(rung: int) -> float:
        return roughly(ladder.k(rung))

    low, high = _halved(about, -_COARSE, ladder.last, limit, _FINE)
    _, first = _halved(about, low, high, _NEAR * limit, _COARSE)
    return ladder.found(ladder.climbed(first))


def climb(measure: Measure, limit: float, lowest: float, highest: float, start: float) -> Found:
    """A small k that holds, for a value that need not fall as k grows.

    From `start` on, half octaves are tried until the fine end of one holds and its coarse end does not. In it every
    coarse rung is tried upward; the rungs before the first that holds are bisected. Limits with other starts may end
    in another order.

    Args:
        measure, limit, lowest, highest: as in `bisection`.
        start: where k is looked for first.

    Raises:
        TargetError: neither the last rung nor any other that was tried meets the limit.
    """
    ladder = _Ladder(measure, limit, lowest, highest)
    nearest = round(_FINE / _COARSE * math.log2(start / lowest)) * _COARSE
    low, high = -_COARSE, min(max(nearest, 0), ladder.last)
    while not ladder.holds(high) and high < ladder.last:
        low, high = high, min(high + _LEAP, ladder.last)
    while low < 0 < high and ladder.holds(max(high - _LEAP, 0)):
        high = max(high - _LEAP, 0)
    if not ladder.holds(high):
        raise ladder.failure()
    return ladder.refined(ladder.climbed(max(low, high - _LEAP) + _COARSE))


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
