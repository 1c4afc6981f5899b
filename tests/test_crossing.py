"""Where a rough deviation crosses a limit: lines through several measurements, and what samples say of others."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from riq_cli.errors import TargetError
from riq_cli.pipeline.crossing import crossing
from riq_cli.pipeline.search import bisection

LIMIT = 0.01
HIGHEST = 1e9


class Rough:
    """Deviations of samples c/k^slope, each k with a luck of its own, a factor of log-normal distribution."""

    def __init__(
        self,
        root: float = 100.0,
        slope: float = 2.0,
        luck: float = 0.0,
        samples: NDArray[np.float64] | None = None,
        seed: int = 0,
    ) -> None:
        self.root, self.slope, self.luck, self.seed = root, slope, luck, seed
        self.samples = np.ones(1) if samples is None else samples
        self.measured: list[float] = []

    def __call__(self, k: float) -> NDArray[np.float64]:
        self.measured.append(k)
        normal = np.random.default_rng((self.seed, int(k * 1000))).normal()
        values: NDArray[np.float64] = (
            LIMIT * (self.root / k) ** self.slope * math.exp(self.luck * normal) * self.samples
        )
        return values


@given(root=st.floats(1.0, 1e5), slope=st.floats(1.0, 4.0), start=st.floats(0.1, 1e6), samples=st.integers(1, 5))
def test_where_nothing_is_luck_few_measurements_find_the_crossing(
    root: float, slope: float, start: float, samples: int
) -> None:
    measure = Rough(root, slope, samples=np.ones(samples))
    assert crossing(measure, LIMIT, start, 1e-3, HIGHEST, margin=2.0) == pytest.approx(root, rel=0.05)
    assert len(measure.measured) <= 20


def test_five_measurements_do_where_the_first_guess_was_right() -> None:
    measure = Rough()
    assert crossing(measure, LIMIT, 101.0, 1e-3, HIGHEST) == pytest.approx(100, rel=1e-3)
    assert len(measure.measured) == 5


def test_luck_averages_out_where_the_smallest_k_that_holds_is_a_lucky_one() -> None:
    found, lucky = [], []
    for seed in range(200):
        measure = Rough(luck=0.25, seed=seed)
        found.append(math.log(crossing(measure, LIMIT, 150.0, 1e-3, HIGHEST) / 100))
        assert len(measure.measured) <= 12
        smallest = bisection(lambda k, measure=measure: float(measure(k)[0]), LIMIT, 1e-3, HIGHEST)
        lucky.append(math.log(smallest.k / 100))
    assert abs(np.mean(found)) < 0.02
    assert np.std(found) < 0.06  # single measurements: 0.25 / slope
    assert np.mean(lucky) < -0.02 and np.std(lucky) > 1.5 * np.std(found)


def test_the_margin_is_the_standard_error_of_what_samples_have_in_common() -> None:
    samples = np.array([0.5, 1.0, 1.5, 1.0])
    error = samples.std(ddof=1) / 2  # relative: their mean is 1
    for margin in (0.0, 0.5, 2.0):
        found = crossing(Rough(samples=samples), LIMIT, 80.0, 1e-3, HIGHEST, margin=margin)
        assert found == pytest.approx(100 * math.sqrt(1 + margin * error), rel=0.002)


def test_a_single_sample_has_no_margin() -> None:
    assert crossing(Rough(), LIMIT, 80.0, 1e-3, HIGHEST, margin=5.0) == pytest.approx(100, rel=1e-3)


def test_a_target_out_of_reach_says_what_was_best() -> None:
    def floor(k: float) -> NDArray[np.float64]:
        return np.array([0.03 + 1 / k**2, 0.05 + 1 / k**2])

    with pytest.raises(TargetError) as error:
        crossing(floor, LIMIT, 100.0, 1e-3, 1e5)
    assert error.value.best == pytest.approx(0.04)


def test_where_all_hold_it_is_the_lowest() -> None:
    assert crossing(Rough(), LIMIT, 4000.0, 300.0, HIGHEST) == 300.0


def test_silence_and_broken_outputs_are_passed_over() -> None:
    def leaping(k: float) -> NDArray[np.float64]:
        return (
            np.array([math.inf, math.nan]) if k < 50 else np.zeros(2) if k > 400 else np.full(2, LIMIT * (200 / k) ** 2)
        )

    for start in (1.0, 1e5, 210.0):
        assert crossing(leaping, LIMIT, start, 1e-3, HIGHEST) == pytest.approx(200, rel=0.05)


def test_a_cliff_ends_the_search() -> None:
    measured: list[float] = []

    def cliff(k: float) -> NDArray[np.float64]:
        measured.append(k)
        return np.array([0.0 if k > 77 else 1.0])

    assert 70 < crossing(cliff, LIMIT, 3.0, 1e-3, HIGHEST) < 85
    assert len(measured) <= 20


@pytest.mark.parametrize("value", [LIMIT / 90, LIMIT * 90])
def test_a_deviation_that_k_does_not_change_ends_the_search_at_one_end(value: float) -> None:
    """As where all samples are alike: then one sample alone has to come out right, and any bins will do."""
    measured: list[float] = []

    def measure(k: float) -> np.ndarray:
        measured.append(k)
        return np.full(4, value)

    if value < LIMIT:
        assert crossing(measure, LIMIT, 100.0, 1e-3, HIGHEST, margin=0.5) == 1e-3
    else:
        with pytest.raises(TargetError):
            crossing(measure, LIMIT, 100.0, 1e-3, HIGHEST, margin=0.5)
    assert len(measured) <= 20


def test_samples_that_are_left_out_at_some_k_count_at_the_others() -> None:
    """As where the mean is largest at one tensor for some k, at another for the rest, and a sample is silent at one."""

    def measure(k: float) -> NDArray[np.float64]:
        left_out = math.nan if k < 200 else 1.0
        return LIMIT * (200 / k) ** 2 * np.array([0.9, 1.1, left_out, 1.0])

    assert crossing(measure, LIMIT, 100.0, 1e-3, HIGHEST, margin=0.25) == pytest.approx(200, rel=0.05)
