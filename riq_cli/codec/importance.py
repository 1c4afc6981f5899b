"""How much the rows of a layer matter to the outputs → bin widths of their own, and errors that spread among them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from riq_cli import rounding
from riq_cli.codec.plans import Plan
from riq_cli.gradients import Effects
from riq_cli.model import Layer
from riq_cli.moments import Float64

_DAMPINGS = (0.03, 0.1, 0.3, 1.0)
_SAVED = 0.02  # bits a weight at least, by what the other half of the samples says
_PARTS = 8  # rows at least
_TINY = 1e-30


def with_importance(plan: Plan, layer: Layer, halves: tuple[Effects, Effects], most: int = 1024) -> Plan | None:
    """The plan with rows told apart by what their errors do to the outputs; None where that does not pay.

    At equal rate of a layer whose rows are rounded at high rate, bin widths ∝ 1/√importance cause least. The damping is
    the one that does best on the half of the samples that it was not fitted to.

    Args:
        plan: of the layer, without bin widths of rows.
        layer: the weights.
        halves: effects of the rows' errors, on two halves of the samples.
        most: rows whose errors spread among each other.
    """
    groups, rows, _ = plan.matrix.shape
    if plan.matrix.row_axes is None or groups * rows < _PARTS or any(half.count == 0 for half in halves):
        return None
    if groups > 1:
        return _told_apart(plan, layer, halves)
    parts = list(_parts(rows, most))
    moments = [[half.moments(part) for part in parts] for half in halves]
    if not all(np.isfinite(moment).all() and np.trace(moment) > 0 for half in moments for moment in half):
        return None

    def cost(damping: float | None, fit: list[Float64], judge: list[Float64]) -> float:
        """Half the binary logarithm of the error at a rate: bits a weight, less a constant."""
        if damping is None:
            return math.log2(sum(float(np.trace(moment)) for moment in judge) / rows) / 2
        found = [rounding.spread(part, moment, damping) for part, moment in zip(parts, fit, strict=True)]
        importance = np.concatenate([own for _, own in found])
        codes = _codes(importance)
        total = sum(
            float(rounding.spread_error(spread, part, judged, np.exp2(codes[part] / 2)))
            for (spread, _), part, judged in zip(found, parts, judge, strict=True)
        )
        return math.log2(max(total, _TINY) / rows) / 2

    first, second = moments
    costs = {damping: cost(damping, first, second) + cost(damping, second, first) for damping in (None, *_DAMPINGS)}
    best = min(costs, key=lambda damping: costs[damping])
    if best is None or costs[None] - costs[best] < 2 * _SAVED:
        return None
    joined = [one + other for one, other in zip(first, second, strict=True)]
    found = [rounding.spread(part, moment, best) for part, moment in zip(parts, joined, strict=True)]
    importance = np.concatenate([own for _, own in found])
    return plan.with_importance(
        layer, _codes(importance)[None], _relative(importance)[None], [spread for spread, _ in found]
    )


def _told_apart(plan: Plan, layer: Layer, halves: tuple[Effects, Effects]) -> Plan | None:
    """The plan with bin widths of rows only: errors of other groups' rows are of other inputs."""
    shape = plan.matrix.shape[:2]
    first, second = (half.squares.reshape(-1) for half in halves)
    if not all(np.isfinite(squares).all() and squares.sum() > 0 for squares in (first, second)):
        return None

    def cost(damping: float | None, fit: Float64, judge: Float64) -> float:
        if damping is None:
            return math.log2(float(judge.mean())) / 2
        return math.log2(float(np.mean(judge * np.exp2(_codes(fit + damping * fit.mean()) / 2)))) / 2

    costs = {damping: cost(damping, first, second) + cost(damping, second, first) for damping in (None, *_DAMPINGS)}
    best = min(costs, key=lambda damping: costs[damping])
    if best is None or costs[None] - costs[best] < 2 * _SAVED:
        return None
    joined = first + second
    joined += best * joined.mean()
    return plan.with_importance(layer, _codes(joined).reshape(shape), _relative(joined).reshape(shape), ())


def _codes(importance: Float64) -> rounding.Integers:
    """Bin widths ∝ 1/√importance, in quarters of an octave around their mean."""
    steps = -2 * np.log2(importance)
    codes = np.rint(steps - steps.mean())
    return np.clip(codes, -rounding.CODES_MAX, rounding.CODES_MAX).astype(np.int32)


def _relative(importance: Float64) -> Float64:
    result: Float64 = importance / np.exp(np.log(importance).mean())
    return result


def _parts(rows: int, most: int) -> Iterator[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Rows in runs of about the same length, of `most` at most."""
    count = -(-rows // most)
    for number in range(count):
        yield np.arange(number * rows // count, (number + 1) * rows // count)
