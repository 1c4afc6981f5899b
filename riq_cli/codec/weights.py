"""All layers of a model together: their bin widths, and their values once quantized."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np

from riq_cli import quantizer
from riq_cli.allocation import bin_width, expected_k
from riq_cli.coder import Histogram
from riq_cli.model import Layer

_PIECE = 1 << 20  # weights that one thread quantizes at a time


class Weights:
    """The layers of a model with what their bin widths depend on.

    `active` are the numbers of the layers that are quantized: finite and not all zero.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        """Measure norm and peak of every layer."""
        self._layers = layers
        self._norms = [quantizer.norm(layer.values, layer.dtype) for layer in layers]
        self.active = [number for number, norm in enumerate(self._norms) if 0 < norm < math.inf]
        self._finest = {number: self._finest_width(layers[number]) for number in self.active}

    @staticmethod
    def _finest_width(layer: Layer) -> float:
        return quantizer.peak(layer.values, layer.dtype) / quantizer.SYMBOL_MAX

    @property
    def not_finite(self) -> list[Layer]:
        """Layers that hold NaN or infinity and so cannot be quantized."""
        return [layer for layer, norm in zip(self._layers, self._norms, strict=True) if not math.isfinite(norm)]

    @property
    def largest(self) -> int:
        """Number of weights n* of the largest layer that is quantized."""
        return max(self._layers[number].size for number in self.active)

    def expected_k(self, distortion: float) -> float:
        """The k at which all weights together are turned by `distortion`."""
        norms = [self._norms[number] for number in self.active]
        return expected_k(norms, [self._layers[number].size for number in self.active], distortion)

    def widths(self, k: float, epsilon: float) -> list[float | None]:
        """Bin width of every layer, eq. (7); any for one of zeros, None for one that cannot be quantized."""
        widths: list[float | None] = [1.0 if norm == 0 else None for norm in self._norms]
        for number in self.active:
            width = bin_width(self._norms[number], self._layers[number].size, k, epsilon)
            widths[number] = max(width, self._finest[number])
        return widths

    def coded_bits(self, k: float, epsilon: float) -> float:
        """Bits of all quantized layers at their entropy, n · H summed: what two solutions are compared by."""
        widths = self.widths(k, epsilon)
        total = 0.0
        for number in self.active:
            layer, width = self._layers[number], widths[number]
            assert width is not None
            symbols = quantizer.quantize(layer.values, layer.dtype, width)
            total += layer.size * quantizer.entropy(Histogram.of(symbols).counts)
        return total

    def buffers(self) -> list[quantizer.Array]:
        """One array for each layer: the original where nothing is quantized, else room for `requantize`."""
        return [
            np.empty_like(layer.values) if number in self._finest else layer.values
            for number, layer in enumerate(self._layers)
        ]

    def requantize(self, k: float, epsilon: float, out: Sequence[quantizer.Array], pool: Executor) -> None:
        """Write the restored weights ŵ at k and ε0 into `out`, from `buffers`; in parallel in the threads of `pool`."""
        widths = self.widths(k, epsilon)

        def piece(number: int, begin: int) -> None:
            layer, width = self._layers[number], widths[number]
            assert width is not None
            part = slice(begin, begin + _PIECE)
            quantizer.requantize(layer.values.reshape(-1)[part], layer.dtype, width, out[number].reshape(-1)[part])

        jobs = [(number, begin) for number in self.active for begin in range(0, self._layers[number].size, _PIECE)]
        list(pool.map(piece, *zip(*jobs, strict=True)))
