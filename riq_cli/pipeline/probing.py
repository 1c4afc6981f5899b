"""How much deviation each layer causes, measured layer by layer, and the allocation that follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import replace

import numpy as np

from riq_cli.allocate.allocation import Allocation, Curve, water_filling
from riq_cli.errors import ModelError
from riq_cli.pipeline.plans import Plan
from riq_cli.pipeline.solution import Solution
from riq_cli.pipeline.unchangeable import UnchangeableError
from riq_cli.pipeline.weights import Plans, Weights, Widths
from riq_cli.runtime import Array, Prober

_READABLE = 1e-9  # a deviation below this is rounding of the runs, not an effect of the layer
_SATURATED = 0.05  # above this a deviation grows no longer with the square of the error
_LARGEST = 2.0  # cosine distance; NaN outputs count as that
_TRIES = 5  # probes of a layer until its deviation is readable
_WIDER = 8.0
_WIDEST = 16.0  # times bins beside a layer's norm may be wider than typically: a few samples may not exercise it
_FINER = 8.0
_SMALL = 1e-3  # share of all bits below which a layer is not probed again
_WORTH_PARTS = 1024  # weights at least of a layer whose rows may have bin widths of their own
_SAVED = 0.01  # share of a layer's bits that these save at least: what is measured of it is not exact
_NEAR = 1.5  # a layer is not probed again at a bin width this close to one where it was


Probed = Callable[[int, int, int | None, float], None]  # told of steps done and in all, and a layer's deviation


def probed(weights: Weights, plans: Plans, prober: Prober, about: Solution, pool: Executor, progress: Probed) -> Probes:
    """What each layer causes alone, measured at about the bin widths of a solution.

    Each layer is quantized alone and the deviation measured: a_ℓ = deviation / ‖ŵ − w‖², in the units of the curves.
    Rows of a layer get bin widths of their own where that pays. Layers whose width changes much by water-filling are
    probed once more there, since low-rate layers are not in the regime where they were first measured; and all that
    matter at narrow bins, where the square of the error is all there is. Neither tells always more than the other of
    what layers do together.

    Args:
        weights: all layers that may be coded.
        plans: how errors are compensated.
        prober: measures the deviation of changed layers.
        about: a solution of the norm allocation, with nearest rounding.
        pool: its threads work at the same time.
        progress: called with probes done and in all, the number of the layer that was probed (None: it was not again),
            and the deviation that it caused alone.

    Raises:
        UnchangeableError: the model fails, or is infinitely far off, with a layer changed alone at the finest bins.
    """
    numbers = weights.codable
    probes = Probes(weights, plans)
    for done, number in enumerate(numbers):
        start = about.widths[number]
        width = start if start is not None else weights.norms[number] / about.k
        deviation = probes.first(prober, number, width, about.deviation)
        progress(done + 1, 3 * len(numbers), number, deviation)
    if probes.unchangeable:
        raise UnchangeableError(probes.unchangeable)
    probes.draw_curves(pool)
    chosen = probes.filled(about, probes.sensitivity)
    total = sum(probes.bits(number, width) for number, width in chosen.items())
    for done, (number, better) in enumerate(chosen.items()):
        small = probes.bits(number, better) < _SMALL * total or "reprobes" in weights.without
        again = None if small else probes.again(prober, number, better)
        progress(len(numbers) + done + 1, 3 * len(numbers), None if again is None else number, again or 0.0)
        finely = None if small else probes.finely(prober, number)
        progress(2 * len(numbers) + done + 1, 3 * len(numbers), None if finely is None else number, finely or 0.0)
    progress(3 * len(numbers), 3 * len(numbers), None, 0.0)
    return probes


class Probes:
    """What was measured of each layer, and the `plans` it was measured with, rows told apart where that pays."""

    def __init__(self, weights: Weights, plans: Plans) -> None:
        self._weights, self._compensated = weights, bool(plans)
        self.plans = dict(plans)  # and those that are found on the way
        self.curves: dict[int, Curve] = {}
        self.sensitivity: dict[int, float] = {}
        self.unchangeable: list[int] = []  # layers whose finest bins are too wide
        self._finely: dict[int, float] = {}  # the same at narrow bins
        self._at_first: dict[int, float] = {}  # as measured near the norm's bin widths
        self._probed: dict[int, float] = {}
        self._silent: dict[int, float] = {}  # bin widths at which nothing was to be read yet

    def allocations(self, paper: Solution) -> list[Allocation]:
        """The allocations of least rate for the deviation of the paper's solution, by what was measured of layers.

        First, about where their bin widths will be; then, with narrow bins. A layer without a measurable effect keeps
        the norm's bin width, and none wider than in the paper's solution: samples that do not exercise it say nothing
        about it. Those that hardly exercise it say little: an attention that is saturated in all of them need not be so
        in others.
        """
        finely = self.sensitivity | self._finely
        return [
            self._allocation("measured", self.sensitivity, paper),
            self._allocation("fine measured", finely, paper),
        ]

    def _allocation(self, name: str, sensitivity: Mapping[int, float], paper: Solution) -> Allocation:
        weights, k = self._weights, paper.k
        chosen = self.filled(paper, sensitivity)
        relative = {number: width / weights.norms[number] for number, width in chosen.items()}
        sizes = [weights.sizes[number] for number in chosen]
        typical = math.exp(float(np.average(np.log(list(relative.values())), weights=sizes))) if chosen else 1.0
        shapes = {n: min(relative[n], _WIDEST * typical) * weights.norms[n] * k for n in chosen}
        silent = [number for number in weights.codable if number not in chosen]
        shapes |= {number: weights.norms[number] for number in silent}
        bounds = {number: weights.peak(number) for number in chosen}  # wider, and nothing of the layer would be left
        bounds |= {number: paper.widths[number] or weights.norms[number] / k for number in silent}
        return Allocation(name, shapes, 0.0, bounds)

    def first(self, prober: Prober, number: int, width: float, budget: float = _SATURATED) -> float:
        """The deviation of a layer at a bin width, or at others near it until it can be read.

        That of an attention that is saturated leaps from nothing to more than the budget of all layers: then it is told
        how far it is silent.
        """
        deviation, error = self._measure(prober, number, width)
        silent, loud, most = 0.0, None, _SATURATED
        for _ in range(_TRIES - 1):
            if _READABLE <= deviation <= most:
                break
            if deviation < _READABLE:
                silent, most = width, budget
            else:
                loud = width, deviation, error
            if silent:
                width = width * _WIDER if loud is None else math.sqrt(silent * loud[0])
            else:
                width *= math.sqrt(_SATURATED / 4 / deviation)
            deviation, error = self._measure(prober, number, width)
        if deviation >= _LARGEST and math.isinf(_measured(prober, self._weights.alone(number, 0.0, None)[0])):
            self.unchangeable.append(number)
        if deviation < _READABLE and loud is not None:
            silent, (width, deviation, error) = width, loud
        if deviation >= _READABLE and error > 0:
            self.sensitivity[number] = self._at_first[number] = deviation / error
            self._probed[number], self._silent[number] = width, silent
            self._part(prober, number, width, deviation)
        return deviation

    def _part(self, prober: Prober, number: int, width: float, deviation: float) -> None:
        """Give the rows of a layer bin widths of their own, if it takes fewer bits at the same deviation."""
        layer, plan = self._weights.layers[number], self.plans.get(number)
        if (
            "rows" in self._weights.without
            or not self._weights.may_part
            or number not in self._weights.matrices
            or layer.size < _WORTH_PARTS
        ):
            return
        if plan is not None and plan.importance is not None:  # its rows are told apart by more than their norms
            return
        parted = (plan or Plan.nearest(layer)).with_rows(layer)
        if parted is None:
            return
        before = self._weights.coded_bits(number, width, plan)
        self.plans[number] = parted
        other, error = self._measure(prober, number, width)
        saved = before - self._weights.coded_bits(number, width, parted)
        saved += layer.size / 2 * math.log2(deviation / max(other, _READABLE))  # at high rate, bits for deviation
        if saved > _SAVED * before and error > 0:
            self.sensitivity[number] = self._at_first[number] = other / error
        elif plan is None:
            del self.plans[number]
        else:
            self.plans[number] = plan

    def draw_curves(self, pool: Executor) -> None:
        """Take the curve of every layer around the bin width where it was measured."""

        def draw(number: int, width: float) -> Curve:
            curve = self._weights.curve(number, width, self.plans.get(number))
            nothing = np.minimum(curve.errors, _READABLE / self._at_first[number])
            return replace(curve, errors=np.where(curve.widths <= self._silent[number], nothing, curve.errors))

        drawn = pool.map(draw, self._probed.keys(), self._probed.values())
        self.curves = dict(zip(self._probed, drawn, strict=True))

    def bits(self, number: int, width: float) -> float:
        """About the bits of a layer at a bin width."""
        curve = self.curves[number]
        return float(np.interp(width, curve.widths, curve.bits))

    def expected(self, widths: Widths) -> float:
        """The sum of the deviations that layers cause alone at these bin widths."""
        return sum(
            self._at_first[number] * self.curves[number].error(width)
            for number, width in enumerate(widths)
            if number in self._at_first and width is not None
        )

    def again(self, prober: Prober, number: int, width: float) -> float | None:
        """The deviation of a layer at the bin width that was chosen for it; None if it was first measured near that."""
        if 1 / _NEAR < width / self._probed[number] < _NEAR:
            return None
        deviation, error = self._measure(prober, number, width)
        if deviation >= _READABLE and error > 0:
            self.sensitivity[number] = deviation / error
        return deviation

    def finely(self, prober: Prober, number: int) -> float:
        """The deviation of a layer at narrow bins."""
        deviation, error = self._measure(prober, number, self._probed[number] / _FINER)
        if deviation >= _READABLE and error > 0:
            self._finely[number] = deviation / error
        return deviation

    def filled(self, paper: Solution, sensitivity: Mapping[int, float]) -> dict[int, float]:
        """Bin widths of least rate for the deviation of the paper's solution, by the number of the layer."""
        # Nearest rounding causes at the paper's bin widths what it causes; compensation would cause less there.
        budget = max(paper.deviation, _READABLE) if self._compensated else self.expected(paper.widths)
        found = water_filling([self.curves[number] for number in sensitivity], list(sensitivity.values()), budget)
        return dict(zip(sensitivity, found, strict=True))

    def _measure(self, prober: Prober, number: int, width: float) -> tuple[float, float]:
        """Deviation with one layer quantized, and its error in the units of the curves."""
        changed, error = self._weights.alone(number, width, self.plans.get(number))
        return min(_measured(prober, changed), _LARGEST), error


def _measured(prober: Prober, changed: Mapping[int, Array]) -> float:
    """The deviation of changed layers, infinite where the model cannot be run with them."""
    try:
        return max(prober.deviations(changed))
    except ModelError:
        return math.inf
