"""Samples → what a model's inner tensors hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from riq_cli.errors import ModelError
from riq_cli.model import SessionForm, conditions, inlined_form, lean_form, observed_form
from riq_cli.runtime.deviation import Array
from riq_cli.runtime.sessions import DEFAULT_RUNTIME, Runtime, Samples, explained, runner

_OBSERVED = 1 << 25  # bytes of inner tensors that are held at the same time
_OBSERVED_FIRST = 4  # tensors that are looked at before it is known how large they are
_OBSERVED_GROWTH = 8
_TEXT = np.dtype(object)  # of strings, and of what is no array
_CONDITIONS = {frozenset({b"\0"}): False, frozenset({b"\1"}): True}  # what a condition holds in all samples


class Observer:
    """Runs the original model and shows what its inner tensors hold."""

    def __init__(
        self,
        form: SessionForm,
        weights: Sequence[Array],
        samples: Samples,
        runtime: Runtime = DEFAULT_RUNTIME,
        lean: bool = False,
    ) -> None:
        """Keep a hoisted form and what else is run, as `Evaluator` has it; nothing runs yet."""
        self._form, self._weights, self._samples = form, weights, samples
        self._runtime, self.is_lean = runtime, lean

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
            largest = 1
            run = self._runner(names)
            for number in range(len(self._samples)):
                values = run(number)
                largest = max(largest, sum(getattr(value, "nbytes", 0) for value in values))
                while values:
                    yield names[-len(values)], number, values.pop(0)
            begin += len(names)
            count = max(1, min(_OBSERVED_GROWTH * len(names), budget * len(names) // largest))

    def runner(self, tensors: Sequence[str]) -> Callable[[int], dict[str, Array]]:
        """What gives the values of some tensors of the form's main graph in the sample of a number, all at once.

        Raises:
            ModelError: onnxruntime cannot run the model.
        """
        names = list(tensors)
        run = self._runner(names)
        return lambda number: dict(zip(names, run(number), strict=True))

    def sizes(self, tensors: Sequence[str]) -> dict[str, int]:
        """Bytes of some tensors in the sample of the largest feed, looked at a few at a time.

        Those that are no arrays of numbers are left out.
        """
        largest = max(self._samples, key=lambda sample: sum(array.nbytes for array in sample[0].values()))
        alone = Observer(self._form, self._weights, [largest], self._runtime, self.is_lean)
        values = alone.activations(tensors)
        return {name: value.nbytes for name, _, value in values if getattr(value, "dtype", _TEXT).kind in "fiub"}

    def _runner(self, names: list[str]) -> Callable[[int], list[Array]]:
        form = observed_form(self._form, names)
        with explained():
            run = runner(lean_form(form) if self.is_lean else form, self._weights, self._runtime, patient=True)

        def values(number: int) -> list[Array]:
            with explained():
                return run(names, self._samples[number][0])

        return values


def inlined(
    form: SessionForm,
    weights: Sequence[Array],
    samples: Samples,
    runtime: Runtime = DEFAULT_RUNTIME,
) -> SessionForm:
    """The hoisted form in which each If that takes the same branch on all samples is replaced by that branch.

    Ifs whose conditions differ stay, and all where the model cannot be run: whoever measures it tells why. Nothing is
    run if there is no If in the main graph. A condition that depends on layers is what the original ones make of it.

    Raises:
        SettingsError: an unknown provider.
    """
    observed: set[str] = set()
    known: dict[str, bool] = {}
    while names := sorted(conditions(form) - observed):  # then those inside of the branches
        runtime.check()
        try:
            run = Observer(form, weights, samples, runtime).runner(names)
            runs = [run(number) for number in range(len(samples))]
        except ModelError:
            break
        observed.update(names)
        values = {name: _CONDITIONS.get(frozenset(one[name].tobytes() for one in runs)) for name in names}
        found = {name: value for name, value in values.items() if value is not None}
        if found:
            known |= found
            form = inlined_form(form, known)
    return form
