"""The search for bin widths: allocations tried, k searched for each, the smallest that holds kept."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from riq_cli.allocate.allocation import Allocation
from riq_cli.errors import ModelError, TargetError
from riq_cli.pipeline import search
from riq_cli.pipeline.means import Means, ProbesStart
from riq_cli.pipeline.plans import Plan
from riq_cli.pipeline.searcher import Searcher, not_held
from riq_cli.pipeline.settings import DEFAULT_DEVIATION, DEFAULT_EPSILON
from riq_cli.pipeline.solution import Scheme, Solution
from riq_cli.pipeline.weights import Plans

_FAR = (
    0.85  # share of a rough solution's bits below which a compensated one is not compared with measured, nearest ones
)
_SURE = 0.7  # share of them below which it is smaller than the paper's own, which may happen upon a small k
_PATIENCE = 200  # steps that the paper's own search may take
_CLEARLY = 0.95  # share of a solution's bits below which a trellis cannot bring it
_WIDER = math.sqrt(2)  # bins where errors are compensated are about as much wider: it is fitted and probed there
INVISIBLE = 1e-6  # a deviation below which nothing can be seen in outputs of single precision
_AROUND = (0.95, 1.0, 1.05)  # factors on k at which schemes are held against each other


class Solver(Searcher):
    """Chooses the schemes to try for one model and one set of samples, and keeps the best solution."""

    def for_deviation(self, target: float, means: Means) -> Solution:
        """The smallest solution that was measured to hold the target, on the held-out samples too.

        Args:
            target: D.
            means: what is tried beside the norm allocation with nearest rounding.

        Raises:
            TargetError: none holds.
        """
        solutions = self._solutions(target, means)
        found = min(solutions, key=lambda solution: solution.bits)
        refitted = self._refitted(found, target, means)
        if refitted is not None:
            solutions.append(refitted)
        if refitted is None or refitted.bits >= _CLEARLY * found.bits:
            trellised = self._with_trellis(found)
            solutions += [] if trellised is None else self._crossings([trellised], target, found.k)
        best = self._smallest(solutions, target)
        own = None if means == Means() else self._own(target, best)
        return best if own is None or best.bits <= own.bits else own

    def _smallest(self, solutions: Sequence[Solution], target: float) -> Solution:
        """The smallest of some solutions once they hold: what does not hold yet grows until it does."""
        best: Solution | None = None
        failure: TargetError | None = None
        for solution in sorted(solutions, key=lambda solution: solution.bits):
            if best is None or solution.bits < best.bits:
                try:
                    settled = self.settled(solution, target)
                except TargetError as error:
                    failure = error
                    continue
                best = settled if best is None or settled.bits < best.bits else best
        if best is None:
            assert failure is not None
            raise failure
        return best

    def _solutions(self, target: float, means: Means) -> list[Solution]:
        """The best solution of each way to round and to share bin widths out, about where it causes the target."""
        paper = None if self._settings.epsilon is None else self._paper(target)  # what was asked for has to be reached
        found: list[Solution] = []
        if means.plans is not None:
            with contextlib.suppress(TargetError):
                about = paper or self._about(target)
                found = self._crossings(self._schemes(self._plans(about, means), about, means), target, about.k)
                if found and self.settled(found[0], target).bits < _FAR * about.bits:
                    return found
        paper = paper or self._paper(target)
        return [*found, *self._crossings(self._schemes({}, paper, means), target, paper.k), paper]

    def kept(self, target: float, means: Means) -> Means:
        """The same means for many targets, of which this is one in the middle; see `Means.kept`."""
        with contextlib.suppress(TargetError):  # then each target starts from a solution of its own
            return means if means == Means() else means.kept(self._wider(self._about(target), means.plans is not None))
        return means

    def for_bits(self, budget: float, means: Means) -> Solution:
        """The solution that takes no more than `budget` bits and causes least there and thereabouts.

        Where the base allocation causes nothing that can be seen with less, it is that, and takes less.
        """

        def finest(scheme: Scheme, start: float) -> Solution:
            solution = self.within(scheme, budget, start)
            return replace(solution, deviation=self._typical(scheme, solution.k, self._parts.unfitted))

        base = self._base(self._settings.epsilon or 0.0)
        paper = finest(base, self._weights.expected_k(base.allocation, DEFAULT_DEVIATION))
        if paper.deviation <= INVISIBLE:
            with contextlib.suppress(TargetError):
                invisible = self._solved(base, INVISIBLE)
                if invisible.bits <= budget:
                    return invisible
        candidates = [paper]
        for plans in (self._plans(paper, means), {}):
            others = self._schemes(plans, paper, means)
            while others:
                candidates.append(finest(others.pop(0), paper.k))
                others = self._most_promising(others, candidates[-1])
            if min(solution.deviation for solution in candidates) < _FAR * paper.deviation:
                break
        best = min(candidates, key=lambda solution: solution.deviation)
        refitted, trellised = self._refitted_scheme(best, means), self._with_trellis(best)
        if trellised is not None:
            best = min(best, finest(trellised, best.k), key=lambda solution: solution.deviation)
        if refitted is not None:
            found = self.within(refitted, budget, best.k)
            best = min(found, best, key=lambda one: self._typical(one.scheme, one.k, self._parts.held))
        return best

    def at(self, k: float) -> Solution:
        """The norm allocation, or the uniform one, at a given k, with nearest rounding."""
        epsilon = DEFAULT_EPSILON if self._settings.epsilon is None else self._settings.epsilon
        return self._solution(self._base(epsilon), k, math.nan)

    # ---- the paper's ----

    def _about(self, target: float) -> Solution:
        """A rough solution that others start from."""
        return self._solved(self._base(0.0), target, rough=True)

    def _paper(self, target: float) -> Solution:
        """The smallest solution of the base allocation with ε0 = 0.01 and with 0, or with what was asked for.

        The paper takes an ε0 that reaches the target (A.4), and so does its search. But that can be far from the best
        where it leaves k no room.
        """
        given = self._settings.epsilon
        found: list[Solution] = []
        best = math.inf
        for epsilon in (DEFAULT_EPSILON, 0.0) if given is None else (given,):
            try:
                found.append(self._solved(self._base(epsilon), target))
            except TargetError as error:
                best = min(best, error.best)
            if found and self._settings.search == "algorithm1":
                break
        if not found:
            raise self._unreached(target, best)
        return min(found, key=lambda solution: solution.bits)

    def _unreached(self, target: float, best: float) -> TargetError:
        """The error that the base allocation does not reach a target, and why."""
        epsilon = self._settings.epsilon or 0.0
        finest = search.upper_bound(self._weights.largest, epsilon)
        if self._deviation(self._base(epsilon), finest, self._parts.others).mean <= target:
            return not_held(target, best)
        if epsilon:
            return TargetError(
                f"a deviation of {target:g} is not reached with epsilon = {epsilon:g}: the best is {best:.3g}; "
                "give a smaller --epsilon, or none to let riq choose it",
                best,
            )
        return TargetError(
            f"a deviation of {target:g} is not reached: the best is {best:.3g}, with weights as fine as they can "
            "be coded; give a larger --deviation, or keep sensitive layers exact with --exclude",
            best,
        )

    def _base(self, epsilon: float) -> Scheme:
        """The norm allocation with nearest rounding, or the uniform one in its place where that is asked for."""
        uniform = self._settings.allocation == "uniform"
        return Scheme(self._weights.uniform_allocation() if uniform else self._weights.norm_allocation(epsilon), {})

    def _own(self, target: float, best: Solution) -> Solution | None:
        """The solution of `--preset paper`, to the letter: nothing may be larger. None where it is not worth a search.

        Where the deviation is rough, its search may happen upon a smaller k than others. It takes so many steps up to
        the first k that holds that it is not worth waiting for where that is far up; such solutions are large.
        """
        base = self._base(DEFAULT_EPSILON)
        if "candidates" in self._settings.without:
            return None
        if self._settings.epsilon in (None, DEFAULT_EPSILON):
            with contextlib.suppress(TargetError):
                about = self._solved(base, target, rough=True)
                lowest = search.lower_bound(self._weights.largest, DEFAULT_EPSILON)
                step = math.sqrt(search.upper_bound(self._weights.largest, DEFAULT_EPSILON) - lowest)
                if best.bits > _SURE * about.bits and about.k - lowest < _PATIENCE * step:
                    return self._solved(replace(base, guarded=False), target, by="algorithm1")
        return None

    # ---- beyond ----

    def _crossings(self, schemes: Iterable[Scheme], target: float, start: float) -> list[Solution]:
        """The smallest of the solutions where some schemes cause the target, alone; none if none of them gets there.

        After the first scheme, only that of the others is searched which causes least in as many bits as the best so
        far.
        """
        others, found = list(schemes), list[Solution]()
        while others:
            with contextlib.suppress(TargetError):  # the paper's solution is there
                found = [min([*found, self._crossing(others.pop(0), target, start)], key=lambda one: one.bits)]
            others = self._most_promising(others, found[0]) if found else others
        return found

    def _most_promising(self, schemes: list[Scheme], solution: Solution) -> list[Scheme]:
        """The one of some schemes that causes least in about as many bits as a solution takes."""

        def typical(scheme: Scheme) -> float:
            return self._typical(scheme, self._k_of(scheme, solution.bits, solution.k), self._unseen(scheme))

        return [min(schemes, key=typical)] if len(schemes) > 1 else schemes

    def _typical(self, scheme: Scheme, k: float, among: Sequence[int]) -> float:
        """The mean deviation at about a k, on some samples: at one k it is a matter of luck, of a few it is less so."""
        return geometric_mean([self._deviation(scheme, k * factor, among).mean for factor in _AROUND])

    def _plans(self, about: Solution, means: Means) -> Plans:
        self.rest()
        return {} if means.plans is None else means.plans(self._wider(about, True).widths)

    def _schemes(self, plans: Plans, paper: Solution, means: Means) -> list[Scheme]:
        """Schemes that may be better than the paper's, with errors compensated by these plans, if there are any."""
        if means.probes is not None:
            return self._probed(paper, plans, means.probes)
        return [Scheme(paper.scheme.allocation, plans)] if plans else []

    def _probed(self, paper: Solution, plans: Plans, probes: ProbesStart) -> list[Scheme]:
        """The measured allocations, and their blends half-way with the norm's."""
        self.rest()
        try:
            probed = probes(self._wider(paper, bool(plans)), plans)
            allocations, plans = probed.allocations(paper), probed.plans
        except ModelError as error:
            self._warn(f"layers cannot be probed, so the norm allocation is used: {error}")
            return [Scheme(paper.scheme.allocation, plans)] if plans else []
        without = self._settings.without
        if "reprobes" in without:
            del allocations[1:]
        blended = [self._blended(allocation, paper.scheme.allocation) for allocation in allocations]
        pairs = zip(allocations, blended, strict=True)
        tried = [allocation for pair in pairs for allocation in pair] if "blends" not in without else allocations
        schemes = [Scheme(allocation, plans) for allocation in tried]
        if "candidates" in without:
            return [scheme.decided for scheme in schemes]
        # What gradients say of few samples, or where little is left of rows, may be worth less than nothing.
        even = [scheme.even for scheme in schemes[:2] if scheme.has_positions]
        plain = [scheme.plain for scheme in schemes[:2] if scheme.has_importance]
        return [scheme.decided for scheme in schemes] + even + plain

    def _blended(self, measured: Allocation, norm: Allocation) -> Allocation:
        shapes = {
            number: math.sqrt(shape) * math.sqrt(self._weights.norms[number]) if number in norm.shapes else shape
            for number, shape in measured.shapes.items()
        }
        return replace(measured, name=measured.name.replace("measured", "blend"), shapes=shapes)

    def _refitted(self, found: Solution, target: float, means: Means) -> Solution | None:
        """The smallest solution of the scheme refitted; None if there is none.

        Little is left to search on that it was not fitted to. So k is taken where it does as well as `found` on samples
        most of which that was fitted to as well.
        """
        scheme = self._refitted_scheme(found, means)
        if scheme is None:
            return None
        among = self._parts.weighed
        goal = self._typical(found.scheme, found.k, among)
        with contextlib.suppress(TargetError):
            return self._crossing_among(among, scheme, goal, found.k)
        return None

    def _refitted_scheme(self, found: Solution, means: Means) -> Scheme | None:
        """The solution's scheme fitted to all samples that are not held out, along a trellis; None if it cannot be.

        More samples tell more of what errors do.
        """
        if means.refit is None or not found.scheme.is_fitted:
            return None
        self.rest()
        before, layers = found.scheme.plans, self._weights.layers
        plans = means.refit(found.widths, before)
        plans = {n: plan.after(before[n], layers[n]) if n in before else plan for n, plan in plans.items()}
        scheme = replace(found.scheme, plans={**before, **plans}, refitted=True)
        return self._with_trellis(replace(found, scheme=scheme)) or scheme

    def _with_trellis(self, solution: Solution) -> Scheme | None:
        """The solution's scheme with those layers along a trellis that it saves bits of; None if it does of none."""
        if not self._settings.may_use_trellis:
            return None
        self.rest()
        plans, widths = solution.scheme.plans, solution.widths

        def tried(number: int) -> Plan | None:
            layer, width = self._weights.layers[number], widths[number]
            return None if width is None else (plans.get(number) or Plan.nearest(layer)).with_trellis(layer, width)

        numbers = self._weights.matrices
        found = {n: plan for n, plan in zip(numbers, self._pool.map(tried, numbers), strict=True) if plan is not None}
        return replace(solution.scheme, plans={**plans, **found}) if found else None

    def _wider(self, solution: Solution, compensated: bool) -> Solution:
        """Where to look for a compensated solution of a nearest one's deviation; its bits are not counted."""
        if not compensated:
            return solution
        k = solution.k / _WIDER
        return replace(solution, k=k, widths=self._coded(solution.scheme, k), bits=math.nan)


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of values ≥ 0 by their product; infinite where one of them is, whatever the others are."""
    return math.inf if math.inf in values else math.prod(values) ** (1 / len(values))
