"""Samples → gradients of a model's outputs at the products of its layers, and what positions count for by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from riq_cli.calibration import Sample
from riq_cli.memory import give_back_mapped_memory
from riq_cli.model import GateOutput, Layer, Linear, LinearOutput, Operation, SessionForm, operations
from riq_cli.model.tensors import computable
from riq_cli.runtime import Observer, Runtime
from riq_cli.statistics.autodiff import Array, Backward, Floats, Gradients, gate_gradients
from riq_cli.statistics.moments import PositionWeights, Weights

LEAST = 1024  # weights of a layer for which gradients are worth it
_VALUES = 1 << 28  # bytes of inner tensors that are held at the same time
_VALUES_LEAN = 1 << 25  # … beside a large model
_ENOUGH = 2  # times as many positions as columns, at least: where there are fewer, each of them is needed
_DISTINCT = 4096  # positions of a product in one run, about; of more, some that follow each other have one weight

# Called with a layer, the number of a product of it and that of the run, what enters the product (if that is wanted),
# and the gradients at what comes out, [probes, *shape].
Found = Callable[[int, int, int, Array | None, Floats], None]
Halves = tuple[Sequence[Sample], Sequence[Sample]]
Squares = dict[tuple[int, int, int], PositionWeights]  # sums of them: by a layer, a product of it, and the run
Tick = Callable[[int, int], None]  # steps done, and in all


@dataclass(frozen=True)
class Observed:
    """A model and samples in two halves, whose inner tensors and gradients can be seen.

    Attributes:
        layers: of the model.
        form: the model, its tensors named as in the layers' products.
        measured: tensors that the deviation is of, all float.
        halves: of the samples, one run for each.
        runtime: how onnxruntime runs it.
        lean: the model is large: its layers are inputs of the session, and few values are held.
        keep: the same values in memory where moments of all layers have room.
    """

    layers: Sequence[Layer]
    form: SessionForm
    measured: Sequence[str]
    halves: Halves
    runtime: Runtime
    lean: bool
    keep: Callable[[Floats], Floats] = lambda values: values

    @property
    def samples(self) -> list[Sample]:
        """Those of both halves, in the order of the runs."""
        return [*self.halves[0], *self.halves[1]]

    @property
    def second(self) -> range:
        """Numbers of the runs in the second half."""
        first, second = map(len, self.halves)
        return range(first, first + second)

    @property
    def observer(self) -> Observer:
        """What shows inner tensors."""
        values = [layer.values for layer in self.layers]
        return Observer(self.form, values, self.samples, self.runtime, self.lean)

    def gradients(
        self,
        linear: Mapping[int, Linear],
        found: Found,
        tick: Tick,
        probes: int,
        runs: Sequence[int],
        entering: bool = True,
    ) -> set[int]:
        """The layers all of whose products were reached; others may have been found too.

        Args:
            linear: layers by their numbers.
            found: called for every product in every run.
            tick: called with steps through the model done, and their number in all.
            probes: output directions in each run, at most.
            runs: numbers of the runs.
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
            if self.lean:
                give_back_mapped_memory()  # or what rules have read of layers would add up

        def ticked(done: int, total: int) -> None:
            give_back_mapped_memory()  # rules have read all layers
            tick(done, total)

        graph, constants = operations(self.form)
        constants |= {
            name: computable(self.layers[number].values, self.layers[number].dtype)
            for name, number in self.form.weights
        }
        backward, observer = Backward(graph, constants, self.measured, list(uses)), self.observer
        rows, budget = [sample.rows for sample in self.samples], _VALUES_LEAN if self.lean else _VALUES
        known = backward.run(
            observer.runner, observer.sizes, rows, beside, at, ticked, budget, probes=probes, runs=runs
        )
        return {
            number for number, item in linear.items() if all(leaving.operation in known for _, leaving in item.products)
        }


def squared_gradients(
    observed: Observed, linear: Mapping[int, Linear], tick: Tick, probes: int, runs: Sequence[int]
) -> Squares:
    """Sums of squared gradients at positions of products, over the rows of some runs.

    Args:
        observed: the model and samples.
        linear: layers that multiply activations.
        tick: called with steps through the model done, and their number in all.
        probes: output directions in each run.
        runs: their numbers.

    Returns:
        Of the products of all layers whose gradients are known.
    """
    chosen = {n: item for n, item in linear.items() if not item.is_table and math.prod(item.matrix.shape) >= LEAST}
    squares: Squares = {}

    def add(number: int, index: int, run: int, _: Array | None, gradient: Floats) -> None:
        item = linear[number]
        for one in gradient:
            rows = item.products[index][1].rows(one, item.matrix.shape[0])
            sums = np.einsum("gpn,gpn->p", rows, rows, dtype=np.float64)
            step = -(-sums.size // _DISTINCT) or 1
            together = np.add.reduceat(sums, np.arange(0, sums.size, step)) if step > 1 else sums
            before = squares[number, index, run].values if (number, index, run) in squares else 0.0
            squares[number, index, run] = PositionWeights(sums.size, step, before + together)

    known = observed.gradients(chosen, add, tick, probes, runs, entering=False) if chosen else set()
    return {key: found for key, found in squares.items() if key[0] in known}


def position_weights(linear: Mapping[int, Linear], squares: Squares, runs: int) -> Weights:
    """What positions of products count for: half equally, half by their squared gradients, with a mean of 1.

    Of what comes out of a convolution and is then pooled, or of the steps of a sequence, most may not matter.

    Args:
        linear: layers that multiply activations.
        squares: of gradients at their products, where they are known.
        runs: how many there are.

    Returns:
        For the products of layers that have enough positions.
    """
    weights: dict[LinearOutput, list[PositionWeights]] = {}
    for number, item in linear.items():
        products = [[squares.get((number, index, run)) for run in range(runs)] for index in range(len(item.products))]
        parts = [part for product in products for part in product if part is not None]
        total, count = sum(float(part.values.sum()) for part in parts), sum(part.count for part in parts)
        known = len(parts) == len(products) * runs and 0 < total < math.inf
        if known and count >= _ENOUGH * item.matrix.shape[2]:
            for (_, leaving), product in zip(item.products, products, strict=True):
                weights[leaving] = [_weights(part, count / total) for part in product if part is not None]
    return weights


def _weights(squares: PositionWeights, scale: float) -> PositionWeights:
    """What positions count for, by the sums of squared gradients at those taken together."""
    sizes = np.full(squares.values.size, squares.step)
    sizes[-1:] = squares.count - (sizes.size - 1) * squares.step
    values = (0.5 + 0.5 * scale * squares.values / sizes).astype(np.float32)
    return PositionWeights(squares.count, squares.step, values)
