"""The fixed layout: what widths mean, which are chosen, and what mu and directed rounding do."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import riq_cli as riq
from riq_cli.constraint import LossConstraint, MetricConstraint
from riq_cli.errors import SettingsError, TargetError
from riq_cli.model import offset_form
from riq_cli.pipeline import FixedLayout
from riq_cli.quantize import scalar
from tests import builders

SAMPLES = Path(__file__).parent.parent / "sample_models"
ANY = 1e9  # an increase of the loss that refuses nothing


@pytest.fixture(scope="module")
def cnn() -> riq.Model:
    return riq.Model.load(SAMPLES / "cnn.onnx")


@pytest.fixture(scope="module")
def data() -> riq.Calibration:
    return riq.Calibration.load(SAMPLES / "calibration.npz")


def compressed(model: riq.Model, data: riq.Calibration, increase: float, layout: FixedLayout, **more: Any) -> Any:
    labels = np.load(SAMPLES / "calibration_labels.npy")
    return riq.compress(model, data, constraint=LossConstraint(labels, increase), layout=layout, batch_size=8, **more)


def weights(archive: riq.Archive) -> dict[str, np.ndarray]:
    return {layer.name: layer.values for layer in riq.decompress(archive).layers}


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_bins_are_uniform_over_the_range_of_a_layer(cnn: riq.Model, data: riq.Calibration, bits: int) -> None:
    archive = compressed(cnn, data, ANY, FixedLayout((bits,)))
    entries = {entry.name: entry for entry in archive.manifest.layers}
    layers = {layer.name: layer.values for layer in cnn.layers if layer.values.ndim > 1 and layer.size >= 256}
    assert set(entries) == set(layers)
    for name, values in layers.items():
        step = (float(values.max()) - float(values.min())) / (2**bits - 1)
        assert entries[name].bin_width == pytest.approx(step, rel=1e-8)
        assert len(np.unique(weights(archive)[name])) <= 2**bits
        assert np.abs(weights(archive)[name] - values).max() <= step / 2 * (1 + 1e-5)
    assert archive.manifest.result["layout"] == {str(bits): len(layers), "float": 0}
    assert archive.manifest.settings["bits"] == str(bits)


def test_per_channel_each_channel_has_bins_over_its_own_range(cnn: riq.Model, data: riq.Calibration) -> None:
    restored = weights(compressed(cnn, data, ANY, FixedLayout((4,), per_channel=True)))
    for layer in cnn.layers:
        if layer.name not in restored:
            continue
        rows, others = layer.values.reshape(layer.shape[0], -1), restored[layer.name].reshape(layer.shape[0], -1)
        spread = np.ptp(rows, axis=1)
        steps = np.maximum(spread, spread.max() / 16) / 15 * 2**0.25  # codes are in quarters of an octave, rounded up
        assert (np.abs(rows - others).max(axis=1) <= steps / 2 * (1 + 1e-5)).all()
        assert all(len(np.unique(row)) <= 16 for row in others)


def test_nothing_is_accepted_that_lets_the_loss_rise(cnn: riq.Model, data: riq.Calibration) -> None:
    for variant in ("R", "B"):
        archive = compressed(cnn, data, 0.02, FixedLayout(variant=variant))  # type: ignore[arg-type]
        result = archive.manifest.result
        assert result["constraint"]["value"] <= 0.02
        assert result["constraint_holdout"]["value"] <= 0.02
        counts = result["layout"]
        assert list(counts) == ["4", "8", "float"]
        assert sum(counts.values()) == 8
        assert counts["4"] + counts["8"] == len(archive.manifest.layers) > 0
        assert (result["allocation"], result["rounding"], result["k"]) == ("fixed", "nearest", 1.0)


def test_variant_b_brings_layers_to_eight_bits_first_and_r_to_four(cnn: riq.Model, data: riq.Calibration) -> None:
    counts = {
        variant: compressed(cnn, data, ANY, FixedLayout(variant=variant)).manifest.result["layout"]  # type: ignore[arg-type]
        for variant in ("R", "B")
    }
    assert counts == {variant: {"4": 8, "8": 0, "float": 0} for variant in ("R", "B")}  # where nothing is refused


def test_a_layout_that_allows_no_float_and_does_not_hold_is_out_of_reach(cnn: riq.Model, data: riq.Calibration) -> None:
    with pytest.raises(TargetError, match="the constraint is not kept: the best value is"):
        compressed(cnn, data, 0.0, FixedLayout((2,)))


def test_mu_keeps_all_layers_in_float_whose_slope_is_smaller(cnn: riq.Model, data: riq.Calibration) -> None:
    counts = [
        compressed(cnn, data, ANY, FixedLayout(mu=mu)).manifest.result["layout"]["float"] for mu in (0, 1e-6, 1e6)
    ]
    assert counts[0] == 0
    assert counts[0] <= counts[1] <= counts[2] == 8


def test_the_offset_is_added_to_the_tensor_for_all_that_use_it() -> None:
    proto = builders.dense()
    model = riq.Model.from_skeleton(proto.SerializeToString(), [])
    form = offset_form(model.session_form(), ["x"], 0.25, "float32")
    x = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)

    def run(serialized: bytes, given: np.ndarray) -> np.ndarray:
        session = onnxruntime.InferenceSession(serialized, providers=["CPUExecutionProvider"])
        result: np.ndarray = session.run(None, {"x": given})[0]
        return result

    onnx.checker.check_model(onnx.ModelProto.FromString(form.model))
    expected = run(proto.SerializeToString(), x + np.float32(0.25))
    np.testing.assert_allclose(run(form.model, x), expected, rtol=1e-6)


@pytest.mark.parametrize("up", [True, False])
def test_directed_rounding_goes_one_way(up: bool) -> None:
    values = np.array([0.0, 0.1, 0.9, 1.0, -0.1, -1.0, -1.9], np.float32)
    symbols = scalar.directed(values, "float32", 1.0, up).symbols
    assert symbols.tolist() == ([0, 1, 1, 1, 0, -1, -1] if up else [0, 0, 0, 1, -1, -1, -2])


def test_directed_rounding_moves_each_layer_one_way(cnn: riq.Model, data: riq.Calibration) -> None:
    archive = compressed(cnn, data, ANY, FixedLayout((8,)), rounding="directed")
    restored = weights(archive)
    assert restored
    for layer in cnn.layers:
        if layer.name in restored:
            difference = restored[layer.name] - layer.values
            tiny = 1e-6 * np.abs(layer.values).max()
            assert (difference >= -tiny).all() or (difference <= tiny).all()
    assert archive.manifest.settings["rounding"] == archive.manifest.result["rounding"] == "directed"


def test_a_deviation_beside_a_layout_is_a_bound(cnn: riq.Model, data: riq.Calibration) -> None:
    result = compressed(cnn, data, ANY, FixedLayout(), deviation=1e-4).manifest.result
    assert result["deviation"] <= 1e-4
    with pytest.raises(TargetError, match=r"the constraint is kept, but not the deviation of 0\.0001; give a larger"):
        compressed(cnn, data, ANY, FixedLayout((4,)), deviation=1e-4)


def test_a_metric_chooses_a_layout_too(cnn: riq.Model, data: riq.Calibration) -> None:
    with np.load(SAMPLES / "heldout.npz") as loaded:
        images = loaded["image"][:100]
    labels = np.load(SAMPLES / "heldout_labels.npy")[:100]

    def accuracy(predict: Any) -> float:
        return float((predict({"image": images})["logits"].argmax(axis=1) == labels).mean())

    result = riq.compress(cnn, data, constraint=MetricConstraint(accuracy, 0.02), layout=FixedLayout()).manifest.result
    assert result["constraint"]["value"] <= 0.02
    assert result["layout"]["float"] < 8


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"layout": FixedLayout()}, "a fixed layout is chosen by a constraint"),
        ({"rounding": "directed"}, "directed rounding belongs to the fixed layout"),
        (
            {"layout": FixedLayout(), "rounding": "compensated", "constraint": LossConstraint(np.array([0]))},
            "compensated rounding does not go with a fixed layout",
        ),
        ({"layout": FixedLayout(mu=0.1), "constraint": MetricConstraint(len)}, "mu goes by the slope of a loss"),
        (
            {"layout": FixedLayout(), "rounding": "directed", "constraint": MetricConstraint(len)},
            "directed rounding goes by the slope of a loss",
        ),
    ],
)
def test_what_a_fixed_layout_does_not_go_with(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError) as error:
        riq.Settings(**settings)
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bits": ()}, "bits are widths in 2 … 16"),
        ({"bits": ("float",)}, "bits are widths in 2 … 16"),
        ({"bits": (1, 4)}, "bits are widths in 2 … 16"),
        ({"variant": "Q"}, "no variant is named 'Q'; there are R and B"),
        ({"mu": -1.0}, "mu = -1 is negative or not finite"),
        ({"bits": (4,), "mu": 0.1}, "mu keeps layers in float, which bits do not allow"),
    ],
)
def test_layouts_that_mean_nothing_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError) as error:
        FixedLayout(**options)
    assert text in str(error.value)
