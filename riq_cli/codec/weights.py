"""All float tensors of a model that may be coded: their bin widths, what they cost, and their values once quantized."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np

from riq_cli import quantizer
from riq_cli.allocation import Allocation, expected_k, table_bits
from riq_cli.codec.settings import DEFAULT_MIN_SIZE
from riq_cli.coder import Histogram
from riq_cli.limits import TABLE_SYMBOLS
from riq_cli.model import Layer

_PIECE = 1 << 20  # weights that one thread quantizes at a time
_ENTRY_BITS = 8 * 45  # about what a layer adds to the stored manifest
_DEFLATED = 0.92  # about what deflate leaves of float data in the skeleton

Widths = list[float | None]  # of every layer; None: it stays exact


class Weights:
    """The layers of a model with what their bin widths depend on.

    `matrices` are the numbers of the layers that the paper quantizes, `vectors` those of the others that may be: 1-D
    or tiny. Both are finite and not all zero; layers of zeros are in `zeros`.
    """

    def __init__(self, layers: Sequence[Layer], max_bits: int | None = None, min_size: int | None = None) -> None:
        """Measure norm and peak of every layer.

        Args:
            layers: candidates, in the order of the model.
            max_bits: R: bin widths are kept so large that no layer has more than 2^R levels; None: no such bound.
            min_size: weights that a matrix has at least, 256 by default; smaller ones count as vectors.
        """
        self.layers = layers
        self.sizes = [layer.size for layer in layers]
        self.norms = [quantizer.norm(layer.values, layer.dtype) for layer in layers]
        active = [number for number, norm in enumerate(self.norms) if 0 < norm < math.inf]
        self.matrices = [n for n in active if is_matrix(layers[n], min_size)]
        self.vectors = [n for n in active if not is_matrix(layers[n], min_size)]
        if not self.matrices:  # then they are all there is
            self.matrices, self.vectors = self.vectors, []
        self.zeros = [n for n, norm in enumerate(self.norms) if norm == 0 and is_matrix(layers[n], min_size)]
        self.not_finite = [
            n for n, norm in enumerate(self.norms) if not math.isfinite(norm) and is_matrix(layers[n], min_size)
        ]
        self._finest = {number: _finest_width(layers[number], max_bits) for number in active}

    @property
    def largest(self) -> int:
        """Number of weights n* of the largest layer that the paper quantizes."""
        return max(self.sizes[number] for number in self.matrices)

    def expected_k(self, distortion: float) -> float:
        """The k at which all matrices together are turned by `distortion`."""
        return expected_k([self.norms[n] for n in self.matrices], [self.sizes[n] for n in self.matrices], distortion)

    def norm_allocation(self, epsilon: float) -> Allocation:
        """The paper's: s_ℓ = ‖w_ℓ‖ for every matrix."""
        return Allocation("norm", {number: self.norms[number] for number in self.matrices}, epsilon)

    def widths(self, allocation: Allocation, k: float) -> Widths:
        """Bin width of every layer at k; any for one of zeros, None for one that stays exact."""
        widths: Widths = [None] * len(self.layers)
        for number in self.zeros:
            widths[number] = 1.0
        for number in allocation.shapes:
            widths[number] = max(allocation.width(number, self.sizes[number], k), self._finest[number])
        return widths

    def worthwhile(self, widths: Widths) -> Widths:
        """The same widths, with None for vectors that take no more room exact in the skeleton than coded."""
        result = list(widths)
        for number in self.vectors:
            width = widths[number]
            if width is not None and self._coded_bits(number, width) >= self._exact_bits(number):
                result[number] = None
        return result

    def bits(self, widths: Widths) -> float:
        """About the bits of the archive that depend on bin widths: of coded layers, and of those that stay exact."""
        return sum(
            self._exact_bits(number) if width is None else self._coded_bits(number, width)
            for number, width in enumerate(widths)
        )

    def _coded_bits(self, number: int, width: float) -> float:
        layer = self.layers[number]
        histogram = Histogram.of(quantizer.quantize(layer.values, layer.dtype, width))
        if histogram.symbols.size > TABLE_SYMBOLS:
            return self._exact_bits(number) + _ENTRY_BITS
        return layer.size * quantizer.entropy(histogram.counts) + table_bits(histogram) + _ENTRY_BITS

    def _exact_bits(self, number: int) -> float:
        return _DEFLATED * 8 * self.layers[number].values.nbytes

    def buffers(self) -> list[quantizer.Array]:
        """One array for each layer: room for `requantize`."""
        return [np.empty_like(layer.values) for layer in self.layers]

    def restored(self, number: int, width: float) -> quantizer.Array:
        """The restored weights ŵ of one layer at a bin width, in the layer's shape and storage type."""
        layer = self.layers[number]
        out = np.empty(layer.shape, layer.values.dtype)
        quantizer.requantize(layer.values, layer.dtype, max(width, self._finest[number]), out)
        return out

    def peak(self, number: int) -> float:
        """Largest magnitude max |w| of one layer."""
        layer = self.layers[number]
        return quantizer.peak(layer.values, layer.dtype)

    def error(self, number: int, restored: quantizer.Array) -> float:
        """‖ŵ − w‖² / max |w|² of one layer."""
        layer = self.layers[number]
        return quantizer.squared_error(layer.values, restored, layer.dtype)

    def requantize(self, widths: Widths, out: Sequence[quantizer.Array], pool: Executor) -> list[quantizer.Array]:
        """The restored weights ŵ of every layer: in `out`, from `buffers`, or the original where it stays exact.

        Args:
            widths: bin width of every layer; None: exact.
            out: written to.
            pool: its threads work at the same time.
        """

        def piece(number: int, width: float, begin: int) -> None:
            layer, part = self.layers[number], slice(begin, begin + _PIECE)
            quantizer.requantize(layer.values.reshape(-1)[part], layer.dtype, width, out[number].reshape(-1)[part])

        jobs = [
            (number, width, begin)
            for number, width in enumerate(widths)
            if width is not None
            for begin in range(0, self.sizes[number], _PIECE)
        ]
        list(pool.map(piece, *zip(*jobs, strict=True)))
        return [
            layer.values if width is None else array
            for layer, width, array in zip(self.layers, widths, out, strict=True)
        ]


def is_matrix(layer: Layer, min_size: int | None) -> bool:
    """Whether the paper quantizes a layer: weights of two axes or more, and not tiny."""
    return len(layer.shape) >= 2 and layer.size >= (DEFAULT_MIN_SIZE if min_size is None else min_size)


def _finest_width(layer: Layer, max_bits: int | None) -> float:
    """The smallest bin width that a layer may have: symbols stay exact in any arithmetic, and within `max_bits`."""
    finest = quantizer.peak(layer.values, layer.dtype) / quantizer.SYMBOL_MAX
    if max_bits is None:
        return finest
    low, high = quantizer.extremes(layer.values, layer.dtype)
    # The remark in 4.1 of the paper, a hair wider: ties at both ends would make one level more.
    return max(finest, (high - low) / float(2**max_bits - 1) * (1 + 1e-9))
