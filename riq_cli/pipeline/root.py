"""The k at which the deviation meets a target, where a single measurement is a matter of luck.

From one k to the next, other rounding errors meet the same few samples, and the deviation leaps by a quarter. On many
samples it falls smoothly, about as 1/k² (Proposition 1). So the smallest k that holds on few samples is one that was
lucky there; a line through measurements at several k tells more of what other samples will show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from riq_cli.errors import TargetError

Floats = NDArray[np.floating[Any]]
Measure = Callable[[float], Floats]  # k → the deviation of each sample; NaN for one that is left out

_SLOPE = 2.0  # of −log deviation over log k, by Proposition 1 …
_SURE = 0.06  # … and how sure that is, as a sum of squared distances in log k: measurements close together tell less
_FLATTEST = 0.5
_NEAR = 0.15  # distance in log k from the root at which a measurement counts for half
_CLEAR = 1.0  # log of deviation over target beyond which it is no luck that it is above, or below
_ENOUGH, _SOME = 2.5, 1.5  # measurements near the root; that will do after so many
_MOST, _FAR = 6, 8  # measurements in all, and how many more where none is near the root
_LEAP = 5.5  # log of deviation over target that counts at most: k grows or shrinks 16 times at once
_STEPS = (0.0, 0.05, -0.05, 0.1, -0.1, 0.15)  # in log k, from the root, where it was measured already
_APART = 0.0125
_LARGEST = 2.0  # cosine distance; infinite ones count as that
_ROUNDS = 20


class _Line(NamedTuple):
    """Log of deviation over target, by log k: where it is 0, how steeply it falls, the weight of each measurement."""

    root: float
    slope: float
    weights: Floats


def root(
    measure: Measure, target: float, start: float, lowest: float, highest: float, margin: float = 0.0, most: int = _MOST
) -> float:
    """The k at which the mean deviation of samples like these meets the target, as a line through measurements says.

    Args:
        measure: k → the deviation of each sample; NaN for one that is left out there.
        target: what their mean is to be, > 0.
        start: first k to try.
        lowest, highest: the smallest and largest k to try.
        margin: standard errors of the mean, as samples differ from each other, by which it is to stay below the target.
        most: measurements; exceeded only while all are far from the root.

    Raises:
        TargetError: the mean at `highest` is above the target.
    """
    ks: list[float] = []
    values: list[Floats] = []
    k = min(max(start, lowest), highest)
    while True:
        ks.append(math.log(k))
        values.append(np.minimum(measure(k), _LARGEST))
        means = [float(np.nanmean(value)) for value in values]
        if means[-1] > target and k >= highest:
            raise TargetError("not reached", min(means))
        x, y = np.array(ks), np.array([_height(mean, target) for mean in means])
        line = _through(x, y)
        near = float(line.weights.sum())
        is_done = near >= min(_ENOUGH, most) or (near >= _SOME and len(ks) >= most) or len(ks) >= most + _FAR
        if is_done or (k <= lowest and line.root <= math.log(lowest)):
            break
        k = min(max(math.exp(_next(line.root, ks)), lowest), highest)
    spare = math.log1p(margin * _standard_error(x, values, line)) / line.slope if margin else 0.0
    return min(max(math.exp(line.root + spare), lowest), highest)


def _height(mean: float, target: float) -> float:
    return min(max(math.log(mean / target), -_LEAP), _LEAP) if mean > 0 else -_LEAP


def _through(x: Floats, y: Floats) -> _Line:
    """The line of least squares, in which points far from its root count for little."""
    place = float(x[-1] + y[-1] / _SLOPE)
    for _ in range(_ROUNDS):
        weights = 1 / (1 + ((x - place) / _NEAR) ** 2)
        total = weights.sum()
        centre, height = weights @ x / total, weights @ y / total
        fall = _SURE * _SLOPE - weights @ ((x - centre) * (y - height))
        slope = max(float(fall / (_SURE + weights @ (x - centre) ** 2)), _FLATTEST)
        before, place = place, float(centre + height / slope)
        if abs(place - before) < _APART / 100:
            break
    low, high = x[y > _CLEAR].max(initial=-math.inf), x[y < -_CLEAR].min(initial=math.inf)
    if low < high and not low <= place <= high:
        if math.isfinite(low) and math.isfinite(high):  # a leap
            place = float(low + high) / 2
        else:  # from the one end that there is, by the law
            end = low if math.isfinite(low) else high
            place = float(end + y[x == end][0] / _SLOPE)
    return _Line(place, slope, weights)


def _next(place: float, tried: Sequence[float]) -> float:
    """The log k to try next: at the root, or beside it where that was tried."""
    free = (place + step for step in _STEPS if all(abs(place + step - x) > _APART for x in tried))
    return next(free, place)


def _standard_error(x: Floats, values: Sequence[Floats], line: _Line) -> float:
    """That of the mean over samples, relative to it: of each one's mean over all measurements, where luck averages."""
    relative = np.exp(line.slope * (x - line.root)) * line.weights
    samples = relative @ np.stack(values)
    samples = samples[~np.isnan(samples)]
    if len(samples) < 2:
        return 0.0
    mean = float(samples.mean())
    return float(samples.std(ddof=1)) / math.sqrt(samples.size) / mean if mean > 0 else 0.0
