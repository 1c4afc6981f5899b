"""Samples → plans of layers: statistics are taken and handed to the stages in order, in bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from riq_cli.calibration import augmented
from riq_cli.errors import ModelError
from riq_cli.model import Linear
from riq_cli.pipeline.checkpoint import Checkpoint
from riq_cli.pipeline.progress import Progress, Report, Warn
from riq_cli.pipeline.settings import Effort
from riq_cli.pipeline.weights import Plans, Weights, Widths
from riq_cli.quantize import stages
from riq_cli.quantize.factor import Factor, Integers, PackedFactor
from riq_cli.quantize.plan import Float64, LayerPlan
from riq_cli.quantize.rows import RowFactor
from riq_cli.statistics import moments
from riq_cli.statistics.autodiff import Floats
from riq_cli.statistics.fisher import ERRORS, Fisher, collect_fisher
from riq_cli.statistics.gradients import LEAST, Observed, position_weights

LEAST_SAMPLES = 8  # for gradients: two that judge two others know next to nothing of how samples differ
_MOMENTS = 1 << 26  # bytes of second moments that are held at a time
_BLOCKS = (2048, 1024, 512)  # columns among which errors are fed forward
_FACTORS = 0.75  # bytes of factors, at most, for each byte of weights
_ROW_BLOCKS = (1024, 512, 256)  # rows among which errors are fed forward
_ROW_MOMENTS = 0.5  # bytes of their second moments, at most, for each byte of weights
_FEW = 1 << 27  # bytes of factors, and of moments, that are always granted
_DRAWN = 8 * ERRORS  # random errors of a row of a layer in all
_DRAWN_LEAN = 2 * ERRORS  # … of a large model
_ENTRIES = 4096  # of a table, whose errors are drawn: as many as a sample's indices are likely to address

Halves = dict[int, tuple[Fisher, Fisher]]  # of the samples, by the number of the layer


@dataclass(frozen=True)
class Fit:
    """What plans are fitted with.

    Attributes:
        weights: all layers that may be coded.
        linear: those that multiply activations, and tables.
        samples: the model, and samples to fit to in two halves.
        effort: how much work goes into it.
        pool: its threads work at the same time.
        tell: called at every step.
        warn: called if gradients cannot be taken.
        checkpoint: keeps what is fitted.
    """

    weights: Weights
    linear: Mapping[int, Linear]
    samples: Observed
    effort: Effort
    pool: Executor
    tell: Report
    warn: Warn
    checkpoint: Checkpoint

    def plans(self, widths: Widths) -> Plans:
        """Plans by the number of the layer, for those layers that are not just rounded to the nearest.

        Args:
            widths: about the bin widths that layers will have.
        """
        without, varied = self.weights.without, self._varied()
        with_gradients = self.takes_gradients
        weights: moments.Weights = {}
        if with_gradients and not self.samples.lean:
            try:
                weights = self.checkpoint.step(
                    "position weights",
                    lambda: position_weights(self.samples, self.linear, self._tick, self.effort.probes),
                )
            except ModelError as error:
                with_gradients = False
                self.warn(f"gradients cannot be taken, so all rows and positions count the same: {error}")
        plans: dict[int, LayerPlan] = {}
        if "gptq" not in without:
            plans = self._fed_along_columns(widths, weights, varied)
        if with_gradients:
            plans |= self._fed_along_rows(plans, widths, varied)
        return plans

    @property
    def takes_gradients(self) -> bool:
        """Whether gradients of the outputs are taken."""
        rows = sum(sample.rows for sample in self.samples.samples)
        return self.effort.gradients and "gradients" not in self.weights.without and rows >= LEAST_SAMPLES

    def _varied(self) -> Observed | None:
        """Variations of the samples of each half; None beside a large model, where there is no room for them."""
        if self.samples.lean or not self.effort.augmentation or "augmentation" in self.weights.without:
            return None
        first, second = (augmented(half, self.effort.augmentation) for half in self.samples.halves)
        return replace(self.samples, halves=(first, second)) if first and second else None

    # ---- along columns ----

    def _fed_along_columns(
        self, widths: Widths, weights: moments.Weights, varied: Observed | None
    ) -> dict[int, LayerPlan]:
        """Plans of the layers whose errors are fed forward along columns."""
        layers, without = self.weights.layers, self.weights.without
        chosen = {n: item for n, item in self.linear.items() if widths[n] is not None and not item.is_table}
        block = _block(chosen, sum(layers[number].values.nbytes for number in chosen))
        more: moments.Weights = {}
        if varied is not None and weights:
            with contextlib.suppress(ModelError):  # the model does not take what was made of its samples
                more = self.checkpoint.step(
                    "position weights of variations", partial(position_weights, varied, chosen, self._tick, 1)
                )
        plans: dict[int, LayerPlan] = {}
        done = 0

        def fit(number: int) -> LayerPlan:
            width, layer, item = widths[number], layers[number], chosen[number]
            assert width is not None
            plan = replace(LayerPlan.of(layer, item.matrix), bias=item.bias, most=self.weights.most)

            def fitted() -> tuple[Integers, tuple[Factor | PackedFactor, ...], Float64 | None]:
                found = stages.feed_columns(plan, layer, halves[number], others.get(number), width, without)
                return found.columns, found.factors, found.mean

            columns, factors, mean = self.checkpoint.step(f"columns {number}", fitted)
            self.weights.release()
            return replace(plan, columns=columns, factors=factors, mean=mean).kept(self.weights.keep)

        for batch in _batches(chosen, block, weights, 1 if varied is None else 2):
            halves, others = {}, {}
            if not all(self.checkpoint.has(f"columns {number}") for number in batch):
                halves = self._moments(self.samples, batch, weights, block)
                try:
                    others = {} if varied is None else self._moments(varied, batch, more, block)
                except ModelError:  # the model does not take what was made of its samples
                    varied = None
            self.weights.release()
            for number, plan in zip(batch, self.pool.map(fit, batch), strict=True):
                if plan.factors:
                    plans[number] = plan
                done += 1
                self.tell(Progress("statistics", done, len(chosen)))
            halves.clear()  # or they would stay until those of the next layers are complete
            others.clear()
        return plans

    @staticmethod
    def _moments(
        observed: Observed, linear: Mapping[int, Linear], weights: moments.Weights, block: int
    ) -> dict[int, moments.Halves]:
        activations = observed.observer.activations(moments.inputs_of(linear))
        return moments.collect(linear, activations, len(observed.samples), observed.second, weights, block)

    # ---- along rows ----

    def _fed_along_rows(self, plans: Plans, widths: Widths, varied: Observed | None) -> dict[int, LayerPlan]:
        """Plans of the layers whose errors are fed forward along rows too."""
        layers, sizes, without = self.weights.layers, self.weights.sizes, self.weights.without
        chosen = {
            number: item
            for number, item in self.linear.items()
            if widths[number] is not None
            and item.matrix.row_axes is not None
            and item.matrix.shape[0] * item.matrix.shape[1] >= stages.FEW
            and sizes[number] >= LEAST
        }
        if not chosen:
            return {}
        halves: Halves = {}
        others: Halves = {}
        if not all(self.checkpoint.has(f"rows {number}") for number in chosen):
            try:
                halves, others = self._fisher(chosen, plans, varied)
            except ModelError as error:
                self.warn(f"gradients cannot be taken, so all rows count the same: {error}")
                return {}

        def fit(number: int) -> LayerPlan:
            width, layer = widths[number], layers[number]
            assert width is not None
            plan = plans.get(number) or replace(LayerPlan.of(layer, chosen[number].matrix), most=self.weights.most)

            def fitted() -> tuple[Integers, tuple[RowFactor, ...]]:
                if number not in halves:  # its gradients are not known
                    return plan.rows, plan.row_factors
                found = stages.feed_rows(plan, layer, halves.pop(number), others.pop(number, None), width, without)
                return found.rows, found.row_factors

            rows, factors = self.checkpoint.step(f"rows {number}", fitted)
            self.weights.release()
            return replace(plan, rows=rows, row_factors=tuple(factor.kept(self.weights.keep) for factor in factors))

        fitted: dict[int, LayerPlan] = {}
        for done, (number, plan) in enumerate(zip(chosen, self.pool.map(fit, chosen), strict=True), 1):
            if not plan.is_elementwise or plan.rows.any():
                fitted[number] = plan
            self.tell(Progress("rows", done, len(chosen)))
        return fitted

    def _fisher(self, linear: Mapping[int, Linear], plans: Plans, varied: Observed | None) -> tuple[Halves, Halves]:
        """Second moments of gradients at the rows of layers where they are known: of the samples, and of variations.

        Raises:
            ModelError: the model does not take the samples in a form that shows its inner tensors.
        """
        errors = {number: self._errors(plans.get(number), number) for number in linear}
        most = self._most(linear, 1 if varied is None else 2)

        def collected(observed: Observed, probes: int) -> Halves:
            return collect_fisher(observed, linear, errors, most, stages.FEW, self._tick, probes)

        found, others = collected(self.samples, self.effort.probes), {}
        if varied is not None:
            with contextlib.suppress(ModelError):  # the model does not take what was made of its samples
                others = collected(varied, max(1, self.effort.probes // 4))
        return found, others

    def _errors(self, plan: LayerPlan | None, number: int) -> Floats:
        """Random errors of a row of weights as GPTQ leaves them, f32[groups, columns, errors]."""
        item = self.linear[number]
        groups, _, columns = item.matrix.shape
        if item.is_table:
            columns = min(columns, _ENTRIES)
        drawn = _DRAWN_LEAN if self.samples.lean else _DRAWN
        errors = np.random.default_rng(number).standard_normal((groups, columns, drawn), np.float32)
        if plan is not None:
            widths = np.exp2(plan.columns / np.float32(4))
            for factor in plan.factors:
                part = slice(factor.begin, factor.end)
                errors[:, part] *= (widths[:, part] / factor.diagonal)[..., None]
                errors[:, part] = factor.whole().upper.swapaxes(1, 2) @ errors[:, part]
        return errors

    def _most(self, linear: Mapping[int, Linear], times: int) -> int:
        """Rows of a block such that so many times their moments stay in proportion to the weights."""
        shapes = [item.matrix.shape for item in linear.values()]
        nbytes = _ROW_MOMENTS * sum(self.weights.layers[number].values.nbytes for number in linear)

        def of_moments(most: int) -> int:
            return times * sum(2 * 4 * groups * rows * min(rows, most) for groups, rows, _ in shapes)

        return _first_within(_ROW_BLOCKS, of_moments, max(nbytes, _FEW - nbytes))

    def _tick(self, done: int, total: int) -> None:
        self.tell(Progress("gradients", done, total))


def _block(linear: Mapping[int, Linear], nbytes: int) -> int:
    """Columns of a block such that the factors of all layers together stay in proportion to the weights."""
    shapes = [item.matrix.shape for item in linear.values()]

    def of_factors(block: int) -> int:
        return sum(4 * groups * columns * min(columns, block) for groups, _, columns in shapes)

    return _first_within(_BLOCKS, of_factors, max(_FACTORS * nbytes, _FEW))


def _first_within(lengths: Sequence[int], nbytes: Callable[[int], int], bound: float) -> int:
    """The first length of a block that takes no more bytes than a bound; the last if none does."""
    return next((length for length in lengths if nbytes(length) <= bound), lengths[-1])


def _batches(
    linear: Mapping[int, Linear], block: int, weights: moments.Weights, times: int
) -> Iterator[dict[int, Linear]]:
    """The layers in runs whose moments, so many times, fit into memory together."""
    batch: dict[int, Linear] = {}
    for number, item in linear.items():
        if batch and times * moments.nbytes({**batch, number: item}, block, weights) > _MOMENTS:
            yield batch
            batch = {}
        batch[number] = item
    if batch:
        yield batch
