"""Pictures of sweeps: each takes the points of one model or more, by a name for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from riq_cli.errors import PointsError
from riq_cli.plots.drawing import Points, figure_of, line, note, rule, saved, styled
from riq_cli.points import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["curve", "rate", "coder", "k", "epsilon", "prediction"]
Sweeps = Mapping[str, Sequence[Point]]  # the points of each model, by what it is called

_FEW = 4  # curves whose legend has room inside
_SMALL = 0.1  # deviations below which a/k² is fitted; large ones saturate
_DEVIATION = "deviation (cosine distance)"
_RATIO = "compression ratio (×, real bytes)"
_K = "k (larger is finer)"


def picture(kind: Kind, sweeps: Sweeps, suffix: str, title: str | None = None) -> bytes:
    """A figure of the paper from the points of sweeps.

    Args:
        kind: `curve` and `rate`: size over deviation, Fig. 4c; `coder`: the rate with and without the entropy coder,
            Fig. 4a; `k`: deviation over k with a fit of a/k², Fig. 2a; `epsilon`: what ε0 does to deviation and size
            over k, Fig. 2b; `prediction`: deviations on validation samples over targets, Fig. 1a.
        sweeps: what to draw.
        suffix: `.png` or `.svg`.
        title: what the points are of; None: the model's name where there is one model.

    Raises:
        OutputError: matplotlib is not there.
        PointsError: there is nothing to draw.
    """
    chosen = _FIGURES[kind]
    series = _series(sweeps, by_epsilon=chosen.x == _K)  # with another ε₀ the law over k is another
    model = next(iter(sweeps)) if title is None and len(sweeps) == 1 else title
    shown = f"{model}: {chosen.title}" if model else chosen.title[0].upper() + chosen.title[1:]
    corner = chosen.corner if len(series) <= _FEW else ""
    place: dict[str, Any] = {"loc": corner} if corner else {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    size = 7.0 if corner else 8.6, 4.6 if len(chosen.ys) == 1 else 1.0 + 2.8 * len(chosen.ys)
    with styled():
        figure, axes = figure_of(shown, chosen.x, chosen.ys, size)
        for one in axes:
            one.set_xscale("log")
            one.set_yscale("log" if chosen.log_y else "linear")
        chosen.draw(axes, series)
        if not any(len(drawn.get_xdata(orig=True)) for drawn in axes[0].lines):  # type: ignore[arg-type]
            raise PointsError(f"no point can be drawn: {chosen.needs}")
        axes[0].legend(**place)
        return saved(figure, suffix)


Draw = Callable[["Sequence[Axes]", "Sequence[_Series]"], None]  # draws all curves on axes from top to bottom


@dataclass(frozen=True)
class _Figure:
    """What is drawn over what, logarithmic in x, and what the points need for it."""

    title: str
    x: str
    ys: Sequence[str]
    log_y: bool
    draw: Draw
    needs: str
    corner: str = ""


def _over_deviation(quantity: str) -> Draw:
    def draw(axes: Sequence[Axes], series: Sequence[_Series]) -> None:
        for style, one in enumerate(series):
            missed = ", ".join(f"{point.target:g}" for point in one.points if point.reached is False)
            label = f"{one.label}\n(out of reach: {missed})" if missed else one.label
            line(axes[0], one.pairs("deviation", quantity), style, label)
            line(axes[0], one.pairs("validation", quantity), style, hollow=True, joined=False)
        if any(point.validation is not None for one in series for point in one.points):
            note(axes[0], "hollow: on validation samples")

    return draw


def _coder(axes: Sequence[Axes], series: Sequence[_Series]) -> None:
    for style, one in enumerate(series):
        line(axes[0], one.pairs("deviation", "fixed_rate"), style, dashed=True, hollow=True)
        line(axes[0], one.pairs("deviation", "rate"), style, one.label)
    note(axes[0], "dashed: log₂ of each layer's levels; solid: entropy-coded, tables included")


def _over_k(axes: Sequence[Axes], series: Sequence[_Series]) -> None:
    for style, one in enumerate(series):
        found, label = one.pairs("k", "deviation"), one.label
        exact = all(point.epsilon == 0 for point in one.points if point.k)  # a floor ends the law otherwise
        if found and exact:
            factor = _fitted(found)
            nearest, farthest = max(min(k for k, _ in found), math.sqrt(factor)), max(k for k, _ in found)
            if nearest < farthest:  # no deviation that the law speaks of is above 1
                rule(axes[0], [(k, factor / k**2) for k in (nearest, farthest)])
            label = f"{label}; a = {factor:,.3g}" if factor < 100 else f"{label}; a = {factor:,.0f}"
        line(axes[0], found, style, label, joined=not exact, hollow=one.random)
    note(axes[0], f"dotted: a/k², fitted where the deviation is below {_SMALL:g}")


def _deviation_and_ratio_over_k(axes: Sequence[Axes], series: Sequence[_Series]) -> None:
    for style, one in enumerate(series):
        line(axes[0], one.pairs("k", "deviation"), style, one.label)
        line(axes[1], one.pairs("k", "ratio"), style)


def _validation_over_target(axes: Sequence[Axes], series: Sequence[_Series]) -> None:
    for one in series:
        found = one.pairs("target", "validation")
        line(axes[0], found, one.family, one.label, dashed=one.random, hollow=one.random)
    targets = [target for one in series for target, _ in one.pairs("target", "validation")]
    if targets:
        rule(axes[0], [(end, end) for end in (min(targets), max(targets))], "as promised")


_REACHED = "each target is out of reach"
_MEASURED = "none has a k and a deviation; riq sweep --k measures such"
_FIGURES = {
    "curve": _Figure("what a deviation buys", _DEVIATION, [_RATIO], False, _over_deviation("ratio"), _REACHED,
                     "upper left"),
    "rate": _Figure("what a deviation costs", _DEVIATION, ["rate (bits/weight, tables included)"], False,
                    _over_deviation("rate"), _REACHED),
    "coder": _Figure("what the entropy coder saves", _DEVIATION, ["rate (bits/weight)"], False, _coder, _REACHED),
    "k": _Figure("deviation over k, and the law a/k²", _K, [_DEVIATION], True, _over_k, _MEASURED),
    "epsilon": _Figure("what ε₀ does", _K, [_DEVIATION, _RATIO], True, _deviation_and_ratio_over_k, _MEASURED),
    "prediction": _Figure("what calibration samples promise, and what comes", "target deviation on calibration samples",
                          ["deviation on validation samples"], True, _validation_over_target,
                          "none has a deviation on validation samples; riq sweep --validation measures such"),
}  # fmt: skip


def _fitted(points: Points) -> float:
    """The a of a/k² that fits best in the logarithm, where deviations are small; of all where none is."""
    small = [(k, value) for k, value in points if value < _SMALL] or points
    return math.exp(math.fsum(math.log(value * k * k) for k, value in small) / len(small))


@dataclass(frozen=True)
class _Series:
    """One curve: `family` is the same for those that differ in their calibration samples only."""

    label: str
    family: int
    random: bool
    points: tuple[Point, ...]

    def pairs(self, x: str, y: str) -> list[tuple[float, float]]:
        """Two quantities of the points where they are known and above 0, out of reach left out."""
        points = (point for point in self.points if point.reached is not False)
        known = ((getattr(point, x), getattr(point, y)) for point in points)
        return [(float(one), float(other)) for one, other in known if one and other]


def _series(sweeps: Sweeps, by_epsilon: bool) -> list[_Series]:
    """The curves, labelled by what differs between them: model, preset, settings, calibration samples.

    By default presets take the ε₀ of the smaller archive; `by_epsilon`, points of one ε₀ are a curve each.
    """
    found: dict[tuple[str, str, str, str], list[Point]] = {}
    for name, points in sweeps.items():
        for point in points:
            parts = [part for part in point.settings.split("; ") if not part.startswith("k=")]
            if by_epsilon:
                if point.epsilon is None:  # out of reach
                    continue
                parts = [f"epsilon={point.epsilon:g}", *(part for part in parts if not part.startswith("epsilon="))]
            found.setdefault((name, point.preset, "; ".join(filter(None, parts)), point.calibration), []).append(point)
    varied = [len(set(values)) > 1 for values in zip(*found, strict=True)]
    models = {name: {key[3] for key in found if key[0] == name} for name in sweeps}
    resampled = any(len(samples) > 1 for samples in models.values())  # models have samples of their own anyhow
    families = list(dict.fromkeys(key[:3] for key in found))
    series = []
    for (name, preset, settings, calibration), points in found.items():
        parts = [name] if varied[0] else []
        parts += [preset] if varied[1] or len(found) == 1 else []
        parts += [_readable(settings, points)] if varied[2] or by_epsilon else []
        kind = calibration.partition(" ")[0]
        if resampled:
            same = {samples for samples in models[name] if samples.partition(" ")[0] == kind}
            parts.append(f"{'random' if kind == 'random' else 'real'} samples" if len(same) == 1 else calibration)
        # From coarse to fine: the order of a curve whose deviation is not monotone.
        ordered = sorted(points, key=lambda point: (-(point.target or 0.0), point.k or 0.0))
        family = families.index((name, preset, settings))
        series.append(_Series(", ".join(filter(None, parts)), family, kind == "random", tuple(ordered)))
    return series


def _readable(settings: str, points: Sequence[Point]) -> str:
    """Settings as a label says them: ε₀ for epsilon, the preset's too where all points have the same."""
    words = dict(part.split("=", 1) for part in filter(None, settings.split("; ")))
    epsilons = {point.epsilon for point in points}
    if "epsilon" not in words and len(epsilons) == 1 and None not in epsilons:
        words = {"epsilon": str(epsilons.pop())} | words
    return ", ".join(
        f"ε₀ = {float(value):g}" if key == "epsilon" else f"{key} = {value}" for key, value in words.items()
    )
