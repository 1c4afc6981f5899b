"""Weights → deviation: runs the model in onnxruntime and compares its outputs, eq. (1), or shows its inner tensors."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from riq_cli.errors import ModelError, SettingsError
from riq_cli.model import SessionForm, observed_form, own_form
from riq_cli.text import first_line

Array = NDArray[Any]
DEFAULT_PROVIDER = "CPUExecutionProvider"
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16; numpy holds it as uint16
_LOG_NOTHING = 4
_OBSERVED = 1 << 26  # bytes of inner tensors that are held at the same time
_OBSERVED_FIRST = 4  # tensors that are looked at before it is known how large they are
_OBSERVED_GROWTH = 8
_LARGE = 1 << 26  # bytes of weights above which copies of them that make runs a fifth faster are not worth their memory


@dataclass(frozen=True)
class TensorDeviation:
    """Deviation measured at one tensor: mean and maximum over the samples, and their number."""

    name: str
    mean: float
    worst: float
    samples: int


@dataclass(frozen=True)
class Deviation:
    """Deviation at every tensor that is measured; the model's is that of the worst tensor."""

    tensors: tuple[TensorDeviation, ...]

    @property
    def mean(self) -> float:
        """The mean over samples at the tensor where it is largest: what a target bounds."""
        return max(tensor.mean for tensor in self.tensors)

    @property
    def worst(self) -> float:
        """The largest deviation of any sample at any tensor."""
        return max(tensor.worst for tensor in self.tensors)


class Evaluator:
    """Runs candidates for a model's weights on the same samples and compares them with the original outputs."""

    def __init__(
        self,
        form: SessionForm,
        weights: Sequence[Array],
        samples: Sequence[tuple[Mapping[str, Array], int]],
        threads: int = 0,
        provider: str = DEFAULT_PROVIDER,
        strict: bool = False,
    ) -> None:
        """Run the original model once and keep its outputs.

        Args:
            form: the model with its layers as initializers from outside.
            weights: the original data of each layer, in storage type.
            samples: feeds and the number of rows in each.
            threads: of onnxruntime; 0 for all that this process may use.
            provider: onnxruntime's execution provider.
            strict: refuse measured tensors that are not float, instead of leaving them out.

        Raises:
            ModelError: onnxruntime cannot run the model.
            SettingsError: an unknown provider, or no float among the measured tensors.
        """
        if provider not in onnxruntime.get_available_providers():
            available = ", ".join(onnxruntime.get_available_providers())
            raise SettingsError(f"onnxruntime has no {provider!r} here; it has {available}")
        self._samples = samples
        self._threads = threads
        self._provider = provider
        outputs = list(self._run(form, weights, form.measured, range(len(samples))))
        self.measured = _float_names(form.measured, outputs, strict)
        self._reference = [
            [output for name, output in zip(form.measured, run, strict=True) if name in self.measured]
            for run in outputs
        ]

    def deviation(self, form: SessionForm, weights: Sequence[Array], among: Sequence[int] | None = None) -> Deviation:
        """How far the outputs move when the layers hold other weights.

        Args:
            form: the model, hoisted or not.
            weights: data of each layer, in storage type.
            among: numbers of the samples to run; None for all.
        """
        numbers = range(len(self._samples)) if among is None else among
        references = [self._reference[number] for number in numbers]
        rows = [self._samples[number][1] for number in numbers]
        return _compared(self.measured, references, self._run(form, weights, self.measured, numbers), rows)

    def loaded(self, form: SessionForm, weights: Sequence[Array], among: Sequence[int] | None = None) -> LoadedModel:
        """The model with other weights, on all samples or on those of some numbers."""
        numbers = range(len(self._samples)) if among is None else among
        return LoadedModel(form, weights, self.measured, self._samples, numbers, self._threads, self._provider)

    def likeness(self) -> NDArray[np.float64]:
        """How alike the original outputs of every two samples are, f64[samples, samples], 1 for equal ones.

        Cosines at the last measured tensor; where shapes differ, of means over all axes but the last.
        """
        outputs = [run[-1].astype(np.float64) for run in self._reference]
        if len({output.shape for output in outputs}) > 1:
            outputs = [output.reshape(-1, output.shape[-1] if output.ndim else 1).mean(axis=0) for output in outputs]
        if len({output.shape for output in outputs}) > 1:
            return np.eye(len(outputs))
        rows = np.stack([np.nan_to_num(output.reshape(-1), posinf=0.0, neginf=0.0) for output in outputs])
        rows /= np.maximum(np.max(np.abs(rows), axis=1, keepdims=True), 1e-300)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
        result: NDArray[np.float64] = rows @ rows.T
        return result

    def _run(
        self, form: SessionForm, weights: Sequence[Array], names: Sequence[str], numbers: Sequence[int]
    ) -> Iterator[list[Array]]:
        with _explained():
            session = _session(form, weights, self._threads, self._provider)
            for number in numbers:
                yield session.run(list(names), dict(self._samples[number][0]))


class LoadedModel:
    """A model with certain weights, and samples to run it on."""

    def __init__(
        self,
        form: SessionForm,
        weights: Sequence[Array],
        tensors: Sequence[str],
        feeds: Sequence[tuple[Mapping[str, Array], int]],
        samples: Sequence[int],
        threads: int = 0,
        provider: str = DEFAULT_PROVIDER,
    ) -> None:
        """Keep what is run; nothing runs yet.

        Args:
            form: the model with its layers as initializers from outside.
            weights: data of each layer, in storage type.
            tensors: names that `outputs` may be asked for, among those that the form measures.
            feeds: all samples, and the number of rows in each.
            samples: numbers of those to run.
            threads: of onnxruntime; 0 for all that this process may use.
            provider: onnxruntime's execution provider.
        """
        self._form, self._weights, self._feeds = form, weights, feeds
        self._threads, self._provider = threads, provider
        self.tensors, self.samples = tuple(tensors), tuple(samples)

    @property
    def rows(self) -> list[int]:
        """Rows of the batch in each of `samples`."""
        return [self._feeds[number][1] for number in self.samples]

    def outputs(self, tensor: str) -> Iterator[Array]:
        """The value of a tensor in each of `samples`, one run after the other.

        Raises:
            ModelError: onnxruntime cannot run the model.
        """
        with _explained():
            session = _session(self._form, self._weights, self._threads, self._provider)
        for number in self.samples:
            with _explained():
                value: Array = session.run([tensor], dict(self._feeds[number][0]))[0]
            yield value

    def session(self) -> onnxruntime.InferenceSession:
        """A session with the model's own inputs and outputs.

        Raises:
            ModelError: onnxruntime cannot run the model.
        """
        with _explained():
            return _session(own_form(self._form), self._weights, self._threads, self._provider)


class Prober:
    """Runs many candidates that differ in a few layers, in one session that takes the layers as inputs."""

    def __init__(
        self,
        form: SessionForm,
        weights: Sequence[Array],
        measured: Sequence[str],
        samples: Sequence[tuple[Mapping[str, Array], int]],
        threads: int = 0,
        provider: str = DEFAULT_PROVIDER,
    ) -> None:
        """Start the session and keep the outputs of the original weights, which differ a little from other forms'.

        Args:
            form: a probe form of the model.
            weights: the original data of each layer, in storage type.
            measured: tensors to compare, all float.
            samples: feeds and the number of rows in each.
            threads: of onnxruntime; 0 for all that this process may use.
            provider: onnxruntime's execution provider.

        Raises:
            ModelError: onnxruntime cannot run the model in this form.
        """
        self._form, self._measured, self._samples = form, list(measured), samples
        with _explained():
            try:
                self._session = _probe_session(form, threads, provider, full=True)
            except Exception:  # some optimizations take for granted that weights are constant
                self._session = _probe_session(form, threads, provider, full=False)
        self._values = {number: _ortvalue(weight) for number, weight in enumerate(weights)}
        self._reference = list(self._run({}))

    def deviations(self, changed: Mapping[int, Array]) -> list[float]:
        """Mean deviation at each measured tensor when the layers of these numbers hold other weights."""
        rows = [rows for _, rows in self._samples]
        found = _compared(self._measured, self._reference, self._run(changed), rows)
        return [tensor.mean for tensor in found.tensors]

    def _run(self, changed: Mapping[int, Array]) -> Iterator[list[Array]]:
        values = self._values | {number: _ortvalue(weight) for number, weight in changed.items()}
        given = {name: values[number] for name, number in self._form.weights}
        with _explained():
            for feed, _ in self._samples:
                inputs = given | {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feed.items()}
                yield [value.numpy() for value in self._session.run_with_ort_values(self._measured, inputs)]


class Observer:
    """Runs the original model and shows what its inner tensors hold."""

    def __init__(
        self,
        form: SessionForm,
        weights: Sequence[Array],
        samples: Sequence[tuple[Mapping[str, Array], int]],
        threads: int = 0,
        provider: str = DEFAULT_PROVIDER,
    ) -> None:
        """Keep what is run; nothing runs yet.

        Args:
            form: a hoisted form of the model.
            weights: the original data of each layer, in storage type.
            samples: feeds and the number of rows in each.
            threads: of onnxruntime; 0 for all that this process may use.
            provider: onnxruntime's execution provider.
        """
        self._form, self._weights, self._samples = form, weights, samples
        self._threads, self._provider = threads, provider

    def activations(self, tensors: Sequence[str], budget: int = _OBSERVED) -> Iterator[tuple[str, int, Array]]:
        """Name, number of the sample and value of every tensor in every sample.

        The model runs once for as many tensors as fit into `budget` bytes, judged by those before them.

        Args:
            tensors: names in the form's main graph; those computed one after the other are best named so.
            budget: bytes of the values of one sample that are held at the same time, about.

        Raises:
            ModelError: onnxruntime cannot run the model.
        """
        begin, count = 0, _OBSERVED_FIRST
        while begin < len(tensors):
            names = list(tensors[begin : begin + count])
            form = observed_form(self._form, names)
            largest = 1
            with _explained():
                session = _session(form, self._weights, self._threads, self._provider, patient=True)
            for number, (feed, _) in enumerate(self._samples):
                with _explained():
                    values = session.run(names, dict(feed))
                largest = max(largest, sum(value.nbytes for value in values))
                while values:
                    yield names[-len(values)], number, values.pop(0)
            begin += len(names)
            count = max(1, min(_OBSERVED_GROWTH * len(names), budget * len(names) // largest))


def _compared(
    names: Sequence[str], references: Sequence[list[Array]], runs: Iterable[list[Array]], rows: Sequence[int]
) -> Deviation:
    """The deviation at each tensor: outputs of one run after the other beside those of the original model."""
    values: list[list[float]] = [[] for _ in names]
    for reference, outputs, count in zip(references, runs, rows, strict=True):
        for found, y, z in zip(values, reference, outputs, strict=True):
            found += sample_deviations(y, z, count)
    return Deviation(
        tuple(
            TensorDeviation(name, math.fsum(found) / len(found), max(found), len(found))
            for name, found in zip(names, values, strict=True)
        )
    )


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_threads()
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = _LOG_NOTHING
    return options


def _session(
    form: SessionForm, weights: Sequence[Array], threads: int, provider: str, patient: bool = False
) -> onnxruntime.InferenceSession:
    """A session; a `patient` one leaves memory and, between its runs, processors to others."""
    options = _options(threads)
    if patient or sum(weight.nbytes for weight in weights) > _LARGE:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if form.weights:
        values = [_ortvalue(weights[number]) for _, number in form.weights]
        options.add_external_initializers([name for name, _ in form.weights], values)
    if patient:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(form.model, options, providers=[provider])


def _probe_session(form: SessionForm, threads: int, provider: str, full: bool) -> onnxruntime.InferenceSession:
    options = _options(threads)
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if full else levels.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(form.model, options, providers=[provider])


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise ModelError(f"onnxruntime cannot run the model: {first_line(error)}") from error


def available_threads() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def sample_deviations(reference: Array, candidate: Array, rows: int = 1) -> list[float]:
    """Cosine distances of one run's outputs, eq. (1): one for each row of a batch, else one for the whole.

    Args:
        reference: output of the original model.
        candidate: output of the model with other weights.
        rows: samples in the run; where the first axis has that length, each row is a sample of its own.
    """
    if rows > 1 and reference.shape == candidate.shape and reference.ndim and reference.shape[0] == rows:
        return [cosine_distance(y, z) for y, z in zip(reference, candidate, strict=True)]
    return [cosine_distance(reference, candidate)] * rows


def cosine_distance(y: Array, z: Array) -> float:
    """Deviation 1 − ⟨y, z⟩ / (‖y‖ ‖z‖), eq. (1), in float64 and not below 0.

    Decided where the equation is silent: 0 if both are zero, 1 if one of them is, 1 if their shapes differ; elements
    where y is NaN or infinite must be the same in z and are then left out, any other NaN or infinity in z makes the
    distance infinite.
    """
    if y.shape != z.shape:
        return 1.0
    a, b = y.astype(np.float64).ravel(), z.astype(np.float64).ravel()
    largest = _peak(a), _peak(b)
    if not math.isfinite(largest[0]):
        finite = np.isfinite(a)
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            return math.inf
        a, b = a[finite], b[finite]
        largest = _peak(a), _peak(b)
    if not math.isfinite(largest[1]):
        return math.inf
    if 0 in largest:
        return 0.0 if largest[0] == largest[1] else 1.0
    a /= largest[0]  # so that no square is too large or too small
    b /= largest[1]
    aa, bb, ab = float(np.sum(a * a)), float(np.sum(b * b)), float(np.sum(a * b))
    return max(0.0, 1.0 - ab / math.sqrt(aa * bb))  # one root: that of a square is exact, so y = z gives 0


def _peak(values: Array) -> float:
    """The largest absolute value; 0 of none, NaN if there is any."""
    return float(np.max(np.abs(values), initial=0.0))


def _float_names(names: Sequence[str], runs: Sequence[Sequence[Array]], strict: bool) -> list[str]:
    floats = []
    for name, output in zip(names, runs[0], strict=True):
        if isinstance(output, np.ndarray) and (output.dtype.kind == "f" or output.dtype.name == "bfloat16"):
            floats.append(name)
        elif strict:
            raise SettingsError(f"tensor {name!r} is not float; its deviation cannot be measured")
    if not floats:
        raise SettingsError("the model has no float output to measure; name an inner tensor with --output")
    return floats


def _ortvalue(weights: Array) -> onnxruntime.OrtValue:
    """The weights as onnxruntime takes them, sharing their memory."""
    if weights.dtype == np.uint16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(weights, _BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(weights)
