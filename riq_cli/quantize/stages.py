"""Stages that add to the plan of one layer: error feedback along columns and rows, each with its damping.

A stage takes a plan and what samples tell of the layer, and returns the plan with one decision more, or the same plan
where that does not pay. It is a pure function: layers go through it side by side, in threads or processes.

Dampings are validated: what is fitted to one half of the samples is judged on the other, in bits at equal error of the
outputs, half a bit a weight for each doubling of the error.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from riq_cli.entropy.histogram import Histogram
from riq_cli.model import Layer
from riq_cli.quantize import scalar
from riq_cli.quantize.factor import Factor, Floats, Integers, PackedFactor, column_codes
from riq_cli.quantize.gptq import rounded
from riq_cli.quantize.plan import PARTS, LayerPlan
from riq_cli.quantize.rows import RowMoments
from riq_cli.statistics.fisher import Fisher
from riq_cli.statistics.hessian import FIXED, Damping, Hessian, factorized, least_damping
from riq_cli.statistics.moments import Float64, Halves

FEW = 8  # rows of a group, and rows in all, of fewer than which errors are not fed forward along rows
_CODE_BITS = 4.0  # of a column, to be safe
_EXERCISED = 1e-3  # a column with a smaller share of the mean second moment is one that the samples do not exercise
_LOWEST = -4, -2  # halves of a decade of damping: of A; of G, where less lets errors grow too far
_SAVED = 0.02  # bits a weight that row factors save at least, by what the other half of the samples says
_WEIGHTS = 1 << 16  # of a layer that stand for all of them where dampings of G are compared: some of its columns
_CLASSES, _CLASS_WEIGHTS = 8, 1 << 8  # of rows with a distribution each, and weights of each at least
_TINY = 1e-300


def feed_columns(
    plan: LayerPlan, layer: Layer, halves: Halves, varied: Halves | None, width: float, without: Collection[str] = ()
) -> LayerPlan:
    """The plan with error feedback along columns (GPTQ), and bin widths of columns that suit that.

    Args:
        plan: of the layer.
        layer: the weights.
        halves: moments of its inputs on two halves of the samples.
        varied: moments of variations of the samples of each half, which are fitted to as well; None: there are none.
        width: about the bin width that it will have.
        without: names of stages that are left out.
    """
    centred = plan.bias is not None
    fits = halves if varied is None else (halves[0].joined(varied[0]), halves[1].joined(varied[1]))
    fit, judge, every = (Hessian(each, centred) for each in (fits[0], halves[1], fits[0].joined(fits[1])))
    if not (fit.is_usable and judge.is_usable and every.is_usable):
        return plan
    peak = scalar.peak(layer.values, layer.dtype)
    weights, step = plan.some_rows(layer) / peak, width / peak

    def cost(damping: Damping) -> float:
        trial = _with_factors(plan, fit, damping, Factor, without)
        widths = trial.column_widths(step)
        symbols, _ = rounded(weights, widths, None, trial.factors)
        bits = _table_bits(symbols) + _CODE_BITS * plan.columns.size * bool(trial.columns.any())
        return bits + _error_bits(judge, symbols * widths[:, None] - weights, fit.mean)

    damping, least = (FIXED, cost(FIXED)) if "damping" in without else least_damping(cost, _LOWEST[0])
    nearest = np.rint(weights / step)
    bits = _table_bits(nearest.astype(np.int32)) + _error_bits(judge, nearest * step - weights, fit.mean)
    if least >= bits:
        return plan
    return _with_factors(plan, every, damping, PackedFactor, without)


def _with_factors(
    plan: LayerPlan,
    hessian: Hessian,
    damping: Damping,
    kind: type[Factor] | type[PackedFactor],
    without: Collection[str],
) -> LayerPlan:
    factors = tuple(
        kind(begin, end, factorized(block, damping))
        for block, (begin, end) in zip(hessian.blocks, hessian.bounds, strict=True)
    )
    columns = plan.columns
    if "columns" not in without and plan.matrix.column_axes and plan.matrix.shape[1] >= PARTS:
        columns = column_codes(factors, hessian.diagonal > _EXERCISED * hessian.diagonal.mean())
    return replace(plan, columns=columns, factors=factors, mean=hessian.mean)


def _table_bits(symbols: Integers) -> float:
    """Bits by one table: as archives take them, errors that do not pay would be let grow at low rates."""
    return symbols.size * Histogram.of(symbols.reshape(-1)).entropy


def _error_bits(judge: Hessian, difference: Float64, bias_mean: Float64) -> float:
    return difference.size / 2 * math.log2(max(judge.error(difference, bias_mean), _TINY))


def feed_rows(
    plan: LayerPlan,
    layer: Layer,
    halves: tuple[Fisher, Fisher],
    varied: tuple[Fisher, Fisher] | None,
    width: float,
    without: Collection[str] = (),
) -> LayerPlan:
    """The plan with error feedback along rows, and bin widths of rows by how much they matter to the outputs.

    Args:
        plan: of the layer, without bin widths of rows.
        layer: the weights.
        halves: G of the layer on two halves of the samples.
        varied: G of variations of the samples of each half, which are fitted to as well; None: there are none.
        width: about the bin width that it will have.
        without: names of stages that are left out.
    """
    fit, judge = RowMoments.of(halves[0], *(varied or ())[:1]), RowMoments.of(halves[1])
    every = RowMoments.of(*halves, *(varied or ()))
    weights, widths = plan.some_columns(layer, _WEIGHTS)
    widths = widths * width

    def cost(damping: Damping | None) -> float:
        trial = plan if damping is None else plan.with_rows(layer, *fit.factors(damping))
        scales = trial.row_scales
        symbols, _ = rounded(weights, widths, scales, (), trial.row_factors)
        bins = widths[:, None] * scales[..., None]
        bits = _row_bits(symbols, bins / np.maximum(np.abs(weights).mean(axis=2, keepdims=True), _TINY))
        return bits + symbols.size / 2 * math.log2(max(judge.error(symbols * bins - weights), _TINY))

    damping, least = (FIXED, cost(FIXED)) if "damping" in without else least_damping(cost, _LOWEST[1])
    if cost(None) - least < _SAVED * weights.size:
        return plan
    return plan.with_rows(layer, *every.factors(damping))


def _row_bits(symbols: Integers, widths: Floats) -> float:
    """Bits of symbols whose rows are in classes with a distribution each, by bin widths relative to their weights.

    It is the two-sided geometric distribution of the same mean magnitude: the entropy of a few symbols is no more than
    that of all being different, however narrow their bins are.
    """
    groups, rows, columns = symbols.shape
    count = max(min(_CLASSES, symbols.size // _CLASS_WEIGHTS, groups * rows), 1)
    order = np.argsort(widths.mean(axis=2).reshape(-1))
    magnitudes = np.abs(symbols, dtype=np.float64).reshape(-1, columns).mean(axis=1)
    total = 0.0
    for part in np.array_split(order, count):
        mean = float(magnitudes[part].mean())
        if mean > 0:
            ratio = (math.hypot(1, mean) - 1) / mean  # of the probabilities of a magnitude and the one before
            total += part.size * columns * (math.log2((1 + ratio) / (1 - ratio)) - mean * math.log2(ratio))
    return total
