"""Sharing out bin widths: theory as an oracle, and the guards around what was measured."""

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import riq_cli as riq
from riq_cli.allocate.allocation import Allocation, Curve, bin_width, curve, expected_k, water_filling
from riq_cli.errors import TargetError
from riq_cli.model import Layer, Model, probe_form
from riq_cli.pipeline.probing import Probes
from riq_cli.pipeline.weights import Weights
from riq_cli.runtime import Prober, Runtime
from tests import builders
from tests.test_codec import calibration, load, wide

small = functools.partial(wide, 64)


def test_measured_widths_have_five_digits_and_others_all() -> None:
    shapes = {0: math.pi}
    assert Allocation("measured", shapes).width(0, 9, 300.0) == 0.010472
    assert Allocation("blend", shapes, bounds={0: 0.0104719}).width(0, 9, 300.0) == 0.0104719
    for name in ("norm", "uniform", "fixed"):
        assert Allocation(name, shapes).width(0, 9, 300.0) == math.pi * (1 / 300)
    largest = 1.7976931348623157e308
    assert Allocation("measured", {0: largest}).width(0, 9, 1.0) == largest


def test_bin_width_is_equation_7() -> None:
    assert bin_width(3.0, 96, 100.0, 0.02) == pytest.approx(3 * (0.01 + 0.02 * 0.5))


def test_expected_k_is_corollary_1() -> None:
    """One layer: 1 − cos θ = n / (24 k²)."""
    assert expected_k([7.0], [2400], 0.01) == pytest.approx(math.sqrt(2400 / 24 / 0.01))


def test_a_curve_holds_the_rate_and_the_error_of_each_width() -> None:
    weights = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    found = curve(weights, "float32", 0.1)
    middle = int(np.argmin(np.abs(found.widths - 0.1)))
    largest = float(np.abs(weights).max())
    assert found.errors[middle] * largest**2 == pytest.approx(weights.size * 0.1**2 / 12, rel=0.01)  # eq. (5)
    gaussian = 0.5 * math.log2(2 * math.pi * math.e) - math.log2(0.1)  # eq. (6)
    assert found.bits[middle] == pytest.approx(weights.size * gaussian, rel=0.01)
    assert found.error(0.1) == pytest.approx(found.errors[middle], rel=1e-3)


def test_water_filling_is_the_square_root_rule_in_the_high_rate_regime() -> None:
    """Δ ∝ √(n/a): R = −n log₂ Δ + const and D = a n Δ²/12, up to the grid of widths."""
    widths = np.exp2(np.arange(-120, 60) / 6)
    sizes, sensitivities = np.array([1000, 4000, 50000]), np.array([2.0, 0.1, 5.0])
    curves = [Curve(widths, -n * np.log2(widths) + 30 * n, n * widths**2 / 12) for n in sizes]
    budget = 0.01
    found = np.array(water_filling(curves, sensitivities, budget))
    rule = 1 / np.sqrt(sensitivities)  # errors count n already
    np.testing.assert_allclose(found / rule / (found[0] / rule[0]), 1, rtol=2 ** (1 / 3) - 1)
    spent = float(np.sum(sensitivities * sizes * found**2 / 12))
    assert budget / 3 < spent <= budget


def two_branches() -> onnx.ModelProto:
    """An If whose branches have weights of their own, told apart by an input."""
    r = builders.Random(5)
    branches = [
        builders.graph(
            [builders.node("MatMul", f"x {name}.w", f"{name}.y")],
            [],
            [builders.unknown(f"{name}.y")],
            [builders.tensor(f"{name}.w", r(64, 48))],
            name,
        )
        for name in ("then", "else")
    ]
    choice = builders.node("If", "c", "h", then_branch=branches[0], else_branch=branches[1])
    return builders.model(
        [choice, builders.node("MatMul", "h last", "y")],
        [builders.info("x", "batch", 64), builders.info("c", dtype=builders.BOOL)],
        [builders.info("y", "batch", 16)],
        [builders.tensor("last", r(48, 16))],
    )


@pytest.mark.parametrize("preset", ["paper", "fast", "small"])
def test_a_branch_that_never_ran_keeps_the_paper_s_rate(preset: str, tmp_path: Path) -> None:
    from riq_cli.pipeline import PRESETS

    model = load(tmp_path, two_branches)
    feeds = [feed | {"c": np.array(True)} for feed in builders.feeds(two_branches(), 8)]
    archive = riq.compress(model, riq.Calibration.from_feeds(feeds), deviation=0.01, **PRESETS[preset])
    k = archive.manifest.result["k"]
    paper = riq.compress(model, riq.Calibration.from_feeds(feeds), k=k, epsilon=0.0)
    rates = {entry.name: entry.rate for entry in archive.manifest.layers}
    least = {entry.name: entry.rate for entry in paper.manifest.layers}
    epsilon = archive.manifest.result["epsilon"]
    assert rates["else.w"] >= least["else.w"] * (1 if epsilon == 0 else 0.9)


@pytest.mark.parametrize("target", [0.03, 0.003])
def test_measured_is_never_larger_than_the_paper_s_and_holds_as_well(target: float, tmp_path: Path) -> None:
    model, data = load(tmp_path, small), calibration(small, 12)
    paper = riq.compress(model, data, deviation=target, allocation="norm")
    measured = riq.compress(model, data, deviation=target)
    assert measured.size <= paper.size + 16  # the counts of evaluations and probes may have more digits
    for archive in (paper, measured):
        assert archive.manifest.result["deviation"] <= target
        assert archive.manifest.result["holdout"] <= target
        assert archive.manifest.result["holdout_samples"] in (2, 3)  # whole clusters, where errors are compensated
    assert measured.manifest.result["probes"] > 0 == paper.manifest.result["probes"]


def test_every_float_tensor_takes_part_and_structural_ones_do_not(tmp_path: Path) -> None:
    names = {
        entry.name
        for entry in riq.compress(load(tmp_path, builders.dense), calibration(builders.dense, 4)).manifest.layers
    }
    assert {"first.weight", "first.bias", "second.weight"} <= names
    archive = riq.compress(load(tmp_path, builders.resize), calibration(builders.resize, 4))
    assert "scales" not in {entry.name for entry in archive.manifest.layers}


def test_few_samples_are_not_split(tmp_path: Path) -> None:
    model = load(tmp_path, wide)
    for count, options in ((7, {}), (12, {"holdout": 0})):
        archive = riq.compress(model, calibration(wide, count), deviation=0.01, rounding="nearest", **options)
        assert "holdout" not in archive.manifest.result


@pytest.mark.parametrize("allocation", ["norm", "measured"])
def test_a_budget_of_bytes_is_kept_and_used(allocation: str, tmp_path: Path) -> None:
    model, data = load(tmp_path, small), calibration(small, 4)
    archive = riq.compress(model, data, size=7_000, allocation=allocation)
    assert 0.98 * 7_000 <= archive.size <= 7_000
    source = (tmp_path / "model.onnx").stat().st_size
    archive = riq.compress(model, data, ratio=6, allocation=allocation, rounding="nearest")
    assert 6 <= source / archive.size <= 6.2
    archive = riq.compress(model, data, rate=3, allocation=allocation, rounding="nearest")
    weights = [entry for entry in archive.manifest.layers if len(entry.shape) > 1]
    rate = 8 * sum(entry.stored for entry in weights) / sum(entry.size for entry in weights)
    assert 2.95 <= rate <= 3


def test_a_budget_that_cannot_hold_the_bound_is_an_error(tmp_path: Path) -> None:
    model, data = load(tmp_path, wide), calibration(wide, 4)
    with pytest.raises(
        TargetError, match=r"within 6,000 bytes the least deviation is 0\.\d+, above the bound of 1e-05"
    ):
        riq.compress(model, data, size=6_000, deviation=1e-5, rounding="nearest")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_max_bits_bounds_the_levels_of_every_layer(bits: int, tmp_path: Path) -> None:
    model, data = load(tmp_path, wide), calibration(wide, 4)
    archive = riq.compress(model, data, k=1e6, epsilon=0.0, max_bits=bits)
    for entry, layer in zip(archive.manifest.layers, model.layers, strict=True):
        assert 2 ** (bits - 1) < entry.symbols <= 2**bits
        span = float(layer.values.max() - layer.values.min())
        assert entry.bin_width == pytest.approx(span / (2**bits - 1), rel=1e-6)


def test_a_layer_that_samples_hardly_exercise_gets_no_bins_far_wider_than_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside its norm, at most 16 times those of all layers in the mean."""
    values = np.random.default_rng(0).standard_normal((1100, 10)).astype(np.float32)
    layers = [
        Layer(name, "MatMul", (f"graph.initializer[{number}]",), "float32", part.shape, part)
        for number, (name, part) in enumerate([("large", values[:1000]), ("small", values[1000:])])
    ]
    weights = Weights(layers)
    probes = Probes(weights, {})
    paper: Any = SimpleNamespace(k=10.0, widths=[0.1, 0.1])
    for factor, kept in ((8.0, 8.0), (1000.0, 16.0 * 1000 ** (100 / 1100))):
        widths = {0: 1e-3 * weights.norms[0], 1: factor * 1e-3 * weights.norms[1]}
        monkeypatch.setattr(probes, "filled", lambda *_, widths=widths: widths)
        shapes = probes._allocation("measured", {}, paper).shapes
        assert shapes[0] == pytest.approx(10 * widths[0])
        assert shapes[1] == pytest.approx(10 * 1e-3 * weights.norms[1] * kept)


def test_a_layer_whose_deviation_leaps_from_nothing_is_known_to_be_silent_before(tmp_path: Path) -> None:
    """What comes of it is saturated, and stays as it is to the last bit until something changes its sign."""
    random = np.random.default_rng(0)
    ends = (np.where(np.arange(64) % 2, 1, -1) + 0.1 * random.standard_normal((32, 64))).astype(np.float32)
    proto = builders.model(
        [
            builders.node("MatMul", "x ends", "a"), builders.node("Mul", "a steep", "b"),
            builders.node("Tanh", "b", "h"), builders.node("MatMul", "h out", "y"),
        ],
        [builders.info("x", 1, 32)],
        [builders.info("y", 1, 16)],
        [
            builders.tensor("ends", ends), builders.tensor("steep", np.array(1e4, np.float32)),
            builders.tensor("out", random.standard_normal((64, 16)).astype(np.float32)),
        ],
    )  # fmt: skip
    model = Model.load(builders.save(proto, tmp_path))
    feeds = [{"x": random.uniform(0.5, 1, (1, 32)).astype(np.float32)} for _ in range(4)]
    form, originals = probe_form(model.session_form()), [layer.values for layer in model.layers]
    prober = Prober(form, originals, ["y"], [(feed, 1) for feed in feeds], runtime=Runtime(threads=1))
    number = [layer.name for layer in model.layers].index("ends")
    weights, budget = Weights(model.layers), 1e-3
    probes = Probes(weights, {})
    assert probes.first(prober, number, 0.05, budget) > budget
    silent = probes._silent[number]
    assert 0.4 <= silent < 3.2 and silent < probes._probed[number]
    assert max(prober.deviations({number: np.rint(ends / silent) * np.float32(silent)})) == 0
    with ThreadPoolExecutor(1) as pool:
        probes.draw_curves(pool)
    found, a = probes.curves[number], probes.sensitivity[number]
    before = found.widths <= silent
    assert before.any() and (a * found.errors[before] <= 1e-9 * (1 + 1e-9)).all()
    assert (a * found.errors[found.widths >= probes._probed[number]] > budget).all()
    (width,) = water_filling([found], [a], budget)
    assert 0.4 <= width <= silent


def test_vectors_that_are_smaller_than_their_entries_are_not_probed(tmp_path: Path) -> None:
    """Of 30 vectors of 8 weights none can pay; so many more take no time either."""
    r = builders.Random(6)
    nodes = [builders.node("MatMul", "x w", "t0")]
    nodes += [builders.node("Add", f"t{n} v{n}", f"t{n + 1}") for n in range(30)]
    tensors = [builders.tensor("w", r(64, 8)), *(builders.tensor(f"v{n}", r(8)) for n in range(30))]
    proto = builders.model(nodes, [builders.info("x", "N", 64)], [builders.info("t30", "N", 8)], tensors)
    data = riq.Calibration.from_arrays({"x": np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)})
    archive = riq.compress(riq.Model.load(builders.save(proto, tmp_path)), data, deviation=0.01)
    assert [entry.name for entry in archive.manifest.layers] == ["w"]
    assert 0 < archive.manifest.result["probes"] < 30
