"""Samples → plans of layers: statistics are taken and handed to the stages in order, in bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import repeat

import numpy as np

from riq_cli.calibration import Sample, augmented
from riq_cli.errors import ModelError
from riq_cli.executors import Workers, begun, ordered
from riq_cli.memory import give_back_mapped_memory
from riq_cli.model import Linear
from riq_cli.model.tensors import computable
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
from riq_cli.statistics.fisher import ERRORS, Fisher, Take, collect_fisher, deviations, error_products
from riq_cli.statistics.gradients import LEAST, Observed, Squares, position_weights, squared_gradients

LEAST_SAMPLES = 8  # for gradients: two that judge two others know next to nothing of how samples differ
_MOMENTS = 1 << 26  # bytes of second moments that are held at a time
_SHARE = 16  # … or a byte for so many of weights, where that is more: the model is run for each time
_BLOCKS = (2048, 1024, 512)  # columns among which errors are fed forward
_FACTORS = 0.75  # bytes of factors, at most, for each byte of weights
_ROW_BLOCKS = (1024, 512, 256)  # rows among which errors are fed forward
_ROW_MOMENTS = 0.5  # bytes of their second moments, at most, for each byte of weights
_FEW = 1 << 27  # bytes of factors, and of moments, that are always granted
_DRAWN = 8 * ERRORS  # random errors of a row of a layer in all
_DRAWN_LEAN = 2 * ERRORS  # … of a large model
_ENTRIES = 4096  # of a table, whose errors are drawn: as many as a sample's indices are likely to address


Halves = dict[int, tuple[Fisher, Fisher]]  # of the samples, by the number of the layer
FedColumns = tuple[Integers, tuple[Factor | PackedFactor, ...], Float64 | None]  # codes, factors, means
FedRows = tuple[Integers, tuple[RowFactor, ...]]  # codes, factors


@dataclass(frozen=True)
class Fit:
    """What plans are fitted with.

    Attributes:
        weights: all layers that may be coded.
        linear: those that multiply activations, and tables.
        samples: the model, and samples to fit to in two halves.
        effort: how much work goes into it.
        pool: its threads work at the same time.
        workers: take statistics and fit; None: this process does.
        tell: called at every step.
        warn: called if gradients cannot be taken.
        checkpoint: keeps what is fitted.
    """

    weights: Weights
    linear: Mapping[int, Linear]
    samples: Observed
    effort: Effort
    pool: Executor
    workers: Workers | None
    tell: Report
    warn: Warn
    checkpoint: Checkpoint

    def plans(self, widths: Widths) -> Plans:
        """Plans by the number of the layer, for those layers that are not just rounded to the nearest.

        Args:
            widths: about the bin widths that layers will have.
        """
        with_gradients = self.takes_gradients
        weights: moments.Weights = {}
        if with_gradients and not self.samples.lean:
            try:
                weights = self.checkpoint.step("position weights", lambda: self._position_weights(list(self.linear)))
            except ModelError as error:
                with_gradients = False
                self.warn(f"gradients cannot be taken, so all rows and positions count the same: {error}")
        plans: dict[int, LayerPlan] = {}
        if "gptq" not in self.weights.without:
            plans = self._fed_along_columns(widths, weights)
        if with_gradients:
            plans |= self._fed_along_rows(plans, widths)
        return plans

    @property
    def takes_gradients(self) -> bool:
        """Whether gradients of the outputs are taken."""
        rows = sum(sample.rows for sample in self.samples.samples)
        return self.effort.gradients and "gradients" not in self.weights.without and rows >= LEAST_SAMPLES

    @cached_property
    def varied(self) -> Observed | None:
        """Variations of the samples of each half; None beside a large model, where there is no room for them."""
        if self.samples.lean or not self.effort.augmentation or "augmentation" in self.weights.without:
            return None
        first, second = (augmented(half, self.effort.augmentation) for half in self.samples.halves)
        return replace(self.samples, halves=(first, second)) if first and second else None

    def observed(self, varied: bool) -> Observed:
        """The samples, or their variations."""
        found = self.varied if varied else self.samples
        assert found is not None
        return found

    # ---- positions ----

    def _position_weights(self, numbers: Sequence[int], varied: bool = False) -> moments.Weights:
        """What positions of products of some layers count for."""
        observed, squares = self.observed(varied), Squares()
        parts = self._parts(observed)
        found = ordered(self.workers, self.squared_gradients, repeat(varied), repeat(numbers), parts)
        for done, part in enumerate(found, 1):
            squares |= part
            if self.workers is not None:  # here, `squared_gradients` tells of each run
                self._tick(done, len(parts))
        return position_weights({n: self.linear[n] for n in numbers}, squares, len(observed.samples))

    def squared_gradients(self, varied: bool, numbers: Sequence[int], runs: Sequence[int]) -> Squares:
        """Squared gradients of some runs at positions of products; see `gradients.squared_gradients`."""
        linear, probes = {number: self.linear[number] for number in numbers}, 1 if varied else self.effort.probes
        return squared_gradients(self.observed(varied), linear, self._tick, probes, runs)

    def _parts(self, observed: Observed) -> list[range]:
        """Numbers of the runs, a part for each worker."""
        runs = len(observed.samples)
        parts = 1 if self.workers is None else min(self.workers.count, runs)
        return [range(begin, end) for begin, end in moments.bounds_of(runs, parts)]

    # ---- along columns ----

    def _fed_along_columns(self, widths: Widths, weights: moments.Weights) -> dict[int, LayerPlan]:
        """Plans of the layers whose errors are fed forward along columns."""
        chosen = {n: item for n, item in self.linear.items() if widths[n] is not None and not item.is_table}
        nbytes = sum(self.weights.layers[number].values.nbytes for number in chosen)
        block, most = _block(chosen, nbytes), max(_MOMENTS, nbytes // _SHARE)
        more: moments.Weights = {}
        if self.varied is not None and weights:
            with contextlib.suppress(ModelError):  # the model does not take what was made of its samples
                more = self.checkpoint.step(
                    "position weights of variations", lambda: self._position_weights(list(chosen), varied=True)
                )
        batches = [list(batch) for batch in _batches(chosen, block, weights, 1 if self.varied is None else 2, most)]
        missing = [batch for batch in batches if not all(self.checkpoint.has(f"columns {n}") for n in batch)]
        given = [(_of_products(chosen, batch, weights), _of_products(chosen, batch, more)) for batch in missing]
        found = begun(self.workers, self.fed_along_columns, missing, repeat(block), repeat(widths), given)
        plans: dict[int, LayerPlan] = {}

        def fitted(batch: Sequence[int]) -> Iterator[FedColumns]:
            start = next(found) if batch in missing else None

            @cache
            def fit() -> list[FedColumns]:
                assert start is not None, "the checkpoint holds all layers of other batches"
                return start()

            def one(index: int) -> FedColumns:
                return fit()[index]

            for index, number in enumerate(batch):
                yield self.checkpoint.step(f"columns {number}", partial(one, index))

        done = 0
        for batch in batches:
            for number, (columns, factors, mean) in zip(batch, fitted(batch), strict=True):
                if factors:
                    plan = replace(self._unfed(number), columns=columns, factors=factors, mean=mean)
                    plans[number] = plan.kept(self.weights.keep)
                done += 1
                self.tell(Progress("statistics", done, len(chosen)))
        return plans

    def fed_along_columns(
        self, numbers: Sequence[int], block: int, widths: Widths, weights: tuple[moments.Weights, moments.Weights]
    ) -> list[FedColumns]:
        """Codes and factors of columns, and means, of some layers whose moments fit into memory together.

        Args:
            numbers: of the layers.
            block: columns of a block of their moments, at most.
            widths: about the bin widths of all layers.
            weights: what positions count for, in the samples and in their variations.
        """
        linear = {number: self.linear[number] for number in numbers}
        halves = self._moments(self.samples, linear, weights[0], block)
        others: dict[int, moments.Halves] = {}
        if self.varied is not None:
            with contextlib.suppress(ModelError):  # the model does not take what was made of its samples
                others = self._moments(self.varied, linear, weights[1], block)
        give_back_mapped_memory()

        def fit(number: int) -> FedColumns:
            width, layer, without = widths[number], self.weights.layers[number], self.weights.without
            assert width is not None
            plan = stages.feed_columns(self._unfed(number), layer, halves[number], others.get(number), width, without)
            give_back_mapped_memory()
            return plan.columns, plan.factors, plan.mean

        return list(self.pool.map(fit, numbers))

    def _unfed(self, number: int) -> LayerPlan:
        """The plan of a layer before any errors are fed forward."""
        layer, item = self.weights.layers[number], self.linear[number]
        return replace(LayerPlan.of(layer, item.matrix), bias=item.bias, most=self.weights.most)

    @staticmethod
    def _moments(
        observed: Observed, linear: Mapping[int, Linear], weights: moments.Weights, block: int
    ) -> dict[int, moments.Halves]:
        activations = observed.observer.activations(moments.inputs_of(linear))
        return moments.collect(linear, activations, len(observed.samples), observed.second, weights, block)

    # ---- along rows ----

    def _fed_along_rows(self, plans: Plans, widths: Widths) -> dict[int, LayerPlan]:
        """Plans of the layers whose errors are fed forward along rows too."""
        sizes = self.weights.sizes
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
            given = {number: plans.get(number) for number in chosen}
            try:
                halves = self._fisher(given)
            except ModelError as error:
                self.warn(f"gradients cannot be taken, so all rows count the same: {error}")
                return {}
            if self.varied is not None:
                with contextlib.suppress(ModelError):  # the model does not take what was made of its samples
                    others = self._fisher(given, varied=True)
        before = {number: plans.get(number) or replace(self._unfed(number), bias=None) for number in chosen}
        found = self.checkpoint.mapped(
            "rows", self.workers or self.pool, self.fed_along_rows, chosen, before.values(),
            (halves.pop(number, None) for number in chosen), (others.pop(number, None) for number in chosen),
            (widths[number] for number in chosen),
        )  # fmt: skip
        fitted: dict[int, LayerPlan] = {}
        for done, (number, (rows, factors)) in enumerate(zip(chosen, found, strict=True), 1):
            kept = tuple(factor.kept(self.weights.keep) for factor in factors)
            plan = replace(before[number], rows=rows, row_factors=kept)
            if not plan.is_elementwise or plan.rows.any():
                fitted[number] = plan
            self.tell(Progress("rows", done, len(chosen)))
        return fitted

    def fed_along_rows(
        self,
        number: int,
        plan: LayerPlan,
        halves: tuple[Fisher, Fisher] | None,
        others: tuple[Fisher, Fisher] | None,
        width: float,
    ) -> FedRows:
        """Codes and factors of a layer's rows, where their gradients are known; see `stages.feed_rows`."""
        if halves is not None:
            plan = stages.feed_rows(plan, self.weights.layers[number], halves, others, width, self.weights.without)
            give_back_mapped_memory()
        return plan.rows, plan.row_factors

    def _fisher(self, plans: Mapping[int, LayerPlan | None], varied: bool = False) -> Halves:
        """Second moments of gradients at the rows of layers with such plans, where they are known.

        Raises:
            ModelError: the model does not take the samples in a form that shows its inner tensors.
        """
        linear, observed = {number: self.linear[number] for number in plans}, self.observed(varied)

        def products(take: Take) -> set[int]:
            if self.workers is None:
                return self.error_products(varied, plans, range(len(observed.samples)), take)
            known = set(linear)
            parts = self._parts(observed)
            found = ordered(self.workers, self.listed_products, repeat(varied), repeat(plans), parts)
            for done, (some, reached) in enumerate(found, 1):
                for one in some:
                    take(*one)
                known &= reached
                self._tick(done, len(parts))
            return known

        most = self._most(linear, 1 if self.varied is None else 2)
        return collect_fisher(observed, linear, most, stages.FEW, products)

    def listed_products(
        self, varied: bool, plans: Mapping[int, LayerPlan | None], runs: Sequence[int]
    ) -> tuple[list[tuple[int, int, Floats]], set[int]]:
        """What `error_products` calls `take` with, and what it returns."""
        found: list[tuple[int, int, Floats]] = []
        known = self.error_products(varied, plans, runs, lambda *one: found.append(one))
        return found, known

    def error_products(
        self, varied: bool, plans: Mapping[int, LayerPlan | None], runs: Sequence[int], take: Take
    ) -> set[int]:
        """Products of the gradients of some runs with errors that plans leave; see `fisher.error_products`."""
        linear = {number: self.linear[number] for number in plans}
        errors = {number: self._errors(plan, number) for number, plan in plans.items()}
        probes = max(1, self.effort.probes // 4) if varied else self.effort.probes
        return error_products(self.observed(varied), linear, errors, self._tick, probes, runs, take)

    def deviations(self, plans: Plans, restored: Sequence[Floats], samples: Sequence[Sample]) -> dict[int, float]:
        """About the deviation that each layer causes alone on some samples, where gradients tell; see `fisher`.

        Args:
            plans: of layers.
            restored: the weights of all layers, each rounded by its plan.
            samples: to take gradients on.
        """

        def change(number: int) -> tuple[Floats, Floats | float]:
            layer, matrix, plan = self.weights.layers[number], self.linear[number].matrix, plans.get(number)
            pair = (computable(values, layer.dtype) for values in (restored[number], layer.values))
            weights = matrix.view(np.subtract(*pair, dtype=np.float32)).swapaxes(1, 2)
            if plan is None or plan.bias is None:
                return weights, 0.0
            return weights, plan.shift(layer, restored[number]).reshape(len(weights), 1, -1).astype(np.float32)

        observed = replace(self.samples, halves=(samples, ()))
        return deviations(observed, self.linear, change, self._tick, self.effort.probes)

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


def _of_products(linear: Mapping[int, Linear], numbers: Sequence[int], weights: moments.Weights) -> moments.Weights:
    """The weights of the positions of some layers' products."""
    products = [leaving for number in numbers for _, leaving in linear[number].products]
    return {leaving: weights[leaving] for leaving in products if leaving in weights}


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
    linear: Mapping[int, Linear], block: int, weights: moments.Weights, times: int, most: int
) -> Iterator[dict[int, Linear]]:
    """The layers in runs whose moments, so many times, take no more than `most` bytes together."""
    batch: dict[int, Linear] = {}
    for number, item in linear.items():
        if batch and times * moments.nbytes({**batch, number: item}, block, weights) > most:
            yield batch
            batch = {}
        batch[number] = item
    if batch:
        yield batch
