"""The sample models that ship, compressed and judged on held-out data with labels; and the README's own commands."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import riq_cli as riq
from riq_cli.pipeline import PRESETS
from tests import builders
from tests.command import riq as run

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "sample_models"
COMMAND_SAMPLES = 16  # of the 64 that ship: what a command does is asked here, and not how well


def classifier() -> onnx.ModelProto:
    """A small network with the inputs and outputs of the sample models: sparse random features, and a fitted layer.

    The README's commands take a second on it, and many on a sample model.
    """
    with np.load(SAMPLES / "heldout.npz") as loaded:
        images = loaded["image"]
    classes = np.eye(10)[np.load(SAMPLES / "heldout_labels.npy")]
    pooled = images.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196)
    features = builders.Random(0)(196, 24) * (np.random.default_rng(0).random((196, 24)) < 0.2).astype(np.float32)
    hidden = np.maximum(pooled @ features, 0)
    fitted = np.linalg.lstsq(hidden, classes, rcond=None)[0].astype(np.float32)
    return builders.model(
        [
            builders.node("AveragePool", "image", "pooled", kernel_shape=[2, 2], strides=[2, 2]),
            builders.node("Flatten", "pooled", "flat"),
            builders.node("MatMul", "flat features", "sums"),
            builders.node("Relu", "sums", "hidden"),
            builders.node("MatMul", "hidden fitted", "logits"),
        ],
        [builders.info("image", "batch", 1, 28, 28)],
        [builders.info("logits", "batch", 10)],
        [builders.tensor("features", features), builders.tensor("fitted", fitted)],
    )


def accuracy(model: Path) -> float:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    with np.load(SAMPLES / "heldout.npz") as loaded:
        logits = session.run(None, {"image": loaded["image"]})[0]
    return float(np.mean(logits.argmax(1) == np.load(SAMPLES / "heldout_labels.npy")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "full", "least_ratio"), [("cnn", 0.936, 14), ("lstm", 0.906, 7), ("transformer", 0.884, 9)]
)
def test_a_sample_model_keeps_its_accuracy(name: str, full: float, least_ratio: float, tmp_path: Path) -> None:
    path = SAMPLES / f"{name}.onnx"
    assert path.stat().st_size < 500_000
    assert accuracy(path) == pytest.approx(full, abs=0.004)
    model = riq.Model.load(path)
    data = riq.Calibration.load(SAMPLES / "calibration.npz")
    archive = riq.compress(model, data, deviation=0.01)
    assert archive.size < riq.compress(model, data, deviation=0.01, **PRESETS["paper"]).size
    riq.decompress(archive).save(tmp_path / "restored.onnx")
    onnx.checker.check_model(str(tmp_path / "restored.onnx"))
    heldout = riq.verify(archive, model, riq.Calibration.load(SAMPLES / "heldout.npz"))
    assert path.stat().st_size / archive.size > least_ratio
    assert archive.manifest.result["deviation"] <= 0.01
    assert heldout.mean < 0.015
    assert heldout.tensors[0].samples == 500
    assert accuracy(tmp_path / "restored.onnx") > full - 0.05


EVALUATION = """
import numpy as np

with np.load("heldout.npz") as loaded:
    images = loaded["image"]
labels = np.load("heldout_labels.npy")
"""


def readme_commands() -> list[str]:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = [line[2:].split("#")[0].strip() for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return list(dict.fromkeys(line for line in lines if "riq " in line and not line.startswith(("pip", "make"))))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file names that the README uses, and with bin/riq."""
    folder = tmp_path_factory.mktemp("readme")
    builders.save(classifier(), folder)
    with np.load(SAMPLES / "calibration.npz") as samples:
        np.savez(folder / "samples.npz", **{name: array[:COMMAND_SAMPLES] for name, array in samples.items()})
    np.save(folder / "labels.npy", np.load(SAMPLES / "calibration_labels.npy")[:COMMAND_SAMPLES])
    shutil.copy(SAMPLES / "heldout.npz", folder / "heldout.npz")
    shutil.copy(SAMPLES / "heldout_labels.npy", folder / "heldout_labels.npy")
    (metric,) = re.findall(r"  ```py\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (folder / "evaluation.py").write_text(EVALUATION + textwrap.dedent(metric))
    (folder / "bin").mkdir()
    (folder / "bin" / "riq").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m riq_cli "$@"\n')
    (folder / "bin" / "riq").chmod(0o755)
    arguments = ("compress", "model.onnx", "--calibration", "samples.npz")
    sweep = ("sweep", *arguments[1:], "--presets", "fast", "--deviations", "0.02,0.01", "-o", "curve.csv")
    logged, old = (*arguments, "--log", "search.jsonl"), (*arguments, "--preset", "fast", "-o", "old.riqz")
    for words in (logged, old, sweep):
        done = run(*words, folder=folder)
        assert done.returncode == 0, done.stderr
    shutil.copy(folder / "model.riqz", folder / "new.riqz")
    return folder


def in_a_shell(command: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """The command line as a user of the folder would type it, at home there."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "HOME": str(folder), "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, env=environment, timeout=600)


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
@pytest.mark.parametrize("command", readme_commands())
def test_every_command_of_the_readme_works(command: str, prepared: Path, tmp_path: Path) -> None:
    if "plot" in command:
        pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    folder = Path(shutil.copytree(prepared, tmp_path / "work"))
    if "riq compress" in command:
        (folder / "model.riqz").unlink()
        (folder / "search.jsonl").unlink()
    if "riq decompress" in command:
        (folder / "model.onnx").unlink()
    redirected = [folder / name.removeprefix("~/") for name in re.findall(r" > (\S+)", command)]
    for path in redirected:
        path.parent.mkdir(parents=True, exist_ok=True)
    done = in_a_shell(command.replace("500kB", "2.5kB"), folder)  # the model here is that much smaller
    assert done.returncode == 0, done.stderr
    prints = any(words in command for words in ("report", "verify", "-o -")) and not re.search("--html|--plot", command)
    assert bool(done.stdout) == (prints and not redirected)
    assert all(path.stat().st_size for path in redirected)


def test_the_python_of_the_readme_works(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(prepared, tmp_path / "work"))
    shutil.copy(folder / "samples.npz", folder / "calibration.npz")
    (folder / "model.riqz").unlink()
    monkeypatch.chdir(folder)
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(compile("\n".join(code), "README.md", "exec"), {})
    assert (folder / "restored.onnx").exists()
