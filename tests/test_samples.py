"""The sample models that ship, compressed and judged on held-out data with labels."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import riq_cli as riq
from riq_cli.pipeline import PRESETS

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "sample_models"


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
