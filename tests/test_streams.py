"""Models and archives come from stdin and go to stdout, as with zstd."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from riq_cli.archive import Archive
from riq_cli.model import Model
from tests import builders
from tests.command import ROOT, fails, riq

OPTIONS = "--k", "30", "--preset", "fast", "--calibration", "samples.npz"


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, samples and the model's archive."""
    folder = tmp_path_factory.mktemp("ready")
    builders.save(builders.dense(), folder)
    np.savez(folder / "samples.npz", x=np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32))
    assert riq("compress", "model.onnx", *OPTIONS, folder=folder).returncode == 0
    return folder


def test_a_model_from_stdin_gives_the_same_archive(ready: Path, tmp_path: Path) -> None:
    model, archive = (ready / "model.onnx").read_bytes(), (ready / "model.riqz").read_bytes()
    done = riq("compress", "-", *OPTIONS, "-o", "-", folder=ready, data=model)
    assert (done.returncode, done.stdout) == (0, archive)
    assert re.match(r"-: .* smaller than the model on stdin \(", done.stderr.decode())
    riq("compress", "-", *OPTIONS, "-o", tmp_path / "out.riqz", folder=ready, data=model)
    assert (tmp_path / "out.riqz").read_bytes() == archive
    with Archive.open(tmp_path / "out.riqz") as opened:
        source = Model.load(ready / "model.onnx").source
        assert source is not None
        assert opened.manifest.source == {"bytes": len(model), "sha256": source.sha256}


def test_both_sides_of_verify_may_come_from_stdin_but_not_at_once(ready: Path) -> None:
    samples = ("--calibration", "samples.npz", "--deviation", "1")
    for words, name in (
        (("-", "--against", "model.onnx"), "model.riqz"),
        (("model.riqz", "--against", "-"), "model.onnx"),
    ):
        assert riq("verify", *words, *samples, folder=ready, data=(ready / name).read_bytes()).returncode == 0
    message = "only one of ARCHIVE and --against can come from stdin"
    fails(2, message, "verify", "-", "--against", "-", *samples, folder=ready)


def test_what_a_stream_lacks_is_told(ready: Path, tmp_path: Path) -> None:
    message = "a model from stdin has no name to derive the archive's from; give -o FILE"
    fails(2, message, "compress", "-", folder=ready)
    model = builders.save_external(builders.dense(), tmp_path).read_bytes()
    done = riq("compress", "-", "-o", "x.riqz", folder=tmp_path, data=model)
    message = "some of the model's data lies in files beside it; give the path of its own file"
    assert done.stderr.decode().endswith(f": {message}\n")
    assert done.returncode == 1


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="has no /dev/stdout")
def test_stdout_has_another_name(ready: Path) -> None:
    archive = (ready / "model.riqz").read_bytes()
    assert riq("compress", "model.onnx", *OPTIONS, "-o", "/dev/stdout", "-f", folder=ready).stdout == archive


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="terminals of POSIX")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "compress model.onnx -o -",
            "stdout is a terminal, and the output no text; redirect it, or name a file with -o",
        ),
        (
            "decompress model.riqz -o -",
            "stdout is a terminal, and the output no text; redirect it, or name a file with -o",
        ),
        ("compress - -o x.riqz", "- stands for stdin, on which there is no file; redirect one there, or name it"),
        ("report -", "- stands for stdin, on which there is no file; redirect one there, or name it"),
    ],
)
def test_a_terminal_neither_gives_nor_takes_bytes(words: str, message: str, ready: Path) -> None:
    terminal, other = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "riq_cli", *words.split()], cwd=ready, env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=other, stdout=other, stderr=subprocess.PIPE, timeout=60,
        )  # fmt: skip
    finally:
        os.close(other)
        os.close(terminal)
    assert (done.returncode, done.stderr.decode().splitlines()[0]) == (2, f"riq: error: {message}")
