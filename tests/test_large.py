"""A decoder of words whose weights lie beside it goes through every command, and as a huge one in bounded memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from riq_cli.model import Model
from tests.command import riq
from tests.llama import Llama
from tests.memory import growth, on_linux

pytestmark = pytest.mark.slow

MEDIUM = Llama(blocks=6, hidden=512, inner=1408, heads=8, keys=2, words=6000)  # 20 million weights
LARGE = Llama(blocks=8, hidden=1024, inner=2816, heads=16, keys=4, words=16000)  # 107 million
HUGE = (
    "import riq_cli as riq\n"
    "from riq_cli.memory import give_back_large_arrays\n"
    "from riq_cli.pipeline import assembly, restoration, weights\n"
    "from riq_cli.runtime import evaluator\n"
    "for module in (assembly, restoration, weights, evaluator):\n"
    "    module.HUGE = 0\n"
    "give_back_large_arrays()\n"
)


@pytest.mark.parametrize(("dtype", "preset"), [("float16", "fast"), ("float32", "fast"), ("float16", "small")])
def test_a_decoder_goes_through_every_command(dtype: str, preset: str, tmp_path: Path) -> None:
    decoder = replace(MEDIUM, dtype=dtype)
    decoder.save(tmp_path / "model.onnx")
    for name, seed in (("samples", 1), ("heldout", 2)):
        np.savez(tmp_path / f"{name}.npz", words=decoder.samples(16, 16, seed)[:, 0])
    options = ("--calibration", "samples.npz", "--preset", preset, "--deviation", "0.02")
    for command in (
        ("compress", "model.onnx", *options),
        ("decompress", "model.riqz", "-o", "restored.onnx"),
        ("verify", "model.riqz", "--against", "model.onnx", "--calibration", "heldout.npz", "--deviation", "0.03"),
    ):
        done = riq(*command, folder=tmp_path)
        assert done.returncode == 0, done.stderr
    totals = json.loads(riq("report", "model.riqz", "--json", folder=tmp_path).stdout)["totals"]
    assert totals["weights"] >= decoder.weights and totals["rate"] < 8
    model, restored = (Model.load(tmp_path / name) for name in ("model.onnx", "restored.onnx"))
    assert restored.skeleton_bytes() == model.skeleton_bytes()
    assert [layer.places for layer in restored.layers] == [layer.places for layer in model.layers]


@on_linux
def test_a_huge_model_is_compressed_and_restored_in_bounded_memory(tmp_path: Path) -> None:
    LARGE.save(tmp_path / "model.onnx")
    np.save(tmp_path / "samples.npy", LARGE.samples(2, 16)[:, 0])
    weights, largest = 2 * LARGE.weights, 2 * LARGE.words * LARGE.hidden
    taken = growth(
        HUGE,
        "model, samples = riq.Model.load(sys.argv[1]), riq.Calibration.load(sys.argv[2])\n"
        "riq.compress(model, samples, preset='fast', k=1e5).save(sys.argv[3], overwrite=True)",
        tmp_path / "model.onnx",
        tmp_path / "samples.npy",
        tmp_path / "model.riqz",
    )
    assert taken < 1.5 * weights + 2 * largest  # a run of so small a model ends before memory of its file is given back
    taken = growth(
        HUGE,
        "riq.decompress(riq.Archive.open(sys.argv[1])).save(sys.argv[2], overwrite=True)",
        tmp_path / "model.riqz",
        tmp_path / "restored.onnx",
    )
    assert taken < 0.3 * weights + largest + (32 << 20)
