"""Layer → relative bin width: how distortion is shared out among layers.

`norm` is the paper's: bin widths proportional to ‖w‖, eq. (7). `uniform` is its baseline of Fig. 4a: k bins over each
layer's range. `measured` minimizes the rate for the deviation that the layers were seen to cause: reverse water-filling
over their rate–distortion curves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from riq_cli.decode import dequantize
from riq_cli.entropy.rate import estimated_bits
from riq_cli.quantize import scalar

Floats = NDArray[np.float64]

STEPS = np.exp2(np.arange(-18, 25) / 3)  # bin widths of a curve, relative to its middle: 2⁻⁶ … 2⁸
_EXACT = ("norm", "uniform", "fixed")  # allocations that a formula gives
_SAMPLE = 1 << 17  # weights of a layer that stand for all of them in its curve


@dataclass(frozen=True)
class Allocation:
    """How bin widths follow from k: Δ_ℓ(k) = s_ℓ (1/k + ε0 √(24/n_ℓ)), at most the bound of the layer.

    `shapes` are the relative bin widths s_ℓ > 0, and `bounds` the largest Δ_ℓ where there is one, both by the number of
    the layer. Layers without a shape stay exact.
    """

    name: str
    shapes: Mapping[int, float]
    epsilon: float = 0.0
    bounds: Mapping[int, float] = field(default_factory=dict)

    def width(self, number: int, size: int, k: float) -> float:
        """Bin width of a layer of `size` weights at k, in the units of its weights.

        Where it was measured, it has five digits: more of them take room in the manifest, and tell nothing.
        """
        width = bin_width(self.shapes[number], size, k, self.epsilon)
        short = width if self.name in _EXACT else float(f"{width:.5g}")
        return min(short if math.isfinite(short) else width, self.bounds.get(number, math.inf))


def bin_width(shape: float, size: int, k: float, epsilon: float) -> float:
    """Width of a layer's quantization bins, Δ = s (1/k + ε0 √(24/n)), eq. (7).

    Args:
        shape: relative bin width s of the layer, > 0; the paper's is its norm ‖w‖.
        size: number of weights n, ≥ 1.
        k: search parameter, > 0; larger means finer.
        epsilon: minimum error constant ε0, in [0, 1).

    Returns:
        Δ in the units of the weights, > 0.
    """
    return shape * (1 / k + epsilon * math.sqrt(24 / size))


def expected_k(
    norms: Sequence[float], sizes: Sequence[int], distortion: float, shapes: Sequence[float] | None = None
) -> float:
    """The k at which all weights together are turned by `distortion`, by Corollary 1 with Δ = s/k.

    1 − cos θ = Σ n s² / (24 k² Σ ‖w‖²). Deviation is of the same order: a place to start the search.

    Args:
        norms: ‖w‖ of each layer.
        sizes: number of weights n of each layer.
        distortion: 1 − cos θ, > 0.
        shapes: relative bin width s of each layer; None: its norm.
    """
    largest = max(norms)
    squares = [(shape / largest) ** 2 for shape in shapes or norms]
    total = sum((norm / largest) ** 2 for norm in norms)
    spread = sum(size * square for size, square in zip(sizes, squares, strict=True)) / total
    return math.sqrt(spread / (24 * distortion))


@dataclass(frozen=True)
class Curve:
    """Rate and distortion of one layer over its bin width.

    `widths` f64[m] ascending; `bits` f64[m]: bits of the coded layer, table included; `errors` f64[m]: ‖ŵ − w‖² in
    units of the square of the largest weight.
    """

    widths: Floats
    bits: Floats
    errors: Floats

    def error(self, width: float) -> float:
        """The error at a bin width, interpolated."""
        return float(np.exp(np.interp(np.log(width), np.log(self.widths), np.log(self.errors))))

    def interpolated(self) -> Curve:
        """The same curve at more bin widths: an eighth of an octave apart."""
        points = np.log2(self.widths)
        fine = np.arange(points[0], points[-1], 1 / 8)
        bits, errors = np.interp(fine, points, self.bits), np.interp(fine, points, np.log(self.errors))
        return Curve(np.exp2(fine), bits, np.exp(errors))


def curve(weights: dequantize.Array, dtype: str, middle: float) -> Curve:
    """The curve of a layer around a bin width; of a large layer, an evenly spaced part of the weights stands for all.

    Args:
        weights: any shape, in storage type, finite and not all 0.
        dtype: name of the type.
        middle: bin width that the curve surrounds, > 0.
    """
    flat = weights.reshape(-1)
    stride = max(1, flat.size // _SAMPLE)
    part = np.ascontiguousarray(flat[::stride])
    scale = flat.size / part.size
    exact = scalar.widened(part, dtype)
    largest = scalar.peak(weights, dtype)
    exact /= largest
    widths = np.unique(np.maximum(STEPS * middle, largest / scalar.SYMBOL_MAX))
    bits, errors = [], []
    for width in widths / largest:
        symbols = np.rint(exact / width)
        bits.append(scale * estimated_bits(symbols.astype(np.int32), columns=flat.size, student=False))
        errors.append(scale * float(np.sum(np.square(symbols * width - exact))) + 1e-300)
    return Curve(widths, np.array(bits), np.array(errors))


def water_filling(curves: Sequence[Curve], sensitivities: Sequence[float], budget: float) -> list[float]:
    """Bin widths of least rate at which the layers' deviations add up to a budget.

    Every layer takes the width of least R_ℓ + λ a_ℓ E_ℓ; λ is found by bisection. In the high-rate regime this is
    Δ_ℓ ∝ √(n_ℓ / a_ℓ).

    Args:
        curves: of the layers.
        sensitivities: a_ℓ > 0, deviation for each unit of a curve's errors.
        budget: the sum of deviations a_ℓ E_ℓ that is not exceeded.
    """

    def choose(slope: float) -> tuple[list[float], float]:
        widths, total = [], 0.0
        for item, sensitivity in zip(curves, sensitivities, strict=True):
            best = int(np.argmin(item.bits + slope * sensitivity * item.errors))
            widths.append(float(item.widths[best]))
            total += sensitivity * float(item.errors[best])
        return widths, total

    low, high = -40.0, 140.0  # of log₂ λ
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if choose(2.0**middle)[1] <= budget else (middle, high)
    return choose(2.0**high)[0]
