"""Models whose rows count by their gradients, from the model file to the archive and back."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Random, info, model, nodes, save, tensor, unknown

import riq_cli as riq
from riq_cli.pipeline import Progress

SAMPLES = Path(__file__).parent.parent / "sample_models"
TARGET = 0.003
HIDDEN = 64


# ---- small models ---------------------------------------------------------------------------------------------------


def perceptron(text: str = "MatMul x w1 > a; Relu a > h; MatMul h w2 > y") -> onnx.ModelProto:
    """The second half of the hidden units have no weights that lead out."""
    r = Random(0)
    out = r(HIDDEN, 16)
    out[HIDDEN // 2 :] = 0
    return model(
        nodes(text),
        [info("x", "n", 32)],
        [unknown("y")],
        [tensor("w1", r(32, HIDDEN)), tensor("w2", out)],
    )


def compressed(
    proto: onnx.ModelProto, calibration: riq.Calibration, folder: Path, **options: Any
) -> tuple[riq.Archive, set[str]]:
    """The archive, and the phases of the work."""
    archive, steps = steps_of(proto, calibration, folder, **options)
    return archive, {step.phase for step in steps}


def steps_of(
    proto: onnx.ModelProto, calibration: riq.Calibration, folder: Path, **options: Any
) -> tuple[riq.Archive, list[Progress]]:
    """The archive, and the steps of the work."""
    steps: list[Progress] = []
    loaded = riq.Model.load(save(proto, folder))
    archive = riq.compress(loaded, calibration, deviation=0.01, progress=steps.append, **options)
    return archive, steps


def real_samples(count: int = 16) -> riq.Calibration:
    random = np.random.default_rng(0)
    return riq.Calibration.from_feeds([{"x": random.standard_normal((1, 32), np.float32)} for _ in range(count)])


@pytest.fixture
def huge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients take the place of probes in all models."""
    monkeypatch.setattr("riq_cli.pipeline.bench.HUGE", 0)


def test_in_a_huge_model_gradients_take_the_place_of_probes(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Vectors have no gradients there, and stay exact."""
    proto = perceptron("MatMul x w1 > a; Mul a scale > s; Relu s > h; MatMul h w2 > y")
    proto.graph.initializer.append(tensor("scale", Random(1)(HIDDEN)))
    usual, _ = compressed(proto, real_samples(), tmp_path)
    request.getfixturevalue("huge")
    huge, phases = compressed(proto, real_samples(), tmp_path)
    assert usual.manifest.result["probes"] > huge.manifest.result["probes"] == 0 and "probe" not in phases
    assert huge.manifest.result["allocation"] == "measured"
    assert max(huge.manifest.result["deviation"], huge.manifest.result["holdout"]) <= 0.01
    assert [[entry.name for entry in archive.manifest.layers] for archive in (usual, huge)] == [
        ["w1", "w2", "scale"],
        ["w1", "w2"],
    ]


@pytest.mark.usefixtures("huge")
@pytest.mark.parametrize(
    ("text", "probed"),
    [
        ("MatMul x w1 > a; Atan a > h; MatMul h w2 > y", {"w1"}),
        ("MatMul x w1 > a; Relu a > h; MatMul h w2 > b; Atan b > y", {"w1", "w2"}),
    ],
)
def test_a_huge_model_is_probed_where_no_gradients_reach(text: str, probed: set[str], tmp_path: Path) -> None:
    """Atan has no rule; where this leaves no gradients at all, the user is told."""
    warnings: list[str] = []
    archive, steps = steps_of(perceptron(text), real_samples(), tmp_path, warn=warnings.append)
    assert {step.layer for step in steps if step.phase == "probe"} == probed
    assert max(archive.manifest.result["deviation"], archive.manifest.result["holdout"]) <= 0.01
    expected = "gradients cannot be taken, so matrices are probed one by one, which takes long: "
    assert [warning.startswith(expected) for warning in warnings] == [True] * (len(probed) == 2)


@pytest.mark.usefixtures("huge")
def test_gradients_of_a_huge_model_are_expected_to_take_all_samples(tmp_path: Path) -> None:
    """First of the half to which plans are fitted, in the end of all that are not held out: 32 and 48 of 64."""
    _, steps = steps_of(perceptron(), real_samples(64), tmp_path)
    seconds = [expected.seconds for expected in steps[0].expected if expected.phase == "gradients"]
    assert seconds[-1] > 1.5 * seconds[0]


def test_gradients_give_wide_bins_to_rows_that_lead_nowhere(tmp_path: Path) -> None:
    real = real_samples()
    archive, phases = compressed(perceptron(), real, tmp_path)
    assert "gradients" in phases
    assert max(archive.manifest.result["deviation"], archive.manifest.result["holdout"]) <= 0.01
    (scales,) = [entry.scales for entry in archive.manifest.layers if entry.name == "w1"]
    assert (1,) in [scale.axes for scale in scales]
    restored = riq.decompress(archive).layers[0].values
    errors = np.square(restored - riq.Model.load(tmp_path / "model.onnx").layers[0].values).mean(axis=0)
    assert errors[HIDDEN // 2 :].mean() > 4 * errors[: HIDDEN // 2].mean()

    for options in ({"rounding": "nearest"}, {"effort": "balanced"}, {"without": ("gradients",)}):
        assert "gradients" not in compressed(perceptron(), real, tmp_path, **options)[1]
    for calibration in (real_samples(7), riq.Calibration.random()):
        assert "gradients" not in compressed(perceptron(), calibration, tmp_path)[1]


def test_variations_that_a_model_does_not_take_are_left_out(tmp_path: Path) -> None:
    """A place is marked, and what is looked up there is beyond the table where it is any but the last."""
    proto = model(
        nodes(
            "MatMul marked places > place; Cast place > index to=INT64; Gather table index > found; "
            "MatMul x w1 > a; Tanh a > h; Add h found > g; MatMul g w2 > y"
        ),
        [info("x", 1, 32), info("marked", 1, 5)],
        [unknown("y")],
        [
            tensor("places", np.array([900, 700, 500, 300, 1], np.float32)),
            tensor("table", Random(1)(3, HIDDEN)),
            tensor("w1", Random(2)(32, HIDDEN)),
            tensor("w2", Random(3)(HIDDEN, 48)),
        ],
    )
    random = np.random.default_rng(0)
    mixed, marked = random.standard_normal((32, 32)), np.array([[0, 0, 0, 0, 1]], np.float32)
    feeds = [{"x": (random.standard_normal((1, 32)) @ mixed).astype(np.float32), "marked": marked} for _ in range(24)]
    warnings: list[str] = []
    tried, without = (
        compressed(proto, riq.Calibration.from_feeds(feeds), tmp_path, warn=warnings.append, **options)[0].manifest
        for options in ({}, {"without": ("augmentation",)})
    )
    assert tried.result["rounding"] != "nearest"
    assert (tried.layers, tried.result) == (without.layers, without.result)
    assert not warnings


# ---- sample models --------------------------------------------------------------------------------------------------

ROWS = {  # axes along which rows of layers lie
    "lstm": {"lstm1.W": (0, 1), "lstm1.R": (0, 1), "lstm2.W": (0, 1), "lstm2.R": (0, 1)},
    "transformer": {
        "embed.weight": (0,),
        **{f"blocks.0.{part}.weight": (1,) for part in ("qkv", "project")},
    },
}
EXCLUDED = {"lstm": (), "transformer": ("blocks.[12].*", "blocks.0.[ce]*")}  # to be fast


def sample(name: str) -> riq.Model:
    return riq.Model.load(SAMPLES / f"{name}.onnx")


def data() -> riq.Calibration:
    with np.load(SAMPLES / "calibration.npz") as loaded:
        return riq.Calibration.from_arrays({"image": loaded["image"][:32]})


@functools.cache
def archive_of(name: str, target: float = TARGET, without: tuple[str, ...] = ()) -> riq.Archive:
    return riq.compress(sample(name), data(), deviation=target, exclude=EXCLUDED[name], without=without)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_rows_have_bin_widths_of_their_own_and_the_target_holds(name: str, tmp_path: Path) -> None:
    archive = archive_of(name)
    archive.save(tmp_path / "model.riqz")
    opened = riq.Archive.open(tmp_path / "model.riqz")
    scales = {entry.name: [codes.axes for codes in entry.scales] for entry in opened.manifest.layers}
    scaled = [layer for layer, axes in ROWS[name].items() if axes in scales[layer]]
    assert len(scaled) >= len(ROWS[name]) - 1  # a layer or other may be left as it is
    restored, original = riq.decompress(opened), sample(name)
    before = {layer.name: layer.values.astype(np.float64) for layer in original.layers}
    after = {layer.name: layer.values for layer in restored.layers}
    for layer in ROWS[name]:  # rows that hardly matter may take over more from others than they hold
        assert 0 < np.linalg.norm(after[layer] - before[layer]) < 2 * np.linalg.norm(before[layer])
    measured = riq.verify(opened, original, data())
    assert measured.mean == archive.manifest.result["deviation"]
    assert 0 < measured.mean <= TARGET
    assert archive.manifest.result["holdout"] <= TARGET


@pytest.mark.slow
def test_gradients_save_a_part_of_the_archive() -> None:
    """Of an LSTM, whose rows matter very differently; of two targets together, since one alone is a matter of luck."""
    with_them, without = (
        sum(archive_of("lstm", target, names).size for target in (TARGET, 0.9 * TARGET))
        for names in ((), ("gradients",))
    )
    assert with_them < 0.92 * without
