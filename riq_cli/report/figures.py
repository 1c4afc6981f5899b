"""Figures of the HTML page, as inline SVG; colours come from its style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from riq_cli.report.histogram import Histogram
from riq_cli.text import html_text, tick

_MANTISSAS = ((1,), (1, 2, 5), tuple(range(1, 10)))  # of logarithmic ticks, from coarse to fine
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
        return _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    best: list[float] = []
    for mantissas in _MANTISSAS:
        found = [m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high]
        if len(found) > most:
            return best or found[:: -(-len(found) // most)]
        best = found
    return best if len(best) >= _FEW else _linear_ticks(low, high, most)  # a small part of a decade


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    step = 10.0 ** math.floor(math.log10(rough))
    step *= next(m for m in (1, 2, 5, 10) if m * step >= rough * 0.999)
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def trace(points: Sequence[tuple[float, float]], target: float | None, chosen: tuple[float, float] | None) -> str:
    """The deviation over k of a search, both logarithmic, with the target and a line of 1/k² through the solution.

    Args:
        points: k and deviation of each evaluation, in order; all > 0.
        target: the deviation that had to be met, if one was given.
        chosen: k and deviation of the solution.
    """
    width, height, left, right, top, bottom = 520, 320, 74, 12, 12, 46
    drawn = [*points, *([chosen] if chosen else [])]
    ks = [k for k, _ in drawn]
    values = [value for _, value in drawn] + ([target] if target else [])
    x = Axis(*_widened(min(ks), max(ks)), left, width - right, log=True)
    y = Axis(*_widened(min(values), max(values)), height - bottom, top, log=True)
    parts = [_frame(x, y, x.ticks(6), y.ticks(7), "k (larger is finer)", "deviation")]
    if chosen:
        line = [(k, chosen[1] * (chosen[0] / k) ** 2) for k in _clipped(x, y, chosen)]
        (x1, y1), (x2, y2) = ((x(k), y(value)) for k, value in line)
        parts.append(f'<line class="theory" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    if target:
        parts.append(f'<line class="target" x1="{x.start}" x2="{x.end}" y1="{y(target):.1f}" y2="{y(target):.1f}"/>')
    for number, (k, value) in enumerate(points, 1):
        title = f"<title>{number}: k = {k:.5g}, deviation {value:.4g}</title>"
        if target is not None and value > target:
            parts.append(f'<path class="misses" d="{_cross(x(k), y(value))}">{title}</path>')
        else:
            parts.append(f'<circle class="holds" cx="{x(k):.1f}" cy="{y(value):.1f}" r="4.5">{title}</circle>')
    if chosen:
        title = f"<title>solution: k = {chosen[0]:.5g}, deviation {chosen[1]:.4g}</title>"
        parts.append(f'<circle class="chosen" cx="{x(chosen[0]):.1f}" cy="{y(chosen[1]):.1f}" r="9">{title}</circle>')
    return _svg(width, height, f"Deviation over k in {len(points)} evaluations of the search", parts)


def histogram(one: Histogram) -> str:
    """The share of a layer's weights at each symbol."""
    width, height, left, right, top, bottom = 340, 170, 46, 10, 10, 38
    last = one.first + len(one.shares) * one.step
    x = Axis(one.first - 0.5, last - 0.5, left, width - right)
    y = Axis(0.0, max(one.shares) * 1.05, height - bottom, top)
    whole = [at for at in x.ticks(6) if at == round(at)]
    label = "symbol" if one.step == 1 else f"symbol, {one.step} in each bar"
    parts = [_frame(x, y, whole, y.ticks(5), label, "", percent=True)]
    for number, share in enumerate(one.shares):
        begin = x(one.first + number * one.step - 0.5)
        end = x(one.first + (number + 1) * one.step - 0.5)
        gap = min(1.0, (end - begin) / 5)
        symbols = f"{one.first + number * one.step}" + (
            f" to {one.first + (number + 1) * one.step - 1}" if one.step > 1 else ""
        )
        parts.append(
            f'<rect class="bar" x="{begin:.2f}" y="{y(share):.2f}" width="{end - begin - gap:.2f}" '
            f'height="{y.start - y(share):.2f}"><title>symbol {symbols}: {share:.2%} of the weights</title></rect>'
        )
    return _svg(width, height, f"Symbols of {one.layer.name}", parts)


def _widened(low: float, high: float) -> tuple[float, float]:
    """The ends of a logarithmic axis with room beside the outermost points, and wide enough to hold ticks."""
    room = max((high / low) ** 0.08, 1.06)
    return low / room, high * room


def _clipped(x: Axis, y: Axis, chosen: tuple[float, float]) -> tuple[float, float]:
    """The k at which a line of 1/k² through a point enters and leaves the frame."""
    k, value = chosen
    enters = max(x.low, k * math.sqrt(value / y.high))
    return enters, min(x.high, k * math.sqrt(value / y.low))


def _cross(x: float, y: float, r: float = 4.5) -> str:
    return f"M{x - r:.1f} {y - r:.1f}L{x + r:.1f} {y + r:.1f}M{x - r:.1f} {y + r:.1f}L{x + r:.1f} {y - r:.1f}"


def _frame(
    x: Axis, y: Axis, xs: Sequence[float], ys: Sequence[float], x_label: str, y_label: str, percent: bool = False
) -> str:
    """Grid lines, ticks and labels of the axes."""
    parts = []
    for at in ys:
        text = f"{100 * at:.4g} %" if percent else tick(at)
        parts.append(f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{y(at):.1f}" y2="{y(at):.1f}"/>')
        parts.append(f'<text class="y" x="{x.start - 6}" y="{y(at) + 4:.1f}">{text}</text>')
    for at in xs:
        parts.append(f'<line class="axis" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{y.start}" y2="{y.start + 4}"/>')
        parts.append(f'<text class="x" x="{x(at):.1f}" y="{y.start + 17}">{tick(at)}</text>')
    middle = (x.start + x.end) / 2
    parts.append(f'<line class="axis" x1="{x.start}" x2="{x.end}" y1="{y.start}" y2="{y.start}"/>')
    parts.append(f'<text class="x" x="{middle:.1f}" y="{y.start + 34}">{x_label}</text>')
    if y_label:
        at = (y.start + y.end) / 2
        parts.append(f'<text class="x" transform="translate(14 {at:.1f}) rotate(-90)">{y_label}</text>')
    return "".join(parts)


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """The picture; its title is untrusted text."""
    label = html_text(title)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
