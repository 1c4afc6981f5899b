"""What all pictures have in common: their style, their axes, lines and notes on these, and their bytes."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from riq_cli.errors import OutputError
from riq_cli.text import shortened, tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any kind of colour vision can distinguish; yellow is too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
GREY = "#595959"
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_LETTERS, _LINES = 80, 3  # of a title or a label
_LINEAR = 5.0  # factor between its ends up to which a logarithmic axis has linear ticks
_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 3,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "savefig.dpi": 144,
    "svg.hashsalt": "riq",  # the same picture gives the same bytes
    "svg.fonttype": "path",  # and looks the same on every machine
    "font.family": "DejaVu Sans",  # matplotlib brings it along
    "text.parse_math": False,  # names of layers and files are no formulas
}

Points = Sequence[tuple[float, float]]


def require() -> None:
    """Return nothing if pictures can be drawn; meant to be asked before long work.

    Raises:
        OutputError: matplotlib is not there.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise OutputError("pictures need matplotlib: pip install 'riq[plot]'") from error


def styled() -> contextlib.AbstractContextManager[None]:
    """A block that draws and saves a picture.

    Raises:
        OutputError: matplotlib is not there.
    """
    require()
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def figure_of(title: str, x: str, ys: Sequence[str], size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of a size in inches, and its axes from top to bottom, one for each of the labels of `ys`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(len(ys), sharex=True, squeeze=False)[:, 0])
    for one, y in zip(axes, ys, strict=True):
        one.set_ylabel(y)
    axes[0].set_title(visible(title))
    axes[-1].set_xlabel(x)
    return figure, axes


def bars_of(title: str, names: Sequence[str], size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of a size in inches, and two axes side by side, with room for a bar at each name from the top down."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(1, 2, sharey=True))
    axes[0].set_title(visible(title))
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    for one in axes:
        one.tick_params(axis="y", length=0)
        one.grid(False, axis="y")
    return figure, axes


def line(
    axes: Axes,
    points: Points,
    style: int,
    label: str | None = None,
    *,
    dashed: bool = False,
    hollow: bool = False,
    joined: bool = True,
) -> None:
    """Draw points, joined by a line or not, in the colour and with the marker of a style; a label is for the legend."""
    colour = COLOURS[style % len(COLOURS)]
    marker = _MARKERS[(style + style // len(COLOURS)) % len(_MARKERS)]  # no pair comes twice soon
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=colour,
        marker=marker,
        linestyle=("--" if dashed else "-") if joined else "none",
        markerfacecolor="white" if hollow else colour,
        label=None if label is None else visible(label),
    )


def rule(axes: Axes, points: Points, label: str | None = None) -> None:
    """Draw a grey dotted line to compare with."""
    axes.plot([x for x, _ in points], [y for _, y in points], color=GREY, linestyle=":", zorder=1, label=label)


def note(axes: Axes, text: str) -> None:
    """Write a grey line of text below the title."""
    axes.text(0.0, 1.01, text, transform=axes.transAxes, fontsize=8.5, color=GREY)
    axes.set_title(axes.get_title(loc="left"), pad=20)


def saved(figure: Figure, suffix: str) -> bytes:
    """The picture as a file with this suffix, `.png` or `.svg`; logarithmic axes get ticks that can be read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) if axis.get_scale() == "log"):
        low, high = sorted(axis.get_view_interval())
        if high < _LINEAR * low:
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            axis.set_minor_locator(NullLocator())
        else:
            fine = (1.0, 2.0, 5.0) if high < 3000 * low else (1.0,)
            axis.set_major_locator(LogLocator(subs=fine, numticks=20))
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        axis.set_minor_formatter(NullFormatter())
    out, kind = io.BytesIO(), suffix.removeprefix(".")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # of letters that the font does not have
        figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return out.getvalue()


def visible(text: str) -> str:
    """Untrusted text of a few lines, as far as there is room for it."""
    lines = text.split("\n")
    return "\n".join(shortened(line, _LETTERS) for line in lines[:_LINES]) + ("\n…" if len(lines) > _LINES else "")
