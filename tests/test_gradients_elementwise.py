"""Gradient rules of operations that work number by number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from gradients import NO_ATTRIBUTES, PROBES, RULES, Values, check, label, newer_kernels, positive, spaced

from riq_cli.model import Operation
from riq_cli.statistics.autodiff.arrays import unbroadcast, unbroadcast_product
from riq_cli.statistics.autodiff.rule import Gradients, NoRuleError

GRID = ("QuantizeLinear", "DequantizeLinear")
UNARY: list[tuple[str, Mapping[str, Any], int]] = [
    ("Neg", {}, 13), ("Abs", {}, 13), ("Exp", {}, 13), ("Erf", {}, 13), ("Tanh", {}, 13), ("Sin", {}, 7),
    ("Cos", {}, 7), ("Relu", {}, 14), ("LeakyRelu", {}, 16), ("LeakyRelu", {"alpha": 0.3}, 6), ("Elu", {}, 6),
    ("Elu", {"alpha": 0.4}, 6), ("Selu", {}, 6), ("Selu", {"alpha": 1.5, "gamma": 2.0}, 6), ("Celu", {}, 12),
    ("Celu", {"alpha": 0.6}, 12), ("ThresholdedRelu", {}, 10), ("ThresholdedRelu", {"alpha": 0.5}, 10),
    ("Sigmoid", {}, 13), ("HardSigmoid", {}, 6), ("HardSigmoid", {"alpha": 0.5, "beta": 0.4}, 6),
    ("HardSwish", {}, 14), ("Mish", {}, 18), ("Softplus", {}, 1), ("Softsign", {}, 1), ("Gelu", {}, 20),
    ("Gelu", {"approximate": "tanh"}, 20), ("com.microsoft:Gelu", {}, 17), ("com.microsoft:FastGelu", {}, 17),
    ("com.microsoft:QuickGelu", {}, 17), ("com.microsoft:QuickGelu", {"alpha": 1.1}, 17), ("Identity", {}, 16),
    ("Trilu", {}, 14), ("Trilu", {"upper": 0}, 14),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "attributes", "version"),
    [
        *UNARY,
        pytest.param("Swish", {}, 24, marks=newer_kernels),
        pytest.param("Swish", {"alpha": 1.3}, 24, marks=newer_kernels),
    ],
    ids=str,
)
def test_of_one_input(kind: str, attributes: Mapping[str, Any], version: int) -> None:
    check(kind, [spaced(6, 13)], attributes, version)


@pytest.mark.parametrize("kind", ["Sqrt", "Log", "Reciprocal"])
def test_of_one_positive_input(kind: str) -> None:
    check(kind, [positive(5, 7)], version=13)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((4, 5), (4, 5)), ((2, 3, 4), (4,)), ((4,), (2, 3, 4)), ((2, 3, 4), (3, 1)), ((2, 1, 4), (3, 1)), ((2, 3), ()),
        ((), (2, 3)), ((1, 3, 2, 2), (3, 1, 1)), ((), ()), ((2, 3), (1,)), ((1,), (1, 1)),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean"])
def test_of_two_inputs(kind: str, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    check(kind, [positive(*left), positive(*right, seed=1)], version=13)


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div", "Pow", "PRelu"])
@pytest.mark.parametrize("wanted", [0, 1])
def test_only_what_is_wanted(kind: str, wanted: int) -> None:
    check(kind, [positive(2, 3), positive(3, seed=1)], version=13, wanted=[wanted])


@pytest.mark.parametrize("kind", ["Min", "Max", "Sum", "Mean"])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_of_any_number_of_inputs(kind: str, count: int) -> None:
    shapes = [(2, 3, 4), (4,), (3, 1), (1, 1, 4)][:count]
    check(kind, [positive(*shape, seed=i) for i, shape in enumerate(shapes)], version=13)


OTHERS: list[tuple[str, Values, Mapping[str, Any], int]] = [
    ("Pow", [spaced(5, 5), np.array(2.0)], {}, 15),
    ("Pow", [spaced(5, 5), np.array(3, np.int64)], {}, 15),
    ("PRelu", [spaced(2, 3, 4), positive(3, 1)], {}, 16),
    ("PRelu", [spaced(2, 3, 4), positive(1)], {}, 9),
    ("PRelu", [spaced(2, 3, 4), positive(2, 3, 4)], {}, 16),
    ("Clip", [spaced(6, 7)], {"min": -1.0, "max": 0.8}, 6),
    ("Clip", [spaced(6, 7)], {}, 6),
    ("Clip", [spaced(6, 7), np.array(-1.0), np.array(0.8)], {}, 13),
    ("Clip", [spaced(6, 7), None, np.array(0.8)], {}, 13),
    ("Clip", [spaced(6, 7), np.array(0.0)], {}, 11),
    ("Where", [np.arange(12).reshape(3, 4) % 3 == 0, spaced(3, 4), spaced(4, seed=1)], {}, 16),
    ("Where", [np.array([[True], [False]]), np.array(0.5), spaced(1, 3)], {}, 9),
    ("Dropout", [spaced(3, 4)], {}, 13),
    ("Dropout", [spaced(3, 4)], {"ratio": 0.3}, 7),
    ("Cast", [spaced(3, 4)], {"to": onnx.TensorProto.DOUBLE}, 13),
    ("CastLike", [spaced(3, 4), np.zeros(1)], {}, 15),
    ("Trilu", [spaced(2, 3, 4), np.array(1, np.int64)], {"upper": 0}, 14),
    ("Trilu", [spaced(2, 3, 4), np.array(-1, np.int64)], {}, 14),
    ("com.microsoft:FastGelu", [spaced(2, 3, 4), spaced(4)], {}, 17),
    ("com.microsoft:BiasGelu", [spaced(2, 3, 4), spaced(4)], {}, 17),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "inputs", "attributes", "version"), OTHERS, ids=label)
def test_of_others(kind: str, inputs: Values, attributes: Mapping[str, Any], version: int) -> None:
    check(kind, inputs, attributes, version, wanted=[0] if kind in ("CastLike", "Pow") else None)


def test_the_mask_of_a_dropout_has_no_gradient() -> None:
    check("Dropout", [spaced(3, 4)], version=13, outputs=("y", "mask"))


# ---- Without a model ------------------------------------------------------------------------------------------------


def gradients(
    kind: str, *inputs: Any, attributes: Mapping[str, Any] = NO_ATTRIBUTES, gradient: Any = None, version: int = 17
) -> Gradients:
    """Of all inputs, from a gradient of ones."""
    values = [None if value is None else np.asarray(value) for value in inputs]
    if gradient is None:
        shapes = [value.shape for value in values if value is not None]
        gradient = np.ones((PROBES, *np.broadcast_shapes(*shapes)), np.float32)
    operation = Operation(kind, ("x",) * len(inputs), ("y",), attributes, version)
    return RULES[kind](operation, values, [gradient], [True] * len(inputs))


@pytest.mark.parametrize(
    ("kind", "values"),
    [("Sqrt", [0.0, 4.0]), ("Log", [0.0, 4.0]), ("Reciprocal", [0.0, -2.0]), ("Exp", [1e4, -1e4])],
)
def test_an_infinite_derivative_counts_as_zero(kind: str, values: list[float]) -> None:
    (found,) = gradients(kind, np.array(values, np.float32))
    assert found is not None
    assert np.isfinite(found).all()
    assert (found[:, 0] == 0).all()


@pytest.mark.parametrize("kind", sorted({kind for kind, _, _ in UNARY} - {"Trilu"}))
def test_numbers_beyond_all_bounds_do_not_matter(kind: str) -> None:
    (found,) = gradients(kind, np.array([-np.inf, np.inf, -3e38, 3e38, 1000, -1000], np.float32))
    assert found is not None
    assert np.isfinite(found).all()


def test_masks_beyond_single_precision_do_not_matter() -> None:
    mask = np.array([True, False])
    for found in gradients("Where", mask, np.full(2, -1e300), np.zeros(2))[1:]:
        assert found is not None
        np.testing.assert_array_equal(found.sum(), PROBES)
    for found in gradients("Add", np.full(2, -1e300), np.zeros(2)):
        np.testing.assert_array_equal(found, np.ones((PROBES, 2), np.float32))


def test_divisions_by_zero_and_powers_of_zero_count_as_constant() -> None:
    zero, one = np.zeros(2, np.float32), np.ones(2, np.float32)
    for kind, left, right in (
        ("Div", one, zero),
        ("Pow", zero, zero),
        ("Pow", zero, 0.5 * one),
        ("Pow", -one, 0.5 * one),
    ):
        for found in gradients(kind, left, right):
            assert found is not None
            assert (found == 0).all()


@pytest.mark.parametrize("kind", ["Max", "Min"])
def test_equals_share(kind: str) -> None:
    ones = np.ones(4, np.float32)
    for found in gradients(kind, ones, ones):
        np.testing.assert_array_equal(found, np.full((PROBES, 4), 0.5, np.float32))


@pytest.mark.parametrize("kind", ["Ceil", "Floor", "Round", "Sign"])
def test_what_is_constant_nearly_everywhere_has_none(kind: str) -> None:
    assert gradients(kind, np.ones(3, np.float32)) == [None]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_any_float_type_comes_out_in_single_precision(dtype: Any) -> None:
    x = spaced(3, 4).astype(dtype)
    for kind in ("Tanh", "Mul", "Pow", "Gelu", "Where"):
        inputs = [x] if kind in ("Tanh", "Gelu") else [x != 0, x, x] if kind == "Where" else [np.abs(x), np.abs(x)]
        alike = [value if value.dtype == bool else value.astype(np.float32) for value in inputs]
        for found, expected in zip(gradients(kind, *inputs), gradients(kind, *alike), strict=True):
            assert found is None or found.dtype == np.float32
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("dtype", "to", "passes"),
    [
        (np.float32, onnx.TensorProto.FLOAT16, True), (np.float16, onnx.TensorProto.FLOAT, True),
        (np.float32, onnx.TensorProto.BFLOAT16, True), (np.float32, onnx.TensorProto.INT64, False),
        (np.float32, onnx.TensorProto.BOOL, False), (np.int64, onnx.TensorProto.FLOAT, False),
    ],
)  # fmt: skip
def test_casts_to_and_from_integers_stop_gradients(dtype: Any, to: int, passes: bool) -> None:
    (found,) = gradients("Cast", np.ones(2, dtype), attributes={"to": to})
    assert (found is not None) == passes


def test_what_no_rule_knows_is_said() -> None:
    x = np.ones((2, 3), np.float32)
    with pytest.raises(NoRuleError, match="training"):
        gradients("Dropout", x, np.array(0.5), np.array(True))
    with pytest.raises(NoRuleError, match="axis"):
        gradients("Add", x, np.ones(2, np.float32), attributes={"axis": 0, "broadcast": 1}, gradient=x[None], version=6)
    with pytest.raises(NoRuleError, match="missing"):
        gradients("Add", x, None, gradient=x[None])


def test_without_broadcasting_nothing_is_copied() -> None:
    gradient = np.ones((PROBES, 2, 3), np.float32)
    assert unbroadcast(gradient, (2, 3)) is gradient
    np.testing.assert_array_equal(unbroadcast(gradient, (1, 3)), np.full((PROBES, 1, 3), 2))
    np.testing.assert_array_equal(unbroadcast(gradient, ()), np.full(PROBES, 6))
    np.testing.assert_array_equal(unbroadcast_product(gradient, gradient[0] * 2, (3,)), np.full((PROBES, 3), 4))


def test_gradients_go_straight_through_a_grid_but_for_what_is_clipped() -> None:
    """An int8 grid of steps 0.05 around 3 holds −6.55 … 6.2."""
    step, zero, ones = np.array(0.05, np.float32), np.array(3, np.int8), np.ones((1, 5), np.float32)
    x, symbols = np.array([-7, -6.55, 0.26, 6.2, 7], np.float32), np.array([-128, -128, 8, 127, 127], np.int8)
    entering, leaving = (Operation(kind, ("x", "s", "z"), ("y",), {}, 19) for kind in GRID)
    (back, *_) = RULES["QuantizeLinear"](entering, [x, step, zero], [ones], [True, False, False])
    np.testing.assert_allclose(back, [[0, 20, 20, 20, 0]], rtol=1e-6)
    (back, *_) = RULES["DequantizeLinear"](leaving, [symbols, step, zero], [ones], [True, False, False])
    np.testing.assert_array_equal(back, ones * step)


def test_a_grid_may_have_a_step_for_each_slice_of_an_axis_and_no_zero_point() -> None:
    steps, ones = np.array([0.5, 0.25], np.float32), np.ones((1, 3, 2), np.float32)
    x = np.array([[0, -1], [127.5, 1], [128, 63.75]], np.float32)  # without a zero point the grid is of uint8
    entering, leaving = (Operation(kind, ("x", "s"), ("y",), {"axis": -1}, 19) for kind in GRID)
    (back, *_) = RULES["QuantizeLinear"](entering, [x, steps], [ones], [True, False])
    np.testing.assert_array_equal(back, [[[2, 0], [2, 4], [0, 4]]])
    (back, *_) = RULES["DequantizeLinear"](leaving, [x.astype(np.uint8), steps], [ones], [True, False])
    np.testing.assert_array_equal(back, ones * steps)


@pytest.mark.parametrize("kind", GRID)
def test_a_grid_in_blocks_has_no_rule(kind: str) -> None:
    operation = Operation(kind, ("x", "s"), ("y",), {"block_size": 2}, 21)
    with pytest.raises(NoRuleError, match="blocks"):
        RULES[kind](operation, [np.ones((4, 2)), np.ones((2, 2))], [np.ones((1, 4, 2), np.float32)], [True, False])
