"""Weights → deviation: runs the model in onnxruntime and compares its outputs with the original's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from riq_cli.errors import ModelError, SettingsError
from riq_cli.evaluator.deviation import Array, Deviation, compared
from riq_cli.evaluator.sessions import DEFAULT_PROVIDER, LARGE, explained, nbytes, runner, start
from riq_cli.model import SessionForm, own_form, probe_form


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
        lean: bool = False,
    ) -> None:
        """Run the original model once and keep its outputs.

        Args:
            form: the model with its layers as initializers from outside.
            weights: the original data of each layer, in storage type.
            samples: feeds and the number of rows in each.
            threads: of onnxruntime; 0 for all that this process may use.
            provider: onnxruntime's execution provider.
            strict: refuse measured tensors that are not float, instead of leaving them out.
            lean: where the weights are many, and onnxruntime can, run `form` with its layers as inputs: that takes no
                copies of them, and other kernels, whose outputs differ in the last digits.

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
        self._form = form
        self._lean: SessionForm | None = None  # what is run in its place
        outputs: list[list[Array]] = []
        if lean and nbytes(weights) > LARGE:
            with contextlib.suppress(ModelError):  # then it is run as it is
                fed = probe_form(form)
                outputs = list(self._run(fed, weights, form.measured, range(len(samples))))
                self._lean = fed
        outputs = outputs or list(self._run(form, weights, form.measured, range(len(samples))))
        self.measured = _float_names(form.measured, outputs, strict)
        # Copies: what a session gives out lies in its own memory, all of which it would keep.
        self._reference = [
            [output.copy() for name, output in zip(form.measured, run, strict=True) if name in self.measured]
            for run in outputs
        ]

    @property
    def is_lean(self) -> bool:
        """Whether its form is run with layers as inputs."""
        return self._lean is not None

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
        return compared(self.measured, references, self._run(form, weights, self.measured, numbers), rows)

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
        if self._lean is not None and form is self._form:
            form = self._lean
        with explained():
            run = runner(form, weights, self._threads, self._provider)
            for number in numbers:
                yield run(names, self._samples[number][0])


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
        with explained():
            run = runner(self._form, self._weights, self._threads, self._provider)
        for number in self.samples:
            with explained():
                value = run([tensor], self._feeds[number][0])[0]
            yield value

    def session(self) -> onnxruntime.InferenceSession:
        """A session with the model's own inputs and outputs.

        Raises:
            ModelError: onnxruntime cannot run the model.
        """
        with explained():
            return start(own_form(self._form), self._weights, self._threads, self._provider)


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
