"""Error compensation from model to archive: the target holds, what was measured ships, and it pays where it should."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import reference_decoder
from onnx import numpy_helper

import riq_cli as riq
from riq_cli.errors import SettingsError
from tests import builders
from tests.archives import written
from tests.command import fails
from tests.command import riq as run

Build = Callable[[], onnx.ModelProto]
Feeds = list[dict[str, np.ndarray]]

RANDOM = "compensated rounding needs real samples, random ones would mislead it; give --calibration"
TARGET = 0.01


MLP = """
    Gemm x w0 b0 > h0 transB=1; Relu h0 > a0; MatMul a0 w1 > m1; Add m1 b1 > h1; Relu h1 > a1; Gemm a1 w2 b2 > y
"""
CONVOLUTIONS = """
    Conv x stem b0 > c0 pads=[1,1,1,1] strides=[2,2]; Relu c0 > a0; Conv a0 depthwise > c1 pads=[1,1,1,1] group=16;
    Conv c1 pointwise b1 > c2; Relu c2 > a2; AveragePool a2 > p kernel_shape=[3,3] strides=[3,3]; Flatten p > f;
    Gemm f head b2 > y transB=1
"""


def built(text: str, size: int, inputs: tuple[int, ...], dtype: Any = np.float32, **shapes: Any) -> onnx.ModelProto:
    """A model of nodes, with weights of these shapes, and `size` outputs."""
    r, kind = builders.Random(5), onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return builders.model(
        builders.nodes(text),
        [builders.info("x", "batch", *inputs, dtype=kind)],
        [builders.info("y", "batch", size, dtype=kind)],
        [builders.tensor(name, r(*np.atleast_1d(shape), dtype=dtype)) for name, shape in shapes.items()],
    )


def mlp(dtype: Any = np.float32) -> onnx.ModelProto:
    """Three dense layers with biases and ReLU between, each transposed in another way."""
    return built(MLP, 12, (48,), dtype, w0=(64, 48), b0=64, w1=(64, 48), b1=48, w2=(48, 12), b2=12)


def convolutions() -> onnx.ModelProto:
    """A stem, a depthwise and a pointwise convolution, and a dense layer on what is left of the picture."""
    return built(
        CONVOLUTIONS, 10, (3, 12, 12), stem=(16, 3, 3, 3), b0=16, depthwise=(16, 1, 3, 3), pointwise=(32, 16, 1, 1),
        b1=32, head=(10, 128), b2=10,
    )  # fmt: skip


def smooth(count: int, *shape: int, seed: int = 0, dtype: type[np.floating] = np.float32) -> Feeds:
    """Samples of five rows of random walks along every axis, around a common mean: similar where they are near."""
    generator = np.random.default_rng(seed)
    feeds = []
    for _ in range(count):
        values = generator.standard_normal((5, *shape))
        for axis in range(values.ndim - 1, 1 if len(shape) > 1 else 0, -1):
            values = np.cumsum(values, axis=axis) / np.sqrt(values.shape[axis])
        feeds.append({"x": (values + 0.5).astype(dtype)})
    return feeds


MODELS: dict[str, tuple[Build, tuple[int, ...]]] = {"mlp": (mlp, (48,)), "convolutions": (convolutions, (3, 12, 12))}


@dataclass
class Found:
    """What compensated rounding makes of a model, to be looked at by several tests."""

    model: riq.Model
    data: riq.Calibration
    archive: riq.Archive


def loaded(name: str, folder: Path, count: int = 16) -> tuple[riq.Model, riq.Calibration]:
    build, shape = MODELS[name]
    return riq.Model.load(builders.save(build(), folder)), riq.Calibration.from_feeds(smooth(count, *shape))


def compensated(model: riq.Model, data: riq.Calibration, **options: Any) -> riq.Archive:
    wanted: dict[str, Any] = {"deviation": TARGET, "rounding": "compensated"} | options
    archive = riq.compress(model, data, **wanted)
    assert archive.manifest.result["rounding"] == "compensated"
    return archive


@pytest.fixture(scope="module", params=MODELS)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    model, data = loaded(request.param, tmp_path_factory.mktemp(request.param))
    return Found(model, data, compensated(model, data))


def tensors(model: riq.Model) -> dict[str, np.ndarray]:
    return {
        each.name: numpy_helper.to_array(each) for each in onnx.load_from_string(model.to_bytes()).graph.initializer
    }


def streams(archive: riq.Archive) -> int:
    """What the weights take, codes of scales included: tiny models are mostly manifest and tables."""
    return sum(sum(entry.streams) + sum(codes.bytes for codes in entry.codes) for entry in archive.manifest.layers)


def test_what_was_measured_ships_and_is_smaller_than_with_nearest_rounding(found: Found) -> None:
    archive, result = found.archive, found.archive.manifest.result
    assert archive.manifest.settings == {"deviation": TARGET, "rounding": "compensated"}
    assert max(result["deviation"], result["holdout"]) <= TARGET
    data = written(archive)
    with riq.Archive.open(io.BytesIO(data)) as opened:
        assert riq.verify(opened, found.model, found.data).mean == result["deviation"]
        ours = {layer.name: layer.values.tobytes() for layer in riq.decompress(opened).layers}
    _, layers = reference_decoder.decode(data)
    assert {entry["name"]: values for entry, values in layers} == {
        entry["name"]: ours[entry["name"]] for entry, _ in layers
    }
    assert any(entry["scales"] for entry, _ in layers)
    nearest = riq.compress(found.model, found.data, deviation=TARGET, rounding="nearest")
    assert nearest.manifest.result["rounding"] == "nearest"
    assert streams(archive) < 0.9 * streams(nearest)


def test_the_same_input_gives_the_same_bytes(found: Found) -> None:
    assert written(compensated(found.model, found.data)) == written(found.archive)


@pytest.mark.slow
def test_others_see_about_the_target(tmp_path: Path) -> None:
    """What of 32 samples is luck makes archives neither larger than they need be, nor worse on 256 others."""
    model, _ = loaded("mlp", tmp_path)
    others = riq.Calibration.from_feeds(smooth(256, 48, seed=99))
    seen = []
    for seed in (1, 2, 3):
        archive = riq.compress(model, riq.Calibration.from_feeds(smooth(32, 48, seed=seed)), deviation=TARGET)
        seen.append(riq.verify(archive, model, others).mean)
    assert 0.8 * TARGET < np.exp(np.log(seen).mean()) < 1.1 * TARGET and max(seen) < 1.25 * TARGET


def test_biases_take_over_what_rounding_adds_on_average(tmp_path: Path) -> None:
    """b − (Ŵ − W) E[x], rounded to the bias's own bin width; samples have the same E[x] if rows count alike."""
    model = riq.Model.load(builders.save(mlp(), tmp_path))
    mean = np.linspace(-1, 1, 48)
    feeds = [{"x": (feed["x"] - feed["x"].mean(axis=0) + mean).astype(np.float32)} for feed in smooth(16, 48)]
    archive = compensated(model, riq.Calibration.from_feeds(feeds), without=("gradients", "augmentation"))
    before, after = tensors(model), tensors(riq.decompress(archive))
    shift = (before["w0"].astype(np.float64) - after["w0"]) @ mean
    taken = after["b0"].astype(np.float64) - before["b0"]
    entries = {entry.name: entry for entry in archive.manifest.layers}
    width = entries["b0"].bin_width or 0.0
    assert np.max(np.abs(taken - shift)) <= width / 2 + 1e-5
    assert np.max(np.abs(shift)) > width
    assert np.all(before["b2"] != after["b2"])  # too small for coding to pay, and yet moved


def test_biases_that_are_kept_exact_or_hold_nothing_stay_as_they_are(tmp_path: Path) -> None:
    proto = mlp()
    (zeros,) = (tensor for tensor in proto.graph.initializer if tensor.name == "b0")
    zeros.CopyFrom(builders.tensor("b0", np.zeros(64, np.float32)))
    model, data = riq.Model.load(builders.save(proto, tmp_path)), riq.Calibration.from_feeds(smooth(16, 48))
    after = tensors(riq.decompress(compensated(model, data, exclude=("b1", "b2"))))
    for name in ("b0", "b1", "b2"):
        np.testing.assert_array_equal(tensors(model)[name], after[name])


def test_a_bias_may_take_over_far_more_than_it_holds(tmp_path: Path) -> None:
    """Its bin width suits what it held: what it takes over would be more bins than symbols count."""
    proto = mlp()
    (tiny,) = (tensor for tensor in proto.graph.initializer if tensor.name == "b0")
    tiny.CopyFrom(builders.tensor("b0", 1e-30 * numpy_helper.to_array(tiny)))
    model, data = riq.Model.load(builders.save(proto, tmp_path)), riq.Calibration.from_feeds(smooth(16, 48))
    archive = compensated(model, data)
    assert np.max(np.abs(tensors(riq.decompress(archive))["b0"])) > 1e-6
    assert archive.manifest.result["deviation"] <= TARGET


def test_a_budget_can_be_compensated_too(tmp_path: Path) -> None:
    model, data = loaded("mlp", tmp_path)
    nearest = riq.compress(model, data, rate=3.0, rounding="nearest")
    archive = compensated(model, data, deviation=None, rate=3.0)
    assert archive.manifest.result["deviation"] < 0.8 * nearest.manifest.result["deviation"]
    matrices = [entry for entry in archive.manifest.layers if len(entry.shape) == 2]
    assert sum(entry.stored for entry in matrices) <= 3 / 8 * sum(entry.size for entry in matrices)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types_are_compensated_like_float32(dtype: type[np.floating], tmp_path: Path) -> None:
    model = riq.Model.load(builders.save(mlp(dtype), tmp_path))
    data = riq.Calibration.from_feeds(smooth(8, 48, dtype=dtype))
    archive = compensated(model, data)
    assert riq.verify(archive, model, data).mean == archive.manifest.result["deviation"] <= TARGET
    assert {each.dtype for each in tensors(riq.decompress(archive)).values()} == {np.dtype(dtype)}


# ---- where it does not go -------------------------------------------------------------------------------------------


def test_random_samples_cannot_be_fitted_to(tmp_path: Path) -> None:
    model, _ = loaded("mlp", tmp_path)
    with pytest.raises(SettingsError) as error:
        riq.compress(model, deviation=TARGET, rounding="compensated")
    assert str(error.value) == RANDOM
    for rounding in (None, "trellis"):
        archive = riq.compress(model, deviation=TARGET, rounding=rounding)
        assert archive.manifest.result["rounding"] in ("nearest", "trellis")


def test_a_trellis_needs_neither_statistics_nor_probes(tmp_path: Path) -> None:
    model, _ = loaded("mlp", tmp_path)
    steps: list[riq.Progress] = []
    riq.compress(model, deviation=TARGET, allocation="norm", rounding="trellis", progress=steps.append)
    assert {step.rounding for step in steps if step.phase == "search"} == {"nearest", "trellis"}


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (3, {}, "compensated rounding needs at least 4 samples; there are 3"),
        (8, {"holdout": 0.9}, "compensated rounding needs at least 4 samples that are not held out; there are 1"),
    ],
)
def test_a_few_samples_cannot_be_fitted_to(count: int, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    model, data = loaded("mlp", tmp_path, count)
    with pytest.raises(SettingsError) as error:
        riq.compress(model, data, deviation=TARGET, rounding="compensated", **options)
    assert str(error.value) == message
    assert riq.compress(model, data, deviation=0.05, **options).manifest.result["rounding"] in ("nearest", "trellis")


def test_the_command_line_says_so_and_exits_with_2(tmp_path: Path) -> None:
    builders.save(mlp(), tmp_path)
    for name, count in (("three", 3), ("sixteen", 16)):
        np.savez(tmp_path / f"{name}.npz", x=np.concatenate([feed["x"][:1] for feed in smooth(count, 48)]))
    command = ("compress", "model.onnx", "--rounding", "compensated")
    fails(2, RANDOM, *command, folder=tmp_path)
    message = "compensated rounding needs at least 4 samples; there are 3"
    fails(2, message, *command, "--calibration", "three.npz", folder=tmp_path)
    assert not (tmp_path / "model.riqz").exists()
    done = run(*command, "--calibration", "sixteen.npz", folder=tmp_path)
    assert done.returncode == 0
    assert "compensated rounding, k = " in done.stderr.decode()
    shown = run("report", "model.riqz", folder=tmp_path).stdout.decode()
    assert "settings: preset = small, deviation = 0.01, rounding = compensated; riq 0.1.0" in shown
    assert "compensated rounding, k = " in shown
