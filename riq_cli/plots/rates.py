"""Pictures of an archive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from riq_cli.plots.drawing import COLOURS, GREY, bars_of, note, saved, styled
from riq_cli.text import human_size, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BARS = 60  # at most: more cannot be read
_BAR, _REST = 0.21, 1.1  # inches for each bar, and for the title and the axis
_WIDE, _LETTER = 7.6, 0.066  # inches beside the names, and for each of their letters
_NAME = 40
_SMALL, _PALE = 0.01, "#a6c8e0"  # share of the archive below which a layer's rate hardly matters, and its colour
_MOST = 2.0  # times the largest rate of a large layer that the axis of rates shows
_ROOM = 1.3  # length of an axis in that of its longest bar: the numbers stand beside the bars


def layer_rates(layers: Sequence[dict[str, Any]], mean: float, name: str, suffix: str) -> bytes:
    """The bytes of every layer beside its rate, as in Fig. 4b of the paper; of many layers those that take most bytes.

    A bias of ten weights may have many times the rate of the large layers. The axis of rates ends at twice theirs, and
    a longer bar goes to the edge.

    Args:
        layers: the rows of a report, in the order to draw.
        mean: rate of all of them, bits/weight.
        name: of the archive.
        suffix: `.png` or `.svg`.

    Raises:
        OutputError: matplotlib is not there.
    """
    kept = {id(layer) for layer in sorted(layers, key=lambda layer: -layer["bytes"])[:_BARS]}
    drawn = [layer for layer in layers if id(layer) in kept]
    some = f", {len(drawn)} largest of {len(layers)} layers" if len(drawn) < len(layers) else ""
    names = [shortened(layer["name"], _NAME) for layer in drawn]
    size = _WIDE + _LETTER * max(map(len, names)), _REST + _BAR * max(len(drawn), 4)
    colours = [_PALE if layer["share"] < _SMALL else COLOURS[0] for layer in drawn]
    large = [layer for layer in drawn if layer["share"] >= _SMALL] or drawn
    with styled():
        figure, (sizes, rates) = bars_of(f"{name}: bytes and rate of each layer{some}", names, size)
        sizes.set_xlabel("bytes")
        rates.set_xlabel("rate (bits/weight, tables included)")
        texts = [f"{human_size(layer['bytes'])}, {layer['share']:.1%}" for layer in drawn]
        _bars(sizes, [layer["bytes"] for layer in drawn], max(layer["bytes"] for layer in drawn), texts, colours)
        texts = [f"{layer['rate']:.2f}" for layer in drawn]
        longest = min(max(layer["rate"] for layer in drawn), _MOST * max(layer["rate"] for layer in large))
        _bars(rates, [layer["rate"] for layer in drawn], longest, texts, colours)
        rates.axvline(mean, color=COLOURS[1], linestyle="--", linewidth=1.4)
        note(sizes, f"pale: below {_SMALL:.0%} of the archive")
        note(rates, f"dashed: all weights together, {mean:.2f}")
        return saved(figure, suffix)


def _bars(axes: Axes, values: Sequence[float], longest: float, texts: Sequence[str], colours: Sequence[str]) -> None:
    """Draw bars with a text beside each; one that is longer than the longest that is wanted goes to the edge."""
    end = _ROOM * longest
    axes.barh(range(len(values)), [min(value, end) for value in values], color=colours, height=0.72)
    axes.set_xlim(0, end)
    for place, (value, text) in enumerate(zip(values, texts, strict=True)):
        inside = value > longest
        axes.annotate(
            f"{text} →" if value > end else text, (min(value, end), place), xytext=(-4 if inside else 4, 0),
            textcoords="offset points", va="center", ha="right" if inside else "left", fontsize=8, color=GREY,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
