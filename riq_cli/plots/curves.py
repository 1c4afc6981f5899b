"""Pictures of sweeps: each takes the points of one model or more, by a name for each."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from riq_cli.errors import PointsError
from riq_cli.plots.canvas import Canvas, Points, canvas
from riq_cli.points import Point

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
    figure, series, out = _FIGURES[kind], _series(sweeps), io.BytesIO()
    model = next(iter(sweeps)) if title is None and len(sweeps) == 1 else title
    shown = f"{model}: {figure.title}" if model else figure.title[0].upper() + figure.title[1:]
    corner = figure.corner if len(series) <= _FEW else ""
    with canvas(shown, figure.x, figure.ys, out, suffix, log=figure.log, corner=corner) as axes:
        drawn = [figure.draw(axes, style, one) for style, one in enumerate(series)]
        if not any(drawn):
            raise PointsError(f"no point can be drawn: {figure.needs}")
        figure.finish(axes, series)
    return out.getvalue()


Axes = Sequence[Canvas]  # from top to bottom
Draw = Callable[[Axes, int, "_Series"], bool]  # draws a curve in a style, says whether there was anything to draw


@dataclass(frozen=True)
class _Figure:
    """What is drawn over what, how one curve is, what comes to all of them, and what the points need for it."""

    title: str
    x: str
    ys: Sequence[str]
    log: str
    draw: Draw
    finish: Callable[[Axes, Sequence[_Series]], None]
    needs: str
    corner: str = ""


def _over_deviation(quantity: str) -> Draw:
    def draw(axes: Axes, style: int, series: _Series) -> bool:
        missed = ", ".join(f"{point.target:g}" for point in series.points if point.reached is False)
        label = f"{series.label}\n(out of reach: {missed})" if missed else series.label
        found = series.pairs("deviation", quantity)
        axes[0].line(found, style, label)
        axes[0].line(series.pairs("validation", quantity), style, hollow=True, line=False)
        return bool(found)

    return draw


def _note_validation(axes: Axes, series: Sequence[_Series]) -> None:
    if any(point.validation is not None for one in series for point in one.points):
        axes[0].note("hollow: on validation samples")


def _coder(axes: Axes, style: int, series: _Series) -> bool:
    found = series.pairs("deviation", "rate")
    axes[0].line(series.pairs("deviation", "fixed_rate"), style, dashed=True, hollow=True)
    axes[0].line(found, style, series.label)
    return bool(found)


def _note_coder(axes: Axes, series: Sequence[_Series]) -> None:
    axes[0].note("dashed: log₂ of each layer's levels", "solid: entropy-coded, tables included")


def _over_k(axes: Axes, style: int, series: _Series) -> bool:
    found = series.pairs("k", "deviation")
    exact = all(point.epsilon == 0 for point in series.points if point.k)  # a floor ends the law otherwise
    label = series.label
    if found and exact:
        factor = _fitted(found)
        nearest, farthest = max(min(k for k, _ in found), math.sqrt(factor)), max(k for k, _ in found)
        if nearest < farthest:  # no deviation that the law speaks of is above 1
            axes[0].rule([(k, factor / k**2) for k in (nearest, farthest)])
        label = f"{label}; a = {factor:,.3g}" if factor < 100 else f"{label}; a = {factor:,.0f}"
    axes[0].line(found, style, label, line=not exact, hollow=series.random)
    return bool(found)


def _note_fit(axes: Axes, series: Sequence[_Series]) -> None:
    axes[0].note(f"dotted: a/k², fitted where the deviation is below {_SMALL:g}")


def _deviation_and_ratio_over_k(axes: Axes, style: int, series: _Series) -> bool:
    found = series.pairs("k", "deviation")
    axes[0].line(found, style, series.label)
    axes[1].line(series.pairs("k", "ratio"), style)
    return bool(found)


def _validation_over_target(axes: Axes, style: int, series: _Series) -> bool:
    found = series.pairs("target", "validation")
    axes[0].line(found, series.family, series.label, dashed=series.random, hollow=series.random)
    return bool(found)


def _note_promise(axes: Axes, series: Sequence[_Series]) -> None:
    targets = [target for one in series for target, _ in one.pairs("target", "validation")]
    axes[0].rule([(end, end) for end in (min(targets), max(targets))], "as promised")


def _nothing(axes: Axes, series: Sequence[_Series]) -> None:
    pass


_REACHED = "each target is out of reach"
_FIGURES = {
    "curve": _Figure("what a deviation buys", _DEVIATION, [_RATIO], "x", _over_deviation("ratio"), _note_validation,
                     _REACHED, corner="upper left"),
    "rate": _Figure("what a deviation costs", _DEVIATION, ["rate (bits/weight, tables included)"], "x",
                    _over_deviation("rate"), _note_validation, _REACHED),
    "coder": _Figure("what the entropy coder saves", _DEVIATION, ["rate (bits/weight)"], "x", _coder, _note_coder,
                     _REACHED),
    "k": _Figure("deviation over k, and the law a/k²", _K, [_DEVIATION], "xy", _over_k, _note_fit,
                 "none has a k and a deviation; riq sweep --k measures such"),
    "epsilon": _Figure("what ε₀ does", _K, [_DEVIATION, _RATIO], "xy", _deviation_and_ratio_over_k, _nothing,
                       "none has a k and a deviation; riq sweep --k measures such"),
    "prediction": _Figure("what calibration samples promise, and what comes", "target deviation on calibration samples",
                          ["deviation on validation samples"], "xy", _validation_over_target, _note_promise,
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


def _series(sweeps: Sweeps) -> list[_Series]:
    """The curves, labelled with what tells them apart: model, preset, settings, calibration samples."""
    found: dict[tuple[str, str, str, str], list[Point]] = {}
    for name, points in sweeps.items():
        for point in points:
            settings = "; ".join(part for part in point.settings.split("; ") if not part.startswith("k="))
            found.setdefault((name, point.preset, settings, point.calibration), []).append(point)
    varied = [len(set(values)) > 1 for values in zip(*found, strict=True)]
    models = {name: {key[3] for key in found if key[0] == name} for name in sweeps}
    resampled = any(len(samples) > 1 for samples in models.values())  # models have samples of their own anyhow
    families = list(dict.fromkeys(key[:3] for key in found))
    series = []
    for (name, preset, settings, calibration), points in found.items():
        parts = [name] if varied[0] else []
        parts += [preset] if varied[1] or len(found) == 1 else []
        parts += [_readable(settings, points)] if varied[2] else []
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
