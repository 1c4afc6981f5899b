"""Weights → symbols: uniform scalar quantization, eq. (4), and what is measured of weights for it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from riq_cli.decode.dequantize import (
    BLOCK,
    Quantized,
    Width,
    block_widths,
    cast_product,
    scaled_widths,
)
from riq_cli.entropy.codes import Codes, Symbols, sum_of
from riq_cli.limits import QUARTERS, STORAGE
from riq_cli.model.tensors import Array, computable

SYMBOL_MAX = 1 << 23  # |symbol| at most: float32 itself is no finer
_SHORT = 1 << 17  # a bin width of 17 bits: its products with integers up to ±127 are exact in float32


def short_width(width: Width) -> NDArray[np.float64]:
    """The smallest bin width, not below this one, that DequantizeLinear multiplies as riq does.

    Its products with integers up to ±127 are exact in float32, and so are those of √2 times it but for less than
    rounding to float32 removes: the next such number is at most 0.4 % larger.
    """
    mantissa, exponent = np.frexp(width)
    table = _short_mantissas()
    short: NDArray[np.float64] = np.ldexp(table[np.searchsorted(table, mantissa)], exponent)
    return short


def scale_step(dtype: str) -> int:
    """Quarters of an octave between scales at which weights of a type are those of DequantizeLinear, bit by bit.

    Products at √2 times a bin width are rounded, to float32: rounded again to another type they may differ.
    """
    return 2 if dtype == "float32" else 4


@functools.cache
def _short_mantissas() -> NDArray[np.float64]:
    """The numbers of 17 bits in [½, 1) whose product with √2 is such a number but for 2⁻²⁵, and twice the first."""
    numbers = np.arange(_SHORT // 2, _SHORT) / _SHORT
    products = numbers * QUARTERS[2]
    mantissa, exponent = np.frexp(products)
    nearest = np.ldexp(np.rint(mantissa * _SHORT) / _SHORT, exponent)
    found = numbers[np.abs(products - nearest) <= 2.0**-25 * products]
    return np.append(found, 2 * found[0])


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


def extremes(weights: Array, dtype: str) -> tuple[float, float]:
    """Smallest and largest weight of finite ones."""
    pairs = [(float(block.min()), float(block.max())) for block in _blocks(weights, dtype)]
    return min(low for low, _ in pairs), max(high for _, high in pairs)


def widened(weights: Array, dtype: str) -> NDArray[np.float64]:
    """The weights in float64, in their own shape."""
    return computable(weights, dtype).astype(np.float64)


def added(weights: Array, shift: NDArray[np.float64], dtype: str) -> Array:
    """Weights + shift in storage type, in the shape of the weights; what leaves the type's range stays at its end."""
    out = np.empty(weights.size, STORAGE[dtype])
    total = (widened(weights, dtype) + shift).reshape(-1)
    cast_product(total, dtype, 1.0, total, out)
    return out.reshape(weights.shape)


def bin_widths(width: float, scales: Iterable[Codes], dimensions: int) -> Width:
    """The bin widths of a layer with so many dimensions: an array that broadcasts to its shape; without scales Δ.

    The array is no larger than the axes of all scales together make it; `nearest` does without.

    Raises:
        ValueError: as `scaled_widths` has it.
    """
    codes = [scale.aligned(dimensions) for scale in scales]
    return scaled_widths(width, sum_of(codes)) if codes else width


def nearest(weights: Array, dtype: str, width: float, scales: tuple[Codes, ...] = ()) -> Quantized:
    """The weights quantized, each to the nearest symbol.

    Raises:
        ValueError: a bin width that `scaled_widths` refuses.
    """
    return Quantized(_quantized(weights, dtype, block_widths(width, weights.shape, scales)), width, scales)


def directed(weights: Array, dtype: str, width: float, up: bool, scales: tuple[Codes, ...] = ()) -> Quantized:
    """The weights quantized, each to the symbol above it if `up`, else to the one below.

    Raises:
        ValueError: a bin width that `scaled_widths` refuses.
    """
    steps = block_widths(width, weights.shape, scales)
    return Quantized(_quantized(weights, dtype, steps, np.ceil if up else np.floor), width, scales)


def quantize(weights: Array, dtype: str, width: Width) -> Symbols:
    """Symbols round(w/Δ), shape [n], nearest and ties to even, eq. (4).

    Args:
        weights: any shape, in storage type, finite.
        dtype: name of the type, a key of `STORAGE`.
        width: bin width Δ > 0 in the units of the weights, not below max |w| / `SYMBOL_MAX`; an array of them
            broadcasts to the shape of the weights.
    """
    return _quantized(weights, dtype, block_widths(width, weights.shape))


def requantize(weights: Array, dtype: str, width: Width, out: Array) -> None:
    """Write into `out` the restored weights of `quantize`, bit for bit, without the symbols between.

    Args:
        weights: any shape, in storage type, finite.
        dtype: name of the type, a key of `STORAGE`.
        width: bin width Δ, or an array of them that broadcasts to the shape of the weights.
        out: C-contiguous, same shape and type as the weights.
    """
    flat = out.reshape(-1)
    position = 0
    for block, step in zip(_blocks(weights, dtype), block_widths(width, weights.shape), strict=False):
        np.divide(block, step, out=block)
        np.rint(block, out=block)
        np.add(block, 0.0, out=block)  # −0 becomes +0, as an integer has it
        cast_product(block, dtype, step, block, flat[position : position + block.size])
        position += block.size


def _quantized(weights: Array, dtype: str, steps: Iterable[Width], to_integer: np.ufunc = np.rint) -> Symbols:
    symbols = np.empty(weights.size, np.int32)
    position = 0
    for block, step in zip(_blocks(weights, dtype), steps, strict=False):
        np.divide(block, step, out=block)
        to_integer(block, out=block)
        symbols[position : position + block.size] = block
        position += block.size
    return symbols


def _blocks(weights: Array, dtype: str) -> Iterator[NDArray[np.float64]]:
    """The weights in float64, block by block; the yielded array is reused and may be written to."""
    flat = weights.reshape(-1)
    scratch = np.empty(min(BLOCK, flat.size))
    for begin in range(0, flat.size, BLOCK):
        part = flat[begin : begin + BLOCK]
        block = scratch[: part.size]
        block[:] = computable(part, dtype)
        yield block
