"""What solutions of a model are found and measured with: sessions, samples by their roles, statistics and probes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace

from riq_cli.archive import Archive
from riq_cli.calibration import Calibration, Sample, digest, scarcity
from riq_cli.errors import SettingsError
from riq_cli.executors import Workers
from riq_cli.memory import give_back_mapped_memory
from riq_cli.model import (
    Model,
    SessionForm,
    lean_form,
    linear_layers,
    multiplied_activations,
    probe_form,
    with_quantized_activations,
)
from riq_cli.pipeline.checkpoint import Checkpoint
from riq_cli.pipeline.fitting import Fit
from riq_cli.pipeline.measuring import Measuring
from riq_cli.pipeline.progress import Expected, Progress, Report, Warn
from riq_cli.pipeline.restoration import decompress, measure_restored
from riq_cli.pipeline.samples import Roles, compensates, roles
from riq_cli.pipeline.schedule import schedule
from riq_cli.pipeline.settings import Settings
from riq_cli.pipeline.solver import Preparation
from riq_cli.pipeline.weights import Weights
from riq_cli.runtime import Deviation, Evaluator, Observer, Prober, activation_ranges, inlined
from riq_cli.scratch import HUGE
from riq_cli.statistics.gradients import Halves, Observed

_PROBE_SAMPLES = 8, 4  # of small models, of large ones
_SMALL = 1 << 22  # weights
_LEAST = 1e-9  # deviation that is worth to be asked for: float32 has hardly more digits
_LITTLE = 4  # targets, at least, by which outputs that are the same for all samples should deviate


class Bench:
    """What solutions of a model are found and measured with.

    Attributes:
        measuring: measures schemes on the samples.
        preparation: fits plans and probes layers.
        evaluator: measures models as they are restored.
        calibration: what the manifest says of the samples.
        model: what is compressed: the original, or with quantized activations.
        least: the deviation with its weights as they are: that of quantized activations alone; 0 without these.
    """

    def __init__(
        self,
        model: Model,
        weights: Weights,
        samples: Sequence[Sample],
        kind: str,
        settings: Settings,
        progress: Report,
        warn: Warn,
        pool: Executor,
        workers: Workers | None,
        checkpoint: Checkpoint,
    ) -> None:
        """Run the original on all samples, and report the phases to come.

        Args:
            model: with the layers that may be coded.
            weights: of these layers.
            samples: to measure on.
            kind: of the calibration data.
            settings: what is asked for.
            progress: called at every step.
            warn: called with what the user should know.
            pool: threads that work on layers.
            workers: work on layers instead; None: this process does.
            checkpoint: keeps results of steps.

        Raises:
            ModelError, SettingsError, CalibrationError: the original cannot be run, or not be measured.
        """
        self._original, self._weights, self._settings = model, weights, settings
        self._progress, self._warn, self._pool, self._workers = progress, warn, pool, workers
        self._checkpoint = checkpoint
        searches, is_random = settings.k is None, kind == "random"
        form = self._form(model, samples)
        began = time.perf_counter()
        evaluator = self._evaluator(form, samples, lean=searches)
        seconds = time.perf_counter() - began
        evaluator.warn_of_undefined(warn)
        defined = evaluator.defined
        self.calibration = {"kind": kind, "samples": sum(map(sum, defined)), "sha256": digest(samples)}
        run = seconds / len(samples)
        measurable = [number for number, rows in enumerate(defined) if any(rows)]
        if evaluator.measured and not is_random:
            warning = scarcity([samples[number] for number in measurable])
            warning = warning or _constancy(evaluator.on(measurable), settings.deviation)
            if warning is not None:
                warn(warning)
        constraint = settings.constraint
        # A constraint counts on samples whose deviation is undefined: labels are one for each.
        kept = range(len(samples)) if constraint is not None and constraint.on_samples else measurable
        samples, evaluator = [samples[number] for number in kept], evaluator.on(kept)
        fits = bool(evaluator.measured) and compensates(settings, is_random, len(samples))
        parts = roles(len(samples), settings.holdout if searches else 0.0, evaluator.similarity() if fits else None)
        judging = sum(samples[number].rows for number in parts.held_out or parts.every)
        if settings.margin and settings.deviation is not None and judging < 2:
            raise SettingsError("a margin in standard errors needs two samples at least, held-out ones if any are")
        self.model, self.least = model, 0.0
        if settings.activations is not None:
            seen = [samples[number] for number in parts.others]
            self.model = self._with_quantized_activations(form, seen, evaluator.is_lean)
            form = self._form(self.model, samples)
            evaluator = evaluator.of_candidates_in(form)
            self.least = evaluator.deviation(form, weights.originals).mean if evaluator.measured else 0.0
        self.measuring = Measuring(settings, weights, evaluator, form, parts, pool, workers, progress, checkpoint)
        first, second = ([samples[number] for number in half] for half in parts.fit)
        fit = self._fit(form, (first, second), evaluator) if fits else None
        others = [samples[number] for number in parts.others if any(defined[kept[number]])]
        probes = settings.allocation == "measured" and "allocation" not in settings.without and searches
        step = -(-len(others) // _PROBE_SAMPLES[weights.total > _SMALL]) or 1
        probed = others[::step] if probes and evaluator.measured else []
        prober = self._prober(form, evaluator, probed) if probed else None
        is_huge = sum(layer.values.nbytes for layer in model.layers) > HUGE
        differentiated = others if probed and is_huge and fit is not None and fit.takes_gradients else []
        self.preparation = Preparation(self.measuring, fit, prober, differentiated, warn)
        self._report_phases(parts, fit, len(probed), len(differentiated), seconds, run, len(samples))
        if form.hoisted or evaluator.is_lean:  # what is measured last is the model as it is restored
            evaluator = self._evaluator(model.session_form(settings.outputs, hoist=False), samples)
        self.evaluator = evaluator

    def judge(self, validation: Calibration) -> Callable[[Archive, Executor | None], Deviation]:
        """What measures archives on other samples."""
        settings = self._settings
        samples = validation.samples(self._original.inputs, settings.dims, settings.batch_size, self._warn)
        evaluator = self._evaluator(self._original.session_form(settings.outputs, hoist=False), samples)
        evaluator.warn_of_undefined(self._warn)

        def judge(archive: Archive, executor: Executor | None) -> Deviation:
            return measure_restored(evaluator, decompress(archive, executor=executor), settings.outputs)

        return judge

    def _form(self, model: Model, samples: Sequence[Sample]) -> SessionForm:
        """The form of a model that is evaluated: with k given there is no search, and nothing is worth hoisting."""
        settings, searches = self._settings, self._settings.k is None
        form = model.session_form(settings.outputs, hoist=searches)
        constraint = settings.constraint
        if searches and (constraint is None or constraint.on_samples):  # others may take other branches
            return inlined(form, self._weights.originals, samples, settings.runtime)
        return form

    def _with_quantized_activations(self, form: SessionForm, samples: Sequence[Sample], lean: bool) -> Model:
        """The original with 8-bit activations, whose ranges are those on some of the samples."""
        settings = self._settings
        observer = Observer(form, self._weights.originals, samples, settings.runtime, lean)
        tensors = multiplied_activations(self._original)
        seen = activation_ranges(observer, tensors, settings.activation_method)
        if not seen:
            raise SettingsError(
                "there are no activations to quantize: no Conv, ConvTranspose, Gemm or MatMul multiplies float32 ones "
                "by weights; leave out --activations"
            )
        return with_quantized_activations(self._original, seen)

    def _evaluator(self, form: SessionForm, samples: Sequence[Sample], lean: bool = False) -> Evaluator:
        settings = self._settings
        evaluator = Evaluator(
            form,
            self._weights.originals,
            samples,
            runtime=settings.runtime,
            strict=bool(settings.outputs),
            lean=lean,
            needed=settings.constraint is None or settings.deviation is not None,
        )
        give_back_mapped_memory()
        return evaluator

    def _fit(self, form: SessionForm, halves: Halves, evaluator: Evaluator) -> Fit:
        """What fits plans to two halves of samples."""
        settings, weights = self._settings, self._weights
        observed, linear = linear_layers(form, self.model.layers)
        biases = () if "bias" in settings.without else weights.vectors  # those that may be changed
        matrices = set(weights.matrices)
        chosen = {
            number: item if item.bias in biases else replace(item, bias=None)
            for number, item in linear.items()
            if number in matrices
        }
        seen = Observed(
            self.model.layers, observed, evaluator.measured, halves, settings.runtime, evaluator.is_lean,
            weights.keep,
        )  # fmt: skip
        return Fit(
            weights, chosen, seen, settings.work, self._pool, self._workers, self._progress, self._warn,
            self._checkpoint,
        )  # fmt: skip

    def _prober(self, form: SessionForm, evaluator: Evaluator, samples: Sequence[Sample]) -> Callable[[], Prober]:
        """What starts a session that probes layers on samples."""
        originals, runtime = self._weights.originals, self._settings.runtime
        fed = lean_form(form) if evaluator.is_lean else probe_form(form)
        return lambda: Prober(fed, originals, evaluator.measured, samples, runtime)

    def _report_phases(
        self, parts: Roles, fit: Fit | None, probed: int, differentiated: int, seconds: float, run: float, samples: int
    ) -> None:
        """Report that the original was run, and which phases follow; also what `--preset fast` would take."""
        settings = self._settings
        expected = (
            Expected("original", seconds),
            *schedule(settings, self._weights, parts, fit, probed, differentiated, run),
        )
        fast = math.inf  # what that preset makes is not deployable
        if not settings.deployable:
            by_norm = replace(settings, allocation="norm", rounding="nearest")
            fast = seconds + sum(phase.seconds for phase in schedule(by_norm, self._weights, parts, None, 0, 0, run))
        self._progress(Progress("original", samples, samples, expected=expected, fast=fast))


def _constancy(evaluator: Evaluator, target: float | None) -> str | None:
    """What to warn of where a target says little of what samples change, such as of boxes beside large offsets."""
    if target is None:
        return None
    constant = evaluator.of_constant_outputs()
    if constant >= _LITTLE * target:
        return None
    smaller = f" ({target * constant:.1g} or less)" if target * constant > _LEAST else ""
    return (
        f"a model that gives the same outputs for every sample would deviate by only {constant:.2g}, so that a "
        f"deviation of {target:g} promises little; give a smaller --deviation{smaller}, samples that differ more, or a "
        "score of your own with --metric"
    )
