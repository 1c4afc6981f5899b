"""From an objective to a solution: statistics are fitted, layers probed, bits allocated, and k searched."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from riq_cli.allocate.probing import Probe, Quantize, Sensitivities, probe, probe_again
from riq_cli.calibration import Sample
from riq_cli.errors import ModelError, TargetError
from riq_cli.pipeline import search
from riq_cli.pipeline.deviation_objective import DeviationObjective
from riq_cli.pipeline.fitting import Fit
from riq_cli.pipeline.measuring import Measuring
from riq_cli.pipeline.objective import Objective
from riq_cli.pipeline.progress import Progress, Warn
from riq_cli.pipeline.settings import DEFAULT_DEVIATION
from riq_cli.pipeline.solution import Scheme, Solution
from riq_cli.pipeline.unchangeable import UnchangeableError
from riq_cli.pipeline.weights import Plans, Widths
from riq_cli.quantize.plan import LayerPlan
from riq_cli.runtime import Prober

INVISIBLE = 1e-6  # a deviation below which nothing can be seen in outputs of single precision
_WIDER = math.sqrt(2)  # bins with error feedback are about as much wider: statistics are fitted and layers probed there
_ON_TRELLIS = 0.92  # about the factor on k: at the same k, the error on a trellis is 0.8 times as large
_ROUGH_SAMPLES = 8  # for a rough solution
_ROUGH, _ROUGH_TRIES, _ROUGH_LEAP = 1.25, 8, 16.0  # a rough solution: factor on the deviation, tries, factor on k
_AROUND = (0.95, 1.0, 1.05)  # factors on k at which schemes are compared


@dataclass(frozen=True)
class Prepared:
    """What holds for solutions of about the same deviation: plans of layers, and what each layer causes alone."""

    plans: Plans
    sensitivities: Sensitivities | None


class Preparation:
    """Fits plans and probes layers, at the bin widths of a rough solution."""

    def __init__(
        self,
        measuring: Measuring,
        fit: Fit | None,
        prober: Callable[[], Prober] | None,
        gradient_samples: Sequence[Sample],
        warn: Warn,
    ) -> None:
        """Take what that is done with; nothing is done yet.

        Args:
            measuring: measures schemes.
            fit: fits plans; None: all layers are rounded to the nearest.
            prober: starts the session in which layers are probed; None: they are not.
            gradient_samples: on which gradients tell what most layers cause, in place of probes; none: all are probed.
            warn: called with what the user should know.
        """
        self._measuring, self.fit, self._prober, self._warn = measuring, fit, prober, warn
        self._gradient_samples = gradient_samples
        self._session: Prober | None = None
        self._kept: Prepared | None = None
        self.probes = 0

    def rough_solution(self, deviation: float) -> Solution:
        """A rough solution of nearest rounding by norm on the samples that layers are probed on."""
        measuring, defined = self._measuring, self._measuring.evaluator.defined
        probed = [number for number in measuring.roles.probed if any(defined[number])]  # under a constraint not all are
        among = probed[:: -(-len(probed) // _ROUGH_SAMPLES) or 1]
        scheme = measuring.base_scheme(0.0)
        k = measuring.weights.expected_k(scheme.allocation, deviation)
        found = deviation
        for _ in range(_ROUGH_TRIES if measuring.evaluator.measured and among else 0):
            found = measuring.deviation(scheme, k, among).mean
            ratio = found / deviation
            if 1 / _ROUGH < ratio < _ROUGH:
                break
            following = min(k * min(max(math.sqrt(ratio), 1 / _ROUGH_LEAP), _ROUGH_LEAP), search.K_UNBOUNDED)
            if following == k:
                break
            k = following
        return measuring.solution(scheme, k, found)

    def keep(self, deviation: float) -> None:
        """Prepare once, for all solutions: at about this deviation."""
        if self._measuring.settings.is_free:
            self._kept = self._prepared(self.rough_solution(deviation))

    def scheme(self, rough: Solution) -> Scheme | None:
        """The scheme of measured allocation and fitted plans; None where there is neither, and no trellis to try."""
        prepared = self._kept or self._prepared(rough)
        if prepared.sensitivities is not None:
            allocation = prepared.sensitivities.allocation(rough.deviation, rough.k, rough.widths)
            return Scheme(allocation, prepared.plans)
        has_more = prepared.plans or self._measuring.settings.may_use_trellis
        return Scheme(rough.scheme.allocation, prepared.plans) if has_more else None

    def _prepared(self, rough: Solution) -> Prepared:
        measuring = self._measuring
        measuring.free_memory()
        k = rough.k / _WIDER if self.fit is not None else rough.k
        widths = measuring.weights.widths(rough.scheme.allocation, k)
        plans = {} if self.fit is None else self.fit.plans(widths)
        if self._prober is None:
            return Prepared(plans, None)
        try:
            return Prepared(plans, self._probed(plans, widths, k, rough.deviation))
        except ModelError as error:
            self._warn(f"layers cannot be probed, so the norm allocation is used: {error}")
            return Prepared(plans, None)
        finally:
            self._session = None

    def _probed(self, plans: Plans, widths: Widths, k: float, budget: float) -> Sensitivities:
        weights, checkpoint = self._measuring.weights, self._measuring.checkpoint
        workers = self._measuring.workers
        probes: dict[int, Probe] = {}
        if self._gradient_samples:
            try:
                probes = checkpoint.step("probes by gradients", partial(self._by_gradients, plans, widths))
            except ModelError as error:
                self._warn(f"gradients cannot be taken, so matrices are probed one by one, which takes long: {error}")

        def report(phase: Literal["probe", "reprobe"], done: int, total: int, number: int) -> None:
            self.probes += 1
            layer = weights.layers[number].name
            self._measuring.progress(Progress(phase, done, total, value=probes[number].deviation, layer=layer))

        # Vectors of such a model hold next to nothing of it; probes of them would take longer than all else.
        candidates = weights.matrices if self._gradient_samples else weights.codable
        estimated = set(probes)
        numbers = [number for number in candidates if number not in estimated]
        first = [weights.norms[number] / k if (width := widths[number]) is None else width for number in numbers]
        found = checkpoint.mapped(
            "probe", workers, self.probe, numbers, map(plans.get, numbers), first, itertools.repeat(budget)
        )
        for done, (number, probed) in enumerate(zip(numbers, found, strict=True), 1):
            probes[number] = probed
            report("probe", done, len(numbers), number)
        if failed := [number for number, found in probes.items() if found.failed]:
            raise UnchangeableError(failed)
        readable = [number for number, found in probes.items() if found.is_readable]
        middles = [probes[number].width for number in readable]
        chosen_plans = [plans.get(number) for number in readable]
        executor = workers or self._measuring.pool
        drawn = checkpoint.mapped("curve", executor, weights.curve, readable, middles, chosen_plans)
        curves = dict(zip(readable, drawn, strict=True))
        sensitivities = Sensitivities(probes, curves, weights.sizes, weights.norms, weights.peaks)
        chosen = sensitivities.widths(budget)
        again = {n: width for n, width in chosen.items() if n not in estimated and not probes[n].is_near(width)}
        chosen_plans = [plans.get(number) for number in again]
        found = checkpoint.mapped(
            "reprobe", workers, self.probe_again, again, chosen_plans, map(probes.get, again), again.values()
        )
        for done, (number, probed) in enumerate(zip(again, found, strict=True), 1):
            probes[number] = probed
            report("reprobe", done, len(again), number)
        return sensitivities

    def _by_gradients(self, plans: Plans, widths: Widths) -> dict[int, Probe]:
        """What layers cause alone at these bin widths, to first order, where gradients tell.

        Raises:
            ModelError: they tell of no layer.
        """
        assert self.fit is not None, "it takes the gradients"
        weights, pool, workers = self._measuring.weights, self._measuring.pool, self._measuring.workers
        restored = weights.requantize(widths, plans, weights.buffers(), pool, workers)
        found: dict[int, Probe] = {}
        for number, deviation in self.fit.deviations(plans, restored, self._gradient_samples).items():
            width = widths[number]
            if width is not None and math.isfinite(deviation):
                found[number] = Probe(width, deviation)
        if not found:
            raise ModelError("none reach any matrix from the outputs")
        return found

    def probe(self, number: int, plan: LayerPlan | None, width: float, budget: float) -> Probe:
        """What a layer causes alone at about a bin width; see `probing.probe`."""
        return probe(self._prober_started, self._alone(number, plan), width, budget)

    def probe_again(self, number: int, plan: LayerPlan | None, found: Probe, width: float) -> Probe:
        """What a layer causes alone at the bin width that was chosen; see `probing.probe_again`."""
        return probe_again(self._prober_started, self._alone(number, plan), found, width)

    @property
    def _prober_started(self) -> Prober:
        assert self._prober is not None
        self._session = self._session or self._prober()
        return self._session

    def _alone(self, number: int, plan: LayerPlan | None) -> Quantize:
        return partial(self._measuring.weights.alone, number, plan=plan)


class Solver:
    """Finds the smallest solution for an objective, or the best one within a budget."""

    def __init__(self, measuring: Measuring, preparation: Preparation) -> None:
        self._measuring, self._preparation = measuring, preparation

    def for_objective(self, objective: Objective) -> Solution:
        """The smallest solution that was measured to hold.

        Raises:
            TargetError: none holds.
        """
        settings = self._measuring.settings
        # An epsilon that was asked for has to be reached.
        best = None if settings.epsilon is None else objective.base_solution(None)
        if settings.is_free:
            rough = self._preparation.rough_solution(objective.deviation)
            with contextlib.suppress(TargetError):  # nearest rounding is searched too
                scheme = self._preparation.scheme(rough)
                if scheme is not None:
                    solution = self._of_scheme(objective, scheme, rough.k)
                    if best is None and solution.bits > objective.base_share * rough.bits:
                        solution = objective.base_solution(solution)
                    best = solution if best is None or solution.bits < best.bits else best
        return best or objective.base_solution(None)

    def _of_scheme(self, objective: Objective, scheme: Scheme, start: float) -> Solution:
        """The smaller solution of a scheme and of the same on a trellis."""
        k = objective.find_k(scheme, start)
        found = [self._measuring.solution(scheme, k)] if objective.k_holds else []
        trellised = self._on_trellis(scheme, k)
        if trellised is not None:
            with contextlib.suppress(TargetError):
                scheme, k = trellised, objective.find_k(trellised, _ON_TRELLIS * k, few=True)
        found.append(objective.confirm(scheme, k))
        return min(found, key=lambda solution: solution.bits)

    def for_bits(self, budget: float) -> Solution:
        """The solution of least deviation that takes no more than `budget` bits.

        Where nearest rounding by norm takes less and no deviation can be seen, it is that one.
        """
        measuring = self._measuring
        base = measuring.base_scheme(measuring.settings.epsilon or 0.0)
        start = measuring.weights.expected_k(base.allocation, DEFAULT_DEVIATION)
        rough = self._with_deviation(self.within(base, budget, start))
        if rough.deviation <= INVISIBLE:
            with contextlib.suppress(TargetError):
                invisible = DeviationObjective(measuring, INVISIBLE).searched(base, "bisection")
                return invisible if invisible.bits <= budget else rough
        best = rough
        scheme = self._preparation.scheme(rough)
        if scheme is not None:
            for kind in (scheme, self._on_trellis(scheme, rough.k)):
                if kind is not None:
                    found = self._with_deviation(self.within(kind, budget, best.k))
                    best = min(best, found, key=lambda solution: solution.deviation)
        return best

    def within(self, scheme: Scheme, budget: float, start: float) -> Solution:
        """The finest solution of a scheme within a budget of bits, not measured yet."""
        total = self._measuring.weights.total
        k = search.largest(lambda k: self._measuring.solution(scheme, k).bits, budget, total, start, search.K_LOWEST)
        return self._measuring.solution(scheme, k)

    def _with_deviation(self, solution: Solution) -> Solution:
        """The solution with its deviation, as the geometric mean over three k around its own: a single one is rough."""
        measuring, among = self._measuring, self._measuring.roles.unfitted
        found = [measuring.deviation(solution.scheme, solution.k * factor, among).mean for factor in _AROUND]
        mean = math.inf if math.inf in found else math.prod(found) ** (1 / len(found))
        return replace(solution, deviation=mean)

    def _on_trellis(self, scheme: Scheme, k: float) -> Scheme | None:
        """The scheme with those layers along a trellis where it saves bits; None if it does of none."""
        measuring = self._measuring
        if not measuring.settings.may_use_trellis:
            return None
        measuring.free_memory()
        weights, widths = measuring.weights, measuring.weights.widths(scheme.allocation, k)

        plans: dict[int, LayerPlan] = {}
        chosen = {number: width for number in weights.matrices if (width := widths[number]) is not None}
        found = measuring.checkpoint.mapped(
            "trellis", measuring.workers or measuring.pool, weights.gains_by_trellis, chosen, chosen.values(),
            map(scheme.plans.get, chosen),
        )  # fmt: skip
        for done, ((number, width), gains) in enumerate(zip(chosen.items(), found, strict=True), 1):
            if gains:
                layer = weights.layers[number]
                plans[number] = (scheme.plans.get(number) or LayerPlan.nearest(layer)).on_trellis(layer, width)
            measuring.progress(Progress("trellis", done, len(chosen)))
        return replace(scheme, plans={**scheme.plans, **plans}) if plans else None
