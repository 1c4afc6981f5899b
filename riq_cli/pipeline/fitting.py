"""Samples → plans of error-compensated rounding for all layers that multiply activations, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Literal, NamedTuple

from riq_cli.errors import ModelError, SettingsError
from riq_cli.model import Linear
from riq_cli.pipeline.damping import fitted
from riq_cli.pipeline.effects import with_effects
from riq_cli.pipeline.plans import Plan
from riq_cli.pipeline.product_gradients import LEAST_SAMPLES, Halves, ProductGradients
from riq_cli.pipeline.settings import Settings, Warn
from riq_cli.pipeline.shares import position_shares
from riq_cli.pipeline.split import FIT_SAMPLES, held_count
from riq_cli.pipeline.weights import Plans, Weights, Widths
from riq_cli.runtime import Observer
from riq_cli.statistics import moments

_MOMENTS = 1 << 26  # bytes of second moments that are held at a time
_BLOCKS = (2048, 1024, 512)  # columns whose errors compensate each other
_FACTORS = 0.75  # bytes of factors, at most, for each byte of weights
_FEW = 1 << 27  # bytes of factors that are always granted
_VARIED_PROBES = 2  # directions of the output in each variation of a sample: there are many of them

Phase = Literal["fit", "gradients"]


class Seen(NamedTuple):
    """What layers multiply in some samples, in two halves, and how much positions matter where that is known."""

    observer: Observer
    halves: Halves
    shares: moments.Shares | None = None

    def collected(self, linear: Mapping[int, Linear], block: int) -> dict[int, moments.Collected]:
        """The moments of layers."""
        activations = self.observer.activations(moments.inputs_of(linear))
        samples = sum(map(len, self.halves))
        return moments.collect(linear, activations, samples, self.halves[1], block=block, shares=self.shares)


def compensates(settings: Settings, random: bool, samples: int) -> bool:
    """Whether errors are to be compensated: if asked for, or if not, where the calibration data can carry it.

    Args:
        settings: what is asked for.
        random: the samples are made up.
        samples: their number.

    Raises:
        SettingsError: it is asked for, and the data cannot carry it.
    """
    held = held_count(samples, settings.holdout)
    few = samples - held < FIT_SAMPLES
    if settings.rounding == "compensated" and (random or few):
        raise SettingsError(
            "compensated rounding needs real samples, random ones would mislead it; give --calibration"
            if random
            else f"compensated rounding needs at least {FIT_SAMPLES} samples"
            f"{' that are not held out' if held else ''}; there are {samples - held}"
        )
    return settings.rounding == "compensated" or (settings.may_compensate and not random and not few)


def plans_of(
    gradients: ProductGradients,
    linear: Mapping[int, Linear],
    widths: Widths,
    pool: Executor,
    progress: Callable[[Phase, int, int], None],
    warn: Warn,
    before: Plans | None = None,
    varied: ProductGradients | None = None,
) -> dict[int, Plan]:
    """Plans by the number of the layer, for those layers where they do better than nearest rounding.

    Args:
        gradients: at the products of layers.
        linear: those that multiply activations, and tables.
        widths: about the bin widths that layers will have.
        pool: its threads work at the same time.
        progress: called with what is done, steps of it, and their number in all.
        warn: called if gradients cannot be taken.
        before: plans fitted to fewer samples: what they do without is done without again.
        varied: the same of variations of the samples of each half.
    """
    told = partial(progress, "gradients")
    shares: moments.Shares | None = {}
    # Several kinds of moments take as many times the memory.
    without = gradients.weights.without
    if not gradients.observer.is_lean and sum(gradients.rows) >= LEAST_SAMPLES and "gradients" not in without:
        try:
            shares = position_shares(gradients, linear, told)
        except ModelError as error:
            shares = None
            warn(f"gradients cannot be taken, so nothing is told apart by them: {error}")
    seen = Seen(gradients.observer, gradients.halves, shares)
    more = None
    if varied is not None and (before is None or any(plan.varied for plan in before.values())):
        more = _seen(varied, linear, told, bool(shares))
    plans = fitted_plans(gradients.weights, linear, seen, widths, pool, partial(progress, "fit"), before, more)
    if shares is None or "gradients" in without:
        return plans
    try:
        return with_effects(gradients, linear, plans, widths, pool, told, before, varied)
    except ModelError as error:
        warn(f"gradients cannot be taken, so rows are not told apart by them: {error}")
        return plans


def _seen(
    varied: ProductGradients, linear: Mapping[int, Linear], told: Callable[[int, int], None], shared: bool
) -> Seen | None:
    """What layers multiply in variations of samples; None if the model does not take them."""
    try:
        shares = position_shares(varied, linear, told, _VARIED_PROBES) if shared else None
    except ModelError:
        return None
    return Seen(varied.observer, varied.halves, shares)


def fitted_plans(
    weights: Weights,
    linear: Mapping[int, Linear],
    seen: Seen,
    widths: Widths,
    pool: Executor,
    progress: Callable[[int, int], None],
    before: Plans | None = None,
    varied: Seen | None = None,
) -> dict[int, Plan]:
    """Plans by the number of the layer, for those layers where compensation does better than nearest rounding.

    Args:
        weights: all layers that may be coded.
        linear: those that multiply activations.
        seen: the samples.
        widths: about the bin widths that layers will have.
        pool: its threads work at the same time.
        progress: called with layers done and layers in all.
        before: plans fitted to fewer samples: only layers that they compensate are compensated again.
        varied: variations of the samples.
    """
    fit_for = {
        number: item
        for number, item in linear.items()
        if widths[number] is not None
        and not item.is_table
        and "gptq" not in weights.without
        and (before is None or (number in before and before[number].factors))
    }
    block = _block(fit_for, sum(weights.layers[number].values.nbytes for number in fit_for))
    plans: dict[int, Plan] = {}
    done = 0

    def fit(number: int) -> Plan | None:
        width = widths[number]
        assert width is not None
        earlier = None if before is None else before[number]
        alike, shared = found[number]
        plan = fitted(
            weights.layers[number], fit_for[number], alike, width, earlier, shared, more.get(number), weights.without
        )
        weights.release()
        return plan

    for batch in _batches(fit_for, block, seen.shares, 1 if varied is None else 2):
        found, more = seen.collected(batch, block), dict[int, moments.Collected]()
        if varied is not None and (before is None or any(before[number].varied for number in batch)):
            try:
                more = varied.collected(batch, block)
            except ModelError:  # the model does not take what was made of its samples
                varied = None
        weights.release()
        for number, plan in zip(batch, pool.map(fit, batch), strict=True):
            if plan is not None:
                plans[number] = plan
            done += 1
            progress(done, len(fit_for))
        found.clear()  # or they would stay until those of the next layers are complete
        more.clear()
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
    linear: Mapping[int, Linear], block: int, shares: moments.Shares | None = None, times: int = 1
) -> Iterator[dict[int, Linear]]:
    """The layers in runs whose moments, so many times, fit into memory together."""
    batch: dict[int, Linear] = {}
    for number, item in linear.items():
        if batch and times * moments.nbytes({**batch, number: item}, block, shares) > _MOMENTS:
            yield batch
            batch = {}
        batch[number] = item
    if batch:
        yield batch
