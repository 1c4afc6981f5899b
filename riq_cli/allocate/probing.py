"""How far the outputs move when one layer is quantized alone, and the measured allocation that follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from riq_cli.allocate.allocation import Allocation, Curve, water_filling
from riq_cli.errors import ModelError
from riq_cli.runtime import Array, Prober

_READABLE = 1e-9  # a deviation below this is rounding of the runs, not an effect of the layer
_SATURATED = 0.05  # above this a deviation grows no longer with the square of the error
_LARGEST = 2.0  # cosine distance; NaN outputs count as that
_TRIES = 5  # probes of a layer until its deviation is readable
_WIDER = 8.0
_NEAR = 1.5  # factor on a bin width within which a layer is not probed again
_WIDEST = 16.0  # times bins beside a layer's norm may be wider than typically: a few samples may not exercise it

Quantize = Callable[[float], Mapping[int, Array]]  # bin width → the layers that change, by their numbers


@dataclass(frozen=True)
class Probe:
    """What was measured of a layer: the deviation that it causes alone at a bin width.

    Up to the bin width `unreadable` nothing could be measured: a saturated attention leaps from nothing to more than
    all layers may cause together. A `failed` layer made the outputs infinite, or the model fail.
    """

    width: float
    deviation: float
    unreadable: float = 0.0
    failed: bool = False

    @property
    def is_readable(self) -> bool:
        """Whether the deviation is the layer's, and no rounding of the runs."""
        return self.deviation >= _READABLE

    def is_near(self, width: float) -> bool:
        """Whether a bin width is so near to that of the probe that the layer need not be probed there."""
        return 1 / _NEAR < width / self.width < _NEAR


def probe(prober: Prober, quantize: Quantize, width: float, budget: float) -> Probe:
    """The deviation of a layer at about a bin width, or at others near it until it can be read.

    Args:
        prober: measures the deviation of changed layers.
        quantize: quantizes the layer alone.
        width: where to begin.
        budget: the deviation that all layers may cause together.
    """
    unreadable, high, most = 0.0, None, _SATURATED
    found = Probe(width, _deviation(prober, quantize(width)))
    for _ in range(_TRIES - 1):
        if _READABLE <= found.deviation <= most:
            break
        if found.deviation < _READABLE:
            unreadable, most = found.width, budget
        else:
            high = found
        if unreadable:
            width = found.width * _WIDER if high is None else math.sqrt(unreadable * high.width)
        else:
            width = found.width * math.sqrt(_SATURATED / 4 / min(found.deviation, _LARGEST))
        found = Probe(width, _deviation(prober, quantize(width)))
    if not found.is_readable and high is not None:
        unreadable, found = found.width, high
    failed = found.deviation >= _LARGEST and math.isinf(_deviation(prober, quantize(0.0)))
    return Probe(found.width, min(found.deviation, _LARGEST), unreadable, failed)


def probe_again(prober: Prober, quantize: Quantize, found: Probe, width: float) -> Probe:
    """The probe at the bin width that was chosen, if its deviation can be read there; else the same.

    At low rates the deviation does not grow as the error does.
    """
    deviation = min(_deviation(prober, quantize(width)), _LARGEST)
    return found if deviation < _READABLE else replace(found, width=width, deviation=deviation)


def _deviation(prober: Prober, changed: Mapping[int, Array]) -> float:
    """The deviation of changed layers, infinite where the model cannot be run with them."""
    try:
        return max(prober.deviations(changed))
    except ModelError:
        return math.inf


@dataclass(frozen=True)
class Sensitivities:
    """What the measured allocation follows from, by the number of the layer.

    Attributes:
        probes: of all layers that may be coded.
        curves: of those whose probe is readable.
        sizes, norms, peaks: number of weights, ‖w‖ and max |w| of all layers.
    """

    probes: Mapping[int, Probe]
    curves: Mapping[int, Curve]
    sizes: Sequence[int]
    norms: Sequence[float]
    peaks: Mapping[int, float]

    def allocation(self, deviation: float, k: float, widths: Sequence[float | None]) -> Allocation:
        """The allocation of least rate for a deviation, by reverse water-filling.

        A layer without a measurable effect keeps the norm's bin width, and none wider than that of the solution with
        nearest rounding that is given: samples that do not exercise it say nothing about it. Those that hardly exercise
        it say little.

        Args:
            deviation: that all layers may cause together.
            k: of a solution of the norm allocation that causes about that.
            widths: its bin widths.
        """
        chosen = self.widths(deviation)
        numbers = list(chosen)
        relative = {n: width / self.norms[n] for n, width in chosen.items()}
        weights = [self.sizes[n] for n in numbers]
        typical = math.exp(float(np.average(np.log(list(relative.values())), weights=weights))) if chosen else 1.0
        shapes = {n: min(relative[n], _WIDEST * typical) * self.norms[n] * k for n in numbers}
        bounds = {n: self.peaks[n] for n in numbers}  # wider, and nothing of the layer would be left
        for number in self.probes.keys() - chosen.keys():
            shapes[number], bounds[number] = self.norms[number], widths[number] or self.norms[number] / k
        return Allocation("measured", shapes, 0.0, bounds)

    def widths(self, deviation: float) -> dict[int, float]:
        """Bin widths of least rate at which layers whose probe is readable cause a deviation together."""
        numbers = list(self.curves)
        sensitivities = [self.probes[n].deviation / self.curves[n].error(self.probes[n].width) for n in numbers]
        curves = [self._readable(n, sensitivity) for n, sensitivity in zip(numbers, sensitivities, strict=True)]
        return dict(zip(numbers, water_filling(curves, sensitivities, deviation), strict=True))

    def _readable(self, number: int, sensitivity: float) -> Curve:
        """The layer's curve, its errors next to nothing where nothing could be read."""
        curve = self.curves[number]
        least = np.minimum(curve.errors, _READABLE / sensitivity)
        return replace(curve, errors=np.where(curve.widths <= self.probes[number].unreadable, least, curve.errors))
