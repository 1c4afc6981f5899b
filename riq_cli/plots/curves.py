"""Pictures of sweeps: each takes the points of one model or more, by a name for each."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from riq_cli.plots.canvas import Points, canvas
from riq_cli.points import Point

Quantity = Literal["ratio", "rate"]
Sweeps = Mapping[str, Sequence[Point]]  # the points of each model, by what it is called

_FEW = 4  # curves whose legend has room inside
_DEVIATION = "deviation (cosine distance)"
_LABELS = {"ratio": "compression ratio (×, real bytes)", "rate": "rate (bits/weight, tables included)"}


def curve(sweeps: Sweeps, suffix: str, quantity: Quantity = "ratio") -> bytes:
    """The rate–distortion curve of each preset, Fig. 4c of the paper; deviations on validation samples are hollow.

    Args:
        sweeps: what to draw.
        suffix: `.png` or `.svg`.
        quantity: what is drawn over the deviation.

    Raises:
        OutputError: matplotlib is not there.
    """
    out = io.BytesIO()
    corner = "upper left" if quantity == "ratio" and len(_series(sweeps)) <= _FEW else ""  # where no curve goes
    notes = ["hollow: on validation samples"] if _validated(sweeps) else []
    title = _title(sweeps, "what a deviation buys" if quantity == "ratio" else "what a deviation costs")
    with canvas(title, _DEVIATION, _LABELS[quantity], out, suffix, log="x", corner=corner) as axes:
        for style, series in enumerate(_series(sweeps)):
            missed = ", ".join(f"{point.target:g}" for point in series.points if point.reached is False)
            label = f"{series.label}\n(out of reach: {missed})" if missed else series.label
            axes.line(_pairs(series, "deviation", quantity), style, label)
            axes.line(_pairs(series, "validation", quantity), style, hollow=True, line=False)
        axes.note(*notes)
    return out.getvalue()


def coder(sweeps: Sweeps, suffix: str) -> bytes:
    """The rate with and without the entropy coder, Fig. 4a of the paper, best of the presets `paper` and `uniform`.

    Args:
        sweeps: what to draw.
        suffix: `.png` or `.svg`.

    Raises:
        OutputError: matplotlib is not there.
    """
    out = io.BytesIO()
    title = _title(sweeps, "what the entropy coder saves")
    with canvas(title, _DEVIATION, "rate (bits/weight)", out, suffix, log="x") as axes:
        for style, series in enumerate(_series(sweeps)):
            axes.line(_pairs(series, "deviation", "fixed_rate"), style, dashed=True, hollow=True)
            axes.line(_pairs(series, "deviation", "rate"), style, series.label)
        axes.note("dashed: log₂ of each layer's levels", "solid: entropy-coded, tables included")
    return out.getvalue()


def over_k(sweeps: Sweeps, suffix: str) -> bytes:
    """The deviation over k with a fit of a/k² for each curve, Fig. 2a of the paper, and of several ε0 half of Fig. 2b.

    Args:
        sweeps: what to draw.
        suffix: `.png` or `.svg`.

    Raises:
        OutputError: matplotlib is not there.
    """
    out = io.BytesIO()
    title = _title(sweeps, "deviation over k, and the law a/k²")
    with canvas(title, "k (larger is finer)", _DEVIATION, out, suffix, log="xy") as axes:
        for style, series in enumerate(_series(sweeps)):
            found = _pairs(series, "k", "deviation")
            exact = all(point.epsilon == 0 for point in series.points if point.k)  # a floor ends the law otherwise
            if found and exact:
                factor = _fitted(found)
                ends = min(k for k, _ in found), max(k for k, _ in found)
                axes.rule([(k, factor / k**2) for k in ends])
                label = f"{series.label}; a = {factor:,.3g}" if factor < 100 else f"{series.label}; a = {factor:,.0f}"
            axes.line(found, style, label if found and exact else series.label, line=not exact, hollow=series.random)
        axes.note("dotted: a/k², fitted where the deviation is below 0.1")
    return out.getvalue()


def prediction(sweeps: Sweeps, suffix: str) -> bytes:
    """The deviation on validation samples over the target on calibration samples, Fig. 1a of the paper.

    Args:
        sweeps: what to draw, best of real and of random calibration samples.
        suffix: `.png` or `.svg`.

    Raises:
        OutputError: matplotlib is not there.
    """
    out = io.BytesIO()
    title = _title(sweeps, "what calibration samples promise, and what comes")
    x, y = "target deviation on calibration samples", "deviation on validation samples"
    with canvas(title, x, y, out, suffix, log="xy") as axes:
        pairs: list[tuple[float, float]] = []
        for series in _series(sweeps):
            found = _pairs(series, "target", "validation")
            axes.line(found, series.family, series.label, dashed=series.random, hollow=series.random)
            pairs += found
        if pairs:
            ends = min(x for x, _ in pairs), max(x for x, _ in pairs)
            axes.rule([(end, end) for end in ends], "as promised")
    return out.getvalue()


def _fitted(points: Points) -> float:
    """The a of a/k² that fits best in the logarithm, where deviations are small; of all where none is."""
    small = [(k, value) for k, value in points if value < 0.1] or points
    return math.exp(math.fsum(math.log(value * k * k) for k, value in small) / len(small))


def _pairs(series: _Series, x: str, y: str) -> list[tuple[float, float]]:
    """Two quantities of the points where they are known and above 0, out of reach left out."""
    points = (point for point in series.points if point.reached is not False)
    known = ((getattr(point, x), getattr(point, y)) for point in points)
    return [(float(one), float(other)) for one, other in known if one and other]


def _validated(sweeps: Sweeps) -> bool:
    return any(point.validation is not None for points in sweeps.values() for point in points)


def _title(sweeps: Sweeps, what: str) -> str:
    names = list(sweeps)
    return f"{names[0]}: {what}" if len(names) == 1 else what[0].upper() + what[1:]


@dataclass(frozen=True)
class _Series:
    """One curve: `family` is the same for those that differ in their calibration samples only."""

    label: str
    family: int
    random: bool
    points: tuple[Point, ...]


def _series(sweeps: Sweeps) -> list[_Series]:
    """The curves, labelled with what tells them apart: model, preset, settings, calibration samples."""
    found: dict[tuple[str, str, str, str], list[Point]] = {}
    for name, points in sweeps.items():
        for point in points:
            settings = "; ".join(part for part in point.settings.split("; ") if not part.startswith("k="))
            found.setdefault((name, point.preset, settings, point.calibration), []).append(point)
    varied = [len(set(values)) > 1 for values in zip(*found, strict=True)]
    families = list(dict.fromkeys(key[:3] for key in found))
    series = []
    for (name, preset, settings, calibration), points in found.items():
        parts = [name] if varied[0] else []
        parts += [preset] if varied[1] or not any(varied) else []
        parts += [_readable(settings, points)] if varied[2] else []
        kind = calibration.partition(" ")[0]
        if varied[3]:
            same = {key[3] for key in found if key[0] == name and key[3].partition(" ")[0] == kind}
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
