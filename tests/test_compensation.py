"""Error compensation from model to archive: the target holds, what was measured ships, and it pays where it should."""

from __future__ import annotations

import functools
import io
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import reference_decoder
from onnx import numpy_helper

import riq_cli as riq
from riq_cli.errors import SettingsError
from riq_cli.pipeline import Progress
from riq_cli.pipeline.probing import Probes
from riq_cli.pipeline.solution import Solution
from riq_cli.pipeline.solver import geometric_mean
from tests import builders
from tests.command import fails
from tests.command import riq as run

Build = Callable[[], onnx.ModelProto]
Feeds = list[dict[str, np.ndarray]]

RANDOM = "compensated rounding needs real samples, random ones would mislead it; give --calibration"
TARGET = 0.01


def mlp(dtype: type[np.floating] = np.float32) -> onnx.ModelProto:
    """Three dense layers with biases and ReLU between, each transposed in another way."""
    r = builders.Random(5)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return builders.model(
        [
            builders.node("Gemm", "x w0 b0", "h0", transB=1),
            builders.node("Relu", "h0", "a0"),
            builders.node("MatMul", "a0 w1", "m1"),
            builders.node("Add", "m1 b1", "h1"),
            builders.node("Relu", "h1", "a1"),
            builders.node("Gemm", "a1 w2 b2", "y"),
        ],
        [builders.info("x", "batch", 48, dtype=kind)],
        [builders.info("y", "batch", 12, dtype=kind)],
        [
            builders.tensor("w0", r(64, 48, dtype=dtype)),
            builders.tensor("b0", r(64, dtype=dtype)),
            builders.tensor("w1", r(64, 48, dtype=dtype)),
            builders.tensor("b1", r(48, dtype=dtype)),
            builders.tensor("w2", r(48, 12, dtype=dtype)),
            builders.tensor("b2", r(12, dtype=dtype)),
        ],
    )


def convolutions() -> onnx.ModelProto:
    """A stem, a depthwise and a pointwise convolution, and a dense layer on what is left of the picture."""
    r = builders.Random(6)
    return builders.model(
        [
            builders.node("Conv", "x stem stem.bias", "c0", pads=[1, 1, 1, 1], strides=[2, 2]),
            builders.node("Relu", "c0", "a0"),
            builders.node("Conv", "a0 depthwise", "c1", pads=[1, 1, 1, 1], group=16),
            builders.node("Conv", "c1 pointwise pointwise.bias", "c2"),
            builders.node("Relu", "c2", "a2"),
            builders.node("AveragePool", "a2", "p", kernel_shape=[3, 3], strides=[3, 3]),
            builders.node("Flatten", "p", "f"),
            builders.node("Gemm", "f head head.bias", "y", transB=1),
        ],
        [builders.info("x", "batch", 3, 12, 12)],
        [builders.info("y", "batch", 10)],
        [
            builders.tensor("stem", r(16, 3, 3, 3)),
            builders.tensor("stem.bias", r(16)),
            builders.tensor("depthwise", r(16, 1, 3, 3)),
            builders.tensor("pointwise", r(32, 16, 1, 1)),
            builders.tensor("pointwise.bias", r(32)),
            builders.tensor("head", r(10, 128)),
            builders.tensor("head.bias", r(10)),
        ],
    )


def smooth(count: int, *shape: int, seed: int = 0, dtype: type[np.floating] = np.float32) -> Feeds:
    """Samples of five rows of random walks along every axis, around a common mean: alike where they are near."""
    generator = np.random.default_rng(seed)
    feeds = []
    for _ in range(count):
        values = generator.standard_normal((5, *shape))
        for axis in range(values.ndim - 1, 1 if len(shape) > 1 else 0, -1):
            values = np.cumsum(values, axis=axis) / np.sqrt(values.shape[axis])
        feeds.append({"x": (values + 0.5).astype(dtype)})
    return feeds


MODELS: dict[str, tuple[Build, tuple[int, ...]]] = {"mlp": (mlp, (48,)), "convolutions": (convolutions, (3, 12, 12))}


def loaded(name: str, folder: Path, count: int = 16) -> tuple[riq.Model, riq.Calibration]:
    build, shape = MODELS[name]
    return riq.Model.load(builders.save(build(), folder)), riq.Calibration.from_feeds(smooth(count, *shape))


def stored(archive: riq.Archive) -> bytes:
    file = io.BytesIO()
    archive.write(file)
    return file.getvalue()


def tensors(model: riq.Model) -> dict[str, np.ndarray]:
    return {
        each.name: numpy_helper.to_array(each) for each in onnx.load_from_string(model.to_bytes()).graph.initializer
    }


class Found(NamedTuple):
    """What compensated rounding makes of a model, to be looked at by several tests."""

    model: riq.Model
    data: riq.Calibration
    archive: riq.Archive
    steps: list[Progress]
    warnings: list[str]


@functools.cache
def found(name: str) -> Found:
    steps, warnings = list[Progress](), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        model, data = loaded(name, Path(folder))
    archive = riq.compress(
        model, data, deviation=TARGET, rounding="compensated", progress=steps.append, warn=warnings.append
    )
    return Found(model, data, archive, steps, warnings)


@pytest.mark.parametrize("name", MODELS)
def test_what_was_measured_is_what_ships(name: str) -> None:
    model, data, archive, steps, warnings = found(name)
    result = archive.manifest.result
    assert (result["rounding"], warnings) == ("compensated", [])
    assert archive.manifest.settings == {"deviation": TARGET, "rounding": "compensated"}
    assert max(result["deviation"], result["holdout"]) <= TARGET
    assert riq.verify(riq.Archive.open(io.BytesIO(stored(archive))), model, data).mean == result["deviation"]
    fresh = riq.verify(archive, model, riq.Calibration.from_feeds(smooth(16, *MODELS[name][1], seed=9))).mean
    assert fresh < 1.5 * TARGET

    fitted = [(step.done, step.total) for step in steps if step.phase == "fit"]
    assert fitted == [(number, len(fitted)) for number in range(1, len(fitted) + 1)]
    searched = [step for step in steps if step.phase == "search"]
    assert {step.rounding for step in searched} == {"nearest", "compensated"}
    names = {"measured", "blend", "fine measured", "fine blend"}
    assert {step.allocation for step in searched if step.rounding == "compensated"} == names
    measured = {(step.allocation, step.rounding, step.k, step.value) for step in searched}
    assert (result["allocation"], result["rounding"], result["k"], result["deviation"]) in measured

    nearest = riq.compress(model, data, deviation=TARGET, rounding="nearest")
    assert nearest.manifest.result["rounding"] == "nearest"
    rows = [scale.axes for entry in nearest.manifest.layers for scale in entry.scales]
    assert set(rows) <= {(0,)}  # of nearest rounding only rows have bin widths of their own
    assert any(entry.scales for entry in archive.manifest.layers)
    assert _streams(archive) < 0.9 * _streams(nearest)


@pytest.mark.slow
def test_others_see_about_the_target(tmp_path: Path) -> None:
    """What of 32 samples is luck makes archives neither larger than they need be, nor worse on 256 others."""
    model, _ = loaded("mlp", tmp_path)
    others = riq.Calibration.from_feeds(smooth(256, 48, seed=99))
    for seed in (1, 2, 3):
        archive = riq.compress(model, riq.Calibration.from_feeds(smooth(32, 48, seed=seed)), deviation=TARGET)
        assert 0.85 * TARGET < riq.verify(archive, model, others).mean < 1.15 * TARGET


@pytest.mark.parametrize("name", MODELS)
def test_large_models_are_measured_as_they_ship(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are about as small as others: positions are not told apart for them."""
    model, data, usual, *_ = found(name)
    for file in ("evaluator", "sessions"):
        monkeypatch.setattr(f"riq_cli.runtime.{file}.LARGE", 0)
    archive = riq.compress(model, data, deviation=TARGET, rounding="compensated")
    result = archive.manifest.result
    assert max(result["deviation"], result["holdout"]) <= TARGET
    assert riq.verify(archive, model, data).mean == result["deviation"]
    again = riq.compress(*loaded(name, tmp_path), deviation=TARGET, rounding="compensated")
    assert stored(again) == stored(archive)
    assert archive.size == pytest.approx(usual.size, rel=0.15)


def _streams(archive: riq.Archive) -> int:
    """What the weights take, codes of scales included: tiny models are mostly manifest and tables."""
    return sum(sum(entry.streams) + sum(codes.bytes for codes in entry.codes) for entry in archive.manifest.layers)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_input_gives_the_same_bytes_and_both_decoders_the_same_weights(name: str, tmp_path: Path) -> None:
    bytes_ = stored(found(name).archive)
    again = riq.compress(*loaded(name, tmp_path), deviation=TARGET, rounding="compensated")
    assert stored(again) == bytes_
    with riq.Archive.open(io.BytesIO(bytes_)) as opened:
        ours = {layer.name: layer.values.tobytes() for layer in riq.decompress(opened).layers}
    skeleton, layers = reference_decoder.decode(bytes_)
    assert layers and onnx.load_from_string(skeleton).graph.node
    assert any(entry["scales"] for entry, _ in layers)
    for entry, values in layers:
        assert ours[entry["name"]] == values


def test_biases_take_over_what_rounding_adds_on_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """b − (Ŵ − W) E[x], rounded to the bias's own bin width; samples have the same E[x] if rows count alike."""
    monkeypatch.setattr("riq_cli.pipeline.fitting.position_shares", lambda *_: {})
    model = riq.Model.load(builders.save(mlp(), tmp_path))
    mean = np.linspace(-1, 1, 48)
    feeds = [{"x": (feed["x"] - feed["x"].mean(axis=0) + mean).astype(np.float32)} for feed in smooth(16, 48)]
    archive = riq.compress(model, riq.Calibration.from_feeds(feeds), deviation=TARGET, rounding="compensated")
    assert archive.manifest.result["rounding"] == "compensated"
    before, after = tensors(model), tensors(riq.decompress(archive))
    shift = (before["w0"].astype(np.float64) - after["w0"]) @ mean
    taken = after["b0"].astype(np.float64) - before["b0"]
    entries = {entry.name: entry for entry in archive.manifest.layers}
    width = entries["b0"].bin_width or 0.0
    assert np.max(np.abs(taken - shift)) <= width / 2 + 1e-5
    assert np.max(np.abs(shift)) > width
    assert entries["b2"].coding == "raw"  # too small for coding to pay, and yet moved
    assert np.all(before["b2"] != after["b2"])


def test_a_bias_that_is_coded_no_smaller_than_raw_takes_over_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias of equal numbers deflates to next to nothing; what it has to take over does not."""
    monkeypatch.setattr("riq_cli.pipeline.encode._POOR", 0.0)  # raw is tried whatever the coded one takes
    proto = mlp()
    for initializer in proto.graph.initializer:
        if initializer.name == "b0":
            initializer.CopyFrom(builders.tensor("b0", np.full(64, 0.3, np.float32)))
    model, data = riq.Model.load(builders.save(proto, tmp_path)), riq.Calibration.from_feeds(smooth(16, 48))
    steps: list[Progress] = []
    archive = riq.compress(model, data, deviation=TARGET, rounding="compensated", progress=steps.append)
    assert len(set(tensors(riq.decompress(archive))["b0"].tolist())) > 1
    coded = [number for number, step in enumerate(steps) if step.phase == "coding" and step.done == step.total]
    assert len(coded) == 1  # what was found held when it was restored


def test_biases_that_must_stay_exact_do(tmp_path: Path) -> None:
    model, data = loaded("mlp", tmp_path)
    archive = riq.compress(model, data, deviation=TARGET, rounding="compensated", exclude=("b*",))
    assert archive.manifest.result["rounding"] == "compensated"
    before, after = tensors(model), tensors(riq.decompress(archive))
    for name in ("b0", "b1", "b2"):
        np.testing.assert_array_equal(before[name], after[name])
    assert [entry.name for entry in archive.manifest.layers] == ["w0", "w1", "w2"]


def test_a_bias_of_zeros_stays_as_it_is(tmp_path: Path) -> None:
    """It is not coded, and what is not coded comes back as it was."""
    proto = mlp()
    for initializer in proto.graph.initializer:
        if initializer.name == "b0":
            initializer.CopyFrom(builders.tensor("b0", np.zeros(64, np.float32)))
    model, data = riq.Model.load(builders.save(proto, tmp_path)), riq.Calibration.from_feeds(smooth(16, 48))
    archive = riq.compress(model, data, deviation=TARGET, rounding="compensated")
    assert archive.manifest.result["rounding"] == "compensated"
    assert not tensors(riq.decompress(archive))["b0"].any()


def test_rounding_does_not_depend_on_the_allocation(tmp_path: Path) -> None:
    model, data = loaded("mlp", tmp_path)
    archive = riq.compress(model, data, deviation=TARGET, rounding="compensated", allocation="norm")
    result = archive.manifest.result
    assert (result["allocation"], result["rounding"], result["probes"]) == ("norm", "compensated", 0)
    assert riq.verify(archive, model, data).mean == result["deviation"] <= TARGET
    # It is only tried unasked beside the measured allocation.
    result = riq.compress(model, data, deviation=TARGET, allocation="norm").manifest.result
    assert (result["allocation"], result["rounding"]) == ("norm", "nearest")


def test_layers_are_probed_again_at_bin_widths_that_mean_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of least rate for the deviation that was measured; a NaN for it gave widths of nothing in particular."""
    found: list[dict[int, float]] = []
    filled = Probes.filled

    def noted(self: Probes, about: Solution, sensitivity: dict[int, float]) -> dict[int, float]:
        assert 0 < about.deviation < 1
        found.append(filled(self, about, sensitivity))
        return found[-1]

    monkeypatch.setattr(Probes, "filled", noted)
    riq.compress(*loaded("mlp", tmp_path), deviation=TARGET)
    assert len(found) >= 2
    for widths in found:
        assert widths and all(0 < width < math.inf for width in widths.values())


def test_a_budget_can_be_compensated_too(tmp_path: Path) -> None:
    model, data = loaded("mlp", tmp_path)
    archives = {
        rounding: riq.compress(model, data, rate=3.0, rounding=rounding) for rounding in ("nearest", "compensated")
    }
    results = {rounding: archive.manifest.result for rounding, archive in archives.items()}
    assert {rounding: result["rounding"] for rounding, result in results.items()} == {
        rounding: rounding for rounding in results
    }
    assert results["compensated"]["deviation"] < 0.8 * results["nearest"]["deviation"]
    for archive in archives.values():
        matrices = [entry for entry in archive.manifest.layers if len(entry.shape) == 2]
        assert sum(entry.stored for entry in matrices) <= 3 / 8 * sum(entry.size for entry in matrices)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types_are_compensated_like_float32(dtype: type[np.floating], tmp_path: Path) -> None:
    model = riq.Model.load(builders.save(mlp(dtype), tmp_path))
    data = riq.Calibration.from_feeds(smooth(8, 48, dtype=dtype))
    archive = riq.compress(model, data, deviation=TARGET, rounding="compensated")
    result = archive.manifest.result
    assert result["rounding"] == "compensated"
    assert riq.verify(archive, model, data).mean == result["deviation"] <= TARGET
    assert {each.dtype for each in tensors(riq.decompress(archive)).values()} == {np.dtype(dtype)}


def test_inputs_that_are_white_are_not_compensated(tmp_path: Path) -> None:
    """Of one layer alone: behind a ReLU nothing is white."""

    def build() -> onnx.ModelProto:
        return builders.model(
            [builders.node("MatMul", "x w", "y")],
            [builders.info("x", "batch", 32)],
            [builders.info("y", "batch", 64)],
            [builders.tensor("w", builders.Random(1)(32, 64))],
        )

    generator = np.random.default_rng(0)
    feeds = [{"x": generator.standard_normal((400, 32), np.float32)} for _ in range(4)]
    model = riq.Model.load(builders.save(build(), tmp_path))
    for rounding, found in ((None, "trellis"), ("trellis", "trellis"), ("compensated", "nearest")):
        archive = riq.compress(model, riq.Calibration.from_feeds(feeds), deviation=TARGET, rounding=rounding)
        assert archive.manifest.result["rounding"] == found


# ---- where it does not go -------------------------------------------------------------------------------------------


def test_random_samples_cannot_be_fitted_to(tmp_path: Path) -> None:
    model, _ = loaded("mlp", tmp_path)
    with pytest.raises(SettingsError) as error:
        riq.compress(model, deviation=TARGET, rounding="compensated")
    assert str(error.value) == RANDOM
    for rounding in (None, "trellis"):
        steps: list[Progress] = []
        archive = riq.compress(model, deviation=TARGET, rounding=rounding, progress=steps.append)
        assert archive.manifest.result["rounding"] in ("nearest", "trellis")
        assert not any(step.phase == "fit" for step in steps)


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (3, {}, "compensated rounding needs at least 4 samples; there are 3"),
        (8, {"holdout": 0.9}, "compensated rounding needs at least 4 samples that are not held out; there are 1"),
    ],
)
def test_a_few_samples_cannot_be_fitted_to(count: int, options: dict[str, float], message: str, tmp_path: Path) -> None:
    model, data = loaded("mlp", tmp_path, count)
    with pytest.raises(SettingsError) as error:
        riq.compress(model, data, deviation=TARGET, rounding="compensated", **options)
    assert str(error.value) == message
    result = riq.compress(model, data, deviation=0.05, **{"holdout": 0.0} if options else {}).manifest.result
    assert result["rounding"].startswith("compensated") == bool(options)


def test_four_samples_are_enough(tmp_path: Path) -> None:
    model, data = loaded("mlp", tmp_path, 4)
    archive = riq.compress(model, data, deviation=TARGET, rounding="compensated")
    assert archive.manifest.result["rounding"] == "compensated"
    assert riq.verify(archive, model, data).mean <= TARGET


def test_settings_that_contradict_compensation_are_refused() -> None:
    for rounding in ("compensated", "trellis"):
        for options, message in (
            ({"k": 100.0}, f"{rounding} rounding does not go with k"),
            ({"max_bits": 4}, f"{rounding} rounding does not go with max_bits"),
            ({"allocation": "uniform"}, f"the uniform allocation does not go with {rounding} rounding"),
        ):
            with pytest.raises(SettingsError) as error:
                riq.Settings(rounding=rounding, **options)
            assert str(error.value) == f"{message}; leave one of them away"
    with pytest.raises(SettingsError) as error:
        riq.Settings(rounding="best")
    assert str(error.value) == "no rounding is named 'best'; there are nearest, compensated, trellis and directed"


def test_the_command_line_says_so_and_exits_with_2(tmp_path: Path) -> None:
    builders.save(mlp(), tmp_path)
    for name, count in (("three", 3), ("sixteen", 16)):
        np.savez(tmp_path / f"{name}.npz", x=np.concatenate([feed["x"][:1] for feed in smooth(count, 48)]))
    command = ("compress", "model.onnx", "--rounding", "compensated")
    for message, options in (
        (RANDOM, ()),
        ("compensated rounding needs at least 4 samples; there are 3", ("--calibration", "three.npz")),
        ("compensated rounding does not go with k; leave", ("--calibration", "sixteen.npz", "--k", "100")),
        (
            "compensated rounding does not go with --max-bits; leave",
            ("--calibration", "sixteen.npz", "--max-bits", "4"),
        ),
    ):
        fails(2, message, *command, *options, folder=tmp_path)
    assert not (tmp_path / "model.riqz").exists()
    done = run(*command, "--calibration", "sixteen.npz", folder=tmp_path)
    assert done.returncode == 0
    assert "compensated rounding, k = " in done.stderr.decode()
    shown = run("report", "model.riqz", folder=tmp_path).stdout.decode()
    assert "settings: deviation = 0.01, rounding = compensated; riq 0.1.0" in shown
    assert "compensated rounding, k = " in shown


@pytest.mark.parametrize(
    ("values", "mean"),
    [([2.0, 4.0, 8.0], 4.0), ([0.5], 0.5), ([0.0, 3.0, 5.0], 0.0), ([math.inf, 0.0, 1.0], math.inf)],
)
def test_what_is_infinite_at_one_k_is_not_made_up_for_at_others(values: list[float], mean: float) -> None:
    assert geometric_mean(values) == pytest.approx(mean)
