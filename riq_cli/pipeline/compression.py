"""Model → archive: solve for bin widths, code every layer, measure what comes out."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from riq_cli.archive import Archive
from riq_cli.calibration import Calibration, Sample, augmented, digest, scarcity
from riq_cli.errors import ConstraintError, ModelError, SettingsError, TargetError
from riq_cli.executors import interruptible
from riq_cli.model import Model, SessionForm, linear_layers, probe_form
from riq_cli.pipeline.assembly import assembled
from riq_cli.pipeline.bench import Bench
from riq_cli.pipeline.budget import Budget, nothing, within_budget
from riq_cli.pipeline.candidates import candidates
from riq_cli.pipeline.constrained import ConstrainedSolver
from riq_cli.pipeline.fitting import Phase, compensates, plans_of
from riq_cli.pipeline.layout import solver_class
from riq_cli.pipeline.means import Means, ProbesStart
from riq_cli.pipeline.probing import Probes, probed
from riq_cli.pipeline.product_gradients import ProductGradients
from riq_cli.pipeline.restoration import decompress, measure_restored
from riq_cli.pipeline.settings import Progress, Report, Settings, Warn, once
from riq_cli.pipeline.solution import CLOSER, CLOSER_TRIES, Kind, Scheme, Solution
from riq_cli.pipeline.split import REFIT_SAMPLES, roles
from riq_cli.pipeline.unchangeable import UnchangeableError
from riq_cli.pipeline.weights import Plans, Weights, Widths
from riq_cli.runtime import Deviation, Evaluator, Prober, available_threads, inlined, short

_CLOSER_MOST = 1.2  # factor on k at most, when the restored model misses a target that the search met
_PROBE_SAMPLES = 8, 4  # of small models, of large ones
_SMALL = 1 << 22  # weights


def compress(
    model: Model,
    calibration: Calibration | None = None,
    settings: Settings | None = None,
    *,
    progress: Report | None = None,
    warn: Warn | None = None,
    executor: Executor | None = None,
    **options: Any,
) -> Archive:
    """The smallest archive of a model that, once it is restored, keeps the target, or the settings' constraint.

    Args:
        model: what to compress; not changed.
        calibration: samples on which the deviation is measured; None: seeded random ones, which predict poorly.
        settings: what is asked for; its fields can be given as keywords too: `compress(model, data, deviation=0.005)`.
        progress: called at every step. The measurements of the search are its steps of the phase `search`; the archive
            does not keep them.
        warn: called with what the user should know.
        executor: where streams are encoded and decoded; None: here.

    Returns:
        An archive in memory. Its manifest's `result` holds k, the deviation measured on the restored model, and more.

    Raises:
        TargetError: the target cannot be reached.
        ModelError, CalibrationError, SettingsError: see there.
    """
    if settings is not None and "constraint" in options:
        raise SettingsError("give the constraint with the settings: without it they have a deviation for their goal")
    settings = replace(settings, **options) if settings is not None else Settings(**options)
    job = Compression(model, calibration or Calibration.random(), settings, progress, warn)
    while True:
        try:
            with job.bench() as bench:
                return job.archive(bench, executor)
        except UnchangeableError as error:
            job.keep_exact(error.layers)


class Compression:
    """One run of compress, or of several for the same model and samples."""

    def __init__(
        self, model: Model, calibration: Calibration, settings: Settings, progress: Report | None, warn: Warn | None
    ) -> None:
        ignore: Callable[[Any], None] = lambda _: None  # noqa: E731
        self._settings, self._progress, self._warn = settings, progress or ignore, once(warn or ignore)
        self._calibration = calibration
        self._take(candidates(model, settings, self._warn))
        for number in self._weights.not_finite:
            self._warn(f"layer {self._model.layers[number].name!r} holds NaN or infinity; it is stored exactly")

    def _take(self, model: Model) -> None:
        """Begin with a model all of whose layers may be coded."""
        self._model, settings = model, self._settings
        self._originals = [layer.values for layer in model.layers]
        threads = settings.threads or available_threads()
        self._weights = Weights(
            model.layers, settings.max_bits, settings.min_size, model.release, threads, settings.without
        )
        model.release()
        self._trace: list[tuple[Kind, float, float]] = []  # kind of scheme, k, deviation
        self._probes = 0

    @cached_property
    def _samples(self) -> list[Sample]:
        settings = self._settings
        return self._calibration.samples(self._model.inputs, settings.dims, settings.batch_size, self._warn)

    def keep_exact(self, numbers: Sequence[int]) -> None:
        """Begin again without some layers, which cannot be changed."""
        layers = [self._model.layers[number] for number in numbers]
        for layer in layers:
            self._warn(
                f"layer {layer.name!r} cannot be changed: even at the finest bin width the model fails, or gives NaN "
                "or infinity; it is stored exactly"
            )
        places = {layer.places for layer in layers}
        self._take(self._model.select(lambda layer: layer.places not in places))

    def aim(self, settings: Settings) -> None:
        """Take another goal; what the bench depends on stays the same."""
        self._settings = settings

    def counted(self) -> tuple[int, int]:
        """Evaluations since they were counted last, and probes in all: every goal rests on those."""
        counts = len(self._trace), self._probes
        self._trace = []
        return counts

    def judge(self, validation: Calibration) -> Callable[[Archive, Executor | None], Deviation]:
        """What measures archives on other samples."""
        outputs, settings = self._settings.outputs, self._settings
        samples = validation.samples(self._model.inputs, settings.dims, settings.batch_size, self._warn)
        evaluator = self._evaluator(self._model.session_form(outputs, hoist=False), samples)
        evaluator.warn_of_undefined(self._warn)
        return lambda archive, executor: measure_restored(evaluator, decompress(archive, executor=executor), outputs)

    def archive(self, bench: Bench | None, executor: Executor | None) -> Archive:
        """The archive that the settings ask for.

        Raises:
            TargetError: there is none.
        """
        if bench is None:
            return self._as_it_is()
        if self._settings.ratio or self._settings.size or self._settings.rate:
            return self._within_budget(bench, executor)
        if isinstance(bench.solver, ConstrainedSolver):
            return bench.solver.archive(bench.means, partial(self.measured, bench=bench, executor=executor))
        return self._within_deviation(bench, executor)

    @contextlib.contextmanager
    def bench(self) -> Iterator[Bench | None]:
        """What is needed to measure; None if there is nothing to code.

        Raises:
            UnchangeableError: what was done with it failed because of layers that cannot be changed, see `keep_exact`.
        """
        settings = self._settings
        if not self._weights.matrices:
            yield None
            return
        # With k given there is no search, and nothing is worth hoisting.
        form = self._model.session_form(settings.outputs, hoist=settings.k is None)
        constraint = settings.constraint
        if settings.k is None and (constraint is None or constraint.on_samples):  # others may take other branches
            form = inlined(form, self._originals, self._samples, settings.runtime)
        evaluator = self._evaluator(form, self._samples, lean=settings.k is None)
        evaluator.warn_of_undefined(self._warn)
        defined = evaluator.defined
        measurable = [number for number, rows in enumerate(defined) if any(rows)]
        kept = range(len(self._samples)) if self._needs_all_samples else measurable
        samples, evaluator = [self._samples[number] for number in kept], evaluator.on(kept)
        is_real = bool(evaluator.measured) and self._calibration.kind != "random"
        if is_real and (warning := scarcity([self._samples[number] for number in measurable])):
            self._warn(warning)
        fits = bool(evaluator.measured) and compensates(settings, self._calibration.kind == "random", len(samples))
        parts = roles(
            len(samples),
            settings.holdout if settings.k is None else 0.0,
            evaluator.likeness() if fits else None,
        )
        judging = sum(samples[number].rows for number in parts.held or parts.every)
        if settings.margin and settings.deviation is not None and judging < 2:
            raise SettingsError("a margin in standard errors needs two samples at least, held-out ones if any are")
        with interruptible(ThreadPoolExecutor(self._weights.threads)) as pool:
            make = solver_class(settings, self._model.layers, self._progress)
            solver = make(settings, self._weights, evaluator, form, parts, pool,
                          self._note, self._warn, self._model.release)  # fmt: skip
            probes = plans = refit = None
            if (
                settings.allocation == "measured"
                and settings.k is None
                and evaluator.measured
                and "allocation" not in settings.without
            ):
                probed = [samples[number] for number in parts.probed if any(defined[kept[number]])]
                probes = self._probed(form, evaluator, probed, pool) if probed else None
            if fits:
                plans = self._plans(form, samples, parts.fit, pool, evaluator)
                if len(parts.held) >= REFIT_SAMPLES and not evaluator.is_lean and "refit" not in settings.without:
                    refit = self._plans(form, samples, parts.refit, pool, evaluator)
            if form.hoisted or evaluator.is_lean:  # what is measured last is the model as it is restored
                evaluator = self._evaluator(self._model.session_form(settings.outputs, hoist=False), samples)
            rows = sum(map(sum, defined))
            calibration = {"kind": self._calibration.kind, "samples": rows, "sha256": digest(self._samples)}
            try:
                yield Bench(solver, Means(probes, plans, refit), evaluator, parts.held, calibration, pool)
            except (ModelError, ConstraintError, TargetError) as error:
                solver.explain(error)
                raise

    @property
    def _needs_all_samples(self) -> bool:
        """Whether the goal counts on samples whose deviation is undefined: labels are one for each."""
        constraint = self._settings.constraint
        return constraint is not None and constraint.on_samples

    def _as_it_is(self) -> Archive:
        self._warn(
            "the model is already quantized; it is stored as it is"
            if self._model.is_quantized
            else "there are no float weights to code, or all are kept exact; the model is stored as it is"
        )
        widths: Widths = [1.0 if n in self._weights.zeros else None for n in range(len(self._model.layers))]
        return self._assembled(widths, {}, None)

    # ---- goals ----

    def _within_deviation(self, bench: Bench, executor: Executor | None) -> Archive:
        """The smallest archive that keeps the target, or the one at the given k."""
        k, target = self._settings.k, self._settings.deviation
        solution = bench.solver.at(k) if k is not None else bench.solver.for_deviation(target or 0.0, bench.means)
        for _ in range(CLOSER_TRIES):
            archive, deviation = self.measured(solution, bench, executor)
            if target is None or deviation <= target:
                return archive
            if k is not None:
                raise TargetError(
                    f"at k = {k:g} the deviation is {deviation:.3g}, above {target:g}; "
                    "leave --k away to search for a k that holds",
                    deviation,
                )
            # Hoisting may change the last digits of an output, and not all samples took part in the search.
            closer = min(max(CLOSER, math.sqrt(deviation / target)), _CLOSER_MOST)
            solution = bench.solver.refined(solution, closer)
        raise TargetError(
            f"the restored model's deviation is {deviation:.3g}, above {target:g}, though the search found less; "
            "give a larger --deviation",
            deviation,
        )

    def _within_budget(self, bench: Bench, executor: Executor | None) -> Archive:
        """The archive of least deviation within a budget of real bytes, or of bits/weight."""
        budget = Budget.of(self._settings, self._model, self._weights)
        budget.refuse(self._assembled(nothing(self._weights), {}, executor))
        measured = partial(self.measured, bench=bench, executor=executor)
        return within_budget(budget, bench.solver, bench.means, measured, self._settings.deviation, self._warn)

    def measured(self, solution: Solution, bench: Bench, executor: Executor | None) -> tuple[Archive, float]:
        """The archive of a solution with what is told of it, and what a target bounds, measured on what it restores."""
        bench.solver.rest()
        archive = self._assembled(solution.widths, solution.scheme.plans, executor)
        restored = decompress(archive, executor=executor)
        try:
            deviation = measure_restored(bench.evaluator, restored, self._settings.outputs)
        except ModelError:  # the original ran: it is what these weights make of the model
            deviation = bench.evaluator.failure()
        scheme = solution.scheme
        mean = deviation.mean if deviation.is_measured else math.nan  # under a constraint there may be none
        self._note(scheme, solution.k, mean)
        if deviation.is_measured and not math.isfinite(mean):
            raise TargetError(
                f"at k = {solution.k:g} the restored model fails, or its outputs hold NaN or infinity where those of "
                "the original do not; keep the layers that cause it exact with --exclude",
                mean,
            )
        result: dict[str, Any] = {
            "k": solution.k,
            "epsilon": scheme.allocation.epsilon,
            "allocation": scheme.allocation.name,
            "rounding": scheme.rounding,
            **deviation.recorded(),
            "evaluations": len(self._trace),
            "probes": self._probes,
        }
        if isinstance(bench.solver, ConstrainedSolver):
            result["evaluations"] += bench.solver.judged
            result |= bench.solver.facts(bench.evaluator, restored, self._settings.outputs, bench.held)
        held = deviation.of(bench.held)
        if scheme.guarded and held.is_measured:
            result |= {"holdout": held.mean, "holdout_samples": held.samples.size}
            result["holdout_standard_error"] = short(held.standard_error)
        promised = bench.solver.promised(scheme, deviation)
        return archive.described(calibration=bench.calibration, result=result), promised

    def _evaluator(self, form: SessionForm, samples: Sequence[Sample], lean: bool = False) -> Evaluator:
        settings = self._settings
        evaluator = Evaluator(
            form,
            self._originals,
            samples,
            runtime=settings.runtime,
            strict=bool(settings.outputs),
            lean=lean,
            needed=settings.constraint is None or settings.deviation is not None,
        )
        self._model.release()
        return evaluator

    def _probed(
        self, form: SessionForm, evaluator: Evaluator, samples: Sequence[Sample], pool: Executor
    ) -> ProbesStart:
        """What probes layers on a few of the samples, in a session of its own, and tells of its progress."""
        step = -(-len(samples) // _PROBE_SAMPLES[self._weights.total > _SMALL])

        def tell(done: int, total: int, number: int | None, deviation: float) -> None:
            self._probes += number is not None
            layer = "" if number is None else self._model.layers[number].name
            self._progress(Progress("probe", done, total, value=deviation, layer=layer))

        def start(about: Solution, plans: Plans) -> Probes:
            settings, originals = self._settings, self._originals
            prober = Prober(probe_form(form), originals, evaluator.measured, samples[::step], settings.runtime)
            found = probed(self._weights, plans, prober, about, pool, tell)
            self._model.release()
            return found

        return start

    def _plans(
        self,
        form: SessionForm,
        samples: Sequence[Sample],
        halves: tuple[Sequence[int], Sequence[int]],
        pool: Executor,
        evaluator: Evaluator,
    ) -> Callable[..., Plans]:
        """What fits error compensation to some of the samples."""

        def start(widths: Widths, before: Plans | None = None) -> Plans:
            observed, linear = linear_layers(form, self._model.layers)
            biases = () if "bias" in without else self._weights.vectors  # those that may be changed
            linear = {
                number: item if item.bias in biases else replace(item, bias=None)
                for number, item in linear.items()
                if number in matrices
            }
            chosen = [[samples[number] for number in half] for half in halves]
            # Beside a large model there is no room for what variations would tell.
            varied = [[] if evaluator.is_lean or "variations" in without else augmented(half) for half in chosen]
            gradients = partial(ProductGradients.of, self._weights, observed, evaluator, self._settings)
            more = gradients(*varied) if all(varied) else None
            return plans_of(gradients(*chosen), linear, widths, pool, tell, self._warn, before, more)

        def tell(phase: Phase, done: int, total: int) -> None:
            self._progress(Progress(phase, done, total))

        matrices, without = set(self._weights.matrices), self._settings.without
        return start

    def _note(self, scheme: Scheme, k: float, value: float) -> None:
        measured = scheme.kind, k, value
        if measured in self._trace:
            return
        self._trace.append(measured)
        target = self._settings.deviation or 0.0
        points = [(k, value) for kind, k, value in self._trace if kind == scheme.kind]
        held = min((k for k, v in points if v <= target), default=math.inf)
        failed = max((k for k, v in points if v > target and k < held), default=0.0)
        self._progress(Progress("search", len(self._trace), 0, k, value, failed, held, *scheme.name))

    def _assembled(self, widths: Widths, plans: Plans, executor: Executor | None) -> Archive:
        return assembled(self._model, self._weights, widths, plans, self._settings, self._progress, executor)
