"""Options that ask for a fixed layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from riq_cli.cli.help import grouped
from riq_cli.cli.quantities import parse_number

if TYPE_CHECKING:
    from riq_cli.pipeline import FixedLayout

_FIXED = "fixed"


def parse_bits(text: str) -> tuple[int | str, ...]:
    """Widths from a text such as 4,8,float."""
    words = [word.strip() for word in text.split(",")]
    if not all(word == "float" or word.isdecimal() for word in words):
        raise click.BadParameter(f"{text!r} is not a list of widths in bits; write 4,8,float")
    return tuple(dict.fromkeys(word if word == "float" else int(word) for word in words))


layout_options = grouped(
    "Layout",
    click.option(
        "--layout",
        "layouts",
        type=click.Choice([_FIXED, "nchw", "nhwc"]),
        multiple=True,
        help="fixed: every layer at one of --bits, chosen greedily by the loss or metric. "
        "nchw, nhwc: order of axes of images. [default: nchw]",
    ),
    click.option("--bits", type=parse_bits, metavar="LIST", help="Fixed layout: widths. [default: 4,8,float]"),
    click.option("--per-channel", is_flag=True, default=None, help="Fixed layout: bins over each channel's own range."),
    click.option(
        "--variant",
        type=click.Choice(["R", "B"]),
        help="Fixed layout: R tries a layer's least bits first, B 8 bits first. [default: R]",
    ),
    click.option(
        "--mu",
        type=parse_number,
        metavar="M",
        help="Fixed layout: keep layers in float where the loss's slope in their inputs is smaller.",
    ),
)


def load(given: dict[str, Any]) -> tuple[FixedLayout | None, dict[str, str]]:
    """The fixed layout, if one is asked for, and the option of images, both taken out of a command's options."""
    layouts = given.pop("layouts")
    asked = {name: given.pop(name) for name in ("bits", "per_channel", "variant", "mu")}
    asked = {name: value for name, value in asked.items() if value is not None}
    images = [layout for layout in layouts if layout != _FIXED]
    axes = {"layout": images[0]} if images else {}
    if len(images) > 1:
        raise click.UsageError("images have one order of axes; give one of --layout nchw and --layout nhwc")
    if _FIXED not in layouts:
        for name in asked:
            raise click.UsageError(f"--{name.replace('_', '-')} belongs to --layout fixed")
        return None, axes
    from riq_cli.pipeline import FixedLayout

    return FixedLayout(**asked), axes
