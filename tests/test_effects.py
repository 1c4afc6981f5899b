"""What errors of rows do to the outputs: second moments by hand, effects by dense Jacobians, bin widths by both."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Random, info, model, node, save, tensor, unknown

import riq_cli as riq
from riq_cli.entropy.codes import Codes
from riq_cli.model import Layer, Linear, Model, linear_layers
from riq_cli.model.linear_inputs import ProductInput
from riq_cli.model.linear_outputs import ProductOutput
from riq_cli.model.matrix import Arrangement
from riq_cli.pipeline.effects import _Collected, with_effects
from riq_cli.pipeline.plans import Plan
from riq_cli.pipeline.product_gradients import ProductGradients
from riq_cli.pipeline.weights import Weights
from riq_cli.quantize import Damping, Factor, column_codes, factorized
from riq_cli.runtime import Observer, Runtime
from riq_cli.statistics.autodiff import Effects, effects
from riq_cli.statistics.autodiff.backward import start

# ---- Effects --------------------------------------------------------------------------------------------------------


def some(count: int, groups: int, rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8, 9, (count, groups, rows)).astype(np.float32)


def added(*parts: np.ndarray, alone: bool = False) -> Effects:
    result = Effects(*parts[0].shape[1:], alone=alone)
    for part in parts:
        result.add(part)
    return result


def test_squares_and_moments_are_means_over_all() -> None:
    found = added(
        np.array([[[1, 2], [3, 0]], [[-1, 4], [0, 5]]], np.float32),
        np.array([[[3, 0], [3, 1]]], np.float32),
    )
    assert found.count == 3
    np.testing.assert_allclose(found.squares, [[11 / 3, 20 / 3], [6, 26 / 3]], rtol=1e-15)
    rows = np.arange(2)
    np.testing.assert_allclose(found.moments(0, rows), [[11 / 3, -2 / 3], [-2 / 3, 20 / 3]], rtol=1e-6)
    np.testing.assert_allclose(found.moments(1, rows), [[6, 1], [1, 26 / 3]], rtol=1e-6)
    np.testing.assert_allclose(found.moments(1, np.array([1])), [[26 / 3]], rtol=1e-6)


def test_moments_of_some_rows_are_a_part_of_all() -> None:
    x = some(500, 3, 12)
    found = added(*np.array_split(x, [7, 7, 300]))
    assert found.count == 500
    rows = np.array([1, 4, 9, 11])
    for group in range(3):
        whole = x[:, group].astype(float).T @ x[:, group] / 500
        np.testing.assert_allclose(found.moments(group, rows), whole[np.ix_(rows, rows)], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.squares[group], np.diag(whole), rtol=1e-12)


def test_without_any_they_are_zero() -> None:
    found = Effects(2, 3)
    assert found.count == 0
    np.testing.assert_array_equal(found.squares, np.zeros((2, 3)))
    np.testing.assert_array_equal(found.moments(1, np.arange(3)), np.zeros((3, 3)))
    found.add(np.zeros((4, 2, 3), np.float32))
    assert found.count == 4
    np.testing.assert_array_equal(found.moments(1, np.arange(3)), np.zeros((3, 3)))


def test_for_rows_alone_squares_are_the_same() -> None:
    x = some(40, 2, 5)
    alone = added(x[:30], x[30:], alone=True)
    np.testing.assert_array_equal(alone.squares, added(x).squares)
    assert alone.count == 40


def test_effects_that_are_not_finite_are_left_out() -> None:
    x = some(6, 2, 3)
    damaged = x.copy()
    damaged[1, 0, 2], damaged[4, 1, 0] = np.nan, -np.inf
    found, rest = added(damaged), added(x[[0, 2, 3, 5]])
    assert found.count == rest.count == 4
    np.testing.assert_array_equal(found.squares, rest.squares)
    np.testing.assert_array_equal(found.moments(1, np.arange(3)), rest.moments(1, np.arange(3)))
    assert added(np.full((2, 1, 3), np.nan, np.float32)).count == 0


@pytest.mark.parametrize(("rows", "most", "lengths"), [(12, 12, [12]), (12, 5, [4, 4, 4]), (7, 3, [2, 2, 3])])
def test_moments_are_kept_within_runs_of_rows(rows: int, most: int, lengths: list[int]) -> None:
    x = some(50, 2, rows)
    found = Effects(2, rows, most)
    found.add(x[:20])
    found.add(x[20:])
    assert [len(run) for _, run in found.runs] == lengths * 2
    assert [group for group, _ in found.runs] == [0] * len(lengths) + [1] * len(lengths)
    for group in range(2):
        runs = [run for number, run in found.runs if number == group]
        np.testing.assert_array_equal(np.concatenate(runs), np.arange(rows))
        for run in runs:
            part = x[:, group, run].astype(float)
            np.testing.assert_allclose(found.moments(group, run), part.T @ part / 50, rtol=1e-5, atol=1e-5)
    if len(lengths) > 1:
        with pytest.raises(ValueError, match="rows of no one run"):
            found.moments(0, np.arange(rows))


@pytest.mark.parametrize("scales", [(1e-25, 1.0), (1.0, 1e-25), (1e-10, 1e10), (0.0, 1e-30)])
def test_effects_of_different_samples_may_be_of_very_different_sizes(scales: tuple[float, float]) -> None:
    """What the first are like does not bound the others; beside the largest, the smallest may vanish."""
    parts = [some(30, 1, 4, seed) * np.float32(scale) for seed, scale in enumerate(scales)]
    found = added(*parts)
    expected = np.concatenate(parts)[:, 0].astype(float)
    expected = expected.T @ expected / 60
    np.testing.assert_allclose(found.moments(0, np.arange(4)) / expected.max(), expected / expected.max(), atol=1e-5)
    np.testing.assert_allclose(found.squares[0], np.diag(expected), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e15, 1e25])
def test_squares_may_be_beyond_single_precision(scale: float) -> None:
    x = some(50, 2, 4)
    found = added(x * np.float32(scale))
    expected = np.einsum("cgi,cgj->gij", x.astype(float), x.astype(float)) / 50
    factor = float(np.float32(scale)) ** 2
    for group in range(2):
        np.testing.assert_allclose(found.squares[group] / factor, np.diag(expected[group]), rtol=1e-5)
        np.testing.assert_allclose(found.moments(group, np.arange(4)) / factor, expected[group], rtol=1e-5, atol=1e-4)


# ---- effects --------------------------------------------------------------------------------------------------------

ONE_LAYER: dict[str, tuple[tuple[int, ...], tuple[int, ...], str, dict[str, Any]]] = {  # weight, x, names, attributes
    "MatMul": ((5, 4), (3, 5), "x w", {}),
    "MatMul on the left": ((4, 5), (2, 5, 3), "w x", {}),
    "MatMul of a stack": ((3, 5, 4), (2, 3, 6, 5), "x w", {}),
    "Gemm": ((4, 5), (5, 3), "x w", {"transA": 1, "transB": 1, "alpha": 0.5}),
    "Conv": ((4, 3, 3, 3), (2, 3, 6, 5), "x w", {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
    "Conv of groups": ((6, 2, 3), (2, 6, 8), "x w", {"group": 3}),
    "ConvTranspose": ((4, 3, 3), (1, 4, 5), "x w", {"strides": [2], "group": 2}),
}


@pytest.mark.parametrize("piece", [1, 60, 1 << 20])
@pytest.mark.parametrize("name", ONE_LAYER)
def test_an_effect_is_what_the_jacobian_makes_of_an_error(
    name: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every probe, error and row: ⟨gradient at y, y(W with the error in that row) − y(W)⟩, which is exact."""
    monkeypatch.setattr(importlib.import_module("riq_cli.statistics.autodiff.effects"), "_PIECE", piece)
    weight, x, names, attributes = ONE_LAYER[name]
    kind = name.split()[0]
    proto = model(
        [node(kind, names, "y", **attributes)], [info("x", *x)], [unknown("y")], [tensor("w", Random(0)(*weight))]
    )
    loaded = Model.load(save(proto, tmp_path))
    form, linear = linear_layers(loaded.session_form(), loaded.layers)
    ((entering, leaving),) = linear[0].products
    matrix = linear[0].matrix
    groups, rows, columns = matrix.shape
    random = np.random.default_rng(0)
    feed = {"x": random.standard_normal(x, np.float32)}

    def output(weights: np.ndarray) -> np.ndarray:
        run = Observer(form, [weights], [(feed, 1)], runtime=Runtime(threads=1)).runner(["y"])
        return run(0)["y"].astype(np.float64)

    values = loaded.layers[0].values
    y = output(values)
    gradients = start(y.astype(np.float32), 1, 3, random)
    errors = random.standard_normal((groups, columns, 2)).astype(np.float32)
    found = effects(entering, leaving, feed["x"], gradients, errors)
    assert (found.dtype, found.shape) == (np.float32, (3 * 2, groups, rows))
    expected = np.empty((3, 2, groups, rows))
    for number in range(2):
        for group in range(groups):
            for row in range(rows):
                alone = np.zeros(matrix.shape, np.float32)
                alone[group, row] = errors[group, :, number]
                moved = output(
                    np.ascontiguousarray(matrix.restore(alone, values.shape))
                )  # linear: it is all that moves
                expected[:, number, group, row] = (gradients * moved).reshape(3, -1).sum(axis=1)
    np.testing.assert_allclose(found, expected.reshape(6, groups, rows), rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_effects_of_half_precision_are_single() -> None:
    x, gradient = np.ones((3, 5), np.float16), np.ones((2, 3, 4), np.float32)
    errors = np.ones((1, 5, 2), np.float32)
    found = effects(ProductInput("x", transposed=False), ProductOutput(("y",), False), x, gradient, errors)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.full((4, 1, 4), 15, np.float32))


# ---- with_effects ---------------------------------------------------------------------------------------------------

HIDDEN = 64
WORDS = 40


def perceptron(unknown_end: bool = False) -> onnx.ModelProto:
    """The second half of the hidden units have no weights that lead out."""
    r = Random(0)
    out = r(HIDDEN, 16)
    out[HIDDEN // 2 :] = 0
    last = [node("Reshape", "z cube", "c"), node("Det", "c", "y")] if unknown_end else [node("Identity", "z", "y")]
    return model(
        [node("MatMul", "x w1", "a"), node("Relu", "a", "h"), node("MatMul", "h w2", "z"), *last],
        [info("x", "n", 32)],
        [unknown("y")],
        [tensor("w1", r(32, HIDDEN)), tensor("w2", out), tensor("cube", np.array([-1, 4, 4]))],
    )


def fitted(
    proto: onnx.ModelProto,
    folder: Path,
    plans: Mapping[str, Plan] | None = None,
    max_bits: int | None = None,
    exact: Collection[str] = (),
) -> tuple[dict[str, Plan], list[tuple[int, int]], Model]:
    """Plans by the names of layers, and the steps that were told."""
    loaded = Model.load(save(proto, folder))
    form, linear = linear_layers(loaded.session_form(), loaded.layers)
    random = np.random.default_rng(1)
    of_words = proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT64
    samples = [
        ({"x": random.integers(0, WORDS, (1, 5)) if of_words else random.standard_normal((1, 32), np.float32)}, 1)
        for _ in range(12)
    ]
    observer = Observer(form, [layer.values for layer in loaded.layers], samples, runtime=Runtime(threads=1))
    names = [layer.name for layer in loaded.layers]
    steps: list[tuple[int, int]] = []
    with ThreadPoolExecutor(1) as pool:
        found = with_effects(
            ProductGradients(
                Weights(loaded.layers, max_bits), form, observer, form.measured, [1] * 12, (range(6), range(6, 12))
            ),
            linear,
            {names.index(name): plan for name, plan in (plans or {}).items()},
            [None if name in exact else 0.1 for name in names],
            pool,
            lambda done, total: steps.append((done, total)),
        )
    return {names[number]: plan for number, plan in found.items()}, steps, loaded


def test_rows_that_lead_nowhere_get_wide_bins(tmp_path: Path) -> None:
    found, steps, _ = fitted(perceptron(), tmp_path)
    plan = found["w1"]
    assert plan.rows.shape == (1, HIDDEN)
    useful, useless = plan.rows[0, : HIDDEN // 2], plan.rows[0, HIDDEN // 2 :]
    assert useless.min() > useful.max() + 4, "by an octave at least"
    assert plan.importance is not None and plan.importance.shape == (1, HIDDEN)
    assert plan.importance[0, : HIDDEN // 2].min() > plan.importance[0, HIDDEN // 2 :].max()
    (codes,) = plan.scales
    assert codes.axes == (1,), "of the tensor, whose columns are the matrix' rows"
    np.testing.assert_array_equal(codes.values, plan.rows[0])
    assert sorted(row for spread in plan.spreads for row in spread.rows.reshape(-1) if row >= 0) == list(range(HIDDEN))
    assert steps == [(done, 12) for done in range(1, 13)]


def test_so_do_those_of_a_table(tmp_path: Path) -> None:
    """Its rows are what all words have in common: places in what is looked up."""
    out = Random(0)(HIDDEN, 16)
    out[HIDDEN // 2 :] = 0
    proto = model(
        [node("Gather", "words x", "h"), node("MatMul", "h w2", "y")],
        [info("x", "n", "length", dtype=onnx.TensorProto.INT64)],
        [unknown("y")],
        [tensor("words", Random(1)(WORDS, HIDDEN)), tensor("w2", out)],
    )
    found, _, _ = fitted(proto, tmp_path)
    plan = found["words"]
    assert (plan.matrix.shape, plan.rows.shape, plan.factors) == ((1, HIDDEN, WORDS), (1, HIDDEN), ())
    assert plan.rows[0, HIDDEN // 2 :].min() > plan.rows[0, : HIDDEN // 2].max()
    assert plan.importance is not None
    assert plan.importance[0, : HIDDEN // 2].min() > 1.2 * plan.importance[0, HIDDEN // 2 :].max()
    assert [codes.axes for codes in plan.scales] == [(1,)]


def test_what_plans_said_stays(tmp_path: Path) -> None:
    """Compensation along rows is kept; a layer that is not told apart keeps its plan too."""
    _, _, loaded = fitted(perceptron(), tmp_path)
    (number,) = [number for number, layer in enumerate(loaded.layers) if layer.name == "w1"]
    _, linear = linear_layers(loaded.session_form(), loaded.layers)
    factor = Factor(0, 32, factorized(np.eye(32)[None] + 0.5, Damping(0.1)))
    plan = replace(Plan.of(linear[number].matrix), factors=(factor,))
    found, _, _ = fitted(perceptron(), tmp_path, {"w1": plan})
    assert found["w1"].factors == (factor,)
    assert found["w1"].rows[0, HIDDEN // 2 :].min() > found["w1"].rows[0, : HIDDEN // 2].max()
    kept, _, _ = fitted(perceptron(unknown_end=True), tmp_path, {"w1": plan})
    assert kept == {"w1": plan}


def test_nothing_is_told_apart_before_an_operation_without_a_rule(tmp_path: Path) -> None:
    assert fitted(perceptron(unknown_end=True), tmp_path)[0] == {}


def test_a_layer_one_of_whose_products_is_not_known_is_not_told_apart(tmp_path: Path) -> None:
    proto = model(
        [
            node("MatMul", "x w", "a"),
            node("MatMul", "a v", "b"),
            node("Tanh", "x", "t"),
            node("MatMul", "t w", "c"),
            node("Reshape", "c cube", "d"),
            node("Det", "d", "e"),
            node("ReduceSum", "e", "f", keepdims=0),
            node("Mul", "b scale", "g"),
            node("Add", "g f", "y"),
        ],
        [info("x", "n", 32)],
        [unknown("y")],
        [
            tensor("w", Random(0)(32, 64)),
            tensor("v", Random(1)(64, 32)),
            tensor("scale", np.geomspace(1, 100, 32).astype(np.float32)),
            tensor("cube", np.array([-1, 8, 8])),
        ],
    )
    assert fitted(proto, tmp_path)[0].keys() == {"v"}


def test_with_a_bound_on_levels_no_layer_is_parted(tmp_path: Path) -> None:
    found, steps, _ = fitted(perceptron(), tmp_path, max_bits=8)
    assert (found, steps) == ({}, [])


def test_layers_that_stay_exact_are_left_alone(tmp_path: Path) -> None:
    assert fitted(perceptron(), tmp_path)[0].keys() == {"w1", "w2"}
    assert fitted(perceptron(), tmp_path, exact=("w1",))[0].keys() == {"w2"}


@pytest.mark.parametrize("products", [1, 2])
def test_effects_of_a_layer_are_those_of_all_its_products(products: int, tmp_path: Path) -> None:
    """Errors of a shared layer's row act at both places at once, and the outputs move by both together."""
    inner = [node("MatMul", "x w", "a"), node("Tanh", "a", "b")]
    proto = model(
        [*inner, node("MatMul", "b w", "y")] if products == 2 else [*inner, node("Sin", "b", "y")],
        [info("x", 3, 12)],
        [unknown("y")],
        [tensor("w", Random(0)(12, 12))],
    )
    loaded = Model.load(save(proto, tmp_path))
    form, linear = linear_layers(loaded.session_form(), loaded.layers)
    assert len(linear[0].products) == products
    random = np.random.default_rng(1)
    samples = [({"x": random.standard_normal((3, 12), np.float32)}, 3) for _ in range(2)]
    values = loaded.layers[0].values
    observer = Observer(form, [values], samples, runtime=Runtime(threads=1))
    collected = _Collected(linear, {}, (1,), 1024, 128)
    gradients = ProductGradients(Weights(loaded.layers), form, observer, form.measured, [3, 3], (range(1), range(1, 2)))
    assert gradients.run(linear, collected.found, lambda *_: None) == {0}
    step, rows = 1e-2, (0, 7)
    for run, half in enumerate(collected.halves[0]):
        errors = collected._errors[0][0, :, run * 16 : run * 16 + 16]
        assert half.count == 16 * errors.shape[1]
        vectors = np.random.default_rng((0, run)).standard_normal((16, 3, 12))
        for row in rows:
            total = 0.0
            for error in errors.T:
                change = np.zeros((1, 12, 12), np.float32)
                change[0, row] = step * error
                moved = linear[0].matrix.restore(change, values.shape)
                there, back = (
                    Observer(form, [values + way * moved], samples[run : run + 1], runtime=Runtime(threads=1)).runner(
                        ["y"]
                    )(0)["y"]
                    for way in (1, -1)
                )
                turned = [y / np.linalg.norm(y.astype(float), axis=1, keepdims=True) for y in (there, back)]
                total += float(np.sum(np.einsum("prn,rn->p", vectors, turned[0] - turned[1]) ** 2)) / (2 * step) ** 2
            np.testing.assert_allclose(half.squares[0, row], total / half.count, rtol=1e-2)


@pytest.mark.parametrize("equal", [False, True])
def test_errors_are_drawn_as_compensation_leaves_them(equal: bool) -> None:
    """Their second moments are those of what rounding did to many rows, but for a factor, at any bin widths."""
    random = np.random.default_rng(0)
    base = random.standard_normal((6, 6)) * [1, 2, 3, 0.3, 1, 0.5]
    moments = (base @ base.T)[None]
    factors = tuple(Factor(b, e, factorized(moments[:, b:e, b:e], Damping(0.01))) for b, e in ((0, 4), (4, 6)))
    codes = np.zeros((1, 6), np.int32) if equal else column_codes(factors, np.ones((1, 6), np.bool_))
    matrix = Arrangement.of((5000, 6)).matrix((), (0,), (1,))
    weights = random.standard_normal((5000, 6)).astype(np.float32)
    plan = replace(Plan.of(matrix), factors=factors, columns=codes, scales=() if equal else (Codes((1,), codes[0]),))
    layer = Layer("w", "MatMul", ("graph.initializer[0]",), "float32", weights.shape, weights)
    rounded = plan.rounded(layer, 0.05)[0].restored("float32", weights.shape).reshape(weights.shape)
    drawn = _Collected._drawn(Linear(matrix, ()), plan, 0, 20000)[0].astype(float)
    left = rounded.astype(float) - weights
    found, expected = drawn @ drawn.T, left.T @ left
    np.testing.assert_allclose(
        found / np.trace(found),
        expected / np.trace(expected),
        atol=0.03 * np.max(np.diag(expected)) / np.trace(expected),
    )
    np.testing.assert_allclose(np.diag(found) / np.trace(found), np.diag(expected) / np.trace(expected), rtol=0.1)


# ---- compress -------------------------------------------------------------------------------------------------------


def phases(calibration: riq.Calibration, folder: Path, **options: Any) -> tuple[riq.Archive, set[str]]:
    steps: list[str] = []
    loaded = Model.load(save(perceptron(), folder))
    archive = riq.compress(
        loaded, calibration, deviation=0.01, progress=lambda step: steps.append(step.phase), **options
    )
    return archive, set(steps)


def test_samples_tell_rows_apart_and_random_ones_do_not(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    real = riq.Calibration.from_feeds([{"x": random.standard_normal((1, 32), np.float32)} for _ in range(16)])
    archive, seen = phases(real, tmp_path, rounding="compensated")
    assert "gradients" in seen
    assert max(archive.manifest.result["deviation"], archive.manifest.result["holdout"]) <= 0.01
    (scales,) = [entry.scales for entry in archive.manifest.layers if entry.name == "w1"]
    assert (1,) in [scale.axes for scale in scales]
    restored = riq.decompress(archive).layers[0].values
    errors = np.square(restored - Model.load(save(perceptron(), tmp_path)).layers[0].values).mean(axis=0)
    assert errors[HIDDEN // 2 :].mean() > 4 * errors[: HIDDEN // 2].mean()

    assert "gradients" not in phases(riq.Calibration.random(), tmp_path)[1]
    assert "gradients" not in phases(real, tmp_path, rounding="nearest")[1]


def test_variations_that_a_model_does_not_take_cost_what_they_would_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A place is marked, and what is looked up there is beyond the table where it is any but the last."""
    proto = model(
        [
            node("MatMul", "marked places", "place"), node("Cast", "place", "index", to=onnx.TensorProto.INT64),
            node("Gather", "table index", "found"), node("MatMul", "x w1", "a"), node("Tanh", "a", "h"),
            node("Add", "h found", "g"), node("MatMul", "g w2", "y"),
        ],
        [info("x", 1, 32), info("marked", 1, 5)],
        [unknown("y")],
        [
            tensor("places", np.array([900, 700, 500, 300, 1], np.float32)), tensor("table", Random(1)(3, HIDDEN)),
            tensor("w1", Random(2)(32, HIDDEN)), tensor("w2", Random(3)(HIDDEN, 48)),
        ],
    )  # fmt: skip
    random = np.random.default_rng(0)
    mixed, marked = random.standard_normal((32, 32)), np.array([[0, 0, 0, 0, 1]], np.float32)
    feeds = [{"x": (random.standard_normal((1, 32)) @ mixed).astype(np.float32), "marked": marked} for _ in range(24)]
    loaded, calibration = Model.load(save(proto, tmp_path)), riq.Calibration.from_feeds(feeds)
    warnings: list[str] = []
    archive = riq.compress(loaded, calibration, deviation=0.01, warn=warnings.append)
    assert archive.manifest.result["rounding"].startswith("compensated")
    assert not warnings
    archive.save(tmp_path / "varied.riqz")
    monkeypatch.setattr("riq_cli.pipeline.compression.augmented", lambda _: [])
    riq.compress(loaded, calibration, deviation=0.01).save(tmp_path / "plain.riqz")
    assert (tmp_path / "varied.riqz").read_bytes() == (tmp_path / "plain.riqz").read_bytes()
