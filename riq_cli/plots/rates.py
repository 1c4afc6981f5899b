"""Pictures of an archive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from riq_cli.plots.drawing import COLOURS, GREY, figure_of, note, saved, styled
from riq_cli.text import shortened

_BARS = 60  # at most: more cannot be read
_BAR, _REST = 0.21, 1.1  # inches for each bar, and for the title and the axis
_WIDE, _LETTER = 6.2, 0.066  # inches beside the names, and for each of their letters
_NAME = 40
_SMALL, _PALE = 0.01, "#a6c8e0"  # share of the archive below which a layer's rate hardly matters, and its colour


def layer_rates(layers: Sequence[dict[str, Any]], mean: float, name: str, suffix: str) -> bytes:
    """The rate of every layer, as in Fig. 4b of the paper; of many layers those that take most bytes.

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
    rates = [layer["rate"] for layer in drawn]
    places = range(len(drawn))
    size = _WIDE + _LETTER * max(map(len, names)), _REST + _BAR * max(len(drawn), 4)
    with styled():
        title = f"{name}: rate of each layer{some}"
        figure, [axes] = figure_of(title, "rate (bits/weight, tables included)", [""], size)
        axes.barh(places, rates, color=[_PALE if layer["share"] < _SMALL else COLOURS[0] for layer in drawn],
                  height=0.72)  # fmt: skip
        axes.set_yticks(places, names, fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, max(rates) * 1.12)
        axes.grid(False, axis="y")
        axes.text(1.1, 1.01, "of the archive", transform=axes.transAxes, fontsize=8.5, color=GREY, ha="right")
        for place, layer in zip(places, drawn, strict=True):
            axes.annotate(
                f"{layer['rate']:.2f}", (layer["rate"], place), xytext=(4, 0), textcoords="offset points", va="center",
                fontsize=8, color=GREY, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
            axes.annotate(
                f"{layer['share']:.1%}", (1.1, place), xycoords=("axes fraction", "data"), va="center", ha="right",
                fontsize=8, color=GREY, annotation_clip=False,
            )  # fmt: skip
        axes.axvline(mean, color=COLOURS[1], linestyle="--", linewidth=1.4)
        note(axes, f"dashed: all weights together, {mean:.2f}; pale: layers below {_SMALL:.0%} of the archive")
        return saved(figure, suffix)
