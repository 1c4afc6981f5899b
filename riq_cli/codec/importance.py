"""How much the rows of a layer matter to the outputs → bin widths of their own, and errors that spread among them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from riq_cli import rounding
from riq_cli.codec.plans import Plan
from riq_cli.gradients import Effects
from riq_cli.model import Layer
from riq_cli.moments import Float64

FEW = 8  # rows of a group, and rows in all, of fewer than which errors do not spread and none are told apart
_DAMPINGS = (0.1, 0.3, 1.0, 3.0)
_SAVED = 0.02  # bits a weight at least, by what the other half of the samples says
_TINY = 1e-300

_Rows = tuple[int, NDArray[np.int64]]  # a group, and rows in it
_Cost = Callable[[float | None, int], float]  # damping and the half it is fitted to → log2 of the error on the other


def with_importance(plan: Plan, layer: Layer, halves: tuple[Effects, Effects], most: int) -> Plan | None:
    """The plan with rows told apart by what their errors do to the outputs; None where that does not pay.

    At equal rate, bin widths ∝ 1/√importance cause least. Damping is the one that does best on the half of the samples
    that it was not fitted to.

    Args:
        plan: of the layer, without bin widths of rows.
        layer: the weights.
        halves: effects of the rows' errors, on two halves of the samples.
        most: rows of a group whose errors spread among each other.
    """
    groups, rows, _ = plan.matrix.shape
    if any(half.count == 0 or not half.squares.any() for half in halves):
        return None
    if rows < FEW:
        return _told_apart(plan, layer, [half.squares for half in halves])
    parts = [(group, run) for group in range(groups) for run in _runs(rows, most)]
    first, second = ([half.moments(*part) for part in parts] for half in halves)
    judged = (second, first)

    def cost(damping: float | None, half: int) -> float:
        if damping is None:
            return math.log2(sum(float(np.trace(moments)) for moments in judged[half]))
        spreads, importance = _spread(parts, judged[1 - half], damping, (groups, rows))
        squares = np.exp2(_codes(importance) / 2)
        pairs = zip(spreads, parts, judged[half], strict=True)
        total = sum(spread.error(moments, squares[group, run]) for spread, (group, run), moments in pairs)
        return math.log2(max(total, _TINY))

    damping = _best(cost)
    if damping is None:
        return None
    both = [one + other for one, other in zip(first, second, strict=True)]
    spreads, importance = _spread(parts, both, damping, (groups, rows))
    return plan.with_importance(layer, _codes(importance), importance, spreads)


def _told_apart(plan: Plan, layer: Layer, halves: Sequence[Float64]) -> Plan | None:
    """The plan with bin widths of rows only: errors of other groups are of other inputs, and do not make up for any."""

    def cost(damping: float | None, half: int) -> float:
        widths = 0 if damping is None else _codes(_damped(halves[half], damping))
        return math.log2(max(float(np.sum(halves[1 - half] * np.exp2(np.divide(widths, 2)))), _TINY))

    damping = _best(cost)
    if damping is None:
        return None
    importance = _damped(halves[0] + halves[1], damping)
    importance /= np.exp(np.log(importance).mean())
    return plan.with_importance(layer, _codes(importance), importance, ())


def _best(cost: _Cost) -> float | None:
    """The damping of least cost; None, equal bin widths, where it does not save enough."""
    costs = {damping: cost(damping, 0) + cost(damping, 1) for damping in (None, *_DAMPINGS)}
    best = min(costs, key=lambda damping: costs[damping])
    return best if (costs[None] - costs[best]) / 4 >= _SAVED else None  # half a bit for each doubling, two halves


def _spread(
    parts: Sequence[_Rows], moments: Sequence[Float64], damping: float, shape: tuple[int, int]
) -> tuple[list[rounding.Spread], Float64]:
    """How errors spread, and how much each row matters, f64[groups, rows], relative to the geometric mean."""
    importance = np.empty(shape)
    spreads = []
    level = sum(float(np.trace(moment)) for moment in moments) / math.prod(shape)
    for (group, run), moment in zip(parts, moments, strict=True):
        moment = moment / level
        own = max(float(np.trace(moment)) / len(run), rounding.TINY)  # rows of all parts are damped alike
        spread, importance[group, run] = rounding.spread(group, run, moment, damping / own)
        spreads.append(spread)
    importance /= np.exp(np.log(importance).mean())
    return spreads, importance


def _damped(squares: Float64, damping: float) -> Float64:
    result: Float64 = squares + damping * squares.mean()
    return result


def _codes(importance: Float64) -> rounding.Integers:
    """Bin widths ∝ 1/√importance, in quarters of an octave around their mean."""
    steps = -2 * np.log2(importance)
    codes = np.rint(steps - steps.mean()).astype(np.int32)
    result: rounding.Integers = np.clip(codes, -rounding.CODES_MAX, rounding.CODES_MAX)
    return result


def _runs(rows: int, most: int) -> list[NDArray[np.int64]]:
    """All rows in runs of about the same length, `most` at most."""
    count = -(-rows // most)
    cuts = [number * rows // count for number in range(count + 1)]
    return [np.arange(begin, end) for begin, end in itertools.pairwise(cuts)]
