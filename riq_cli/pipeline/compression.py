"""Model → archive: find bin widths, code every layer, measure what comes out."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from riq_cli.archive import Archive
from riq_cli.calibration import Calibration, Sample, digest
from riq_cli.errors import ConstraintError, ModelError, RiqError, SettingsError, TargetError
from riq_cli.executors import interruptible
from riq_cli.memory import give_back_mapped_memory
from riq_cli.model import Model
from riq_cli.pipeline.assembly import assembled
from riq_cli.pipeline.bench import Bench
from riq_cli.pipeline.budget import Budget, nothing, within_budget
from riq_cli.pipeline.candidates import candidates
from riq_cli.pipeline.checkpoint import Checkpoint, identity
from riq_cli.pipeline.constraint_objective import ConstraintObjective
from riq_cli.pipeline.deviation_objective import DeviationObjective
from riq_cli.pipeline.fixed_layout import FixedLayoutSearch
from riq_cli.pipeline.formats import check_support
from riq_cli.pipeline.objective import Objective
from riq_cli.pipeline.progress import Progress, Report, Warn, once
from riq_cli.pipeline.restoration import decompress, measure_restored
from riq_cli.pipeline.settings import DEFAULT_EPSILON, PRESETS, Settings
from riq_cli.pipeline.solution import Solution
from riq_cli.pipeline.solver import Solver
from riq_cli.pipeline.unchangeable import UnchangeableError
from riq_cli.pipeline.weights import Plans, Weights, Widths
from riq_cli.pipeline.workers import BenchWorkers, OnCluster
from riq_cli.runtime import short

_TRIES = 20  # of a k for which the restored model holds


def compress(
    model: Model,
    calibration: Calibration | None = None,
    settings: Settings | None = None,
    *,
    preset: str | None = None,
    progress: Report | None = None,
    warn: Warn | None = None,
    executor: Executor | None = None,
    on_cluster: OnCluster | None = None,
    checkpoint: Checkpoint | None = None,
    **options: Any,
) -> Archive:
    """The smallest archive of a model that, once it is restored, keeps the target, or the settings' constraint.

    Args:
        model: what to compress; not changed.
        calibration: samples on which the deviation is measured; None: seeded random ones, which predict poorly.
        settings: what is asked for; its fields can be given as keywords too: `compress(model, data, deviation=0.005)`.
        preset: name of one of `PRESETS`; what it sets wins over `settings`, and other keywords win over it.
        progress: called at every step. The measurements of the search are its steps of the phase `search`; the archive
            does not keep them.
        warn: called with what the user should know.
        executor: where streams are encoded and decoded; None: here.
        on_cluster: where statistics are taken, and layers fitted, probed, rounded and coded; this machine measures
            candidates. None: it does all. The archive has the same bytes.
        checkpoint: keeps results of steps, or gives those of a run that was interrupted; it stays when the archive is
            there, see `Checkpoint.remove`. None: nothing is kept.

    Returns:
        An archive in memory. Its manifest's `result` holds k, the deviation measured on the restored model, and more.

    Raises:
        TargetError: the target cannot be reached.
        ModelError, CalibrationError, SettingsError, CheckpointError: see there.
    """
    if settings is not None and "constraint" in options:
        raise SettingsError("give the constraint with the settings: without it they have a deviation for their goal")
    if preset is not None:
        if preset not in PRESETS:
            raise SettingsError(f"no preset is named {preset!r}; there are {', '.join(PRESETS)}")
        options = PRESETS[preset] | options
    settings = replace(settings, **options) if settings is not None else Settings(**options)
    checkpoint = checkpoint or Checkpoint()
    job = Compression(model, calibration or Calibration.random(), settings, progress, warn, checkpoint, on_cluster)
    with contextlib.closing(checkpoint):
        while True:
            try:
                with job.bench() as bench:
                    return job.archive(bench, executor)
            except UnchangeableError as error:
                job.keep_exact(error.layers)


class Compression:
    """One run of compress, or of several for the same model and samples."""

    def __init__(
        self,
        model: Model,
        calibration: Calibration,
        settings: Settings,
        progress: Report | None,
        warn: Warn | None,
        checkpoint: Checkpoint,
        on_cluster: OnCluster | None = None,
    ) -> None:
        ignore: Callable[[Any], None] = lambda _: None  # noqa: E731
        self._settings, self._report, self._warn = settings, progress or ignore, once(warn or ignore)
        self._calibration, self._on_cluster, self._checkpoint = calibration, on_cluster, checkpoint
        self._exact: list[Sequence[int]] = []  # numbers of layers, one model after the other
        if settings.most is not None:
            check_support(model, settings.most, settings.runtime)
        self._take(candidates(model, settings, self._warn))
        for number in self._weights.not_finite:
            self._warn(f"layer {self._model.layers[number].name!r} holds NaN or infinity; it is stored exactly")

    def _progress(self, step: Progress) -> None:
        """Report a step, with the seconds that results took which were read instead."""
        seconds, self._checkpoint.read_seconds = self._checkpoint.read_seconds, 0.0
        self._report(replace(step, read_seconds=seconds))

    def _take(self, model: Model) -> None:
        """Begin with a model all of whose layers may be coded."""
        self._model = model
        self._weights = Weights(model.layers, self._settings)
        give_back_mapped_memory()

    @cached_property
    def _samples(self) -> list[Sample]:
        settings = self._settings
        return self._calibration.samples(self._model.inputs, settings.dims, settings.batch_size, self._warn)

    def keep_exact(self, numbers: Sequence[int]) -> None:
        """Begin again without some layers, which cannot be changed."""
        self._exact.append(numbers)
        layers = [self._model.layers[number] for number in numbers]
        for layer in layers:
            self._warn(
                f"layer {layer.name!r} cannot be changed: even at the finest bin width the model fails, or gives NaN "
                "or infinity; it is stored exactly"
            )
        places = {layer.places for layer in layers}
        self._take(self._model.select(lambda layer: layer.places not in places))

    def aim(self, settings: Settings, bench: Bench | None) -> None:
        """Take another goal; the bench stays what it is."""
        self._settings = settings
        if bench is not None:
            bench.measuring.aim(settings)

    @contextlib.contextmanager
    def bench(self) -> Iterator[Bench | None]:
        """What is needed to measure; None if there is nothing to code.

        Raises:
            UnchangeableError: what was done with it failed because of layers that cannot be changed, see `keep_exact`.
        """
        if not self._weights.matrices:
            yield None
            return
        if self._checkpoint.path is not None:
            found, seconds = self._checkpoint.begin(identity(self._model, self._samples, self._settings), self._warn)
            if found:
                self._report(Progress("resumed", found, found, value=seconds))
        with interruptible(ThreadPoolExecutor(self._weights.threads)) as pool, self._workers() as workers:
            bench = Bench(
                self._model, self._weights, self._samples, self._calibration.kind, self._settings, self._progress,
                self._warn, pool, workers, self._checkpoint,
            )  # fmt: skip
            try:
                yield bench
            except (ModelError, ConstraintError, TargetError) as error:
                bench.measuring.explain(error)
                raise

    @contextlib.contextmanager
    def _workers(self) -> Iterator[BenchWorkers | None]:
        """Those of a cluster, which compress the same."""
        if self._on_cluster is None:
            yield None
            return
        build = partial(_bench, self._on_cluster.load, self._exact, self.digests)
        with contextlib.closing(BenchWorkers(self._on_cluster.cluster, build)) as workers:
            yield workers

    @property
    def digests(self) -> tuple[str | None, str]:
        """Those of the model's file and of the samples."""
        source = self._model.source
        return None if source is None else source.sha256, digest(self._samples)

    # ---- goals ----

    def archive(self, bench: Bench | None, executor: Executor | None) -> Archive:
        """The archive that the settings ask for.

        Raises:
            TargetError: there is none.
        """
        if bench is None:
            return self._as_it_is()
        settings = self._settings
        if settings.deviation is not None and bench.least > settings.deviation:
            raise TargetError(
                f"activations in {settings.activations} alone cause a deviation of {bench.least:.3g}, above "
                f"{settings.deviation:g}; give a larger --deviation, another --activation-method, or leave out "
                "--activations",
                bench.least,
            )
        if settings.k is not None:
            return self._at(settings.k, bench, executor)
        if settings.ratio or settings.size or settings.rate:
            return self._within_budget(bench, executor)
        return self._for_objective(bench, executor)

    def _as_it_is(self) -> Archive:
        self._warn(
            "the model is already quantized; it is stored as it is"
            if self._model.is_quantized
            else "there are no float weights to code, or all are kept exact; the model is stored as it is"
        )
        widths: Widths = [1.0 if n in self._weights.zeros else None for n in range(len(self._model.layers))]
        return self._assembled(self._model, widths, {})

    def _at(self, k: float, bench: Bench, executor: Executor | None) -> Archive:
        """The archive of the norm allocation, or of the uniform one, at a given k, with nearest rounding."""
        settings, target = self._settings, self._settings.deviation
        epsilon = DEFAULT_EPSILON if settings.epsilon is None else settings.epsilon
        solution = bench.measuring.solution(bench.measuring.base_scheme(epsilon), k)
        archive, deviation = self.archive_of(solution, bench, executor)
        if target is not None and deviation > target:
            raise TargetError(
                f"at k = {k:g} the deviation is {deviation:.3g}, above {target:g}; "
                "leave out --k to search for a k that holds",
                deviation,
            )
        return archive

    def _for_objective(self, bench: Bench, executor: Executor | None) -> Archive:
        """The smallest archive that keeps the deviation, or the constraint."""
        objective = self._objective(bench)
        solution = (
            objective.solution()
            if isinstance(objective, FixedLayoutSearch)
            else Solver(bench.measuring, bench.preparation).for_objective(objective)
        )
        for _ in range(_TRIES):
            archive, deviation = self.archive_of(solution, bench, executor, objective)
            factor = objective.correction(archive, deviation)
            if factor is None:
                return archive
            solution = bench.measuring.solution(solution.scheme, solution.k * factor)
        raise objective.failure(archive, deviation)

    def _objective(self, bench: Bench) -> Objective:
        settings = self._settings
        if settings.constraint is None:
            return DeviationObjective(bench.measuring, settings.deviation or 0.0)
        kind = ConstraintObjective if settings.layout is None else FixedLayoutSearch
        return kind(bench.measuring, settings.constraint)

    def _within_budget(self, bench: Bench, executor: Executor | None) -> Archive:
        """The archive of least deviation within a budget of real bytes, or of bits/weight."""
        budget = Budget.of(self._settings, self._model, self._weights)
        budget.refuse(self._assembled(bench.model, nothing(self._weights), {}, executor, bench))
        solver = Solver(bench.measuring, bench.preparation)

        def archive_of(solution: Solution) -> tuple[Archive, float]:
            return self.archive_of(solution, bench, executor)

        return within_budget(budget, solver, archive_of, self._settings.deviation, self._warn)

    # ---- archives ----

    def archive_of(
        self, solution: Solution, bench: Bench, executor: Executor | None, objective: Objective | None = None
    ) -> tuple[Archive, float]:
        """The archive of a solution with its result, and what a target bounds, measured on the restored model."""
        measuring, outputs, scheme = bench.measuring, self._settings.outputs, solution.scheme
        measuring.free_memory()
        archive = self._assembled(bench.model, solution.widths, scheme.plans, executor, bench)
        restored = decompress(archive, progress=self._progress, executor=executor)
        try:
            deviation = measure_restored(bench.evaluator, restored, outputs)
        except ModelError:  # the original ran: it is what these weights make of the model
            deviation = bench.evaluator.failure()
        mean = deviation.mean if deviation.is_measured else math.nan  # under a constraint there may be none
        measuring.note(scheme, solution.k, mean)
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
            "evaluations": measuring.evaluations,
            "probes": bench.preparation.probes,
        }
        held = deviation.of(measuring.roles.held_out)
        if objective is not None:
            result |= objective.facts(bench.evaluator, restored, measuring.roles.held_out)
        if scheme.guarded and held.is_measured:
            result |= {"holdout": held.mean, "holdout_samples": held.samples.size}
            result["holdout_standard_error"] = short(held.standard_error)
            if held.top1:
                result["holdout_top1"] = held.top1
        promised = measuring.promised(scheme, deviation)
        return archive.described(calibration=bench.calibration, result=result), promised

    def _assembled(
        self, model: Model, widths: Widths, plans: Plans, executor: Executor | None = None, bench: Bench | None = None
    ) -> Archive:
        return assembled(
            model, self._weights, widths, plans, self._settings, self._progress, executor, self._checkpoint,
            None if bench is None else bench.measuring.workers,
        )  # fmt: skip


def _bench(
    load: Callable[[], tuple[Model, Calibration | None, Settings]],
    exact: Sequence[Sequence[int]],
    digests: tuple[str | None, str],
) -> contextlib.AbstractContextManager[Bench | None]:
    """The bench of a worker: the same as that of the machine which it works for.

    Raises:
        RiqError: the worker sees other files.
    """
    model, calibration, settings = load()
    job = Compression(model, calibration or Calibration.random(), settings, None, None, Checkpoint())
    for numbers in exact:
        job.keep_exact(numbers)
    if job.digests != digests:
        raise RiqError("the model, or its samples, are not those of the machine that it works for")
    return job.bench()
