"""Symbols → weights: scalar dequantization, eq. (8), at one bin width or at one for each weight (FORMAT.md, "Codings").

Weights are numpy arrays in their own storage type; bfloat16, which numpy does not have, is stored as uint16 bits.
All arithmetic is in float64, in blocks that stay in the processor's cache. A bin width is one number for a layer, or
an array of them that broadcasts to the layer's shape: no copy of it as large as the layer is made.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.decode import trellis
from riq_cli.entropy.codes import Codes, Symbols, elements, sum_of
from riq_cli.limits import CODE_MAX, QUARTERS, STORAGE

Array = NDArray[Any]  # weights in their storage type
Width = float | NDArray[np.float64]  # of a whole layer, or of each of its weights after broadcasting

BLOCK = 1 << 15  # weights that are worked on at a time
_DECODED_MAX = 1 << 31  # |symbol| in any archive is below
_LARGEST = {  # finite value of a type
    "float16": 65504.0,
    "bfloat16": 2.0**128 - 2.0**120,
    "float32": 2.0**128 - 2.0**104,
    "float64": sys.float_info.max,
}


@dataclass(frozen=True, eq=False)
class Quantized:
    """A layer's levels with everything that is needed to restore and to store them.

    `levels` i32[n], row-major: symbols, or, of a layer with a `trellis`, the levels of it. A weight is restored at the
    bin width of the sum of its codes in all `scales`, which for code 0 is `width` itself; without scales, at `width`.
    The axes of a `trellis` tell its lanes.
    """

    levels: Symbols
    width: float
    scales: tuple[Codes, ...] = ()
    trellis: tuple[int, ...] | None = None

    @property
    def symbols(self) -> Symbols:
        """What is coded, i32[n]."""
        return self.levels if self.trellis is None else trellis.symbols(self.levels)

    def restored(self, dtype: str, shape: Sequence[int], begin: int = 0, end: int | None = None) -> Array:
        """Restored weights ŵ from number `begin` up to `end`, row-major, of a layer of this type and shape.

        Raises:
            ValueError: a bin width that `scaled_widths` refuses.
        """
        levels = self.levels[begin:end]
        out = np.empty(levels.size, STORAGE[dtype])
        width = self.width if self.trellis is None else self.width / trellis.PARTS
        dequantize(levels, dtype, block_widths(width, shape, self.scales, begin, begin + levels.size), out)
        return out


def dequantize(levels: Symbols, dtype: str, widths: Iterable[Width], out: Array) -> None:
    """Write into `out` the weights ŵ = cast(level · Δ), finite: product in float64, one cast.

    Args:
        levels: symbols, or levels of a trellis, i32[n].
        dtype: name of the type, a key of `STORAGE`.
        widths: bin widths Δ of one block after another, from `block_widths`.
        out: [n], in storage type.

    Raises:
        ValueError: a bin width that `scaled_widths` refuses.
    """
    scratch = np.empty(min(BLOCK, levels.size))
    for begin, width in zip(range(0, levels.size, BLOCK), widths, strict=False):
        part = levels[begin : begin + BLOCK]
        cast_product(part, dtype, width, scratch[: part.size], out[begin : begin + part.size])


def block_widths(
    width: Width, shape: Sequence[int], scales: Sequence[Codes] = (), begin: int = 0, end: int | None = None
) -> Iterable[Width]:
    """The bin widths of the weights from number `begin` up to `end` of a layer, `BLOCK` by `BLOCK`.

    Args:
        width: bin width of the layer, or of code 0 if it has scales; an array of them broadcasts to the shape.
        shape: of the layer.
        scales: of the layer; none if `width` is an array.
        begin: number of the first weight.
        end: number behind the last one; None: all that follow.

    Raises:
        ValueError: (later) a bin width that `scaled_widths` refuses.
    """
    if not scales and not isinstance(width, np.ndarray):
        return itertools.repeat(width)
    end = math.prod(shape) if end is None else end

    def of(first: int, last: int) -> Width:
        if isinstance(width, np.ndarray):
            return elements(np.broadcast_to(width, tuple(shape)), first, last)
        return scaled_widths(width, sum_of([scale.run(shape, first, last) for scale in scales]))

    return (of(first, min(first + BLOCK, end)) for first in range(begin, end, BLOCK))


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


def cast_product(
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
