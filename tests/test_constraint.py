"""Constraints: losses against values worked out by hand, scores, a user's own; and compress under them."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import riq_cli as riq
from riq_cli.constraint import Candidate, Constraint, Judge, Judgement, LossConstraint, MetricConstraint
from riq_cli.errors import ConstraintError, SettingsError, TargetError
from riq_cli.pipeline import Progress
from tests import builders

SAMPLES = Path(__file__).parent.parent / "sample_models"


class Given:
    """A candidate whose outputs are given."""

    def __init__(self, outputs: Sequence[Any], rows: int = 1, tensor: str = "y", samples: Sequence[int] = ()) -> None:
        self._outputs = [np.asarray(output) for output in outputs]
        self.samples = samples or range(len(outputs))
        self.rows = [rows] * len(outputs)
        self.tensors = [tensor]

    def outputs(self, tensor: str) -> Iterator[np.ndarray]:
        assert tensor in self.tensors
        return iter(self._outputs)

    def session(self) -> None:
        raise AssertionError("a loss needs no session")


def judged(labels: Any, before: Given, after: Given, **bounds: float) -> Judgement:
    return LossConstraint(np.asarray(labels), **bounds).begin(before)(after)


LOGITS = [[[2.0, 0.0]], [[0.0, 1.0]]]  # of classes 0 and 0
LOSSES = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(1))]


def test_cross_entropy_of_logits_is_the_value_worked_out_by_hand() -> None:
    zeros = Given([[[0.0, 0.0]], [[0.0, 0.0]]])
    found = judged([0, 0], Given(LOGITS), zeros)
    before, after = sum(LOSSES) / 2, math.log(2)
    assert found.facts["measure"] == "cross-entropy of logits at y"
    assert found.facts["loss_before"] == pytest.approx(before, rel=1e-12)
    assert found.facts["loss_after"] == pytest.approx(after, rel=1e-12)
    assert found.value == pytest.approx((after - before) / before, rel=1e-12)
    assert found.facts["samples"] == 2
    # [2, 0] is class 0 and right, [0, 1] is not; of equal logits the first class counts.
    assert (found.facts["accuracy_before"], found.facts["accuracy_after"]) == (0.5, 1.0)


def test_probabilities_and_log_probabilities_give_the_loss_of_the_logits_they_come_from() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 1, 5))
    log_p = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    labels = [0, 1, 2, 3, 4, 0]
    found = [judged(labels, Given(values), Given(values)) for values in (logits, np.exp(log_p), log_p)]
    assert [one.facts["measure"] for one in found] == [
        "cross-entropy of logits at y", "cross-entropy of probabilities at y", "cross-entropy of logits at y",
    ]  # fmt: skip
    losses = [one.facts["loss_before"] for one in found]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-12)


def test_a_probability_of_zero_is_a_large_loss_and_not_an_infinite_one() -> None:
    values = np.array([[0.0, 1.0]], np.float32)
    found = judged([0], Given([values]), Given([values]))
    assert found.facts["loss_before"] == pytest.approx(-math.log(np.finfo(np.float32).tiny))


def test_the_standard_error_is_that_of_the_paired_differences() -> None:
    random = np.random.default_rng(1)
    before, after = random.normal(size=(2, 50, 1, 3))
    labels = random.integers(0, 3, 50)

    def losses(logits: np.ndarray) -> np.ndarray:
        rows = logits[:, 0]
        return np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(50), labels]

    difference = losses(after) - losses(before)
    error = difference.std(ddof=1) / math.sqrt(50)
    found = judged(labels, Given(before), Given(after), margin=1.5, max_increase=0.25)
    assert found.facts["standard_error"] == pytest.approx(error, rel=1e-12)
    assert found.value == pytest.approx((difference.mean() + 1.5 * error) / losses(before).mean(), rel=1e-12)
    assert found.limit == 0.25
    assert found.holds == (found.value <= 0.25)


def test_float_targets_are_held_against_by_mean_squared_error() -> None:
    before, after = Given([[[1.0, 2.0]], [[3.0, 4.0]]]), Given([[[1.0, 1.0]], [[5.0, 4.0]]])
    found = judged([[1.5, 2.0], [3.0, 3.0]], before, after)
    assert found.facts["measure"] == "mean squared error at y"
    assert found.facts["loss_before"] == pytest.approx((0.25 / 2 + 1 / 2) / 2)
    assert found.facts["loss_after"] == pytest.approx((1.25 / 2 + 5 / 2) / 2)
    assert "accuracy_before" not in found.facts


@pytest.mark.parametrize(
    ("value", "other", "measure"), [(0.7, 3.0, "scores"), (1 / (1 + math.exp(-0.7)), 0.9, "probabilities")]
)
def test_a_single_score_tells_class_0_from_class_1(value: float, other: float, measure: str) -> None:
    judge = LossConstraint(np.array([1, 1])).begin(Given([[[value]], [[other]]]))
    found = judge(Given([[[value]]], samples=[0]))
    assert found.facts["measure"] == f"cross-entropy of {measure} at y"
    assert found.facts["loss_before"] == pytest.approx(math.log(1 + math.exp(-0.7)))
    assert found.facts["accuracy_before"] == 1


@pytest.mark.parametrize("classes_last", [True, False])
def test_sequences_have_a_label_for_each_step_and_a_loss_for_each_row(classes_last: bool) -> None:
    random = np.random.default_rng(2)
    logits, labels = random.normal(size=(3, 4, 6, 5)), random.integers(0, 5, (12, 6))  # runs of 4 rows, 6 steps
    flat = logits.reshape(12, 6, 5)
    taken = np.take_along_axis(flat, labels[..., None], axis=2)[..., 0]
    losses = (np.log(np.exp(flat).sum(axis=2)) - taken).mean(axis=1)
    values = logits if classes_last else np.moveaxis(logits, 3, 2)
    found = judged(labels, Given(values, rows=4), Given(values, rows=4))
    assert found.facts["loss_before"] == pytest.approx(losses.mean(), rel=1e-12)
    assert found.facts["samples"] == 12


def test_labels_follow_their_samples() -> None:
    outputs = [[[4.0, 0.0]], [[0.0, 4.0]], [[4.0, 0.0]]]
    judge = LossConstraint(np.array([0, 0, 1])).begin(Given(outputs))
    for number, right in enumerate((1.0, 0.0, 0.0)):
        assert judge(Given([outputs[number]], samples=[number])).facts["accuracy_before"] == right
    assert judge(Given(outputs)).facts["accuracy_before"] == pytest.approx(1 / 3)


def test_runs_whose_rows_nobody_counted_take_as_many_labels_as_their_outputs_have() -> None:
    outputs = np.zeros((2, 3, 4))  # two runs of three rows, each counted as one
    assert judged(np.zeros(6, int), Given(outputs), Given(outputs)).facts["samples"] == 6


def test_where_the_loss_is_next_to_nothing_an_increase_is_relative_to_a_thousandth() -> None:
    sure, less = Given([[[50.0, 0.0]]]), Given([[[8.0, 0.0]]])
    found = judged([0], sure, less)
    assert found.value == pytest.approx(math.log(1 + math.exp(-8)) / 1e-3, rel=1e-6)


def test_outputs_of_nan_do_not_hold() -> None:
    found = judged([0], Given([[[1.0, 0.0]]]), Given([[[math.nan, 0.0]]]), max_increase=100.0)
    assert found.value == math.inf
    assert not found.holds
    assert found.recorded()["value"] is None


@pytest.mark.parametrize(
    ("labels", "outputs", "text"),
    [
        ([0, 1], np.zeros((3, 1, 4)), "there are 2 labels for 3 samples; give one for each, in their order"),
        ([0, 4], np.zeros((2, 1, 4)), "class ids go from 0 to 4; 'y' has 4 classes, from 0 on"),
        ([-1, 0], np.zeros((2, 1, 4)), "class ids go from -1 to 0; 'y' has 4 classes, from 0 on"),
        ([0, 2], np.zeros((2, 1, 1)), "class ids 0 … 2 do not fit 'y' of shape [1, 1]: a single score tells 0 from 1"),
        ([0.0, 2.0], np.zeros((2, 1, 4)), "class ids have to be integers: convert them with .astype('int64')"),
        ([0, 0], np.zeros((2, 1, 3, 4)), "class ids of shape [1] do not fit 'y' of shape [1, 3, 4]"),
        ([0, 0], np.full((2, 1, 3), math.nan), "the original model's loss at 'y' is NaN or infinite"),
    ],
)
def test_labels_that_do_not_fit_are_an_error_that_says_why(labels: Any, outputs: np.ndarray, text: str) -> None:
    with pytest.raises(ConstraintError) as error:
        judged(labels, Given(outputs), Given(outputs))
    assert text in str(error.value)
    nothing = Given(outputs)
    nothing.tensors = []
    with pytest.raises(ConstraintError, match="the model has no float output to take a loss of"):
        judged(labels, nothing, nothing)


@pytest.mark.parametrize("labels", [np.array("cat"), np.array(["cat"]), np.array(1), np.array([math.inf])])
def test_labels_that_are_no_numbers_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(ConstraintError, match="the labels"):
        LossConstraint(labels)


def test_bounds_out_of_range_are_refused() -> None:
    for bounds in ({"max_increase": -0.1}, {"margin": -1.0}, {"max_increase": math.inf}, {"margin": math.nan}):
        with pytest.raises(SettingsError):
            LossConstraint(np.array([0]), **bounds)
    for drop in (-1.0, math.inf):
        with pytest.raises(SettingsError, match="a drop of"):
            MetricConstraint(len, drop)
    with pytest.raises(SettingsError, match="no direction is named 'up'"):
        MetricConstraint(len, direction="up")  # type: ignore[arg-type]


@given(st.integers(1, 12), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_the_same_outputs_change_nothing_whatever_they_are(count: int, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    outputs = random.normal(size=(count, 1, classes)) * 10 ** random.uniform(-3, 3)
    found = judged(random.integers(0, classes, count), Given(outputs), Given(outputs), margin=0.0)
    assert (found.value, found.holds, found.facts["standard_error"]) == (0.0, True, 0.0)
    assert found.facts["loss_before"] == found.facts["loss_after"] >= 0


def test_what_numpy_computed_is_recorded_as_plain_numbers() -> None:
    found = Judgement(np.float32(0.5), np.float64(1), {"share": np.float16(0.25), "text": "x", "count": 3})  # type: ignore[arg-type]
    assert json.dumps(found.recorded()) == (
        '{"value": 0.5, "limit": 1.0, "share": 0.25, "text": "x", "count": 3, "holds": true}'
    )
    assert found.holds is True


# ---- metrics ----


class Session:
    """A candidate that is its own session."""

    samples = rows = tensors = ()

    def __init__(self, score: Any) -> None:
        self.score = score

    def outputs(self, tensor: str) -> Iterator[np.ndarray]:
        raise AssertionError("a metric brings its own data")

    def session(self) -> Any:
        return self


@pytest.mark.parametrize(
    ("before", "after", "options", "value"),
    [
        (0.9, 0.85, {}, 0.05),
        (0.9, 0.95, {}, -0.05),
        (0.8, 0.6, {"relative": True}, 0.25),
        (2.0, 2.5, {"direction": "lower"}, 0.5),
        (-2.0, -1.0, {"direction": "lower", "relative": True}, 0.5),
        (1.0, math.nan, {}, math.inf),
    ],
)
def test_a_drop_is_how_much_worse_a_score_is(before: float, after: float, options: dict, value: float) -> None:
    constraint = MetricConstraint(lambda session: session.score, 0.05, **options)
    found = constraint.begin(Session(before))(Session(after))
    assert found.value == pytest.approx(value)
    assert found.limit == 0.05
    assert found.facts["score_before"] == before


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (math.nan, "gives nan for the original model"),
        ("good", "gives str, not a number"),
        (None, "gives NoneType, not a number"),
        (np.zeros(2), "gives ndarray, not a number"),
    ],
)
def test_scores_that_are_none_are_errors(score: Any, text: str) -> None:
    with pytest.raises(ConstraintError) as error:
        MetricConstraint(lambda session: session.score).begin(Session(score))
    assert text in str(error.value)


def test_a_metric_that_raises_or_whose_drop_means_nothing_is_an_error() -> None:
    def broken(session: Any) -> float:
        raise KeyError("images")

    with pytest.raises(ConstraintError, match=r"test_constraint:.*broken: KeyError: 'images'"):
        MetricConstraint(broken).begin(Session(0))
    with pytest.raises(ConstraintError, match="a drop relative to that means nothing"):
        MetricConstraint(lambda session: 0, 0.1, relative=True).begin(Session(0))


def test_what_manifests_keep() -> None:
    assert LossConstraint(np.array([1]), 0.01, 2.0).recorded() == {
        "objective": "loss", "max_loss_increase": 0.01, "margin": 2.0,
    }  # fmt: skip
    assert MetricConstraint(math.sqrt, 0.004, relative=True, direction="lower").recorded() == {
        "objective": "metric", "metric": "math:sqrt", "max_drop": "0.4%", "direction": "lower",
    }  # fmt: skip


# ---- compress ----


@pytest.fixture(scope="module")
def cnn() -> tuple[riq.Model, riq.Calibration, np.ndarray]:
    model = riq.Model.load(SAMPLES / "cnn.onnx")
    return model, riq.Calibration.load(SAMPLES / "calibration.npz"), np.load(SAMPLES / "calibration_labels.npy")


@pytest.fixture
def dense(tmp_path: Path) -> riq.Model:
    return riq.Model.load(builders.save(builders.dense(), tmp_path))


FAST: dict[str, Any] = {"allocation": "norm", "rounding": "nearest"}


def test_what_ships_was_judged(cnn: tuple[riq.Model, riq.Calibration, np.ndarray]) -> None:
    model, data, labels = cnn
    constraint = LossConstraint(labels, 0.05)
    steps: list[Progress] = []
    archive = riq.compress(model, data, constraint=constraint, progress=steps.append, **FAST)
    result = archive.manifest.result
    assert archive.manifest.settings == {
        "allocation": "norm", "deviation": None, "objective": "loss", "max_loss_increase": 0.05, "margin": 0.0,
    }  # fmt: skip
    for found in (result["constraint"], result["constraint_holdout"]):
        assert found["holds"]
        assert found["value"] <= found["limit"] == 0.05
    assert result["constraint"]["samples"] == 64
    assert result["constraint_holdout"]["samples"] == result["holdout_samples"] == 16
    again = riq.check(archive, model, data, constraint)
    assert again.recorded() == result["constraint"]
    assert any(step.value > 0.05 for step in steps if step.measure == "constraint")


def test_a_deviation_beside_a_constraint_is_a_bound(cnn: tuple[riq.Model, riq.Calibration, np.ndarray]) -> None:
    model, data, labels = cnn
    archive = riq.compress(model, data, constraint=LossConstraint(labels, 10.0), deviation=1e-4, **FAST)
    result = archive.manifest.result
    assert result["deviation"] <= 1e-4
    assert archive.manifest.settings["deviation"] == 1e-4


@pytest.mark.slow
def test_the_default_preset_is_smaller_under_a_constraint_too(
    cnn: tuple[riq.Model, riq.Calibration, np.ndarray],
) -> None:
    model, data, labels = cnn
    constraint = LossConstraint(labels, 0.05)
    small = riq.compress(model, data, constraint=constraint)
    assert small.size < riq.compress(model, data, constraint=constraint, **FAST).size
    assert small.manifest.result["allocation"] in ("measured", "blend", "fine measured", "fine blend")


class Largest(Constraint):
    """Keeps the largest output within a share of the original's; counts how often it was asked."""

    def __init__(self, share: float) -> None:
        self.share, self.asked = share, 0

    def begin(self, original: Candidate) -> Judge:
        (tensor,) = original.tensors
        largest = [float(np.abs(output).max()) for output in original.outputs(tensor)]

        def judge(candidate: Candidate) -> Judgement:
            self.asked += 1
            before = max(largest[number] for number in candidate.samples)
            after = max(float(np.abs(output).max()) for output in candidate.outputs(tensor))
            return Judgement(abs(after / before - 1), self.share, {"largest": after})

        return judge


def test_a_constraint_of_the_users_own(dense: riq.Model) -> None:
    constraint, steps = Largest(0.01), list[Progress]()
    archive = riq.compress(
        dense, riq.Calibration.random(samples=8), constraint=constraint, progress=steps.append, **FAST
    )
    found = archive.manifest.result["constraint"]
    assert found["holds"]
    assert found["value"] <= 0.01
    assert found["largest"] > 0
    assert archive.manifest.settings["objective"] == "Largest"
    assert constraint.asked >= sum(step.measure == "constraint" for step in steps) > 0


class Never(Constraint):
    """Has a value that holds for nothing."""

    remedy = "ask for less"

    def __init__(self, value: float = 2.0) -> None:
        self.value = value

    def begin(self, original: Candidate) -> Judge:
        return lambda candidate: Judgement(self.value, 1.0)


def test_nothing_ships_where_nothing_holds(dense: riq.Model) -> None:
    with pytest.raises(TargetError) as error:
        riq.compress(dense, riq.Calibration.random(), constraint=Never(), **FAST)
    assert str(error.value) == "the constraint is not kept: the best value is 2, above 1; ask for less"
    assert error.value.best == 2.0
    with pytest.raises(TargetError, match="the constraint is not kept"):
        riq.compress(dense, riq.Calibration.random(), constraint=Never(math.nan), **FAST)


def test_a_metric_is_called_with_a_session_of_the_models_own_outputs_or_with_predict(tmp_path: Path) -> None:
    """The deviation is measured before the Softmax."""
    model = riq.Model.load(builders.save(builders.SATURATED["softmax"][0](), tmp_path))
    feed = {"x": np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)}
    seen: set[tuple[str, ...]] = set()

    def by_session(session: Any) -> float:
        seen.add(tuple(output.name for output in session.get_outputs()))
        return float(session.run(None, feed)[0].max())

    def by_prediction(predict: Any) -> float:
        return float(predict(feed)["y"].max())

    found = [
        riq.compress(
            model,
            riq.Calibration.random(),
            constraint=MetricConstraint(function, 0.01, relative=True),
            min_size=1,
            **FAST,
        ).manifest.result
        for function in (by_session, by_prediction)
    ]
    assert seen == {("y",)}
    assert found[0]["constraint"] == found[1]["constraint"]
    assert found[0]["constraint"]["value"] <= 0.01
    assert "constraint_holdout" not in found[0]
    assert [tensor["name"] for tensor in found[0]["measured"]] == ["y", "z"]


def test_a_loss_is_taken_of_the_models_own_output_or_of_the_one_that_is_named(tmp_path: Path) -> None:
    model = riq.Model.load(builders.save(builders.SATURATED["softmax"][0](), tmp_path))
    random = np.random.default_rng(0)
    data = riq.Calibration.from_arrays({"x": random.standard_normal((12, 6)).astype(np.float32)})
    constraint = LossConstraint(random.integers(0, 5, 12), 0.02)
    facts = [
        riq.compress(model, data, constraint=constraint, outputs=outputs, min_size=1, **FAST).manifest.result[
            "constraint"
        ]
        for outputs in ((), ("z",))
    ]
    assert [found["measure"] for found in facts] == [
        "cross-entropy of probabilities at y", "cross-entropy of logits at z",
    ]  # fmt: skip
    assert facts[0]["loss_before"] == pytest.approx(facts[1]["loss_before"], rel=1e-6)


def test_goals_that_contradict_a_constraint_are_refused(dense: riq.Model) -> None:
    for goal in ("ratio", "size", "rate", "k"):
        with pytest.raises(SettingsError, match=f"{goal} = 5 and a constraint are two goals"):
            riq.Settings(constraint=Never(), **{goal: 5})
    with pytest.raises(SettingsError, match="give the constraint with the settings"):
        riq.compress(dense, None, riq.Settings(), constraint=Never())
