"""Figures of the HTML page, as inline SVG; colours come from its style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from riq_cli.report.histogram import Histogram
from riq_cli.text import html_text, tick

_MANTISSAS = (range(1, 10), (1, 2, 5), (1,))  # of logarithmic ticks, from fine to coarse
Measure = Literal["deviation", "constraint"]
Kind = Literal["holds", "misses", "other", "chosen"]
_RADIUS: dict[Kind, float] = {"holds": 4.5, "misses": 4.5, "other": 3, "chosen": 7}
_NEAR = 4.0  # factor on k up to which an evaluation is where it belongs; farther ones are drawn at the edge
_LINEAR = 5.0  # factor between its ends up to which a logarithmic axis has linear ticks
_BARS = 26  # of a histogram of deviations
_FEW = 3  # with fewer ticks an axis cannot be read


@dataclass(frozen=True)
class Axis:
    """A scale from values to pixels, logarithmic or linear."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (map(math.log, (self.low, self.high, value))) if self.log else (self.low, self.high, value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """At most `most` round numbers on the axis, or a few more where the coarsest choice gives more."""
        if not self.log or self.high < _LINEAR * self.low:
            return _linear_ticks(self.low, self.high, most)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found: list[float] = []
        for mantissas in _MANTISSAS:
            every = [m * 10.0**decade for decade in decades for m in mantissas]
            found = [value for value in every if self.low <= value <= self.high]
            if len(found) <= most:
                return found if len(found) >= _FEW else _linear_ticks(self.low, self.high, most)
        return found[:: -(-len(found) // most)]


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    step = 10.0 ** math.floor(math.log10(rough))
    step *= next(m for m in (1, 2, 5, 10) if m * step >= rough * 0.999)
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def trace(
    points: Sequence[tuple[float, float]],
    others: Sequence[tuple[float, float]],
    limit: float | None,
    chosen: tuple[float, float] | None,
    measure: Measure = "deviation",
) -> str:
    """The deviation, or the value of a constraint, over k in a search, with its limit and the solution.

    A search begins far off. Its points beyond 4 times k of the solution are drawn at the edge. So are deviations beyond
    16 times that of the solution, and the largest quarter of a constraint's values. Deviations have a logarithmic axis,
    and a line of 1/k² through the solution.

    Args:
        points: k and value of each evaluation of the chosen scheme, in order; k > 0, and deviations > 0.
        others: the same of other schemes.
        limit: what the value had to be within, if anything.
        chosen: k and value of the solution.
        measure: what the values are.
    """
    width, height, left, right, top, bottom = 520, 320, 74, 12, 12, 46
    middle = chosen or points[-1]
    drawn = [*points, *others, middle]
    limits = [] if limit is None else [limit]
    x = Axis(*_widened([_within(k, middle[0], _NEAR) for k, _ in drawn]), left, width - right, log=True)
    if measure == "deviation":
        values = [_within(value, middle[1], _NEAR**2) for _, value in drawn]
        y = Axis(*_widened([*values, *limits]), height - bottom, top, log=True)
    else:
        values = sorted(value for _, value in drawn)
        values = [*values[: -(-3 * len(values) // 4)], middle[1], *limits, 0.0]
        room = 0.06 * (max(values) - min(values)) or 0.01
        y = Axis(min(values) - room, max(values) + room, height - bottom, top)
    parts = [_frame(x, y, x.ticks(6), y.ticks(7), "k (larger is finer)", measure)]
    if chosen and measure == "deviation":
        k, value = chosen
        ends = max(x.low, k * math.sqrt(value / y.high)), min(x.high, k * math.sqrt(value / y.low))  # in the frame
        (x1, y1), (x2, y2) = ((x(end), y(value * (k / end) ** 2)) for end in ends)
        parts.append(line("theory", x1, y1, x2, y2))
    if limit is not None:
        parts.append(line("target", x.start, y(limit), x.end, y(limit)))
    kinds: list[Kind] = ["misses" if limit is not None and value > limit else "holds" for _, value in points]
    for kind, (k, value) in [*(("other", point) for point in others), *zip(kinds, points, strict=True)]:
        near = min(max(k, x.low), x.high), min(max(value, y.low), y.high)
        drawn_at = mark(kind, x(near[0]), y(near[1]), f"k = {k:.5g}, {measure} {value:.4g}")
        parts.append(drawn_at if near == (k, value) else f'<g class="far">{drawn_at}</g>')
    if chosen:
        k, value = chosen
        parts.append(mark("chosen", x(k), y(value), f"solution: k = {k:.5g}, {measure} {value:.4g}"))
    return _svg(width, height, f"{measure.capitalize()} over k in {len(points)} evaluations of the search", parts)


def histogram(one: Histogram) -> str:
    """The fraction of a layer's weights at each symbol."""
    width, height, left, right, top, bottom = 340, 170, 46, 10, 10, 38
    last = one.first + len(one.fractions) * one.step
    x = Axis(one.first - 0.5, last - 0.5, left, width - right)
    y = Axis(0.0, max(one.fractions) * 1.05, height - bottom, top)
    whole = [at for at in x.ticks(6) if at == round(at)]
    label = "symbol" if one.step == 1 else f"symbol, {one.step} in each bar"
    parts = [_frame(x, y, whole, y.ticks(5), label, "", percent=True)]
    for number, fraction in enumerate(one.fractions):
        symbol, top_of_bar = one.first + number * one.step, y(fraction)
        symbols = f"{symbol} to {symbol + one.step - 1}" if one.step > 1 else f"{symbol}"
        title = f"symbol {symbols}: {fraction:.2%} of the weights"
        parts.append(_bar(x(symbol - 0.5), x(symbol + one.step - 0.5), top_of_bar, y.start, title))
    return _svg(width, height, f"Symbols of {one.layer.name}", parts)


def deviations(values: Sequence[float], mean: float, bound: float | None) -> str:
    """How many samples have which deviation, on a logarithmic axis, with their mean and its bound.

    Nothing where no deviation is above 0 and finite; deviations of 0 are in the first bar, infinite ones in the last.
    """
    seen = [value for value in values if 0 < value < math.inf]
    if not seen:
        return ""
    width, height, left, right, top, bottom = 520, 240, 46, 12, 12, 46
    lines = {"mean": mean, "target": bound}
    drawn = {kind: value for kind, value in lines.items() if value and math.isfinite(value)}
    x = Axis(*_widened([*seen, *drawn.values()]), left, width - right, log=True)
    step = (x.high / x.low) ** (1 / _BARS)
    counts = [0] * _BARS
    for value in values:
        place = math.log(min(max(value, x.low), x.high) / x.low) / math.log(step)
        counts[min(int(place), _BARS - 1)] += 1
    y = Axis(0.0, max(counts) * 1.05, height - bottom, top)
    whole = [at for at in y.ticks(5) if at == round(at)]
    parts = [_frame(x, y, x.ticks(7), whole, "deviation", "samples")]
    for number, count in enumerate(counts):
        low, high = x.low * step**number, x.low * step ** (number + 1)
        parts.append(_bar(x(low), x(high), y(count), y.start, f"{low:.3g} to {high:.3g}: {count} of the samples"))
    parts += [line(kind, x(value), y.start, x(value), y.end) for kind, value in drawn.items()]
    return _svg(width, height, f"Deviations of {len(values)} samples", parts)


def mark(kind: Kind, x: float, y: float, title: str = "") -> str:
    """A point of the search: a disc, a cross, or a ring."""
    about, r = f"<title>{title}</title>" if title else "", _RADIUS[kind]
    if kind == "misses":
        down = f"M{x - r:.1f} {y - r:.1f}L{x + r:.1f} {y + r:.1f}"
        return f'<path class="misses" d="{down}M{x - r:.1f} {y + r:.1f}L{x + r:.1f} {y - r:.1f}">{about}</path>'
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{r}">{about}</circle>'


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """A line of a kind that the style sheet knows."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _bar(begin: float, end: float, top: float, bottom: float, title: str) -> str:
    """A bar with a gap beside it."""
    gap = min(1.0, (end - begin) / 5)
    return (
        f'<rect class="bar" x="{begin:.2f}" y="{top:.2f}" width="{end - begin - gap:.2f}" '
        f'height="{bottom - top:.2f}"><title>{title}</title></rect>'
    )


def _within(value: float, middle: float, factor: float) -> float:
    """The value, or the end of the range that lies up to a factor about the middle."""
    return min(max(value, middle / factor), middle * factor)


def _widened(values: Sequence[float]) -> tuple[float, float]:
    """The ends of a logarithmic axis with room beside the outermost values, and wide enough to hold ticks."""
    low, high = min(values), max(values)
    room = max((high / low) ** 0.08, 1.06)
    return low / room, high * room


def _frame(
    x: Axis, y: Axis, xs: Sequence[float], ys: Sequence[float], x_label: str, y_label: str, percent: bool = False
) -> str:
    """Grid lines, ticks and labels of the axes."""
    parts = []
    for at in ys:
        text = f"{100 * at:.4g} %" if percent else tick(at)
        parts.append(line("grid", x.start, y(at), x.end, y(at)))
        parts.append(f'<text class="y" x="{x.start - 6}" y="{y(at) + 4:.1f}">{text}</text>')
    for at in xs:
        parts.append(line("axis", x(at), y.start, x(at), y.start + 4))
        parts.append(f'<text class="x" x="{x(at):.1f}" y="{y.start + 17}">{tick(at)}</text>')
    parts.append(line("axis", x.start, y.start, x.end, y.start))
    parts.append(f'<text class="x" x="{(x.start + x.end) / 2:.1f}" y="{y.start + 34}">{x_label}</text>')
    if y_label:
        at = (y.start + y.end) / 2
        parts.append(f'<text class="x" transform="translate(14 {at:.1f}) rotate(-90)">{y_label}</text>')
    return "".join(parts)


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """The picture; its title is untrusted text."""
    label = html_text(title)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
