"""The k at which the deviation crosses a limit, where single measurements are a matter of luck.

From one k to the next, other errors of rounding meet the same few samples, and what they cause leaps by a quarter. On
many samples it falls smoothly, about as 1/k² (Proposition 1). So the smallest k that holds on few samples is one that
was lucky there; a line through measurements at several k tells more of what others will see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.errors import TargetError

Floats = NDArray[np.floating[Any]]
Measure = Callable[[float], Floats]  # k → the deviation of each sample; NaN for one that is left out

_SLOPE = 2.0  # of −log deviation over log k, by Proposition 1 …
_SURE = 0.06  # … and how sure that is, as a sum of squared distances in log k: measurements close together tell less
_FLATTEST = 0.5
_NEAR = 0.15  # distance in log k from the crossing at which a measurement counts for half
_SCATTER, _ASSUMED = 0.1, 1  # of log deviation, before any is seen, and as how many measurements that counts
_CLEAR = 1.0  # log deviation over limit beyond which it is no luck that it is above, or below
_LEAST = 4.0  # measurements near the crossing, at least
_FAR = 8  # measurements beyond the budget where none is near it
_LEAP = 5.5  # log of deviation over limit that counts at most: k grows or shrinks 16 times at once
_STEPS = (0.0, 0.05, -0.05, 0.1, -0.1, 0.025, -0.025, 0.075, -0.075, 0.125, -0.125, 0.15)  # in log k, from the crossing
_APART = 0.0125
_LARGEST = 2.0  # cosine distance; infinite ones count as that
_ROUNDS = 20


@dataclass(frozen=True)
class _Line:
    """Log deviation over limit, by log k: where it crosses 0, how steeply, the standard error, and what it is of."""

    root: float
    slope: float
    error: float
    weights: Floats

    @classmethod
    def through(cls, x: Floats, y: Floats) -> _Line:
        """The line of least squares, in which points far from the crossing count for little."""
        root = float(x[-1] + y[-1] / _SLOPE)
        for _ in range(_ROUNDS):
            weights = 1 / (1 + ((x - root) / _NEAR) ** 2)
            total = weights.sum()
            centre, height = weights @ x / total, weights @ y / total
            fall = _SURE * _SLOPE - weights @ ((x - centre) * (y - height))
            slope = max(float(fall / (_SURE + weights @ (x - centre) ** 2)), _FLATTEST)
            before, root = root, float(centre + height / slope)
            if abs(root - before) < _APART / 100:
                break
        low, high = x[y > _CLEAR].max(initial=-math.inf), x[y < -_CLEAR].min(initial=math.inf)
        if low < high and not low <= root <= high:
            if math.isfinite(low) and math.isfinite(high):  # a leap
                root = float(low + high) / 2
            else:  # from the one end that there is, by the law
                end = low if math.isfinite(low) else high
                root = float(end + y[x == end][0] / _SLOPE)
        squares = weights @ (y - height + slope * (x - centre)) ** 2
        scatter = math.sqrt((squares + _ASSUMED * _SCATTER**2) / (max(total - 1, 0.0) + _ASSUMED))
        return cls(root, slope, scatter / math.sqrt(total) / slope, weights)

    @property
    def near(self) -> float:
        """How many measurements tell of the crossing."""
        return float(self.weights.sum())


def crossing(
    measure: Measure,
    limit: float,
    start: float,
    lowest: float,
    highest: float,
    margin: float = 0.0,
    tolerance: float = 0.02,
    budget: int = 12,
) -> float:
    """The k where the mean deviation of samples like these crosses the limit, as a line through measurements says.

    Args:
        measure: k → the deviation of each sample; NaN for one that is left out there.
        limit: what their mean is to be, > 0.
        start: first k to try.
        lowest, highest: the smallest and largest k to try.
        margin: standard errors of the mean, as samples differ from each other, by which it is to stay below the limit.
        tolerance: standard error of log k, as measurements scatter about the line, that will do.
        budget: measurements; exceeded only while all are far from the crossing.

    Raises:
        TargetError: the mean at `highest` is above the limit.
    """
    ks: list[float] = []
    values: list[Floats] = []
    k = min(max(start, lowest), highest)
    while True:
        ks.append(math.log(k))
        values.append(np.minimum(measure(k), _LARGEST))
        mean = float(np.nanmean(values[-1]))
        if mean > limit and k >= highest:
            raise TargetError("not reached", min(float(np.nanmean(value)) for value in values))
        x, y = np.array(ks), np.array([_height(float(np.nanmean(value)), limit) for value in values])
        line = _Line.through(x, y)
        is_near, is_sure = line.near >= _LEAST, line.error <= tolerance or len(ks) >= budget
        if (is_near and is_sure) or len(ks) >= budget + _FAR or (k <= lowest and line.root <= math.log(lowest)):
            break
        k = min(max(math.exp(_next(line.root, ks)), lowest), highest)
    spare = math.log1p(margin * _standard_error(x, values, line)) / line.slope if margin else 0.0
    return min(max(math.exp(line.root + spare), lowest), highest)


def _height(mean: float, limit: float) -> float:
    return min(max(math.log(mean / limit), -_LEAP), _LEAP) if mean > 0 else -_LEAP


def _next(root: float, tried: Sequence[float]) -> float:
    """The log k to try next: at the crossing, or beside it where that is tried."""
    free = (root + step for step in _STEPS if all(abs(root + step - x) > _APART for x in tried))
    return next(free, root)


def _standard_error(x: Floats, values: Sequence[Floats], line: _Line) -> float:
    """That of the mean over samples, relative to it: of each one's mean over all measurements, where luck averages."""
    relative = np.exp(line.slope * (x - line.root)) * line.weights
    samples = relative @ np.stack(values)
    samples = samples[~np.isnan(samples)]
    if len(samples) < 2:
        return 0.0
    mean = float(samples.mean())
    return float(samples.std(ddof=1)) / math.sqrt(samples.size) / mean if mean > 0 else 0.0
