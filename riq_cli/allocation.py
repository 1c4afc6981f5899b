"""Layer → relative bin width: how distortion is shared out among layers."""

from __future__ import annotations

import math
from collections.abc import Sequence


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


def expected_k(norms: Sequence[float], sizes: Sequence[int], distortion: float) -> float:
    """The k at which all weights together are turned by `distortion`, by Corollary 1 with Δ = ‖w‖/k.

    1 − cos θ = Σ n‖w‖² / (24 k² Σ ‖w‖²). Deviation is of the same order: a place to start the search.
    """
    energy = sum(norm**2 for norm in norms)
    return math.sqrt(sum(size * norm**2 for size, norm in zip(sizes, norms, strict=True)) / (24 * distortion * energy))
