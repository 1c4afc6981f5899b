"""Plans of error-compensated rounding: which samples do what, whether it helps, what becomes of a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riq_cli.decode import dequantize
from riq_cli.decode.dequantize import Quantized
from riq_cli.entropy.rate import estimated_bits
from riq_cli.model import Layer, Linear, Matrix
from riq_cli.model.linear_inputs import ProductInput
from riq_cli.model.linear_outputs import ProductOutput
from riq_cli.model.matrix import Arrangement
from riq_cli.pipeline.damping import _Second, fitted
from riq_cli.pipeline.descent import least_damping, less
from riq_cli.pipeline.fitting import Seen, _batches, _block, fitted_plans
from riq_cli.pipeline.plans import Plan
from riq_cli.pipeline.split import FIT_SAMPLES, clusters, held_count, roles
from riq_cli.pipeline.weights import Weights
from riq_cli.quantize import Damping, Factor, factorized, scalar
from riq_cli.quantize.scalar import bin_widths
from riq_cli.statistics.moments import Collected, Moments

LEVELS = [10 ** (half / 2) for half in range(-4, 3)]  # of damping


# ---- which samples do what ------------------------------------------------------------------------------------------

HELD: dict[int, Sequence[int]] = {  # of a quarter
    **dict.fromkeys(range(1, 8), ()),
    **dict.fromkeys(range(8, 12), (2, 6)),
    12: (2, 6, 10),
    32: range(2, 32, 4),
    64: range(2, 64, 4),
}


@pytest.mark.parametrize("count", HELD)
def test_without_compensation_all_that_is_not_held_out_is_searched_and_probed(count: int) -> None:
    for holdout, held in ((0.25, HELD[count]), (0.0, ())):
        found = roles(count, holdout)
        rest = tuple(number for number in range(count) if number not in held)
        assert (found.held, found.others, found.searched, found.probed) == (tuple(held), rest, rest, rest)
        assert found.fit == ((), ())
        assert held_count(count, holdout) == len(held)


@pytest.mark.parametrize(
    ("count", "holdout", "held"),
    [(7, 0.9, ()), (8, 0.1, ()), (10, 0.1, (5,)), (8, 0.5, (1, 3, 5, 7)), (8, 0.9, (0, 1, 2, 3, 5, 6, 7))],
)
def test_other_shares_are_held_out_evenly(count: int, holdout: float, held: Sequence[int]) -> None:
    assert roles(count, holdout).held == tuple(held)


@pytest.mark.parametrize(
    ("count", "holdout", "fit", "probed", "searched", "held"),
    [
        (4, 0.25, ((1,), (2,)), (0, 3), (0, 1, 2, 3), ()),
        (5, 0.25, ((2,), (3,)), (0, 1, 4), (0, 1, 2, 3, 4), ()),
        (6, 0.25, ((1, 3), (4,)), (0, 2, 5), (0, 1, 2, 3, 4, 5), ()),
        (8, 0.0, ((2, 3), (4, 5)), (0, 1, 6, 7), (0, 1, 2, 3, 4, 5, 6, 7), ()),
        (8, 0.25, ((0, 1), (2, 3)), (4, 5), (0, 2, 4, 5), (6, 7)),
        (8, 0.5, ((2, 4), (5,)), (6,), (2, 6), (0, 1, 3, 7)),
    ],
)
def test_roles_of_a_few_samples_for_compensation(
    count: int,
    holdout: float,
    fit: tuple[tuple[int, ...], tuple[int, ...]],
    probed: tuple[int, ...],
    searched: tuple[int, ...],
    held: tuple[int, ...],
) -> None:
    found = roles(count, holdout, np.eye(count))
    assert (found.fit, found.probed, found.searched, found.held) == (fit, probed, searched, held)
    assert found.others == tuple(number for number in range(count) if number not in held)


@given(
    count=st.integers(FIT_SAMPLES, 80),
    holdout=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9]),
    seed=st.integers(0, 1 << 30),
    axes=st.integers(1, 6),
)
def test_every_sample_has_one_role_and_every_role_its_samples(count: int, holdout: float, seed: int, axes: int) -> None:
    if count - held_count(count, holdout) < FIT_SAMPLES:
        return
    outputs = np.random.default_rng(seed).standard_normal((count, axes))
    outputs /= np.linalg.norm(outputs, axis=1, keepdims=True)
    found = roles(count, holdout, outputs @ outputs.T)
    first, second = found.fit
    parts = (first, second, found.probed, found.held)
    assert sorted(number for part in parts for number in part) == list(range(count))
    assert all(list(part) == sorted(part) for part in (*parts, found.searched, found.others))
    assert first and second and found.probed
    assert bool(found.held) == (held_count(count, holdout) > 0)
    assert set(found.others) == {*first, *second, *found.probed}
    fitted_to = set(found.searched) - set(found.probed)  # the search sees no more of these than of the others
    assert set(found.searched) >= set(found.probed) and fitted_to <= {*first, *second}
    few = len(found.probed) < 8
    assert len(fitted_to) == (min(len(found.probed), len(first) + len(second)) if few else 0)
    assert abs(len(fitted_to & set(first)) - len(fitted_to & set(second))) <= 1 or fitted_to >= set(second)
    assert few or set(found.searched) == set(found.probed)
    assert sorted((*found.refit[0], *found.refit[1])) == list(found.others)
    for half, before in zip(found.refit, found.fit, strict=True):
        assert set(before) <= set(half) and list(half) == sorted(half)
    assert found.every == tuple(range(count))
    assert found.unfitted == tuple(sorted((*found.probed, *found.held)))
    assert set(found.weighed) >= {*first, *second, *found.held}
    some = set(found.weighed) & set(found.probed)
    assert len(some) == min(len(first + second) // 3, len(found.probed))


def test_samples_that_are_alike_have_the_same_role() -> None:
    """Four crops of each of eight photos, in any order."""
    photos = np.random.default_rng(0).permutation(np.repeat(np.arange(8), 4))
    likeness = np.where(photos[:, None] == photos, 0.9, 0.3)
    np.fill_diagonal(likeness, 1.0)
    found = roles(32, 0.25, likeness)
    parts = (*found.fit, found.probed, found.held)
    assert [len(part) for part in parts] == [8, 8, 8, 8]
    assert [len(set(photos[list(part)])) for part in parts] == [2, 2, 2, 2]
    assert [len(set(photos[list(half)])) for half in found.refit] == [3, 3]


def test_the_most_alike_become_clusters_first() -> None:
    likeness = np.array([[1.0, 0.1, 0.8, 0.0], [0.1, 1.0, 0.2, 0.7], [0.8, 0.2, 1.0, 0.3], [0.0, 0.7, 0.3, 1.0]])
    assert clusters(likeness, 1) == [[0], [1], [2], [3]]
    assert clusters(likeness, 2) == [[0, 2], [1, 3]]
    likeness[1, 3] = likeness[3, 1] = 0.0
    likeness[1, 2] = likeness[2, 1] = 0.5
    assert clusters(likeness, 3) == [[0, 1, 2], [3]]  # 1 is on average more alike to 0 and 2 (0.3) than 3 (0.15) is
    assert clusters(likeness, 4) == [[0, 1, 2, 3]]
    assert likeness[0, 0] == 1.0


def test_of_very_many_samples_each_is_a_cluster() -> None:
    assert clusters(np.ones((1025, 1025)), 3) == [[number] for number in range(1025)]


# ---- fitted ---------------------------------------------------------------------------------------------------------


def correlated(rows: int, columns: int, seed: int = 0, correlation: float = 0.9, groups: int = 1) -> np.ndarray:
    """Rows of an AR(1) process, [groups, rows, columns]."""
    steps = np.arange(columns)
    factor = np.linalg.cholesky(correlation ** np.abs(steps[:, None] - steps))
    return np.asarray(np.random.default_rng(seed).standard_normal((groups, rows, columns)) @ factor.T, np.float32)


def moments(x: np.ndarray, block: int = 4096) -> Moments:
    result = Moments(x.shape[0], x.shape[2], block)
    result.add(x)
    return result


def weights(*shape: int, dtype: str = "float32", scale: float = 1.0, seed: int = 1) -> Layer:
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return Layer("w", "Gemm", ("graph.initializer[0]",), dtype, shape, values.astype(dequantize.STORAGE[dtype]))


ROWS_FIRST = Arrangement.of((96, 32)).matrix((), (0,), (1,))  # Gemm with transB = 1


def chosen_level(plan: Plan, halves: tuple[Moments, Moments]) -> float:
    """How much the plan's factors are damped, which is what it says of them."""
    joined = halves[0].joined(halves[1])
    second = joined.second[0]
    if plan.bias is not None:
        second = second - joined.mean[:, :, None] * joined.mean[:, None]
    assert plan.damping is not None
    own = plan.factors[0].upper
    np.testing.assert_allclose(own, factorized(second, plan.damping), 1e-3, 1e-4 * own.max())
    return round(plan.damping.level, 4)


def test_inputs_that_are_not_correlated_are_not_compensated() -> None:
    white = moments(correlated(4000, 32, 0, 0.0)), moments(correlated(4000, 32, 1, 0.0))
    assert fitted(weights(96, 32), Linear(ROWS_FIRST, ()), white, 0.2) is None


def test_correlated_inputs_are_compensated_with_little_damping_where_the_halves_agree() -> None:
    halves = moments(correlated(4000, 32, 0)), moments(correlated(4000, 32, 1))
    plan = fitted(weights(96, 32), Linear(ROWS_FIRST, ()), halves, 0.2)
    assert plan is not None
    assert chosen_level(plan, halves) == 0.01
    assert plan.bias is None


def test_more_damping_where_the_halves_disagree() -> None:
    """Both halves are of the same process, but of less rows than columns."""
    found = []
    for rows in (4000, 40, 12):
        halves = moments(correlated(rows, 32, 0)), moments(correlated(rows, 32, 1))
        plan = fitted(weights(96, 32), Linear(ROWS_FIRST, ()), halves, 0.2)
        assert plan is not None
        found.append(chosen_level(plan, halves))
    assert found == [0.01, 0.1, 1.0]


def test_halves_that_contradict_each_other_are_not_compensated() -> None:
    halves = moments(correlated(4000, 32, 0, 0.9)), moments(correlated(4000, 32, 1, -0.9))
    assert fitted(weights(96, 32), Linear(ROWS_FIRST, ()), halves, 0.2) is None


def test_halves_without_rows_or_beyond_all_numbers_are_not_compensated() -> None:
    good, none = moments(correlated(400, 32)), Moments(1, 32)
    layer, linear = weights(96, 32), Linear(ROWS_FIRST, ())
    assert fitted(layer, linear, (good, none), 0.2) is None
    assert fitted(layer, linear, (none, good), 0.2) is None
    huge = Moments(1, 32)
    huge.add(correlated(400, 32).astype(np.float64) * 1e200)
    assert fitted(layer, linear, (good, huge), 0.2) is None


def test_positions_that_matter_judge_and_are_fitted_to_where_that_does_best() -> None:
    """What is correlated there may not be so elsewhere; but a few of them tell little of what is."""
    layer, linear = weights(96, 32), Linear(ROWS_FIRST, ())
    white = moments(correlated(4000, 32, 0, 0.0)), moments(correlated(4000, 32, 1, 0.0))
    many = moments(correlated(400, 32, 2)), moments(correlated(400, 32, 3))
    some = moments(correlated(40, 32, 8)), moments(correlated(40, 32, 9))
    others = moments(correlated(40, 32, 10)), moments(correlated(40, 32, 11))
    loud = moments(100 * correlated(4000, 32, 4)), moments(100 * correlated(4000, 32, 5))
    few = moments(correlated(3, 32, 6)), moments(correlated(3, 32, 7))
    both = some[0].joined(others[0]), some[1].joined(others[1])
    codes = np.arange(-48, 48, dtype=np.int32)[None] // 4
    for halves, shared, wanted, positions in (
        (white, many, many, "shared"), (loud, few, loud, "alike"), (some, others, both, "both"),
    ):  # fmt: skip
        plan = fitted(layer, linear, halves, 0.2, None, shared)
        assert plan is not None and plan.mean is not None
        assert plan.positions == positions
        np.testing.assert_array_equal(plan.mean, wanted[0].joined(wanted[1]).mean)
        chosen_level(plan, wanted)
        even = fitted(layer, linear, halves, 0.2)  # without anything that gradients say
        for each in (plan, plan.with_row_codes(layer, codes)):
            assert each.even.positions == "alike" and each.even.alike is None
            np.testing.assert_array_equal(each.even.rows, each.rows)
            assert len(each.even.scales) == (even is not None) + bool(each.rows.any())
            assert bool(each.even.factors) == (even is not None)
            if even is not None:
                np.testing.assert_array_equal(each.even.factors[0].upper, even.factors[0].upper)
                np.testing.assert_array_equal(each.even.scales[0].values, even.scales[0].values)


def test_after_a_plan_of_fewer_samples_positions_count_as_they_did() -> None:
    layer, linear = weights(96, 32), Linear(ROWS_FIRST, ())
    white = moments(correlated(4000, 32, 0, 0.0)), moments(correlated(4000, 32, 1, 0.0))
    many = moments(correlated(4000, 32, 2)), moments(correlated(4000, 32, 3))
    alike, shared = fitted(layer, linear, many, 0.2), fitted(layer, linear, white, 0.2, None, many)
    assert alike is not None and shared is not None
    for before, halves, judges, wanted in ((alike, many, white, many), (shared, many, white, white)):
        plan = fitted(layer, linear, halves, 0.2, before, judges)
        assert plan is not None and plan.mean is not None
        assert (plan.positions, plan.alike) == (before.positions, None)
        assert before.damping is not None
        assert chosen_level(plan, wanted) <= before.damping.level
    plan = fitted(layer, linear, many, 0.2, shared)  # of which nothing is known any more
    assert plan is not None and plan.positions == "alike"


def test_where_what_is_known_of_positions_is_no_number_all_count_alike() -> None:
    good, huge = moments(correlated(400, 32)), Moments(1, 32)
    huge.add(correlated(400, 32).astype(np.float64) * 1e200)
    plan = fitted(weights(96, 32), Linear(ROWS_FIRST, ()), (good, good), 0.2, None, (good, huge))
    assert plan is not None and plan.positions == "alike"


def test_where_nothing_matters_nothing_is_judged_by_it() -> None:
    halves = moments(correlated(4000, 32, 0)), moments(correlated(4000, 32, 1))
    silent = moments(np.zeros((1, 50, 32), np.float32)), moments(correlated(4000, 32, 0, -0.9))
    plan = fitted(weights(96, 32), Linear(ROWS_FIRST, ()), halves, 0.2, None, silent)
    assert plan is not None
    assert chosen_level(plan, halves) == 0.01


def varied(correlation: float, rows: int = 2000, scale: float = 1.0) -> tuple[Moments, Moments]:
    """Halves of what variations of samples might be."""
    one, other = (correlated(rows, 32, seed, correlation) for seed in (20, 21))
    return moments(scale * one), moments(scale * other)


def test_variations_of_samples_are_fitted_to_where_that_does_better_on_samples() -> None:
    layer, linear = weights(96, 32), Linear(ROWS_FIRST, ())
    few = moments(correlated(12, 32, 0)), moments(correlated(12, 32, 1))
    alone = fitted(layer, linear, few, 0.2)
    assert alone is not None and not alone.varied and alone.mean is not None
    for halves, helps in ((varied(0.9), True), (varied(-0.9), False), (varied(0.9, 0), False)):
        plan = fitted(layer, linear, few, 0.2, varied=Collected(halves, None))
        assert plan is not None and plan.mean is not None and plan.damping is not None and alone.damping is not None
        assert plan.varied == helps
        if helps:
            both = few[0].joined(halves[0]), few[1].joined(halves[1])
            assert chosen_level(plan, both) < alone.damping.level
            np.testing.assert_array_equal(plan.mean, both[0].joined(both[1]).mean)
        elif halves[0].count:
            np.testing.assert_array_equal(plan.factors[0].upper, alone.factors[0].upper)
            np.testing.assert_array_equal(plan.mean, alone.mean)


def test_variations_beyond_all_numbers_are_left_out() -> None:
    layer, linear = weights(96, 32), Linear(ROWS_FIRST, ())
    few = moments(correlated(12, 32, 0)), moments(correlated(12, 32, 1))
    huge = Moments(1, 32)
    huge.add(correlated(400, 32).astype(np.float64) * 1e200)
    alone = fitted(layer, linear, few, 0.2)
    for before in (None, replace(alone, varied=True) if alone is not None else None):
        plan = fitted(layer, linear, few, 0.2, before, varied=Collected((huge, huge), None))
        assert plan is not None and alone is not None and not plan.varied
        np.testing.assert_array_equal(plan.factors[0].upper, alone.factors[0].upper)


def test_positions_of_variations_count_as_those_of_samples_do() -> None:
    layer, linear = weights(96, 32), Linear(ROWS_FIRST, ())
    white = moments(correlated(4000, 32, 0, 0.0)), moments(correlated(4000, 32, 1, 0.0))
    some = moments(correlated(40, 32, 2)), moments(correlated(40, 32, 3))
    others, away = varied(0.9), varied(-0.9)
    for more, wanted in ((Collected(away, others), others), (Collected(others, None), others)):
        plan = fitted(layer, linear, white, 0.2, None, some, more)
        assert plan is not None and plan.mean is not None
        assert (plan.positions, plan.varied) == ("shared", True)
        both = some[0].joined(wanted[0]), some[1].joined(wanted[1])
        np.testing.assert_array_equal(plan.mean, both[0].joined(both[1]).mean)
        assert plan.alike is not None and not plan.even.varied


def test_after_a_plan_of_fewer_samples_variations_are_fitted_to_as_they_were() -> None:
    layer, linear = weights(96, 32), Linear(ROWS_FIRST, ())
    few = moments(correlated(12, 32, 0)), moments(correlated(12, 32, 1))
    with_them, alone = (
        fitted(layer, linear, few, 0.2, varied=Collected(varied(0.9), None)),
        fitted(layer, linear, few, 0.2),
    )
    assert with_them is not None and alone is not None
    for before, helpful in ((with_them, varied(0.9)), (with_them, varied(-0.9)), (alone, varied(0.9))):
        plan = fitted(layer, linear, few, 0.2, before, varied=Collected(helpful, None))
        assert plan is not None and plan.varied == before.varied
        again = fitted(layer, linear, few, 0.2, before)
        assert again is not None and not again.varied


def test_after_a_plan_of_fewer_samples_damping_is_no_larger_and_compensation_stays() -> None:
    layer, linear = weights(96, 32), Linear(ROWS_FIRST, ())
    good = moments(correlated(4000, 32, 0)), moments(correlated(4000, 32, 1))
    poor = moments(correlated(12, 32, 0)), moments(correlated(12, 32, 1))
    white = moments(correlated(4000, 32, 0, 0.0)), moments(correlated(4000, 32, 1, 0.0))
    tightly, loosely = fitted(layer, linear, good, 0.2), fitted(layer, linear, poor, 0.2)
    assert tightly is not None and loosely is not None
    assert (chosen_level(tightly, good), chosen_level(loosely, poor)) == (0.01, 1.0)
    for halves, before, damping in (
        (good, loosely, 0.01), (poor, tightly, 0.01), (white, loosely, 1.0), (white, tightly, 0.01),
    ):  # fmt: skip
        plan = fitted(layer, linear, halves, 0.2, before)
        assert plan is not None
        assert chosen_level(plan, halves) == damping
    assert fitted(layer, linear, (good[0], Moments(1, 32)), 0.2, tightly) is None


def test_a_plan_after_another_keeps_the_rows_that_it_does_not_tell() -> None:
    layer, plan = weights(96, 32), Plan.of(ROWS_FIRST)
    codes = np.arange(96, dtype=np.int32)[None] % 5
    assert plan.after(plan, layer) is plan
    parted = plan.with_row_codes(layer, codes)
    after = plan.after(parted, layer)
    np.testing.assert_array_equal(after.rows, codes)
    assert len(after.scales) == 1
    told = plan.with_importance(layer, codes, np.ones((1, 96)), ())
    assert plan.after(told, layer) is told and told.after(told, layer) is told


def test_a_mean_is_the_bias_s_where_there_is_one() -> None:
    """Inputs that are white but for a common mean: without a bias their second moments are strongly correlated."""
    halves = moments(correlated(4000, 32, 0, 0.0) + 5), moments(correlated(4000, 32, 1, 0.0) + 5)
    layer = weights(96, 32)
    plan = fitted(layer, Linear(ROWS_FIRST, ()), halves, 0.2)
    assert plan is not None
    assert plan.bias is None
    assert fitted(layer, Linear(ROWS_FIRST, (), bias=3), halves, 0.2) is None
    skewed = moments(correlated(4000, 32, 0) + 5), moments(correlated(4000, 32, 1) + 5)
    plan = fitted(layer, Linear(ROWS_FIRST, (), bias=3), skewed, 0.2)
    assert plan is not None
    assert plan.bias == 3
    assert chosen_level(plan, skewed) == 0.01
    np.testing.assert_array_equal(plan.mean, skewed[0].joined(skewed[1]).mean)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_weights_does_not_matter(scale: float) -> None:
    halves = moments(correlated(40, 32, 0)), moments(correlated(40, 32, 1))
    plan = fitted(weights(96, 32, scale=scale), Linear(ROWS_FIRST, ()), halves, 0.2 * scale)
    assert plan is not None
    assert chosen_level(plan, halves) == 0.1


def test_the_error_of_a_half_is_that_of_its_rows() -> None:
    fit, judge = correlated(50, 8, 0) + 1, correlated(70, 8, 1) - np.float32(0.5)
    difference = np.random.default_rng(2).standard_normal((1, 5, 8))
    for block, centred in ((8, False), (8, True)):
        one, other = _Second(moments(fit, block), centred), _Second(moments(judge, block), centred)
        rows = judge.astype(np.float64) - (one.mean[:, None] if centred else 0)
        wanted = np.sum(np.square(rows @ difference.swapaxes(1, 2))) / 70
        assert other.error(difference, moments(judge, block).bounds, one.mean) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("costs", "even", "wanted", "asked"),
    [
        ("9919999", 1, (0.1, 0.5), "4 2 0 2e 3 1"),
        ("9919999", -1, (0.1, 0.0), "4 2 0 2e 3e 1e"),
        ("9951999", 1, (0.3162, 0.5), "4 2 0 2e 3"),
        ("9931219", 1, (3.1623, 0.5), "4 2 6 4e 5"),
        ("9939210", 1, (10.0, 0.5), "4 2 6 6e 5"),
        ("1299999", 1, (0.01, 0.5), "4 2 0 0e 1"),
        ("1111111", 0, (0.1, 0.5), "4 2 0 2e 3 1"),
    ],
)
def test_the_least_damping_is_found_downhill_then_by_kind_then_in_finer_steps(
    costs: str, even: int, wanted: tuple[float, float], asked: str
) -> None:
    """Of levels 0.01, 0.03, … 10, half for each by its own, or, at another cost, even (e)."""
    tried = []

    def cost(damping: Damping) -> int:
        level = int(np.argmin(np.abs(np.log(np.array(LEVELS) / damping.level))))
        tried.append(f"{level}{'' if damping.own else 'e'}")
        return int(costs[level]) + (0 if damping.own else even)

    damping, lowest = least_damping(cost, -4)
    assert (round(damping.level, 4), round(damping.own / damping.level, 4)) == wanted
    assert lowest == cost(damping)
    assert " ".join(tried[:-1]) == asked


def test_the_damping_of_more_samples_is_the_lesser() -> None:
    assert less(Damping(1, 1), None) == Damping(1, 1)
    assert less(Damping(1, 1), Damping(1.5)) == less(Damping(1.5), Damping(1, 1)) == Damping(1.5)


# ---- Plan -----------------------------------------------------------------------------------------------------------


def grouped() -> Matrix:
    """A Conv of 2 groups, with rows of both on axis 0."""
    turned = Arrangement.of((12, 4, 3, 2)).reshaped((2, 6, 24))
    assert turned is not None
    return turned.matrix((0,), (1,), (2,))


FORMS: dict[str, tuple[tuple[int, ...], Matrix]] = {
    "Gemm": ((96, 32), ROWS_FIRST),
    "MatMul": ((32, 40), Arrangement.of((32, 40)).matrix((), (1,), (0,))),
    "Conv": ((12, 4, 3, 2), Arrangement.of((12, 4, 3, 2)).matrix((), (0,), (1, 2, 3))),
    "batched": ((3, 10, 20), Arrangement.of((3, 10, 20)).matrix((0,), (2,), (1,))),
    "grouped Conv": ((12, 4, 3, 2), grouped()),
}


def planned(name: str, dtype: str = "float32", bias: int | None = None, rows: int = 500) -> tuple[Layer, Plan]:
    shape, matrix = FORMS[name]
    groups, _, columns = matrix.shape
    halves = [moments(correlated(rows, columns, seed, 0.95, groups) + np.float32(0.3)) for seed in (0, 1)]
    layer = weights(*shape, dtype=dtype)
    plan = fitted(layer, Linear(matrix, (), bias), (halves[0], halves[1]), 0.3)
    assert plan is not None
    return layer, plan


def restored(quantized: Quantized, layer: Layer) -> np.ndarray:
    return quantized.restored(layer.dtype, layer.shape).reshape(layer.shape)


@pytest.mark.parametrize("name", FORMS)
def test_symbols_and_scales_restore_what_was_judged(name: str) -> None:
    """The error that `rounded` tells is that of the weights that the symbols restore, in the layer's own order."""
    layer, plan = planned(name)
    matrix, original = FORMS[name][1], layer.values.astype(np.float64)
    quantized, error = plan.rounded(layer, 0.3)
    widths = np.broadcast_to(bin_widths(0.3, quantized.scales, len(layer.shape)), layer.shape)
    back = restored(quantized, layer)
    np.testing.assert_allclose(back, quantized.symbols.reshape(layer.shape) * widths, rtol=1e-6)
    upper = plan.factors[0].upper.astype(np.float64)
    moment = np.linalg.inv(upper.swapaxes(1, 2) @ upper)

    def energy(values: np.ndarray) -> float:
        difference = matrix.view((values - original) / scalar.peak(layer.values, "float32"))
        return float(np.sum((difference @ moment) * difference))

    assert error == pytest.approx(energy(back.astype(np.float64)), rel=1e-3)
    assert error < 0.6 * energy(np.rint(original / widths) * widths)
    assert quantized.width == 0.3


@pytest.mark.parametrize("name", FORMS)
def test_layers_are_passed_over_in_pieces_of_any_length(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, plan = planned(name, bias=7)
    back = restored(plan.rounded(layer, 0.3)[0], layer)
    shift, parted = plan.shift(layer, back), plan.with_rows(layer)
    monkeypatch.setattr("riq_cli.pipeline.plans._RUN", 50)
    again = plan.with_rows(layer)
    np.testing.assert_array_equal(plan.shift(layer, back), shift)
    assert (parted is None) == (again is None)
    if parted is not None and again is not None:
        np.testing.assert_array_equal(again.rows, parted.rows)


def test_nearest_rounding_in_parts_is_that_of_the_symbols(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured, and what it costs: with one bin width, and with rows of their own; as when it is coded."""
    layers = [weights(40, 30), weights(40, 3, 10, scale=2.0), weights(7)]
    layers[1].values[:20] *= 50
    parted = Plan.nearest(layers[1]).with_rows(layers[1])
    assert parted is not None
    plans, widths = {1: parted}, [0.3, 0.4, None]
    released: list[None] = []
    whole, found = [], []
    for piece in (1 << 20, 100):
        monkeypatch.setattr("riq_cli.pipeline.weights._PIECE", piece)
        every = Weights(layers, release=lambda: released.append(None))
        with ThreadPoolExecutor(2) as pool:
            found.append(every.requantize(widths, plans, every.buffers(), pool))
            whole.append(every.bits(widths, plans, pool))
        for number, width in ((0, 0.3), (1, 0.4)):
            plan = plans.get(number)
            symbols = every.quantized(number, width, plan)
            np.testing.assert_array_equal(found[-1][number], restored(symbols, layers[number]))
            changed, error = every.alone(number, width, plan)
            np.testing.assert_array_equal(changed[number], found[-1][number])
            assert error == (plan or Plan.nearest(layers[number])).rounded(layers[number], width)[1]
        assert found[-1][2] is layers[2].values
    assert whole[0] == whole[1]
    assert len(released) > 20  # part by part


def test_what_was_rounded_to_be_measured_is_counted_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compensated layers are rounded once for a bin width, the largest first, and as much is counted as without."""
    layers = [weights(8, 30), weights(40, 30), weights(16, 30)]
    factor = Factor(0, 30, factorized(np.eye(30)[None] + 0.5, Damping(0.1)))
    plans = {number: replace(Plan.nearest(layer), factors=(factor,)) for number, layer in enumerate(layers)}
    rounded: list[tuple[int, float]] = []
    before = Plan.rounded

    def noted(plan: Plan, layer: Layer, width: float) -> tuple[Quantized, float]:
        rounded.append((layer.shape[0], width))
        return before(plan, layer, width)

    monkeypatch.setattr(Plan, "rounded", noted)
    bits = []
    for measured_first in (True, False):
        every = Weights(layers)
        with ThreadPoolExecutor(1) as pool:
            if measured_first:
                every.requantize([0.3, 0.4, 0.5], plans, every.buffers(), pool)
            bits.append(every.bits([0.3, 0.4, 0.5], plans, pool))
        assert rounded == [(40, 0.4), (16, 0.5), (8, 0.3)]
        rounded.clear()
    assert bits[0] == bits[1]
    with ThreadPoolExecutor(1) as pool:
        every.bits([0.3, 0.4, 0.6], plans, pool)
    assert rounded == [(16, 0.6)]


@pytest.mark.parametrize(
    ("threads", "runs"),
    [(1, [[2, 0, 3, 4, 1]]), (2, [[2, 0], [3], [4], [1]]), (4, [[2], [0], [3], [4], [1]])],
)
def test_the_largest_layers_take_turns(threads: int, runs: list[list[int]]) -> None:
    """In one thread one after another, up to its share of the weights: two of them at once would take most memory."""
    layers = [weights(rows, 30) for rows in (24, 12, 26, 20, 18)]
    taken: list[list[int]] = []

    class Noting(ThreadPoolExecutor):
        def map(self, function: Any, *iterables: Any, **options: Any) -> Iterator[Any]:
            items = [list(items) for items in iterables]
            taken.extend(items[0])
            return super().map(function, *items, **options)

    every = Weights(layers, threads=threads)
    with Noting(threads) as pool:
        bits = every.bits([0.3] * 5, {}, pool)
    assert taken == runs
    assert bits == sum(every.coded_bits(number, 0.3) for number in (2, 0, 3, 4, 1))


def test_scales_are_along_whole_axes_or_there_are_none() -> None:
    assert {name: [scale.axes for scale in planned(name)[1].scales] for name in FORMS} == {
        "Gemm": [(1,)],
        "MatMul": [(0,)],
        "Conv": [(1, 2, 3)],
        "batched": [(0, 1)],
        "grouped Conv": [],
    }


def test_columns_without_inputs_get_no_wider_bins() -> None:
    x = correlated(500, 32)
    x[:, :, 5:8] = 0
    layer = weights(96, 32)
    plan = fitted(layer, Linear(ROWS_FIRST, ()), (moments(x[:, :250]), moments(x[:, 250:])), 0.3)
    assert plan is not None
    assert (plan.columns[0, 5:8] == 0).all()
    assert np.ptp(np.delete(plan.columns[0], [5, 6, 7])) > 0
    quantized, _ = plan.rounded(layer, 0.3)
    nearest = np.rint(layer.values[:, 5:8].astype(np.float64) / 0.3)
    np.testing.assert_array_equal(quantized.symbols.reshape(96, 32)[:, 5:8], nearest)


@pytest.mark.parametrize("name", ["Gemm", "Conv", "batched"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_bias_takes_over_what_rounding_adds_on_average(name: str, dtype: str) -> None:
    """Exactly −(Ŵ − W) E[x], of the weights as they are restored."""
    if dtype == "bfloat16":
        shape, matrix = FORMS[name]
        layer, plan = planned(name, bias=7)
        bits = layer.values.view(np.uint32) >> 16
        layer = Layer("w", "Gemm", layer.places, dtype, shape, bits.astype(np.uint16))
    else:
        layer, plan = planned(name, dtype, bias=7)
        matrix = FORMS[name][1]
    back = restored(plan.rounded(layer, 0.3)[0], layer)
    assert back.dtype == dequantize.STORAGE[dtype]
    difference = scalar.widened(back, dtype) - scalar.widened(layer.values, dtype)
    wanted = -np.einsum("gnk,gk->gn", matrix.view(difference), plan.mean).reshape(-1)
    np.testing.assert_allclose(plan.shift(layer, back), wanted, rtol=1e-9, atol=1e-12)
    assert np.max(np.abs(wanted)) > 0.01


def test_some_rows_stand_for_all() -> None:
    """At the scale of all: the largest weight, in whose square errors are told, need not be in these rows."""
    halves = moments(correlated(500, 16, 0)), moments(correlated(500, 16, 1))
    for rows, tolerance in ((300, 1e-12), (1100, 0.05)):  # every 4th of 1100
        layer = weights(rows, 16)
        layer.values[3, 3] = 8.0
        plan = fitted(layer, Linear(Arrangement.of((rows, 16)).matrix((), (0,), (1,)), ()), halves, 0.3)
        assert plan is not None
        bits, error = plan.sampled(layer, 0.25)
        quantized, whole = plan.rounded(layer, 0.25)
        assert error == pytest.approx(whole, rel=tolerance)
        symbols = plan.matrix.view(quantized.symbols.reshape(layer.shape))
        codes = sum(item.values.size for item in plan.scales)
        assert bits == pytest.approx(estimated_bits(symbols, scales=codes), rel=tolerance)


# ---- all layers of a model ------------------------------------------------------------------------------------------


def product(tensor: str, columns: int, rows: int) -> Linear:
    product = ProductInput(tensor, transposed=False), ProductOutput(("y",), transposed=False)
    return Linear(Arrangement.of((columns, rows)).matrix((), (1,), (0,)), (product,))


class Activations:
    """An observer of tensors that are made up: correlated ones, or white where the name says so."""

    def __init__(self, columns: dict[str, int]) -> None:
        self._columns, self.asked = columns, list[list[str]]()

    def activations(self, names: Sequence[str]) -> Iterator[tuple[str, int, np.ndarray]]:
        self.asked.append(list(names))
        for sample in range(4):
            for name in names:
                correlation = 0.0 if name == "white" else 0.95
                yield name, sample, correlated(300, self._columns[name], sample, correlation)[0]


def test_plans_are_made_of_layers_that_are_coded_and_where_they_help(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"x": 32, "white": 16, "y": 24}
    layers = [weights(32, 40), weights(16, 40), weights(24, 30), weights(24, 35), weights(24, 36)]
    linear: dict[int, Linear] = {
        0: product("x", 32, 40), 1: product("white", 16, 40), 2: product("y", 24, 30), 3: product("y", 24, 35),
    }  # fmt: skip
    steps: list[tuple[int, int]] = []

    def found(widths: list[float | None]) -> tuple[dict[int, Plan], list[list[str]]]:
        observer: Any = Activations(columns)
        with ThreadPoolExecutor(2) as pool:
            plans = fitted_plans(
                Weights(layers),
                linear,
                Seen(observer, (range(2), range(2, 4))),
                widths,
                pool,
                lambda *step: steps.append(step),
            )
        return plans, observer.asked

    plans, asked = found([0.3, 0.3, 0.3, None, 0.3])
    assert sorted(plans) == [0, 2]
    assert asked == [["x", "white", "y"]]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    monkeypatch.setattr("riq_cli.pipeline.fitting._MOMENTS", 2 * 8 * 32 * 32)
    again, asked = found([0.3] * 5)
    assert sorted(again) == [0, 2, 3]
    assert asked == [["x"], ["white", "y"]]  # the layers that "y" enters share its moments
    np.testing.assert_array_equal(again[0].factors[0].upper, plans[0].factors[0].upper)


def test_moments_are_taken_of_as_many_layers_as_fit_and_of_one_at_least() -> None:
    linear = {number: product(str(number), 1 << 12, 8) for number in range(3)}
    each = 2 * 8 * (1 << 12) * (1 << 10)  # bytes of both halves: one layer is as much as is allowed
    assert each == 1 << 26
    assert [list(batch) for batch in _batches(linear, 1024)] == [[0], [1], [2]]
    assert [list(batch) for batch in _batches(linear, 512)] == [[0, 1], [2]]
    assert list(_batches({}, 4096)) == []


def test_factors_stay_in_proportion_to_the_weights() -> None:
    def block(columns: int, rows: int, count: int = 1) -> int:
        linear: dict[int, Any] = {
            n: SimpleNamespace(matrix=SimpleNamespace(shape=(1, rows, columns))) for n in range(count)
        }
        return _block(linear, 4 * rows * columns * count)

    assert block(8192, 1, 2) == 2048  # 128 MiB are always granted
    assert block(8192, 8192) == 2048
    assert block(8192, 1, 3) == 1024
    assert block(8192, 1, 100) == 512  # and no less than that
