"""Samples → plans in which the rows of layers are told apart by what their errors do to the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor

import numpy as np

from riq_cli.codec.importance import FEW, with_importance
from riq_cli.codec.plans import Plan
from riq_cli.codec.weights import Plans, Weights, Widths
from riq_cli.evaluator import Observer
from riq_cli.gradients import Backward, Effects, Floats, Gradients, effects, gate_gradients
from riq_cli.model import GateOutput, Linear, Operation, SessionForm, operations

_VALUES = 1 << 28  # bytes of inner tensors that are held at the same time
_VALUES_LEAN = 1 << 25  # … beside a large model
_ERRORS = 16  # of a layer's weights in each sample
_DRAWN = 8 * _ERRORS  # errors of a layer in all
_ENTRIES = 4096  # of a table, whose errors are drawn: as many as a sample's indices are likely to tell apart
_SPREADS = (1024, 512, 256)  # rows whose errors spread among each other
_BYTES = 0.5  # bytes of second moments, at most, for each byte of weights
_FEW = 1 << 27  # bytes of them that are always granted
_SAMPLES = 8  # at least: two that judge two others know next to nothing of how samples differ
_LEAST = 1024  # weights of a layer that is worth it


def with_effects(
    weights: Weights,
    linear: Mapping[int, Linear],
    plans: Plans,
    form: SessionForm,
    observer: Observer,
    measured: Sequence[str],
    rows: Sequence[int],
    second: Sequence[int],
    widths: Widths,
    pool: Executor,
    progress: Callable[[int, int], None],
) -> dict[int, Plan]:
    """The plans, and more, with rows told apart where that pays.

    Args:
        weights: all layers that may be coded.
        linear: those that multiply activations.
        plans: how errors are compensated along rows.
        form: the model, its tensors named as in `linear`.
        observer: shows what they hold.
        measured: tensors that the deviation is of, all float.
        rows: samples in each of the observer's runs.
        second: numbers of the runs in the second half.
        widths: about the bin widths that layers will have.
        pool: its threads work at the same time.
        progress: called with steps through the model done, and their number in all.

    Raises:
        ModelError: onnxruntime cannot run the model so that its inner tensors are seen.
    """
    chosen = {
        number: item
        for number, item in linear.items()
        if weights.may_part
        and widths[number] is not None
        and item.matrix.row_axes is not None
        and math.prod(item.matrix.shape[:2]) >= FEW
        and weights.sizes[number] >= _LEAST
    }
    if not chosen or sum(rows) < _SAMPLES:
        return dict(plans)
    collected = _Collected(chosen, plans, second, _most(weights, chosen))
    graph, constants = operations(form)
    widened = {number: weights.widened(number) for _, number in form.weights}
    constants |= {name: widened[number] for name, number in form.weights}
    budget = _VALUES_LEAN if observer.is_lean else _VALUES
    way = Backward(graph, constants, measured, list(collected.uses))

    def tell(done: int, total: int) -> None:
        weights.release()  # rules have read all of them
        progress(done, total)

    known = way.run(observer.runner, observer.sizes, rows, collected.beside, collected.found, tell, budget)
    del constants, widened

    def fit(number: int) -> Plan | None:
        if not all(leaving.operation in known for _, leaving in chosen[number].products):
            return None
        plan = plans.get(number) or Plan.of(chosen[number].matrix)
        width = widths[number]
        assert width is not None
        return with_importance(plan, weights.layers[number], width, collected.halves.pop(number))

    found = zip(chosen, pool.map(fit, chosen), strict=True)
    return dict(plans) | {number: plan for number, plan in found if plan is not None}


def _most(weights: Weights, linear: Mapping[int, Linear]) -> int:
    """Rows whose errors spread among each other, such that their moments stay in proportion to the weights."""
    shapes = [item.matrix.shape for item in linear.values()]
    nbytes = sum(weights.layers[number].values.nbytes for number in linear)
    bound = max(_BYTES * nbytes, _FEW - _BYTES * nbytes)
    for most in _SPREADS:
        if sum(2 * 4 * groups * rows * min(rows, most) for groups, rows, _ in shapes) <= bound:
            break
    return most


class _Collected:
    """Effects of all layers, as they come in."""

    def __init__(self, linear: Mapping[int, Linear], plans: Plans, second: Sequence[int], most: int) -> None:
        self._linear, self._second = linear, frozenset(second)
        shapes = {number: item.matrix.shape[:2] for number, item in linear.items()}
        self.halves = {
            number: (Effects(*shape, most, shape[1] < FEW), Effects(*shape, most, shape[1] < FEW))
            for number, shape in shapes.items()
        }
        self._errors = {number: self._drawn(item, plans.get(number), number) for number, item in linear.items()}
        self.uses: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        self.beside: dict[tuple[str, ...], list[str]] = {}
        for number, item in linear.items():
            for index, (entering, leaving) in enumerate(item.products):
                self.uses.setdefault(leaving.operation, []).append((number, index))
                self.beside.setdefault(leaving.operation, []).append(entering.tensor)
        self._waiting: dict[tuple[int, int], Floats] = {}  # of layers with several products: their sum so far
        self._left: dict[tuple[int, int], int] = {}

    def found(self, operation: Operation, run: int, values: Mapping[str, Floats], gradients: Gradients) -> None:
        """Take in the gradients at the products of an operation."""
        gates: tuple[Floats, Floats] | None = None
        for number, index in self.uses[operation.outputs]:
            entering, leaving = self._linear[number].products[index]
            gradient = gradients[0]
            if isinstance(leaving, GateOutput):
                if gates is None:
                    inputs = [values[name] if name else None for name in operation.inputs]
                    gates = gate_gradients(operation, inputs, gradients)
                gradient = gates[leaving.of_state]
            assert gradient is not None  # of the only output
            first = run * _ERRORS % _DRAWN
            errors = self._errors[number][:, :, first : first + _ERRORS]
            self._add(number, run, effects(entering, leaving, values[entering.tensor], gradient, errors))

    def _add(self, number: int, run: int, found: Floats) -> None:
        count = len(self._linear[number].products)
        if count > 1:
            key = number, run
            self._waiting[key] = self._waiting[key] + found if key in self._waiting else found
            self._left[key] = self._left.get(key, count) - 1
            if self._left[key]:
                return
            del self._left[key]  # there may be more probes of the same run
            found = self._waiting.pop(key)
        self.halves[number][run in self._second].add(found)

    @staticmethod
    def _drawn(item: Linear, plan: Plan | None, seed: int) -> Floats:
        """Random errors of a row of weights, f32[groups, columns, errors], as its compensation leaves them."""
        groups, _, columns = item.matrix.shape
        if item.is_table:
            columns = min(columns, _ENTRIES)
        errors = np.random.default_rng(seed).standard_normal((groups, columns, _DRAWN), np.float32)
        if plan is not None:
            widths = np.exp2(plan.columns / np.float32(4))
            for factor in plan.factors:
                part = slice(factor.begin, factor.end)
                errors[:, part] *= (widths[:, part] / factor.diagonal)[..., None]
                errors[:, part] = factor.upper.swapaxes(1, 2) @ errors[:, part]
        return errors
