"""Gradient rules of sums, means, extremes and normalisations over axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from gradients import RULES, Values, check, integers, label, newer_kernels, positive, spaced

from riq_cli.model import Operation
from riq_cli.statistics.autodiff.rule import Gradients, NoRuleError

KINDS = sorted(kind for kind in RULES if kind.startswith("Reduce"))
NORMAL = spaced(2, 3, 8, step=0.07)
IMAGE = spaced(2, 6, 3, 2, step=0.05)


# ---- Reductions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "attributes", "version"),
    [
        (None, {}, 13), (None, {"keepdims": 0}, 11), (None, {"axes": [1]}, 13), (None, {"axes": [-1, 0]}, 12),
        (None, {"axes": [-2], "keepdims": 0}, 1), (None, {}, 18), (integers(1), {}, 18),
        (integers(0, -1), {"keepdims": 0}, 18), (integers(2), {"noop_with_empty_axes": 1}, 18),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_of_reductions(kind: str, axes: np.ndarray | None, attributes: Mapping[str, Any], version: int) -> None:
    if kind == "ReduceSum" and "axes" in attributes:
        version = 11  # it took them as an input before the others did
    check(kind, [positive(2, 3, 4), *([] if axes is None else [axes])], attributes, version)


@pytest.mark.parametrize("kind", ["ReduceL1", "ReduceL2", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceLogSumExp"])
def test_of_reductions_of_numbers_below_zero(kind: str) -> None:
    check(kind, [spaced(3, 5)], {"axes": [1]}, 13)


@newer_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_a_reduction_over_no_axes(kind: str) -> None:
    check(kind, [positive(3, 4)], {"noop_with_empty_axes": 1}, 18 if kind != "ReduceSum" else 13)


@pytest.mark.parametrize("kind", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 2, 3, 4), (1, 2, 3, 2, 2)], ids=str)
def test_of_global_pools(kind: str, shape: tuple[int, ...]) -> None:
    check(kind, [spaced(*shape)])


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_of_cumulative_sums(axis: int, exclusive: int, reverse: int) -> None:
    attributes = {"exclusive": exclusive, "reverse": reverse}
    check("CumSum", [spaced(2, 3, 4), np.array(axis, np.int64)], attributes, 14)


# ---- Softmax --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("attributes", [{}, {"axis": 0}, {"axis": 2}, {"axis": -1}, {"axis": -2}], ids=str)
@pytest.mark.parametrize("version", [1, 11, 13])
def test_of_softmax(kind: str, attributes: Mapping[str, Any], version: int) -> None:
    check(kind, [spaced(2, 3, 4)], attributes, version)


# ---- Normalisations -------------------------------------------------------------------------------------------------


def weights(*shape: int, seed: int = 5) -> np.ndarray:
    return positive(*shape, seed=seed)


NORMALISATIONS: list[tuple[str, Values, Mapping[str, Any], int]] = [
    ("LayerNormalization", [NORMAL, weights(8), weights(8)], {}, 17),
    ("LayerNormalization", [NORMAL, weights(8)], {"epsilon": 0.1}, 17),
    ("LayerNormalization", [NORMAL, weights(3, 8), weights(3, 8)], {"axis": 1}, 17),
    ("LayerNormalization", [NORMAL, weights(8), None], {"axis": 2}, 17),
    ("SimplifiedLayerNormalization", [NORMAL, weights(8)], {}, 17),
    ("SimplifiedLayerNormalization", [NORMAL, weights(8)], {"axis": -1, "epsilon": 0.1}, 17),
    ("InstanceNormalization", [IMAGE, weights(6), weights(6)], {}, 6),
    ("InstanceNormalization", [NORMAL, weights(3), weights(3)], {"epsilon": 0.1}, 6),
    ("GroupNormalization", [IMAGE, weights(3), weights(3)], {"num_groups": 3}, 18),
    ("GroupNormalization", [IMAGE, weights(6), weights(6)], {"num_groups": 3}, 21),
    ("GroupNormalization", [IMAGE, weights(6), weights(6)], {"num_groups": 1, "epsilon": 0.1}, 21),
    ("GroupNormalization", [NORMAL, weights(3), weights(3)], {"num_groups": 3}, 21),
    ("com.microsoft:SkipLayerNormalization", [NORMAL, NORMAL[::-1], weights(8)], {}, 17),
    ("com.microsoft:SkipLayerNormalization", [NORMAL, NORMAL[::-1], weights(8), weights(8)], {"epsilon": 0.1}, 17),
    ("com.microsoft:SkipLayerNormalization", [NORMAL, NORMAL[:1], weights(8), weights(8), weights(8)], {}, 17),
    ("com.microsoft:SkipLayerNormalization", [NORMAL, NORMAL[0], weights(8), None, weights(8)], {}, 17),
]  # fmt: skip
NEWER_NORMALISATIONS: list[tuple[str, Values, Mapping[str, Any], int]] = [
    ("RMSNormalization", [NORMAL, weights(8)], {}, 23),
    ("RMSNormalization", [NORMAL, weights(3, 8)], {"axis": 1, "epsilon": 0.1}, 23),
    ("com.microsoft:SkipSimplifiedLayerNormalization", [NORMAL, NORMAL[::-1], weights(8)], {}, 17),
    ("com.microsoft:SkipSimplifiedLayerNormalization", [NORMAL, NORMAL[::-1], weights(8), weights(8)], {}, 17),
]


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "version"),
    [*NORMALISATIONS, *(pytest.param(*each, marks=newer_kernels) for each in NEWER_NORMALISATIONS)],
    ids=label,
)
def test_of_normalisations(kind: str, inputs: Values, attributes: Mapping[str, Any], version: int) -> None:
    check(kind, inputs, attributes, version, single=kind == "GroupNormalization")  # its statistics are anyway


@pytest.mark.parametrize("wanted", [0, 1, 2])
@pytest.mark.parametrize("kind", ["LayerNormalization", "InstanceNormalization", "GroupNormalization"])
def test_only_what_is_wanted_of_a_normalisation(kind: str, wanted: int) -> None:
    length = 8 if kind == "LayerNormalization" else 3
    attributes = {"num_groups": 3} if kind == "GroupNormalization" else {}
    check(kind, [NORMAL, weights(length), weights(length)], attributes, 21, [wanted], single=kind[0] == "G")


def test_mean_and_deviation_have_no_gradient() -> None:
    inputs = [NORMAL, weights(8), weights(8)]
    check("LayerNormalization", inputs, outputs=("y", "mean", "deviation"), without=[1, 2])


@newer_kernels
@pytest.mark.parametrize("without", [(), (0,), (3,)], ids=str)
@pytest.mark.parametrize("kind", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_the_sum_before_a_normalisation_may_be_used_too(kind: str, without: tuple[int, ...]) -> None:
    inputs = [NORMAL, NORMAL[:1], *[weights(8)] * (3 if kind == "SkipLayerNormalization" else 2)]
    wanted = [0, 1, len(inputs) - 1] if 0 in without else None
    outputs = ("y", "", "", "sum")
    check(f"com.microsoft:{kind}", inputs, wanted=wanted, outputs=outputs, without=without)


# ---- Without a model ------------------------------------------------------------------------------------------------


def gradients(kind: str, x: Any, *others: np.ndarray, **attributes: Any) -> Gradients:
    """Of all inputs; the output's is one for each of its numbers, as many as x has."""
    inputs = [np.asarray(x, np.float32), *others]
    operation = Operation(kind, ("x",) * len(inputs), ("y",), attributes, 17)
    one = np.ones((1, *(inputs[0].shape if "oftmax" in kind else [1] * inputs[0].ndim)), np.float32)
    return RULES[kind](operation, inputs, [one], [True] * len(inputs))


@pytest.mark.parametrize(
    ("kind", "x", "expected"),
    [
        ("ReduceMax", [1, 3, 3], [0, 0.5, 0.5]), ("ReduceMin", [1, 1, 3], [0.5, 0.5, 0]), ("ReduceL2", [0, 0], [0, 0]),
        ("ReduceProd", [2, 0, 3], [0, 6, 0]), ("ReduceProd", [2, 0, 0], [0, 0, 0]),
        ("ReduceLogSumExp", [-np.inf, 5, 1000], [0, 0, 1]), ("ReduceL1", [-2, 0, 3], [-1, 0, 1]),
    ],
)  # fmt: skip
def test_of_odd_places(kind: str, x: list[float], expected: list[float]) -> None:
    np.testing.assert_array_equal(gradients(kind, x)[0], [np.float32(expected)])


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_what_is_masked_out_of_a_softmax_does_not_matter(kind: str) -> None:
    (found,) = gradients(kind, [-np.inf, 1, -3.4e38, 2])
    assert found is not None
    assert np.isfinite(found).all()


def test_what_no_rule_knows_is_said() -> None:
    one = np.ones((1, 2, 3), np.float32)
    operation = Operation("LayerNormalization", ("x", "s"), ("y", "m"), {}, 17)
    with pytest.raises(NoRuleError, match="LayerNormalization whose mean or deviation is used"):
        RULES[operation.kind](operation, [one[0], one[0, 0]], [None, one[..., :1]], [True, False])
