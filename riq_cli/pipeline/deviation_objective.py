"""The deviation as what has to hold: the smallest k of a scheme at which it stays within a target."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace

from riq_cli.archive import Archive
from riq_cli.errors import TargetError
from riq_cli.pipeline import search
from riq_cli.pipeline.objective import CORRECTION, Objective
from riq_cli.pipeline.root import Floats, root
from riq_cli.pipeline.samples import default_margin
from riq_cli.pipeline.settings import DEFAULT_EPSILON
from riq_cli.pipeline.solution import Scheme, Solution

_CORRECTION_MOST = 1.2  # factor on k at most where the restored model misses what the search met
_STEPS, _STEP, _STEP_MAX = 20, 1.01, 1.5  # factors on k where it does not hold yet: at least this more with each step
_ROUGH_SAMPLES = 16  # by which the octave of k is found
_SPARE, _COARSER = 0.9, 2  # share of the target below which a coarser k is tried, and tries
_LETTER = 0.7  # share of the bits of another search below which the paper's own, which may be lucky, is not tried
_PATIENCE = 200  # steps that the paper's own search may take


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

        return root(
            measure, self.deviation, start, search.K_LOWEST, highest, margin, 2 if few else settings.work.points
        )

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
                found.append(self.searched(self._measuring.base_scheme(epsilon), settings.search))
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
        lowest = search.K_LOWEST if scheme.allocation.name == "uniform" else search.lower_bound(largest, epsilon)
        return lowest, search.upper_bound(largest, epsilon)

    def _unreached(self, best: float) -> TargetError:
        """The error that the base allocation does not reach the target, and why."""
        measuring, target = self._measuring, self.deviation
        epsilon = measuring.settings.epsilon or 0.0
        scheme = measuring.base_scheme(epsilon)
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
        return min(max(CORRECTION, math.sqrt(deviation / self.deviation)), _CORRECTION_MOST)

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
