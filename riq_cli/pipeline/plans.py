"""How a layer is rounded with error compensation: fitted to what it is multiplied with, judged on other samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from riq_cli import quantize
from riq_cli.decode import dequantize, trellis
from riq_cli.decode.dequantize import Quantized
from riq_cli.entropy.codes import Codes
from riq_cli.entropy.rate import estimated_bits
from riq_cli.model import Layer, Linear, Matrix
from riq_cli.quantize import scalar
from riq_cli.statistics.moments import Float64

_ROWS = 256  # of a matrix that stand for all of them where variants are compared
_COLUMNS = 4096  # … and columns, where their errors do not spread
_ALL = slice(None)
_RUN = 1 << 18  # weights that are held in float64 at a time where all of them are passed over
_NARROWER = 40  # quarters of an octave: 2¹⁰ times
_LANE = 8  # columns from which on a trellis is tried: at the beginning of a lane there is little choice
_PARTS = 8  # rows or columns at least, for bin widths of their own


Positions = Literal["alike", "both", "shared"]


@dataclass(frozen=True, eq=False)
class Plan:
    """How one layer is rounded: with what error compensation, and at what relative bin widths of columns and rows.

    Without `factors` to the nearest, or, if `up` is not None, all weights up or all down. With `trellis`, along the
    best way through one whose lanes are the rows. `columns` i32[groups, columns] and `rows` i32[groups, rows] are
    codes, in quarters of an octave; `scales` say the same of the layer's tensor. Where the layer has a `bias` (the
    number of that layer), what rounding adds to the outputs on average, (Ŵ − W) E[x], is taken off it; `mean`
    f64[groups, columns] is E[x]. `importance` f64[groups, rows] tells how much each row matters to the outputs, where
    that is known; errors of rows may spread too, by `spreads`. `damping` and `row_damping` are those of the moments
    behind `factors` and `spreads`. `positions` tells how those of what the layer multiplies count in `factors`: alike,
    by how much they matter (shared), or half so (both); where not alike, `alike` is the plan in which they do. `varied`
    and `rows_varied` tell whether those behind `factors` and `spreads` are of variations of the samples too.
    """

    matrix: Matrix
    columns: quantize.Integers
    rows: quantize.Integers
    factors: tuple[quantize.Factor, ...] = ()
    scales: tuple[Codes, ...] = ()
    bias: int | None = None
    mean: Float64 | None = None
    up: bool | None = None
    trellis: bool = False
    importance: Float64 | None = None
    spreads: tuple[quantize.Spread, ...] = ()
    damping: quantize.Damping | None = None
    row_damping: quantize.Damping | None = None
    rows_varied: bool = False
    positions: Positions = "alike"
    varied: bool = False
    alike: Plan | None = None

    @classmethod
    def nearest(cls, layer: Layer) -> Plan:
        """Nearest rounding of a layer, its slices along the first axis for rows."""
        rows, columns = layer.shape[0], layer.size // layer.shape[0]
        return cls.of(Matrix(layer.shape, tuple(range(len(layer.shape))), (1, rows, columns), None, (0,)))

    @classmethod
    def of(cls, matrix: Matrix) -> Plan:
        """Nearest rounding of a layer as these matrices."""
        groups, rows, columns = matrix.shape
        return cls(matrix, np.zeros((groups, columns), np.int32), np.zeros((groups, rows), np.int32))

    @classmethod
    def compensating(
        cls,
        layer: Layer,
        linear: Linear,
        factors: tuple[quantize.Factor, ...],
        exercised: NDArray[np.bool_],
        mean: Float64,
    ) -> Plan:
        """Rounding whose errors spread among columns, with bin widths of columns that suit that.

        Args:
            layer: the weights.
            linear: the layer as matrices.
            factors: of all columns, in order.
            exercised: columns that the samples exercise, bool[groups, columns].
            mean: of what the columns multiply, f64[groups, columns].
        """
        matrix = linear.matrix
        columns, rows = np.zeros(mean.shape, np.int32), np.zeros(matrix.shape[:2], np.int32)
        plan = cls(matrix, columns, rows, factors, (), linear.bias, mean)
        if not matrix.column_axes or matrix.shape[1] < _PARTS:  # of few rows a column is not worth its code
            return plan
        codes = quantize.column_codes(factors, exercised)
        return replace(plan, columns=codes, scales=(_along(matrix, layer, codes[:, None, :], False),))

    def with_rows(self, layer: Layer) -> Plan | None:
        """The same with bin widths ∝ √‖row‖, half-way from equal ones to equal relative ones; None if equal."""
        groups, rows, columns = self.matrix.shape
        if self.matrix.row_axes is None or groups * rows < _PARTS or columns < _PARTS:
            return None
        peak = scalar.peak(layer.values, layer.dtype)
        squares = np.empty((groups, rows))
        for part in _runs(self.matrix):
            weights = _widened(self.matrix, layer, part) / peak
            np.einsum("gnk,gnk->gn", weights, weights, out=squares[:, part])
        norms = np.log2(squares, out=np.zeros_like(squares), where=squares > 0) / 2
        codes = np.rint(2 * (norms - norms.mean())) * (squares > 0)
        codes = np.clip(codes, -quantize.CODES_MAX, quantize.CODES_MAX).astype(np.int32)
        if not codes.any():
            return None
        return self.with_row_codes(layer, codes)

    def with_row_codes(self, layer: Layer, codes: quantize.Integers) -> Plan:
        """The same with relative bin widths of rows, i32[groups, rows] in quarters of an octave."""
        return replace(self, rows=codes, scales=(*self.scales, _along(self.matrix, layer, codes[:, :, None], True)))

    def with_importance(
        self,
        layer: Layer,
        codes: quantize.Integers,
        importance: Float64,
        spreads: Sequence[quantize.Spread],
        damping: quantize.Damping | None = None,
        varied: bool = False,
    ) -> Plan:
        """The same with bin widths of rows by how much they matter, and errors that spread among them.

        Args:
            layer: of the plan.
            codes: relative bin widths of rows, i32[groups, rows] in quarters of an octave.
            importance: of rows, f64[groups, rows].
            spreads: see `quantize.compensated`.
            damping: that of the spreads.
            varied: whether these are of variations of the samples too.
        """
        plan = replace(self, importance=importance, spreads=tuple(spreads), row_damping=damping, rows_varied=varied)
        return plan.with_row_codes(layer, codes) if codes.any() else plan

    def after(self, before: Plan, layer: Layer) -> Plan:
        """This plan in the place of one fitted to fewer samples, with the bin widths of rows that this does not tell.

        That is the plan before itself, where gradients told rows apart and do so no longer.
        """
        if before.importance is not None:
            return before if self.importance is None else self
        return self.with_row_codes(layer, before.rows) if before.rows.any() else self

    @property
    def even(self) -> Plan:
        """The same with the factors in which all positions count alike."""
        if self.alike is None:
            return self
        scales = (*self.alike.scales, *(self.scales[-1:] if self.rows.any() else ()))
        return replace(self.alike, rows=self.rows, scales=scales, importance=self.importance, spreads=self.spreads,
                       row_damping=self.row_damping, rows_varied=self.rows_varied)  # fmt: skip

    @property
    def plain(self) -> Plan:
        """The same with equal bin widths of rows, whose errors do not spread."""
        scales = self.scales[:-1] if self.rows.any() else self.scales
        return replace(self, rows=np.zeros_like(self.rows), scales=scales, importance=None, spreads=())

    def with_trellis(self, layer: Layer, width: float) -> Plan | None:
        """The same along the best way through a trellis, if that saves bits at about this bin width; else None."""
        if self.matrix.lanes is None or self.matrix.shape[2] < _LANE:
            return None
        trellised = replace(self._narrowed(layer, width), trellis=True)
        (bits, error), (fewer, less) = self.sampled(layer, width), trellised.sampled(layer, width)
        return trellised if error > 0 and bits - fewer > layer.size / 2 * math.log2(max(less / error, 1e-9)) else None

    def _narrowed(self, layer: Layer, width: float) -> Plan:
        """The same with bins of rows that are nearly 0 as narrow as these: on a trellis, 0 is a quarter of a bin.

        Rounding to the nearest leaves nothing of such rows, of dead channels and of padding, and nothing is what later
        layers expect of them. So it is with columns, unless they make up for the errors of others or are short.
        """
        groups, rows, columns = self.matrix.shape
        may_narrow_columns = not self.factors and self.matrix.column_axes and rows >= _PARTS
        peaks, tops = np.empty((groups, rows)), np.zeros((groups, columns))
        for part in _runs(self.matrix):
            magnitudes = np.abs(_widened(self.matrix, layer, part))
            np.max(magnitudes, axis=2, out=peaks[:, part])
            if may_narrow_columns:
                np.maximum(tops, magnitudes.max(axis=1), out=tops)
        result = self
        if may_narrow_columns:
            codes, quiet = _narrower(self.columns, tops, width * 2.0 ** (int(self.rows.min()) / 4))
            if quiet.any():
                own = _along(self.matrix, layer, codes[:, None, :], False)
                result = replace(self, columns=codes, scales=(own, *self.scales[bool(self.columns.any()) :]))
        codes, quiet = _narrower(self.rows, peaks, width)
        if not quiet.any():
            return result
        spreads = tuple(spread.sparing(quiet[spread.group]) for spread in self.spreads)
        return replace(result, scales=result.plain.scales, spreads=spreads).with_row_codes(layer, codes)

    def rounded(self, layer: Layer, width: float) -> tuple[Quantized, float]:
        """The layer's symbols at a bin width, and the error that they leave, in the units of `quantize.compensated`.

        Without compensation the error is ‖Ŵ − W‖² / max |W|².
        """
        widths, scales = self.column_widths(width), self._scales()
        # Others were narrowed: their weights are small.
        loud = (codes[codes >= -quantize.CODES_MAX].min(initial=0) for codes in (self.rows, self.columns))
        narrowest = width * 2 ** (int(sum(loud)) / 4)
        if self.trellis and scalar.peak(layer.values, layer.dtype) < quantize.trellis.SYMBOL_MAX * narrowest:
            levels, error = quantize.trellised(
                self._weights(layer), self.factors, widths, self.spreads, self.importance, scales
            )
            return self._quantized(layer, levels, width, self.matrix.lanes), error
        if not self.factors and self.importance is None:
            quantized = (
                scalar.nearest(layer.values, layer.dtype, width, self.scales)
                if self.up is None
                else scalar.directed(layer.values, layer.dtype, width, self.up, self.scales)
            )
            restored = quantized.restored(layer.dtype, layer.shape)
            return quantized, scalar.squared_error(layer.values, restored, layer.dtype)
        weights = self._weights(layer)
        symbols, error = quantize.compensated(weights, self.factors, widths, self.spreads, self.importance, scales)
        return self._quantized(layer, symbols, width), error

    def sampled(self, layer: Layer, width: float) -> tuple[float, float]:
        """About the bits and the error of `rounded`, from some of the rows, whose errors do not spread.

        Where those of columns do not spread either, from some of many columns.
        """
        columns = slice(None, None, 1 if self.factors else max(1, self.matrix.shape[2] // _COLUMNS))
        weights = some_rows(self.matrix, layer, columns)
        symbols, error = self._symbols(weights, self.column_widths(width)[..., columns])
        scale = layer.size / symbols.size
        share = float(np.max(np.abs(weights))) / scalar.peak(layer.values, layer.dtype)  # errors are in such units
        codes = sum(item.values.size for item in self.scales)
        bits = estimated_bits(symbols, *self.matrix.shape[1:], trellis=self.trellis, scales=codes)
        return scale * bits, scale * share**2 * error

    def some_columns(self, layer: Layer, weights: int) -> Columns:
        """Evenly spaced columns of the matrices, about as many as hold so many weights."""
        columns = self.matrix.shape[2]
        step = max(1, layer.size // weights)
        chosen = np.arange(0, columns, min(step, columns))
        view = scalar.widened(np.ascontiguousarray(self.matrix.view(layer.values)[:, :, chosen]), layer.dtype)
        return Columns(view, dequantize.scaled_widths(1.0, self.columns[:, None, chosen]))

    def shift(self, layer: Layer, restored: dequantize.Array) -> Float64:
        """What the bias has to take over, f64[groups · rows]: −(Ŵ − W) E[x]."""
        assert self.mean is not None
        result = np.empty(self.matrix.shape[:2])
        for part in _runs(self.matrix):
            difference = _widened(self.matrix, layer, part)
            difference -= _widened(self.matrix, replace(layer, values=restored), part)
            np.einsum("gnk,gk->gn", difference, self.mean, out=result[:, part])
        return result.reshape(-1)

    def _weights(self, layer: Layer) -> dequantize.Array:
        return self.matrix.view(scalar.computable(layer.values, layer.dtype))

    def _quantized(
        self, layer: Layer, levels: quantize.Integers, width: float, lanes: tuple[int, ...] | None = None
    ) -> Quantized:
        flat = np.ascontiguousarray(self.matrix.restore(levels, layer.shape)).reshape(-1)
        return Quantized(flat, width, self.scales, trellis=lanes)

    def _symbols(self, weights: Float64, widths: Float64) -> tuple[quantize.Integers, float]:
        step = _step(self.matrix)
        importance = None if self.importance is None else self.importance[:, ::step]
        scales = self._scales(step)
        if self.trellis:
            levels, error = quantize.trellised(weights, self.factors, widths, (), importance, scales)
            return trellis.symbols(levels), error
        if self.factors or importance is not None:
            return quantize.compensated(weights, self.factors, widths, (), importance, scales)
        widths = widths if scales is None else widths * scales[..., None]
        rounded = np.rint(weights / widths)
        left = (rounded * widths - weights) / (float(np.max(np.abs(weights))) or 1.0)
        return rounded.astype(np.int32), float(np.einsum("gnk,gnk->", left, left))

    def column_widths(self, width: float) -> Float64:
        """Bin widths of columns, f64[groups, 1, columns]."""
        return dequantize.scaled_widths(width, self.columns)[:, None, :]

    def _scales(self, step: int = 1) -> Float64 | None:
        """What rows multiply them by, or every so-manieth row, f64[groups, rows]; None where all are 1."""
        return np.exp2(self.rows[:, ::step] / 4) if self.rows.any() else None


@dataclass(frozen=True, eq=False)
class Columns:
    """Some columns of a layer's matrices, f64[groups, rows, columns], and their relative bin widths."""

    weights: Float64
    widths: Float64


def nearest_widths(plan: Plan | None, layer: Layer, width: float) -> dequantize.Width | None:
    """The bin widths of a layer where its weights are just rounded to the nearest; None if they are not."""
    if plan is None:
        return width
    alone = not plan.factors and not plan.trellis and plan.up is None and plan.importance is None
    return scalar.bin_widths(width, plan.scales, len(layer.shape)) if alone else None


def _along(matrix: Matrix, layer: Layer, codes: quantize.Integers, rows: bool) -> Codes:
    """Codes of rows, i32[groups, rows, 1], or columns, i32[groups, 1, columns], along axes of the layer's tensor."""
    axes = matrix.row_axes if rows else matrix.column_axes
    assert axes is not None
    spread = matrix.restore(np.broadcast_to(codes, matrix.shape), layer.shape)
    first = tuple(slice(None) if axis in axes else 0 for axis in range(len(layer.shape)))
    return Codes(axes, np.ascontiguousarray(spread[first]))


def _narrower(codes: quantize.Integers, peaks: Float64, width: float) -> tuple[quantize.Integers, NDArray[np.bool_]]:
    """Codes with narrower bins where weights of these peaks are nearly 0, and which they are."""
    share = peaks / dequantize.scaled_widths(width, codes)
    quiet = share < 1 / trellis.PARTS
    octaves = np.log2(2 * share, out=np.full(share.shape, -np.inf), where=share > 0)
    narrower = codes + np.maximum(np.floor(4 * octaves), -_NARROWER)
    return np.where(quiet, narrower, codes).astype(np.int32), quiet


def some_rows(matrix: Matrix, layer: Layer, columns: slice = _ALL) -> Float64:
    """Evenly spaced rows of a layer's matrices in float64, as many as stand for all."""
    return _widened(matrix, layer, slice(None, None, _step(matrix)), columns)


def _widened(matrix: Matrix, layer: Layer, rows: slice, columns: slice = _ALL) -> Float64:
    """Some rows of a layer's matrices, or a part of them, in float64."""
    return scalar.widened(np.ascontiguousarray(matrix.view(layer.values)[:, rows, columns]), layer.dtype)


def _runs(matrix: Matrix) -> Iterator[slice]:
    """Runs of rows that make up a layer's matrices, each of a size that float64 is no burden for."""
    groups, rows, columns = matrix.shape
    step = max(1, _RUN // (groups * columns))
    return (slice(begin, begin + step) for begin in range(0, rows, step))


def _step(matrix: Matrix) -> int:
    """Of so many rows one stands for all."""
    return max(1, matrix.shape[1] // _ROWS)
