"""Model → archive: search for k, code every layer, measure what comes out."""

from __future__ import annotations

import fnmatch
import math
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

from riq_cli import search
from riq_cli.archive import Archive, Manifest, SkeletonEntry, deflate
from riq_cli.calibration import Calibration, Sample, digest
from riq_cli.codec.layers import encode_layer
from riq_cli.codec.restoration import decompress, measure_restored
from riq_cli.codec.settings import DEFAULT_EPSILON, Progress, Report, Settings, Warn
from riq_cli.codec.weights import Weights
from riq_cli.errors import TargetError
from riq_cli.evaluator import Evaluator, available_threads
from riq_cli.model import Layer, Model, SessionForm
from riq_cli.version import VERSION

_REMAINS = 0.1  # share of float weights below which a quantized model is left as it is
_CLOSER = 1.01  # factor on k when the restored model misses a target that its form in the search met


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
    """The smallest archive of a model whose outputs, once it is restored, move no further than the target.

    Args:
        model: what to compress; not changed.
        calibration: samples on which the deviation is measured; None: seeded random ones, which predict poorly.
        settings: what is asked for; its fields can be given as keywords too: `compress(model, data, deviation=0.005)`.
        progress: called at every step.
        warn: called with what the user should know.
        executor: where streams are encoded and decoded; None: here.

    Returns:
        An archive in memory. Its manifest's `result` holds k, the deviation measured on the restored model, and more.

    Raises:
        TargetError: the target cannot be reached.
        ModelError, CalibrationError, SettingsError: see there.
    """
    settings = replace(settings or Settings(), **options)
    ignore: Callable[[Any], None] = lambda _: None  # noqa: E731
    job = _Compression(model, calibration or Calibration.random(), settings, progress or ignore, warn or ignore)
    return job.run(executor)


class _Compression:
    """One run of compress."""

    def __init__(
        self, model: Model, calibration: Calibration, settings: Settings, progress: Report, warn: Warn
    ) -> None:
        self._settings, self._progress, self._warn = settings, progress, warn
        self._calibration = calibration
        self._model = _coded(model, settings)
        self._weights = Weights(self._model.layers)
        for layer in self._weights.not_finite:
            warn(f"layer {layer.name!r} holds NaN or infinity; it is stored exactly")
        self._model.release()
        self._trace: list[tuple[float, float]] = []

    def run(self, executor: Executor | None) -> Archive:
        settings = self._settings
        if not self._weights.active:
            self._warn(
                "the model is already quantized; it is stored as it is"
                if self._model.is_quantized
                else "the model holds no float weights to code; it is stored as it is"
            )
            return self._build(self._weights.widths(1.0, 0.0), executor)
        samples = self._calibration.samples(self._model.inputs, settings.dims, settings.batch_size)
        # With k given there is no search, and nothing is worth hoisting.
        form = self._model.session_form(settings.outputs, hoist=settings.k is None)
        evaluator = self._evaluator(form, samples)
        k, epsilon = self._search(form, evaluator)
        if form.hoisted:
            evaluator = self._evaluator(self._model.session_form(settings.outputs, hoist=False), samples)
        while True:
            archive = self._build(self._weights.widths(k, epsilon), executor)
            deviation = measure_restored(evaluator, decompress(archive, executor=executor), settings.outputs)
            self._note(k, deviation.mean)
            if settings.deviation is None or deviation.mean <= settings.deviation:
                break
            if settings.k is not None:
                raise TargetError(
                    f"at k = {k:g} the deviation is {deviation.mean:.3g}, above {settings.deviation:g}; "
                    "leave --k away to search for a k that holds",
                    deviation.mean,
                )
            k *= _CLOSER  # hoisting may change the last digits of an output
        result = {
            "k": k,
            "epsilon": epsilon,
            "deviation": deviation.mean,
            "worst": deviation.worst,
            "measured": [asdict(tensor) for tensor in deviation.tensors],
            "evaluations": len(self._trace),
            "trace": [[float(f"{k:.5g}"), float(f"{value:.4g}")] for k, value in self._trace],
        }
        calibration = {
            "kind": self._calibration.kind,
            "samples": sum(sample.rows for sample in samples),
            "sha256": digest(samples),
        }
        return archive.described(calibration=calibration, result=result)

    def _evaluator(self, form: SessionForm, samples: Sequence[Sample]) -> Evaluator:
        settings = self._settings
        evaluator = Evaluator(
            form,
            [layer.values for layer in self._model.layers],
            samples,
            threads=settings.threads,
            provider=settings.provider,
            strict=bool(settings.outputs),
        )
        self._model.release()
        return evaluator

    # ---- search ----

    def _search(self, form: SessionForm, evaluator: Evaluator) -> tuple[float, float]:
        """K and ε0 of the solution."""
        settings = self._settings
        if settings.k is not None:
            return settings.k, DEFAULT_EPSILON if settings.epsilon is None else settings.epsilon
        with ThreadPoolExecutor(settings.threads or available_threads()) as pool:
            candidate = self._weights.buffers()

            def measure(k: float, epsilon: float) -> float:
                self._weights.requantize(k, epsilon, candidate, pool)
                self._model.release()
                value = evaluator.deviation(form, candidate).mean
                self._note(k, value)
                return value

            return self._solve(measure)

    def _solve(self, measure: Callable[[float, float], float]) -> tuple[float, float]:
        target, fixed = self._settings.deviation, self._settings.epsilon
        assert target is not None
        largest = self._weights.largest
        epsilon = DEFAULT_EPSILON if fixed is None else fixed

        def solve(epsilon: float) -> float:
            highest = search.upper_bound(largest, epsilon)
            lowest = search.lower_bound(largest, epsilon)
            if self._settings.search == "algorithm1":
                return search.algorithm1(lambda k: measure(k, epsilon), target, lowest, highest).k
            start = self._weights.expected_k(target)
            return search.secant(lambda k: measure(k, epsilon), target, start, lowest, highest).k

        try:
            return solve(epsilon), epsilon
        except TargetError as error:
            best = error.best
        if fixed is not None:
            raise TargetError(
                f"a deviation of {target:g} is not reached with epsilon = {epsilon:g}: the best is {best:.3g}; "
                "give a smaller --epsilon, or none to let riq choose it",
                best,
            )
        # The paper takes the largest ε0 that reaches (A.4). That can be far from the best where it leaves k no room:
        # 0 is tried too, and the smaller solution kept.
        smaller = search.reachable_epsilon(lambda e: measure(search.upper_bound(largest, e), e), target, epsilon, best)
        solutions = []
        for epsilon in dict.fromkeys((smaller, 0.0)):
            try:
                k = solve(epsilon)
            except TargetError as error:
                best = min(best, error.best)
            else:
                solutions.append((self._weights.coded_bits(k, epsilon), k, epsilon))
        if not solutions:
            raise TargetError(
                f"a deviation of {target:g} is not reached: the best is {best:.3g}, with weights as fine as they can "
                "be coded; give a larger --deviation, or keep sensitive layers exact with --exclude",
                best,
            )
        _, k, epsilon = min(solutions)
        self._warn(f"epsilon = {DEFAULT_EPSILON:g} does not reach the target; {epsilon:g} does")
        return k, epsilon

    def _note(self, k: float, value: float) -> None:
        self._trace.append((k, value))
        target = self._settings.deviation or 0.0
        held = min((k for k, v in self._trace if v <= target), default=math.inf)
        failed = max((k for k, v in self._trace if v > target and k < held), default=0.0)
        self._progress(Progress("search", len(self._trace), 0, k, value, failed, held))

    # ---- archive ----

    def _build(self, widths: Sequence[float | None], executor: Executor | None) -> Archive:
        layers = self._model.layers
        entries, sections = [], []
        total, done = sum(layer.size for layer in layers), 0
        for layer, width in zip(layers, widths, strict=True):
            entry, coded = encode_layer(layer, width, executor)
            entries.append(entry)
            sections += coded
            self._model.release()
            done += layer.size
            self._progress(Progress("coding", done, total))
        skeleton = self._model.skeleton_bytes()
        stored = deflate(skeleton)
        source = self._model.source
        manifest = Manifest(
            skeleton=SkeletonEntry(len(stored), len(skeleton), zlib.crc32(skeleton)),
            layers=tuple(entries),
            source={} if source is None else asdict(source),
            settings=_recorded(self._settings),
            creator=f"riq {VERSION}",
        )
        return Archive.build(manifest, [stored, *sections])


def _coded(model: Model, settings: Settings) -> Model:
    """The model with only those layers that are coded; the others go back into the skeleton, exact."""

    def wanted(layer: Layer) -> bool:
        if len(layer.shape) < 2 or layer.size < settings.min_size or layer.is_quantized:
            return False
        if any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in settings.exclude):
            return False
        return not settings.include or any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in settings.include)

    coded = model.select(wanted)
    size = sum(layer.values.nbytes for layer in coded.layers)
    if model.is_quantized and not settings.include and size < _REMAINS * coded.nbytes:
        return model.select(lambda layer: False)
    return coded


def _recorded(settings: Settings) -> dict[str, Any]:
    """The settings as the manifest keeps them: what differs from the default, and the target always."""
    default = asdict(Settings())
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(settings).items()
        if value != default[name] or name == "deviation"
    }
