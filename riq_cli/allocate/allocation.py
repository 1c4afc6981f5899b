"""Layer → relative bin width: how distortion is shared out among layers.

`norm` is the paper's: bin widths proportional to ‖w‖, eq. (7). `uniform` is its baseline of Fig. 4a: k bins over each
layer's range. `measured` minimizes the rate for the deviation that the layers were seen to cause: reverse water-filling
over their rate–distortion curves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEPS = np.exp2(np.arange(-4, 6) * 0.75)  # bin widths of a curve, relative to its middle
_EXACT = ("norm", "uniform", "fixed")  # allocations that a formula gives
_TINY = 1e-300


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
    ratio = sum(size * square for size, square in zip(sizes, squares, strict=True)) / total
    return math.sqrt(ratio / (24 * distortion))


@dataclass(frozen=True)
class Curve:
    """Rate and distortion of one layer over its bin width.

    `widths` f64[m] ascending; `bits` f64[m]: about the bits of the coded layer; `errors` f64[m]: squared error of all
    weights, each over its relative bin width, in a unit of the curve's own.
    """

    widths: Floats
    bits: Floats
    errors: Floats

    def error(self, width: float) -> float:
        """The error at a bin width, interpolated."""
        return float(np.exp(np.interp(np.log(width), np.log(self.widths), np.log(self.errors))))

    @classmethod
    def of(cls, sampled: Callable[[float], tuple[float, float]], size: int, middle: float, finest: float) -> Curve:
        """The curve of a layer around a bin width, interpolated.

        Args:
            sampled: bin width → about the bits of the layer, and the mean squared error of a weight in squares of its
                bin width.
            size: number of weights.
            middle: bin width that the curve surrounds, > 0; `finest` if it is smaller.
            finest: the smallest bin width.
        """
        middle = max(middle, finest)
        widths = np.unique(np.maximum(STEPS * middle, finest))
        bits, errors = np.array([sampled(width) for width in widths]).T
        # Squares of the widths themselves might overflow.
        squares = np.log(size * errors + _TINY) + 2 * np.log(widths / middle)
        points = np.log2(widths)
        fine = np.arange(points[0], points[-1], 1 / 8)
        return cls(np.exp2(fine), np.interp(fine, points, bits), np.exp(np.interp(fine, points, squares)))


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
