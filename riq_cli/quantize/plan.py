"""How one layer is rounded: its plan, a small picklable value that stages add to one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from riq_cli.decode import trellis
from riq_cli.decode.dequantize import Quantized, Width, scaled_widths
from riq_cli.entropy.codes import Codes
from riq_cli.entropy.rate import estimated_bits
from riq_cli.model import Layer, Matrix
from riq_cli.model.tensors import Array, computable
from riq_cli.quantize import scalar
from riq_cli.quantize.factor import CODES_MAX, Factor, Integers, PackedFactor
from riq_cli.quantize.gptq import rounded
from riq_cli.quantize.rows import RowFactor
from riq_cli.quantize.trellis import SYMBOL_MAX

Float64 = NDArray[np.float64]

_ROWS, _COLUMNS = 256, 4096  # of a matrix, evenly spaced, that stand for all of them where plans are compared
_ALL = slice(None)
_RUN = 1 << 18  # weights that are held in float64 at a time where all of them are passed over
_NARROWER = 40  # quarters of an octave: 2¹⁰ times
_HAIR = 1 + 1e-9  # ties at the end of a range make no level more
_LANE = 8  # columns from which on a trellis is tried: at the beginning of a lane there is little choice
PARTS = 8  # rows or columns at least, for bin widths of their own


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """How one layer is rounded at a bin width Δ.

    Attributes:
        shape: of the layer's tensor.
        matrix: the layer as a stack of matrices W [groups, rows, columns].
        columns: relative bin widths of columns, i32[groups, columns], codes in quarters of an octave.
        rows: the same of rows, i32[groups, rows]. The bin width of a weight is Δ · 2^((column + row) / 4).
        factors: of the Hessian A of the layer's inputs: rounding errors feed forward along columns (GPTQ). Empty: not.
        row_factors: of the second moments G of output gradients: errors feed forward along rows too. Empty: not.
        bias: number of the layer that takes over what rounding adds to the outputs on average; None: there is none.
        mean: E[x] of the layer's inputs, f64[groups, columns], for the bias.
        trellis: weights are rounded along the best path of a trellis whose lanes are the rows (TCQ).
        up: all weights are rounded up, or all down; None: to the nearest.
        most: magnitude of symbols at most, so that they are integers of a few bits; None: there is no such bound.
    """

    shape: tuple[int, ...]
    matrix: Matrix
    columns: Integers
    rows: Integers
    factors: tuple[Factor | PackedFactor, ...] = ()
    row_factors: tuple[RowFactor, ...] = ()
    bias: int | None = None
    mean: Float64 | None = None
    trellis: bool = False
    up: bool | None = None
    most: int | None = None

    @classmethod
    def of(cls, layer: Layer, matrix: Matrix) -> LayerPlan:
        """Nearest rounding of a layer as these matrices."""
        groups, rows, columns = matrix.shape
        return cls(layer.shape, matrix, np.zeros((groups, columns), np.int32), np.zeros((groups, rows), np.int32))

    @classmethod
    def nearest(cls, layer: Layer) -> LayerPlan:
        """Nearest rounding of a layer, its slices along the first axis for rows."""
        rows = layer.shape[0]
        axes = tuple(range(len(layer.shape)))
        return cls.of(layer, Matrix(layer.shape, axes, (1, rows, layer.size // rows), None, (0,)))

    def kept(self, keep: Callable[[Array], Array]) -> LayerPlan:
        """The same plan, its factors in memory that `keep` gives: it returns an array of equal values."""
        factors = tuple(factor.kept(keep) if isinstance(factor, PackedFactor) else factor for factor in self.factors)
        return replace(self, factors=factors, row_factors=tuple(factor.kept(keep) for factor in self.row_factors))

    @property
    def is_elementwise(self) -> bool:
        """Whether each weight is rounded to the nearest, whatever others are."""
        is_bound = self.most is not None
        return not self.factors and not self.row_factors and not self.trellis and self.up is None and not is_bound

    @cached_property
    def scales(self) -> tuple[Codes, ...]:
        """The codes of columns and rows along axes of the layer's tensor, as an archive keeps them."""
        parts = [(self.columns[:, None, :], self.matrix.column_axes), (self.rows[:, :, None], self.matrix.row_axes)]
        return tuple(self._along(codes, axes) for codes, axes in parts if codes.any() and axes is not None)

    def widths(self, layer: Layer, width: float) -> Width:
        """The bin widths of the weights at Δ = `width`; an array broadcasts to the layer's shape."""
        return scalar.bin_widths(width, self.scales, len(layer.shape))

    def quantized(self, layer: Layer, width: float) -> Quantized:
        """The layer's symbols at a bin width; in rows at a wider one where `most` does not allow it."""
        if self.most is not None:
            bound, width = self._bound(layer, width, self.most)
            if bound is not self:
                return bound.quantized(layer, width)
        if self.trellis and scalar.peak(layer.values, layer.dtype) < SYMBOL_MAX * self._narrowest(width):
            return self._as_tensor(self._rounded(layer, width, True), width, self.matrix.lanes)
        if self.factors or self.row_factors:
            return self._as_tensor(self._rounded(layer, width, False), width, None)
        if self.up is not None:
            return scalar.directed(layer.values, layer.dtype, width, self.up, self.scales)
        return scalar.nearest(layer.values, layer.dtype, width, self.scales)

    def shift(self, layer: Layer, restored: Array) -> Float64:
        """What the bias takes over, −(Ŵ − W) E[x], f64[groups · rows]."""
        assert self.mean is not None
        result = np.empty(self.matrix.shape[:2])
        for part in _runs(self.matrix):
            difference = _widened(self.matrix, layer.values, layer.dtype, part)
            difference -= _widened(self.matrix, restored, layer.dtype, part)
            np.einsum("gnk,gk->gn", difference, self.mean, out=result[:, part])
        return result.reshape(-1)

    # ---- samples of a layer, where plans are compared ----

    def sampled(self, layer: Layer, width: float, rows: int = _ROWS) -> tuple[float, float]:
        """About the bits of the layer, and the mean squared rounding error of a weight in squares of its bin width.

        Both come from about so many `rows`, without feedback among them. At high rate the error is 1/12, or 0.8/12 on a
        trellis.
        """
        chosen = _spaced(self.matrix.shape[1], rows)
        columns = _ALL if self.factors else _spaced(self.matrix.shape[2], _COLUMNS)
        weights = _widened(self.matrix, layer.values, layer.dtype, chosen, columns)
        widths, own = self.column_widths(width)[:, columns], self.row_scales[:, chosen]
        symbols, error = rounded(weights, widths, own, self.factors, (), self.trellis)
        if self.trellis:
            symbols = trellis.symbols(symbols)
        scale = layer.size / symbols.size
        scales = sum(codes.values.size for codes in self.scales)
        return scale * estimated_bits(symbols, *self.matrix.shape[1:], self.trellis, scales), error

    def some_rows(self, layer: Layer) -> Float64:
        """Evenly spaced rows of the matrices that stand for all, f64[groups, rows, columns]."""
        return _widened(self.matrix, layer.values, layer.dtype, _spaced(self.matrix.shape[1], _ROWS))

    def some_columns(self, layer: Layer, count: int) -> tuple[Float64, Float64]:
        """Evenly spaced columns of about `count` weights, f64[groups, rows, columns], and their relative bin widths."""
        chosen = _spaced(layer.size, count)
        weights = _widened(self.matrix, layer.values, layer.dtype, _ALL, chosen)
        return weights, scaled_widths(1.0, self.columns[:, chosen])

    @cached_property
    def row_scales(self) -> Float64:
        """2^(row / 4), f64[groups, rows]."""
        return np.exp2(self.rows / 4)

    def column_widths(self, width: float) -> Float64:
        """Δ · 2^(column / 4), f64[groups, columns]."""
        return scaled_widths(width, self.columns)

    def with_rows(self, layer: Layer, codes: Integers, factors: tuple[RowFactor, ...]) -> LayerPlan:
        """The plan with such bin widths of rows, and their errors fed forward.

        With `most`, they are rounded to what `scalar.scale_step` allows, and all are equal if rows do not lie along
        axes of the tensor that can be reshaped to one.
        """
        if self.most is not None:
            step = scalar.scale_step(layer.dtype)
            codes = (step * np.rint(codes / step) * self._has_one_axis).astype(np.int32)
        return replace(self, rows=codes, row_factors=factors)

    # ---- the trellis ----

    def with_trellis(self, layer: Layer, width: float) -> LayerPlan:
        """The plan along a trellis, if that saves bits at equal error at about this bin width; else the same.

        Trellis-coded quantization: M. Marcellin, T. Fischer, IEEE Trans. Communications 38 (1990).
        """
        if self.matrix.lanes is None or self.matrix.shape[2] < _LANE:
            return self
        other = self.on_trellis(layer, width)
        (bits, error), (fewer, less) = self.sampled(layer, width), other.sampled(layer, width)
        saved = bits - fewer - layer.size / 2 * math.log2(max(less / error, 1e-9)) if error > 0 else 0.0
        return other if saved > 0 else self

    def on_trellis(self, layer: Layer, width: float) -> LayerPlan:
        """The plan along a trellis at about this bin width, whether or not that saves bits."""
        return replace(self._narrowed(layer, width), trellis=True)

    def _narrowed(self, layer: Layer, width: float) -> LayerPlan:
        """The same with narrower bins of rows that are nearly 0: on a trellis, symbol 0 is a quarter of a bin.

        Nearest rounding leaves nothing of such rows, of dead channels and of padding, and later layers rely on that. So
        it is with columns, unless errors are fed forward along them.
        """
        groups, rows, columns = self.matrix.shape
        with_columns = not self.factors and self.matrix.column_axes and rows >= PARTS
        peaks, tops = np.empty((groups, rows)), np.zeros((groups, columns))
        for part in _runs(self.matrix):
            magnitudes = np.abs(_widened(self.matrix, layer.values, layer.dtype, part))
            np.max(magnitudes, axis=2, out=peaks[:, part])
            if with_columns:
                np.maximum(tops, magnitudes.max(axis=1), out=tops)
        result = self
        if with_columns:
            codes, _ = _narrower(self.columns, tops, width * 2.0 ** (int(self.rows.min()) / 4))
            result = replace(self, columns=codes)
        codes, is_zero = _narrower(self.rows, peaks, width)
        row_factors = tuple(factor.sparing(is_zero[factor.group]) for factor in self.row_factors)
        return replace(result, rows=codes, row_factors=row_factors)

    @property
    def _has_one_axis(self) -> bool:
        """Whether rows lie along axes of the tensor that can be reshaped to one."""
        axes = self.matrix.row_axes or ()
        return bool(axes) and axes[-1] - axes[0] == len(axes) - 1

    def _bound(self, layer: Layer, width: float, most: int) -> tuple[LayerPlan, float]:
        """The plan and the bin width at which no weight is more than so many bins from 0.

        Rows that need it have wider bins; where rows can have none of their own, all have wider ones.
        """
        finest = np.empty(self.matrix.shape[:2])
        for part in _runs(self.matrix):
            magnitudes = np.abs(_widened(self.matrix, layer.values, layer.dtype, part))
            np.max(magnitudes, axis=2, out=finest[:, part])
        finest *= _HAIR / most
        if not self._has_one_axis:
            return self, max(width, float(scalar.short_width(finest.max())))
        step = scalar.scale_step(layer.dtype)
        wider = step * np.ceil(4 / step * np.log2(np.maximum(finest, width) / width))
        codes = np.where(finest > width * self.row_scales, wider, self.rows).astype(np.int32)
        return (self if np.array_equal(codes, self.rows) else replace(self, rows=codes)), width

    def _narrowest(self, width: float) -> float:
        """The narrowest bin width of a weight that is not nearly 0."""
        codes = (part[part >= -CODES_MAX].min(initial=0) for part in (self.rows, self.columns))
        return float(width * 2 ** (int(sum(codes)) / 4))

    # ---- tensors and matrices ----

    def _rounded(self, layer: Layer, width: float, on_trellis: bool) -> Integers:
        weights = self.matrix.view(computable(layer.values, layer.dtype))
        widths, scales = self.column_widths(width), self.row_scales if self.rows.any() else None
        return rounded(weights, widths, scales, self.factors, self.row_factors, on_trellis)[0]

    def _along(self, codes: Integers, axes: tuple[int, ...]) -> Codes:
        """Codes that broadcast to the matrices, along axes of the layer's tensor."""
        every = self.matrix.restore(np.broadcast_to(codes, self.matrix.shape), self.shape)
        first = tuple(_ALL if axis in axes else 0 for axis in range(len(self.shape)))
        return Codes(axes, np.ascontiguousarray(every[first]))

    def _as_tensor(self, levels: Integers, width: float, lanes: tuple[int, ...] | None) -> Quantized:
        flat = np.ascontiguousarray(self.matrix.restore(levels, self.shape)).reshape(-1)
        if self.most is not None:  # what errors that are fed forward add to a weight may lead beyond it
            np.clip(flat, -self.most, self.most, out=flat)
        return Quantized(flat, width, self.scales, trellis=lanes)


def _narrower(codes: Integers, peaks: Float64, width: float) -> tuple[Integers, NDArray[np.bool_]]:
    """Codes with narrower bins where weights of these peaks are nearly 0, and which they are."""
    share = peaks / scaled_widths(width, codes)
    is_zero = share < 1 / trellis.PARTS
    octaves = np.log2(2 * share, out=np.full(share.shape, -np.inf), where=share > 0)
    narrower = codes + np.maximum(np.floor(4 * octaves), -_NARROWER)
    return np.where(is_zero, narrower, codes).astype(np.int32), is_zero


def _widened(matrix: Matrix, values: Array, dtype: str, rows: slice, columns: slice = _ALL) -> Float64:
    """Some rows and columns of a layer's matrices in float64."""
    return scalar.widened(np.ascontiguousarray(matrix.view(values)[:, rows, columns]), dtype)


def _spaced(size: int, count: int) -> slice:
    """About `count` of `size` things, evenly spaced."""
    return slice(None, None, max(1, size // count))


def _runs(matrix: Matrix) -> Iterator[slice]:
    """Runs of rows that make up the matrices, each of a size that float64 is no burden for."""
    groups, rows, columns = matrix.shape
    step = max(1, _RUN // (groups * columns))
    return (slice(begin, begin + step) for begin in range(0, rows, step))
