"""How often each symbol of a layer occurs, read from its table alone."""

from __future__ import annotations

from dataclasses import dataclass

from riq_cli.archive import Archive, LayerEntry
from riq_cli.table import read_table

_BARS = 75  # at most: more would be thinner than a pixel or two
_BEYOND = 0.0005  # share of the weights at either end that may be left out, so that outliers do not squeeze the rest


@dataclass(frozen=True)
class Histogram:
    """Shares of a layer's weights by symbol.

    `shares[i]` is that of the `step` symbols from `first + i * step` on, in [0, 1]; `zero` that of symbol 0; `beyond`
    that of all symbols outside of them. They are squares of rounded roots: good to a few per cent of themselves.
    """

    layer: LayerEntry
    first: int
    step: int
    shares: tuple[float, ...]
    zero: float
    beyond: float


def histograms(archive: Archive, count: int) -> list[Histogram]:
    """The histograms of the layers that take most bytes, largest first; at most `count` of them.

    Raises:
        CorruptArchive: a table is damaged.
    """
    layers = [layer for layer in archive.manifest.layers if _has_one_table(layer)]
    largest = {id(layer) for layer in sorted(layers, key=lambda layer: -layer.stored)[:count]}
    found = [
        histogram(layer, sections[len(layer.codes)])  # the table is behind the codes
        for layer, sections in archive.layer_sections()
        if id(layer) in largest
    ]
    return sorted(found, key=lambda one: -one.layer.stored)


def histogram(layer: LayerEntry, table: bytes) -> Histogram:
    """The histogram of a layer with this table."""
    symbols, roots, _ = read_table(table)
    total = sum(root * root for root in roots)
    shares = {symbol: root * root / total for symbol, root in zip(symbols, roots, strict=True)}
    low, high = _end(symbols, shares), _end(symbols[::-1], shares)
    step = -(-(high - low + 1) // _BARS)
    first = low - low % step  # bars begin at multiples of their width, so that 0 begins one
    bars = [0.0] * ((high - first) // step + 1)
    for symbol, share in shares.items():
        if low <= symbol <= high:
            bars[(symbol - first) // step] += share
    beyond = sum(share for symbol, share in shares.items() if not low <= symbol <= high)
    return Histogram(layer, first, step, tuple(bars), shares.get(0, 0.0), beyond)


def _end(symbols: list[int], shares: dict[int, float]) -> int:
    """The first of the symbols that is not among the rarest at this end; only a long tail is left out."""
    if len(symbols) <= _BARS and abs(symbols[-1] - symbols[0]) < _BARS:
        return symbols[0]
    left_out = 0.0
    for symbol in symbols:
        left_out += shares[symbol]
        if left_out > _BEYOND:
            return symbol
    return symbols[-1]


def _has_one_table(layer: LayerEntry) -> bool:
    """Whether the layer's table section is one table: with classes of bin widths it holds several."""
    return layer.coding == "ans" and layer.classes is None
