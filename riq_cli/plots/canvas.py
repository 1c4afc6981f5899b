"""A picture of one pair of axes, or of several above each other: the only file that knows matplotlib."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from riq_cli.errors import OutputError
from riq_cli.text import shortened, tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; yellow is too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_LETTERS, _LINES = 80, 3  # of a title or a label
_GREY = "#595959"
_PALE = "#a6c8e0"
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


class Canvas:
    """Axes to draw on. `log` names those that are logarithmic: `x`, `y`, `xy` or none."""

    def __init__(self, axes: Axes, log: str) -> None:
        self._axes, self._log = axes, log
        self._legend: list[tuple[Any, str]] = []

    def line(
        self,
        points: Points,
        style: int,
        label: str | None = None,
        *,
        dashed: bool = False,
        hollow: bool = False,
        marker: bool = True,
        line: bool = True,
    ) -> None:
        """Points joined by a line, in the colour and with the marker of a style, named in the legend.

        Args:
            points: x and y, in order.
            style: number of the colour and the marker.
            label: for the legend.
            dashed: whether the line is.
            hollow: whether markers are.
            marker, line: whether there are any.
        """
        colour = COLOURS[style % len(COLOURS)]
        (drawn,) = self._axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=colour,
            linestyle=("--" if dashed else "-") if line else "none",
            marker=MARKERS[(style + style // len(COLOURS)) % len(MARKERS)]
            if marker
            else "",  # no pair comes twice soon
            markerfacecolor="white" if hollow else colour,
            clip_on=True,
        )
        if label is not None:
            self._legend.append((drawn, _visible(label)))

    def rule(self, points: Points, label: str | None = None) -> None:
        """A grey dotted line to compare with."""
        (drawn,) = self._axes.plot([x for x, _ in points], [y for _, y in points], color=_GREY, linestyle=":", zorder=1)
        if label is not None:
            self._legend.append((drawn, label))

    def bars(self, names: Sequence[str], values: Sequence[float], pale: Sequence[bool]) -> None:
        """Horizontal bars from top to bottom, named on the left, with their values behind them."""
        places = range(len(names))
        self._axes.barh(places, values, color=[_PALE if faint else COLOURS[0] for faint in pale], height=0.72)
        self._axes.set_yticks(places, [_visible(name) for name in names], fontsize=8)
        self._axes.tick_params(axis="y", length=0)
        self._axes.set_ylim(len(names) - 0.4, -0.6)
        self._axes.set_xlim(0, max(values) * 1.12)
        self._axes.grid(False, axis="y")
        for place, value in zip(places, values, strict=True):
            self._axes.annotate(
                f"{value:.2f}", (value, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
                color=_GREY, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip

    def column(self, header: str, texts: Sequence[str]) -> None:
        """A column of texts on the right, one for each bar."""
        self._axes.text(1.1, 1.01, header, transform=self._axes.transAxes, fontsize=8.5, color=_GREY, ha="right")
        for place, text in enumerate(texts):
            self._axes.annotate(
                text, (1.1, place), xycoords=("axes fraction", "data"), va="center", ha="right", fontsize=8,
                color=_GREY, annotation_clip=False,
            )  # fmt: skip

    def upright(self, x: float) -> None:
        """A dashed line across the picture at x."""
        self._axes.axvline(x, color=COLOURS[1], linestyle="--", linewidth=1.4)

    def note(self, *parts: str) -> None:
        """A grey line of text below the title, if there is any."""
        if not parts:
            return
        text = "; ".join(parts)
        self._axes.text(0.0, 1.01, text, transform=self._axes.transAxes, fontsize=8.5, color=_GREY)
        self._axes.set_title(self._axes.get_title(loc="left"), pad=20)

    def finish(self, corner: str) -> None:
        """Put ticks on the axes, and the legend, if any, into a corner, such as `upper left`, or beside them."""
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        for name, axis in (("x", self._axes.xaxis), ("y", self._axes.yaxis)):
            if name in self._log:
                low, high = sorted(axis.get_view_interval())
                fine = (1.0, 2.0, 5.0) if high < 3000 * low else (1.0,)
                axis.set_major_locator(LogLocator(subs=fine, numticks=20))
                axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
                axis.set_minor_formatter(NullFormatter())
        place: Any = {"loc": corner} if corner else {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        if self._legend:
            drawn, labels = zip(*self._legend, strict=True)
            self._axes.legend(drawn, labels, handlelength=3, **place)


@contextmanager
def canvas(
    title: str,
    x: str,
    ys: Sequence[str],
    out: io.BytesIO,
    suffix: str,
    *,
    log: str = "",
    corner: str = "",
    size: tuple[float, float] | None = None,
) -> Iterator[list[Canvas]]:
    """Axes from top to bottom that become a picture in `out` when the block ends.

    Args:
        title: what one sees.
        x: what all horizontal axes show, with units.
        ys: what each vertical axis shows, with units.
        out: written to.
        suffix: `.png` or `.svg`.
        log: the logarithmic axes: `x`, `y`, `xy` or none.
        corner: where the legend goes, such as `upper left`; empty: beside the axes.
        size: inches; None: as wide as the legend's place needs.

    Raises:
        OutputError: matplotlib is not there.
    """  # fmt: skip
    require()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        wide, high = 7.0 if corner else 8.6, 4.6 if len(ys) == 1 else 1.0 + 2.8 * len(ys)
        figure = Figure(figsize=size or (wide, high), layout="constrained")
        drawings = []
        for axes, y in zip(figure.subplots(len(ys), sharex=True, squeeze=False)[:, 0], ys, strict=True):
            axes.set_ylabel(y)
            if "x" in log:
                axes.set_xscale("log")
            if "y" in log:
                axes.set_yscale("log")
            drawings.append(Canvas(axes, log))
        figure.axes[0].set_title(_visible(title))
        axes.set_xlabel(x)
        yield drawings
        for drawing in drawings:
            drawing.finish(corner)
        kind = suffix.removeprefix(".")
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)  # of letters that the font does not have
            figure.savefig(out, format=kind, metadata=metadata)


def _visible(text: str) -> str:
    """Untrusted text of a few lines, as far as there is room for it."""
    lines = text.split("\n")
    return "\n".join(shortened(line, _LETTERS) for line in lines[:_LINES]) + ("\n…" if len(lines) > _LINES else "")
