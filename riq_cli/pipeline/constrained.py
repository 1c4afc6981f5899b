"""The search under a constraint: for each of the solver's schemes the first k that the constraint's judge accepts."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from riq_cli.archive import Archive
from riq_cli.constraint import Constraint, Judge, Judgement
from riq_cli.errors import ConstraintError, ModelError, TargetError
from riq_cli.model import Model
from riq_cli.pipeline import search
from riq_cli.pipeline.means import Means
from riq_cli.pipeline.restoration import judge_restored
from riq_cli.pipeline.settings import DEFAULT_DEVIATION, Progress, Report
from riq_cli.pipeline.solution import CLOSER, CLOSER_TRIES, Scheme, Solution
from riq_cli.pipeline.solver import Solver
from riq_cli.runtime import Array, Evaluator

_LESS = 0.99  # share of the best solution's bits at which another scheme has to hold to be searched
_CLEARLY = 0.85  # share of the norm allocation's bits below which compensation is not compared with nearest rounding
_LOWEST = 0.05  # k: coarser than any solution

Measured = Callable[[Solution], tuple[Archive, float]]  # the archive of a solution, and what a target bounds


class ConstrainedSolver(Solver):
    """Finds the smallest solution that a constraint's judge accepts.

    Bin widths are shared out and errors compensated as for a deviation, whose effects can be told layer by layer; only
    k is searched under the constraint. A solution has to hold on the samples that the search may see, on those held
    out of it, and on all together, and it must keep the settings' deviation if there is one.
    """

    def __init__(self, constraint: Constraint, originals: Sequence[Array], progress: Report, *others: Any) -> None:
        """Begin with the original model.

        Args:
            constraint: what is to be kept.
            originals: the original data of each layer.
            progress: called with every candidate.
            others: what Solver takes.

        Raises:
            ConstraintError: the original cannot be judged.
        """
        super().__init__(*others)
        self._constraint, self._progress = constraint, progress
        self.judge: Judge = constraint.begin(self._evaluator.loaded(self._form, originals))
        self._trace: list[tuple[Scheme, float, Judgement]] = []

    @property
    def judged(self) -> int:
        """Number of candidates so far."""
        return len(self._trace)

    def archive(self, means: Means, measured: Measured) -> Archive:
        """The smallest archive that keeps the constraint, and the deviation if the settings have one.

        Raises:
            TargetError: none does.
        """
        solution = self.for_constraint(means)
        for _ in range(CLOSER_TRIES):
            archive, deviation = measured(solution)
            result = archive.manifest.result
            judgements = [result[name] for name in ("constraint", "constraint_holdout") if name in result]
            values = [Judgement(math.inf if one["value"] is None else one["value"], one["limit"]) for one in judgements]
            found = max(values, key=lambda one: one.value)
            if self._excess(found, deviation) <= 0:
                return archive
            solution = self.refined(solution, CLOSER)  # hoisting may change the last digits of an output
        raise self._failure(found)

    def facts(
        self, evaluator: Evaluator, restored: Model, outputs: Sequence[str], held: Sequence[int]
    ) -> dict[str, Any]:
        """What the manifest's result says: the judgements of the restored model."""
        found: dict[str, Any] = {"constraint": judge_restored(self.judge, evaluator, restored, outputs).recorded()}
        if held and self._constraint.on_samples:
            judgement = judge_restored(self.judge, evaluator, restored, outputs, held)
            found["constraint_holdout"] = judgement.recorded()
        return found

    def for_constraint(self, means: Means) -> Solution:
        """The smallest solution that was measured to hold.

        Raises:
            TargetError: none holds.
        """
        target = self._settings.deviation or DEFAULT_DEVIATION
        about = self._about(target) if self._evaluator.measured else self._unmeasured(target)
        best: Solution | None = None
        plans = self._plans(about, means)
        if plans:
            for scheme in self._schemes(plans, about, means):
                best = self._better(best, scheme, about.k)
        base = self._base(self._settings.epsilon or 0.0)
        if best is None or self._reaches(base, about.k, best.bits / _CLEARLY):
            for scheme in (*self._schemes({}, about, means), base):
                best = self._better(best, scheme, about.k)
        if best is None:
            raise self._failure(min((one for _, _, one in self._trace), key=lambda one: one.value))
        trellised = self._with_trellis(best)
        return best if trellised is None else self._better(best, trellised, best.k) or best

    def _unmeasured(self, target: float) -> Solution:
        """About where a deviation is to be expected, where it cannot be measured."""
        base = self._base(0.0)
        return self._solution(base, self._weights.expected_k(base.allocation, target), math.nan)

    def _failure(self, found: Judgement) -> TargetError:
        """The error that nothing holds, and what to do about it."""
        if found.holds:
            return TargetError(
                f"the constraint is kept, but not the deviation of {self._settings.deviation:g}; give a larger one",
                found.value,
            )
        return TargetError(
            f"the constraint is not kept: the best value is {found.value:.4g}, above {found.limit:g}; "
            f"{self._constraint.remedy}",
            found.value,
        )

    def _excess(self, found: Judgement, deviation: float) -> float:
        """By how much a candidate exceeds what it has to keep: 0 or less if it holds."""
        bound = self._settings.deviation
        over = max(found.value - found.limit, -math.inf if bound is None else deviation - bound)
        return math.inf if math.isnan(over) else over

    def _better(self, best: Solution | None, scheme: Scheme, start: float) -> Solution | None:
        """The smallest solution of a scheme that holds, or `best` where that is smaller."""
        highest = search.K_UNBOUNDED
        if best is not None:
            start = highest = self._k_of(scheme, _LESS * best.bits, start)
        with contextlib.suppress(TargetError):
            found = search.scan(lambda k: self._measure(scheme, k), 0.0, start, _LOWEST, highest)
            solution = self._solution(scheme, found.k, math.nan)
            if best is None or solution.bits < best.bits:
                return solution
        return best

    def _reaches(self, scheme: Scheme, start: float, bits: float) -> bool:
        """Whether a scheme holds within so many bits."""
        return self._measure(scheme, self._k_of(scheme, bits, start)) <= 0

    def _measure(self, scheme: Scheme, k: float) -> float:
        """The excess of a scheme at k, on those samples where it was first seen to be above 0, else on all."""
        widths = self._coded(scheme, k)
        values = self._values(scheme, widths)
        excess = math.inf
        for among in self._occasions(scheme):
            found = self._judged(values, among)
            deviation = 0.0
            if self._settings.deviation is not None and math.isfinite(found.value):
                measured = self._evaluator.deviation(self._form, values, among)
                # Undefined on these samples, it still is defined on all together, which are measured last.
                if measured.is_measured:
                    deviation = self.promised(scheme, measured) if among == self._parts.every else measured.mean
            excess = self._excess(found, deviation)
            if excess > 0:
                break
        self._tell(scheme, k, found)
        return excess

    def _judged(self, values: Sequence[Array], among: Sequence[int]) -> Judgement:
        """What the constraint says of a candidate; infinitely bad if the model cannot be run with such weights."""
        try:
            return self.judge(self._evaluator.loaded(self._form, values, among))
        except (ModelError, ConstraintError) as error:
            try:
                self._evaluator.deviation(self._form, values, among)
            except ModelError:
                self._explain_once(error)
                limit = self._trace[-1][2].limit if self._trace else 0.0
                return Judgement(math.inf, limit)
            raise

    def _tell(self, scheme: Scheme, k: float, found: Judgement) -> None:
        self._trace.append((scheme, k, found))
        same = [(k, one.holds) for other, k, one in self._trace if other is scheme]
        held = min((k for k, holds in same if holds), default=math.inf)
        failed = max((k for k, holds in same if not holds and k < held), default=0.0)
        self._progress(
            Progress("search", self.judged, 0, k, found.value, failed, held, *scheme.name, measure="constraint")
        )

    def _occasions(self, scheme: Scheme) -> Iterator[Sequence[int]]:
        """The samples that a candidate has to hold on, one set after the other."""
        every = self._parts.every
        sets = [tuple(self._searched(scheme)), self._parts.held, every] if self._constraint.on_samples else [every]
        yield from dict.fromkeys(filter(None, sets))
