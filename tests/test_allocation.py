"""Sharing out bin widths: theory as an oracle, what was measured of layers, and the guards around it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import riq_cli as riq
from riq_cli.allocate.allocation import Allocation, Curve, bin_width, expected_k, water_filling
from riq_cli.allocate.probing import Probe, Sensitivities, probe
from riq_cli.errors import TargetError
from riq_cli.model import Model, probe_form
from riq_cli.quantize.plan import LayerPlan
from riq_cli.runtime import Prober, Runtime
from tests import builders
from tests.archives import layer_of
from tests.test_codec import calibration, load, wide

small = functools.partial(wide, 64)


# ---- allocations ----------------------------------------------------------------------------------------------------


def test_measured_widths_have_five_digits_and_others_all() -> None:
    shapes = {0: math.pi}
    assert Allocation("measured", shapes).width(0, 9, 300.0) == 0.010472
    assert Allocation("measured", shapes, bounds={0: 0.0104719}).width(0, 9, 300.0) == 0.0104719
    for name in ("norm", "uniform", "fixed"):
        assert Allocation(name, shapes).width(0, 9, 300.0) == math.pi * (1 / 300)
    assert Allocation("measured", {0: 1.7976931348623157e308}).width(0, 9, 1.0) == 1.7976931348623157e308


def test_bin_width_is_equation_7_and_expected_k_corollary_1() -> None:
    assert bin_width(3.0, 96, 100.0, 0.02) == pytest.approx(3 * (0.01 + 0.02 * 0.5))
    assert expected_k([7.0], [2400], 0.01) == pytest.approx(math.sqrt(2400 / 24 / 0.01))  # 1 − cos θ = n / (24 k²)
    assert expected_k([7.0, 1e300], [2400, 2400], 0.01) == pytest.approx(math.sqrt(2400 / 24 / 0.01))
    assert expected_k([3.0, 4.0], [100, 200], 0.01, [6.0, 8.0]) == pytest.approx(
        math.sqrt((100 * 36 + 200 * 64) / 25 / 24 / 0.01)
    )


# ---- curves and water filling ---------------------------------------------------------------------------------------


def curve(values: NDArray[np.floating], middle: float, finest: float) -> Curve:
    """That of nearest rounding."""
    layer = layer_of(values, "float64")
    plan = LayerPlan.nearest(layer)
    return Curve.of(lambda width: plan.sampled(layer, width), layer.size, middle, finest)


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_a_curve_holds_the_rate_and_the_error_of_each_width(scale: float) -> None:
    """Errors are in squares of the width in the middle."""
    values = scale * np.random.default_rng(0).standard_normal((200, 1000))
    found = curve(values, 0.1 * scale, 1e-9 * scale)
    middle = int(np.argmin(np.abs(found.widths / scale - 0.1)))
    assert found.errors[middle] == pytest.approx(values.size / 12, rel=0.01)  # eq. (5)
    assert found.errors[middle - 16] == pytest.approx(values.size / 12 / 2**4, rel=0.01)  # two octaves
    gaussian = 0.5 * math.log2(2 * math.pi * math.e) - math.log2(0.1)  # eq. (6)
    assert found.bits[middle] == pytest.approx(values.size * gaussian, rel=0.01)
    assert found.error(0.1 * scale) == pytest.approx(found.errors[middle], rel=1e-3)
    coarse = curve(values, 20 * scale, 1e-9 * scale)
    assert coarse.error(20 * scale) * 20**2 == pytest.approx(values.size, rel=0.01)  # nothing is left
    assert curve(values, 0.1 * scale, 0.05 * scale).widths[0] == pytest.approx(0.05 * scale)
    assert curve(values, 0.001 * scale, 0.05 * scale).widths[0] == pytest.approx(0.05 * scale)


def high_rate(size: int) -> Curve:
    """R = −n log₂ Δ + const and E = n Δ²/12."""
    widths = np.exp2(np.arange(-360, 180) / 18)
    return Curve(widths, -size * np.log2(widths) + 30 * size, size * widths**2 / 12)


def test_water_filling_is_the_square_root_rule_in_the_high_rate_regime() -> None:
    """Δ ∝ √(n/a) for the deviation a of a layer at one bin width, of which its errors make n: up to the grid."""
    sizes, deviations = np.array([1000, 4000, 50000]), np.array([2000.0, 400.0, 250000.0])
    sensitivities = deviations / sizes
    found = np.array(water_filling([high_rate(n) for n in sizes], sensitivities.tolist(), 0.01))
    rule = np.sqrt(sizes / deviations)
    np.testing.assert_allclose(found / rule / (found[0] / rule[0]), 1, rtol=2 ** (1 / 9) - 1)
    assert 0.01 / 1.3 < float(np.sum(sensitivities * sizes * found**2 / 12)) <= 0.01


# ---- the measured allocation ----------------------------------------------------------------------------------------


def measured(probes: dict[int, Probe]) -> Sensitivities:
    """Of layers of 1000 weights of norm 10, and of 100 of norm 1."""
    curves = {n: high_rate(size) for n, size in enumerate((1000, 100)) if probes[n].is_readable}
    return Sensitivities(probes, curves, [1000, 100], [10.0, 1.0], {0: 3.0, 1: 0.5})


@pytest.mark.parametrize("factor", [1.0, 8.0, 1000.0])
def test_a_layer_that_samples_hardly_exercise_gets_no_bins_far_wider_than_others(factor: float) -> None:
    """Beside its norm, at most 16 times those of all layers in the mean."""
    probes = {0: Probe(0.1, 1e-3), 1: Probe(0.1, 1e-3 * 10 / factor**2)}
    found = measured(probes).allocation(0.01, 50.0, [0.2, 0.02])
    relative = found.shapes[1] / 1.0 / (found.shapes[0] / 10.0)
    assert relative == pytest.approx(min(factor, 16 * factor ** (100 / 1100)), rel=0.06)
    assert found.name == "measured" and found.bounds == {0: 3.0, 1: 0.5}
    caused = sum(  # at the k of the solution with which layers were probed
        probes[n].deviation * (found.width(n, size, 50.0) / probes[n].width) ** 2 for n, size in ((0, 1000), (1, 100))
    )
    assert 0.005 < caused <= 0.0101


@pytest.mark.parametrize(("width", "bound"), [(0.02, 0.02), (None, 1 / 50)])
def test_a_layer_without_a_measurable_effect_keeps_the_bin_width_of_its_norm(width: float | None, bound: float) -> None:
    probes = {0: Probe(0.1, 1e-3), 1: Probe(0.1, 0.0, 0.1)}
    found = measured(probes).allocation(0.01, 50.0, [0.2, width])
    assert (found.shapes[1], found.bounds[1]) == (1.0, bound)
    assert [found.width(1, 100, k) for k in (1.0, 100.0)] == [bound, 0.01]
    every = measured({0: Probe(0.1, 0.0), 1: Probe(0.1, 0.0)}).allocation(0.01, 50.0, [0.2, width])
    assert dict(every.shapes) == {0: 10.0, 1: 1.0}


def test_errors_count_for_nothing_up_to_the_bin_width_at_which_nothing_could_be_read() -> None:
    """A layer that leaps from nothing to more than all layers may cause stays just below its leap."""
    found = measured({0: Probe(0.1, 1e-3), 1: Probe(0.8, 0.5, unreadable=0.3)}).allocation(0.01, 50.0, [0.2, 0.02])
    assert found.width(1, 100, 50.0) == pytest.approx(0.3, rel=0.05)


# ---- probes ---------------------------------------------------------------------------------------------------------


class Probed:
    """A prober of a model, and how its layers are rounded to the nearest."""

    def __init__(
        self, folder: Path, proto: onnx.ModelProto, feed: Callable[[np.random.Generator], NDArray[np.float64]]
    ):
        model = Model.load(builders.save(proto, folder))
        self.numbers = {layer.name: number for number, layer in enumerate(model.layers)}
        self.values = [layer.values for layer in model.layers]
        random = np.random.default_rng(0)
        samples = [({"x": feed(random).astype(np.float32)}, 1) for _ in range(4)]
        form = probe_form(model.session_form())
        self.prober = Prober(form, self.values, ["y"], samples, runtime=Runtime(threads=1))
        self.widths: list[float] = []

    def quantize(self, name: str, width: float) -> dict[int, NDArray[np.float32]]:
        number = self.numbers[name]
        self.widths.append(width)
        width = max(width, 1e-6)  # the finest
        return {number: (np.rint(self.values[number] / width) * width).astype(np.float32)}

    def probe(self, name: str, width: float, budget: float = 0.01) -> Probe:
        self.widths.clear()
        return probe(self.prober, functools.partial(self.quantize, name), width, budget)

    def deviation(self, name: str, width: float) -> float:
        return max(self.prober.deviations(self.quantize(name, width)))


def some_of_no_effect() -> onnx.ModelProto:
    """Layers that act, that are multiplied by zero, and that make the outputs infinite if they change at all."""
    r = builders.Random(1)
    frozen = r(32, 16)
    return builders.model(
        [
            builders.node("MatMul", "x seen", "a"),
            builders.node("MatMul", "x unseen", "b"),
            builders.node("Mul", "b zero", "c"),
            builders.node("Add", "frozen minus", "d"),
            builders.node("Mul", "d huge", "e"),
            builders.node("Mul", "e huge", "f"),
            builders.node("MatMul", "x f", "g"),
            builders.node("Sum", "a c g", "y"),
        ],
        [builders.info("x", 1, 32)],
        [builders.info("y", 1, 16)],
        [
            builders.tensor("seen", r(32, 16)),
            builders.tensor("unseen", r(32, 16)),
            builders.tensor("frozen", frozen),
            builders.tensor("minus", -frozen),
            builders.tensor("zero", np.zeros((), np.float32)),
            builders.tensor("huge", np.array(1e30, np.float32)),
        ],
    )


def test_a_probe_measures_one_layer_where_its_deviation_grows_with_the_square_of_its_error(tmp_path: Path) -> None:
    probed = Probed(tmp_path, some_of_no_effect(), lambda random: random.standard_normal((1, 32)))
    found = probed.probe("seen", 0.1)
    assert found == Probe(0.1, probed.deviation("seen", 0.1)) and found.is_readable and probed.widths[:-1] == [0.1]
    coarse = probed.probe("seen", 30.0)  # nothing is left of it
    assert 1e-3 < coarse.deviation <= 0.05 and coarse.width < 1 and not coarse.failed
    narrow = probed.probe("seen", 1e-5)  # next to nothing is seen of it
    assert narrow.is_readable and narrow.width == pytest.approx(8 * narrow.unreadable)


def test_layers_whose_effect_cannot_be_read_are_tried_at_wider_bins_and_failures_are_told(tmp_path: Path) -> None:
    probed = Probed(tmp_path, some_of_no_effect(), lambda random: random.standard_normal((1, 32)))
    found = probed.probe("unseen", 0.1)
    assert probed.widths == pytest.approx([0.1 * 8**n for n in range(5)])
    assert (found.deviation, found.is_readable, found.failed) == (0.0, False, False)
    found = probed.probe("frozen", 0.1)
    assert found.failed and found.deviation == 2.0


def test_a_layer_whose_deviation_leaps_from_nothing_is_known_to_be_unreadable_before(tmp_path: Path) -> None:
    """What comes of it is saturated, and stays as it is to the last bit until something changes its sign."""
    random = np.random.default_rng(0)
    ends = (np.where(np.arange(64) % 2, 1, -1) + 0.1 * random.standard_normal((32, 64))).astype(np.float32)
    proto = builders.model(
        [
            builders.node("MatMul", "x ends", "a"),
            builders.node("Mul", "a steep", "b"),
            builders.node("Tanh", "b", "h"),
            builders.node("MatMul", "h out", "y"),
        ],
        [builders.info("x", 1, 32)],
        [builders.info("y", 1, 16)],
        [
            builders.tensor("ends", ends),
            builders.tensor("steep", np.array(1e4, np.float32)),
            builders.tensor("out", random.standard_normal((64, 16)).astype(np.float32)),
        ],
    )
    probed = Probed(tmp_path, proto, lambda random: random.uniform(0.5, 1, (1, 32)))
    found = probed.probe("ends", 0.05, 1e-3)
    assert found.deviation > 1e-3 and 0.4 <= found.unreadable < min(3.2, found.width)
    assert probed.deviation("ends", found.unreadable) == 0
    curves = {0: curve(ends, found.width, 1e-6)}
    allocation = Sensitivities({0: found}, curves, [ends.size], [1.0], {0: 10.0}).allocation(1e-3, 1.0, [None])
    assert 0.4 <= allocation.width(0, ends.size, 1.0) <= found.unreadable


# ---- from model to archive ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.03, 0.003])
def test_measured_is_never_larger_than_the_paper_s_and_holds_as_well(target: float, tmp_path: Path) -> None:
    model, data = load(tmp_path, small), calibration(small, 12)
    paper = riq.compress(model, data, deviation=target, allocation="norm")
    found = riq.compress(model, data, deviation=target)
    assert found.size <= paper.size + 16  # the counts of evaluations and probes may have more digits
    for archive in (paper, found):
        result = archive.manifest.result  # Algorithm 1, if that is the smallest, holds on all samples alone
        assert max(result["deviation"], result.get("holdout", 0.0)) <= target
    assert found.manifest.result["probes"] > 0 == paper.manifest.result["probes"]


@pytest.mark.parametrize("options", [{"allocation": "norm"}, {"rounding": "nearest"}, {}])
def test_a_budget_is_kept_and_used(options: dict[str, Any], tmp_path: Path) -> None:
    model, data = load(tmp_path, small), calibration(small, 4)
    source = (tmp_path / "model.onnx").stat().st_size
    assert 0.98 * 7_000 <= riq.compress(model, data, size=7_000, **options).size <= 7_000
    assert 6 <= source / riq.compress(model, data, ratio=6, **options).size <= 6.2
    archive = riq.compress(model, data, rate=3, **options)
    weights = [entry for entry in archive.manifest.layers if len(entry.shape) > 1]
    assert 2.95 <= 8 * sum(entry.stored for entry in weights) / sum(entry.size for entry in weights) <= 3


def test_a_budget_that_cannot_hold_the_bound_is_an_error(tmp_path: Path) -> None:
    message = r"within 6,000 bytes the least deviation is 0\.\d+, above the bound of 1e-05"
    with pytest.raises(TargetError, match=message):
        riq.compress(load(tmp_path, wide), calibration(wide, 4), size=6_000, deviation=1e-5, rounding="nearest")


@pytest.mark.parametrize("bits", [2, 8])
def test_max_bits_bounds_the_levels_of_every_layer(bits: int, tmp_path: Path) -> None:
    model, data = load(tmp_path, wide), calibration(wide, 4)
    archive = riq.compress(model, data, k=1e6, epsilon=0.0, max_bits=bits)
    for entry, layer in zip(archive.manifest.layers, model.layers, strict=True):
        assert 2 ** (bits - 1) < entry.symbols <= 2**bits
        span = float(layer.values.max() - layer.values.min())
        assert entry.bin_width == pytest.approx(span / (2**bits - 1), rel=1e-6)


def test_max_bits_that_no_layer_can_do_with_are_out_of_reach(tmp_path: Path) -> None:
    """Layers are probed far below the bin widths that they may have."""
    with pytest.raises(TargetError, match=r"a deviation of 0\.01 is not reached"):
        riq.compress(load(tmp_path, wide), calibration(wide, 4), max_bits=2)


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
