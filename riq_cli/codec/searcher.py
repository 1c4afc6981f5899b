"""One scheme → its solution: what it causes measured, and the k found at which it holds a target or fits a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from riq_cli import search
from riq_cli.codec.settings import Settings, Warn
from riq_cli.codec.solution import Scheme, Solution
from riq_cli.codec.split import Roles
from riq_cli.codec.weights import Plans, Weights, Widths
from riq_cli.errors import TargetError
from riq_cli.evaluator import Array, Evaluator
from riq_cli.memory import give_back_free_memory
from riq_cli.model import SessionForm

_STEP = 1.02  # factor on k beyond what should do, where the held-out samples miss a target that the others meet
_STEP_MAX = 1.5
_STEPS = 20
_HALVINGS = 3
_BISECTIONS = 20
_CLOSE = 1.001  # between a k within a budget and one beyond it
_NEWTON = 2  # steps at most
_NEAR = 1 / 32  # bits a weight that one step takes to almost none
_LOWEST = 1e-3  # k where Proposition 2 says nothing: it bounds that of nearest rounding by norm


class Searcher:
    """Measures schemes for one model and one set of samples, and finds the k of each."""

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

    def refined(self, solution: Solution, factor: float) -> Solution:
        """The same scheme at another k, not measured yet."""
        return self._solution(solution.scheme, solution.k * factor, math.nan)

    def _is_base(self, scheme: Scheme) -> bool:
        return not scheme.plans and scheme.allocation.name in ("norm", "uniform")

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
            if self._holds(between, target):
                solution = between
            else:
                failed = between.k
        return solution

    def _searched(self, scheme: Scheme) -> Sequence[int]:
        """The samples that the search measures a scheme on."""
        if not scheme.guarded:
            return self._parts.every
        if scheme.refitted:
            return self._parts.weighed
        return self._parts.searched if scheme.is_fitted else self._parts.others

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
        return max(held, total / len(parts.every))

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

    def _k_of(self, scheme: Scheme, bits: float, start: float) -> float:
        """About the k at which a scheme takes so many bits."""
        k = start
        for _ in range(_NEWTON):
            excess = self._weights.bits(self._coded(scheme, k), scheme.plans, self._pool) - bits
            k *= 2.0 ** max(min(-excess / self._weights.total, 3.0), -3.0)
            if abs(excess) < _NEAR * self._weights.total:
                break
        return max(k, _LOWEST)

    def _holds(self, solution: Solution, target: float) -> bool:
        """Whether a solution holds on the searched samples, on those held out, and on all together."""
        return max(solution.deviation, self._unseen_deviation(solution)) <= target

    def _coded(self, scheme: Scheme, k: float) -> Widths:
        return self._weights.worthwhile(self._weights.widths(scheme.allocation, k))

    def _solution(self, scheme: Scheme, k: float, deviation: float) -> Solution:
        widths = self._coded(scheme, k)
        return Solution(scheme, k, widths, self._weights.bits(widths, scheme.plans, self._pool), deviation)
