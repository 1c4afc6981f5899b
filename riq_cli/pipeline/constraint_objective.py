"""A constraint as what has to hold: a small k of a scheme at which its judge accepts the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from riq_cli.archive import Archive
from riq_cli.constraint import Constraint, Judge, Judgement
from riq_cli.errors import ConstraintError, ModelError, TargetError
from riq_cli.model import Model
from riq_cli.pipeline import search
from riq_cli.pipeline.measuring import Measuring
from riq_cli.pipeline.objective import CORRECTION, Objective
from riq_cli.pipeline.restoration import judge_restored
from riq_cli.pipeline.settings import DEFAULT_DEVIATION
from riq_cli.pipeline.solution import Scheme, Solution
from riq_cli.runtime import Evaluator

_COARSEST = 0.05  # k under a constraint: coarser than any solution


class ConstraintObjective(Objective):
    """A constraint's judge accepts the model, and the deviation stays within that of the settings if there is one.

    It has to hold on the samples that the search may see, on those held out, and on all together.
    """

    def __init__(self, measuring: Measuring, constraint: Constraint) -> None:
        """Begin with the original model.

        Args:
            measuring: measures candidates.
            constraint: what is to be kept.

        Raises:
            ConstraintError: the original cannot be judged.
        """
        super().__init__(measuring, measuring.settings.deviation or DEFAULT_DEVIATION)
        self._constraint = constraint
        original = measuring.evaluator.loaded(measuring.evaluator.original, measuring.weights.originals)
        self.judge: Judge = constraint.begin(original)
        self.judgements: list[Judgement] = []

    def find_k(self, scheme: Scheme, start: float, few: bool = False) -> float:
        """A small k at which all holds: a judgement need not fall as k grows."""
        try:
            return search.climb(
                lambda k: self.excess(scheme, k), 0.0, _COARSEST, search.K_UNBOUNDED, max(start, _COARSEST)
            ).k
        except TargetError as error:
            raise self._unkept(min(self.judgements, key=lambda one: one.value)) from error

    def confirm(self, scheme: Scheme, k: float) -> Solution:
        """The solution at k, which was measured on all samples already."""
        return self._measuring.solution(scheme, k)

    def base_solution(self, best: Solution | None) -> Solution:
        """The smallest solution of nearest rounding, or `best`.

        A judgement need not be better at equal bits where errors are fed forward.
        """
        measuring = self._measuring
        scheme = measuring.base_scheme(measuring.settings.epsilon or 0.0)
        start = measuring.weights.expected_k(scheme.allocation, self.deviation)
        try:
            found = measuring.solution(scheme, self.find_k(scheme, start))
        except TargetError:
            if best is None:
                raise
            return best
        return found if best is None or found.bits < best.bits else best

    def excess(self, scheme: Scheme, k: float) -> float:
        """By how much a scheme at k exceeds the limits, on those samples where it was first seen to, else on all."""
        measuring, roles = self._measuring, self._measuring.roles
        excess = math.inf
        for among in self._occasions(scheme):
            found = self.judged(scheme, k, among)
            deviation = 0.0
            if measuring.settings.deviation is not None and math.isfinite(found.value):
                measured = measuring.measured(scheme, k, among)
                # Undefined on these samples, it still is defined on all together, which are measured last.
                if measured.is_measured:
                    deviation = measuring.promised(scheme, measured) if among == roles.every else measured.mean
            excess = self._over(found, deviation)
            if excess > 0:
                break
        self.keep(scheme, k, found)
        return excess

    def judged(self, scheme: Scheme, k: float, among: Sequence[int]) -> Judgement:
        """What the constraint says of a scheme at k; infinitely bad if the model cannot be run with such weights."""
        measuring = self._measuring
        evaluator, form = measuring.evaluator, measuring.form

        def judgement() -> Judgement:
            return self.judge(evaluator.loaded(form, measuring.values(scheme, k), among))

        try:
            return measuring.step("judgement", scheme, k, judgement)
        except (ModelError, ConstraintError) as error:
            try:
                evaluator.deviation(form, measuring.values(scheme, k), among)
            except ModelError:
                measuring.explain_once(error)
                return Judgement(math.inf, self.judgements[-1].limit if self.judgements else 0.0)
            raise

    def keep(self, scheme: Scheme, k: float, found: Judgement) -> None:
        """Keep a judgement, and report it."""
        self.judgements.append(found)
        self._measuring.report(scheme, k, found.value, found.holds, "constraint")

    def visible(self, scheme: Scheme) -> Sequence[int]:
        """The samples that the search may see."""
        return self._measuring.roles.searched if scheme.is_fitted else self._measuring.roles.others

    def _occasions(self, scheme: Scheme) -> Iterator[Sequence[int]]:
        """The samples that a candidate has to hold on, one set after the other."""
        roles = self._measuring.roles
        if self._constraint.on_samples:
            yield from dict.fromkeys(filter(None, (tuple(self.visible(scheme)), roles.held_out, roles.every)))
        else:
            yield roles.every

    def _over(self, found: Judgement, deviation: float) -> float:
        bound = self._measuring.settings.deviation
        over = max(found.value - found.limit, -math.inf if bound is None else deviation - bound)
        return math.inf if math.isnan(over) else over

    def facts(self, evaluator: Evaluator, restored: Model, held: Sequence[int]) -> dict[str, Any]:
        """The judgements of the restored model."""
        outputs = self._measuring.settings.outputs
        found: dict[str, Any] = {"constraint": judge_restored(self.judge, evaluator, restored, outputs).recorded()}
        if held and self._constraint.on_samples:
            judgement = judge_restored(self.judge, evaluator, restored, outputs, held)
            found["constraint_holdout"] = judgement.recorded()
        return found

    def correction(self, archive: Archive, deviation: float) -> float | None:
        """The factor on k: hoisting may change the last digits of an output."""
        return CORRECTION if self._over(_worst(archive), deviation) > 0 else None

    def failure(self, archive: Archive, deviation: float) -> TargetError:
        """The error that the restored model does not keep the constraint."""
        return self._unkept(_worst(archive))

    def _unkept(self, found: Judgement) -> TargetError:
        """The error that nothing holds, and what to do about it."""
        if found.holds:
            return TargetError(
                f"the constraint is kept, but not the deviation of {self.deviation:g}; give a larger one", found.value
            )
        remedy = self._constraint.remedy
        if self._measuring.settings.activations is not None:
            remedy += ", or leave out --activations, which alone may miss it"
        return TargetError(
            f"the constraint is not kept: the best value is {found.value:.4g}, above {found.limit:g}; {remedy}",
            found.value,
        )


def _worst(archive: Archive) -> Judgement:
    """The judgement of the restored model that is furthest off, as its archive tells."""
    result = archive.manifest.result
    found = [result[name] for name in ("constraint", "constraint_holdout") if name in result]
    values = [Judgement(math.inf if one["value"] is None else one["value"], one["limit"]) for one in found]
    return max(values, key=lambda one: one.value)
