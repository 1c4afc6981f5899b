"""One scheme → its solution: what it causes measured, and the k found at which it holds a target or fits a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from riq_cli.errors import ModelError, RiqError, TargetError
from riq_cli.memory import give_back_free_memory
from riq_cli.model import SessionForm
from riq_cli.pipeline import search
from riq_cli.pipeline.crossing import crossing
from riq_cli.pipeline.settings import Settings, Warn
from riq_cli.pipeline.solution import Scheme, Solution
from riq_cli.pipeline.split import Roles, default_margin
from riq_cli.pipeline.unchangeable import UnchangeableError, unchangeable
from riq_cli.pipeline.weights import Plans, Weights, Widths
from riq_cli.runtime import Array, Deviation, Evaluator

_STEPS, _STEP, _STEP_MAX = 20, 1.01, 1.5  # factors on k where it does not hold yet: at least this more with each step
_BISECTIONS = 20
_CLOSE = 1.001  # between a k within a budget and one beyond it
_OCTAVES = 32  # of k that a step takes at most
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
        self._explained = False
        self._promises: dict[tuple[float, bool, float], float] = {}  # of base schemes, by ε0, being guarded, and k

    def _deviation(self, scheme: Scheme, k: float, among: Sequence[int]) -> Deviation:
        """The deviation on some samples with the bin widths of a scheme at k."""
        found = self._evaluated(scheme, self._weights.widths(scheme.allocation, k), among)
        self._note(scheme, k, found.mean)
        return found

    def _evaluated(self, scheme: Scheme, widths: Widths, among: Sequence[int]) -> Deviation:
        try:
            return self._evaluator.deviation(self._form, self._values(scheme, widths), among)
        except ModelError as error:
            self._explain_once(error)
            return self._evaluator.failure(among)

    def promised(self, scheme: Scheme, deviation: Deviation) -> float:
        """What a target bounds: the mean on all samples, or that on those held out and a margin if it is larger.

        The margin is the settings' number of standard errors. Where they have none, it is `default_margin` if samples
        are held out and a deviation is the goal, else 0. A margin that was asked for is added to the mean on all
        samples where none are held out.

        Args:
            scheme: of the solution; one that is not guarded has to hold on all samples alone.
            deviation: of all samples; NaN comes back where nothing was measured.
        """
        if not deviation.is_measured:
            return math.nan
        held = deviation.of(self._parts.held if scheme.guarded else ())
        seen = held if held.is_measured else deviation
        margin = self._settings.margin
        if margin is None:
            is_goal = self._settings.constraint is None
            margin = default_margin(held.samples.size) if held.is_measured and is_goal else 0.0
        return max(deviation.mean, seen.mean + margin * (seen.standard_error or 0.0))

    def _promise(self, scheme: Scheme, k: float) -> float:
        """What a target bounds, measured for a scheme at k; of a base scheme it is measured once."""
        key = scheme.allocation.epsilon, scheme.guarded, k
        value = self._promises.get(key) if self._is_base(scheme) else None
        if value is None:
            value = self.promised(scheme, self._evaluated(scheme, self._coded(scheme, k), self._parts.every))
            if self._is_base(scheme):
                self._promises[key] = value
        self._note(scheme, k, value)
        return value

    def explain(self, error: RiqError) -> None:
        """Nothing, unless layers that cannot be changed are why something failed.

        Raises:
            UnchangeableError: they are.
        """
        if isinstance(error, TargetError) and math.isfinite(error.best):
            return  # a target that is merely too small
        self.rest()
        numbers = unchangeable(self._weights, self._evaluator, self._form, self._pool)
        if numbers:
            raise UnchangeableError(numbers) from error

    def _explain_once(self, error: RiqError) -> None:
        """`explain` the first candidate with which the model fails; where finer ones run, failing is infinitely bad."""
        if not self._explained:
            self.explain(error)
        self._explained = True

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

    def _solved(self, scheme: Scheme, target: float, by: str | None = None, rough: bool = False) -> Solution:
        """A small solution of a base scheme that was measured to hold the target; a `rough` one is found sooner."""
        epsilon = scheme.allocation.epsilon
        bounded = scheme.allocation.name != "uniform"
        lowest = search.lower_bound(self._weights.largest, epsilon) if bounded else _LOWEST
        highest = search.upper_bound(self._weights.largest, epsilon)

        def measure(k: float) -> float:
            return self._promise(scheme, k)

        if (by or self._settings.search) == "algorithm1":
            found = search.algorithm1(measure, target, lowest, highest)
        else:
            found = search.bisection(measure, target, lowest, highest, rough)
        return self._solution(scheme, found.k, found.value)

    def _crossing(self, scheme: Scheme, target: float, start: float) -> Solution:
        """Where a scheme causes the target on samples like those that it was not fitted to; not measured there yet."""
        unseen, margin = self._unseen(scheme), self._settings.margin
        margin = default_margin(len(unseen)) if margin is None else margin
        return self._crossing_among(unseen, scheme, target, start, margin)

    def _crossing_among(
        self, among: Sequence[int], scheme: Scheme, value: float, start: float, margin: float = 0.0
    ) -> Solution:
        """Where a scheme causes a value on samples like these; not measured there yet."""

        def measure(k: float) -> NDArray[np.float64]:
            return self._deviation(scheme, k, among).by_sample

        highest = search.upper_bound(self._weights.largest, scheme.allocation.epsilon)
        if "crossing" in self._settings.without:
            found = search.bisection(lambda k: float(measure(k).mean()), value, _LOWEST, highest)
            return self._solution(scheme, found.k, math.nan)
        return self._solution(scheme, crossing(measure, value, start, _LOWEST, highest, margin), math.nan)

    def settled(self, solution: Solution, target: float) -> Solution:
        """The solution, or the next one of its scheme, that holds on the samples held out and on all together.

        Raises:
            TargetError: none does.
        """
        best = math.inf
        for number in range(1, _STEPS + 1):
            if math.isnan(solution.deviation):
                solution = replace(solution, deviation=self._promise(solution.scheme, solution.k))
            if solution.deviation <= target:
                return solution
            best = min(best, solution.deviation)
            # Half of what the law says: that it does not hold is luck in part.
            factor = min(max(_STEP**number, (solution.deviation / target) ** 0.25), _STEP_MAX)
            solution = self.refined(solution, factor)
        raise not_held(target, best)

    def _unseen(self, scheme: Scheme) -> Sequence[int]:
        """The samples that a scheme was not fitted to."""
        return self._parts.unfitted if scheme.is_fitted else self._parts.every

    def _searched(self, scheme: Scheme) -> Sequence[int]:
        """The samples that the search measures a scheme on."""
        if not scheme.guarded:
            return self._parts.every
        return self._parts.searched if scheme.is_fitted else self._parts.others

    def within(self, scheme: Scheme, budget: float, start: float) -> Solution:
        """The finest solution of a scheme within a budget of bits, not measured yet.

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
                octaves = max(min((budget - bits) / self._weights.total, _OCTAVES), -_OCTAVES)
                k *= 2 ** (max(1.1 * octaves, 0.05) if bits <= budget else min(1.1 * octaves, -0.05))
                k = min(max(k, _LOWEST), search.K_UNBOUNDED)
            if k == low:
                break
        return self._solution(scheme, low or _LOWEST, math.nan)

    def _k_of(self, scheme: Scheme, bits: float, start: float) -> float:
        """About the k at which a scheme takes so many bits."""
        k = start
        for _ in range(_NEWTON):
            excess = self._weights.bits(self._coded(scheme, k), scheme.plans, self._pool) - bits
            k *= 2.0 ** max(min(-excess / self._weights.total, 3.0), -3.0)
            if abs(excess) < _NEAR * self._weights.total:
                break
        return max(k, _LOWEST)

    def _coded(self, scheme: Scheme, k: float) -> Widths:
        return self._weights.worthwhile(self._weights.widths(scheme.allocation, k))

    def _solution(self, scheme: Scheme, k: float, deviation: float) -> Solution:
        widths = self._coded(scheme, k)
        return Solution(scheme, k, widths, self._weights.bits(widths, scheme.plans, self._pool), deviation)


def not_held(target: float, best: float) -> TargetError:
    """The error that what all samples allow is not kept on those held out."""
    return TargetError(
        f"the target of {target:g} does not hold on the samples held out, or not on all: the best is {best:.3g}; "
        "give more samples, a larger --deviation, a smaller --margin, or --holdout 0",
        best,
    )
