"""How often each symbol of a layer occurs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from riq_cli.archive import Archive, LayerEntry
from riq_cli.limits import BESIDE, TABLE_SYMBOLS

_BARS = 75  # at most: more would be thinner than a pixel or two
_LOOKED_INTO = 1 << 28  # weights of a layer whose streams are decoded, a few of them
_BEYOND = 0.0005  # fraction of the weights at either end that may be left out, so that outliers do not squeeze the rest


@dataclass(frozen=True)
class Histogram:
    """Fractions of a layer's weights by symbol.

    `fractions[i]` is that of the `step` symbols from `first + i * step` on, in [0, 1]; `zero` that of weights that are
    restored as 0; `beyond` that of all symbols outside of them.
    """

    layer: LayerEntry
    first: int
    step: int
    fractions: tuple[float, ...]
    zero: float
    beyond: float


def histograms(archive: Archive, most: int) -> list[Histogram]:
    """The histograms of so many of the largest layers, largest first; these are decoded, large ones in part.

    Raises:
        CorruptArchive: what was decoded is damaged.
    """
    layers = [layer for layer in archive.manifest.layers if layer.coding in ("ans", "student") and _is_small(layer)]
    largest = sorted(layers, key=lambda layer: -layer.stored)[:most]
    if not largest:
        return []
    from riq_cli.decode import symbol_counts  # which takes its time to import

    found = [histogram(layer, symbol_counts(layer, parts)) for layer, parts in archive.layer_sections()
             if layer in largest]  # fmt: skip
    return sorted(found, key=lambda one: -one.layer.stored)


def _is_small(layer: LayerEntry) -> bool:
    """Whether a layer can be drawn, and looked into in little memory."""
    return layer.symbols <= TABLE_SYMBOLS and layer.size <= _LOOKED_INTO and layer.code_memory <= BESIDE


def histogram(layer: LayerEntry, counts: Mapping[int, int]) -> Histogram:
    """The histogram of a layer whose symbols occur so often."""
    total = sum(counts.values())
    symbols = sorted(counts)
    fractions = {symbol: counts[symbol] / total for symbol in symbols}
    low, high = _end(symbols, fractions), _end(symbols[::-1], fractions)
    step = -(-(high - low + 1) // _BARS)
    first = low - low % step  # bars begin at multiples of their width, so that 0 begins one
    bars = [0.0] * ((high - first) // step + 1)
    for symbol in symbols:
        if low <= symbol <= high:
            bars[(symbol - first) // step] += fractions[symbol]
    beyond = sum(fraction for symbol, fraction in fractions.items() if not low <= symbol <= high)
    zero = fractions.get(0, 0.0) if layer.trellis is None else 0.0
    return Histogram(layer, first, step, tuple(bars), zero, beyond)


def _end(symbols: list[int], fractions: dict[int, float]) -> int:
    """The first of the symbols that is not among the rarest at this end; only a long tail is left out."""
    if len(symbols) <= _BARS and abs(symbols[-1] - symbols[0]) < _BARS:
        return symbols[0]
    left_out = 0.0
    for symbol in symbols:
        left_out += fractions[symbol]
        if left_out > _BEYOND:
            return symbol
    return symbols[-1]
