"""What has to hold at a k: a deviation, or a constraint. Each finds the smallest k of a scheme at which it does."""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from riq_cli.archive import Archive
from riq_cli.constraint import Constraint, Judge, Judgement
from riq_cli.errors import ConstraintError, ModelError, TargetError
from riq_cli.model import Model
from riq_cli.pipeline import search
from riq_cli.pipeline.measuring import Measuring
from riq_cli.pipeline.restoration import judge_restored
from riq_cli.pipeline.root import Floats, root
from riq_cli.pipeline.samples import default_margin
from riq_cli.pipeline.settings import DEFAULT_DEVIATION, DEFAULT_EPSILON
from riq_cli.pipeline.solution import Scheme, Solution
from riq_cli.runtime import Array, Evaluator

LOWEST = 1e-3  # k where Proposition 2 says nothing: it bounds that of nearest rounding by norm
_CLOSER, _CLOSER_MOST = 1.01, 1.2  # factors on k where the restored model misses what the search met
_STEPS, _STEP, _STEP_MAX = 20, 1.01, 1.5  # factors on k where it does not hold yet: at least this more with each step
_ROUGH_SAMPLES = 16  # by which the octave of k is found
_SPARE, _COARSER = 0.9, 2  # share of the target below which a coarser k is tried, and tries
_LETTER = 0.7  # share of the bits of another search below which the paper's own, which may be lucky, is not tried
_PATIENCE = 200  # steps that the paper's own search may take
_COARSEST = 0.05  # k under a constraint: coarser than any solution


class Objective(abc.ABC):
    """What has to hold: `deviation` is about what it comes to, where layers are probed and statistics fitted."""

    k_holds = True  # whether the k that `find_k` returns was measured to hold
    # Share of a rough solution's bits below which nearest rounding is not searched: it cannot be smaller.
    base_share = 0.0

    def __init__(self, measuring: Measuring, deviation: float) -> None:
        self._measuring, self.deviation = measuring, deviation

    @abc.abstractmethod
    def find_k(self, scheme: Scheme, start: float, few: bool = False) -> float:
        """About the smallest k at which a scheme holds on samples that it was not fitted to.

        Args:
            scheme: what is searched.
            start: first k to try.
            few: the start is nearly right, and a few measurements will do.

        Raises:
            TargetError: it holds at no k.
        """

    @abc.abstractmethod
    def confirm(self, scheme: Scheme, k: float) -> Solution:
        """The solution at k, or at the next k that was measured to hold on all samples.

        Raises:
            TargetError: none does.
        """

    @abc.abstractmethod
    def base_solution(self, best: Solution | None) -> Solution:
        """The smallest solution of nearest rounding by a formula, or `best` where that is smaller.

        Raises:
            TargetError: there is neither.
        """

    @abc.abstractmethod
    def correction(self, archive: Archive, deviation: float) -> float | None:
        """The factor on k where the restored model does not hold; None where it does."""

    @abc.abstractmethod
    def failure(self, archive: Archive, deviation: float) -> TargetError:
        """The error that the restored model does not hold, though the search found that it does."""

    def facts(self, evaluator: Evaluator, restored: Model, held: Sequence[int]) -> dict[str, Any]:
        """What the manifest's result says of a restored model, beside its deviation."""
        return {}


def base_scheme(measuring: Measuring, epsilon: float) -> Scheme:
    """The norm allocation with nearest rounding, or the uniform one in its place where that is asked for."""
    weights = measuring.weights
    uniform = measuring.settings.allocation == "uniform"
    return Scheme(weights.uniform_allocation() if uniform else weights.norm_allocation(epsilon), {})


class DeviationObjective(Objective):
    """The deviation stays within a target, on samples held out and on all together."""

    k_holds, base_share = False, 0.85

    def find_k(self, scheme: Scheme, start: float, few: bool = False) -> float:
        """About the k at which the deviation of samples like these meets the target."""
        measuring, settings = self._measuring, self._measuring.settings
        among = measuring.unseen(scheme)
        margin = default_margin(len(among)) if settings.margin is None else settings.margin
        _, highest = self._bounds(scheme)

        def measure(k: float) -> Floats:
            return measuring.deviation(scheme, k, among).by_sample

        return root(measure, self.deviation, start, LOWEST, highest, margin, 2 if few else settings.work.points)

    def confirm(self, scheme: Scheme, k: float) -> Solution:
        """The solution at k, or at the next k that was measured to hold on all samples.

        Where that leaves room below the target, coarser k are tried: it was luck in part that it came out so small.
        """
        best, failed = math.inf, 0.0
        for number in range(1, _STEPS + 1):
            found = self._measuring.promise(scheme, k)
            if found <= self.deviation:
                return self._coarser(scheme, k, found, failed)
            best, failed = min(best, found), k
            # Half of what the law says: that it does not hold is luck in part.
            k *= min(max(_STEP**number, (found / self.deviation) ** 0.25), _STEP_MAX)
        raise _not_held(self.deviation, best)

    def _coarser(self, scheme: Scheme, k: float, found: float, failed: float) -> Solution:
        """The solution at a coarser k that holds, between one that failed (or 0) and k; at k where none is found."""
        for _ in range(_COARSER):
            if found > _SPARE * self.deviation:
                break
            coarser = max(k * max((found / self.deviation) ** 0.25, 1 / _STEP_MAX), math.sqrt(k * failed))
            value = self._measuring.promise(scheme, coarser)
            if value <= self.deviation:
                k, found = coarser, value
            else:
                failed = coarser
        return self._measuring.solution(scheme, k, found)

    def base_solution(self, best: Solution | None) -> Solution:
        """The smallest solution with ε0 = 0.01 or 0, or with the ε0 that was asked for; or `best`.

        The paper takes an ε0 that reaches the target (A.4), and so does its search. But that can be far from the best
        where it leaves k no room.
        """
        settings, given = self._measuring.settings, self._measuring.settings.epsilon
        found: list[Solution] = []
        least = math.inf
        for epsilon in (DEFAULT_EPSILON, 0.0) if given is None else (given,):
            try:
                found.append(self.searched(base_scheme(self._measuring, epsilon), settings.search))
            except TargetError as error:
                least = min(least, error.best)
            if found and settings.search == "algorithm1":
                break
        if best is not None:
            found = [best, *found, *self._to_the_letter(best, found)]
        if not found:
            raise self._unreached(least)
        return min(found, key=lambda solution: solution.bits)

    def _to_the_letter(self, best: Solution, found: Sequence[Solution]) -> list[Solution]:
        """The solution of `--preset paper`, to the letter, in a list: nothing may be larger. Empty if it is not tried.

        Its search may happen upon a smaller k than others. It takes so many steps up to the first k that holds that it
        is not worth waiting for where that is far up; such solutions are large.
        """
        for solution in found:
            lowest, highest = self._bounds(solution.scheme)
            within_reach = solution.k - lowest < _PATIENCE * math.sqrt(highest - lowest)
            is_worth_it = within_reach and best.bits > _LETTER * solution.bits
            if is_worth_it and solution.scheme.allocation.epsilon == DEFAULT_EPSILON:
                with contextlib.suppress(TargetError):
                    return [self.searched(replace(solution.scheme, guarded=False), "algorithm1")]
        return []

    def searched(self, scheme: Scheme, by: str) -> Solution:
        """A small solution of a base scheme that was measured to hold the target."""
        lowest, highest = self._bounds(scheme)
        measuring, every = self._measuring, self._measuring.roles.every
        some = every[:: -(-len(every) // _ROUGH_SAMPLES)]

        def measure(k: float) -> float:
            return measuring.promise(scheme, k)

        def roughly(k: float) -> float:
            return measuring.deviation(scheme, k, some).mean

        if by == "algorithm1":
            found = search.algorithm1(measure, self.deviation, lowest, highest)
        else:
            rough = roughly if len(some) < len(every) else None
            found = search.bisection(measure, self.deviation, lowest, highest, roughly=rough)
        return measuring.solution(scheme, found.k, found.value)

    def _bounds(self, scheme: Scheme) -> tuple[float, float]:
        """The smallest k of a base scheme that is worth trying, and the largest of any scheme."""
        largest, epsilon = self._measuring.weights.largest, scheme.allocation.epsilon
        lowest = LOWEST if scheme.allocation.name == "uniform" else search.lower_bound(largest, epsilon)
        return lowest, search.upper_bound(largest, epsilon)

    def _unreached(self, best: float) -> TargetError:
        """The error that the base allocation does not reach the target, and why."""
        measuring, target = self._measuring, self.deviation
        epsilon = measuring.settings.epsilon or 0.0
        scheme = base_scheme(measuring, epsilon)
        _, finest = self._bounds(scheme)
        if measuring.deviation(scheme, finest, measuring.roles.others).mean <= target:
            return _not_held(target, best)
        if epsilon:
            return TargetError(
                f"a deviation of {target:g} is not reached with epsilon = {epsilon:g}: the best is {best:.3g}; "
                "give a smaller --epsilon, such as 0",
                best,
            )
        return TargetError(
            f"a deviation of {target:g} is not reached: the best is {best:.3g}, with weights as fine as they can "
            "be coded; give a larger --deviation, or keep sensitive layers exact with --exclude",
            best,
        )

    def correction(self, archive: Archive, deviation: float) -> float | None:
        """The factor on k: hoisting may change the last digits of an output, and not all samples were searched on."""
        if deviation <= self.deviation:
            return None
        return min(max(_CLOSER, math.sqrt(deviation / self.deviation)), _CLOSER_MOST)

    def failure(self, archive: Archive, deviation: float) -> TargetError:
        """The error that the restored model misses the target."""
        return TargetError(
            f"the restored model's deviation is {deviation:.3g}, above {self.deviation:g}, though the search found "
            "less; give a larger --deviation",
            deviation,
        )


def _not_held(target: float, best: float) -> TargetError:
    """The error that what all samples allow is not kept on those held out."""
    return TargetError(
        f"the target of {target:g} does not hold on the samples held out, or not on all: the best is {best:.3g}; "
        "give more samples, a larger --deviation, a smaller --margin, or --holdout 0",
        best,
    )


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
        original = measuring.evaluator.loaded(measuring.form, measuring.weights.originals)
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
        scheme = base_scheme(measuring, measuring.settings.epsilon or 0.0)
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
        values = measuring.values(scheme, k)
        excess = math.inf
        for among in self._occasions(scheme):
            found = self.judged(values, among)
            deviation = 0.0
            if measuring.settings.deviation is not None and math.isfinite(found.value):
                measured = measuring.evaluator.deviation(measuring.form, values, among)
                # Undefined on these samples, it still is defined on all together, which are measured last.
                if measured.is_measured:
                    deviation = measuring.promised(scheme, measured) if among == roles.every else measured.mean
            excess = self._over(found, deviation)
            if excess > 0:
                break
        self.keep(scheme, k, found)
        return excess

    def judged(self, values: Sequence[Array], among: Sequence[int]) -> Judgement:
        """What the constraint says of a candidate; infinitely bad if the model cannot be run with such weights."""
        evaluator, form = self._measuring.evaluator, self._measuring.form
        try:
            return self.judge(evaluator.loaded(form, values, among))
        except (ModelError, ConstraintError) as error:
            try:
                evaluator.deviation(form, values, among)
            except ModelError:
                self._measuring.explain_once(error)
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
        return _CLOSER if self._over(_worst(archive), deviation) > 0 else None

    def failure(self, archive: Archive, deviation: float) -> TargetError:
        """The error that the restored model does not keep the constraint."""
        return self._unkept(_worst(archive))

    def _unkept(self, found: Judgement) -> TargetError:
        """The error that nothing holds, and what to do about it."""
        if found.holds:
            return TargetError(
                f"the constraint is kept, but not the deviation of {self.deviation:g}; give a larger one", found.value
            )
        return TargetError(
            f"the constraint is not kept: the best value is {found.value:.4g}, above {found.limit:g}; "
            f"{self._constraint.remedy}",
            found.value,
        )


def _worst(archive: Archive) -> Judgement:
    """The judgement of the restored model that is furthest off, as its archive tells."""
    result = archive.manifest.result
    found = [result[name] for name in ("constraint", "constraint_holdout") if name in result]
    values = [Judgement(math.inf if one["value"] is None else one["value"], one["limit"]) for one in found]
    return max(values, key=lambda one: one.value)
