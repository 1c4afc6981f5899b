"""Pictures of sweeps."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from riq_cli.plots.canvas import canvas
from riq_cli.points import Point


def curve(points: Sequence[Point], name: str, suffix: str, quantity: str = "ratio") -> bytes:
    """The rate–distortion curve of each preset, as in Fig. 4c of the paper; validation deviations are hollow.

    Args:
        points: of one model.
        name: of the model.
        suffix: `.png` or `.svg`.
        quantity: `ratio` or `rate`.

    Raises:
        OutputError: matplotlib is not there.
    """
    out = io.BytesIO()
    label = {"ratio": "compression ratio (×, real bytes)", "rate": "rate (bits/weight, tables included)"}[quantity]
    title = f"{name}: what a deviation buys" if quantity == "ratio" else f"{name}: what a deviation costs"
    corner = "upper left" if quantity == "ratio" else "upper right"
    validated = any(point.validation is not None for point in points)
    with canvas(title, "deviation (cosine distance)", label, out, suffix, log="x", corner=corner) as axes:
        for style, (series, own) in enumerate(_series(points)):
            known = [(point.deviation, getattr(point, quantity)) for point in own]
            axes.line(sorted((x, y) for x, y in known if x and y), style, series)
            hollow = [(point.validation, getattr(point, quantity)) for point in own]
            found = sorted((x, y) for x, y in hollow if x and y)
            if found:
                axes.line(found, style, None, hollow=True, line=False)
        if validated:
            axes.note("filled: on calibration samples; hollow: on validation samples")
    return out.getvalue()


def coder(points: Sequence[Point], name: str, suffix: str) -> bytes:
    """The rate with and without the entropy coder, as in Fig. 4a of the paper.

    Args:
        points: of one model, best of the presets `paper` and `uniform`.
        name: of the model.
        suffix: `.png` or `.svg`.

    Raises:
        OutputError: matplotlib is not there.
    """
    out = io.BytesIO()
    title = f"{name}: what the entropy coder saves"
    with canvas(title, "deviation (cosine distance)", "rate (bits/weight)", out, suffix, log="x") as axes:
        for style, (series, own) in enumerate(_series(points)):
            for field, label, dashed in (("fixed_rate", "log₂ of the levels", True), ("rate", "entropy-coded", False)):
                found = [(point.deviation, getattr(point, field)) for point in own]
                drawn = sorted((x, y) for x, y in found if x and y)
                axes.line(drawn, style, f"{series}, {label}", dashed=dashed, hollow=dashed)
    return out.getvalue()


def _series(points: Sequence[Point]) -> Iterator[tuple[str, list[Point]]]:
    """Names and points of the curves: of a preset, with what else tells them apart."""
    found: dict[tuple[str, str, str], list[Point]] = {}
    for point in points:
        if point.deviation is not None and point.reached is not False:
            settings = "; ".join(part for part in point.settings.split("; ") if not part.startswith("k="))
            found.setdefault((point.preset, point.calibration, settings), []).append(point)
    several = len({calibration for _, calibration, _ in found}) > 1
    for (preset, calibration, settings), own in found.items():
        yield ", ".join(part for part in (preset, settings, calibration if several else "") if part), own
