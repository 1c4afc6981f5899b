"""The deviation of a scheme at a k, measured on some of the samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Literal, TypeVar

from riq_cli.errors import ModelError, RiqError, TargetError
from riq_cli.memory import give_back_free_memory, give_back_mapped_memory
from riq_cli.model import SessionForm
from riq_cli.pipeline.checkpoint import Checkpoint
from riq_cli.pipeline.progress import Progress, Report
from riq_cli.pipeline.samples import Roles, default_margin
from riq_cli.pipeline.settings import Settings
from riq_cli.pipeline.solution import Scheme, Solution
from riq_cli.pipeline.unchangeable import UnchangeableError, unchangeable
from riq_cli.pipeline.weights import Plans, Weights, Widths
from riq_cli.runtime import Array, Deviation, Evaluator

Value = TypeVar("Value")


class Measuring:
    """Measures schemes for one model and one set of samples, and counts the evaluations of a goal."""

    def __init__(
        self,
        settings: Settings,
        weights: Weights,
        evaluator: Evaluator,
        form: SessionForm,
        roles: Roles,
        pool: Executor,
        workers: Executor | None,
        progress: Report,
        checkpoint: Checkpoint,
    ) -> None:
        """Take what is measured with.

        Args:
            settings: what is asked for.
            weights: all layers that may be coded.
            evaluator: measures deviations on the samples.
            form: the model that it runs.
            roles: what each sample is for.
            pool: threads that quantize.
            workers: quantize layers instead; None: this process does.
            progress: called at every step.
            checkpoint: keeps what is measured.
        """
        self.settings, self.weights, self.roles, self.pool = settings, weights, roles, pool
        self.workers = workers
        self.evaluator, self.form, self.progress, self.checkpoint = evaluator, form, progress, checkpoint
        self._buffers: list[Array] | None = None  # made when needed: they are as large as the model
        self._newest: tuple[Plans, Widths, list[Array]] | None = None  # what the buffers hold
        self._explained = False
        self._evaluations: list[tuple[tuple[object, ...], float, bool]] = []  # kind of scheme, k, and whether it holds
        self._noted: set[tuple[object, ...]] = set()  # kind of scheme, k and deviation
        self._promises: dict[tuple[float, bool, float], float] = {}  # of base schemes, by ε0, being guarded, and k

    # ---- evaluations ----

    @property
    def evaluations(self) -> int:
        """How many there were for this goal."""
        return len(self._evaluations)

    def aim(self, settings: Settings) -> None:
        """Take a goal that differs in `deviation` or `k`, and count evaluations from now on."""
        self.settings = settings
        self._evaluations.clear()
        self._noted.clear()

    def note(self, scheme: Scheme, k: float, deviation: float) -> None:
        """Count and report an evaluation, unless the same deviation was noted for such a scheme at this k."""
        evaluation = (scheme.name, scheme.guarded, k, deviation)
        if evaluation not in self._noted:
            self._noted.add(evaluation)
            self.report(scheme, k, deviation, deviation <= (self.settings.deviation or 0.0), "deviation")

    def report(
        self, scheme: Scheme, k: float, value: float, holds: bool, measure: Literal["deviation", "constraint"]
    ) -> None:
        """Count and report an evaluation, with the largest k that failed and the smallest that held."""
        series = (measure, scheme.name, scheme.guarded)
        self._evaluations.append((series, k, holds))
        same = [(k, holds) for other, k, holds in self._evaluations if other == series]
        held = min((k for k, holds in same if holds), default=math.inf)
        failed = max((k for k, holds in same if not holds and k < held), default=0.0)
        self.progress(
            Progress("search", len(self._evaluations), 0, k, value, failed, held, *scheme.name, measure=measure)
        )

    # ---- measurements ----

    def deviation(self, scheme: Scheme, k: float, among: Sequence[int]) -> Deviation:
        """The deviation of a scheme at k on some samples; infinite where the model cannot be run."""
        found = self._evaluated(scheme, k, among)
        self.note(scheme, k, found.mean)
        return found

    def promise(self, scheme: Scheme, k: float) -> float:
        """`promised` of a scheme at k, measured on all samples; that of a base scheme is measured once."""
        key = scheme.allocation.epsilon, scheme.guarded, k
        value = self._promises.get(key) if scheme.is_base else None
        if value is None:
            value = self.promised(scheme, self._evaluated(scheme, k, self.roles.every))
            if scheme.is_base:
                self._promises[key] = value
        self.note(scheme, k, value)
        return value

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
        held = deviation.of(self.roles.held_out if scheme.guarded else ())
        seen = held if held.is_measured else deviation
        margin = self.settings.margin
        if margin is None:
            is_goal = self.settings.constraint is None
            margin = default_margin(held.samples.size) if held.is_measured and is_goal else 0.0
        return max(deviation.mean, seen.mean + margin * (seen.standard_error or 0.0))

    def unseen(self, scheme: Scheme) -> Sequence[int]:
        """The samples that a scheme was not fitted to; all of them for one that is not fitted."""
        return self.roles.unfitted if scheme.is_fitted else self.roles.every

    def base_scheme(self, epsilon: float) -> Scheme:
        """The norm allocation with nearest rounding, or the uniform one in its place where that is asked for."""
        if self.settings.allocation == "uniform":
            return Scheme(self.weights.uniform_allocation(), {})
        return Scheme(self.weights.norm_allocation(epsilon), {})

    def solution(self, scheme: Scheme, k: float, deviation: float = math.nan) -> Solution:
        """The solution of a scheme at a k: its bin widths and about its bits."""
        widths = self.weights.widths(scheme.allocation, k)
        bits = self.step("bits", scheme, k, lambda: self.weights.bits(widths, scheme.plans, self.pool))
        return Solution(scheme, k, widths, bits, deviation)

    def step(self, name: str, scheme: Scheme, k: float, compute: Callable[[], Value]) -> Value:
        """What is computed of a scheme at k, or read from the checkpoint."""
        return self.checkpoint.step(" ".join(map(str, (name, *scheme.name, float(k)))), compute)

    def measured(self, scheme: Scheme, k: float, among: Sequence[int]) -> Deviation:
        """The deviation of a scheme at k on some samples, which is neither counted nor reported.

        Raises:
            ModelError: the model cannot be run.
        """

        def evaluated() -> Deviation:
            return self.evaluator.deviation(self.form, self.values(scheme, k), among)

        return self.step("deviation", scheme, k, evaluated)

    def _evaluated(self, scheme: Scheme, k: float, among: Sequence[int]) -> Deviation:
        try:
            return self.measured(scheme, k, among)
        except ModelError as error:
            self.explain_once(error)
            return self.evaluator.failure(among)

    def values(self, scheme: Scheme, k: float) -> list[Array]:
        """The restored weights of a scheme at k; they are valid until this is called again with others."""
        widths, plans, newest = self.weights.widths(scheme.allocation, k), scheme.plans, self._newest
        if newest is None or newest[0] is not plans or newest[1] != widths:
            self._newest = None
            give_back_mapped_memory()  # of what was run last
            if self._buffers is None:
                self._buffers = self.weights.buffers()
            values = self.weights.requantize(widths, plans, self._buffers, self.pool, self.workers)
            self._newest = newest = plans, widths, values
            give_back_mapped_memory()
        return newest[2]

    def free_memory(self) -> None:
        """Give back the memory that measuring takes; it is taken again when it is needed."""
        self._buffers = self._newest = None
        give_back_mapped_memory()
        give_back_free_memory()

    # ---- failures ----

    def explain(self, error: RiqError) -> None:
        """Find out whether something failed because of layers that cannot be changed.

        Raises:
            UnchangeableError: it did.
        """
        if isinstance(error, TargetError) and math.isfinite(error.best):
            return  # a target that is merely too small
        self.free_memory()
        numbers = self.checkpoint.step(
            "unchangeable", lambda: unchangeable(self.weights, self.evaluator, self.form, self.pool)
        )
        if numbers:
            raise UnchangeableError(numbers) from error

    def explain_once(self, error: RiqError) -> None:
        """`explain` the first candidate with which the model fails; where finer ones run, it was just too coarse."""
        if not self._explained:
            self.explain(error)
        self._explained = True
