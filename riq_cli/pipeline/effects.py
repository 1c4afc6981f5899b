"""Samples → plans in which the rows of layers are told apart by what their errors do to the outputs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor

import numpy as np

from riq_cli.errors import ModelError
from riq_cli.model import Linear
from riq_cli.pipeline.importance import FEW, Halves, with_importance
from riq_cli.pipeline.plans import Plan
from riq_cli.pipeline.product_gradients import LEAST, LEAST_SAMPLES, ProductGradients
from riq_cli.pipeline.weights import Plans, Weights, Widths
from riq_cli.statistics.autodiff import Array, Effects, Floats, effects

_ERRORS = 16  # of a layer's weights in each sample
_DRAWN = 8 * _ERRORS  # errors of a layer in all
_DRAWN_LEAN = 2 * _ERRORS  # … beside a large model
_ENTRIES = 4096  # of a table, whose errors are drawn: as many as a sample's indices are likely to tell apart
_SPREADS = (1024, 512, 256)  # rows whose errors spread among each other
_VARIED_PROBES = 4  # directions of the output in each variation of a sample: there are many of them
_BYTES = 0.5  # bytes of second moments, at most, for each byte of weights
_FEW = 1 << 27  # bytes of them that are always granted


def with_effects(
    gradients: ProductGradients,
    linear: Mapping[int, Linear],
    plans: Plans,
    widths: Widths,
    pool: Executor,
    progress: Callable[[int, int], None],
    before: Plans | None = None,
    varied: ProductGradients | None = None,
) -> dict[int, Plan]:
    """The plans, and more, with rows told apart where that pays.

    Args:
        gradients: at the products of layers.
        linear: layers that multiply activations.
        plans: how errors are compensated along rows.
        widths: about the bin widths that layers will have.
        pool: its threads work at the same time.
        progress: called with steps through the model done, and their number in all.
        before: plans fitted to fewer samples: only layers whose rows they tell apart are told apart again.
        varied: the same of variations of the samples.

    Raises:
        ModelError: onnxruntime cannot run the model so that its inner tensors are seen.
    """
    weights = gradients.weights
    chosen = {
        number: item
        for number, item in linear.items()
        if weights.may_part
        and widths[number] is not None
        and item.matrix.row_axes is not None
        and math.prod(item.matrix.shape[:2]) >= FEW
        and weights.sizes[number] >= LEAST
        and (before is None or (number in before and before[number].importance is not None))
    }
    if not chosen or sum(gradients.rows) < LEAST_SAMPLES:
        return dict(plans)
    drawn = _DRAWN_LEAN if gradients.observer.is_lean else _DRAWN
    most = _most(weights, chosen, 1 if varied is None else 2)
    halves = _effects(gradients, chosen, plans, most, drawn, progress)
    more: dict[int, Halves] = {}
    if varied is not None and (before is None or any(before[number].rows_varied for number in chosen)):
        with contextlib.suppress(ModelError):  # the model may not take what was made of its samples
            more = _effects(varied, chosen, plans, most, drawn, progress, _VARIED_PROBES)

    def fit(number: int) -> Plan | None:
        if number not in halves:
            return None
        plan = plans.get(number) or Plan.of(chosen[number].matrix)
        width = widths[number]
        assert width is not None
        earlier, others = None if before is None else before[number], more.pop(number, None)
        told = with_importance(
            plan, weights.layers[number], width, halves.pop(number), earlier, others, weights.without
        )
        if gradients.observer.is_lean:
            weights.release()
        return told

    found = zip(chosen, pool.map(fit, chosen), strict=True)
    return dict(plans) | {number: plan for number, plan in found if plan is not None}


def _effects(
    gradients: ProductGradients,
    linear: Mapping[int, Linear],
    plans: Plans,
    most: int,
    drawn: int,
    progress: Callable[[int, int], None],
    probes: int | None = None,
) -> dict[int, Halves]:
    """Effects of errors of the rows of layers, on both halves of the samples, where they are known."""
    collected = _Collected(linear, plans, gradients.halves[1], most, drawn)
    known = gradients.run(linear, collected.found, progress, probes)
    return {number: halves for number, halves in collected.halves.items() if number in known}


def _most(weights: Weights, linear: Mapping[int, Linear], times: int) -> int:
    """Rows whose errors spread among each other, such that their moments, so many times, suit the weights' size."""
    shapes = [item.matrix.shape for item in linear.values()]
    nbytes = sum(weights.layers[number].values.nbytes for number in linear)
    bound = max(_BYTES * nbytes, _FEW - _BYTES * nbytes)
    for most in _SPREADS:
        if times * sum(2 * 4 * groups * rows * min(rows, most) for groups, rows, _ in shapes) <= bound:
            break
    return most


class _Collected:
    """Effects of all layers, as they come in."""

    def __init__(
        self, linear: Mapping[int, Linear], plans: Plans, second: Sequence[int], most: int, drawn: int
    ) -> None:
        self._linear, self._second, self._count = linear, frozenset(second), drawn
        shapes = {number: item.matrix.shape[:2] for number, item in linear.items()}
        self.halves: dict[int, Halves] = {
            number: (Effects(*shape, most, shape[1] < FEW), Effects(*shape, most, shape[1] < FEW))
            for number, shape in shapes.items()
        }
        self._errors = {number: self._drawn(item, plans.get(number), number, drawn) for number, item in linear.items()}
        self._waiting: dict[tuple[int, int], Floats] = {}  # of layers with several products: their sum so far
        self._left: dict[tuple[int, int], int] = {}

    def found(self, number: int, index: int, run: int, value: Array | None, gradient: Floats) -> None:
        """Take in the gradients at a product of a layer, and what enters it."""
        assert value is not None
        entering, leaving = self._linear[number].products[index]
        first = run * _ERRORS % self._count
        errors = self._errors[number][:, :, first : first + _ERRORS]
        self._add(number, run, effects(entering, leaving, value, gradient, errors))

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
    def _drawn(item: Linear, plan: Plan | None, seed: int, count: int) -> Floats:
        """Random errors of a row of weights, f32[groups, columns, errors], as its compensation leaves them."""
        groups, _, columns = item.matrix.shape
        if item.is_table:
            columns = min(columns, _ENTRIES)
        errors = np.random.default_rng(seed).standard_normal((groups, columns, count), np.float32)
        if plan is not None:
            widths = np.exp2(plan.columns / np.float32(4))
            for factor in plan.factors:
                part = slice(factor.begin, factor.end)
                errors[:, part] *= (widths[:, part] / factor.diagonal)[..., None]
                errors[:, part] = factor.upper.swapaxes(1, 2) @ errors[:, part]
        return errors
