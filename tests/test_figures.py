"""Figures that mean something to users: relative errors, and how often the top-1 of an output stays."""

import math

import numpy as np
import pytest

from riq_cli.report import with_relative_errors
from riq_cli.runtime import cosine_distance
from riq_cli.text import deviation_text, relative_error


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
    found = with_relative_errors(result)
    assert found["relative_error"] == found["measured"][0]["relative_error"] == pytest.approx(0.2)
    assert found["relative_error_standard_error"] == pytest.approx(0.005)
    assert (found["holdout_relative_error"], found["holdout_relative_error_standard_error"]) == (0.1, None)
    assert found.items() >= {key: result[key] for key in ("deviation", "holdout", "k")}.items()
    assert with_relative_errors({}) == {}
