"""riq beside int8, and its presets beside each other: the tables of the page of results and of the README."""

from __future__ import annotations

import statistics
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic

import riq_cli as riq
from riq_cli.executors import available_threads
from riq_cli.pipeline import PRESETS
from tests import zoo

from . import subjects
from .journal import Journal
from .measuring import Measurement, measure, zipped
from .tables import NONE, PAGE, README, commit, header, line, number, write

TARGETS = (0.01, 0.001)
MODELS = (
    *subjects.SAMPLES,
    *("mnist-cnn", "basic-pitch", "ppocr4-cls", "silero-vad-seq", "romanizer-encoder", "magika", "romanizer-decoder"),
    *("ppocr4-det", "ppocr4-rec", "efficientnet-lite0", "minilm-l6"),
)
EVERYWHERE = ("small", "fast")  # the other presets are compared on models of a few megabytes
IN_README = ("cnn", "silero-vad-seq", "ppocr4-rec", "efficientnet-lite0", "minilm-l6")
SAMPLES, HELDOUT = 32, 128  # of calibration data, of held-out data at most
DEFAULT, PAPER = "small", "paper"

_FEW_BYTES = 5e6


@dataclass(frozen=True)
class Case:
    """A model, the deviation asked for, and the preset; `freed` if the preset's own ε0 does not reach it."""

    model: str
    target: float
    preset: str
    freed: bool = False


@dataclass(frozen=True)
class Int8:
    """Bytes of the model that onnxruntime quantizes dynamically, the same after `zstd -19`, and its task metric."""

    bytes: int
    zipped: int | None
    after: float


Rows = dict[Case, Measurement]


def results(names: Sequence[str], path: Path | None) -> None:
    """Measure all cases that the file does not hold, and write the tables into the two pages.

    Args:
        names: of the models.
        path: JSON lines, one for each case; new ones are appended.
    """
    journal = Journal(Case, Measurement, path, resume=True)
    baselines: dict[str, Int8] = {}
    for name in names:
        try:
            subject = subjects.get(name, SAMPLES, HELDOUT)
        except zoo.ZooUnavailable as error:
            print(f"{name}: cannot be had: {error}", file=sys.stderr)
            continue
        presets = EVERYWHERE if subject.path.stat().st_size > _FEW_BYTES else tuple(PRESETS)
        for target in TARGETS:
            for preset in presets:
                _measure(journal, subject, Case(name, target, preset))
        try:
            baselines[name] = _int8(subject)
        except (ValueError, RuntimeError) as error:
            print(f"{name}: onnxruntime does not quantize it: {error}", file=sys.stderr)
    write(PAGE, "results", "\n".join(page(journal.rows, baselines, names, commit())))
    if set(IN_README) <= set(names):
        write(README, "results", "\n".join(beside_int8(journal.rows, baselines, IN_README)))


def _measure(journal: Journal[Case, Measurement], subject: subjects.Subject, case: Case) -> None:
    """Add the row of a case, and where the paper's ε0 does not reach the target, that of the ε0 which does."""
    if case not in journal.rows:
        options = dict(PRESETS[case.preset])
        if case.freed:  # Algorithm 1 could take 46 000 steps with ε0 = 0, so bisection searches
            options |= {"epsilon": None, "search": "bisection"}
        try:
            found = measure(subject, riq.Settings(deviation=case.target, **options))
        except Exception:  # the other models are worth their hours; a resumed run tries this one again
            traceback.print_exc()
            return
        journal.add(case, found)
        print(f"{case}: {found}", file=sys.stderr, flush=True)
    if journal.rows[case].bytes is None and not case.freed:
        _measure(journal, subject, replace(case, freed=True))


def _int8(subject: subjects.Subject) -> Int8:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(subject.path, path, weight_type=QuantType.QInt8)
        return Int8(path.stat().st_size, zipped(path), subject.score(path))


# ---- tables ----


def page(rows: Rows, baselines: dict[str, Int8], names: Sequence[str], commit: str) -> Iterator[str]:
    """The lines of the page of results."""
    yield f"Measured at {commit} with {SAMPLES} calibration samples, on {available_threads()} cores.\n"
    yield "## Beside int8\n"
    yield (
        "Bytes of the file, and the task metric on held-out data. int8 is onnxruntime's\n"
        "`quantize_dynamic`; where it does not take the model there is a dash.\n"
    )
    yield from beside_int8(rows, baselines, names)
    yield "\n## Targets\n"
    yield (
        "Archives of the default preset, `small`. × fast and × paper: size of the\n"
        "archive of that preset over its size; * where the paper's ε₀ = 0.01 does not\n"
        "reach the target and was lowered for it. Deviation: on the calibration samples,\n"
        "and on held-out data.\n"
    )
    for target in TARGETS:
        yield f"At a deviation of {target:g}:\n"
        yield from at_target(rows, names, target)
        yield ""
    yield "## Presets\n"
    yield (
        "Size of the archive and processor time of the search, both over those of the\n"
        "default preset: geometric means over models and both targets. Some presets are\n"
        f"measured on models below {_FEW_BYTES / 1e6:g} MB alone.\n"
    )
    yield from beside_default(rows)


def beside_int8(rows: Rows, baselines: dict[str, Int8], names: Iterable[str]) -> Iterator[str]:
    """A table of a row for each model: bytes and task metric as float32, as int8, and by riq."""
    yield header(["model", "task metric", "float32", "int8", "int8 + zstd", *(f"riq, {t:g}" for t in TARGETS)])
    for name in names:
        own = [rows.get(Case(name, target, DEFAULT)) for target in TARGETS]
        if own[0] is None:
            continue
        int8 = baselines.get(name)
        cells = [_cell(int8.bytes, int8.after), _cell(int8.zipped, int8.after)] if int8 else [NONE, NONE]
        cells += [NONE if row is None else _cell(row.bytes, row.after) for row in own]
        metric = own[0].metric or NONE
        yield line([subjects.title(name), metric, _cell(own[0].source_bytes, own[0].before), *cells])


def at_target(rows: Rows, names: Iterable[str], target: float) -> Iterator[str]:
    """A table of a row for each model: what the default preset gives at a target, and how other presets compare."""
    yield header(
        ["model", "ratio", "bits/weight", "× fast", "× paper", "deviation", "held out", "metric", "evaluations"]
    )
    for name in names:
        row = rows.get(Case(name, target, DEFAULT))
        if row is None:
            continue
        before_after = NONE
        if row.before is not None and row.after is not None:
            before_after = f"{row.before:.3f} → {row.after:.3f}"
        yield line(
            [
                subjects.title(name),
                number(row.ratio, "×{:.2f}"),
                number(row.rate, "{:.2f}"),
                _times(rows, Case(name, target, "fast"), row),
                _times(rows, Case(name, target, PAPER), row),
                number(row.deviation, "{:.5f}"),
                number(row.heldout, "{:.5f}"),
                before_after,
                f"{row.evaluations}",
            ]
        )


def beside_default(rows: Rows) -> Iterator[str]:
    """A table of a row for each preset: sizes and times over those of the default, held-out deviation over target."""
    yield header(["preset", "pairs", "size", "time", "held out ÷ target: median", "worst", "above 1"])
    for preset in PRESETS:
        pairs = [
            (found, rows[whole], case.target)
            for case, row in rows.items()
            if case.preset == preset and not case.freed
            for whole in [replace(case, preset=DEFAULT)]
            for found in [row if row.bytes else rows.get(replace(case, freed=True))]
            if found is not None and found.bytes and whole in rows and rows[whole].bytes
        ]
        if not pairs:
            continue
        heldout = [found.heldout / target for found, _, target in pairs if found.heldout is not None]
        sizes = statistics.geometric_mean(found.bytes / whole.bytes for found, whole, _ in pairs)  # type: ignore[operator]
        times = statistics.geometric_mean(found.seconds / whole.seconds for found, whole, _ in pairs)
        yield line(
            [
                f"`{preset}`",
                f"{len(pairs)}",
                f"×{sizes:.2f}",
                f"×{times:.2f}",
                f"{statistics.median(heldout):.2f}",
                f"{max(heldout):.2f}",
                f"{sum(share > 1 for share in heldout)}",
            ]
        )


def _times(rows: Rows, case: Case, own: Measurement) -> str:
    """Bytes of a case over those of the default's row; with a star if the preset's own ε0 was out of reach."""
    for one, star in ((case, ""), (replace(case, freed=True), "*")):
        if one in rows and rows[one].bytes and own.bytes:
            return f"×{rows[one].bytes / own.bytes:.2f}{star}"  # type: ignore[operator]
    return NONE


def _cell(size: int | None, score: float | None) -> str:
    if size is None:
        return NONE
    shown = f"{size / 1e6:.3g} MB" if size >= 1e6 else f"{size / 1e3:.3g} kB"
    return shown if score is None else f"{shown}, {100 * score:.1f} %"
