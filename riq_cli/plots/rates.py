"""Pictures of an archive."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from riq_cli.plots.canvas import canvas
from riq_cli.text import shortened

_BARS = 60  # at most: more cannot be read
_BAR, _REST = 0.21, 1.1  # inches for each bar, and for the title and the axis
_WIDE, _LETTER = 6.2, 0.066  # inches beside the names, and for each of their letters
_NAME = 40
_SMALL = 0.01  # share of the archive below which a layer's rate hardly matters


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
    out = io.BytesIO()
    largest = sorted(layers, key=lambda layer: -layer["bytes"])[:_BARS]
    kept = {id(layer) for layer in largest}
    drawn = [layer for layer in layers if id(layer) in kept]
    some = f", {len(drawn)} largest of {len(layers)} layers" if len(drawn) < len(layers) else ""
    names = [shortened(layer["name"], _NAME) for layer in drawn]
    size = _WIDE + _LETTER * max(map(len, names)), _REST + _BAR * max(len(drawn), 4)
    with canvas(f"{name}: rate of each layer{some}", "rate (bits/weight, tables included)", [""], out, suffix,
                size=size) as [axes]:  # fmt: skip
        axes.bars(
            names,
            [layer["rate"] for layer in drawn],
            [layer["share"] < _SMALL for layer in drawn],
        )
        axes.column("of the archive", [f"{layer['share']:.1%}" for layer in drawn])
        axes.upright(mean)
        axes.note(f"dashed: all weights together, {mean:.2f}; pale: layers below {_SMALL:.0%} of the archive")
    return out.getvalue()
