"""Second moments of what a layer multiplies → the plan that does best on samples that it was not fitted to."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from riq_cli import quantize
from riq_cli.entropy.histogram import Histogram
from riq_cli.model import Layer, Linear
from riq_cli.pipeline.descent import FIXED, least_damping, less
from riq_cli.pipeline.plans import Plan, Positions, some_rows
from riq_cli.quantize import Damping, scalar
from riq_cli.statistics.moments import Collected, Float64, Halves, Moments

_LOWEST = -4  # level of damping: a hundredth
_CODE_BITS = 4.0  # of a column, to be safe
_EXERCISED = 1e-3  # a column with a smaller share of the mean second moment is one that the samples do not exercise


class _Kind(NamedTuple):
    """How positions count in moments, and whether they are of variations of the samples too."""

    positions: Positions
    varied: bool = False


_ALIKE = _Kind("alike")


def fitted(
    layer: Layer,
    linear: Linear,
    halves: Halves,
    width: float,
    before: Plan | None = None,
    shared: Halves | None = None,
    varied: Collected | None = None,
    without: Collection[str] = (),
) -> Plan | None:
    """The plan for a layer whose damping does best on the half of the samples that it was not fitted to.

    Args:
        layer: the weights.
        linear: the layer as matrices.
        halves: moments of its inputs on two halves of the samples.
        width: about the bin width that it will have.
        before: a plan fitted to fewer samples: more of them need no more damping, and positions count as they do in it.
        shared: moments in which positions count as much as they matter, where that is known. They judge: to fit to, few
            may matter. So it is fitted to those in which all count alike, to both, or to these, as does best.
        varied: moments of variations of the samples of each half; fitted to as well where that does better.
        without: names of stages that are left out.

    Returns:
        None where a half of the samples tells nothing, or, without a plan before, where nearest rounding does as well.
    """
    kinds: dict[_Kind, Halves] = {_ALIKE: halves}
    if shared is not None and _are_usable(shared):
        if before is None or before.positions == "both":
            kinds[_Kind("both")] = _joined(halves, shared)
        kinds[_Kind("shared")] = shared
    trials = _Trials(layer, linear, kinds, width, without)
    if not trials.are_usable:
        return None
    best = _ALIKE if before is None else _Kind(before.positions)
    if before is None or best not in kinds:
        best = trials.best(kinds)
    if varied is not None and (before is None or before.varied):
        more = best._replace(varied=True)
        if trials.takes(more, _joined(kinds[best], _counted(varied, best.positions))):
            best = more if before is not None else trials.best((best, more))
    chosen = trials.chosen(best, trials.judge)
    if before is not None:
        assert before.damping is not None
        return trials.plan(best, less(before.damping, chosen))
    if chosen is None:
        return None
    if best.positions == "alike":
        return trials.plan(best, chosen)
    alike = trials.chosen(_ALIKE, "alike")
    other = Plan.of(linear.matrix) if alike is None else trials.plan(_ALIKE, alike)
    return replace(trials.plan(best, chosen), alike=other)


def _are_usable(shared: Halves) -> bool:
    return all(half.mean.any() and _Second(half, False).is_usable for half in shared)


def _joined(one: Halves, other: Halves) -> Halves:
    return one[0].joined(other[0]), one[1].joined(other[1])


def _counted(varied: Collected, positions: Positions) -> Halves:
    """The moments of variations, in which positions count so as far as that is known."""
    if positions == "alike" or varied.shared is None or not _are_usable(varied.shared):
        return varied.alike
    return varied.shared if positions == "shared" else _joined(varied.alike, varied.shared)


class _Trials:
    """What it costs a layer, at about one bin width, to be fitted to each half of the samples and judged on the other.

    That is bits at equal error of the outputs: half a bit a weight for each doubling of the error.
    """

    def __init__(
        self, layer: Layer, linear: Linear, kinds: Mapping[_Kind, Halves], width: float, without: Collection[str]
    ) -> None:
        """Take moments of several kinds."""
        peak = scalar.peak(layer.values, layer.dtype)
        self._layer, self._linear, self._kinds, self._without = layer, linear, dict(kinds), without
        self._bounds = kinds[_ALIKE][0].bounds
        self._weights, self._width = some_rows(linear.matrix, layer) / peak, width / peak
        self._halves = {kind: [self._second(half) for half in halves] for kind, halves in kinds.items()}
        self.judge: Positions = "shared" if _Kind("shared") in kinds else "alike"
        self._costs: dict[tuple[_Kind, Damping], dict[Positions, float]] = {}  # … by the judge

    @property
    def are_usable(self) -> bool:
        """Whether there are rows in all halves, and no infinity in their moments."""
        return all(half.is_usable for halves in self._halves.values() for half in halves)

    def takes(self, kind: _Kind, halves: Halves) -> bool:
        """Whether moments of one more kind are usable; then they are tried as well."""
        seconds = [self._second(half) for half in halves]
        usable = all(half.is_usable for half in seconds)
        if usable:
            self._kinds[kind], self._halves[kind] = halves, seconds
        return usable

    def best(self, kinds: Iterable[_Kind]) -> _Kind:
        """The kind of least cost, the first of those that do as well."""
        return min(kinds, key=lambda kind: self.least(kind, self.judge)[1])

    def chosen(self, kind: _Kind, judge: Positions) -> Damping | None:
        """The damping for a kind by what judges; None where nearest rounding does as well."""
        damping, cost = self.least(kind, judge)
        return damping if cost < self._nearest(judge) else None

    def least(self, kind: _Kind, judge: Positions) -> tuple[Damping, float]:
        """The damping of least cost, and that."""
        if "damping" in self._without:
            return FIXED, self.cost(kind, judge, FIXED)
        return least_damping(lambda damping: self.cost(kind, judge, damping), _LOWEST)

    def plan(self, kind: _Kind, damping: Damping) -> Plan:
        """The plan that is fitted to both halves."""
        one, other = self._kinds[kind]
        plan = self._plan(self._second(one.joined(other)), damping)
        return replace(plan, positions=kind.positions, varied=kind.varied, damping=damping)

    def cost(self, kind: _Kind, judge: Positions, damping: Damping) -> float:
        """The cost of compensation fitted to moments of one kind."""
        if (kind, damping) not in self._costs:
            costs: dict[Positions, float] = dict.fromkeys(("alike", self.judge), 0.0)
            for half, fit in enumerate(self._halves[kind]):
                plan = self._plan(fit, damping)
                widths = plan.column_widths(self._width)
                symbols, _ = quantize.compensated(self._weights, plan.factors, widths)
                # By one table, not as archives take them: at low rates the latter lets errors grow that do not pay.
                bits = symbols.size * Histogram.of(symbols.reshape(-1)).entropy + _CODE_BITS * plan.columns.size * bool(
                    plan.scales
                )
                for each in costs:
                    other = self._halves[_Kind(each)][1 - half]
                    costs[each] += bits + self._error_bits(symbols * widths - self._weights, fit, other)
            self._costs[kind, damping] = costs
        return self._costs[kind, damping][judge]

    def _nearest(self, judge: Positions) -> float:
        """The cost of nearest rounding."""
        rounded = np.rint(self._weights / self._width)
        symbols, difference = rounded.astype(np.int32), rounded * self._width - self._weights
        pairs = zip(self._halves[_ALIKE], reversed(self._halves[_Kind(judge)]), strict=True)
        bits = 2 * symbols.size * Histogram.of(symbols.reshape(-1)).entropy
        return bits + sum(self._error_bits(difference, fit, half) for fit, half in pairs)

    def _second(self, moments: Moments) -> _Second:
        return _Second(moments, self._linear.bias is not None)

    def _plan(self, fit: _Second, damping: Damping) -> Plan:
        factors = tuple(
            quantize.Factor(begin, end, quantize.factorized(block, damping))
            for block, (begin, end) in zip(fit.blocks, self._bounds, strict=True)
        )
        exercised = fit.diagonal > _EXERCISED * fit.diagonal.mean()
        plan = Plan.compensating(self._layer, self._linear, factors, exercised, fit.mean)
        if "columns" in self._without:
            return replace(plan, columns=np.zeros_like(plan.columns), scales=())
        return plan

    def _error_bits(self, difference: Float64, fit: _Second, judge: _Second) -> float:
        error = judge.error(difference, self._bounds, fit.mean)
        return difference.size / 2 * math.log2(max(error, 1e-300))


class _Second:
    """Second moments and means of a layer's inputs, without the means where a bias can take them."""

    def __init__(self, moments: Moments, centred: bool) -> None:
        self._moments, self.mean, self.centred = moments, moments.mean, False
        self.diagonal = np.concatenate([np.einsum("gii->gi", block) for block in self.blocks], axis=1)
        self.is_usable = moments.count > 0 and all(np.isfinite(block).all() for block in self.blocks)
        self.centred = centred

    @property
    def blocks(self) -> Iterator[Float64]:
        """The blocks on the diagonal, one after the other: together they may be much larger than the layer."""
        for number, (begin, end) in enumerate(self._moments.bounds):
            block = self._moments.block(number)
            if self.centred:
                mean = self.mean[:, begin:end]
                for row in range(end - begin):  # no second array as large as the block
                    block[:, row] -= mean[:, row, None] * mean
            yield block

    def error(self, difference: Float64, bounds: Sequence[tuple[int, int]], bias_mean: Float64) -> float:
        """E ‖(Ŵ − W) x‖² of these inputs, where the bias has taken over what it is at `bias_mean`."""
        total = 0.0
        for block, (begin, end) in zip(self.blocks, bounds, strict=True):
            part = difference[:, :, begin:end]
            total += float(np.sum(np.matmul(part, block) * part))
        if self.centred:
            total += float(np.sum(np.square(np.einsum("gnk,gk->gn", difference, self.mean - bias_mean))))
        return total
