"""Searching k: Algorithm 1 to the letter, and the bisection that reaches about the same k in few evaluations."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from riq_cli.errors import TargetError
from riq_cli.pipeline.search import (
    K_UNBOUNDED,
    algorithm1,
    bisection,
    lower_bound,
    scan,
    upper_bound,
)


class Curve:
    """deviation(k) = (a/k + b)², the shape of Proposition 1 and eq. (7); remembers what was measured."""

    def __init__(self, a: float, b: float = 0.0, ripple: float = 0.0) -> None:
        self.a, self.b, self.ripple = a, b, ripple
        self.measured: dict[float, float] = {}

    def __call__(self, k: float) -> float:
        value = min(1.0, (self.a / k + self.b) ** 2) * (1 + self.ripple * math.sin(40 * math.log(k)))
        self.measured[k] = value
        return value

    def root(self, limit: float) -> float:
        return self.a / (math.sqrt(limit) - self.b)


def test_bounds_are_those_of_proposition_2() -> None:
    assert upper_bound(2400, 0.01) == pytest.approx(10 * 1000)
    assert lower_bound(2400, 0.01) == pytest.approx(10 / 0.99)
    assert upper_bound(2400, 0) == K_UNBOUNDED == 2**31


def test_algorithm_1_follows_the_listing_step_by_step() -> None:
    curve = Curve(a=100)
    found = algorithm1(curve, 0.01, 10, 10010)
    # step = √10000 = 100 from 10: 10, 110 … 1010 holds; then steps of 10 from 1010 − 100 + 10, then √10 …
    expected = [10.0 + 100 * i for i in range(11)] + [920.0 + 10 * i for i in range(9)]
    assert list(curve.measured)[: len(expected)] == pytest.approx(expected)
    assert found.value == curve.measured[found.k] <= 0.01
    assert found.k == pytest.approx(1000, abs=4)


def test_algorithm_1_returns_the_last_success_where_the_steps_pass_over_it() -> None:
    values = iter([1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    found = algorithm1(lambda k: next(values, 1.0), 0.01, 10, 110)
    assert (found.k, found.value) == (20.0, 0.0)


def test_algorithm_1_reports_the_best_of_an_unreachable_target() -> None:
    with pytest.raises(TargetError) as error:
        algorithm1(Curve(a=10, b=0.2), 0.01, 10, 10000)
    assert 0.04 < error.value.best < 0.0405


# ---- bisection ----


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


@pytest.mark.parametrize("rough", [False, True])
@given(
    seed=st.integers(0, 2**32), floor=st.floats(0, 0.01), limits=st.lists(st.floats(1e-6, 1), min_size=2, max_size=9)
)
def test_a_larger_limit_never_ends_at_a_larger_k(rough: bool, seed: int, floor: float, limits: list[float]) -> None:
    """Whatever is measured: here each k has luck of its own, and no k may do better than a floor."""
    measured: dict[float, float] = {}

    def measure(k: float) -> float:
        luck = random.Random(f"{seed} {k}").uniform(-1, 1)
        measured[k] = floor + 900 / k**2 * math.exp(luck)
        return measured[k]

    ends = []
    for limit in sorted(limits):
        measured.clear()
        try:
            found = bisection(measure, limit, 10, 1e6, rough)
        except TargetError as error:
            assert error.best == min(measured.values()) > limit
            ends.append(math.inf)
        else:
            assert found.value == measured[found.k] <= limit
            ends.append(found.k)
    assert ends == sorted(ends, reverse=True)


def test_bisection_stays_between_its_ends_and_survives_infinite_values() -> None:
    curve = Curve(a=1e-9)
    assert bisection(curve, 0.01, 20, K_UNBOUNDED).k == 20
    assert min(curve.measured) == 20
    assert bisection(lambda k: 0.001 if k == 1000 else math.inf, 0.01, 10, 1000).k == 1000
    assert 900 < bisection(lambda k: math.inf if k < 900 else 0.001, 0.01, 10, 1000).k < 910


def test_bisection_looks_below_a_rung_that_fails_by_luck() -> None:
    for begin in (102, 105, 108, 111):
        found = bisection(lambda k, begin=begin: 1.4e-4 if begin < k < begin + 6 else (1 / k) ** 2, 1e-4, 50, 1e5)
        assert found.k == pytest.approx(100, rel=0.012)


# ---- scan ----


def test_scan_measures_every_rung_from_the_last_leap_that_failed() -> None:
    curve = Curve(a=1.0)
    found = scan(curve, 1e-4, 30, 1, 1e6)
    leaps = [30 * 2 ** (step / 2) for step in range(5)]  # the last, 120, holds
    rungs = [leaps[3] * 2 ** (step / 16) for step in range(1, 5)]
    assert list(curve.measured) == pytest.approx(leaps + rungs)
    assert found.k == pytest.approx(rungs[-1])
    assert found.value == curve.measured[found.k] <= 1e-4


def test_scan_goes_down_as_long_as_it_holds_and_no_further_than_the_lowest() -> None:
    curve = Curve(a=1.0)
    assert scan(curve, 1e-4, 800, 150, 1e6).k == 150
    assert list(curve.measured) == pytest.approx([800, 566, 400, 283, 200, 150], rel=1e-3)


def test_scan_finds_the_first_that_holds_where_the_value_is_not_monotone() -> None:
    holds = {100.0: True, 100 / 2**0.5: False}
    measured: list[float] = []

    def measure(k: float) -> float:
        measured.append(k)
        rung = round(16 * math.log2(k / 100 * 2**0.5))
        return 0.0 if holds.get(k, rung in (3, 6)) else 1.0

    assert scan(measure, 0.5, 100, 1, 1000).k == pytest.approx(100 / 2**0.5 * 2 ** (3 / 16))
    assert measured[-1] == pytest.approx(100 / 2**0.5 * 2 ** (3 / 16))


def test_scan_reports_the_best_where_nothing_holds() -> None:
    with pytest.raises(TargetError) as error:
        scan(lambda k: 1 / k, 1e-3, 1, 1, 10)
    assert error.value.best == 0.1


@given(st.floats(1, 1e4), st.floats(1e-8, 1e-2))
def test_scan_returns_what_was_measured_and_holds(start: float, limit: float) -> None:
    noise = Curve(a=1.0, ripple=0.9)
    found = scan(noise, limit, start, 0.5, 1e9)
    assert noise.measured[found.k] == found.value <= limit
