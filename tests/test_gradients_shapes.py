"""Gradient rules of operations that move numbers without changing them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from gradients import RULES, Values, check, integers, label, spaced

from riq_cli.model import Operation
from riq_cli.statistics.autodiff.rule import NoRuleError
from riq_cli.statistics.autodiff.shapes import scatter

FAR = 2**63 - 1
X = spaced(2, 3, 4)
IMAGE = spaced(2, 8, 2, 4)

USAGES: list[tuple[str, Values, Mapping[str, Any], int]] = [
    ("Reshape", [X, integers(4, -1)], {}, 14),
    ("Reshape", [X, integers(0, 12)], {}, 13),
    ("Flatten", [X], {}, 13),
    ("Flatten", [X], {"axis": 2}, 9),
    ("Flatten", [X], {"axis": 0}, 9),
    ("Squeeze", [spaced(1, 3, 1)], {"axes": [0]}, 11),
    ("Squeeze", [spaced(1, 3, 1), integers(-1)], {}, 13),
    ("Squeeze", [spaced(1, 3, 1)], {}, 13),
    ("Unsqueeze", [X], {"axes": [0, 4]}, 11),
    ("Unsqueeze", [X, integers(-1)], {}, 13),
    ("Transpose", [X], {}, 13),
    ("Transpose", [X], {"perm": [2, 0, 1]}, 13),
    ("Transpose", [X], {"perm": [1, 2, 0]}, 1),
    ("Expand", [spaced(3, 1), integers(2, 1, 4)], {}, 13),
    ("Expand", [spaced(2, 3, 4), integers(4)], {}, 8),
    ("Tile", [X, integers(2, 1, 3)], {}, 13),
    ("Tile", [spaced(3), integers(4)], {}, 6),
    ("Concat", [X, spaced(2, 1, 4), spaced(2, 5, 4)], {"axis": 1}, 13),
    ("Concat", [X, spaced(2, 3, 2)], {"axis": -1}, 11),
    ("Concat", [X], {"axis": 0}, 4),
    ("Slice", [X], {"starts": [1, 0], "ends": [2, -1], "axes": [1, 2]}, 9),
    ("Slice", [X], {"starts": [0, 1], "ends": [FAR, 3]}, 1),
    ("Slice", [X, integers(1), integers(FAR)], {}, 10),
    ("Slice", [X, integers(-2, 0), integers(9, 4), integers(-2, 2), integers(1, 2)], {}, 13),
    ("Slice", [X, integers(-1), integers(-FAR), integers(2), integers(-1)], {}, 13),
    ("Slice", [X, integers(9, -2), integers(0, -9), integers(2, 1), integers(-2, -1)], {}, 13),
    ("Slice", [X, integers(-9), integers(-FAR), integers(2), integers(-1)], {}, 13),
    ("Slice", [X, np.array([1], np.int32), np.array([3], np.int32), np.array([2], np.int32)], {}, 13),
    ("Gather", [X, integers(2, 0, 2, -1, 2)], {"axis": 1}, 13),
    ("Gather", [X, integers(3, -4)], {"axis": -1}, 11),
    ("Gather", [X, np.array(1, np.int64)], {}, 13),
    ("Gather", [spaced(7, 3), np.array([[0, 6, 0], [5, -1, 0]], np.int32)], {}, 1),
    ("Gather", [spaced(7), integers(3, 3, 1)], {}, 13),
    ("GatherElements", [X, np.array([[[0, 2, 0, -1]], [[1, 1, 1, 1]]])], {"axis": 1}, 13),
    ("GatherElements", [spaced(3, 4), np.array([[3, 3, -4, 0, 3], [1, 1, 1, 1, 1]])], {"axis": -1}, 11),
    ("GatherElements", [spaced(3), integers(2, 0)], {}, 11),
    ("GatherND", [X, np.array([[0, 1], [1, -1], [0, 1]])], {}, 13),
    ("GatherND", [X, np.array([[[0, 1, 2]], [[1, 2, -1]]])], {}, 12),
    ("GatherND", [X, np.array([[2], [-3]])], {"batch_dims": 1}, 13),
    ("GatherND", [X, np.array([[[[3], [0]]] * 3] * 2)], {"batch_dims": 2}, 13),
    ("DepthToSpace", [IMAGE], {"blocksize": 2}, 1),
    ("DepthToSpace", [IMAGE], {"blocksize": 2, "mode": "DCR"}, 13),
    ("DepthToSpace", [IMAGE], {"blocksize": 2, "mode": "CRD"}, 11),
    ("SpaceToDepth", [IMAGE], {"blocksize": 2}, 13),
    ("Pad", [X], {"pads": [0, 1, 2, 0, 0, 1]}, 2),
    ("Pad", [X], {"pads": [0, 1, 2, 0, 1, 1], "mode": "reflect"}, 2),
    ("Pad", [X], {"pads": [0, 1, 2, 1, 0, 1], "mode": "edge", "value": 1.5}, 2),
    ("Pad", [X], {"pads": [0, -1, 2, 0, 0, -2]}, 2),
    ("Pad", [X, integers(0, 1, 2, 0, 0, 1)], {}, 11),
    ("Pad", [X, integers(0, 1, -1, 1, -1, 1), np.array(0.7)], {}, 13),
    ("Pad", [X, integers(0, 2, 3, 0, 1, 2)], {"mode": "reflect"}, 13),
    ("Pad", [X, integers(3, 2, 0, 0, 4, 2)], {"mode": "edge"}, 13),
    ("Pad", [X, integers(1, 2), np.array(0.7), integers(-1)], {}, 18),
    ("Pad", [X, integers(1, 0, 2, 3), None, integers(2, 0)], {"mode": "edge"}, 18),
    ("Pad", [X, integers(0, 2, 3, 0, 1, 2)], {"mode": "wrap"}, 19),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "inputs", "attributes", "version"), USAGES, ids=label)
def test_of_one_output(kind: str, inputs: Values, attributes: Mapping[str, Any], version: int) -> None:
    check(kind, inputs, attributes, version)


def test_only_the_wanted_ones_of_a_concatenation() -> None:
    check("Concat", [X, X, X], {"axis": 1}, 13, wanted=[1])


@pytest.mark.parametrize("without", [(), (0,), (1, 2)], ids=str)
@pytest.mark.parametrize(
    ("inputs", "attributes", "version"),
    [
        ([spaced(2, 6)], {"axis": 1}, 11),
        ([spaced(2, 6)], {"axis": -1, "split": [1, 3, 2]}, 2),
        ([spaced(6, 2)], {}, 13),
        ([spaced(6, 2), integers(0, 4, 2)], {}, 13),
        ([spaced(2, 6)], {"axis": 1, "num_outputs": 3}, 18),
        ([spaced(2, 8)], {"axis": 1, "num_outputs": 3}, 18),
        ([spaced(2, 8), integers(5, 1, 2)], {"axis": 1}, 18),
    ],
    ids=label,
)
def test_of_a_split(inputs: Values, attributes: Mapping[str, Any], version: int, without: tuple[int, ...]) -> None:
    check("Split", inputs, attributes, version, outputs=("a", "b", "c"), without=without)


@pytest.mark.parametrize(
    ("inputs", "attributes", "version"),
    [
        ([X], {"k": 2}, 1),
        ([X], {"k": 2, "axis": 1}, 1),
        ([X, integers(3)], {}, 10),
        ([X, integers(2)], {"axis": 1, "largest": 0}, 11),
        ([X, integers(1)], {"axis": -2, "sorted": 0}, 11),
    ],
    ids=label,
)
def test_of_the_top_numbers(inputs: Values, attributes: Mapping[str, Any], version: int) -> None:
    check("TopK", inputs, attributes, version, outputs=("values", "indices"))


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("places", [[3, 0, 4], [2, 2, 0, 2], [1], []], ids=str)
def test_scattering_adds(places: list[int], after: int) -> None:
    gradient = np.random.default_rng(0).standard_normal((2, len(places), after), np.float32)
    expected = np.zeros((2, 5, after))
    for i, place in enumerate(places):
        expected[:, place] += gradient[:, i]
    found = scatter(gradient, np.array(places, np.intp), 5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"])
def test_what_is_arranged_otherwise_comes_back_as_a_view(kind: str) -> None:
    gradient = np.ones((2, 3, 4), np.float32)
    x = np.ones((4, 3) if kind == "Transpose" else (3, 4), np.float32)
    (found,) = RULES[kind](Operation(kind, ("x",), ("y",), {}, 17), [x], [gradient], [True])
    assert found is not None
    assert found.base is gradient


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "message"),
    [
        ("Tile", [X, integers(2), integers(1)], {}, "before opset 6"),
        ("TopK", [X, integers(4)], {"sorted": 0}, "in no order"),
        ("Pad", [X], {"pads": [0, 0, -1, 0, 0, 0], "mode": "edge"}, "edge with a negative"),
        ("Pad", [X], {}, "without pads"),
        ("Slice", [X], {}, "without starts"),
        ("Gather", [X, None], {}, "without indices"),
        ("Concat", [X, None], {}, "without one"),
    ],
    ids=label,
)
def test_what_no_rule_knows_is_said(kind: str, inputs: Values, attributes: Mapping[str, Any], message: str) -> None:
    operation = Operation(kind, ("x",) * len(inputs), ("y",), attributes, 17)
    with pytest.raises(NoRuleError, match=message):
        RULES[kind](operation, inputs, [np.ones((1, *X.shape), np.float32)], [True] * len(inputs))
