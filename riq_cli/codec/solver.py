"""The search for bin widths: allocations tried, k searched for each, the smallest that holds kept."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace

from riq_cli import search
from riq_cli.codec.means import Means, ProbesStart
from riq_cli.codec.settings import DEFAULT_EPSILON, Settings, Warn
from riq_cli.codec.solution import Scheme, Solution
from riq_cli.codec.split import Roles
from riq_cli.codec.weights import Plans, Weights, Widths
from riq_cli.errors import ModelError, TargetError
from riq_cli.evaluator import Array, Evaluator
from riq_cli.memory import give_back_free_memory
from riq_cli.model import SessionForm

_STEP = 1.02  # factor on k beyond what should do, where the held-out samples miss a target that the others meet
_STEP_MAX = 1.5
_STEPS = 20
_HALVINGS = 3
_BISECTIONS = 20
_FAR = (
    0.85  # share of a rough solution's bits below which a compensated one is not compared with measured, nearest ones
)
_SURE = 0.7  # share of them below which it is smaller than the paper's own, which may happen upon a small k
_PATIENCE = 200  # steps that the paper's own search may take
_LOOSE = 0.5  # share of the target below which a solution says that the deviation falls in leaps
_ABOUT = ("secant", 0.1, 5)  # search for a solution that others start from: tolerance, evaluations
_WIDER = math.sqrt(2)  # bins where errors are compensated are about as much wider: it is fitted and probed there
_CLOSE = 1.001  # between a k within a budget and one beyond it
_USUAL = 0.01  # a deviation as it is often asked for
_LOWEST = 1e-3  # k where Proposition 2 says nothing: it bounds that of nearest rounding by norm


class Solver:
    """Finds solutions for one model and one set of samples."""

    def __init__(
        self,
        settings: Settings,
        weights: Weights,
        evaluator: Evaluator,
        form: SessionForm,
        parts: Roles,
        pool: Executor,
        note: Callable[[Scheme, float, float], None],
        warn: Warn,
        release: Callable[[], None],
    ) -> None:
        """Take what solutions are measured with.

        Args:
            settings: what is asked for.
            weights: all layers that may be coded.
            evaluator: measures deviations on the samples.
            form: the model that it runs.
            parts: which of the samples do what.
            pool: threads that quantize.
            note: called with the scheme, k and deviation of every measurement.
            warn: called with what the user should know.
            release: called when the original weights are not needed for a while.
        """
        self._settings, self._weights = settings, weights
        self._evaluator, self._form = evaluator, form
        self._parts = parts
        self._pool, self._note, self._warn, self._release = pool, note, warn, release
        self._buffers: list[Array] | None = None  # made when needed: they are as large as the model
        self._newest: tuple[Plans, Widths, list[Array]] | None = None  # what the buffers hold
        self._remembers = False
        self._memory: dict[tuple[float, float, tuple[int, ...]], float] = {}  # deviations of the base allocation

    def deviation(self, scheme: Scheme, k: float, among: Sequence[int], widths: Widths | None = None) -> float:
        """Mean deviation on some samples with the bin widths of a scheme at k, or with those given."""
        key = scheme.allocation.epsilon, k, tuple(among)
        if self._is_base(scheme) and key in self._memory:
            self._note(scheme, k, self._memory[key])
            return self._memory[key]
        widths = self._weights.widths(scheme.allocation, k) if widths is None else widths
        value = self._evaluator.deviation(self._form, self._values(scheme, widths), among).mean
        self._note(scheme, k, value)
        if self._remembers and self._is_base(scheme):
            self._memory[key] = value
        return value

    def rest(self) -> None:
        """Give back the memory that measuring takes; it is taken again when it is needed."""
        self._buffers = self._newest = None
        give_back_free_memory()

    def _values(self, scheme: Scheme, widths: Widths) -> list[Array]:
        """The restored weights at these bin widths, good until the next ones; the newest are still there."""
        plans, newest = scheme.plans, self._newest
        if newest is None or newest[0] is not plans or newest[1] != widths:
            self._newest = None
            if self._buffers is None:
                self._buffers = self._weights.buffers()
            values = self._weights.requantize(widths, plans, self._buffers, self._pool)
            self._newest = newest = plans, widths, values
            self._release()
        return newest[2]

    def for_deviation(self, target: float, means: Means) -> Solution:
        """The smallest solution that was measured to hold the target, on the held-out samples too.

        Args:
            target: D.
            means: what is tried beside the norm allocation with nearest rounding.

        Raises:
            TargetError: none holds.
        """
        best: Solution | None = None
        paper = None if self._settings.epsilon is None else self._paper(target)  # what was asked for has to be reached
        if means.plans is not None:
            with contextlib.suppress(TargetError):
                about = paper or self._about(target)
                best = self._best(self._schemes(self._plans(about, means), about, means), target, about.k)
                if best is not None and best.bits < _FAR * about.bits and best.deviation > _LOOSE * target:
                    return best if best.bits < _SURE * about.bits else _smaller(self._own(target), best)
        paper = paper or self._paper(target)
        best = self._best(self._schemes({}, paper, means), target, paper.k, best)
        failure: TargetError | None = None
        if best is None or paper.bits < best.bits:
            try:
                best = _smaller(best, self.confirmed(paper, target))
            except TargetError as error:  # ε0 > 0 and --max-bits leave a floor that samples may not get below
                failure = error
        if means != Means() and (best is None or best.bits > _SURE * paper.bits):
            own = self._own(target)
            best = best if own is None else _smaller(best, own)
        if best is None and self._settings.epsilon is None:
            finest = self._solved(self._base(0.0), target, paper.k)
            return self.confirmed(finest, target)
        if best is None:
            assert failure is not None
            raise failure
        return best

    def kept(self, target: float, means: Means) -> Means:
        """The same means for many targets, of which this is one in the middle; see `Means.kept`.

        From now on, what was measured of the base allocation is remembered: Algorithm 1 takes the same steps for every
        target until one holds.
        """
        self._remembers = True
        with contextlib.suppress(TargetError):  # then each target starts from a solution of its own
            return means if means == Means() else means.kept(self._wider(self._about(target), means.plans is not None))
        return means

    def for_bits(self, budget: float, means: Means) -> Solution:
        """The solution of least measured deviation that takes no more than `budget` bits."""
        paper = self.within(self._base(self._settings.epsilon or 0.0), budget, self._expected_k(_USUAL))
        candidates = [paper]
        for plans in (self._plans(paper, means), {}):
            for scheme in self._schemes(plans, paper, means):
                candidates.append(self.within(scheme, budget, paper.k))
            if min(solution.deviation for solution in candidates) < _FAR * paper.deviation:
                break
        return min(candidates, key=lambda solution: solution.deviation)

    def at(self, k: float) -> Solution:
        """The norm allocation, or the uniform one, at a given k, with nearest rounding."""
        epsilon = DEFAULT_EPSILON if self._settings.epsilon is None else self._settings.epsilon
        return self._solution(self._base(epsilon), k, math.nan)

    def refined(self, solution: Solution, factor: float) -> Solution:
        """The same scheme at another k, not measured yet."""
        return self._solution(solution.scheme, solution.k * factor, math.nan)

    # ---- the paper's ----

    def _about(self, target: float) -> Solution:
        """A rough solution that others start from."""
        return self._solved(self._base(0.0), target, self._expected_k(target), *_ABOUT)

    def _paper(self, target: float) -> Solution:
        fixed = self._settings.epsilon
        epsilon = DEFAULT_EPSILON if fixed is None else fixed
        start = self._expected_k(target)
        try:
            return self._solved(self._base(epsilon), target, start)
        except TargetError as error:
            best = error.best
        if fixed is not None:
            raise TargetError(
                f"a deviation of {target:g} is not reached with epsilon = {epsilon:g}: the best is {best:.3g}; "
                "give a smaller --epsilon, or none to let riq choose it",
                best,
            )

        def at_largest_k(epsilon: float) -> float:
            return self.deviation(
                self._base(epsilon), search.upper_bound(self._weights.largest, epsilon), self._parts.others
            )

        # The paper takes the largest ε0 that reaches (A.4). That can be far from the best where it leaves k no room:
        # 0 is tried too, and the smaller solution kept.
        smaller = search.reachable_epsilon(at_largest_k, target, epsilon, best)
        solutions = []
        for epsilon in dict.fromkeys((smaller, 0.0)):
            try:
                solutions.append(self._solved(self._base(epsilon), target, start))
            except TargetError as error:
                best = min(best, error.best)
        if not solutions:
            raise TargetError(
                f"a deviation of {target:g} is not reached: the best is {best:.3g}, with weights as fine as they can "
                "be coded; give a larger --deviation, or keep sensitive layers exact with --exclude",
                best,
            )
        solution = min(solutions, key=lambda solution: solution.bits)
        if self._settings.allocation == "norm":
            self._warn(
                f"epsilon = {DEFAULT_EPSILON:g} does not reach the target; {solution.scheme.allocation.epsilon:g} does"
            )
        return solution

    def _base(self, epsilon: float) -> Scheme:
        """The norm allocation with nearest rounding, or the uniform one in its place where that is asked for."""
        uniform = self._settings.allocation == "uniform"
        return Scheme(self._weights.uniform_allocation() if uniform else self._weights.norm_allocation(epsilon), {})

    def _is_base(self, scheme: Scheme) -> bool:
        return not scheme.plans and scheme.allocation.name in ("norm", "uniform")

    def _expected_k(self, target: float) -> float:
        return self._weights.expected_k(self._base(0.0).allocation, target)

    def _own(self, target: float) -> Solution | None:
        """The solution of `--preset paper`, to the letter: nothing may be larger. None where there is none.

        Where the deviation is rough, its search may happen upon a smaller k than others. It takes so many steps up to
        the first k that holds that it is not worth waiting for where that is far up; such solutions are large.
        """
        base = self._base(DEFAULT_EPSILON)
        if self._settings.epsilon in (None, DEFAULT_EPSILON):
            with contextlib.suppress(TargetError):
                about = self._solved(base, target, self._expected_k(target), *_ABOUT)
                lowest = search.lower_bound(self._weights.largest, DEFAULT_EPSILON)
                step = math.sqrt(search.upper_bound(self._weights.largest, DEFAULT_EPSILON) - lowest)
                if about.k - lowest < _PATIENCE * step:
                    return self._solved(replace(base, guarded=False), target, about.k, "algorithm1")
        return None

    # ---- beyond ----

    def _best(
        self, schemes: Iterable[Scheme], target: float, start: float, best: Solution | None = None
    ) -> Solution | None:
        """The smallest solution of some schemes that holds, or `best` if that is smaller."""
        for scheme in schemes:
            with contextlib.suppress(TargetError):  # the paper's solution is there
                best = _smaller(best, self.confirmed(self._solved(scheme, target, start), target))
        return best

    def _plans(self, about: Solution, means: Means) -> Plans:
        self.rest()
        return {} if means.plans is None else means.plans(self._wider(about, True).widths)

    def _schemes(self, plans: Plans, paper: Solution, means: Means) -> list[Scheme]:
        """Schemes that may be better than the paper's, with errors compensated by these plans, if there are any."""
        if means.probes is not None:
            return self._probed(paper, plans, means.probes)
        return [Scheme(paper.scheme.allocation, plans)] if plans else []

    def _probed(self, paper: Solution, plans: Plans, probes: ProbesStart) -> list[Scheme]:
        """The measured allocation, and its blend half-way with the norm's."""
        self.rest()
        try:
            probed = probes(self._wider(paper, bool(plans)), plans)
            measured, plans = probed.allocation(paper), probed.plans
        except ModelError as error:
            self._warn(f"layers cannot be probed, so the norm allocation is used: {error}")
            return [Scheme(paper.scheme.allocation, plans)] if plans else []
        blend = {
            number: math.sqrt(shape) * math.sqrt(self._weights.norms[number])
            if number in paper.scheme.allocation.shapes
            else shape
            for number, shape in measured.shapes.items()
        }
        return [Scheme(measured, plans), Scheme(replace(measured, name="blend", shapes=blend), plans)]

    def _wider(self, solution: Solution, compensated: bool) -> Solution:
        """Where to look for a compensated solution, given one with nearest rounding; its bits are not counted."""
        if not compensated:
            return solution
        k = solution.k / _WIDER
        return Solution(solution.scheme, k, self._coded(solution.scheme, k), math.nan, math.nan)

    # ---- k ----

    def _solved(
        self,
        scheme: Scheme,
        target: float,
        start: float,
        by: str | None = None,
        tolerance: float = 0.01,
        budget: int = 10,
    ) -> Solution:
        """The smallest solution of a scheme that was measured to hold the target on the searched samples."""
        by = by or (self._settings.search if self._is_base(scheme) else "secant")
        epsilon = scheme.allocation.epsilon
        bounded = scheme.rounding == "nearest" and scheme.allocation.name != "uniform"
        lowest = search.lower_bound(self._weights.largest, epsilon) if bounded else _LOWEST
        highest = search.upper_bound(self._weights.largest, epsilon)

        def measure(k: float) -> float:
            return self.deviation(scheme, k, self._searched(scheme))

        if by == "algorithm1":
            found = search.algorithm1(measure, target, lowest, highest)
        else:
            found = search.secant(measure, target, start, lowest, highest, tolerance, budget)
        return self._solution(scheme, found.k, found.value)

    def confirmed(self, solution: Solution, target: float) -> Solution:
        """The solution, or one of its scheme with a larger k, that holds on held-out samples and on all together."""
        failed, best = 0.0, math.inf
        for _ in range(_STEPS):
            unseen = self._unseen_deviation(solution)
            best = min(best, unseen)
            worst = max(solution.deviation, unseen)
            if worst <= target:
                break
            failed = solution.k
            factor = min(math.sqrt(worst / target) * _STEP, _STEP_MAX)  # deviation falls about as 1/k²
            solution = self._measured(solution.scheme, solution.k * factor)
        else:
            raise TargetError(
                f"the target of {target:g} holds on the samples of the search, but on those held out of it the best is "
                f"{best:.3g}; give more samples, a larger --deviation, or --holdout 0",
                best,
            )
        for _ in range(_HALVINGS if failed else 0):  # the step may have been too long
            if solution.k < failed * _STEP:
                break
            between = self._measured(solution.scheme, math.sqrt(failed * solution.k))
            if max(between.deviation, self._unseen_deviation(between)) <= target:
                solution = between
            else:
                failed = between.k
        return solution

    def _searched(self, scheme: Scheme) -> Sequence[int]:
        """The samples that the search measures a scheme on."""
        if not scheme.guarded:
            return sorted((*self._parts.others, *self._parts.held))
        return self._parts.searched if scheme.rounding == "compensated" else self._parts.others

    def _unseen_deviation(self, solution: Solution) -> float:
        """The mean deviation on the samples held out, or on all samples if that is larger; 0 if the search saw all."""
        if not solution.scheme.guarded:
            return 0.0
        parts, searched = self._parts, self._searched(solution.scheme)
        rest = [number for number in parts.others if number not in searched]
        held = self.deviation(solution.scheme, solution.k, parts.held, solution.widths) if parts.held else 0.0
        if not rest:
            return held
        left = self.deviation(solution.scheme, solution.k, rest, solution.widths)
        total = len(searched) * solution.deviation + len(rest) * left + len(parts.held) * held
        return max(held, total / (len(searched) + len(rest) + len(parts.held)))

    def _measured(self, scheme: Scheme, k: float) -> Solution:
        return self._solution(scheme, k, self.deviation(scheme, k, self._searched(scheme)))

    def within(self, scheme: Scheme, budget: float, start: float) -> Solution:
        """The finest solution of a scheme within a budget of bits, measured.

        Args:
            scheme: how bin widths are shared out and errors compensated.
            budget: bits of the archive that depend on bin widths.
            start: first k to try.
        """
        low, high, k = 0.0, math.inf, start
        bits_low = bits_high = 0.0
        for _ in range(_BISECTIONS):
            bits = self._weights.bits(self._coded(scheme, k), scheme.plans, self._pool)
            if bits <= budget:
                low, bits_low = k, bits
            else:
                high, bits_high = k, bits
            if low and high < low * _CLOSE:
                break
            if low and high < math.inf:  # bits grow about as log k: between the ends, but not too near to either
                share = min(max((budget - bits_low) / (bits_high - bits_low), 0.1), 0.9)
                k = low * (high / low) ** share
            else:
                octaves = (budget - bits) / self._weights.total
                k *= 2 ** (max(1.1 * octaves, 0.05) if bits <= budget else min(1.1 * octaves, -0.05))
                k = min(max(k, _LOWEST), search.K_UNBOUNDED)
            if k == low:
                break
        k = low or _LOWEST
        widths = self._coded(scheme, k)
        return self._solution(scheme, k, self.deviation(scheme, k, self._searched(scheme), widths))

    def _coded(self, scheme: Scheme, k: float) -> Widths:
        return self._weights.worthwhile(self._weights.widths(scheme.allocation, k))

    def _solution(self, scheme: Scheme, k: float, deviation: float) -> Solution:
        widths = self._coded(scheme, k)
        return Solution(scheme, k, widths, self._weights.bits(widths, scheme.plans, self._pool), deviation)


def _smaller(one: Solution | None, other: Solution) -> Solution:
    return other if one is None or other.bits < one.bits else one
