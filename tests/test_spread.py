"""Errors of rows that are pushed onto later rows: against a plain implementation, and against what theory says."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from riq_cli.quantize import Damping, Factor, Spread, compensated, factorized, spread, trellised
from riq_cli.quantize.trellis import Viterbi

Floats = NDArray[np.float64]
Integers = NDArray[np.int32]
Rounded = Callable[..., tuple[Integers, float]]


def moment(size: int, seed: int = 0) -> Floats:
    """A random second moment [size, size], of twice as many mixed rows."""
    generator = np.random.default_rng([size, seed])
    x = generator.standard_normal((2 * size, size)) @ generator.standard_normal((size, size))
    return np.asarray(x.T @ x / len(x))


def factors_of(groups: int, size: int, *cuts: int, damping: float = 0.1) -> list[Factor]:
    moments = np.stack([moment(size, 100 + group) for group in range(groups)])
    return [
        Factor(begin, end, factorized(moments[:, begin:end, begin:end], Damping(damping)))
        for begin, end in itertools.pairwise([0, *cuts, size])
    ]


def error_of(found: Spread, moments: Floats, squares: Floats) -> float:
    """Σ E[eᵀ G e] of errors e of rows, by their mean squares when they are rounded; rows by ascending number."""
    rows = found.rows.reshape(-1)
    there = np.flatnonzero(rows >= 0)
    order = np.argsort(np.argsort(rows[there]))
    ways, length = np.eye(rows.size), found.rows.shape[1]  # from errors when rounded to those of the weights
    for block, shares in enumerate(found.shares):
        end = (block + 1) * length
        ways[end:, end - length : end] = shares.T
    ways = ways[np.ix_(there, there)]
    return float(np.einsum("ij,ij,j->", ways, moments[np.ix_(order, order)] @ ways, squares[order]))


def spreads_of(groups: int, rows: int, *cuts: int, damping: float = 0.1) -> tuple[list[Spread], Floats]:
    """Spreads of runs of rows, cut at these, and how much all rows matter."""
    importance, spreads = np.empty((groups, rows)), []
    for group, (begin, end) in itertools.product(range(groups), itertools.pairwise([0, *cuts, rows])):
        run = np.arange(begin, end)
        found, importance[group, run] = spread(group, run, moment(end - begin, group), Damping(damping))
        spreads.append(found)
    return spreads, importance


def in_order(
    rounded: Rounded, matrix: Floats, factors: Sequence[Factor], widths: Floats, spreads: Sequence[Spread],
    importance: Floats | None, part: float = 1.0,
) -> tuple[Integers, float]:  # fmt: skip
    """As the definition has it: W'_b = W_b − Σ earlier sharesᵀ · residuals, block after block, each rounded alone."""
    symbols, total = np.empty(matrix.shape, np.int32), 0.0
    widths = np.broadcast_to(widths, matrix.shape)
    for each in spreads:
        group, goal = each.group, matrix[each.group].copy()
        own_factors = [Factor(item.begin, item.end, item.upper[group : group + 1]) for item in factors]
        for block, (numbers, shares) in enumerate(zip(each.rows, each.shares, strict=True)):
            own, later = numbers >= 0, each.rows[block + 1 :].reshape(-1)
            rows, target = numbers[own], goal[numbers[own]]
            weights = None if importance is None else importance[group, rows][None]
            found, error = rounded(target[None], own_factors, widths[group, rows][None], (), weights)
            symbols[group, rows] = found[0]
            total += error * (np.abs(target).max() / np.abs(matrix).max()) ** 2
            residual = target - found[0] * part * widths[group, rows]
            goal[later[later >= 0]] -= shares[own][:, later >= 0].T @ residual
    return symbols, total


def alone(symbols: Integers, matrix: Floats, factors: Sequence[Factor], widths: Floats) -> Integers:
    """Where symbols differ from those without spreads."""
    return np.flatnonzero(symbols != compensated(matrix, factors, widths)[0])


# ---- blocks after blocks --------------------------------------------------------------------------------------------

SIZES = [(7, 11), (1, 11), (40, 5), (70, 11), (70, 150), (33, 64)]


@pytest.mark.parametrize(("rows", "size"), SIZES)
@pytest.mark.parametrize(("cuts", "by_rows"), [(None, False), ((), True), ((3,), False), ((2, 4), True)])
def test_symbols_and_error_are_those_of_one_block_after_the_other(
    rows: int, size: int, cuts: tuple[int, ...] | None, by_rows: bool
) -> None:
    """However many blocks and columns are rounded side by side; without factors too. None is half-way between bins."""
    generator = np.random.default_rng(rows + 1)
    matrix = generator.standard_normal((2, rows, size))
    widths = 0.3 * np.exp2(generator.uniform(-1, 1, (2, rows if by_rows else 1, size)))
    factors = [] if cuts is None else factors_of(2, size, *cuts)
    spreads, importance = spreads_of(2, rows)
    symbols, error = compensated(matrix, factors, widths, spreads, importance)
    wanted, total = in_order(compensated, matrix, factors, widths, spreads, importance)
    assert (symbols.dtype, symbols.shape) == (np.int32, matrix.shape)
    np.testing.assert_array_equal(symbols, wanted)
    assert error == pytest.approx(total, rel=1e-4)
    assert len(alone(symbols, matrix, factors, widths)) > (0.05 * matrix.size if rows > 1 else -1)
    unweighted = compensated(matrix, factors, widths, spreads)
    np.testing.assert_array_equal(unweighted[0], symbols)
    assert unweighted[1] == pytest.approx(in_order(compensated, matrix, factors, widths, spreads, None)[1], rel=1e-4)


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 6])
def test_blocks_may_hold_rows_that_are_not_there(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """7 rows in blocks of 7, 4, 3, 2 and 2: where some are not there, nothing is taken from or given to them."""
    monkeypatch.setattr(importlib.import_module("riq_cli.quantize.spread"), "_BLOCKS", blocks)
    matrix, widths = np.random.default_rng(blocks).standard_normal((2, 7, 11)), np.full((1, 1, 11), 0.4)
    spreads, importance = spreads_of(2, 7)
    assert spreads[0].rows.shape == {1: (1, 7), 2: (2, 4), 3: (3, 3), 4: (4, 2), 6: (4, 2)}[blocks]
    assert sorted(spreads[0].rows[spreads[0].rows >= 0]) == list(range(7))
    factors = factors_of(2, 11, 6)
    for rounded, part in ((compensated, 1.0), (trellised, 0.25)):
        symbols, error = rounded(matrix, factors, widths, spreads, importance)
        wanted, total = in_order(rounded, matrix, factors, widths, spreads, importance, part)
        np.testing.assert_array_equal(symbols, wanted)
        assert error == pytest.approx(total, rel=1e-4)
    if blocks == 1:  # errors within a block do not spread
        np.testing.assert_array_equal(symbols, trellised(matrix, factors, widths)[0])


def test_runs_of_rows_are_rounded_on_their_own() -> None:
    """Several spreads of a group, one of a single row."""
    matrix, widths = np.random.default_rng(2).standard_normal((2, 50, 11)), np.full((1, 50, 11), 0.3)
    spreads, importance = spreads_of(2, 50, 1, 20)
    factors = factors_of(2, 11, 4)
    symbols, error = compensated(matrix, factors, widths, spreads, importance)
    wanted, total = in_order(compensated, matrix, factors, widths, spreads, importance)
    np.testing.assert_array_equal(symbols, wanted)
    assert error == pytest.approx(total, rel=1e-4)
    np.testing.assert_array_equal(symbols[:, 0], compensated(matrix, factors, widths)[0][:, 0])
    np.testing.assert_array_equal(compensated(matrix, factors, widths, spreads[::-1])[0], symbols)


@pytest.mark.parametrize("together", [1, 300, 1 << 20])
@pytest.mark.parametrize(("rounded", "part"), [(compensated, 1.0), (trellised, 0.25)])
def test_runs_of_as_many_rows_are_rounded_side_by_side(
    rounded: Rounded, part: float, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one, two and two, or all four of a group: it is the same; panels of columns that double too."""
    monkeypatch.setattr("riq_cli.quantize.compensation._TOGETHER", together)
    monkeypatch.setattr("riq_cli.quantize.waves._WAYS_MIN", 64)
    matrix, widths = np.random.default_rng(5).standard_normal((2, 50, 11)), np.full((1, 1, 11), 0.3)
    spreads, importance = spreads_of(2, 50, 12, 24, 36)
    assert [each.rows.shape for each in spreads[:4]] == [(12, 1), (12, 1), (12, 1), (14, 1)]
    factors = factors_of(2, 11, 4)
    symbols, error = rounded(matrix, factors, widths, spreads, importance)
    wanted, total = in_order(rounded, matrix, factors, widths, spreads, importance, part)
    np.testing.assert_array_equal(symbols, wanted)
    assert error == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("rounded", [compensated, trellised])
@pytest.mark.parametrize("spread_out", [False, True])
def test_rows_may_scale_bin_widths(rounded: Rounded, spread_out: bool) -> None:
    generator = np.random.default_rng(6)
    matrix, scales = generator.standard_normal((2, 30, 40)), np.exp2(generator.integers(-3, 3, (2, 30)))
    widths = 0.3 * np.exp2(generator.uniform(-1, 1, (2, 1, 40)))
    spreads, importance = spreads_of(2, 30)
    given = (spreads if spread_out else (), importance)
    symbols, error = rounded(matrix, factors_of(2, 40), widths, *given, scales)
    wanted, same = rounded(matrix, factors_of(2, 40), widths * scales[..., None], *given)
    np.testing.assert_array_equal(symbols, wanted)
    assert error == same
    assert (symbols != rounded(matrix, factors_of(2, 40), widths, *given)[0]).any()


@given(
    seed=st.integers(0, 1 << 30),
    groups=st.integers(1, 2),
    rows=st.integers(1, 90),
    size=st.integers(1, 40),
    cut=st.floats(0, 1),
    compensate=st.booleans(),
    fineness=st.floats(-6, 2),
    damping=st.floats(1e-2, 10),
    scale=st.sampled_from([1.0, 1e-20, 1e20]),
)
def test_every_weight_is_rounded_to_the_nearest_of_what_earlier_errors_made_of_it(
    seed: int, groups: int, rows: int, size: int, cut: float, compensate: bool, fineness: float, damping: float,
    scale: float,
) -> None:  # fmt: skip
    """By half a bin at most, whatever moments and widths are; what is told is Σ importance · errors² / U_jj²."""
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((groups, rows, size)) * scale
    widths = scale * np.exp2(fineness + generator.uniform(-1, 1, (groups, rows, size)))
    factors = factors_of(groups, size, *([size // 2] if size > 2 else []), damping=damping) if compensate else []
    middle = int(cut * rows)
    spreads, importance = spreads_of(groups, rows, *([middle] if 0 < middle < rows else []), damping=damping)
    symbols, error = compensated(matrix, factors, widths, spreads, importance)
    goals = matrix.copy()
    for each in spreads:
        for block, (numbers, shares) in enumerate(zip(each.rows, each.shares, strict=True)):
            own, later = numbers >= 0, each.rows[block + 1 :].reshape(-1)
            chosen = numbers[own]
            residual = goals[each.group, chosen] - (symbols * widths)[each.group, chosen]
            goals[each.group, later[later >= 0]] -= shares[own][:, later >= 0].T @ residual
    total, left = 0.0, goals
    for item in factors or [Factor(0, size, np.broadcast_to(np.eye(size, dtype=np.float32), (groups, size, size)))]:
        upper = item.upper.astype(np.float64)
        for column in range(item.end - item.begin):
            at = item.begin + column
            missing = (left[..., at] - (symbols * widths)[..., at]) / upper[:, column, column, None]
            left[..., at : item.end] -= missing[..., None] * upper[:, None, column, column:]
            moved = missing * upper[:, column, column, None]
            largest = np.abs(matrix).max() / widths.min()
            assert (np.abs(moved / widths[..., at]) <= 0.5 + 2e-6 * largest + 1e-4 * size).all()
            total += float(np.sum(importance * np.square(missing)))
    assert error == pytest.approx(total / np.abs(matrix).max() ** 2, rel=1e-2)


# ---- along a trellis ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "size"), [(7, 8), (70, 8), (40, 32)])
@pytest.mark.parametrize("compensate", [False, True])
def test_a_trellis_of_one_panel_is_that_of_one_block_after_the_other(rows: int, size: int, compensate: bool) -> None:
    matrix, widths = np.random.default_rng(rows).standard_normal((2, rows, size)), np.full((1, 1, size), 0.5)
    factors = factors_of(2, size) if compensate else []
    spreads, importance = spreads_of(2, rows)
    levels, error = trellised(matrix, factors, widths, spreads, importance)
    wanted, total = in_order(trellised, matrix, factors, widths, spreads, importance, 0.25)
    np.testing.assert_array_equal(levels, wanted)
    assert error == pytest.approx(total, rel=1e-4)


def by_panels(
    matrix: Floats, factors: Sequence[Factor], widths: Floats, spreads: Sequence[Spread], importance: Floats | None
) -> tuple[Integers, float]:
    """A trellis of one group that settles on a way every so many columns, as waves have it do."""
    (left,), (bins,) = np.float32(matrix.swapaxes(1, 2)), np.float32(widths.swapaxes(1, 2))
    levels, errors = np.empty(left.shape, np.int32), np.empty_like(left)
    ways, extent = Viterbi(1, left.shape[1]), min(max(left.shape[0] // 16, 32), 64)
    bounds = [(item.begin, item.end, item.upper[0]) for item in factors] or [(0, len(left), None)]
    for begin, end, upper in bounds:
        for first in range(begin, end, extent):
            part = slice(first, min(first + extent, end))
            own = slice(first - begin, part.stop - begin)
            block = None if upper is None else upper[None, own, own]
            ways.extend(left[None, part], bins[None, part], block, levels[None, part], errors[None, part])
            if upper is not None:
                left[part.stop : end] -= upper[own, part.stop - begin :].T @ errors[part]
    squares = np.square(errors, dtype=np.float64).sum(axis=0) * (1.0 if importance is None else importance[0])
    return levels.T[None], float(squares.sum()) / np.abs(matrix).max() ** 2


@pytest.mark.parametrize(("rows", "size", "cuts"), [(30, 70, (37,)), (12, 100, ())])
@pytest.mark.parametrize("compensate", [False, True])
def test_a_trellis_of_many_panels_goes_on_from_one_to_the_next(
    rows: int, size: int, cuts: tuple[int, ...], compensate: bool
) -> None:
    matrix = np.random.default_rng(rows).standard_normal((2, rows, size))
    matrix /= np.abs(matrix).max()  # so that single precision rounds the same numbers
    widths = np.full((2, rows, size), 0.125)
    factors = factors_of(2, size, *cuts) if compensate else []
    spreads, importance = spreads_of(2, rows)
    levels, error = trellised(matrix, factors, widths, spreads, importance)
    wanted, total = in_order(by_panels, matrix, factors, widths, spreads, importance, 0.25)
    assert np.mean(levels != wanted) < 0.002
    assert error == pytest.approx(total, rel=1e-3)
    assert error < 0.9 * compensated(matrix, factors, widths, spreads, importance)[1]


@pytest.mark.parametrize("size", [20, 64, 130])
def test_a_trellis_saves_nearly_as_much_where_errors_of_rows_spread(size: int) -> None:
    """Viterbi are settled on at the ends of panels, in time for later rows."""
    matrix, widths = np.random.default_rng(size).standard_normal((1, 96, size)), np.full((1, 1, size), 0.3)
    factors, (spreads, importance) = factors_of(1, size), spreads_of(1, 96)
    ratios = [
        trellised(matrix, factors, widths, given_spreads, importance)[1]
        / compensated(matrix, factors, widths, given_spreads, importance)[1]
        for given_spreads in (spreads, ())
    ]
    assert ratios[0] < ratios[1] + 0.035


# ---- theory ---------------------------------------------------------------------------------------------------------


def damped(moments: Floats, damping: float) -> Floats:
    return moments + damping * np.trace(moments) / len(moments) * np.eye(len(moments))


def test_rows_that_matter_each_on_their_own_are_rounded_alone() -> None:
    diagonal = np.exp2(np.arange(-20, 20) / 4)
    found, importance = spread(0, np.arange(40), np.diag(diagonal), Damping(0.1))
    assert all(not share.any() for share in found.shares)
    np.testing.assert_allclose(importance, diagonal + 0.1 * diagonal.mean(), rtol=1e-6)
    matrix, widths = np.random.default_rng(0).standard_normal((1, 40, 30)), np.full((1, 1, 30), 0.3)
    for factors in ([], factors_of(1, 30)):
        symbols, error = compensated(matrix, factors, widths, [found])
        plain, same = compensated(matrix, factors, widths)
        np.testing.assert_array_equal(symbols, plain)
        assert error == pytest.approx(same, rel=1e-6)
        weighted = compensated(matrix, factors, widths, [found], importance[None])[1]
        assert weighted == pytest.approx(compensated(matrix, factors, widths, (), importance[None])[1], rel=1e-6)
    _, scaled = spread(0, np.arange(40), np.diag(diagonal) * 1e20, Damping(0.1))
    np.testing.assert_allclose(scaled, 1e20 * importance, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 5, 32, 33, 70, 100])
def test_a_row_matters_by_what_later_blocks_leave_of_it(rows: int) -> None:
    """The Schur complement of all later blocks; what these take over, −G_ll⁻¹ G_lb, makes up for as much as can be."""
    moments = damped(moment(rows), 0.05)
    found, importance = spread(0, np.arange(rows), moment(rows), Damping(0.05))
    dets = 0.0
    for block, (numbers, shares) in enumerate(zip(found.rows, found.shares, strict=True)):
        own, later = numbers >= 0, found.rows[block + 1 :].reshape(-1)
        here, there = numbers[own], later[later >= 0]
        best = -np.linalg.solve(moments[np.ix_(there, there)], moments[np.ix_(there, here)])
        np.testing.assert_allclose(shares[own][:, later >= 0].T, best, rtol=0, atol=1e-3)
        assert not shares[~own].any()
        assert not shares[:, later < 0].any()
        schur = moments[np.ix_(here, here)] + moments[np.ix_(here, there)] @ best
        np.testing.assert_allclose(importance[here], np.diag(schur), rtol=1e-3)
        dets += float(np.linalg.slogdet(schur)[1])
    whole = float(np.linalg.slogdet(moments)[1])
    assert dets == pytest.approx(whole, rel=1e-3, abs=1e-3)
    total = float(np.log(importance).sum())
    assert total == pytest.approx(whole, rel=1e-3, abs=1e-3) if rows <= 32 else total > whole  # a row is a block
    assert (importance <= np.diag(moments) * 1.001).all()


def ways_of(found: Spread, rows: NDArray[np.int64]) -> Floats:
    """What an error of each row, when it is rounded, does to all, by ascending number: pushed on step by step."""
    place = {int(number): index for index, number in enumerate(rows)}
    result = np.empty((len(rows), len(rows)))
    for number, index in place.items():
        goal, off = np.zeros(len(rows)), np.zeros(len(rows))
        for block, (numbers, shares) in enumerate(zip(found.rows, found.shares, strict=True)):
            later = found.rows[block + 1 :].reshape(-1)
            for own, share in zip(numbers, shares, strict=True):
                if own < 0:
                    continue
                error = float(own == number)
                off[place[int(own)]] = goal[place[int(own)]] + error
                for other, taken in zip(later, share, strict=True):
                    if other >= 0:
                        goal[place[int(other)]] += taken * error
        result[:, index] = off
    return result


@pytest.mark.parametrize("rows", [np.arange(7), np.arange(20, 60), np.arange(0, 140, 2)])
def test_the_error_of_a_spread_is_that_of_its_steps(rows: NDArray[np.int64]) -> None:
    found, importance = spread(0, rows, moment(len(rows)), Damping(0.1))
    ways, other = ways_of(found, rows), moment(len(rows), 7)
    wanted = ways.T @ other @ ways
    assert error_of(found, other, np.ones(len(rows))) == pytest.approx(np.trace(wanted), rel=1e-9)
    squares = np.random.default_rng(0).uniform(0.1, 10, len(rows))
    assert error_of(found, other, squares) == pytest.approx(np.diag(wanted) @ squares, rel=1e-9)
    own = error_of(
        found, damped(moment(len(rows)), 0.1), squares
    )  # of the moments it was made of: what is left of rows
    assert own == pytest.approx(importance @ squares, rel=1e-3)


@pytest.mark.parametrize(("rows", "size"), [(24, 30), (70, 16)])
@pytest.mark.parametrize("rounded", [compensated, trellised])
def test_at_high_rate_outputs_move_as_much_less_as_a_spread_tells(rows: int, size: int, rounded: Rounded) -> None:
    """tr(G E H Eᵀ): of rows rounded alone it is Σ G_ii q, q = Σ_j Δ²/12/U_jj²; with a spread, `error_of` tells."""
    second, width, part = damped(moment(size, 1), 0.1), 0.02, 0.25 if rounded is trellised else 1.0
    factors = [Factor(0, size, factorized(moment(size, 1)[None], Damping(0.1)))]
    found, predicted = [], []
    for seed in range(3):
        effects = damped(moment(rows, seed), 0.1)
        each, importance = spread(0, np.arange(rows), moment(rows, seed), Damping(0.1))
        matrix, widths = np.random.default_rng(seed).standard_normal((1, rows, size)), np.full((1, rows, 1), width)
        mean = float(np.exp(np.log(importance).mean()))
        suited = width * np.sqrt(mean / importance)[None, :, None]  # of the same geometric mean
        moved = []
        for spreads, steps in (((), widths), ((each,), widths), ((each,), suited)):
            symbols, _ = rounded(matrix, factors, steps, spreads)
            off = (symbols * part * steps - matrix)[0]
            moved.append(float(np.einsum("ij,jk,kl,il->", effects, off, second, off)))
        conditional = float(np.sum(np.diagonal(factors[0].upper[0]).astype(np.float64) ** -2.0))
        q = width**2 / 12 * conditional
        if rounded is compensated:
            assert moved[0] == pytest.approx(q * np.trace(effects), rel=0.4)
        found.append(np.log([moved[1] / moved[0], moved[2] / moved[0]]))
        equal = error_of(each, effects, np.ones(rows)) / np.trace(effects)
        assert error_of(each, effects, mean / importance) == pytest.approx(rows * mean, rel=1e-3)
        predicted.append(np.log([equal, rows * mean / np.trace(effects)]))
    np.testing.assert_allclose(np.mean(found, axis=0), np.mean(predicted, axis=0), rtol=0, atol=0.1)
    assert np.mean(predicted, axis=0)[0] < -0.3
