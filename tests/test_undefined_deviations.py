"""Samples on which the original's outputs are NaN, infinite, all zero or empty have no deviation, and never count."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import riq_cli as riq
from riq_cli.constraint import LossConstraint
from riq_cli.errors import CalibrationError, SettingsError
from riq_cli.pipeline import PRESETS
from riq_cli.runtime import Deviation, Evaluator, TensorDeviation, sample_deviations
from tests import builders

NAN, INF = math.nan, math.inf
NOTHING = "there is nothing to measure: the model's outputs are NaN, infinite, all zero or empty on these samples"


def mlp(folder: Path) -> riq.Model:
    return riq.Model.load(builders.save(builders.perceptron(5), folder))


def with_empty_output(folder: Path) -> riq.Model:
    """One layer of 64 × 64, and a last output without elements."""
    nodes = [builders.node("MatMul", "x w", "y"), builders.node("Slice", "y from to axis", "state")]
    ends = [builders.tensor(name, np.array([value])) for name, value in (("from", 64), ("to", 64), ("axis", 1))]
    tensors = [builders.tensor("w", builders.Random(5)(64, 64)), *ends]
    outputs = [builders.info("y", "N", 64), builders.info("state", "N", None)]
    proto = builders.model(nodes, [builders.info("x", "N", 64)], outputs, tensors)
    return riq.Model.load(builders.save(proto, folder))


def samples(count: int = 24, undefined: slice = slice(0), value: float = NAN) -> riq.Calibration:
    x = np.random.default_rng(1).standard_normal((count, 64)).astype(np.float32)
    x[undefined] = value
    return riq.Calibration.from_arrays({"x": x})


def measured(archive: riq.Archive) -> TensorDeviation:
    (tensor,) = archive.manifest.result["measured"]
    return TensorDeviation(**tensor)


# ---- deviations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[0.0, -0.0], [NAN, INF], [NAN, 0.0], []])
def test_a_reference_without_direction_has_no_deviation(values: list[float]) -> None:
    reference = np.array(values, np.float32)
    assert np.isnan(sample_deviations(reference, reference)).all()
    assert np.isnan(sample_deviations(reference, np.ones_like(reference))).all()
    assert np.isnan(sample_deviations(reference, np.ones((3, 3), np.float32))).all()


def test_each_row_is_judged_on_its_own() -> None:
    y = np.array([[1, 0], [0, 0], [NAN, 2], [NAN, NAN]], np.float32)
    z = np.array([[0, 1], [0, 1], [NAN, 2], [1, 1]], np.float32)
    assert np.array_equal(sample_deviations(y, z, rows=4), [1.0, NAN, 0.0, NAN], equal_nan=True)
    assert np.array_equal(sample_deviations(y, z[:1], rows=4), [1.0, NAN, 1.0, NAN], equal_nan=True)


def test_a_candidate_that_is_not_finite_where_the_original_is_counts_as_infinitely_far() -> None:
    assert sample_deviations(np.ones(2, np.float32), np.array([NAN, 1], np.float32)) == [INF]


def test_what_is_undefined_is_in_no_mean_maximum_or_count() -> None:
    deviation = Deviation(("a", "b"), (((0.5, NAN), (NAN, NAN)), ((NAN, NAN), (NAN, 0.25))))
    assert deviation.tensors == (TensorDeviation("a", 0.5, 0.5, 1, None), TensorDeviation("b", 0.25, 0.25, 1, None))
    assert (deviation.mean, deviation.worst, list(deviation.samples)) == (0.5, 0.5, [0.5])
    assert deviation.of([1]).tensors == (TensorDeviation("b", 0.25, 0.25, 1, None),)


def test_a_measurement_of_nothing_is_an_error() -> None:
    deviation = Deviation(("a",), (((NAN,),), ((NAN,),)))
    assert not deviation.is_measured
    assert not deviation.of([]).is_measured
    with pytest.raises(CalibrationError, match=NOTHING):
        _ = deviation.mean


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, NAN]), min_size=1))
def test_samples_without_a_deviation_change_nothing(values: list[float]) -> None:
    loud = [value for value in values if not math.isnan(value)]
    deviation = Deviation(("a",), tuple(((value,),) for value in values))
    assert deviation.tensors == Deviation(("a",), tuple(((value,),) for value in loud)).tensors


# ---- compress and verify --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [NAN, INF, 0.0])
def test_samples_that_all_say_nothing_are_an_error(value: float, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=NOTHING):
        riq.compress(mlp(tmp_path), samples(8, slice(None), value))


@pytest.mark.parametrize("batch", [1, 8])
def test_some_are_left_out_with_a_warning_that_names_them(batch: int, tmp_path: Path) -> None:
    warnings: list[str] = []
    data = samples(24, slice(0, None, 2))
    archive = riq.compress(mlp(tmp_path), data, warn=warnings.append, batch_size=batch, **PRESETS["fast"])
    assert warnings == [
        "12 samples of 24 (0, 2, 4, 6, 8, …; numbered from 0) left out: the model's outputs "
        "there are NaN, infinite, all zero or empty"
    ]
    assert measured(archive).samples == archive.manifest.calibration["samples"] == 12
    assert 0 < archive.manifest.result["deviation"] <= 0.01


def test_those_held_out_all_say_something(tmp_path: Path) -> None:
    """Held out of 32 samples would be every fourth; here these are those without a deviation."""
    archive = riq.compress(mlp(tmp_path), samples(32, slice(2, None, 4), 0.0), **PRESETS["fast"])
    assert measured(archive).samples == 24
    assert archive.manifest.result["holdout_samples"] == 6
    assert archive.manifest.result["holdout"] > 0


def test_verify_leaves_them_out_too(tmp_path: Path) -> None:
    model, warnings = mlp(tmp_path), list[str]()
    archive = riq.compress(model, samples(), **PRESETS["fast"])
    found = riq.verify(archive, model, samples(5, slice(1, 3)), warn=warnings.append)
    assert found.tensors[0].samples == 3
    assert found.mean == pytest.approx(np.mean(found.samples))
    assert warnings == [
        "2 samples of 5 (1, 2; numbered from 0) left out: the model's outputs there "
        "are NaN, infinite, all zero or empty"
    ]
    with pytest.raises(CalibrationError, match=NOTHING):
        riq.verify(archive, model, samples(5, slice(None)))


def test_each_tensor_has_samples_of_its_own(tmp_path: Path) -> None:
    """An output that is 0 for half of the samples counts on the others; the mean may be largest at either output."""
    nodes = [
        builders.node("MatMul", "x w", "y"),
        builders.node("MatMul", "x v", "m"),
        builders.node("Slice", "x zero one one", "first"),
        builders.node("Relu", "first", "gate"),
        builders.node("Mul", "m gate", "z"),
    ]
    r = builders.Random(5)
    ends = [builders.tensor(name, np.array([value])) for name, value in (("zero", 0), ("one", 1))]
    tensors = [builders.tensor("w", r(64, 64)), builders.tensor("v", r(64, 64)), *ends]
    outputs = [builders.info("y", "N", 64), builders.info("z", "N", 64)]
    proto = builders.model(nodes, [builders.info("x", "N", 64)], outputs, tensors)
    x = np.random.default_rng(1).standard_normal((16, 64)).astype(np.float32)
    model, data = riq.Model.load(builders.save(proto, tmp_path)), riq.Calibration.from_arrays({"x": x})
    result = riq.compress(model, data, deviation=0.01).manifest.result
    assert {tensor["name"]: tensor["samples"] for tensor in result["measured"]} == {
        "y": 16,
        "z": int((x[:, 0] > 0).sum()),
    }
    assert result["deviation"] <= 0.01


def test_a_tensor_at_which_no_sample_says_anything_is_named(tmp_path: Path) -> None:
    nodes = [builders.node("MatMul", "x w", "y"), builders.node("Sub", "y y", "z")]
    outputs = [builders.info("y", "N", 64), builders.info("z", "N", 64)]
    tensors = [builders.tensor("w", builders.Random(5)(64, 64))]
    proto = builders.model(nodes, [builders.info("x", "N", 64)], outputs, tensors)
    model, warnings = riq.Model.load(builders.save(proto, tmp_path)), list[str]()
    archive = riq.compress(model, samples(8), warn=warnings.append, **PRESETS["fast"])
    assert warnings == ["tensor 'z' left out: it is NaN, infinite or all zero on all samples"]
    assert measured(archive).name == "y"
    with pytest.raises(CalibrationError, match="tensor 'z': " + NOTHING):
        riq.compress(model, samples(8), outputs=("y", "z"))


def test_labels_keep_their_samples(tmp_path: Path) -> None:
    """A sample of zeros says nothing of the deviation, but its loss counts."""
    labels = np.random.default_rng(2).integers(0, 64, 16)
    constraint = LossConstraint(labels, max_increase=0.05)
    data = samples(16, slice(0, None, 4), 0.0)
    archive = riq.compress(mlp(tmp_path), data, constraint=constraint, deviation=0.1, **PRESETS["fast"])
    assert archive.manifest.result["constraint"]["samples"] == 16
    assert measured(archive).samples == 12


def test_labels_do_where_no_probed_sample_says_anything_of_the_deviation(tmp_path: Path) -> None:
    data, labels = samples(16, slice(1, None), 0.0), np.zeros(16, np.int64)
    archive = riq.compress(mlp(tmp_path), data, constraint=LossConstraint(labels, max_increase=0.05))
    assert archive.manifest.result["constraint"]["samples"] == 16
    assert measured(archive).samples == 1


# ---- outputs without elements ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["fast", "small"])
def test_an_output_without_elements_is_left_out(preset: str, tmp_path: Path) -> None:
    archive = riq.compress(with_empty_output(tmp_path), samples(16), **PRESETS[preset])
    assert measured(archive).name == "y"
    assert 0 < archive.manifest.result["deviation"] <= 0.01


def test_only_outputs_without_elements_are_like_none(tmp_path: Path) -> None:
    model = with_empty_output(tmp_path)
    with pytest.raises(SettingsError, match="tensor 'state' has no elements; its deviation cannot be measured"):
        riq.compress(model, samples(4), outputs=("state",))


def test_samples_without_rows_are_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=NOTHING):
        riq.compress(mlp(tmp_path), riq.Calibration.random(), dims={"batch": 0})


def test_how_alike_samples_are_is_told_where_some_outputs_are_empty(tmp_path: Path) -> None:
    nodes = [builders.node("MatMul", "x w", "y")]
    tensors = [builders.tensor("w", np.eye(2, dtype=np.float32))]
    proto = builders.model(nodes, [builders.info("x", "N", 2)], [builders.info("y", "N", 2)], tensors)
    model = riq.Model.load(builders.save(proto, tmp_path))
    feeds = [({"x": np.full((count, 2), 3, np.float32)}, 1) for count in (0, 1, 2)]
    evaluator = Evaluator(model.session_form(), [layer.values for layer in model.layers], feeds)
    assert evaluator.defined == [[False], [True], [True]]
    np.testing.assert_allclose(evaluator.similarity(), [[0, 0, 0], [0, 1, 1], [0, 1, 1]], atol=1e-12)
