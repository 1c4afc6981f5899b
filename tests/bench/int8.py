"""riq beside float32 and int8: the table of the README."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic

import riq_cli as riq

from . import subjects
from .measuring import measure
from .tables import line, number

TARGETS = (0.001, 0.01)


def int8(names: Sequence[str]) -> None:
    """Print a table: one row a method, one column a model, with bytes and the task's metric of the file."""
    columns = [dict(_rows(subjects.get(name))) for name in names]
    print(line(["", *names]) + "\n|---|" + "--:|" * len(names))
    for method in columns[0]:
        print(line([method, *(column[method] for column in columns)]))


def _rows(subject: subjects.Subject) -> Iterator[tuple[str, str]]:
    """Each method's name, with what it makes of a model."""
    yield "float32", _cell(subject.path.stat().st_size, subject.before)
    with tempfile.TemporaryDirectory() as folder:
        quantized = Path(folder) / "int8.onnx"
        quantize_dynamic(subject.path, quantized, weight_type=QuantType.QInt8)
        after = subject.score(quantized)
        yield "int8 (onnxruntime, dynamic)", _cell(quantized.stat().st_size, after)
        yield "int8 and `zstd -19`", _cell(_zstd(quantized), after)
    for target in TARGETS:
        found = measure(subject, riq.Settings(deviation=target))
        yield f"riq, deviation {target:g}", _cell(found.bytes, found.after)


def _cell(size: int | None, score: float | None) -> str:
    return f"{number(size and size / 1000, '{:,.1f} kB')}, {number(score and 100 * score, '{:.1f} %')}"


def _zstd(path: Path) -> int | None:
    """Bytes of the file after zstd; None where there is no zstd."""
    if shutil.which("zstd") is None:
        return None
    return len(subprocess.run(["zstd", "-19", "-c", path], capture_output=True, check=True).stdout)
