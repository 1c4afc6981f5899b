"""Rounding of one layer: against plain loops in float64, and against what theory says of its error."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from riq_cli.decode import trellis
from riq_cli.decode.dequantize import Quantized
from riq_cli.entropy.histogram import Histogram
from riq_cli.entropy.rate import estimated_bits
from riq_cli.model import Layer, Matrix
from riq_cli.model.matrix import Arrangement
from riq_cli.quantize import scalar
from riq_cli.quantize.factor import CODES_MAX, Factor, PackedFactor, column_codes
from riq_cli.quantize.gptq import rounded
from riq_cli.quantize.plan import LayerPlan
from riq_cli.quantize.rows import RowFactor, RowMoments, row_factor
from riq_cli.quantize.stages import feed_columns, feed_rows
from riq_cli.quantize.trellis import SYMBOL_MAX
from riq_cli.statistics.fisher import Fisher
from riq_cli.statistics.hessian import FIXED, Damping, factorized
from riq_cli.statistics.moments import Moments
from tests.archives import layer_of, levels_of

Floats = NDArray[np.float64]
Integers = NDArray[np.int32]


def moment(size: int, seed: int = 0) -> Floats:
    """A random second moment [size, size], of twice as many mixed rows."""
    generator = np.random.default_rng([size, seed])
    x = generator.standard_normal((2 * size, size)) @ generator.standard_normal((size, size))
    return np.asarray(x.T @ x / len(x))


def damped(moments: Floats, uniform: float) -> Floats:
    return np.asarray(moments + uniform * np.trace(moments) / len(moments) * np.eye(len(moments)))


def autoregressive(size: int, correlation: float) -> Floats:
    """The covariance ρ^|i−j| of a stationary AR(1) process of variance 1."""
    steps = np.arange(size)
    return np.asarray(correlation ** np.abs(steps[:, None] - steps))


def factors_of(moments: Sequence[Floats], *cuts: int, uniform: float = 0.1) -> list[PackedFactor]:
    """The factors of blocks on the diagonals of the moments of groups, cut at these columns."""
    every = np.stack(moments)
    return [
        PackedFactor(begin, end, factorized(every[:, begin:end, begin:end], Damping(uniform)))
        for begin, end in itertools.pairwise([0, *cuts, every.shape[1]])
    ]


def row_factors_of(groups: int, rows: int, *cuts: int, uniform: float = 0.1) -> list[RowFactor]:
    """Row factors of runs of rows, cut at these."""
    return [
        row_factor(group, np.arange(begin, end), moment(end - begin, group), Damping(uniform))[0]
        for group, (begin, end) in itertools.product(range(groups), itertools.pairwise([0, *cuts, rows]))
    ]


def diagonal(factors: Sequence[PackedFactor]) -> Floats:
    return np.concatenate([factor.diagonal for factor in factors], axis=1).astype(np.float64)


def entropy(symbols: NDArray[np.integer]) -> float:
    return Histogram.of(symbols.astype(np.int32).reshape(-1)).entropy


# ---- rounded: error feedback ----------------------------------------------------------------------------------------


def by_loops(
    matrix: Floats, bins: Floats, factors: Sequence[PackedFactor], row_factors: Sequence[RowFactor]
) -> tuple[Integers, Floats]:
    """Symbols by the definition, block after block of rows, column after column, and errors in bins."""
    left, symbols, errors = matrix.copy(), np.empty(matrix.shape, np.int32), np.empty(matrix.shape)
    groups, rows, size = matrix.shape
    alone = [RowFactor(group, np.arange(rows)[None], (np.empty((rows, 0), np.float16),)) for group in range(groups)]
    for item in row_factors or alone:
        for block, (numbers, feedback) in enumerate(zip(item.rows, item.feedback, strict=True)):
            there = numbers >= 0
            own = item.group, numbers[there]
            goal, residual = left[own], left[own]
            for column in range(size):
                symbols[(*own, column)] = np.rint(goal[:, column] / bins[(*own, column)])
                missing = goal[:, column] - symbols[(*own, column)] * bins[(*own, column)]
                errors[(*own, column)] = missing / bins[(*own, column)]
                for factor in factors:
                    if factor.begin <= column < factor.end:
                        upper = factor.whole().upper[item.group, column - factor.begin].astype(np.float64)
                        goal[:, factor.begin : factor.end] -= np.outer(missing, upper / upper[column - factor.begin])
            residual -= symbols[own] * bins[own]
            later = item.rows[block + 1 :].reshape(-1)
            left[item.group, later[later >= 0]] -= feedback[there][:, later >= 0].T.astype(np.float64) @ residual
    return symbols, errors


@pytest.mark.parametrize(
    ("groups", "rows", "size", "cuts"),
    [(1, 12, 3, ()), (3, 3, 60, ()), (2, 12, 70, (3,)), (1, 5, 150, (1, 100)), (2, 40, 9, (4,)), (1, 33, 64, ())],
)
@pytest.mark.parametrize("along_rows", [None, (), (1,)])
def test_symbols_are_those_of_a_plain_loop(
    groups: int, rows: int, size: int, cuts: tuple[int, ...], along_rows: tuple[int, ...] | None
) -> None:
    """However many rows and columns go side by side; single precision may round a few to the other side."""
    generator = np.random.default_rng(size)
    matrix, widths = (
        generator.standard_normal((groups, rows, size)),
        0.3 * 2 ** generator.uniform(-1, 1, (groups, size)),
    )
    before, scales = matrix.copy(), np.exp2(generator.integers(-4, 5, (groups, rows)) / 4)
    row_factors = [] if along_rows is None else row_factors_of(groups, rows, *along_rows)
    for factors in ([], factors_of([moment(size, group) for group in range(groups)], *cuts)):
        symbols, error = rounded(matrix, widths, scales, factors, row_factors)
        wanted, errors = by_loops(matrix, widths[:, None] * scales[..., None], factors, row_factors)
        assert symbols.dtype == np.int32 and symbols.shape == matrix.shape
        assert np.mean(symbols != wanted) < 0.005
        assert error == (0 if row_factors else pytest.approx(np.mean(np.square(errors)), rel=1e-2))
        nearest = np.rint(matrix / widths[:, None] / scales[..., None])
        assert (symbols != nearest).any() == bool(factors or row_factors)
    np.testing.assert_array_equal(matrix, before)


@pytest.mark.parametrize("uniform", [0.01, 10.0])
def test_with_an_identity_for_a_hessian_it_is_nearest_rounding(uniform: float) -> None:
    generator = np.random.default_rng(0)
    matrix, widths = generator.standard_normal((2, 30, 40)), np.exp2(generator.integers(-6, 0, (2, 40)))
    symbols, error = rounded(matrix, widths, None, factors_of([np.eye(40)] * 2, 17, uniform=uniform))
    nearest = np.rint(matrix / widths[:, None])
    np.testing.assert_array_equal(symbols, nearest)
    assert error == pytest.approx(np.mean(np.square(matrix / widths[:, None] - nearest)), rel=1e-4)
    np.testing.assert_array_equal(rounded(matrix, widths)[0], nearest)


@given(
    seed=st.integers(0, 1 << 30), groups=st.integers(1, 3), rows=st.integers(1, 8), size=st.integers(1, 90),
    uniform=st.floats(1e-3, 10), fineness=st.floats(-8, 4), scale=st.sampled_from([1.0, 1e-150, 1e150]),
)  # fmt: skip
def test_at_bin_widths_like_the_factor_the_error_is_that_of_the_outputs(
    seed: int, groups: int, rows: int, size: int, uniform: float, fineness: float, scale: float
) -> None:
    """tr((Ŵ − W) Â (Ŵ − W)ᵀ) = Σ_j Δ_j² e_j² / U_jj², e_j half a bin at most: Δ_j = c U_jj gives c² Σ e²."""
    matrix = np.random.default_rng(seed).standard_normal((groups, rows, size))
    moments = [moment(size, seed + group) for group in range(groups)]
    factors = factors_of(moments, uniform=uniform)
    widths = 2.0**fineness * diagonal(factors) / diagonal(factors).max()
    symbols, error = rounded(matrix * scale, widths * scale, None, factors)
    difference, total = symbols * widths[:, None] - matrix, 0.0
    for part, second in zip(difference, moments, strict=True):
        total += float(np.einsum("nk,kl,nl->", part, damped(second, uniform), part))
    assert total == pytest.approx(matrix.size * error * (2.0**fineness / diagonal(factors).max()) ** 2, rel=2e-2)
    assert 0 <= error <= 0.2501


@pytest.mark.parametrize(
    ("on_trellis", "correlation", "part"),
    [(False, None, 1.0), (False, 0.9, 1.0), (True, None, 0.8), (True, 0.0, 0.8), (True, 0.9, 0.88)],
)
def test_the_error_at_high_rate_is_a_twelfth_of_a_squared_bin(
    on_trellis: bool, correlation: float | None, part: float
) -> None:
    """Four states of a trellis gain 0.99 dB of the 1.53 dB that no scalar quantizer reaches: 0.8 of the error.

    Where errors are fed forward it is more: paths that are not the best so far have not seen what follows of them.
    """
    factors = [] if correlation is None else factors_of([autoregressive(64, correlation)])
    matrix = np.random.default_rng(1).standard_normal((1, 600, 64))
    _, error = rounded(matrix, np.full((1, 64), 0.02), None, factors, (), on_trellis)
    assert 12 * error == pytest.approx(part, rel=0.02)


def test_weights_of_any_scale_and_the_finest_bins_are_rounded() -> None:
    generator = np.random.default_rng(0)
    matrix, factors = generator.standard_normal((1, 50, 40)), factors_of([moment(40)])
    symbols, error = rounded(matrix, np.full((1, 40), 0.3), None, factors)
    for scale in (2.0**-500, 2.0**500):
        scaled, same = rounded(matrix * scale, np.full((1, 40), 0.3 * scale), None, factors)
        np.testing.assert_array_equal(scaled, symbols)
        assert same == error
    assert not rounded(np.zeros((1, 4, 40)), np.full((1, 40), 0.1), None, factors)[0].any()
    peak = np.abs(matrix).max()
    finest = peak / scalar.SYMBOL_MAX * np.exp2(generator.integers(-CODES_MAX, 1, (1, 40)) / 4)
    symbols, _ = rounded(matrix, finest, None, factors)
    np.testing.assert_allclose(symbols * finest[:, None], matrix, rtol=0, atol=1e-6 * peak)


# ---- rounded: along a trellis ---------------------------------------------------------------------------------------


def on_a_trellis(levels: Integers) -> bool:
    """Whether each row of [groups, rows, K] is one of the levels that its symbols stand for."""
    symbols = trellis.symbols(levels).reshape(-1)
    return np.array_equal(levels_of(symbols, levels.shape, (0, 1)).reshape(levels.shape), levels)


@pytest.mark.parametrize("width", [0.3, 1.0, 2.5])
def test_the_path_is_the_best_of_all(width: float) -> None:
    matrix = np.random.default_rng(1).normal(size=(2, 9, 8))
    levels, error = rounded(matrix, np.full((2, 8), width), on_trellis=True)
    assert on_a_trellis(levels)
    least = np.full((2, 9), math.inf)
    for parities in itertools.product((0, 1), repeat=8):
        sign, before, total = 1, 1, np.zeros((2, 9))
        for column, parity in enumerate(parities):
            point = sign * matrix[:, :, column] / width - 0.25
            total += (2 * np.rint((point - parity) / 2) + parity - point) ** 2
            sign, before = (-before if parity else before), sign
        least = np.minimum(least, total)
    np.testing.assert_allclose(np.square(levels / 4 - matrix / width).sum(axis=2), least, rtol=1e-4)
    assert error == pytest.approx(least.mean() / 8, rel=1e-4)


@pytest.mark.parametrize("width", [0.1, 0.5, 1.0, 2.0])
def test_a_trellis_saves_what_theory_says_of_independent_weights(width: float) -> None:
    """0.99 dB are 0.16 of a quarter of a bit at equal error."""
    matrix = np.random.default_rng(2).normal(size=(1, 300, 400))
    levels, error = rounded(matrix, np.full((1, 400), width), on_trellis=True)
    symbols, more = rounded(matrix, np.full((1, 400), width))
    assert 0.145 < entropy(symbols) - entropy(trellis.symbols(levels)) + math.log2(more / error) / 2 < 0.2


@pytest.mark.parametrize(("rows", "size", "cuts"), [(24, 20, (8,)), (70, 100, (37,)), (1100, 40, ()), (96, 130, ())])
@pytest.mark.parametrize("along_rows", [False, True])
def test_errors_are_fed_forward_on_a_trellis(rows: int, size: int, cuts: tuple[int, ...], along_rows: bool) -> None:
    """Paths go on from panel to panel and from factor to factor, in blocks of several rows too."""
    matrix, widths = np.random.default_rng(3).normal(size=(2, rows, size)), np.full((2, size), 0.4)
    second, fisher = moment(size), moment(rows) if along_rows else np.eye(rows)
    factors = factors_of([second] * 2, *cuts)
    row_factors = [row_factor(group, np.arange(rows), fisher, Damping(0.1))[0] for group in (0, 1) if along_rows]
    moved = []
    for on_trellis in (False, True):
        found, _ = rounded(matrix, widths, None, factors, row_factors, on_trellis)
        assert not on_trellis or on_a_trellis(found)
        error = found * (0.1 if on_trellis else 0.4) - matrix
        blocks = np.zeros((size, size))
        for factor in factors:
            part = slice(factor.begin, factor.end)
            blocks[part, part] = damped(second[part, part], 0.1)
        moved.append(np.einsum("nm,gnk,kl,gml->", damped(fisher, 0.1), error, blocks, error, optimize=True))
    assert moved[1] < 0.93 * moved[0]


# ---- factors of columns and rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 33])
def test_a_factor_is_its_triangle_in_half_precision_beside_its_diagonal(size: int) -> None:
    upper = np.triu(np.random.default_rng(0).standard_normal((3, size, size))).astype(np.float32)
    factor, whole = PackedFactor(5, 5 + size, upper), Factor(5, 5 + size, upper)
    np.testing.assert_allclose(factor.whole().upper, upper, rtol=2**-11 + 1e-6)
    np.testing.assert_array_equal(whole.upper, upper)
    for each in (factor, whole, pickle.loads(pickle.dumps(factor))):
        np.testing.assert_array_equal(each.diagonal, np.einsum("gii->gi", upper))
    assert len(pickle.dumps(factor)) < 3 * size * (4 + (size - 1)) + 1000


def test_a_factor_ends_where_half_precision_does() -> None:
    upper = np.array([[[2.0, -1e9, 1e-9], [0, 1e-30, 1e-31], [0, 0, 1e30]]], np.float32)
    wanted = [[2.0, -65504.0 * 2, 0.0], [0.0, 1e-30, 1e-31], [0.0, 0.0, 1e30]]
    np.testing.assert_allclose(PackedFactor(0, 3, upper).whole().upper[0], wanted, rtol=2**-11)
    upper[0, 0] = 0  # of moments beyond what single precision holds
    np.testing.assert_allclose(PackedFactor(0, 3, upper).whole().upper[0], [[0.0] * 3, *wanted[1:]], rtol=2**-11)


@pytest.mark.parametrize(
    ("diagonals", "codes"),
    [
        ([[1.0, 2**0.25, 2**0.5, 2**0.75, 2.0]], [[-2, -1, 0, 1, 2]]),
        ([[1e-20, 4e-20, 2e-20]], [[-4, 4, 0]]),
        ([[1.0, 2.0], [4.0, 8.0]], [[-6, -2], [2, 6]]),  # groups are around the mean of all
        ([[2.0**-30, 1.0, 1.0, 2.0**30]], [[-16, 0, 0, 16]]),
    ],
)
def test_codes_of_columns_are_quarters_of_an_octave_around_the_geometric_mean(
    diagonals: list[list[float]], codes: list[list[int]]
) -> None:
    own = np.array(diagonals, np.float32)
    factors = [PackedFactor(column, column + 1, own[:, column, None, None]) for column in range(own.shape[1])]
    assert column_codes(factors, np.ones(own.shape, bool)).tolist() == codes
    assert column_codes(factors, np.zeros(own.shape, bool)).tolist() == np.minimum(codes, 0).tolist()


@pytest.mark.parametrize("rows", [1, 5, 32, 33, 70, 100])
def test_a_row_matters_by_what_later_blocks_leave_of_it(rows: int) -> None:
    """The Schur complement of all later blocks; these take over −G_ll⁻¹ G_lb, which makes up for as much as can be."""
    moments, numbers = damped(moment(rows), 0.05), np.arange(0, 3 * rows, 3)
    found, importance = row_factor(2, numbers, moment(rows), Damping(0.05))
    assert found.group == 2
    assert sorted(found.rows[found.rows >= 0]) == numbers.tolist()
    for block, (own, feedback) in enumerate(zip(found.rows // 3, found.feedback, strict=True)):
        later = found.rows[block + 1 :].reshape(-1) // 3
        here, there = own[own >= 0], later[later >= 0]
        best = -np.linalg.solve(moments[np.ix_(there, there)], moments[np.ix_(there, here)])
        np.testing.assert_allclose(feedback[own >= 0][:, later >= 0].T, best, rtol=0, atol=1e-3)
        assert not feedback[own < 0].any() and not feedback[:, later < 0].any()
        schur = moments[np.ix_(here, here)] + moments[np.ix_(here, there)] @ best
        np.testing.assert_allclose(importance[here], np.diag(schur), rtol=1e-3)


def test_rows_that_are_spared_take_nothing_over_and_theirs_is_taken_over_as_before() -> None:
    found, _ = row_factor(0, np.arange(70), moment(70), Damping(0.1))
    spared = np.arange(70) % 7 == 0
    other = found.sparing(spared)
    for block, (feedback, before) in enumerate(zip(other.feedback, found.feedback, strict=True)):
        later = found.rows[block + 1 :].reshape(-1)
        is_spared = (later >= 0) & spared[later]
        assert not feedback[:, is_spared].any()
        np.testing.assert_array_equal(feedback[:, ~is_spared], before[:, ~is_spared])


def fisher(moments: Floats, count: int, seed: int, most: int = 64, diagonal: bool = False) -> Fisher:
    """Of so many random products of one group with these second moments."""
    rows = len(moments)
    result = Fisher(1, rows, most, diagonal)
    products = np.random.default_rng(seed).standard_normal((count, rows)) @ np.linalg.cholesky(moments).T
    result.add(products.astype(np.float32)[:, None])
    return result


def test_the_error_of_rows_is_that_of_the_outputs() -> None:
    """tr(Eᵀ G E); of blocks within each, of a diagonal alone Σ G_ii e²."""
    errors = np.random.default_rng(0).standard_normal((1, 20, 7))
    for most, is_diagonal in ((64, False), (10, False), (64, True)):
        one, other = (fisher(moment(20), 50, seed, most, is_diagonal) for seed in (0, 1))
        found = RowMoments.of(one, other)
        whole = np.diag((one.squares + other.squares)[0])
        for (_, rows), first, second in zip(one.blocks, one.moments, other.moments, strict=False):
            whole[np.ix_(rows, rows)] = first + second
        assert found.error(errors) == pytest.approx(np.einsum("gnk,nm,gmk->", errors, whole, errors), rel=1e-6)


def test_feedback_along_rows_gains_the_geometric_mean_of_what_rows_matter_at_equal_rate() -> None:
    """Each of 24 rows is a block: their product is det G. Codes are rounded to an eighth of an octave."""
    moments, width = autoregressive(24, 0.9) * np.outer(*[np.geomspace(0.3, 3, 24)] * 2), 0.02
    exact = RowMoments([(0, np.arange(24))], [moments], np.diag(moments)[None])
    codes, (factor,) = exact.factors(Damping(1e-6))
    scales = np.exp2(codes / 4)
    assert np.log(scales).mean() == pytest.approx(0, abs=0.02)
    matrix = np.random.default_rng(0).standard_normal((1, 24, 3000))
    symbols, _ = rounded(matrix, np.full((1, 3000), width), scales, (), [factor])
    mean = math.exp(np.linalg.slogdet(moments)[1] / 24)
    error = exact.error(symbols * width * scales[..., None] - matrix)
    assert error == pytest.approx(matrix.size * width**2 / 12 * mean, rel=0.04)


# ---- stages ---------------------------------------------------------------------------------------------------------

GEMM = Arrangement.of((96, 32)).matrix((), (0,), (1,))
LAYER = layer_of(np.random.default_rng(1).standard_normal((96, 32)))
PLAN = LayerPlan.of(LAYER, GEMM)
DAMPINGS = [Damping.of(half, share) for half in range(-4, 3) for share in (0.5, 0.0)]


def moments_of(rows: NDArray[np.floating]) -> Moments:
    result = Moments(rows.shape[0], rows.shape[2])
    result.add(rows)
    return result


def correlated(count: int, correlation: float = 0.9, seed: int = 0, size: int = 32, groups: int = 1) -> Floats:
    """Rows of an AR(1) process, [groups, count, size]."""
    factor = np.linalg.cholesky(autoregressive(size, correlation))
    return np.asarray(np.random.default_rng(seed).standard_normal((groups, count, size)) @ factor.T)


def halves(count: int, correlation: float = 0.9, mean: float = 0.0) -> tuple[Moments, Moments]:
    one, other = (moments_of(correlated(count, correlation, seed) + mean) for seed in (0, 1))
    return one, other


def level_of(plan: LayerPlan, every: Moments) -> float:
    """The level of damping with which the plan's factor is that of these moments."""
    second = every.block(0)
    if plan.bias is not None:
        second = second - every.mean[:, :, None] * every.mean[:, None]
    fits = [
        sum(damping)
        for damping in DAMPINGS
        if np.allclose(plan.factors[0].diagonal, np.einsum("gii->gi", factorized(second, damping)), 1e-4)
    ]
    assert len(fits) == 1
    return round(fits[0], 4)


def test_columns_are_fed_forward_with_the_more_damping_the_less_halves_agree() -> None:
    found = []
    for count in (4000, 40, 12):
        plan = feed_columns(PLAN, LAYER, halves(count), None, 0.2)
        assert plan.columns.any() and not plan.rows.any() and not plan.row_factors
        one, other = halves(count)
        found.append(level_of(plan, one.joined(other)))
        assert plan.mean is not None
        np.testing.assert_array_equal(plan.mean, one.joined(other).mean)
    assert found[0] == 0.01 < found[1] < found[2] <= 3.2


def moved(plan: LayerPlan) -> float:
    """The part of the symbols that are not the nearest."""
    alone = replace(plan, factors=(), row_factors=())
    return float(np.mean(plan.quantized(LAYER, 0.2).symbols != alone.quantized(LAYER, 0.2).symbols))


def test_white_inputs_change_next_to_nothing_and_halves_that_contradict_each_other_nothing() -> None:
    assert moved(feed_columns(PLAN, LAYER, halves(4000), None, 0.2)) > 0.2
    assert moved(feed_columns(PLAN, LAYER, halves(4000, 0.0), None, 0.2)) < 0.03
    inverse = np.linalg.inv(np.linalg.cholesky(autoregressive(32, 0.9)))
    contrary = halves(4000)[0], moments_of(correlated(4000, 0.0) @ inverse)
    huge = Moments(1, 32)
    huge.add(correlated(400) * 1e200)
    none = Moments(1, 32)
    for both in (contrary, (none, halves(400)[0]), (halves(400)[0], none), (huge, huge)):
        assert feed_columns(PLAN, LAYER, both, None, 0.2) is PLAN


def test_a_mean_is_the_bias_s_where_there_is_one() -> None:
    """Inputs that are white but for a common mean: without a bias their second moments are strongly correlated."""
    biased = replace(PLAN, bias=3)
    assert moved(feed_columns(PLAN, LAYER, halves(4000, 0.0, 5), None, 0.2)) > 0.05
    assert moved(feed_columns(biased, LAYER, halves(4000, 0.0, 5), None, 0.2)) < 0.02
    one, other = halves(4000, 0.9, 5)
    plan = feed_columns(biased, LAYER, (one, other), None, 0.2)
    assert (plan.bias, level_of(plan, one.joined(other))) == (3, 0.01)


def test_variations_of_samples_are_fitted_to_as_well() -> None:
    few, varied = halves(12), halves(2000)
    plan = feed_columns(PLAN, LAYER, few, varied, 0.2)
    assert level_of(plan, few[0].joined(few[1], *varied)) < level_of(
        feed_columns(PLAN, LAYER, few, None, 0.2), few[0].joined(few[1])
    )


def test_columns_without_inputs_get_no_wider_bins() -> None:
    x = correlated(500)
    x[:, :, 5:8] = 0
    plan = feed_columns(PLAN, LAYER, (moments_of(x[:, :250]), moments_of(x[:, 250:])), None, 0.3)
    assert (plan.columns[0, 5:8] <= 0).all() and np.ptp(plan.columns[0]) > 0


def test_stages_of_columns_are_left_out_by_name() -> None:
    both = halves(12)
    plan = feed_columns(PLAN, LAYER, both, None, 0.2, ("columns", "damping"))
    assert not plan.columns.any()
    np.testing.assert_allclose(
        plan.factors[0].whole().upper, factorized(both[0].joined(both[1]).block(0), FIXED), 1e-2, 1e-3
    )


G = autoregressive(96, 0.9) * np.outer(*[np.geomspace(0.2, 5, 96)] * 2)


@pytest.mark.parametrize("without", [(), ("damping",)])
def test_rows_are_fed_forward_with_bins_by_how_much_they_matter(without: tuple[str, ...]) -> None:
    plan = feed_rows(PLAN, LAYER, (fisher(G, 1000, 0, 48), fisher(G, 1000, 1, 48)), None, 0.2, without)
    assert [factor.rows.size for factor in plan.row_factors] == [48, 48]
    assert plan.rows[0, :20].min() > plan.rows[0, -20:].max()
    assert not plan.columns.any() and not plan.factors
    errors = []
    for each in (plan, PLAN):
        restored = each.quantized(LAYER, 0.05).restored("float32", LAYER.shape).reshape(1, 96, 32)
        errors.append(RowMoments.of(fisher(G, 1000, 2)).error(restored - LAYER.values.astype(np.float64)))
    assert errors[0] < 0.3 * errors[1]


def test_rows_are_not_fed_forward_where_that_does_not_pay() -> None:
    contrary = (
        fisher(np.diag(np.geomspace(0.01, 100, 96)), 500, 0),
        fisher(np.diag(np.geomspace(100, 0.01, 96)), 500, 1),
    )
    for both in ((fisher(np.eye(96), 4000, 0), fisher(np.eye(96), 4000, 1)), contrary):
        assert feed_rows(PLAN, LAYER, both, None, 0.2) is PLAN


def test_a_diagonal_of_rows_gives_bin_widths_alone_and_variations_count() -> None:
    both = fisher(np.diag(np.diag(G)), 3, 0, diagonal=True), fisher(np.diag(np.diag(G)), 3, 1, diagonal=True)
    varied = fisher(np.diag(np.diag(G)), 4000, 2, diagonal=True), fisher(np.diag(np.diag(G)), 4000, 3, diagonal=True)
    jumps = []
    for more in (None, varied):
        plan = feed_rows(PLAN, LAYER, both, more, 0.2)
        assert plan.rows.any() and not plan.row_factors
        jumps.append(float(np.abs(np.diff(plan.rows[0])).mean()))
    assert jumps[1] < 0.7 * jumps[0]


# ---- the plan of a layer --------------------------------------------------------------------------------------------


def grouped() -> Matrix:
    """A Conv of 2 groups, with rows of both on axis 0."""
    turned = Arrangement.of((12, 4, 3, 2)).reshaped((2, 6, 24))
    assert turned is not None
    return turned.matrix((0,), (1,), (2,))


FORMS: dict[str, tuple[tuple[int, ...], Matrix]] = {
    "Gemm": ((96, 32), GEMM),
    "MatMul": ((32, 40), Arrangement.of((32, 40)).matrix((), (1,), (0,))),
    "Conv": ((12, 4, 3, 2), Arrangement.of((12, 4, 3, 2)).matrix((), (0,), (1, 2, 3))),
    "batched": ((3, 10, 20), Arrangement.of((3, 10, 20)).matrix((0,), (2,), (1,))),
    "grouped Conv": ((12, 4, 3, 2), grouped()),
}


def planned(name: str, dtype: str = "float32", bias: int | None = None) -> tuple[Layer, LayerPlan]:
    """A plan with all that there is, but for a trellis."""
    shape, matrix = FORMS[name]
    groups, rows, columns = matrix.shape
    layer = layer_of(np.random.default_rng(1).standard_normal(shape), dtype)
    inputs = [moments_of(correlated(500, 0.95, seed, columns, groups) + 0.3) for seed in (0, 1)]
    plan = replace(LayerPlan.of(layer, matrix), bias=bias)
    plan = feed_columns(plan, layer, (inputs[0], inputs[1]), None, 0.3)
    codes = np.arange(groups * rows, dtype=np.int32).reshape(groups, rows) % 5
    return layer, replace(plan, rows=codes, row_factors=tuple(row_factors_of(groups, rows)))


def restored(quantized: Quantized, layer: Layer) -> NDArray[np.floating]:
    return quantized.restored(layer.dtype, layer.shape).reshape(layer.shape)


@pytest.mark.parametrize("name", FORMS)
def test_scales_give_the_bin_widths_of_the_matrices_in_the_tensor(name: str) -> None:
    layer, plan = planned(name)
    assert bool(plan.columns.any()) == (name != "grouped Conv")  # its columns are on no whole axes
    axes = {"Gemm": [(1,), (0,)], "MatMul": [(0,), (1,)], "Conv": [(1, 2, 3), (0,)], "batched": [(0, 1), (0, 2)]}
    assert [scale.axes for scale in plan.scales] == axes.get(name, [(0,)])
    widths = np.broadcast_to(plan.widths(layer, 0.3), layer.shape)
    inside = plan.column_widths(0.3)[:, None] * plan.row_scales[..., None]
    np.testing.assert_allclose(plan.matrix.view(widths), inside, rtol=1e-12)
    quantized = plan.quantized(layer, 0.3)
    symbols, _ = rounded(
        plan.matrix.view(layer.values), plan.column_widths(0.3), plan.row_scales, plan.factors, plan.row_factors
    )
    np.testing.assert_array_equal(plan.matrix.view(quantized.symbols.reshape(layer.shape)), symbols)
    np.testing.assert_allclose(
        restored(quantized, layer), plan.matrix.restore(symbols * inside, layer.shape), rtol=1e-6
    )


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("on_trellis", [False, True])
def test_plans_pickle(name: str, on_trellis: bool) -> None:
    layer, plan = planned(name, bias=2)
    plan = replace(plan, trellis=on_trellis and plan.matrix.lanes is not None)
    again: LayerPlan = pickle.loads(pickle.dumps(plan))
    found, same = plan.quantized(layer, 0.3), again.quantized(layer, 0.3)
    np.testing.assert_array_equal(found.levels, same.levels)
    assert (found.trellis, again.bias, again.matrix, again.shape) == (same.trellis, 2, plan.matrix, layer.shape)
    np.testing.assert_array_equal(restored(same, layer), restored(found, layer))


def test_a_plan_without_feedback_rounds_each_weight_on_its_own() -> None:
    plan = LayerPlan.nearest(LAYER)
    assert plan.is_elementwise and not plan.scales and plan.widths(LAYER, 0.3) == 0.3
    parted = replace(plan, rows=np.arange(96, dtype=np.int32)[None] % 3)
    for each in (plan, parted):
        bins = np.broadcast_to(each.widths(LAYER, 0.3), LAYER.shape)
        for up, to_integer in ((None, np.rint), (True, np.ceil), (False, np.floor)):
            directed = replace(each, up=up)
            assert directed.is_elementwise == (up is None)
            wanted = to_integer(LAYER.values.astype(np.float64) / bins).reshape(-1)
            np.testing.assert_array_equal(directed.quantized(LAYER, 0.3).symbols, wanted)


@pytest.mark.parametrize("name", ["Gemm", "Conv", "batched"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_bias_takes_over_what_rounding_adds_on_average(name: str, dtype: str) -> None:
    """Exactly −(Ŵ − W) E[x], of the weights as they are restored."""
    layer, plan = planned(name, dtype, bias=7)
    assert plan.mean is not None
    back = restored(plan.quantized(layer, 0.3), layer)
    difference = scalar.widened(back, dtype) - scalar.widened(layer.values, dtype)
    wanted = -np.einsum("gnk,gk->gn", plan.matrix.view(difference), plan.mean).reshape(-1)
    np.testing.assert_allclose(plan.shift(layer, back), wanted, rtol=1e-9, atol=1e-12)
    assert np.max(np.abs(wanted)) > 0.01


@pytest.mark.parametrize("on_trellis", [False, True])
def test_some_rows_stand_for_all(on_trellis: bool) -> None:
    for rows, tolerance in ((300, 1e-9), (1100, 0.05)):  # every 4th of 1100
        layer = layer_of(np.random.default_rng(0).standard_normal((rows, 16)))
        factors = tuple(factors_of([moment(16)]))
        matrix = Arrangement.of((rows, 16)).matrix((), (0,), (1,))
        plan = replace(LayerPlan.of(layer, matrix), factors=factors, trellis=on_trellis)
        bits, error = plan.sampled(layer, 0.25)
        symbols = plan.quantized(layer, 0.25).symbols
        assert bits == pytest.approx(estimated_bits(symbols.reshape(1, rows, 16), rows, 16, on_trellis), rel=tolerance)
        assert error == pytest.approx((0.95 if on_trellis else 1) / 12, rel=0.05)


def test_a_plan_takes_a_trellis_where_it_saves_bits() -> None:
    layer = layer_of(np.random.default_rng(5).normal(size=(64, 50)))
    plan = LayerPlan.nearest(layer)
    found = plan.with_trellis(layer, 0.5)
    quantized = found.quantized(layer, 0.5)
    assert (found.trellis, found.is_elementwise, quantized.trellis) == (True, False, (0,))
    errors = [np.square(restored(q, layer) - layer.values).sum() for q in (quantized, plan.quantized(layer, 0.5))]
    assert errors[0] < 0.87 * errors[1]
    assert plan.with_trellis(layer, 6.0) is plan  # all but a few would be 0
    width = scalar.peak(layer.values, "float32") / SYMBOL_MAX
    assert found.quantized(layer, 1.01 * width).trellis == (0,)
    assert found.quantized(layer, 0.99 * width).trellis is None  # bins too narrow for it
    narrow = layer_of(np.random.default_rng(5).normal(size=(64, 7)))
    assert not LayerPlan.nearest(narrow).with_trellis(narrow, 0.5).trellis  # rows too short for it


def test_rows_of_zeros_stay_near_zero_on_a_trellis() -> None:
    """A padding row or a dead channel becomes no quarter of a bin, costs no bits, and takes no errors over."""
    values = np.random.default_rng(9).normal(size=(64, 50))
    values[3], values[7] = 0, values[7] * 1e-3
    layer = layer_of(values)
    factor, _ = row_factor(0, np.arange(64), moment(64), Damping(0.1))
    for row_factors, code in (((), 0), ((), 2), ((factor,), 0)):
        plan = replace(LayerPlan.nearest(layer), rows=np.full((1, 64), code, np.int32), row_factors=row_factors)
        found = plan.with_trellis(layer, 0.5)
        assert found.rows[0, [0, 3, 63]].tolist() == [code, code - 40, code]
        quantized = found.quantized(layer, 0.5)
        back = restored(quantized, layer)
        assert np.abs(back[3]).max() == pytest.approx(0.5 * 2 ** (code / 4) / 4 / 1024)
        assert np.abs(back[7]).max() < 2 * np.abs(values[7]).max()
        assert np.abs(quantized.symbols.reshape(64, 50)[[3, 7]]).max() <= 1
        assert not row_factors or np.abs(back - values).mean() < 0.5


def test_columns_of_zeros_stay_near_zero_on_a_trellis_where_no_errors_are_fed_forward_to_them() -> None:
    """So does the padding entry of a table, whose entries are the columns."""
    values = np.random.default_rng(9).normal(size=(50, 64))
    values[3] = 0
    layer = layer_of(values)
    table = LayerPlan.of(layer, Arrangement.of(values.shape).matrix((), (1,), (0,)))
    found = table.with_trellis(layer, 0.5)
    assert found.columns[0, [0, 3, 49]].tolist() == [0, -40, 0] and not found.rows.any()
    quantized = found.quantized(layer, 0.5)
    assert quantized.trellis == (1,)
    assert np.abs(restored(quantized, layer)[3]).max() < 0.5 / 1024
    fed = replace(table, factors=tuple(factors_of([moment(50)])))
    assert not fed.with_trellis(layer, 0.5).columns.any()
