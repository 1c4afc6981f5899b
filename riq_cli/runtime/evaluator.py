"""Weights → deviation: runs the model in onnxruntime and compares its outputs with the original's."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from riq_cli.errors import CalibrationError, ModelError, RiqError, SettingsError
from riq_cli.model import SessionForm, class_axes, lean_form, measurable, own_form
from riq_cli.runtime.deviation import (
    NOTHING_TO_MEASURE,
    Array,
    Deviation,
    by_sample,
    compared,
    has_direction,
    sample_deviations,
)
from riq_cli.runtime.sessions import DEFAULT_RUNTIME, LARGE, Runtime, Samples, explained, nbytes, runner, start
from riq_cli.scratch import HUGE
from riq_cli.text import counted

_NAMED = 5  # samples, or tensors, in a message


class Evaluator:
    """Runs candidates for a model's weights on the same samples and compares them with the original outputs."""

    def __init__(
        self,
        form: SessionForm,
        weights: Sequence[Array],
        samples: Samples,
        runtime: Runtime = DEFAULT_RUNTIME,
        strict: bool = False,
        lean: bool = False,
        needed: bool = True,
    ) -> None:
        """Run the original model once and keep its outputs.

        What is `measured` are the float tensors at which the deviation is defined for any sample; see `has_direction`.
        `original` is the form of the original model.

        Args:
            form: the original model with its layers as initializers from outside.
            weights: the original data of each layer, in storage type.
            samples: feeds and the number of rows in each.
            runtime: how onnxruntime runs it.
            strict: refuse tensors that cannot be measured, instead of leaving them out.
            lean: where the weights are many, and onnxruntime can, run `form` with its layers as inputs: that takes no
                copies of them, and other kernels, whose outputs differ in the last digits. Where they are more than
                `HUGE`, every form is run so in any case, but for those with integers in place of weights.
            needed: a deviation has to be measured; if not, `measured` may be empty.

        Raises:
            ModelError: onnxruntime cannot run the model.
            SettingsError: an unknown provider, or no tensor that can be measured.
            CalibrationError: the deviation is undefined for all samples at those tensors.
        """
        runtime.check()
        self._samples = samples
        self._runtime = runtime
        self.original = form
        self._form = form  # of candidates
        self._lean: SessionForm | None = None  # what is run in its place
        outputs: list[list[Array]] = []
        if nbytes(weights) > (LARGE if lean else HUGE):
            with contextlib.suppress(ModelError):  # then it is run as it is
                fed = lean_form(form)
                outputs = list(self._run(fed, weights, form.measured, range(len(samples))))
                self._lean = fed
        outputs = outputs or list(self._run(form, weights, form.measured, range(len(samples))))
        self.measured, self._undefined_tensors = self._sorted(outputs, strict, needed)
        axes = class_axes(form)
        self._axes = {name: axes[name] for name in self.measured if name in axes}
        # Copies: what a session gives out lies in its own memory, all of which it would keep.
        self._reference = [
            [output.copy() for name, output in zip(form.measured, run, strict=True) if name in self.measured]
            for run in outputs
        ]

    def _sorted(self, runs: Sequence[Sequence[Array]], strict: bool, needed: bool) -> tuple[list[str], list[str]]:
        """Names of the tensors at which the deviation is defined, and of other float ones that have elements."""
        defined, undefined, empty = [], [], []
        for name, values in zip(self.original.measured, zip(*runs, strict=True), strict=True):
            if not all(_is_float(value) for value in values):
                refusal: RiqError = SettingsError(f"tensor {name!r} is not float; its deviation cannot be measured")
            elif not any(value.size for value in values):
                empty.append(name)
                refusal = SettingsError(f"tensor {name!r} has no elements; its deviation cannot be measured")
            elif not any(has_direction(value) for value in values):
                undefined.append(name)
                refusal = CalibrationError(f"tensor {name!r}: {NOTHING_TO_MEASURE}")
            else:
                defined.append(name)
                continue
            if strict:
                raise refusal
        if needed and not defined:
            raise CalibrationError(NOTHING_TO_MEASURE) if undefined or empty else self._nothing_to_measure()
        return defined, undefined

    def _nothing_to_measure(self) -> SettingsError:
        """The error that no output is float: what the outputs are, and what could be measured in their place."""
        outputs, inner = measurable(self.original, _NAMED)
        kinds = ", ".join(f"{name} {kind}" for name, kind in outputs.items())
        advice = f"measure an inner tensor with --output, such as {', '.join(inner)}, or " if inner else ""
        return SettingsError(
            f"the model has no float output to measure: its outputs are {kinds}; {advice}keep a score of your own with "
            "--metric, without --deviation"
        )

    @property
    def defined(self) -> list[list[bool]]:
        """For each row of every run, whether its deviation is defined at any tensor that is measured."""
        if not self.measured:
            return [[True] * rows for _, rows in self._samples]
        return [
            [
                not all(map(math.isnan, row))
                for row in zip(*(sample_deviations(value, value, rows) for value in values), strict=True)
            ]
            for values, (_, rows) in zip(self._reference, self._samples, strict=True)
        ]

    def warn_of_undefined(self, warn: Callable[[str], None]) -> None:
        """Warn of tensors and samples at which the deviation is undefined, if there are any."""
        for name in self._undefined_tensors:
            warn(f"tensor {name!r} left out: it is NaN, infinite or all zero on all samples")
        defined = list(itertools.chain.from_iterable(self.defined))
        numbers = [str(number) for number, is_defined in enumerate(defined) if not is_defined]
        if not numbers:
            return
        some = ", ".join(numbers if len(numbers) <= _NAMED + 1 else [*numbers[:_NAMED], "…"])
        warn(
            f"{counted(len(numbers), 'sample')} of {len(defined)} ({some}; numbered from 0) left out: the model's "
            "outputs there are NaN, infinite, all zero or empty"
        )

    def on(self, numbers: Sequence[int]) -> Evaluator:
        """The same on some of the samples, by their numbers."""
        found = copy.copy(self)
        found._samples = [self._samples[number] for number in numbers]
        found._reference = [self._reference[number] for number in numbers]
        return found

    def of_candidates_in(self, form: SessionForm) -> Evaluator:
        """The same where candidates are run in another form than the original."""
        found = copy.copy(self)
        found._form, found._lean = form, lean_form(form) if self.is_lean else None
        return found

    @property
    def is_lean(self) -> bool:
        """Whether the form of candidates is run with layers as inputs."""
        return self._lean is not None

    def deviation(self, form: SessionForm, weights: Sequence[Array], among: Sequence[int] | None = None) -> Deviation:
        """How far the outputs of all samples, or of those `among` them, move when the layers hold other weights."""
        numbers = range(len(self._samples)) if among is None else among
        references = [self._reference[number] for number in numbers]
        rows = [self._samples[number][1] for number in numbers]
        runs = self._run(form, weights, self.measured, numbers)
        return compared(self.measured, references, runs, rows, self._axes)

    def failure(self, among: Sequence[int] | None = None) -> Deviation:
        """The deviation of weights with which the model cannot be run: infinite at every tensor and sample."""
        numbers = range(len(self._samples)) if among is None else among
        runs = [((math.inf,) * self._samples[number][1],) * len(self.measured) for number in numbers]
        return Deviation(tuple(self.measured), tuple(runs))

    def loaded(self, form: SessionForm, weights: Sequence[Array], among: Sequence[int] | None = None) -> Candidate:
        """The model with other weights, on all samples or on those of some numbers."""
        numbers = range(len(self._samples)) if among is None else among
        return Candidate(form, weights, self.measured, self._axes, numbers, self._samples, self._runtime)

    def similarity(self) -> NDArray[np.float64]:
        """How similar the original outputs of every two samples are, f64[samples, samples], 1 for equal ones.

        Cosines at the last measured tensor; where shapes differ, of means over all axes but the last.
        """
        outputs = [np.nan_to_num(run[-1].astype(np.float64), posinf=0.0, neginf=0.0) for run in self._reference]
        if len({output.shape for output in outputs}) > 1:
            outputs = [_last_axis_mean(output) for output in outputs]
        if len({output.shape for output in outputs}) > 1:
            return np.eye(len(outputs))
        rows = np.stack([output.reshape(-1) for output in outputs])
        rows /= np.maximum(np.max(np.abs(rows), axis=1, keepdims=True), 1e-300)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
        result: NDArray[np.float64] = rows @ rows.T
        return result

    def of_constant_outputs(self) -> float:
        """The deviation of outputs that are the same for every sample: the means of the original ones.

        A target near it, or above, says little of what a sample changes. 1 where it cannot be told: fewer than two
        samples have finite values at a tensor, or their shapes differ.
        """
        found = []
        for values in zip(*self._reference, strict=True):
            outputs = [
                output
                for value, (_, rows) in zip(values, self._samples, strict=True)
                for output in by_sample(value, rows)
                if np.isfinite(output).all()
            ]
            if len(outputs) < 2 or len({output.shape for output in outputs}) > 1:
                return 1.0
            mean = np.zeros(outputs[0].shape)
            for output in outputs:
                mean += output / len(outputs)
            found.append(float(np.nanmean([sample_deviations(output, mean) for output in outputs])))
        return max(found)

    def _run(
        self, form: SessionForm, weights: Sequence[Array], names: Sequence[str], numbers: Sequence[int]
    ) -> Iterator[list[Array]]:
        if self._lean is not None and form is self._form:
            form = self._lean
        elif self._lean is not None and nbytes(weights) > HUGE and all(each.dtype.kind != "i" for each in weights):
            form = lean_form(form)  # with int8 inputs, onnxruntime's optimizations compute something else
        with explained():
            run = runner(form, weights, self._runtime)
            for number in numbers:
                yield run(names, self._samples[number][0])[: len(names)]  # of no names, onnxruntime gives all


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model with certain weights, ready to run on some of the samples; nothing runs before it is asked for.

    Attributes:
        form: the model with its layers as initializers from outside.
        weights: data of each layer, in storage type.
        tensors: names that `outputs` knows, the model's own float outputs first.
        axes: along which the classes lie, by names of those tensors that are a choice among classes.
        samples: numbers of the samples to run.
        feeds: all samples, and the number of rows in each.
        runtime: how onnxruntime runs it.
    """

    form: SessionForm
    weights: Sequence[Array]
    tensors: Sequence[str]
    axes: Mapping[str, int]
    samples: Sequence[int]
    feeds: Samples
    runtime: Runtime

    @property
    def rows(self) -> list[int]:
        """Rows of the batch in each of `samples`."""
        return [self.feeds[number][1] for number in self.samples]

    def outputs(self, tensor: str) -> Iterator[Array]:
        """The value of a tensor in each of `samples`, one run after the other.

        Raises:
            ModelError: onnxruntime cannot run the model.
        """
        with explained():
            run = runner(self.form, self.weights, self.runtime)
            for number in self.samples:
                yield run([tensor], self.feeds[number][0])[0]

    def session(self) -> onnxruntime.InferenceSession:
        """A session with the model's own inputs and outputs.

        Raises:
            ModelError: onnxruntime cannot run the model.
        """
        with explained():
            return start(own_form(self.form), self.weights, self.runtime)


def _is_float(value: object) -> bool:
    return isinstance(value, np.ndarray) and (value.dtype.kind == "f" or value.dtype.name == "bfloat16")


def _last_axis_mean(value: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over all axes but the last; zeros of no elements."""
    width = value.shape[-1] if value.ndim else 1
    return value.reshape(-1, width).mean(axis=0) if value.size else np.zeros(width)
