"""Samples → plans of error-compensated rounding for all layers that multiply activations, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Literal

from riq_cli import moments
from riq_cli.codec.damping import fitted
from riq_cli.codec.effects import with_effects
from riq_cli.codec.plans import Plan
from riq_cli.codec.product_gradients import LEAST_SAMPLES, ProductGradients
from riq_cli.codec.settings import Warn
from riq_cli.codec.shares import position_shares
from riq_cli.codec.weights import Plans, Weights, Widths
from riq_cli.errors import ModelError
from riq_cli.evaluator import Observer
from riq_cli.model import Linear

_MOMENTS = 1 << 26  # bytes of second moments that are held at a time
_BLOCKS = (2048, 1024, 512)  # columns whose errors compensate each other
_FACTORS = 0.75  # bytes of factors, at most, for each byte of weights
_FEW = 1 << 27  # bytes of factors that are always granted

Phase = Literal["fit", "gradients"]


def plans_of(
    gradients: ProductGradients,
    linear: Mapping[int, Linear],
    halves: tuple[Sequence[int], Sequence[int]],
    widths: Widths,
    pool: Executor,
    progress: Callable[[Phase, int, int], None],
    warn: Warn,
    before: Plans | None = None,
) -> dict[int, Plan]:
    """Plans by the number of the layer, for those layers where they do better than nearest rounding.

    Args:
        gradients: at the products of layers.
        linear: those that multiply activations, and tables.
        halves: numbers of the runs, in two halves that judge each other.
        widths: about the bin widths that layers will have.
        pool: its threads work at the same time.
        progress: called with what is done, steps of it, and their number in all.
        warn: called if gradients cannot be taken.
        before: plans fitted to fewer samples: what they do without is done without again.
    """
    told, fit = partial(progress, "gradients"), partial(progress, "fit")
    shares: moments.Shares | None = {}
    # Several kinds of moments take as many times the memory.
    if not gradients.observer.is_lean and sum(gradients.rows) >= LEAST_SAMPLES:
        try:
            shares = position_shares(gradients, linear, told)
        except ModelError as error:
            shares = None
            warn(f"gradients cannot be taken, so nothing is told apart by them: {error}")
    plans = fitted_plans(gradients.weights, linear, gradients.observer, halves, widths, pool, fit, shares, before)
    if shares is None:
        return plans
    try:
        return with_effects(gradients, linear, plans, halves[1], widths, pool, told, before)
    except ModelError as error:
        warn(f"gradients cannot be taken, so rows are not told apart by them: {error}")
        return plans


def fitted_plans(
    weights: Weights,
    linear: Mapping[int, Linear],
    observer: Observer,
    halves: tuple[Sequence[int], Sequence[int]],
    widths: Widths,
    pool: Executor,
    progress: Callable[[int, int], None],
    shares: moments.Shares | None = None,
    before: Plans | None = None,
) -> dict[int, Plan]:
    """Plans by the number of the layer, for those layers where compensation does better than nearest rounding.

    Args:
        weights: all layers that may be coded.
        linear: those that multiply activations.
        observer: shows the activations.
        halves: numbers of its samples, in two halves that judge each other.
        widths: about the bin widths that layers will have.
        pool: its threads work at the same time.
        progress: called with layers done and layers in all.
        shares: how much the positions of products matter, by the samples of the observer, where that is known.
        before: plans fitted to fewer samples: only layers that they compensate are compensated again.
    """
    fit_for = {
        number: item
        for number, item in linear.items()
        if widths[number] is not None
        and not item.is_table
        and (before is None or (number in before and before[number].factors))
    }
    block = _block(fit_for, sum(weights.layers[number].values.nbytes for number in fit_for))
    plans: dict[int, Plan] = {}
    done, samples = 0, sum(map(len, halves))

    def fit(number: int) -> Plan | None:
        width = widths[number]
        assert width is not None
        earlier = None if before is None else before[number]
        alike, shared = found[number]
        plan = fitted(weights.layers[number], fit_for[number], alike, width, earlier, shared)
        weights.release()
        return plan

    for batch in _batches(fit_for, block, shares):
        tensors = moments.inputs_of(batch)
        found = moments.collect(batch, observer.activations(tensors), samples, halves[1], block=block, shares=shares)
        weights.release()
        for number, plan in zip(batch, pool.map(fit, batch), strict=True):
            if plan is not None:
                plans[number] = plan
            done += 1
            progress(done, len(fit_for))
        found.clear()  # or they would stay until those of the next layers are complete
    return plans


def _block(linear: Mapping[int, Linear], nbytes: int) -> int:
    """Columns of a block such that the factors of all layers together stay in proportion to the weights."""
    shapes = [item.matrix.shape for item in linear.values()]
    for block in _BLOCKS:
        if sum(4 * groups * columns * min(columns, block) for groups, _, columns in shapes) <= max(
            _FACTORS * nbytes, _FEW
        ):
            break
    return block


def _batches(
    linear: Mapping[int, Linear], block: int, shares: moments.Shares | None = None
) -> Iterator[dict[int, Linear]]:
    """The layers in runs whose moments fit into memory together."""
    batch: dict[int, Linear] = {}
    for number, item in linear.items():
        if batch and moments.nbytes({**batch, number: item}, block, shares) > _MOMENTS:
            yield batch
            batch = {}
        batch[number] = item
    if batch:
        yield batch
