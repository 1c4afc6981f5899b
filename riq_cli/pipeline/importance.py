"""How much the rows of a layer matter to the outputs → bin widths of their own, and errors that spread among them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from riq_cli import quantize
from riq_cli.model import Layer
from riq_cli.pipeline.descent import FIXED, least_damping, less
from riq_cli.pipeline.plans import Plan
from riq_cli.quantize import Damping
from riq_cli.statistics.autodiff import Effects
from riq_cli.statistics.moments import Float64

Halves = tuple[Effects, Effects]  # of the samples

FEW = 8  # rows of a group, and rows in all, of fewer than which errors do not spread and none are told apart
_LOWEST = -2  # level of damping: a tenth. Less of it lets errors grow to where second moments tell too little of them
_HEARD = 0.1  # share of a layer's symbols that are not 0, at least, for what variations of samples say of its rows:
# among fewer, errors that spread with little damping cost more bits than they save
_SAVED = 0.02  # bits a weight at least, by what the other half of the samples says
_WEIGHTS = 1 << 16  # of a layer that stand for all of them where dampings are compared: some of its columns
_CLASSES, _CLASS_WEIGHTS = 8, 1 << 8  # of rows with a table each, and weights of each at least
_TINY = 1e-300


def with_importance(
    plan: Plan,
    layer: Layer,
    width: float,
    halves: Halves,
    before: Plan | None = None,
    varied: Halves | None = None,
    without: Collection[str] = (),
) -> Plan | None:
    """The plan with rows told apart by what their errors do to the outputs; None where that does not pay.

    At equal rate, bin widths ∝ 1/√importance cause least. Damping is the one that does best on the half of the samples
    that it was not fitted to.

    Args:
        plan: of the layer, without bin widths of rows.
        layer: the weights.
        width: about the bin width that it will have.
        halves: effects of the rows' errors, on two halves of the samples.
        before: a plan fitted to fewer samples: more of them need no more damping.
        varied: effects on variations of the samples of each half; fitted to as well where that does better.
        without: names of stages that are left out.
    """
    if not _are_usable(halves):
        return None
    judges = [_Moments.of(half) for half in halves]
    trials = _Trials(plan, layer, width, judges, "damping" in without)
    takes_varied = trials.heard > _HEARD if before is None else before.rows_varied
    fits = {False: judges}  # by whether they are of variations too
    if takes_varied and varied is not None and _are_usable(varied):
        fits[True] = [one.joined(_Moments.of(half)) for one, half in zip(judges, varied, strict=True)]
        if before is not None:
            del fits[False]
    least = {kind: trials.least(each) for kind, each in fits.items()}
    best = min(least, key=lambda kind: least[kind][1])
    damping: Damping | None = least[best][0] if trials.pays(least[best][1]) else None
    if before is not None:
        assert before.row_damping is not None
        damping = less(before.row_damping, damping)
    if damping is None:
        return None
    found = fits[best][0].joined(fits[best][1]).found(damping)
    return plan.with_importance(layer, found.codes, found.importance, found.spreads, damping, best)


def _are_usable(halves: Halves) -> bool:
    return all(half.count > 0 and half.squares.any() for half in halves)


class _Trials:
    """What it costs a layer to have its rows told apart by each half of the samples, judged on the other.

    That is bits at equal error of the outputs: half a bit a weight for each doubling of the error.
    """

    def __init__(self, plan: Plan, layer: Layer, width: float, judges: Sequence[_Moments], fixed: bool) -> None:
        columns = plan.some_columns(layer, _WEIGHTS)
        self._weights, self._widths, self._judges = columns.weights, columns.widths * width, judges
        self._fixed = fixed

    @property
    def heard(self) -> float:
        """Share of the symbols of nearest rounding that are not 0."""
        return float(np.mean(np.abs(self._weights) > self._widths / 2))

    def pays(self, cost: float) -> bool:
        """Whether rows that are all alike would cost more, and clearly."""
        alike = sum(self._cost(None, judge) for judge in self._judges)
        return alike - cost >= 2 * _SAVED * self._weights.size

    def least(self, fits: Sequence[_Moments]) -> tuple[Damping, float]:
        """The damping of least cost for moments of each half, and that cost."""

        def tried(damping: Damping) -> float:
            pairs = zip(fits, reversed(self._judges), strict=True)
            return sum(self._cost(fit.found(damping), judge) for fit, judge in pairs)

        return (FIXED, tried(FIXED)) if self._fixed else least_damping(tried, _LOWEST)

    def _cost(self, found: _Found | None, judge: _Moments) -> float:
        """That of what one half says, on the other."""
        weights, widths = self._weights, self._widths
        scales = np.ones(weights.shape[:2]) if found is None else np.exp2(found.codes / 4)
        symbols, _ = quantize.compensated(weights, (), widths, () if found is None else found.spreads, None, scales)
        own = widths * scales[..., None]
        error = judge.error(symbols * own - weights)
        return _bits(symbols, own / np.maximum(np.abs(weights).mean(axis=2, keepdims=True), _TINY)) + (
            symbols.size / 2 * math.log2(max(error, _TINY))
        )


@dataclass(frozen=True, eq=False)
class _Found:
    """Relative bin widths of rows and their importance, [groups, rows], and how errors spread among them."""

    codes: quantize.Integers
    importance: Float64
    spreads: tuple[quantize.Spread, ...]


@dataclass(frozen=True, eq=False)
class _Moments:
    """Second moments G of the effects of rows: of runs of rows of a group, or, of few rows, each row's alone."""

    shape: tuple[int, int]
    parts: Sequence[tuple[int, NDArray[np.int64]]]
    moments: Sequence[Float64]
    squares: Float64

    @classmethod
    def of(cls, half: Effects) -> _Moments:
        """Those of a half of the samples."""
        squares = half.squares
        groups, rows = squares.shape
        parts = half.runs if rows >= FEW else []
        return cls((groups, rows), parts, [half.moments(*part) for part in parts], squares)

    def joined(self, other: _Moments) -> _Moments:
        """The sum with those of another half."""
        moments = [one + more for one, more in zip(self.moments, other.moments, strict=True)]
        return _Moments(self.shape, self.parts, moments, self.squares + other.squares)

    def error(self, difference: Float64) -> float:
        """Σ tr(Eᵀ G E) of errors E f64[groups, rows, columns], where what rows multiply is white."""
        if not self.parts:
            return float(np.einsum("gnk,gnk,gn->", difference, difference, self.squares))
        total = 0.0
        for (group, run), moments in zip(self.parts, self.moments, strict=True):
            part = difference[group, run]
            total += float(np.sum(part * (moments @ part)))
        return total

    def found(self, damping: Damping) -> _Found:
        """What follows from the moments, trusted the less the more they are damped."""
        level = self.squares.mean()
        importance = self.squares / level * (1 + damping.own) + damping.even
        spreads = []
        for (group, run), moments in zip(self.parts, self.moments, strict=True):
            relative = moments / level
            own = max(float(np.trace(relative)) / len(run), quantize.TINY)  # rows of all runs are damped alike
            alike = damping._replace(even=damping.even / own)
            spread, importance[group, run] = quantize.spread(group, run, relative, alike)
            spreads.append(spread)
        importance /= np.exp(np.log(importance).mean())
        codes = np.clip(np.rint(-2 * np.log2(importance)), -quantize.CODES_MAX, quantize.CODES_MAX)
        return _Found(codes.astype(np.int32), importance, tuple(spreads))


def _bits(symbols: quantize.Integers, widths: Float64) -> float:
    """Bits of symbols whose rows are in classes with a table each, by how wide their bins are beside their weights.

    Those of the two-sided geometric distribution of the same mean magnitude: the entropy of a few symbols is no more
    than that of all being different, however narrow their bins are.
    """
    groups, rows, columns = symbols.shape
    count = max(min(_CLASSES, symbols.size // _CLASS_WEIGHTS, groups * rows), 1)
    order = np.argsort(widths.mean(axis=2).reshape(-1))
    magnitudes = np.abs(symbols, dtype=np.float64).reshape(-1, columns).mean(axis=1)
    total = 0.0
    for part in np.array_split(order, count):
        mean = float(magnitudes[part].mean())
        if mean > 0:
            ratio = (math.hypot(1, mean) - 1) / mean  # of the probabilities of a magnitude and the one before
            total += part.size * columns * (math.log2((1 + ratio) / (1 - ratio)) - mean * math.log2(ratio))
    return total
