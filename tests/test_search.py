"""Searching k: Algorithm 1 to the letter, bisection and a budget of bits, and the root of a rough deviation."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from riq_cli.errors import TargetError
from riq_cli.pipeline.root import root
from riq_cli.pipeline.search import (
    K_UNBOUNDED,
    Found,
    Measure,
    algorithm1,
    bisection,
    climb,
    largest,
    lower_bound,
    upper_bound,
)

Floats = NDArray[np.float64]

LIMIT = 0.01


class Curve:
    """deviation(k) = (a/k + b)², the shape of Proposition 1 and eq. (7); remembers what was measured."""

    def __init__(self, a: float, b: float = 0.0) -> None:
        self.a, self.b = a, b
        self.measured: dict[float, float] = {}

    def __call__(self, k: float) -> float:
        self.measured[k] = min(1.0, (self.a / k + self.b) ** 2)
        return self.measured[k]

    def root(self, limit: float) -> float:
        return self.a / (math.sqrt(limit) - self.b)


def test_bounds_are_those_of_proposition_2() -> None:
    assert upper_bound(2400, 0.01) == pytest.approx(10 * 1000)
    assert lower_bound(2400, 0.01) == pytest.approx(10 / 0.99)
    assert upper_bound(2400, 0) == K_UNBOUNDED == 2**31


# ---- Algorithm 1 ----------------------------------------------------------------------------------------------------


def test_algorithm_1_follows_the_listing_step_by_step() -> None:
    curve = Curve(a=100)
    found = algorithm1(curve, 0.01, 10, 10010)
    # step = √10000 = 100 from 10: 10, 110 … 1010 holds; then steps of 10 from 1010 − 100 + 10, then √10 …
    expected = [10.0 + 100 * i for i in range(11)] + [920.0 + 10 * i for i in range(9)]
    assert list(curve.measured)[: len(expected)] == pytest.approx(expected)
    assert found.value == curve.measured[found.k] <= 0.01
    assert found.k == pytest.approx(1000, abs=4)


def test_algorithm_1_returns_the_last_success_where_the_steps_pass_over_it() -> None:
    values = iter([1.0, 0.0])
    found = algorithm1(lambda k: next(values, 1.0), 0.01, 10, 110)
    assert (found.k, found.value) == (20.0, 0.0)


def test_algorithm_1_reports_the_best_of_an_unreachable_target() -> None:
    with pytest.raises(TargetError) as error:
        algorithm1(Curve(a=10, b=0.2), 0.01, 10, 10000)
    assert 0.04 < error.value.best < 0.0405


# ---- bisection ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.0, 0.01])
@pytest.mark.parametrize("a", [30.0, 700.0])
def test_bisection_finds_the_k_of_algorithm_1_within_a_rung_in_fewer_evaluations(a: float, epsilon: float) -> None:
    curve, n = Curve(a, b=0.03 if epsilon else 0.0), 100_000
    low, high = lower_bound(n, epsilon), upper_bound(n, epsilon)
    found = bisection(curve, 0.01, low, high)
    assert found.value == curve.measured[found.k] <= 0.01
    assert 1 <= found.k / max(curve.root(0.01), low) <= 2 ** (1 / 64) + 1e-9
    assert len(curve.measured) <= 15
    assert found.k == pytest.approx(algorithm1(Curve(a, curve.b), 0.01, low, min(high, 1e6)).k, rel=0.012, abs=8)


def search(measure: Measure, limit: float, lowest: float, highest: float, start: float | None) -> Found:
    """By bisection, or from a start."""
    if start is None:
        return bisection(measure, limit, lowest, highest)
    return climb(measure, limit, lowest, highest, start)


@given(a=st.floats(1, 1e6), octaves=st.floats(-12, 12))
def test_any_start_finds_it_in_two_evaluations_more_for_each_octave_away(a: float, octaves: float) -> None:
    curve, whole = Curve(a), Curve(a)
    found = climb(curve, 0.01, 1e-3, K_UNBOUNDED, max(curve.root(0.01) * 2**octaves, 1e-3))
    assert found.value == curve.measured[found.k] <= 0.01
    assert found.k == bisection(whole, 0.01, 1e-3, K_UNBOUNDED).k
    assert len(curve.measured) <= 2 * abs(octaves) + 14


@given(
    seed=st.integers(0, 2**32),
    floor=st.floats(0, 0.01),
    limits=st.lists(st.floats(1e-6, 1), min_size=2, max_size=9),
    start=st.none() | st.floats(10, 1e6),
)
def test_a_larger_limit_never_ends_at_a_larger_k(
    seed: int, floor: float, limits: list[float], start: float | None
) -> None:
    """However rough it is: each k has luck of its own, and none may do better than a floor. Any start returns one."""
    measured: dict[float, float] = {}

    def measure(k: float) -> float:
        luck = random.Random(f"{seed} {k}").uniform(-1, 1)
        measured[k] = floor + 900 / k**2 * math.exp(luck)
        return measured[k]

    ends = []
    for limit in sorted(limits):
        measured.clear()
        try:
            found = search(measure, limit, 10, 1e6, start)
        except TargetError as error:
            assert error.best == min(measured.values()) > limit
            ends.append(math.inf)
        else:
            assert found.value == measured[found.k] <= limit
            ends.append(found.k)
    assert start is not None or ends == sorted(ends, reverse=True)


def test_bisection_stays_between_its_ends_and_survives_infinite_values() -> None:
    for start in (None, 20, 5000):
        curve = Curve(a=1e-9)
        assert search(curve, 0.01, 20, K_UNBOUNDED, start).k == min(curve.measured) == 20
    for start in (None, 10, 200, 1000):
        assert search(lambda k: 0.001 if k == 1000 else math.inf, 0.01, 10, 1000, start).k == 1000
        assert 900 < search(lambda k: math.inf if k < 900 else 0.001, 0.01, 10, 1000, start).k < 910


@pytest.mark.parametrize("begin", [102, 105, 108, 111])
def test_bisection_looks_below_a_rung_that_fails_by_luck(begin: int) -> None:
    found = bisection(lambda k: 1.4e-4 if begin < k < begin + 6 else (1 / k) ** 2, 1e-4, 50, 1e5)
    assert found.k == pytest.approx(100, rel=0.012)


# ---- a budget of bits -----------------------------------------------------------------------------------------------


@given(
    weights=st.integers(100, 10**8),
    per_weight=st.floats(1, 12),
    slope=st.floats(0.7, 1.3),
    start=st.floats(10, 1e6),
)
def test_the_largest_k_within_a_budget_is_found_in_few_trials(
    weights: int, per_weight: float, slope: float, start: float
) -> None:
    """Bits are about weights · log₂ k, next to nothing where all symbols are 0."""
    tried: list[float] = []

    def bits(k: float) -> float:
        tried.append(k)
        return 500 + weights * slope * math.log2(1 + k / 100)

    budget = 500 + weights * per_weight
    k = largest(bits, budget, weights, start, 1e-3)
    assert k in tried and bits(k) <= budget
    assert k == pytest.approx(100 * (2 ** (per_weight / slope) - 1), rel=0.01)
    assert len(tried) <= 21


def test_a_budget_that_nothing_keeps_gives_the_lowest_and_one_that_all_keep_the_largest() -> None:
    assert largest(lambda k: 1000 + k, 900, 100, 5.0, 0.01) == 0.01
    assert largest(lambda k: 0.0, 900, 100, 5.0, 0.01) == K_UNBOUNDED


# ---- the root of a rough deviation ----------------------------------------------------------------------------------


class Rough:
    """Deviations of samples c/k^slope, each k with a luck of its own, a factor of log-normal distribution."""

    def __init__(
        self,
        samples: tuple[float, ...] = (1.0,),
        slope: float = 2.0,
        place: float = 100.0,
        luck: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.samples, self.slope, self.place, self.luck, self.seed = np.array(samples), slope, place, luck, seed
        self.measured: list[float] = []

    def __call__(self, k: float) -> Floats:
        self.measured.append(k)
        normal = np.random.default_rng((self.seed, int(k * 1000))).normal()
        return np.asarray(LIMIT * (self.place / k) ** self.slope * math.exp(self.luck * normal) * self.samples)

    def first(self, k: float) -> float:
        return float(self(k)[0])


@given(place=st.floats(1.0, 1e5), slope=st.floats(1.0, 4.0), start=st.floats(0.1, 1e6), samples=st.integers(1, 5))
def test_where_nothing_is_luck_few_measurements_find_the_root(
    place: float, slope: float, start: float, samples: int
) -> None:
    measure = Rough((1.0,) * samples, slope, place)
    assert root(measure, LIMIT, start, 1e-3, 1e9, margin=2.0) == pytest.approx(place, rel=0.08)
    assert len(measure.measured) <= 20


@pytest.mark.parametrize(("most", "measured"), [(6, 3), (2, 2)])
def test_so_many_measurements_do_where_the_first_guess_was_right(most: int, measured: int) -> None:
    measure = Rough()
    assert root(measure, LIMIT, 101.0, 1e-3, 1e9, most=most) == pytest.approx(100, rel=1e-3)
    assert len(measure.measured) == measured


def test_luck_averages_out_where_the_smallest_k_that_holds_is_a_lucky_one() -> None:
    found, lucky = [], []
    for seed in range(200):
        measure = Rough(luck=0.25, seed=seed)
        found.append(math.log(root(measure, LIMIT, 150.0, 1e-3, 1e9) / 100))
        assert len(measure.measured) <= 12
        lucky.append(math.log(bisection(measure.first, LIMIT, 1e-3, 1e9).k / 100))
    assert abs(np.mean(found)) < 0.02
    assert np.std(found) < 0.07  # single measurements: 0.25 / slope
    assert np.mean(lucky) < -0.02 and np.std(lucky) > 1.5 * np.std(found)


def test_the_margin_is_the_standard_error_of_what_samples_have_in_common() -> None:
    samples = (0.5, 1.0, 1.5, 1.0)
    error = np.std(samples, ddof=1) / 2  # relative: their mean is 1
    for margin in (0.0, 0.5, 2.0):
        found = root(Rough(samples=samples), LIMIT, 80.0, 1e-3, 1e9, margin=margin)
        assert found == pytest.approx(100 * math.sqrt(1 + margin * error), rel=0.002)
    assert root(Rough(), LIMIT, 80.0, 1e-3, 1e9, margin=5.0) == pytest.approx(100, rel=1e-3)  # of one there is none


def after_infinite_ones(k: float) -> Floats:
    """Broken, then smooth, then next to nothing."""
    if k < 50:
        return np.array([math.inf, math.nan])
    return np.zeros(2) if k > 400 else np.full(2, LIMIT * (200 / k) ** 2)


def left_out_below_200(k: float) -> Floats:
    """A sample that is left out at some k, as where the mean is largest at a tensor that tells nothing of it."""
    return LIMIT * (200 / k) ** 2 * np.array([0.9, 1.1, math.nan if k < 200 else 1.0, 1.0])


@pytest.mark.parametrize(
    ("measure", "place"),
    [
        (after_infinite_ones, 200),
        (left_out_below_200, 200),
        (lambda k: np.array([0.0 if k > 77 else 1.0]), 77),  # a cliff
    ],
)
def test_the_root_is_found_of_deviations_that_are_no_line(measure: Callable[[float], Floats], place: float) -> None:
    for start, margin in itertools.product((1.0, 1e5, 210.0), (0.0, 0.25)):
        measured: list[float] = []

        def noted(k: float, measured: list[float] = measured) -> Floats:
            measured.append(k)
            return measure(k)

        assert root(noted, LIMIT, start, 1e-3, 1e9, margin) == pytest.approx(place, rel=0.15)
        assert len(measured) <= 20


@pytest.mark.parametrize("start", [100.0, 1e4])
def test_where_all_hold_it_is_the_lowest_and_where_none_does_the_best_is_told(start: float) -> None:
    assert root(Rough(), LIMIT, start, 300.0, 1e9) == 300.0
    assert root(lambda k: np.full(4, LIMIT / 90), LIMIT, start, 1e-3, 1e9, margin=0.5) == 1e-3
    with pytest.raises(TargetError) as error:
        root(lambda k: np.array([0.03, 0.05]) + 1 / k**2, LIMIT, start, 1e-3, 1e5)
    assert error.value.best == pytest.approx(0.04)
