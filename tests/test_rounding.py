"""Error-compensated rounding: against a plain implementation in float64, and against what theory says of its error."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from riq_cli.entropy.histogram import Histogram
from riq_cli.quantize import CODES_MAX, Damping, Factor, column_codes, compensated, factorized, scalar

Floats = NDArray[np.float64]


def moments(groups: int, size: int, rows: int | None = None, seed: int = 0) -> Floats:
    """Second moments [groups, size, size] of so many random rows, twice the size if not told, mixed and shifted."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((groups, rows or 2 * size, size)) @ generator.standard_normal((groups, size, size))
    x += generator.standard_normal((groups, 1, size))
    return np.asarray(x.swapaxes(1, 2) @ x / x.shape[1])


def autoregressive(size: int, correlation: float) -> Floats:
    """The covariance ρ^|i−j| of a stationary AR(1) process of variance 1, [1, size, size]."""
    steps = np.arange(size)
    return np.asarray(correlation ** np.abs(steps[:, None] - steps))[None]


def damped(moment: Floats, damping: float) -> Floats:
    size = moment.shape[-1]
    level = np.trace(moment, axis1=1, axis2=2) / size
    return moment + damping * level[:, None, None] * np.eye(size)


def factors_of(moment: Floats, damping: float, *cuts: int) -> list[Factor]:
    """The factors of blocks on the diagonal, cut at these columns."""
    bounds = [0, *cuts, moment.shape[-1]]
    return [
        Factor(begin, end, factorized(moment[:, begin:end, begin:end], Damping(damping)))
        for begin, end in itertools.pairwise(bounds)
    ]


def diagonal(factors: list[Factor]) -> Floats:
    return np.concatenate([np.einsum("gii->gi", factor.upper) for factor in factors], axis=1).astype(np.float64)


def energy(difference: Floats, moment: Floats) -> float:
    """tr(D H Dᵀ), summed over groups."""
    return float(np.einsum("gnk,gkl,gnl->", difference, moment, difference))


def entropy(symbols: NDArray[np.int32]) -> float:
    return Histogram.of(symbols.reshape(-1)).entropy


def one_by_one(matrix: Floats, upper: Floats, widths: Floats) -> NDArray[np.int64]:
    """Symbols as the definition has them, column by column in float64: later ones undo what they can."""
    left, symbols = matrix.copy(), np.empty(matrix.shape, np.int64)
    widths = np.broadcast_to(widths, matrix.shape)
    for column in range(matrix.shape[2]):
        symbols[..., column] = np.rint(left[..., column] / widths[..., column])
        error = left[..., column] - symbols[..., column] * widths[..., column]
        share = upper[:, None, column, column:] / upper[:, column, column, None, None]
        left[..., column:] -= error[..., None] * share
    return symbols


# ---- factorized -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "size"), [(1, 1), (3, 5), (1, 64), (2, 65), (1, 200)])
@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_the_factor_is_that_of_the_damped_inverse(groups: int, size: int, damping: float) -> None:
    moment = moments(groups, size)
    upper = factorized(moment, Damping(damping))
    assert (upper.dtype, upper.shape) == (np.float32, (groups, size, size))
    np.testing.assert_array_equal(upper, np.triu(upper))
    assert (np.einsum("gii->gi", upper) > 0).all()
    wide = upper.astype(np.float64)
    product, inverse = wide.swapaxes(1, 2) @ wide, np.linalg.inv(damped(moment, damping))
    for group in range(groups):
        assert np.linalg.norm(product[group] - inverse[group]) < 1e-4 * np.linalg.norm(inverse[group])


def test_a_column_s_own_damping_is_a_share_of_its_own_moment() -> None:
    moment = np.diag([1.0, 4.0, 0.0, 3.0])[None]
    (upper,) = factorized(moment, Damping(0.5, 0.25))
    np.testing.assert_allclose(np.diagonal(upper) ** -2.0, 1.25 * np.diagonal(moment[0]) + 0.5 * 2, rtol=1e-6)
    assert Damping.of(3, 0.25) == Damping(2.25, 0.75)
    assert Damping.of(3, 0.25).level == 3


def test_a_factor_tells_what_later_columns_leave_of_each() -> None:
    """1/U_jj² is the variance of x_j given all later columns: 1 − ρ² of an AR(1) process, 1 for the last column."""
    (upper,) = factorized(autoregressive(100, 0.95), Damping(1e-9))
    np.testing.assert_allclose(np.diagonal(upper)[:-1] ** -2.0, 1 - 0.95**2, rtol=1e-5)
    assert upper[-1, -1] == pytest.approx(1, rel=1e-5)


def test_each_group_has_its_own_level_of_damping() -> None:
    moment = moments(1, 6)
    both = factorized(np.concatenate([moment, 1e12 * moment]), Damping(0.1))
    np.testing.assert_allclose(both[1] * 1e6, both[0], rtol=1e-5, atol=1e-6)


def test_a_moment_that_is_not_positive_definite_is_damped_more() -> None:
    """Sums in float32 leave eigenvalues a little below zero: here −0.005 of the mean diagonal."""
    vector = np.random.default_rng(0).standard_normal((1, 8, 1))
    moment = vector @ vector.swapaxes(1, 2)
    moment -= 0.005 / 1.005 * np.trace(moment[0]) / 8 * np.eye(8)
    assert np.linalg.eigvalsh(moment[0])[0] * 8 / np.trace(moment[0]) == pytest.approx(-0.005)
    np.testing.assert_array_equal(factorized(moment, Damping(0.001)), factorized(moment, Damping(0.01)))
    assert not np.array_equal(factorized(moment, Damping(0.02)), factorized(moment, Damping(0.01)))
    both = factorized(np.concatenate([np.eye(8)[None], moment]), Damping(0.001))
    np.testing.assert_allclose(both[0], np.eye(8) / np.sqrt(1.001), rtol=1e-6)  # this group's own damping is kept


def test_a_moment_whose_diagonal_is_below_zero_has_a_factor() -> None:
    """What a mean leaves of a column without spread may be a little below zero."""
    (upper,) = factorized(np.diag([-1e-3, -1e-4])[None], Damping(0.05, 0.05))
    assert np.isfinite(upper).all()


def test_moments_in_single_precision_of_few_rows_have_a_factor() -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 300), np.float32) + np.float32(100)
    moment = (x.swapaxes(1, 2) @ x).astype(np.float64) / 3
    assert np.isfinite(factorized(moment, Damping(1e-9))).all()


def test_moments_of_zeros_have_a_factor() -> None:
    (upper,) = factorized(np.zeros((1, 3, 3)), Damping(0.01))
    np.testing.assert_allclose(upper, 1e16 * np.eye(3), rtol=1e-6)


# ---- compensated ----------------------------------------------------------------------------------------------------


def test_without_correlation_it_is_nearest_rounding() -> None:
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((2, 30, 40))
    widths = np.exp2(generator.integers(-6, 0, (2, 1, 40)))
    for damping in (0.01, 10.0):
        factors = factors_of(np.broadcast_to(np.eye(40), (2, 40, 40)), damping, 17)
        symbols, error = compensated(matrix, factors, widths)
        assert (symbols.dtype, symbols.shape) == (np.int32, matrix.shape)
        np.testing.assert_array_equal(symbols, np.rint(matrix / widths))
        wanted = (1 + damping) * np.sum(np.square(symbols * widths - matrix)) / np.max(np.abs(matrix)) ** 2
        assert error == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(("groups", "size"), [(1, 3), (3, 9), (1, 9), (2, 64), (1, 64), (2, 70), (1, 150)])
def test_symbols_are_those_of_the_definition(groups: int, size: int) -> None:
    """However columns are taken together; single precision may round a few of them to the other side."""
    generator = np.random.default_rng(size)
    matrix = generator.standard_normal((groups, 12, size))
    factors = factors_of(moments(groups, size), 0.1)
    widths = 0.3 * np.exp2(generator.uniform(-1, 1, (groups, 1, size)))
    symbols, _ = compensated(matrix, factors, widths)
    wanted = one_by_one(matrix, factors[0].upper.astype(np.float64), widths)
    assert np.mean(symbols != wanted) < 0.005
    assert np.mean(symbols != np.rint(matrix / widths)) > 0.05


@pytest.mark.parametrize("cuts", [(), (5,), (2, 3, 40)])
def test_the_error_is_that_of_the_outputs(cuts: tuple[int, ...]) -> None:
    """tr((Ŵ − W)(H + λI)(Ŵ − W)ᵀ) / max |W|², of each block where there are several."""
    matrix, moment, widths = (
        np.random.default_rng(0).standard_normal((2, 20, 50)) * 7,
        moments(2, 50),
        np.array([[[2.0]]]),
    )
    symbols, error = compensated(matrix, factors_of(moment, 0.05, *cuts), widths)
    difference, wanted = symbols * widths - matrix, 0.0
    bounds = [0, *cuts, 50]
    for begin, end in itertools.pairwise(bounds):
        block = damped(moment[:, begin:end, begin:end], 0.05)
        wanted += energy(difference[..., begin:end], block)
    assert error == pytest.approx(wanted / np.max(np.abs(matrix)) ** 2, rel=1e-4)


def test_errors_stay_within_a_factor_s_columns() -> None:
    matrix, moment = np.random.default_rng(0).standard_normal((1, 20, 12)), moments(1, 12)
    matrix[0, 0, [0, 7]] = 4.0  # the largest weight of both parts
    factors, widths = factors_of(moment, 0.1, 7), np.full((1, 1, 12), 0.5)
    symbols, error = compensated(matrix, factors, widths)
    total = 0.0
    for factor in factors:
        part = slice(factor.begin, factor.end)
        alone = Factor(0, factor.end - factor.begin, factor.upper)
        found, share = compensated(matrix[..., part], [alone], widths[..., part])
        np.testing.assert_array_equal(symbols[..., part], found)
        total += share
    assert error == pytest.approx(total, rel=1e-12)


def test_weights_are_not_changed_and_may_be_zero() -> None:
    matrix = np.random.default_rng(0).standard_normal((1, 4, 20))
    before = matrix.copy()
    factors = factors_of(moments(1, 20), 0.1)
    compensated(matrix, factors, np.array([[[0.1]]]))
    np.testing.assert_array_equal(matrix, before)
    symbols, error = compensated(np.zeros((1, 4, 20)), factors, np.array([[[0.1]]]))
    assert (np.count_nonzero(symbols), error) == (0, 0.0)


@pytest.mark.parametrize("damping", [1e-6, 0.05])
def test_the_error_falls_as_theory_says(damping: float) -> None:
    """At a high and equal rate, against nearest rounding: by the geometric mean of 1/U_jj² over the mean of diag H.

    That of an AR(1) process with ρ = 0.95 and little damping is almost 1 − ρ², a tenth.
    """
    size, width = 64, 0.02
    matrix, covariance = np.random.default_rng(1).standard_normal((1, 2000, size)), autoregressive(size, 0.95)
    factors = factors_of(covariance, damping)
    conditional = diagonal(factors) ** -2
    mean = float(np.exp(np.mean(np.log(conditional))))
    widths = (width * np.sqrt(mean / conditional))[:, None]  # ∝ U_jj, their geometric mean is `width`
    symbols, error = compensated(matrix, factors, widths)
    nearest = np.rint(matrix / width)
    assert entropy(symbols[..., 0]) - entropy(nearest[..., 0].astype(np.int32)) == pytest.approx(
        -np.log2(widths[0, 0, 0] / width), abs=0.05
    )
    rates = [
        np.mean([entropy(each[..., column].astype(np.int32)) for column in range(size)])
        for each in (symbols, nearest)
    ]  # fmt: skip
    assert rates[0] == pytest.approx(rates[1], abs=0.02)
    level = damped(covariance, damping)
    ratio = energy(symbols * widths - matrix, level) / energy(nearest * width - matrix, level)
    assert ratio == pytest.approx(mean / (1 + damping), rel=0.03)
    assert error * np.max(np.abs(matrix)) ** 2 == pytest.approx(matrix.size * width**2 / 12 * mean, rel=0.03)
    if damping < 1e-3:
        assert mean == pytest.approx((1 - 0.95**2) ** (63 / 64), rel=1e-3)


def test_at_equal_widths_every_column_contributes_its_own_variance() -> None:
    """Σ Δ²/12 · 1/U_jj²: without widths ∝ U_jj the gain is that of the arithmetic mean."""
    size, width = 32, 0.02
    generator = np.random.default_rng(2)
    covariance = autoregressive(size, 0.9) * np.outer(*[np.geomspace(0.3, 3, size)] * 2)
    matrix, factors = generator.standard_normal((1, 3000, size)), factors_of(covariance, 1e-6)
    _, error = compensated(matrix, factors, np.array([[[width]]]))
    wanted = 3000 * width**2 / 12 * float(np.sum(diagonal(factors) ** -2))
    assert error * np.max(np.abs(matrix)) ** 2 == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize("scale", [2.0**-500, 2.0**-30, 2.0**500])
def test_the_scale_of_weights_does_not_matter(scale: float) -> None:
    matrix, factors = np.random.default_rng(0).standard_normal((1, 50, 40)), factors_of(moments(1, 40), 0.01)
    widths = np.full((1, 1, 40), 0.3)
    symbols, error = compensated(matrix, factors, widths)
    scaled, same = compensated(matrix * scale, factors, widths * scale)
    np.testing.assert_array_equal(scaled, symbols)
    assert same == error


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_weights_may_be_very_small_or_very_large(scale: float) -> None:
    matrix, factors = np.random.default_rng(0).standard_normal((1, 50, 40)), factors_of(moments(1, 40), 0.01)
    with np.errstate(all="raise", under="ignore"):
        symbols, error = compensated(matrix * scale, factors, np.array([[[0.3 * scale]]]))
    wanted, same = compensated(matrix, factors, np.array([[[0.3]]]))
    assert np.mean(symbols != wanted) < 0.005
    assert error == pytest.approx(same, rel=1e-3)


def test_the_finest_widths_are_exact_to_single_precision() -> None:
    """The finest bin width of a layer is max |w| / 2²³, and that of a column 2⁴ times narrower."""
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((1, 50, 40)).astype(np.float32).astype(np.float64)
    peak = np.max(np.abs(matrix))
    widths = peak / scalar.SYMBOL_MAX * np.exp2(generator.integers(-CODES_MAX, 1, (1, 1, 40)) / 4)
    symbols, _ = compensated(matrix, factors_of(moments(1, 40, 80), 0.01), widths)
    assert np.max(np.abs(symbols)) <= 1 << 27
    np.testing.assert_allclose(symbols * widths, matrix, rtol=0, atol=1e-6 * peak)


@given(
    seed=st.integers(0, 1 << 30),
    groups=st.integers(1, 3),
    rows=st.integers(1, 8),
    size=st.integers(1, 90),
    samples=st.integers(1, 200),
    damping=st.floats(1e-3, 10),
    spread=st.floats(0, 4),
    fineness=st.floats(-8, 4),
)
def test_every_column_is_rounded_by_half_a_bin_at_most(
    seed: int, groups: int, rows: int, size: int, samples: int, damping: float, spread: float, fineness: float
) -> None:
    """So the error is Σ (Δ_j/2)²/U_jj² for each row at most, whatever moments and widths are."""
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((groups, rows, size)) * 10 ** generator.uniform(-3, 3)
    factors = factors_of(moments(groups, size, samples, seed), damping, *([size // 3] if size > 2 else []))
    peak = float(np.max(np.abs(matrix)))
    widths = peak * np.exp2(fineness + generator.uniform(-spread, spread, (groups, 1, size)))
    symbols, error = compensated(matrix, factors, widths)
    bound = rows * float(np.sum(np.square(widths[:, 0] / peak / 2 / diagonal(factors))))
    assert 0 <= error <= bound * 1.001
    assert np.isfinite(symbols * widths).all()
    if size == 1:
        np.testing.assert_array_equal(
            symbols, np.rint((matrix / peak).astype(np.float32) / (widths / peak).astype("f4"))
        )


# ---- Factor ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 33])
def test_a_factor_gives_back_its_triangle_from_a_quarter_of_the_memory(size: int) -> None:
    """What errors spread by is held in half precision, beside the diagonal."""
    upper = np.triu(np.random.default_rng(0).standard_normal((3, size, size))).astype(np.float32)
    factor = Factor(5, 5 + size, upper)
    np.testing.assert_allclose(factor.upper, upper, rtol=2**-11 + 1e-6)
    np.testing.assert_array_equal(factor.diagonal, np.einsum("gii->gi", upper))
    np.testing.assert_array_equal(Factor(5, 5 + size, factor.upper).upper, factor.upper)
    assert factor.upper is not factor.upper
    held = sum(part.nbytes for part in vars(factor).values() if isinstance(part, np.ndarray))
    assert held == 3 * size * (4 + 2 * (size - 1) // 2)


def test_a_factor_s_triangle_ends_where_half_precision_does() -> None:
    upper = np.array([[[2.0, -1e9, 1e-9], [0, 1e-30, 1e-31], [0, 0, 1e30]]], np.float32)
    wanted = [[2.0, -65504.0 * 2, 0.0], [0.0, 1e-30, 1e-31], [0.0, 0.0, 1e30]]
    np.testing.assert_allclose(Factor(0, 3, upper).upper[0], wanted, rtol=2**-11)
    upper[0, 0] = 0  # of moments beyond what single precision holds
    np.testing.assert_allclose(Factor(0, 3, upper).upper[0], [[0.0] * 3, *wanted[1:]], rtol=2**-11)


# ---- column_codes ---------------------------------------------------------------------------------------------------


def with_diagonal(*columns: list[float]) -> list[Factor]:
    """Factors of one block each, [groups] × [columns] on their diagonals."""
    found, begin = [], 0
    for values in columns:
        rows = np.atleast_2d(np.array(values, np.float32))
        upper = np.zeros((*rows.shape, rows.shape[1]), np.float32)
        np.einsum("gii->gi", upper)[...] = rows
        found.append(Factor(begin, begin + rows.shape[1], upper))
        begin += rows.shape[1]
    return found


def test_codes_are_quarters_of_an_octave_around_the_geometric_mean() -> None:
    found = column_codes(with_diagonal([1.0, 2**0.25, 2**0.5, 2**0.75, 2.0]), np.ones((1, 5), bool))
    assert found.dtype == np.int32
    assert found.tolist() == [[-2, -1, 0, 1, 2]]
    assert column_codes(with_diagonal([1e-20, 4e-20], [2e-20]), np.ones((1, 3), bool)).tolist() == [[-4, 4, 0]]
    assert column_codes(with_diagonal([5.0]), np.ones((1, 1), bool)).tolist() == [[0]]


def test_codes_of_groups_are_around_the_mean_of_all() -> None:
    found = column_codes(with_diagonal([[1.0, 2.0], [4.0, 8.0]]), np.ones((2, 2), bool))
    assert found.tolist() == [[-6, -2], [2, 6]]


def test_codes_are_clipped() -> None:
    assert CODES_MAX == 16
    found = column_codes(with_diagonal([2.0**-30, 1.0, 1.0, 2.0**30]), np.ones((1, 4), bool))
    assert found.tolist() == [[-16, 0, 0, 16]]


def test_columns_that_are_not_exercised_get_no_wider_bins() -> None:
    factors = with_diagonal([0.5, 1.0, 2.0, 0.5, 1.0, 2.0])
    exercised = np.array([[True, True, True, False, False, False]])
    assert column_codes(factors, exercised).tolist() == [[-4, 0, 4, -4, 0, 0]]


@given(seed=st.integers(0, 1 << 30), size=st.integers(1, 40), damping=st.floats(0.01, 10))
def test_codes_give_widths_in_proportion_to_the_factor(seed: int, size: int, damping: float) -> None:
    """To an eighth of an octave, rounded."""
    factors = factors_of(moments(2, size, seed=seed), damping)
    codes = column_codes(factors, np.ones((2, size), bool))
    steps = np.log2(diagonal(factors))
    steps -= steps.mean()
    inside = np.abs(codes) < CODES_MAX
    assert (np.abs(codes / 4 - steps) <= 0.125 + 1e-6)[inside].all()
