"""The smallest k whose measured value meets the limit. Only a k that was measured is ever returned.

The search sees a function k → value and a limit; what is measured is the caller's. Deviation falls as 1/k² in the
high-rate regime (Proposition 1), but not monotonically at a fine scale.
"""

from __future__ import annotations

import itertools
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


def secant(
    measure: Measure,
    limit: float,
    start: float,
    lowest: float,
    highest: float = K_UNBOUNDED,
    tolerance: float = 0.01,
    budget: int = 10,
) -> Found:
    """The smallest measured k that meets the limit, by a bracketing secant in (1/k, √value).

    By Proposition 1 and eq. (7) the deviation is about (a/k + b)², with b = 0 for ε0 = 0: a line in these coordinates.

    Args:
        measure: k → value.
        limit: what the value must not exceed, > 0.
        start: first k to try.
        lowest: k_min of Proposition 2; smaller ones are not tried.
        highest: largest k to try.
        tolerance: the search ends when a k that fails lies within this fraction of one that holds.
        budget: evaluations; exceeded only while none has met the limit.

    Raises:
        TargetError: the value at `highest` is above the limit.
    """
    bracket = _Bracket(measure, limit, tolerance, lowest)
    k = min(max(start, lowest), highest)
    while bracket.high is None or (bracket.count < budget - 2 and not bracket.closed):
        bracket.try_at(k)
        if bracket.high is None and k >= highest:
            raise TargetError("not reached", bracket.best)
        k = min(max(bracket.next(), lowest), highest)
    # The deviation is rough at a fine scale: a k below the bracket may hold as well, and further below where it is
    # seen to be rough.
    for steps in (3.0, 10.0, 25.0, 45.0) if bracket.rough else (1.5, 3.0):
        k = bracket.high.k * (1 - steps * tolerance)
        if bracket.count < budget and k >= lowest:
            bracket.try_at(k)
    return bracket.high


_STEP_MAX = 16.0  # factor by which k may grow or shrink at once


class _Bracket:
    """What has been measured, and where to look next."""

    def __init__(self, measure: Measure, limit: float, tolerance: float, lowest: float) -> None:
        self._measure, self._limit, self._tolerance, self._lowest = measure, limit, tolerance, lowest
        self.low: Found | None = None  # largest k below `high` that fails
        self.high: Found | None = None  # smallest k that holds
        self.best = math.inf
        self.count = 0
        self._points: list[Found] = []

    @property
    def closed(self) -> bool:
        """Whether nothing is to be gained between the two ends."""
        if self.high is None:
            return False
        if self.low is None:
            return self.high.k <= self._lowest
        return self.high.k <= self.low.k * (1 + self._tolerance)

    @property
    def rough(self) -> bool:
        """Whether a larger k was seen to be worse than a smaller one."""
        values = [point.value for point in sorted(self._points, key=lambda point: point.k)]
        return any(after > before for before, after in itertools.pairwise(values))

    def try_at(self, k: float) -> None:
        """Measure at k and keep the ends of the bracket."""
        point = Found(k, self._measure(k))
        self._points.append(point)
        self.count += 1
        self.best = min(self.best, point.value)
        if point.value <= self._limit:
            if self.high is None or k < self.high.k:
                self.high = point
                if self.low is not None and self.low.k >= k:
                    self.low = None
        elif (self.high is None or k < self.high.k) and (self.low is None or k > self.low.k):
            self.low = point

    def next(self) -> float:
        """The k at which the value should just meet the limit: inside the bracket, and away from its ends."""
        low, high, newest = self.low, self.high, self._points[-1]
        margin = 1 + self._tolerance / 2
        if low is not None and high is not None:
            if high.k <= low.k * (1 + 3 * self._tolerance):
                return math.sqrt(low.k * high.k)
            # Where one end stays, its weight is halved (the Illinois rule): the other end would creep otherwise.
            stays = len(self._points) > 2 and self._side(self._points[-2]) == self._side(newest)
            weights = (
                self._excess(low) * (0.5 if stays and newest is high else 1.0),
                self._excess(high) * (0.5 if stays and newest is low else 1.0),
            )
            x = (1 / low.k * weights[1] - 1 / high.k * weights[0]) / (weights[1] - weights[0])
            return min(max(1 / x, low.k * margin), high.k / margin)
        slope = (self._excess(newest) + math.sqrt(self._limit)) * newest.k  # of a line through the origin
        if len(self._points) > 1:
            before = self._points[-2]
            measured = (self._excess(before) - self._excess(newest)) / (1 / before.k - 1 / newest.k)
            slope = measured if measured > 0 else slope
        x = 1 / newest.k - self._excess(newest) / slope if slope > 0 else math.inf
        factor = _STEP_MAX if x <= 0 else 1 / (x * newest.k)
        factor *= margin if high is None else 1 / margin  # a little beyond the estimate, to bracket the solution
        return newest.k * min(max(factor, 1 / _STEP_MAX), _STEP_MAX)

    def _side(self, point: Found) -> bool:
        return point.value <= self._limit

    def _excess(self, point: Found) -> float:
        """√value − √limit; infinity, where outputs hold NaN, counts as the largest cosine distance."""
        return math.sqrt(min(point.value, 2.0)) - math.sqrt(self._limit)


def reachable_epsilon(measure: Measure, limit: float, epsilon: float, value: float) -> float:
    """The largest of ε0/2, ε0/4, ε0/8 … that reaches the limit at its own largest k; 0 if ε0/64 does not.

    Args:
        measure: ε0 → value at k = `upper_bound(n*, ε0)`; it grows about as ε0².
        limit: what the value must not exceed.
        epsilon: an ε0 that fails.
        value: the value measured there.
    """
    halvings = max(1, math.ceil(math.log2(max(min(value, 2.0) / limit, 1.0)) / 2))
    if halvings > 1 and measure(epsilon / 2 ** (halvings - 1)) <= limit:
        return epsilon / float(2 ** (halvings - 1))
    while halvings <= 6:
        if measure(epsilon / 2**halvings) <= limit:
            return epsilon / float(2**halvings)
        halvings += 1
    return 0.0


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
