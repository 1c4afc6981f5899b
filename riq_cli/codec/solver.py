"""The search for bin widths: allocations tried, k searched for each, the smallest that holds kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from riq_cli import search
from riq_cli.allocation import Allocation
from riq_cli.codec.probing import Probed, measured_allocation
from riq_cli.codec.settings import DEFAULT_EPSILON, Settings, Warn
from riq_cli.codec.weights import Weights, Widths
from riq_cli.errors import ModelError, TargetError
from riq_cli.evaluator import Array, Evaluator, Prober
from riq_cli.model import SessionForm

_STEP = 1.02  # first factor on k where the held-out samples miss a target that the others meet
_GROWTH = 1.3  # exponent by which that factor grows
_STEPS = 20  # a factor of 10⁵ in all
_BISECTIONS = 20


ProberStart = Callable[[], tuple[Prober, Probed]]  # a prober, and what to tell of its progress


@dataclass(frozen=True)
class Solution:
    """Bin widths of an allocation at a k, the bits that they cost, and the deviation measured with them."""

    allocation: Allocation
    k: float
    widths: Widths
    bits: float
    deviation: float


class Solver:
    """Finds solutions for one model and one set of samples."""

    def __init__(
        self,
        settings: Settings,
        weights: Weights,
        evaluator: Evaluator,
        form: SessionForm,
        searched: Sequence[int],
        held: Sequence[int],
        pool: Executor,
        note: Callable[[str, float, float], None],
        warn: Warn,
        release: Callable[[], None],
    ) -> None:
        """Take what solutions are measured with.

        Args:
            settings: what is asked for.
            weights: all layers that may be coded.
            evaluator: measures deviations on the samples.
            form: the model that it runs.
            searched: numbers of the samples that the search may see.
            held: numbers of those that check its solution; may be empty.
            pool: threads that quantize.
            note: called with the allocation, k and deviation of every measurement.
            warn: called with what the user should know.
            release: called when the original weights are not needed for a while.
        """
        self._settings, self._weights = settings, weights
        self._evaluator, self._form = evaluator, form
        self._searched, self._held = searched, held
        self._pool, self._note, self._warn, self._release = pool, note, warn, release
        self._buffers: list[Array] | None = None  # made when needed: they are as large as the model
        self._allocations: list[Allocation] | None = None

    def deviation(self, allocation: Allocation, k: float, among: Sequence[int], widths: Widths | None = None) -> float:
        """Mean deviation on some samples with the bin widths of an allocation at k, or with those given."""
        widths = self._weights.widths(allocation, k) if widths is None else widths
        if self._buffers is None:
            self._buffers = self._weights.buffers()
        values = self._weights.requantize(widths, self._buffers, self._pool)
        self._release()
        value = self._evaluator.deviation(self._form, values, among).mean
        self._note(allocation.name, k, value)
        return value

    def rest(self) -> None:
        """Give back the memory that measuring takes; it is taken again when it is needed."""
        self._buffers = None

    def for_deviation(self, target: float, prober: ProberStart | None) -> Solution:
        """The smallest solution that was measured to hold the target, on the held-out samples too.

        Args:
            target: D.
            prober: makes the session for the measured allocation; None: only the norm allocation is tried.

        Raises:
            TargetError: none holds.
        """
        paper = self._paper(target)
        candidates = [paper]
        for allocation in self._alternatives(paper, prober):
            try:
                candidates.append(self._solved(allocation, target, paper.k))
            except TargetError:
                continue  # the paper's solution is there
        candidates.sort(key=lambda solution: solution.bits)
        best: Solution | None = None
        failure: TargetError | None = None
        for candidate in candidates:
            if best is None or candidate.bits < best.bits:
                try:
                    confirmed = self.confirmed(candidate, target)
                except TargetError as error:  # ε0 > 0 and --max-bits leave a floor that samples may not get below
                    failure = error
                else:
                    best = confirmed if best is None or confirmed.bits < best.bits else best
        if best is None and self._settings.epsilon is None:
            finest = self._solved(self._weights.norm_allocation(0.0), target, paper.k)
            return self.confirmed(finest, target)
        if best is None:
            assert failure is not None
            raise failure
        return best

    def for_bits(self, budget: float, prober: ProberStart | None) -> Solution:
        """The solution of least measured deviation that takes no more than `budget` bits."""
        epsilon = 0.0 if self._settings.epsilon is None else self._settings.epsilon
        paper = self._within(self._weights.norm_allocation(epsilon), budget)
        candidates = [paper]
        for allocation in self._alternatives(paper, prober):
            candidates.append(self._within(allocation, budget))
        return min(candidates, key=lambda solution: solution.deviation)

    def at(self, k: float) -> Solution:
        """The norm allocation at a given k."""
        epsilon = DEFAULT_EPSILON if self._settings.epsilon is None else self._settings.epsilon
        return self._solution(self._weights.norm_allocation(epsilon), k, math.nan)

    def refined(self, solution: Solution, factor: float) -> Solution:
        """The same allocation at another k, not measured yet."""
        return self._solution(solution.allocation, solution.k * factor, math.nan)

    # ---- the paper's ----

    def _paper(self, target: float) -> Solution:
        fixed = self._settings.epsilon
        epsilon = DEFAULT_EPSILON if fixed is None else fixed
        start = self._weights.expected_k(target)
        try:
            return self._solved(self._weights.norm_allocation(epsilon), target, start)
        except TargetError as error:
            best = error.best
        if fixed is not None:
            raise TargetError(
                f"a deviation of {target:g} is not reached with epsilon = {epsilon:g}: the best is {best:.3g}; "
                "give a smaller --epsilon, or none to let riq choose it",
                best,
            )

        def at_largest_k(epsilon: float) -> float:
            allocation, k = self._weights.norm_allocation(epsilon), search.upper_bound(self._weights.largest, epsilon)
            return self.deviation(allocation, k, self._searched)

        # The paper takes the largest ε0 that reaches (A.4). That can be far from the best where it leaves k no room:
        # 0 is tried too, and the smaller solution kept.
        smaller = search.reachable_epsilon(at_largest_k, target, epsilon, best)
        solutions = []
        for epsilon in dict.fromkeys((smaller, 0.0)):
            try:
                solutions.append(self._solved(self._weights.norm_allocation(epsilon), target, start))
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
            self._warn(f"epsilon = {DEFAULT_EPSILON:g} does not reach the target; {solution.allocation.epsilon:g} does")
        return solution

    # ---- measured ----

    def _alternatives(self, paper: Solution, prober: ProberStart | None) -> list[Allocation]:
        """The measured allocation and its blend half-way with the norm's; probed once."""
        if self._allocations is None:
            self._allocations = [] if prober is None else self._measured(paper, prober)
        return self._allocations

    def _measured(self, paper: Solution, prober: ProberStart) -> list[Allocation]:
        try:
            session, progress = prober()
            measured = measured_allocation(self._weights, session, paper.widths, paper.k, progress)
        except ModelError as error:
            self._warn(f"layers cannot be probed, so the norm allocation is used: {error}")
            return []
        blend = {
            number: math.sqrt(shape) * math.sqrt(self._weights.norms[number])
            if number in paper.allocation.shapes
            else shape
            for number, shape in measured.shapes.items()
        }
        return [measured, replace(measured, name="blend", shapes=blend)]

    # ---- k ----

    def _solved(self, allocation: Allocation, target: float, start: float) -> Solution:
        """The smallest solution of an allocation that was measured to hold the target on the searched samples."""
        lowest = search.lower_bound(self._weights.largest, allocation.epsilon)
        highest = search.upper_bound(self._weights.largest, allocation.epsilon)

        def measure(k: float) -> float:
            return self.deviation(allocation, k, self._searched)

        if self._settings.search == "algorithm1" and allocation.name == "norm":
            found = search.algorithm1(measure, target, lowest, highest)
        else:
            found = search.secant(measure, target, start, lowest, highest)
        return self._solution(allocation, found.k, found.value)

    def confirmed(self, solution: Solution, target: float) -> Solution:
        """The solution, or one of its allocation with a larger k, that holds on the held-out samples too."""
        if not self._held:
            return solution
        allocation, k, step, best = solution.allocation, solution.k, _STEP, math.inf
        for _ in range(_STEPS):
            if solution.deviation <= target:
                held = self.deviation(allocation, k, self._held, solution.widths)
                best = min(best, held)
                if held <= target:
                    return solution
            k, step = k * step, step**_GROWTH
            solution = self._solution(allocation, k, self.deviation(allocation, k, self._searched))
        raise TargetError(
            f"the target of {target:g} holds on the samples of the search, but on those held out of it the best is "
            f"{best:.3g}; give more samples, a larger --deviation, or --holdout 0",
            best,
        )

    def _within(self, allocation: Allocation, budget: float) -> Solution:
        """The finest solution of an allocation within a budget of bits, measured."""
        low, high = 1e-3, search.K_UNBOUNDED
        for _ in range(_BISECTIONS):
            middle = math.sqrt(low * high)
            if self._weights.bits(self._coded(allocation, middle)) <= budget:
                low = middle
            else:
                high = middle
        widths = self._coded(allocation, low)
        return self._solution(allocation, low, self.deviation(allocation, low, self._searched, widths))

    def _coded(self, allocation: Allocation, k: float) -> Widths:
        return self._weights.worthwhile(self._weights.widths(allocation, k))

    def _solution(self, allocation: Allocation, k: float, deviation: float) -> Solution:
        widths = self._coded(allocation, k)
        return Solution(allocation, k, widths, self._weights.bits(widths), deviation)
