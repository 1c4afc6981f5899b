"""Samples → gradients of a model's outputs at the products of its layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from riq_cli.calibration import Sample
from riq_cli.model import GateOutput, Linear, Operation, SessionForm, operations
from riq_cli.pipeline.settings import Settings
from riq_cli.pipeline.weights import Weights
from riq_cli.runtime import Evaluator, Observer
from riq_cli.statistics.autodiff import Array, Backward, Floats, Gradients, gate_gradients

LEAST = 1024  # weights of a layer for which gradients are worth it
LEAST_SAMPLES = 8  # two that judge two others know next to nothing of how samples differ
_VALUES = 1 << 28  # bytes of inner tensors that are held at the same time
_VALUES_LEAN = 1 << 25  # … beside a large model

Halves = tuple[Sequence[int], Sequence[int]]  # numbers of runs

# Told of a layer, the number of a product of it and that of the run, what enters the product (if that is wanted), and
# the gradients at what comes out, [probes, *shape].
Found = Callable[[int, int, int, Array | None, Floats], None]


@dataclass(frozen=True)
class ProductGradients:
    """Takes gradients back to the products of layers.

    Attributes:
        weights: all layers that may be coded.
        form: the model, its tensors named as in the layers' products.
        observer: shows what they hold.
        measured: tensors that the deviation is of, all float.
        rows: samples in each of the observer's runs.
        halves: numbers of the runs, in two halves that judge each other.
    """

    weights: Weights
    form: SessionForm
    observer: Observer
    measured: Sequence[str]
    rows: Sequence[int]
    halves: Halves

    @classmethod
    def of(
        cls,
        weights: Weights,
        form: SessionForm,
        evaluator: Evaluator,
        settings: Settings,
        first: Sequence[Sample],
        second: Sequence[Sample],
    ) -> ProductGradients:
        """Those of samples in two halves, one run for each."""
        samples, originals = [*first, *second], [layer.values for layer in weights.layers]
        observer = Observer(form, originals, samples, settings.runtime, evaluator.is_lean)
        halves = range(len(first)), range(len(first), len(samples))
        return cls(weights, form, observer, evaluator.measured, [sample.rows for sample in samples], halves)

    def run(
        self,
        linear: Mapping[int, Linear],
        found: Found,
        progress: Callable[[int, int], None],
        probes: int | None = None,
        entering: bool = True,
    ) -> set[int]:
        """The layers all of whose products were reached; others may have been told of too.

        Args:
            linear: layers by their numbers.
            found: told of every product in every run.
            progress: called with steps through the model done, and their number in all.
            probes: directions of the output in each run, at most; None: as many as tell enough of second moments.
            entering: whether what enters the products is wanted.

        Raises:
            ModelError: onnxruntime cannot run the model so that its inner tensors are seen.
        """
        uses: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        beside: dict[tuple[str, ...], list[str]] = {}
        for number, item in linear.items():
            for index, (source, leaving) in enumerate(item.products):
                uses.setdefault(leaving.operation, []).append((number, index))
                if entering:
                    beside.setdefault(leaving.operation, []).append(source.tensor)

        def at(operation: Operation, run: int, values: Mapping[str, Array], gradients: Gradients) -> None:
            if self.observer.is_lean:
                self.weights.release()  # or what rules have read of them would add up
            gates: tuple[Floats, Floats] | None = None
            for number, index in uses[operation.outputs]:
                source, leaving = linear[number].products[index]
                gradient = gradients[0]
                if isinstance(leaving, GateOutput):
                    if gates is None:
                        inputs = [values[name] if name else None for name in operation.inputs]
                        gates = gate_gradients(operation, inputs, gradients)
                    gradient = gates[leaving.of_state]
                assert gradient is not None  # of the only output
                found(number, index, run, values[source.tensor] if entering else None, gradient)

        def tell(done: int, total: int) -> None:
            self.weights.release()  # rules have read all of them
            progress(done, total)

        graph, constants = operations(self.form)
        widened = {number: self.weights.widened(number) for _, number in self.form.weights}
        constants |= {name: widened[number] for name, number in self.form.weights}
        budget = _VALUES_LEAN if self.observer.is_lean else _VALUES
        way = Backward(graph, constants, self.measured, list(uses))
        known = way.run(self.observer.runner, self.observer.sizes, self.rows, beside, at, tell, budget, probes=probes)
        return {
            number for number, item in linear.items() if all(leaving.operation in known for _, leaving in item.products)
        }
