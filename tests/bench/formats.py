"""One model in all the files that it may ship as: bytes, memory, speed, and what becomes of the outputs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import riq_cli as riq
from riq_cli.errors import TargetError
from riq_cli.pipeline import PRESETS
from riq_cli.runtime import cosine_distance
from riq_cli.text import human_size
from tests.zoo.recipe import runner

from . import subjects
from .measuring import zipped
from .tables import NONE, PAGE, README, commit, header, line, write

TARGET = 0.01
MODELS = ("cnn", "ppocr4-det", "efficientnet-lite0", "minilm-l6")
IN_README = ("efficientnet-lite0", "minilm-l6")

_FILES = {  # their names in tables
    "float32.onnx": "float32",
    "float16.onnx": "riq, `--format float16`",
    "dynamic.onnx": "int8, `quantize_dynamic`",
    "static.onnx": "int8, `quantize_static`",
    "default.riqz": "riq, archive",
    "int8.onnx": "riq, `--format int8`",
    "activations.onnx": "riq, `--activations int8`",
}
_ARCHIVES = {"float16.onnx": "default.riqz", "int8.onnx": "int8.riqz", "activations.onnx": "activations.riqz"}
_BASELINES = ("dynamic.onnx", "static.onnx")
_SAMPLES, _HELDOUT = 32, 128
_ROOM = 1.1  # times what activations alone cause, where that is more than the baseline's deviation
_ROUNDS = 7  # in which each file is opened in turn, so that other work on the machine slows all of them

Feeds = Sequence[Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class File:
    """A file of a model, and how it does.

    Attributes:
        bytes: of the file; `zipped`: after `zstd -19`, None where there is no zstd.
        archived: bytes of the archive that restores it.
        opened: medians over rounds, each over that of the float file in the same round: time until the session is
            there (`cold`: from the disk, `warm`: processor time from the system's memory), processor time of a run of
            one sample (`run`), and bytes that the process takes after the first run (`memory`) and at most (`peak`).
        seen, heldout: mean deviation over calibration and held-out samples, at the float output where it is largest.
        score: of the task.
    """

    bytes: int
    zipped: int | None
    archived: int | None
    opened: Mapping[str, float]
    seen: float
    heldout: float
    score: float | None


def formats(names: Sequence[str], folder: Path | None) -> None:
    """Make and measure every file of the models, and write the tables into the two pages.

    Args:
        names: of the models.
        folder: where files are kept, and those of an earlier run are found; None: nowhere.
    """
    with tempfile.TemporaryDirectory() as temporary:
        found = {name: _files(name, (folder or Path(temporary)) / name) for name in names}
    write(PAGE, "formats", "\n".join(page(found, commit())))
    if set(IN_README) <= set(names):
        write(README, "formats", "\n".join(table({name: found[name] for name in IN_README})))


def _files(name: str, folder: Path) -> dict[str, File]:
    subject = subjects.get(name, _SAMPLES, _HELDOUT)
    model = riq.Model.load(subject.path)
    seen, heldout = (
        [sample.feed for sample in data.samples(model.inputs)] for data in (subject.calibration, subject.heldout)
    )
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "float32.onnx").exists():
        model.save(folder / "float32.onnx")
    np.savez(folder / "sample.npz", **heldout[0])
    _baselines(folder, seen)
    deviations = _deviations(folder, _BASELINES, seen)
    _riq(folder, subject, min(deviations.values(), default=TARGET))
    present = [file for file in _FILES if (folder / file).exists()]
    opened = _opened(folder, present)
    deviations, unseen = _deviations(folder, present, seen), _deviations(folder, present, heldout)
    return {
        file: File(
            (folder / file).stat().st_size,
            zipped(folder / file),
            (folder / _ARCHIVES[file]).stat().st_size if file in _ARCHIVES else None,
            opened[file],
            deviations[file],
            unseen[file],
            None if subject.metric is None else subject.score(_restored(folder / file)),
        )
        for file in present
    }


def _baselines(folder: Path, feeds: Feeds) -> None:
    """What onnxruntime's own tools make of the model, where they take it."""
    source, prepared = folder / "float32.onnx", folder / "prepared.onnx"
    dynamic, static = (folder / file for file in _BASELINES)

    def quantize(path: Path, per_channel: bool) -> None:
        if path is dynamic:
            quantize_dynamic(prepared, path, weight_type=QuantType.QInt8, per_channel=per_channel)
        else:
            quantize_static(prepared, path, _Reader(feeds), weight_type=QuantType.QInt8, per_channel=per_channel)
        runner(path)(feeds[0])

    for path in (dynamic, static):
        if path.exists():
            continue
        try:
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            try:
                quantize(path, True)
            except Exception:  # opsets below 13 have no axis
                quantize(path, False)
        except Exception as error:  # whatever it is, there is no such file
            path.unlink(missing_ok=True)
            print(f"{path.parent.name}: no {path.name}: {error}", file=sys.stderr)


class _Reader(CalibrationDataReader):
    def __init__(self, feeds: Feeds) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Any:
        return next(self._feeds, None)


def _riq(folder: Path, subject: subjects.Subject, deviation: float) -> None:
    """Archives at the target, and with quantized activations at the baseline's deviation; files restored from them."""
    deployable = riq.Settings(deviation=TARGET, **PRESETS["deployable"])
    outputs = tuple(_float_outputs(riq.Model.load(folder / "float32.onnx").to_bytes()))
    asked = {
        "default.riqz": riq.Settings(deviation=TARGET),
        "int8.riqz": deployable,
        "activations.riqz": replace(deployable, deviation=deviation, activations="int8", outputs=outputs),
    }
    for file, settings in asked.items():
        if not (folder / file).exists():
            model = riq.Model.load(subject.path)
            try:
                archive = riq.compress(model, subject.calibration, settings)
            except TargetError as error:  # activations alone have more than the baseline
                print(f"{folder.name}: {error}", file=sys.stderr)
                archive = riq.compress(model, subject.calibration, replace(settings, deviation=_ROOM * error.best))
            archive.save(folder / file)
    for file, name in _ARCHIVES.items():
        if not (folder / file).exists():
            with riq.Archive.open(folder / name) as archive:
                riq.decompress(archive, format="float16" if file == "float16.onnx" else "int8").save(folder / file)


def _restored(path: Path) -> Path | bytes:
    """What scores and plain onnxruntime take: a file of the model, or the restored model."""
    return riq.decompress(riq.Archive.open(path)).to_bytes() if path.suffix == ".riqz" else path


def _float_outputs(model: Path | bytes) -> dict[str, int]:
    """The places of float outputs, by their names."""
    outputs = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).get_outputs()
    return {output.name: place for place, output in enumerate(outputs) if output.type == "tensor(float)"}


def _deviations(folder: Path, files: Sequence[str], feeds: Feeds) -> dict[str, float]:
    """Mean deviation over samples, at the float output where it is largest, by plain onnxruntime for every file."""
    places = _float_outputs(folder / "float32.onnx").values()
    original = [runner(folder / "float32.onnx")(feed) for feed in feeds]
    found = {}
    for file in files:
        if (folder / file).exists():
            run = runner(_restored(folder / file))
            others = [run(feed) for feed in feeds]
            found[file] = max(
                statistics.fmean(
                    cosine_distance(one[place], other[place]) for one, other in zip(original, others, strict=True)
                )
                for place in places
            )
    return found


def _opened(folder: Path, files: Sequence[str]) -> dict[str, dict[str, float]]:
    """What opening each file costs: medians of ratios to the float file, in bytes and seconds."""
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(_ROUNDS):
        rounds.append({})
        for file in files:
            command = [sys.executable, "-m", "tests.bench.opening", folder / file, folder / "sample.npz"]
            rounds[-1][file] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return {
        file: {
            what: statistics.median(found[file][what] / found["float32.onnx"][what] for found in rounds)
            for what in rounds[0][file]
        }
        for file in files
    }


# ---- tables ----


def page(found: Mapping[str, Mapping[str, File]], commit: str) -> Iterator[str]:
    """The lines of the page of results that are about files."""
    yield (
        f"Measured at {commit}. riq's archives are made at a deviation of {TARGET:g} with {_SAMPLES}\n"
        "calibration samples: `small` for the archive and float16, `deployable` for int8.\n"
        "With `--activations int8`, the deviation asked for is that of the better int8\n"
        f"file of onnxruntime's tools, or {_ROOM:g} times what activations alone cause.\n\n"
        "- **Archive**: bytes of the archive that the file is restored from.\n"
        "- **Memory** of a process with the model in a session, after one run.\n"
        "  **Opening** lasts until the session is there: from the system's memory in\n"
        "  processor time, and from the disk, with the import of riq. **Run**: processor\n"
        "  time of one sample on one thread. All are ratios to the float32 file, medians\n"
        "  of rounds in which each file is opened.\n"
        "- **Deviation**: of the model's float outputs on held-out samples, as\n"
        "  onnxruntime runs the file. Metric: see above.\n"
    )
    yield from table(found)
    yield "\n### Quantized activations\n"
    yield (
        "8-bit weights and activations by onnxruntime's tools, and riq's archive with\n"
        "`--preset deployable --activations int8` at the same deviation on the\n"
        "calibration samples. Held out and run: of the tool's file, and of riq's.\n"
    )
    yield from activations(found)


def table(found: Mapping[str, Mapping[str, File]]) -> Iterator[str]:
    """A table of a row for each file of each model."""
    yield header(["model", "file", "size", "zstd -19", "archive", "memory", "opening", "run", "deviation", "metric"])
    for name, files in found.items():
        for file, row in files.items():
            opened = row.opened
            yield line(
                [
                    subjects.title(name) if file == "float32.onnx" else "",
                    _FILES[file],
                    human_size(row.bytes),
                    NONE if row.zipped is None else human_size(row.zipped),
                    NONE if row.archived is None else human_size(row.archived),
                    f"×{opened['memory']:.2f}",
                    f"×{opened['warm']:.2f}, ×{opened['cold']:.2f}",
                    f"×{opened['run']:.2f}",
                    f"{row.heldout:.2g}",
                    NONE if row.score is None else f"{100 * row.score:.1f} %",
                ]
            )


def activations(found: Mapping[str, Mapping[str, File]]) -> Iterator[str]:
    """A table of a row for each model: the baseline of 8-bit weights and activations, and riq at its deviation."""
    yield header(["model", "baseline", "deviation", "size", "zstd -19", "riq", "× smaller", "held out", "run"])
    for name, files in found.items():
        own = files.get("activations.onnx")
        baselines = [file for file in _BASELINES if file in files]
        if own is None or own.archived is None or not baselines:
            continue
        best = min(baselines, key=lambda file: files[file].seen)
        row = files[best]
        yield line(
            [
                subjects.title(name),
                _FILES[best],
                f"{row.seen:.2g}",
                human_size(row.bytes),
                NONE if row.zipped is None else human_size(row.zipped),
                human_size(own.archived),
                f"×{row.bytes / own.archived:.1f}",
                f"{row.heldout:.2g} and {own.heldout:.2g}",
                f"×{row.opened['run']:.2f} and ×{own.opened['run']:.2f}",
            ]
        )
