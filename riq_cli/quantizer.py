"""Weights ↔ symbols: uniform scalar quantization, eq. (4) and (8), and how much it costs, eq. (2).

Weights are numpy arrays in their own storage type; bfloat16, which numpy does not have, is stored as uint16 bits.
All arithmetic is in float64, in blocks that stay in the processor's cache.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # weights in storage type: float16, float32, float64, or uint16 for bfloat16
Symbols = NDArray[np.int32]

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


def quantize(weights: Array, dtype: str, width: float) -> Symbols:
    """Symbols round(w/Δ), shape [n], nearest and ties to even, eq. (4).

    Args:
        weights: any shape, in storage type, finite.
        dtype: name of the type, a key of `STORAGE`.
        width: bin width Δ > 0 in the units of the weights; not below max |w| / `SYMBOL_MAX`.
    """
    symbols = np.empty(weights.size, np.int32)
    position = 0
    for block in _blocks(weights, dtype):
        np.divide(block, width, out=block)
        np.rint(block, out=block)
        symbols[position : position + block.size] = block
        position += block.size
    return symbols


def dequantize(symbols: Symbols, dtype: str, width: float) -> Array:
    """Restored weights ŵ = cast(symbol · Δ), shape [n], finite: product in float64, one cast (FORMAT.md, "Codings")."""
    restored = np.empty(symbols.size, STORAGE[dtype])
    scratch = np.empty(min(_BLOCK, symbols.size))
    for begin in range(0, symbols.size, _BLOCK):
        part = symbols[begin : begin + _BLOCK]
        block = scratch[: part.size]
        _restore(part, dtype, width, block, restored[begin : begin + part.size])
    return restored


def requantize(weights: Array, dtype: str, width: float, out: Array) -> None:
    """Write into `out` what `dequantize(quantize(weights))` returns, bit for bit, without the symbols between.

    Args:
        weights: any shape, in storage type, finite.
        out: C-contiguous, same shape and type as the weights.
    """
    flat = out.reshape(-1)
    position = 0
    for block in _blocks(weights, dtype):
        np.divide(block, width, out=block)
        np.rint(block, out=block)
        np.add(block, 0.0, out=block)  # −0 becomes +0, as an integer has it
        _restore(block, dtype, width, block, flat[position : position + block.size])
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


def widened(weights: Array, dtype: str) -> NDArray[np.float64]:
    """The weights in float64, in their own shape."""
    if dtype == "bfloat16":
        return (weights.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return weights.astype(np.float64)


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


def _restore(
    symbols: Symbols | NDArray[np.float64], dtype: str, width: float, block: NDArray[np.float64], out: Array
) -> None:
    """Write cast(symbol · Δ) into `out`; the product is taken in `block`, which may be `symbols` itself."""
    largest = _LARGEST[dtype]
    if width <= largest / _DECODED_MAX:
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
