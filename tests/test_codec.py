"""The laws of compress and decompress, on models made in tests."""

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import riq_cli as riq
from riq_cli.errors import SettingsError, TargetError
from riq_cli.model import Layer
from riq_cli.pipeline import PRESETS, Progress
from riq_cli.runtime import sample_deviations
from tests import builders


def load(folder: Path, build: Callable[[], onnx.ModelProto]) -> riq.Model:
    return riq.Model.load(builders.save(build(), folder))


def calibration(build: Callable[[], onnx.ModelProto], count: int = 6) -> riq.Calibration:
    return riq.Calibration.from_feeds(builders.feeds(build(), count))


def wide(hidden: int = 128) -> onnx.ModelProto:
    """Three dense layers of 64·128, 128·128 and 128·32 weights, with ReLU between: rates as in real models."""
    r = builders.Random(3)
    return builders.model(
        [
            builders.node("MatMul", "x w0", "m0"),
            builders.node("Relu", "m0", "a0"),
            builders.node("MatMul", "a0 w1", "m1"),
            builders.node("Relu", "m1", "a1"),
            builders.node("MatMul", "a1 w2", "y"),
        ],
        [builders.info("x", "batch", 64)],
        [builders.info("y", "batch", 32)],
        [
            builders.tensor("w0", r(64, hidden)),
            builders.tensor("w1", r(hidden, hidden)),
            builders.tensor("w2", r(hidden, 32)),
        ],
    )


@dataclass
class Found:
    """What compress makes of `wide` by default, to be looked at by several tests."""

    model: riq.Model
    data: riq.Calibration
    archive: riq.Archive
    steps: list[Progress]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    model, data, steps = load(tmp_path_factory.mktemp("wide"), wide), calibration(wide), list[Progress]()
    return Found(model, data, riq.compress(model, data, deviation=0.01, progress=steps.append), steps)


def test_what_was_measured_is_what_ships(found: Found, tmp_path: Path) -> None:
    builders.save(wide(), tmp_path)
    found.archive.save(tmp_path / "wide.riqz")
    opened = riq.Archive.open(tmp_path / "wide.riqz")
    riq.decompress(opened).save(tmp_path / "restored.onnx")
    result = opened.manifest.result
    assert result["deviation"] <= 0.01
    assert riq.verify(opened, found.model, found.data).mean == result["deviation"]

    # The same by hand, with plain sessions on plain files.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(tmp_path / name, options) for name in ("model.onnx", "restored.onnx")]
    deviations = [
        sample_deviations(*(session.run(None, feed)[0] for session in sessions))[0]
        for feed in builders.feeds(wide(), 6)
    ]
    assert np.mean(deviations) == pytest.approx(result["deviation"], rel=1e-5)
    assert max(deviations) == pytest.approx(result["worst"], rel=1e-5)


def test_the_same_input_gives_the_same_bytes(found: Found, tmp_path: Path) -> None:
    found.archive.save(tmp_path / "a")
    riq.compress(load(tmp_path, wide), calibration(wide), deviation=0.01).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bin_widths_are_those_of_equation_7(tmp_path: Path) -> None:
    model = load(tmp_path, wide)
    archive = riq.compress(model, calibration(wide), deviation=None, k=500.0, epsilon=0.02)
    for entry, layer in zip(archive.manifest.layers, model.layers, strict=True):
        norm = np.linalg.norm(layer.values.astype(np.float64))
        assert entry.bin_width == pytest.approx(norm * (1 / 500 + 0.02 * math.sqrt(24 / layer.size)), rel=1e-12)


def test_deviation_falls_with_the_square_of_k(tmp_path: Path) -> None:
    """Proposition 1: the slope of log deviation over log k is −2 in the high-rate regime."""
    model, data = load(tmp_path, wide), calibration(wide)
    k = np.geomspace(2000, 60000, 8)
    found = [riq.compress(model, data, deviation=None, k=x, epsilon=0.0).manifest.result["deviation"] for x in k]
    slope = np.polyfit(np.log(k), np.log(found), 1)[0]
    assert slope == pytest.approx(-2, abs=0.1)


def test_rate_is_within_one_percent_of_the_entropy(tmp_path: Path) -> None:
    archive = riq.compress(load(tmp_path, wide), calibration(wide), deviation=0.001, rounding="nearest")
    for entry in archive.manifest.layers:
        if entry.size > 10_000:
            assert sum(entry.streams) * 8 <= 1.01 * entry.entropy * entry.size


def test_both_searches_find_the_same_k(tmp_path: Path) -> None:
    larger = functools.partial(wide, 256)
    model, data = load(tmp_path, larger), calibration(larger)
    found = riq.compress(model, data, deviation=0.003, epsilon=0.0, allocation="norm").manifest.result
    paper = riq.compress(
        model, data, deviation=0.003, epsilon=0.0, allocation="norm", search="algorithm1"
    ).manifest.result
    assert found["k"] == pytest.approx(paper["k"], rel=0.08)  # the curve is rough
    assert found["evaluations"] <= 16


def test_only_a_measured_k_is_returned(found: Found) -> None:
    result = found.archive.manifest.result
    searched = {step.k: step.value for step in found.steps if step.phase == "search"}
    assert searched[result["k"]] == result["deviation"]
    assert [step.done for step in found.steps if step.phase == "coding"][-1] == 64 * 128 + 128 * 128 + 128 * 32


def test_an_unreachable_target_is_an_error_with_the_best_deviation(tmp_path: Path) -> None:
    model, data = load(tmp_path, wide), calibration(wide)
    with pytest.raises(TargetError, match=r"not reached with epsilon = 0.3: the best is 0\.\d+; give a smaller --eps"):
        riq.compress(model, data, deviation=0.001, epsilon=0.3)
    with pytest.raises(TargetError, match="as fine as they can be coded") as error:
        riq.compress(model, data, deviation=1e-18)
    assert 0 < error.value.best < 1e-9


def test_epsilon_is_the_better_of_the_paper_s_and_zero(tmp_path: Path) -> None:
    model, data = load(tmp_path, wide), calibration(wide)
    for target in (0.02, 0.0001):
        free, small, zero = (
            riq.compress(model, data, deviation=target, epsilon=epsilon, **PRESETS["fast"])
            if epsilon != 0.01 or target > 0.001  # which it does not reach
            else None
            for epsilon in (None, 0.01, 0.0)
        )
        best = min((one for one in (small, zero) if one is not None), key=lambda one: one.size)
        assert free.manifest.result["epsilon"] == best.manifest.result["epsilon"]
        assert free.manifest.result["k"] == best.manifest.result["k"]


def test_a_given_k_is_taken_without_a_search(tmp_path: Path) -> None:
    model, data = load(tmp_path, wide), calibration(wide)
    archive = riq.compress(model, data, deviation=None, k=100.0)
    assert archive.manifest.result["k"] == 100.0
    assert archive.manifest.result["evaluations"] == 1
    with pytest.raises(TargetError, match="at k = 100 the deviation is"):
        riq.compress(model, data, deviation=1e-6, k=100.0)


def test_include_and_exclude_and_min_size_choose_the_layers(tmp_path: Path) -> None:
    model, data = load(tmp_path, wide), calibration(wide)

    def names(**options: object) -> list[str]:
        archive = riq.compress(model, data, deviation=0.1, allocation="norm", **options)
        return [entry.name for entry in archive.manifest.layers]

    assert names() == ["w0", "w1", "w2"]
    assert names(include=("w[01]",)) == ["w0", "w1"]
    assert names(exclude=("*1",)) == ["w0", "w2"]
    assert names(min_size=8_000) == ["w0", "w1"]


@pytest.mark.parametrize("name", sorted(builders.FORMS))
def test_every_form_comes_back_runnable_with_everything_else_untouched(name: str, tmp_path: Path) -> None:
    build = builders.FORMS[name]
    model, data = load(tmp_path, build), calibration(build, 4)
    warnings: list[str] = []
    try:
        archive = riq.compress(model, data, deviation=0.01, min_size=1, warn=warnings.append)
    except SettingsError as error:
        assert "no float output" in str(error)
        return
    archive.save(tmp_path / "form.riqz")
    with riq.Archive.open(tmp_path / "form.riqz") as opened:
        restored = riq.decompress(opened)
        restored.save(tmp_path / "restored.onnx")
        if archive.manifest.layers:
            assert riq.verify(opened, model, data).mean == archive.manifest.result["deviation"] <= 0.01
        else:
            assert "stored as it is" in warnings[-1]
    before, after = onnx.load(tmp_path / "model.onnx"), onnx.load(tmp_path / "restored.onnx")
    coded = {place for entry in archive.manifest.layers for place in entry.tensors}
    assert without_data(before, coded) == without_data(after, coded)
    onnxruntime.InferenceSession(tmp_path / "restored.onnx")


def without_data(proto: onnx.ModelProto, places: set[str]) -> onnx.ModelProto:
    from riq_cli.model.places import find_tensor
    from riq_cli.model.tensors import clear_data

    for place in places:
        clear_data(find_tensor(proto, place))
    return proto


def test_layers_of_zeros_are_constant_and_layers_with_nan_are_raw(tmp_path: Path) -> None:
    warnings: list[str] = []
    archive = riq.compress(
        load(tmp_path, builders.zeros_and_single_weights), calibration(builders.zeros_and_single_weights), min_size=1
    )
    assert "constant" in {entry.coding for entry in archive.manifest.layers}
    archive = riq.compress(
        load(tmp_path, builders.not_finite), calibration(builders.not_finite, 8), min_size=1, warn=warnings.append
    )
    raw = [entry.name for entry in archive.manifest.layers if entry.coding == "raw"]
    assert raw
    assert warnings == [f"layer {name!r} holds NaN or infinity; it is stored exactly" for name in raw]


def test_tied_weights_are_coded_once(tmp_path: Path) -> None:
    archive = riq.compress(load(tmp_path, builders.tied), calibration(builders.tied), min_size=1)
    assert max(len(entry.tensors) for entry in archive.manifest.layers) == 2


def test_the_manifest_tells_what_was_asked_and_nothing_of_the_machine(tmp_path: Path) -> None:
    archive = riq.compress(load(tmp_path, wide), calibration(wide), deviation=0.02, threads=2, rounding="nearest")
    manifest = archive.manifest
    assert manifest.settings == {"deviation": 0.02, "threads": 2, "rounding": "nearest"}
    assert manifest.calibration["kind"] == "python"
    assert manifest.calibration["samples"] == 6
    assert set(manifest.source) == {"bytes", "sha256"}
    assert str(tmp_path) not in json.dumps([manifest.settings, manifest.result, dict(manifest.source)])


def test_a_rounding_is_recorded_where_it_is_not_what_the_other_settings_mean(found: Found) -> None:
    model, data = found.model, found.data
    assert found.archive.manifest.settings == {"deviation": 0.01}
    target = {"deviation": 0.1}
    for given, recorded in (
        ({"allocation": "norm", "rounding": "nearest"}, {"allocation": "norm"}),
        ({"max_bits": 6, "rounding": "nearest"}, {"max_bits": 6}),
        ({"rounding": "nearest"}, {"rounding": "nearest"}),
    ):
        archive = riq.compress(model, data, **target, **given)
        assert archive.manifest.settings == target | recorded
        assert archive.manifest.result["rounding"] == "nearest"
    assert riq.compress(model, data, k=100.0, rounding="nearest").manifest.settings == {"deviation": None, "k": 100.0}


def test_settings_that_mean_nothing_are_refused() -> None:
    for wrong, message in (
        ({"deviation": 0}, "a deviation of 0 is not in"),
        ({"deviation": 1.5}, "a deviation of 1.5 is not in"),
        ({"ratio": 3, "size": 5}, "ratio = 3 and size = 5 are two goals"),
        ({"exclude": ("b", "\udcff*")}, r"'\\udcff\*' is not valid UTF-8, as all names in a model are"),
        ({"dims": {"\udcff": 3}}, r"'\\udcff' is not valid UTF-8, as all names in a model are"),
        ({"rate": 0}, "rate = 0 is not positive"),
        ({"holdout": 1}, "holdout = 1 is not in"),
        ({"max_bits": 1}, "max_bits = 1 is not in"),
        ({"allocation": "best"}, "no allocation is named 'best'"),
        ({"k": -1}, "k = -1 is not positive"),
        ({"epsilon": 1}, "epsilon = 1 is not in"),
        ({"search": "grid"}, "no search is named 'grid'"),
        ({"rounding": "best"}, "no rounding is named 'best'; there are nearest, compensated, trellis, directed"),
        ({"rounding": "trellis", "k": 9}, "trellis rounding does not go with k; leave out one of them"),
        ({"rounding": "compensated", "max_bits": 4}, "compensated rounding does not go with max_bits"),
        ({"rounding": "trellis", "allocation": "uniform"}, "the uniform allocation does not go with trellis rounding"),
    ):
        with pytest.raises(SettingsError, match=message):
            riq.Settings(**wrong)


def test_the_public_names_are_about_ten_and_all_there() -> None:
    assert len(riq.__all__) <= 13
    for name in riq.__all__:
        assert getattr(riq, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        riq.nothing  # noqa: B018
    assert set(dir(riq)) == {*riq.__all__, "__version__"}


def test_a_preset_sets_what_other_keywords_leave_open(tmp_path: Path) -> None:
    model, data = load(tmp_path, wide), calibration(wide)
    settings = riq.Settings(deviation=0.02)
    archive = riq.compress(model, data, settings, preset="paper", epsilon=0.0, search="bisection")
    assert archive.manifest.settings == {"deviation": 0.02, "allocation": "norm", "epsilon": 0.0, "holdout": 0.0}
    with pytest.raises(SettingsError, match="no preset is named 'tiny'; there are fast, balanced, small, smallest"):
        riq.compress(model, data, preset="tiny")


def test_layers_are_values(tmp_path: Path) -> None:
    layer = load(tmp_path, wide).layers[0]
    assert isinstance(layer, Layer)
    with pytest.raises(AttributeError):
        layer.name = "other"  # type: ignore[misc]


def unequal_rows() -> onnx.ModelProto:
    """y = x @ w, where the first row of w is far smaller than the others."""
    weights = builders.Random(4)(8, 64)
    weights[0] *= 0.02
    return builders.model(
        [builders.node("MatMul", "x w", "y")],
        [builders.info("x", "batch", 8)],
        [builders.info("y", "batch", 64)],
        [builders.tensor("w", weights)],
    )


@pytest.mark.parametrize("options", [{"allocation": "norm"}, {}])
def test_held_out_samples_that_cannot_hold_end_the_search(options: dict[str, str], tmp_path: Path) -> None:
    """With ε0 the bin width has a floor: where only the held-out samples need less, no k helps."""
    rows = np.eye(8, dtype=np.float32)[[1, 2, 0, 3, 4, 5, 0, 6]]  # numbers 2 and 6 are held out
    data, model = riq.Calibration.from_arrays({"x": rows}), load(tmp_path, unequal_rows)
    with pytest.raises(TargetError, match="does not hold on the samples held out, or not on all: the best is 1;"):
        riq.compress(model, data, deviation=0.02, epsilon=0.05, allocation="norm")
    archive = riq.compress(model, data, deviation=0.02, **options)  # without a fixed ε0 it becomes 0
    assert archive.manifest.result["holdout"] <= 0.02


def test_what_those_held_out_see_is_told_by_themselves(tmp_path: Path) -> None:
    rows, model = builders.Random(5)(16, 8), load(tmp_path, unequal_rows)
    options = {"allocation": "norm", "rounding": "nearest", "batch_size": 2}
    archive = riq.compress(model, riq.Calibration.from_arrays({"x": rows}), deviation=0.02, **options)
    held = riq.Calibration.from_arrays({"x": rows[[4, 5, 12, 13]]})  # runs number 2 and 6 of 8
    found = riq.verify(archive, model, held, batch_size=2).mean
    assert archive.manifest.result["holdout"] == pytest.approx(found, rel=1e-9)
    assert archive.manifest.result["deviation"] != pytest.approx(found, rel=1e-3)


def divided() -> onnx.ModelProto:
    """y = (x / w) @ v: any weight of w that becomes 0 makes the outputs infinite."""
    r = builders.Random(1)
    return builders.model(
        [builders.node("Div", "x w", "d"), builders.node("MatMul", "d v", "y")],
        [builders.info("x", "batch", 64, 32)],
        [builders.unknown("y")],
        [builders.tensor("w", r(64, 32)), builders.tensor("v", r(32, 32))],
    )


def test_outputs_that_become_infinite_are_an_error_and_never_shipped(tmp_path: Path) -> None:
    model, data = load(tmp_path, divided), calibration(divided, 4)
    with pytest.raises(TargetError, match="outputs hold NaN or infinity where those of the original do not"):
        riq.compress(model, data, k=5.0)
    for options in ({"deviation": 0.01}, {"ratio": 4}):
        try:
            archive = riq.compress(model, data, **options)
        except TargetError:
            continue
        assert math.isfinite(riq.verify(archive, model, data).mean)


@pytest.mark.parametrize("scale", [1e-170, 1e160])
def test_float64_weights_of_any_size_are_quantized_like_others(scale: float, tmp_path: Path) -> None:
    def build() -> onnx.ModelProto:
        weights = builders.Random(2)(32, 24, dtype=np.float64) * scale
        return builders.model(
            [builders.node("MatMul", "x w", "y")],
            [builders.matrix("x", onnx.TensorProto.DOUBLE)],
            [builders.matrix("y", onnx.TensorProto.DOUBLE)],
            [builders.tensor("w", weights)],
        )

    feeds = [{"x": np.random.default_rng(n).standard_normal((3, 32))} for n in range(4)]
    data, warnings = riq.Calibration.from_feeds(feeds), []
    model = load(tmp_path, build)
    archive = riq.compress(model, data, deviation=0.01, warn=warnings.append)
    assert [entry.coding for entry in archive.manifest.layers] == ["student"]
    assert riq.verify(archive, model, data).mean <= 0.01


def test_a_pattern_that_matches_nothing_is_told_and_vectors_alone_are_coded(tmp_path: Path) -> None:
    model, data = load(tmp_path, builders.dense), calibration(builders.dense, 8)
    warnings: list[str] = []
    archive = riq.compress(model, data, include=("first.bias",), exclude=("frist.*",), warn=warnings.append)
    assert [entry.name for entry in archive.manifest.layers] == ["first.bias"]
    there = "there are 'first.weight', 'first.bias', 'second.weight' and 1 more"
    assert warnings == [f"no layer is named 'frist.*'; {there}"]
