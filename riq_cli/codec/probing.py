"""How much deviation each layer causes, measured layer by layer, and the allocation that follows."""

from __future__ import annotations

import math
from collections.abc import Callable

from riq_cli.allocation import Allocation, Curve, curve, water_filling
from riq_cli.codec.weights import Weights, Widths
from riq_cli.evaluator import Prober

_READABLE = 1e-9  # a deviation below this is rounding of the runs, not an effect of the layer
_SATURATED = 0.05  # above this a deviation grows no longer with the square of the error
_LARGEST = 2.0  # cosine distance; NaN outputs count as that
_TRIES = 4  # probes of a layer until its deviation is readable
_WIDER = 8.0
_NEAR = 1.5  # a layer is not probed again at a bin width this close to one where it was


Probed = Callable[[int, int, int | None, float], None]  # told of steps done and in all, and a layer's deviation


def measured_allocation(weights: Weights, prober: Prober, widths: Widths, k: float, progress: Probed) -> Allocation:
    """The allocation of least rate for the deviation that the solution `widths` at `k` is expected to cause.

    Each layer is quantized alone and the deviation measured: a_ℓ = deviation / ‖ŵ − w‖², in the units of the curves.
    Bin widths then follow by water-filling; layers whose width changes much are probed once more there, since low-rate
    layers are not in the regime where they were first measured. A layer without a measurable effect keeps the norm's
    bin width, and none wider than in `widths`: samples that do not exercise it say nothing about it.

    Args:
        weights: all layers that may be coded.
        prober: measures the deviation of changed layers.
        widths: the paper's solution.
        k: its k.
        progress: called with probes done and in all, the number of the layer that was probed (None: it was not again),
            and the deviation that it caused alone.
    """
    numbers = weights.matrices + weights.vectors
    probes = _Probes(weights, prober)
    for done, number in enumerate(numbers):
        start = widths[number]
        deviation = probes.first(number, start if start is not None else weights.norms[number] / k)
        progress(done + 1, 2 * len(numbers), number, deviation)
    budget = sum(
        probes.sensitivity[number] * probes.curves[number].error(width)
        for number, width in enumerate(widths)
        if number in probes.sensitivity and width is not None
    )
    chosen = probes.filled(budget)
    for done, (number, better) in enumerate(chosen.items()):
        again = probes.again(number, better)
        progress(len(numbers) + done + 1, 2 * len(numbers), None if again is None else number, again or 0.0)
    chosen = probes.filled(budget)
    progress(2 * len(numbers), 2 * len(numbers), None, 0.0)
    shapes = {number: width * k for number, width in chosen.items()}
    silent = [number for number in numbers if number not in chosen]
    shapes |= {number: weights.norms[number] for number in silent}
    bounds = {number: weights.peak(number) for number in chosen}  # wider, and nothing of the layer would be left
    return Allocation("measured", shapes, 0.0, bounds | {n: widths[n] or weights.norms[n] / k for n in silent})


class _Probes:
    """What was measured of each layer."""

    def __init__(self, weights: Weights, prober: Prober) -> None:
        self._weights, self._prober = weights, prober
        self.curves: dict[int, Curve] = {}
        self.sensitivity: dict[int, float] = {}
        self._probed: dict[int, float] = {}

    def first(self, number: int, width: float) -> float:
        """The deviation of a layer at a bin width, or at others near it until it can be read."""
        deviation, error = self._measure(number, width)
        for _ in range(_TRIES - 1):
            if _READABLE <= deviation <= _SATURATED:
                break
            width *= _WIDER if deviation < _READABLE else math.sqrt(_SATURATED / 4 / deviation)
            deviation, error = self._measure(number, width)
        if deviation >= _READABLE and error > 0:
            self.sensitivity[number] = deviation / error
            self._probed[number] = width
            layer = self._weights.layers[number]
            self.curves[number] = curve(layer.values, layer.dtype, width)
        return deviation

    def again(self, number: int, width: float) -> float | None:
        """The deviation of a layer at the bin width that was chosen for it; None if it was first measured near that."""
        if 1 / _NEAR < width / self._probed[number] < _NEAR:
            return None
        deviation, error = self._measure(number, width)
        if deviation >= _READABLE and error > 0:
            self.sensitivity[number] = deviation / error
        return deviation

    def filled(self, budget: float) -> dict[int, float]:
        """Bin widths of least rate for a sum of deviations, by the number of the layer."""
        numbers = list(self.sensitivity)
        curves = [self.curves[number] for number in numbers]
        found = water_filling(curves, [self.sensitivity[number] for number in numbers], budget)
        return dict(zip(numbers, found, strict=True))

    def _measure(self, number: int, width: float) -> tuple[float, float]:
        """Deviation with one layer quantized, and its error in the units of the curves."""
        restored = self._weights.restored(number, width)
        deviation = max(self._prober.deviations({number: restored}))
        return min(deviation, _LARGEST), self._weights.error(number, restored)
