"""Figures that mean something to users: relative errors, and how often the top-1 of an output stays."""

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import riq_cli as riq
from riq_cli.model import Model, class_axes
from riq_cli.report import judgement, top1_text, with_derived
from riq_cli.runtime import cosine_distance
from riq_cli.runtime.deviation import compared
from riq_cli.text import deviation_text, percent, relative_error, wilson
from tests import builders

# ---- relative errors ----


def test_a_relative_error_is_how_far_outputs_of_the_same_norm_are_apart() -> None:
    y, error = np.random.default_rng(0).normal(size=(2, 1000))
    z = y + 0.1 * error
    z *= np.linalg.norm(y) / np.linalg.norm(z)
    relative, _ = relative_error(cosine_distance(y, z), None)
    assert relative == pytest.approx(np.linalg.norm(y - z) / np.linalg.norm(y), rel=1e-9)


def test_its_standard_error_is_that_of_the_delta_method() -> None:
    """The derivative of √(2D) is 1/√(2D)."""
    relative, error = relative_error(0.02, 0.001)
    assert (relative, error) == pytest.approx((0.2, 0.001 / 0.2))
    slope = (relative_error(0.02 + 1e-7, None)[0] - relative) / 1e-7
    assert error == pytest.approx(0.001 * slope, rel=1e-5)
    assert relative_error(0.0, 0.0) == (0.0, None)
    assert relative_error(0.02, None)[1] is None


def test_people_read_it_beside_the_deviation() -> None:
    assert deviation_text(0.0073, 0.0006) == "0.0073 ± 0.0006 (relative error 12 %)"
    assert deviation_text(0.0098, None, " ≤ 0.01") == "0.0098 ≤ 0.01 (relative error 14 %)"
    assert deviation_text(2e-5, None) == "2e-05 (relative error 0.63 %)"
    assert deviation_text(math.inf, None) == "inf (relative error inf %)"


def test_json_has_it_beside_every_mean() -> None:
    tensor = {"name": "y", "mean": 0.02, "worst": 0.1, "standard_error": 0.001}
    result = {"deviation": 0.02, "standard_error": 0.001, "holdout": 0.005, "measured": [tensor], "k": 3.0}
    found = with_derived(result)
    assert found["relative_error"] == found["measured"][0]["relative_error"] == pytest.approx(0.2)
    assert found["relative_error_standard_error"] == pytest.approx(0.005)
    assert (found["holdout_relative_error"], found["holdout_relative_error_standard_error"]) == (0.1, None)
    assert found.items() >= {key: result[key] for key in ("deviation", "holdout", "k")}.items()
    assert with_derived({}) == {}


# ---- which outputs are a choice among classes ----


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("softmax", {"y": -1}),
        ("log_softmax", {"y": -1}),
        ("log_of_softmax", {"y": -1}),
        ("softmax_in_pieces_shifted", {"y": -1}),
        ("log_softmax_by_logsumexp", {"y": -1}),
        ("argmax", {"z": 1}),
        ("topk_of_softmax", {"z": -1}),
        ("argmax_of_softmax_in_pieces", {"z": -1}),
        ("sigmoid_of_argmax_and_softmax", {"y": -1}),  # the ArgMax is of the same scores
        ("logits_are_an_output_too", {"y": -1}),
        ("softmax_through_shapes", {"t": -1}),  # the axes of y are others
        ("plain", {}),
        ("sigmoid", {}),
        ("topk", {}),
        ("logistic_by_div", {}),
        ("division_that_is_no_softmax", {}),
    ],
)
def test_what_a_softmax_or_argmax_ends_is_a_choice(name: str, axes: dict[str, int], tmp_path: Path) -> None:
    form = Model.load(builders.save(builders.SATURATED[name][0](), tmp_path)).session_form()
    assert class_axes(form) == axes


def ended(nodes: str, *shape: int | str, name: str = "logits", opset: int = 17) -> onnx.ModelProto:
    """`x` [batch, 6] → m [batch, 5], and what comes behind it."""
    proto = builders.model(
        builders.nodes(f"MatMul x w > m; {nodes}"),
        [builders.info("x", "batch", 6)],
        [builders.info(name, *shape)],
        [builders.tensor("w", np.ones((6, 5), np.float32)), builders.tensor("b", np.ones(5, np.float32))],
    )
    proto.opset_import[0].version = opset
    return proto


@pytest.mark.parametrize(
    ("proto", "axes"),
    [
        (ended("Add m b > logits", "batch", 5), {"logits": -1}),
        (ended("Mul m b > s; Identity s > Class_Scores", "batch", 5, name="Class_Scores"), {"Class_Scores": -1}),
        (ended("Add m b > output", "batch", 5, name="output"), {}),  # may be an embedding
        (ended("Add m b > output", "batch", 1000, name="output"), {"output": -1}),
        (ended("Add m b > class_embedding", "batch", 5, name="class_embedding"), {}),
        (ended("Softmax m > attentions", "batch", 5, name="attentions"), {}),
        (ended("Relu m > logits", "batch", 5), {}),
        (ended("Add m b > logits", "batch", 5, 2, 2), {}),
        (ended("Add m b > logits", 5), {}),
        (ended("Sigmoid m > class_probs", "batch", 5, name="class_probs"), {}),
        (ended("Softmax m > p", "batch", 5, name="p", opset=11), {"p": 1}),
        (ended("Hardmax m > h", "batch", 5, name="h"), {"m": -1}),
        (ended("Hardmax m > h", "batch", 5, name="h", opset=11), {"m": 1}),
        (ended("ArgMax m > a", 1, 5, name="a"), {"m": 0}),
    ],
)  # fmt: skip
def test_a_product_is_a_choice_if_it_is_called_so(proto: onnx.ModelProto, axes: dict[str, int], tmp_path: Path) -> None:
    assert class_axes(Model.load(builders.save(proto, tmp_path)).session_form()) == axes


@pytest.mark.parametrize(
    ("nodes", "shape", "axis"),
    [
        ("Conv x w > c; Add c b > logits", (1, 5, 7), 1),
        ("Conv x w > c; Transpose c > logits perm=(0,2,1)", (1, 7, 5), -1),
        ("Conv x w > c; GlobalAveragePool c > p; Flatten p > logits", (1, 5), -1),
    ],
)
def test_a_convolution_has_its_classes_along_axis_1(
    nodes: str, shape: tuple[int, ...], axis: int, tmp_path: Path
) -> None:
    proto = builders.model(
        builders.nodes(nodes),
        [builders.info("x", 1, 6, 7)],
        [builders.info("logits", *shape)],
        [builders.tensor("w", np.ones((5, 6, 1), np.float32)), builders.tensor("b", np.ones((5, 1), np.float32))],
    )
    assert class_axes(Model.load(builders.save(proto, tmp_path)).session_form()) == {"logits": axis}


def test_the_embedding_of_a_sentence_is_none_and_the_logits_of_the_samples_are() -> None:
    folder = Path(__file__).parent.parent / "sample_models"
    for name in ("cnn", "lstm", "transformer"):
        assert class_axes(Model.load(folder / f"{name}.onnx").session_form()) == {"logits": -1}


# ---- top-1 ----


def counts(before: list[np.ndarray], after: list[np.ndarray], axis: int = -1, rows: int = 1) -> list[dict]:
    runs = [[array] for array in after]
    return compared(["y"], [[array] for array in before], runs, [rows] * len(before), {"y": axis}).top1


def test_the_top_1_is_counted_by_sample_and_position() -> None:
    before = np.array([[[3.0, 1, 2], [0, 5, 4]]])  # of two positions, the classes 0 and 1
    after = np.array([[[2.5, 1, 2], [0, 4, 5]]])  # 0 and 2
    assert counts([before], [after]) == [{"name": "y", "samples": 1, "choices": 2, "kept": 1}]
    turned = counts([before.swapaxes(1, 2)] * 3, [after.swapaxes(1, 2)] * 3, axis=1)
    assert turned == [{"name": "y", "samples": 3, "choices": 6, "kept": 3, "effective": 6}]
    batch = counts([before[0]], [after[0]], rows=2)
    assert batch == [{"name": "y", "samples": 2, "choices": 2, "kept": 1}]


def test_where_the_original_has_no_single_largest_score_nothing_is_counted() -> None:
    before = np.array([[1.0, 1, 0], [math.nan, 0, 1], [-math.inf] * 3, [0, 0, 0], [-math.inf, 0, 1]])
    assert counts([before], [before], rows=5) == [{"name": "y", "samples": 1, "choices": 1, "kept": 1}]
    assert counts([before[:4]], [before[:4]], rows=4) == []


def test_fewer_than_two_classes_are_no_choice() -> None:
    for score in (np.array([[3.0], [1.0]]), np.ones((2, 0))):
        assert counts([score], [-score], rows=2) == []


def test_samples_of_a_batch_count_as_those_of_runs_of_their_own() -> None:
    """The standard error is that of a mean over samples, however they are run."""
    before = np.random.default_rng(0).standard_normal((12, 5, 3))
    after = before.copy()
    after[:2], after[2:7, 0] = -before[:2], -before[2:7, 0]  # all choices of two samples change, one of five others
    alone = counts(list(before[:, None]), list(after[:, None]))
    assert 12 < alone[0]["effective"] < 60
    assert counts(list(before.reshape(3, 4, 5, 3)), list(after.reshape(3, 4, 5, 3)), rows=4) == alone


def test_what_is_nan_or_of_another_shape_is_not_kept() -> None:
    before = np.array([[0.0, 1], [1, 0]])
    assert counts([before], [np.array([[0.0, math.nan], [1, 0]])], rows=2)[0]["kept"] == 1
    assert counts([before], [before[:, :1]], rows=2)[0] == {"name": "y", "samples": 2, "choices": 2, "kept": 0}


def test_wilsons_interval_is_where_a_test_of_the_count_does_not_reject() -> None:
    """Its ends solve (p̂ − p)² = z² p (1 − p) / n."""
    z = 1.959964
    for kept, count in ((0, 10), (8, 10), (62, 64), (500, 500)):
        share = kept / count
        for end in wilson(share, count):
            assert (share - end) ** 2 == pytest.approx(z * z * end * (1 - end) / count, abs=1e-12)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_top_1_in_words() -> None:
    found = {"name": "y", "samples": 64, "choices": 64, "kept": 62}
    assert top1_text(found) == "62 of 64 choices, 96.9 % (95 % interval 89.3 to 99.1 %)"
    several = top1_text(found | {"samples": 1, "choices": 12_000, "kept": 11_999})
    assert several == "11,999 of 12,000 choices in 1 sample, 99.9 % (95 % interval 20.7 to 100 %)"
    several = top1_text(found | {"samples": 64, "choices": 640, "kept": 620, "effective": 320})
    assert several == "620 of 640 choices in 64 samples, 96.9 % (95 % interval 94.3 to 98.3 %)"
    assert [percent(share) for share in (0, 0.0047, 0.5, 0.99999, 1)] == ["0 %", "0.47 %", "50 %", "99.9 %", "100 %"]


def test_compress_and_verify_count_in_the_run_in_which_they_measure() -> None:
    folder = Path(__file__).parent.parent / "sample_models"
    model, data = Model.load(folder / "lstm.onnx"), riq.Calibration.load(folder / "calibration.npz")
    archive = riq.compress(model, data, deviation=0.05, allocation="norm", rounding="nearest")
    result = archive.manifest.result
    (every,), (held,) = result["top1"], result["holdout_top1"]
    assert (every["name"], every["choices"], held["choices"]) == ("logits", 64, 16)

    images = np.load(folder / "calibration.npz")["image"]
    before, after = (largest(one, images) for one in (model, riq.decompress(archive)))
    assert every["kept"] == sum(before == after)
    assert riq.verify(archive, model, data).top1 == [every]


def largest(model: Model, images: np.ndarray) -> np.ndarray:
    """The number of the largest output for each image."""
    session = onnxruntime.InferenceSession(model.to_bytes(), providers=["CPUExecutionProvider"])
    return np.array([session.run(None, {"image": image[None]})[0].argmax() for image in images])


def test_a_judgement_says_what_the_margin_added() -> None:
    """And nothing that a file may hold in its place breaks it."""
    loss = {"value": 0.021, "limit": 0.05, "holds": True, "loss_before": 0.5, "loss_after": 0.51}
    assert judgement(loss | {"margin": 1.65}, brief=True) == "loss 0.5 → 0.51 (+2.1 % with 1.65 standard errors ≤ 5 %)"
    assert judgement(loss, brief=True) == "loss 0.5 → 0.51 (+2.1 % ≤ 5 %)"
    kl = {"value": 0.02, "limit": 0.01, "holds": False, "kl": 0.015, "standard_error": 0.005, "margin": 1, "choices": 9}
    assert judgement(kl | {"tensor": "y"}) == (
        "KL divergence at y 0.015 ± 0.005 nats (0.02 with 1 standard error ABOVE 0.01), 9 choices"
    )
    one = {"value": 0.02, "limit": 0.1, "holds": True, "kl": 0.02, "standard_error": None, "choices": 1}
    assert judgement(one) == "KL divergence 0.02 nats (0.02 ≤ 0.1), 1 choice"
    for fact in ("text", None, True, -1e30):
        strange = {"value": None, "limit": None, "tensor": fact, "margin": fact, "choices": fact, "low": fact}
        assert judgement(strange | {"changed": fact}).startswith("top-1 at ")
        assert judgement(strange | {"kl": fact}).startswith("KL divergence at ")
