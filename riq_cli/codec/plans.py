"""How a layer is rounded with error compensation: fitted to what it is multiplied with, judged on other samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from riq_cli import coder, quantizer, rounding
from riq_cli.model import Layer, Linear, Matrix
from riq_cli.moments import Float64, Moments
from riq_cli.quantizer import Codes, Quantized

_DAMPINGS = (0.01, 0.1, 1.0, 10.0)
_FIRST = 1  # the damping that is tried first, and then its neighbours as long as they are better
_ROWS = 256  # of a matrix that stand for all of them where variants are compared
_EXERCISED = 1e-3  # a column with a smaller share of the mean second moment is one that the samples do not exercise


@dataclass(frozen=True, eq=False)
class Plan:
    """Error-compensated rounding of one layer: factors of its second moments, and relative bin widths of its columns.

    `codes` i32[groups, columns] are what `scales` say, seen from the matrix. Where the layer has a `bias` (the number
    of that layer), what rounding adds to the outputs on average, (Ŵ − W) E[x], is taken off it; `mean` f64[groups,
    columns] is E[x].
    """

    matrix: Matrix
    factors: tuple[rounding.Factor, ...]
    codes: rounding.Integers
    scales: tuple[Codes, ...]
    bias: int | None
    mean: Float64

    def rounded(self, layer: Layer, width: float) -> tuple[Quantized, float]:
        """The layer's symbols at a bin width, and the error of the outputs that they leave."""
        weights = self.matrix.view(quantizer.widened(layer.values, layer.dtype))
        symbols, error = rounding.compensated(weights, self.factors, self._widths(width))
        flat = np.ascontiguousarray(self.matrix.restore(symbols, layer.shape)).reshape(-1)
        return Quantized(flat, width, self.scales), error

    def sampled(self, layer: Layer, width: float) -> tuple[float, float]:
        """About the bits and the error of `rounded`, from some of the rows."""
        weights = _some_rows(self.matrix.view(layer.values), layer)
        symbols, error = rounding.compensated(weights, self.factors, self._widths(width))
        scale = layer.size / symbols.size
        share = float(np.max(np.abs(weights))) / quantizer.peak(layer.values, layer.dtype)  # errors are in such units
        return scale * _bits(symbols), scale * share**2 * error

    def shift(self, layer: Layer, restored: quantizer.Array) -> Float64:
        """What the bias has to take over, f64[groups · rows]: −(Ŵ − W) E[x]."""
        difference = quantizer.widened(layer.values, layer.dtype) - quantizer.widened(restored, layer.dtype)
        result: Float64 = np.einsum("gnk,gk->gn", self.matrix.view(difference), self.mean).reshape(-1)
        return result

    def _widths(self, width: float) -> Float64:
        return quantizer.scaled_widths(width, self.codes)[:, None, :]


def fitted(layer: Layer, linear: Linear, halves: tuple[Moments, Moments], width: float) -> Plan | None:
    """The plan for a layer whose damping does best on the half of the samples that it was not fitted to.

    Args:
        layer: the weights.
        linear: the layer as matrices.
        halves: moments of its inputs on two halves of the samples.
        width: about the bin width that it will have.

    Returns:
        None where nearest rounding does as well, or where a half holds nothing.
    """
    if not all(half.count and all(np.isfinite(block).all() for block in half.second) for half in halves):
        return None
    matrix = linear.matrix
    peak = quantizer.peak(layer.values, layer.dtype)
    weights, width = _some_rows(matrix.view(layer.values), layer) / peak, width / peak
    centred = linear.bias is not None
    bounds = halves[0].bounds
    moments = [_Second(half, centred) for half in halves]

    def cost(symbols: rounding.Integers, difference: Float64, fit: _Second, judge: _Second) -> float:
        """Bits at equal error of the outputs: half a bit a weight for each doubling of the error."""
        error = judge.error(difference, bounds, fit.mean)
        return _bits(symbols) + symbols.size / 2 * math.log2(max(error, 1e-300))

    pairs = ((moments[0], moments[1]), (moments[1], moments[0]))
    rounded = np.rint(weights / width)
    nearest = sum(cost(rounded.astype(np.int32), rounded * width - weights, fit, judge) for fit, judge in pairs)

    def tried(damping: float) -> float:
        total = 0.0
        for fit, judge in pairs:
            plan = _plan(layer, linear, bounds, fit, damping)
            widths = plan._widths(width)
            symbols, _ = rounding.compensated(weights, plan.factors, widths)
            total += cost(symbols, symbols * widths - weights, fit, judge)
            total += 4.0 * plan.codes.size * bool(plan.scales)
        return total

    best = _least([*_DAMPINGS], _FIRST, tried)
    if best[1] >= nearest:
        return None
    return _plan(layer, linear, bounds, _Second.of(halves, centred), best[0])


def _least(choices: Sequence[float], start: int, cost: object) -> tuple[float, float]:
    """The choice of least cost and its cost, going from one to the next from `start` as long as it falls."""
    assert callable(cost)
    found = {start: float(cost(choices[start]))}
    for step in (1, -1):
        position = start
        while 0 <= position + step < len(choices):
            found[position + step] = float(cost(choices[position + step]))
            if found[position + step] >= found[position]:
                break
            position += step
        if position != start:
            break
    best = min(found, key=lambda position: found[position])
    return choices[best], found[best]


class _Second:
    """Second moments and means of a layer's inputs, without the means where a bias can take them."""

    def __init__(self, moments: Moments, centred: bool) -> None:
        self.blocks, self.mean, self.count = moments.second, moments.mean, moments.count
        self.centred = centred
        self.diagonal = np.concatenate([np.einsum("gii->gi", block) for block in self.blocks], axis=1)
        if centred:
            self.blocks = [
                block - np.einsum("gi,gj->gij", self.mean[:, begin:end], self.mean[:, begin:end])
                for block, (begin, end) in zip(self.blocks, moments.bounds, strict=True)
            ]

    @classmethod
    def of(cls, halves: tuple[Moments, Moments], centred: bool) -> _Second:
        """Those of both halves together."""
        return cls(halves[0].joined(halves[1]), centred)

    def error(self, difference: Float64, bounds: Sequence[tuple[int, int]], bias_mean: Float64) -> float:
        """E ‖(Ŵ − W) x‖² of these inputs, where the bias has taken over what it is at `bias_mean`."""
        total = 0.0
        for block, (begin, end) in zip(self.blocks, bounds, strict=True):
            part = difference[:, :, begin:end]
            total += float(np.sum(np.matmul(part, block) * part))
        if self.centred:
            total += float(np.sum(np.square(np.einsum("gnk,gk->gn", difference, self.mean - bias_mean))))
        return total


def _plan(layer: Layer, linear: Linear, bounds: Sequence[tuple[int, int]], fit: _Second, damping: float) -> Plan:
    matrix = linear.matrix
    factors = tuple(
        rounding.Factor(begin, end, rounding.factorized(block, damping))
        for block, (begin, end) in zip(fit.blocks, bounds, strict=True)
    )
    codes = np.zeros(fit.mean.shape, np.int32)
    scales: tuple[Codes, ...] = ()
    if matrix.column_axes:
        exercised = fit.diagonal > _EXERCISED * fit.diagonal.mean()
        codes = rounding.column_codes(factors, exercised)
        scales = (_along(matrix, layer, codes),)
    return Plan(matrix, factors, codes, scales, linear.bias, fit.mean)


def _along(matrix: Matrix, layer: Layer, codes: rounding.Integers) -> Codes:
    """Codes i32[groups, columns] as codes along the column axes of the layer's tensor."""
    assert matrix.column_axes is not None
    spread = matrix.restore(np.broadcast_to(codes[:, None, :], matrix.shape), layer.shape)
    first = tuple(slice(None) if axis in matrix.column_axes else 0 for axis in range(len(layer.shape)))
    return Codes(matrix.column_axes, np.ascontiguousarray(spread[first]))


def _some_rows(matrices: quantizer.Array, layer: Layer) -> Float64:
    """Evenly spaced rows of a layer's matrices in float64, as many as stand for all."""
    step = max(1, matrices.shape[1] // _ROWS)
    return quantizer.widened(np.ascontiguousarray(matrices[:, ::step]), layer.dtype)


def _bits(symbols: rounding.Integers) -> float:
    histogram = coder.Histogram.of(symbols.reshape(-1))
    return symbols.size * quantizer.entropy(histogram.counts)
