"""Weights ↔ symbols: uniform scalar quantization, eq. (4) and (8), and how much it costs, eq. (2).

Weights are numpy arrays in their own storage type; bfloat16, which numpy does not have, is stored as uint16 bits.
All arithmetic is in float64, in blocks that stay in the processor's cache. A bin width is one number for a layer, or
an array of them that broadcasts to the layer's shape: no copy of it as large as the layer is made.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli import trellis
from riq_cli.limits import CLASSES, CODE_MAX, QUARTERS

Array = NDArray[Any]  # weights in storage type: float16, float32, float64, or uint16 for bfloat16
Symbols = NDArray[np.int32]
Width = float | NDArray[np.float64]  # of a whole layer, or of each of its weights after broadcasting

STORAGE: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
}
SYMBOL_MAX = 1 << 23  # |symbol| at most: float32 itself is no finer
_DECODED_MAX = 1 << 31  # |symbol| in any archive is below
_LARGEST = {  # finite value of a type
    "float16": 65504.0,
    "bfloat16": 2.0**128 - 2.0**120,
    "float32": 2.0**128 - 2.0**104,
    "float64": sys.float_info.max,
}
_BLOCK = 1 << 15


@dataclass(frozen=True, eq=False)
class Codes:
    """Integers for the slices of a layer along some of its axes: codes of bin widths, or numbers of classes.

    `axes` ascending; `values` i32, of the shape that the layer has along these axes.
    """

    axes: tuple[int, ...]
    values: Symbols

    def aligned(self, dimensions: int) -> Symbols:
        """The values with as many dimensions as the layer has, so that they broadcast to its shape; not a copy."""
        return self.values[tuple(slice(None) if axis in self.axes else None for axis in range(dimensions))]

    def run(self, shape: Sequence[int], begin: int, end: int) -> Symbols:
        """The code of each weight from number `begin` up to `end`, row-major, i32[end − begin]."""
        return _run(np.broadcast_to(self.aligned(len(shape)), tuple(shape)), begin, end)

    def class_sizes(self, size: int) -> NDArray[np.int64]:
        """How many of a layer's `size` weights each class has, i64[C], if the values are numbers of classes.

        Raises:
            ValueError: they are not 0 … C − 1, each of them in use, with at most `limits.CLASSES` classes.
        """
        if self.values.min() < 0 or self.values.max() >= CLASSES:
            raise ValueError(f"a class that is not below {CLASSES}")
        slices = np.bincount(self.values.reshape(-1))
        if not slices.all():
            raise ValueError("a class without weights")
        return slices * (size // self.values.size)


@dataclass(frozen=True, eq=False)
class Quantized:
    """A layer's levels with everything that is needed to restore and to store them.

    `levels` i32[n], row-major: symbols, or, of a layer with a `trellis`, the levels of it. A weight is restored at the
    bin width of the sum of its codes in all `scales`, which for code 0 is `width` itself; without scales, at `width`.
    Slices of the same one of the `classes` share a table; None: all do. The axes of a `trellis` tell its lanes.
    """

    levels: Symbols
    width: float
    scales: tuple[Codes, ...] = ()
    classes: Codes | None = None
    trellis: tuple[int, ...] | None = None

    @property
    def symbols(self) -> Symbols:
        """What is coded, i32[n]."""
        return self.levels if self.trellis is None else trellis.symbols(self.levels)

    def simplified(self) -> Quantized:
        """The same weights without what says nothing: scales of zeros, classes that do not differ."""
        low, high = int(self.levels.min()), int(self.levels.max())
        return replace(
            self,
            scales=tuple(scale for scale in self.scales if scale.values.any()) if low or high else (),
            classes=self.classes if self.classes is not None and self.classes.values.any() and low < high else None,
        )

    def restored(self, dtype: str, shape: Sequence[int], begin: int = 0, end: int | None = None) -> Array:
        """Restored weights ŵ from number `begin` up to `end`, row-major, of a layer of this type and shape.

        Raises:
            ValueError: a bin width that `scaled_widths` refuses.
        """
        levels = self.levels[begin:end]
        out = np.empty(levels.size, STORAGE[dtype])
        width = self.width if self.trellis is None else self.width / trellis.PARTS
        restore(levels, dtype, width, self.scales, shape, begin, out)
        return out


def restore(
    levels: Symbols, dtype: str, width: float, scales: Sequence[Codes], shape: Sequence[int], begin: int, out: Array
) -> None:
    """Write into `out` the weights ŵ from number `begin` on, row-major, of a layer of this type and shape.

    Args:
        levels: of these weights, i32[size of `out`].
        dtype: name of the type, a key of `STORAGE`.
        width: bin width of code 0.
        scales: of the layer.
        shape: of the layer.
        begin: number of the first weight.
        out: one-dimensional, in storage type.

    Raises:
        ValueError: a bin width that `scaled_widths` refuses.
    """
    steps: Iterable[Width] = itertools.repeat(width)
    if scales:
        steps = _scaled_blocks(width, scales, shape, begin, begin + levels.size)
    _dequantize(levels, dtype, steps, out)


def norm(weights: Array, dtype: str) -> float:
    """Euclidean norm ‖w‖ of all weights; NaN or infinity where a weight is."""
    largest = peak(weights, dtype)
    if largest == 0 or not np.isfinite(largest):
        return largest
    total = 0.0
    for block in _blocks(weights, dtype):
        np.divide(block, largest, out=block)  # squares of very large or small weights would leave the range
        total += float(np.sum(np.square(block, out=block)))
    return largest * float(np.sqrt(total))


def peak(weights: Array, dtype: str) -> float:
    """Largest magnitude max |w|; NaN or infinity where a weight is."""
    return float(np.max([np.max(np.abs(block)) for block in _blocks(weights, dtype)]))  # Python's max drops a NaN


def scaled_widths(width: float, codes: NDArray[np.signedinteger[Any]]) -> NDArray[np.float64]:
    """Bin widths Δ · 2^(c/4) of integer codes c, of the same shape, computed as FORMAT.md defines it, "Scales".

    Raises:
        ValueError: a code beyond ±`limits.CODE_MAX`, or a bin width that is not a normal double.
    """
    low, high = int(codes.min()), int(codes.max())
    if max(-low, high) > CODE_MAX:
        raise ValueError(f"a code of bin widths beyond ±{CODE_MAX}")
    widths = np.take(_scaled(width), codes + CODE_MAX)
    if not (sys.float_info.min <= widths.min() and widths.max() <= sys.float_info.max):  # NaN is refused too
        raise ValueError("a bin width that is not a normal double")
    return widths


def sum_of(codes: Iterable[Symbols]) -> NDArray[np.int64]:
    """Sums of codes, broadcast to the shape that they share; four of any 32 bits do not overflow."""
    total: NDArray[np.int64] = functools.reduce(np.add, (part.astype(np.int64) for part in codes))
    return total


def bin_widths(width: float, scales: Sequence[Codes], dimensions: int) -> Width:
    """The bin widths of a layer with so many dimensions: an array that broadcasts to its shape; without scales Δ.

    The array is no larger than the axes of all scales together make it; `nearest` and `restored` do without.

    Raises:
        ValueError: as `scaled_widths` has it.
    """
    return scaled_widths(width, sum_of([scale.aligned(dimensions) for scale in scales])) if scales else width


def nearest(
    weights: Array, dtype: str, width: float, scales: tuple[Codes, ...] = (), classes: Codes | None = None
) -> Quantized:
    """The weights quantized, each to the nearest symbol, with the codes that were given.

    Raises:
        ValueError: a bin width that `scaled_widths` refuses.
    """
    steps: Iterable[Width] = itertools.repeat(width)
    if scales:
        steps = _scaled_blocks(width, scales, weights.shape, 0, weights.size)
    return Quantized(_quantize(weights, dtype, steps), width, scales, classes)


def directed(weights: Array, dtype: str, width: float, up: bool, scales: tuple[Codes, ...] = ()) -> Quantized:
    """The weights quantized, each to the symbol above it if `up`, else to the one below.

    Raises:
        ValueError: a bin width that `scaled_widths` refuses.
    """
    steps: Iterable[Width] = itertools.repeat(width)
    if scales:
        steps = _scaled_blocks(width, scales, weights.shape, 0, weights.size)
    return Quantized(_quantize(weights, dtype, steps, np.ceil if up else np.floor), width, scales)


def quantize(weights: Array, dtype: str, width: Width) -> Symbols:
    """Symbols round(w/Δ), shape [n], nearest and ties to even, eq. (4).

    Args:
        weights: any shape, in storage type, finite.
        dtype: name of the type, a key of `STORAGE`.
        width: bin width Δ > 0 in the units of the weights, not below max |w| / `SYMBOL_MAX`; an array of them
            broadcasts to the shape of the weights.
    """
    return _quantize(weights, dtype, _width_blocks(width, weights.shape))


def _quantize(weights: Array, dtype: str, steps: Iterable[Width], to_integer: np.ufunc = np.rint) -> Symbols:
    symbols = np.empty(weights.size, np.int32)
    position = 0
    for block, step in zip(_blocks(weights, dtype), steps, strict=False):
        np.divide(block, step, out=block)
        to_integer(block, out=block)
        symbols[position : position + block.size] = block
        position += block.size
    return symbols


def dequantize(symbols: Symbols, dtype: str, width: Width) -> Array:
    """Restored weights ŵ = cast(symbol · Δ), shape [n], finite: product in float64, one cast (FORMAT.md, "Codings").

    Args:
        symbols: any shape.
        dtype: name of the type, a key of `STORAGE`.
        width: bin width Δ, or an array of them that broadcasts to the shape in which the symbols are given.
    """
    restored = np.empty(symbols.size, STORAGE[dtype])
    _dequantize(symbols.reshape(-1), dtype, _width_blocks(width, symbols.shape), restored)
    return restored


def _dequantize(symbols: Symbols, dtype: str, steps: Iterable[Width], restored: Array) -> None:
    scratch = np.empty(min(_BLOCK, symbols.size))
    for begin, step in zip(range(0, symbols.size, _BLOCK), steps, strict=False):
        part = symbols[begin : begin + _BLOCK]
        block = scratch[: part.size]
        _restore(part, dtype, step, block, restored[begin : begin + part.size])


def requantize(weights: Array, dtype: str, width: Width, out: Array) -> None:
    """Write into `out` what `dequantize(quantize(weights))` returns, bit for bit, without the symbols between.

    Args:
        weights: any shape, in storage type, finite.
        dtype: name of the type, a key of `STORAGE`.
        width: bin width Δ, or an array of them that broadcasts to the shape of the weights.
        out: C-contiguous, same shape and type as the weights.
    """
    flat = out.reshape(-1)
    position = 0
    for block, step in zip(_blocks(weights, dtype), _width_blocks(width, weights.shape), strict=False):
        np.divide(block, step, out=block)
        np.rint(block, out=block)
        np.add(block, 0.0, out=block)  # −0 becomes +0, as an integer has it
        _restore(block, dtype, step, block, flat[position : position + block.size])
        position += block.size


def extremes(weights: Array, dtype: str) -> tuple[float, float]:
    """Smallest and largest weight of finite ones."""
    pairs = [(float(block.min()), float(block.max())) for block in _blocks(weights, dtype)]
    return min(low for low, _ in pairs), max(high for _, high in pairs)


def squared_error(weights: Array, restored: Array, dtype: str) -> float:
    """‖ŵ − w‖² / max |w|² of two arrays of the same size and type, w not all 0."""
    total, largest = 0.0, peak(weights, dtype)
    flat, other = weights.reshape(-1), restored.reshape(-1)
    for begin in range(0, flat.size, _BLOCK):
        part = slice(begin, begin + _BLOCK)
        total += float(np.sum(np.square(widened(flat[part], dtype) / largest - widened(other[part], dtype) / largest)))
    return total


def computable(weights: Array, dtype: str) -> Array:
    """The weights in a type that numpy computes with, in their own shape: themselves, but for bfloat16 in float32."""
    return (weights.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else weights


def widened(weights: Array, dtype: str) -> NDArray[np.float64]:
    """The weights in float64, in their own shape."""
    return computable(weights, dtype).astype(np.float64)


def added(weights: Array, shift: NDArray[np.float64], dtype: str) -> Array:
    """Weights + shift in storage type, in the shape of the weights; what leaves the type's range stays at its end."""
    out = np.empty(weights.size, STORAGE[dtype])
    total = (widened(weights, dtype) + shift).reshape(-1)
    _restore(total, dtype, 1.0, total, out)
    return out.reshape(weights.shape)


def entropy(counts: NDArray[np.int64]) -> float:
    """Empirical entropy in bits/symbol of counts > 0, shape [symbols in use]."""
    total = counts.sum()
    return float(abs(np.log2(total) - np.dot(counts, np.log2(counts)) / total))


def _blocks(weights: Array, dtype: str) -> Iterator[NDArray[np.float64]]:
    """The weights in float64, block by block; the yielded array is reused and may be written to."""
    flat = weights.reshape(-1)
    scratch = np.empty(min(_BLOCK, flat.size))
    for begin in range(0, flat.size, _BLOCK):
        part = flat[begin : begin + _BLOCK]
        block = scratch[: part.size]
        if dtype == "bfloat16":
            block[:] = widened(part, dtype)
        else:
            block[:] = part
        yield block


def _width_blocks(width: Width, shape: tuple[int, ...]) -> Iterable[Width]:
    """The bin widths block by block, as `_blocks` has the weights; a single one without end."""
    if not isinstance(width, np.ndarray):
        return itertools.repeat(width)
    every, size = np.broadcast_to(width, shape), math.prod(shape)
    return (_run(every, begin, min(begin + _BLOCK, size)) for begin in range(0, size, _BLOCK))


def _scaled_blocks(
    width: float, scales: Sequence[Codes], shape: Sequence[int], begin: int, end: int
) -> Iterator[NDArray[np.float64]]:
    """The bin widths of weights `begin` up to `end` of a layer with scales, block by block."""
    for first in range(begin, end, _BLOCK):
        yield scaled_widths(width, sum_of([scale.run(shape, first, min(first + _BLOCK, end)) for scale in scales]))


def _run(array: Array, begin: int, end: int) -> Array:
    """A copy of the elements from number `begin` up to `end`, row-major, of any array; `flat` has them, but slowly."""
    if array.ndim < 2:
        return array.reshape(-1)[begin:end].copy()
    run = np.empty(end - begin, array.dtype)
    row = math.prod(array.shape[1:])
    while begin < end:
        number, offset = divmod(begin, row)
        rows = 0 if offset else (end - begin) // row
        target = run[run.size - (end - begin) :]
        if rows:
            target[: rows * row].reshape(rows, *array.shape[1:])[...] = array[number : number + rows]
            begin += rows * row
        else:
            part = min(row - offset, end - begin)
            target[:part] = _run(array[number], offset, offset + part)
            begin += part
    return run


@functools.lru_cache(maxsize=64)  # a layer asks for it block by block
def _scaled(width: float) -> NDArray[np.float64]:
    """The bin widths of all codes from −CODE_MAX to CODE_MAX; infinity or a subnormal one is not to be used."""

    def scaled(code: int) -> float:
        try:
            return math.ldexp(width * QUARTERS[code % 4], code // 4)
        except OverflowError:
            return math.inf

    table = np.array([scaled(code) for code in range(-CODE_MAX, CODE_MAX + 1)])
    table.flags.writeable = False
    return table


def _restore(
    symbols: Symbols | NDArray[np.float64], dtype: str, width: Width, block: NDArray[np.float64], out: Array
) -> None:
    """Write cast(symbol · Δ) into `out`; the product is taken in `block`, which may be `symbols` itself."""
    largest = _LARGEST[dtype]
    widest = width.max() if isinstance(width, np.ndarray) else width
    if widest <= largest / _DECODED_MAX:
        np.multiply(symbols, width, out=block)
    else:
        with np.errstate(over="ignore"):
            np.multiply(symbols, width, out=block)
        np.clip(block, -largest, largest, out=block)  # a finite weight is restored as a finite one
    if dtype == "bfloat16":
        bits = block.astype(np.float32).view(np.uint32)
        out[:] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even; finite values only
    else:
        out[:] = block
