"""Rows told apart by what their errors do to the outputs: when that pays, by how much, and what a plan makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from riq_cli.allocate.allocation import Allocation
from riq_cli.entropy.codes import Codes
from riq_cli.entropy.rate import estimated_bits
from riq_cli.model import Layer
from riq_cli.model.matrix import Arrangement
from riq_cli.pipeline.importance import FEW, with_importance
from riq_cli.pipeline.plans import Plan, nearest_widths
from riq_cli.pipeline.probing import Probes
from riq_cli.pipeline.solution import Scheme
from riq_cli.pipeline.weights import Weights
from riq_cli.quantize import CODES_MAX, Damping, Factor, factorized, spread
from riq_cli.quantize.scalar import bin_widths
from riq_cli.statistics.autodiff import Effects
from tests.test_codes import layer_of

Floats = NDArray[np.float64]


def planned(groups: int, rows: int, columns: int = 20, seed: int = 0) -> tuple[Layer, Plan]:
    """A layer of these matrices, rounded to the nearest."""
    shape = (groups, rows, columns)
    layer = layer_of(np.random.default_rng(seed).standard_normal(shape))
    return layer, Plan.of(Arrangement.of(shape).matrix((0,), (1,), (2,)))


def effects_of(values: Floats, few: bool | None = None, most: int = 1024) -> Effects:
    """Of effects [count, groups, rows]."""
    alone = values.shape[2] < FEW if few is None else few
    result = Effects(values.shape[1], values.shape[2], most, alone)
    for begin in range(0, len(values), 7):
        result.add(values[begin : begin + 7].astype(np.float32))
    return result


def one_at_a_time(scales: Floats, most: int = 1024) -> Effects:
    """Effects of each row alone, of these mean squares: second moments are exactly diagonal."""
    roots = np.sqrt(scales * scales.size)
    return effects_of(np.diag(roots.reshape(-1)).reshape(-1, *scales.shape), most=most)


def drawn(covariance: Floats, count: int, seed: int) -> Effects:
    """Normal effects of the rows of one group."""
    values = np.random.default_rng(seed).standard_normal((count, len(covariance)))
    return effects_of((values @ np.linalg.cholesky(covariance).T)[:, None])


def found(halves: tuple[Effects, Effects], groups: int, rows: int) -> Plan | None:
    layer, plan = planned(groups, rows)
    return with_importance(plan, layer, 0.02, halves)


def expected_codes(squares: Floats, damping: Damping | None) -> NDArray[np.int32]:
    """Bin widths ∝ 1/√(mean square, damped), four steps for each octave."""
    assert damping is not None
    steps = -2 * np.log2(squares * (1 + damping.own) + damping.even * squares.mean())
    return np.clip(np.rint(steps - steps.mean()), -16, 16).astype(np.int32)


FORMS = [(1, 12), (4, 8), (12, 1), (20, 3)]  # the last two are of groups too small for errors to spread


# ---- what pays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "rows"), FORMS)
def test_rows_that_matter_alike_are_not_told_apart(groups: int, rows: int) -> None:
    same = one_at_a_time(np.ones((groups, rows)))
    assert found((same, same), groups, rows) is None
    normal = [np.random.default_rng(seed).standard_normal((4000, groups, rows)) for seed in (0, 1)]
    assert found((effects_of(normal[0]), effects_of(normal[1])), groups, rows) is None


@pytest.mark.parametrize(("groups", "rows"), FORMS)
@pytest.mark.parametrize("scale", [1e-50, 1e-25, 1e-12, 1.0, 1e25])
def test_bins_are_as_much_narrower_as_effects_are_larger(groups: int, rows: int, scale: float) -> None:
    """Four quarters of an octave for each doubling, but for damping: as little of it as is tried."""
    size = groups * rows
    squares = 4.0 ** np.random.default_rng(0).permutation(np.arange(size) * 12 // size - 6).reshape(groups, rows)
    halves = one_at_a_time(squares * scale), one_at_a_time(squares * scale)
    plan = found(halves, groups, rows)
    assert plan is not None
    assert plan.row_damping == Damping.of(0.1, 0.5)
    np.testing.assert_array_equal(plan.rows, expected_codes(squares, plan.row_damping))
    assert np.ptp(plan.rows) > 4 * 3
    assert plan.importance is not None
    wanted = 1.05 * squares + 0.05 * squares.mean()
    np.testing.assert_allclose(plan.importance, wanted / np.exp(np.log(wanted).mean()), rtol=1e-4)
    assert bool(plan.spreads) == (rows >= FEW)
    assert all(not share.any() for each in plan.spreads for share in each.shares)
    assert [codes.axes for codes in plan.scales] == [(0, 1) if groups > 1 and rows > 1 else ((0,), (1,))[rows > 1]]
    np.testing.assert_array_equal(plan.scales[0].values.reshape(groups, rows), plan.rows)


def test_a_doubling_is_an_octave_where_damping_is_little() -> None:
    squares = np.concatenate([np.full(300, 1.0), 4.0 ** np.arange(2, 5)])[None]
    plan = found((one_at_a_time(squares), one_at_a_time(squares)), 1, 303)
    assert plan is not None
    assert plan.row_damping == Damping.of(10, 0.5)
    np.testing.assert_array_equal(plan.rows, expected_codes(squares, plan.row_damping))
    np.testing.assert_array_equal(np.diff(plan.rows[0, -3:]), [-4, -4])


@pytest.mark.parametrize(("groups", "rows"), [(1, 2000), (2000, 1)])
def test_bins_are_at_most_so_much_narrower(groups: int, rows: int) -> None:
    squares = np.where(np.arange(2000) == 77, 1e10, 1e-10).reshape(groups, rows)
    few = np.sqrt(np.diag(squares.reshape(-1))[[0, 5, 77], None])
    one = one_at_a_time(squares) if rows == 1 else effects_of(few, most=64)
    plan = found((one, one), groups, rows)
    assert plan is not None
    codes = plan.rows.reshape(-1)
    assert codes[77] == -CODES_MAX
    assert (np.delete(codes, 77) == 0).all()  # nearly all rows are the mean


@pytest.mark.parametrize(("groups", "rows"), FORMS)
def test_halves_that_contradict_each_other_tell_nothing(groups: int, rows: int) -> None:
    first = np.where(np.arange(groups * rows) % 2, 100.0, 0.01).reshape(groups, rows)
    halves = one_at_a_time(first), one_at_a_time(1 / first)
    assert found(halves, groups, rows) is None
    assert found(halves[::-1], groups, rows) is None
    assert found((halves[0], halves[0]), groups, rows) is not None


def test_halves_that_contradict_each_other_in_how_rows_go_together_tell_nothing() -> None:
    steps = np.abs(np.subtract.outer(np.arange(16), np.arange(16)))
    one, other = (correlation**steps for correlation in (0.9, -0.9))
    assert found((drawn(one, 500, 0), drawn(other, 500, 1)), 1, 16) is None
    plan = found((drawn(one, 500, 0), drawn(one, 500, 1)), 1, 16)
    assert plan is not None
    assert len(plan.spreads) == 1


def test_damping_is_what_the_other_half_bears() -> None:
    """Of the same process, but of less effects than rows: as much as makes up for that."""
    steps = np.abs(np.subtract.outer(np.arange(40), np.arange(40)))
    chosen = []
    for count in (2000, 60, 4):
        halves = drawn(0.95**steps, count, 0), drawn(0.95**steps, count, 1)
        plan = found(halves, 1, 40)
        assert plan is not None
        assert plan.importance is not None
        both = sum(half.moments(0, np.arange(40)) for half in halves)
        assert plan.row_damping is not None
        wanted = spread(0, np.arange(40), both, plan.row_damping)[1]
        np.testing.assert_allclose(plan.importance[0], wanted / np.exp(np.log(wanted).mean()), rtol=1e-3)
        chosen.append(round(plan.row_damping.level, 4))
    assert chosen == sorted(chosen)
    assert chosen[0] == 0.1
    assert chosen[-1] > 0.1


@pytest.mark.parametrize(("groups", "rows"), FORMS)
def test_a_half_without_effects_tells_nothing(groups: int, rows: int) -> None:
    squares = 4.0 ** np.arange(groups * rows).reshape(groups, rows)[:, ::-1] % 1e6 + 1
    good, empty = one_at_a_time(squares), Effects(groups, rows, alone=rows < FEW)
    zeros, broken = effects_of(np.zeros((9, groups, rows))), effects_of(np.full((9, groups, rows), np.nan))
    for bad in (empty, zeros, broken):
        assert found((good, bad), groups, rows) is None
        assert found((bad, good), groups, rows) is None
        assert found((bad, bad), groups, rows) is None


@pytest.mark.parametrize("most", [8, 9, 10, 100])
def test_errors_spread_within_runs_of_rows(most: int) -> None:
    generator = np.random.default_rng(0)
    mixed = generator.standard_normal((20, 20)) * np.exp2(np.arange(20) / 4)
    values = [generator.standard_normal((300, 2, 20)) @ mixed for _ in range(2)]
    plan = found((effects_of(values[0], most=most), effects_of(values[1], most=most)), 2, 20)
    assert plan is not None
    runs = {8: [6, 7, 7], 9: [6, 7, 7], 10: [10, 10], 100: [20]}[most]
    assert [(each.group, int((each.rows >= 0).sum())) for each in plan.spreads] == [
        (g, n) for g in (0, 1) for n in runs
    ]
    for group in (0, 1):
        numbers = np.concatenate([each.rows.reshape(-1) for each in plan.spreads if each.group == group])
        assert sorted(numbers[numbers >= 0]) == list(range(20))


@pytest.mark.parametrize("most", [10, 40])
def test_rows_without_effects_are_damped_as_all_others_are(most: int) -> None:
    """A group, or a run of rows, that the samples do not exercise, in one half or in both."""
    squares = np.stack([4.0 ** (np.arange(40) % 5), np.where(np.arange(40) < 20, 0.0, 3.0), np.zeros(40)])
    once = squares.copy()
    once[2] = 1e-3
    for first, second in ((squares, squares), (squares, once)):
        plan = found((one_at_a_time(first, most), one_at_a_time(second, most)), 3, 40)
        assert plan is not None
        joined = first + second
        assert plan.row_damping == Damping.of(0.1, 0.5)
        np.testing.assert_array_equal(plan.rows, expected_codes(joined, plan.row_damping))
        assert all(np.isfinite(share).all() for each in plan.spreads for share in each.shares)


def test_variations_of_samples_are_counted_where_that_does_better_on_samples() -> None:
    layer, plan = planned(1, 24)
    steps = np.abs(np.arange(24)[:, None] - np.arange(24))
    truth, other = 0.95**steps, np.diag(np.exp2(np.arange(24) % 7))
    few = drawn(truth, 10, 0), drawn(truth, 10, 1)
    alone = with_importance(plan, layer, 0.02, few)
    assert alone is not None and not alone.rows_varied

    def caused(told: Plan) -> float:
        """What rounding does to the outputs, at equal rate: bin widths of the rows are ∝ 1/√importance."""
        errors = told.rounded(layer, 0.02)[0].restored("float32", layer.shape).reshape(24, 20) - layer.values[0]
        return float(np.sum(errors * (truth @ errors)))

    for more, helps in (
        ((drawn(truth, 500, 2), drawn(truth, 500, 3)), True),
        ((drawn(other, 500, 2), drawn(other, 500, 3)), False),
        ((effects_of(np.zeros((3, 1, 24))), drawn(truth, 500, 3)), False),
    ):
        told = with_importance(plan, layer, 0.02, few, None, more)
        assert told is not None and told.importance is not None and alone.importance is not None
        assert told.rows_varied == helps
        if helps:
            assert caused(told) < 0.9 * caused(alone)
        else:
            np.testing.assert_array_equal(told.importance, alone.importance)
        for before in (told, alone):
            again = with_importance(plan, layer, 0.02, few, before, more)
            assert again is not None and again.rows_varied == before.rows_varied
            assert with_importance(plan, layer, 0.02, few, before) is not None


def test_variations_say_nothing_of_the_rows_of_a_layer_that_is_nearly_all_zeros() -> None:
    layer, plan = planned(1, 24)
    truth = 0.95 ** np.abs(np.arange(24)[:, None] - np.arange(24))
    few, more = (drawn(truth, 10, 0), drawn(truth, 10, 1)), (drawn(truth, 500, 2), drawn(truth, 500, 3))
    share = np.mean(np.abs(layer.values) > 3.0 / 2)
    assert 0.1 < share < 0.2
    for width, taken in ((3.0, True), (6.0, False)):
        told = with_importance(plan, layer, width, few, None, more)
        assert (told is not None and told.rows_varied) == taken


# ---- what a plan makes of it ----------------------------------------------------------------------------------------


def important(
    groups: int, rows: int, columns: int = 20, spreads: bool = True, factors: bool = False
) -> tuple[Layer, Plan]:
    """A layer with rows told apart, of mixed effects."""
    layer, plan = planned(groups, rows, columns)
    generator = np.random.default_rng(rows)
    mixed = generator.standard_normal((rows, rows)) * np.exp2(np.arange(rows) / 4 % 6)
    values = [generator.standard_normal((300, groups, rows)) @ mixed for _ in range(2)]
    told = with_importance(plan, layer, 0.02, (effects_of(values[0]), effects_of(values[1])))
    assert told is not None
    if factors:
        x = generator.standard_normal((groups, 2 * columns, columns)) @ generator.standard_normal((columns, columns))
        moments = x.swapaxes(1, 2) @ x / columns
        told = replace(told, factors=(Factor(0, columns, factorized(moments, Damping(0.1))),))
    return layer, told if spreads else replace(told, spreads=())


@pytest.mark.parametrize("trellis", [False, True])
@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("spreads", [False, True])
def test_a_layer_is_rounded_the_same_every_time(trellis: bool, factors: bool, spreads: bool) -> None:
    layer, plan = important(2, 40, spreads=spreads, factors=factors)
    plan = replace(plan, trellis=trellis)
    before = layer.values.copy()
    (one, error), (other, same) = (plan.rounded(layer, 0.2) for _ in range(2))
    np.testing.assert_array_equal(one.symbols, other.symbols)
    assert error == same
    np.testing.assert_array_equal(layer.values, before)
    assert (one.trellis is not None) == trellis


@pytest.mark.parametrize("trellis", [False, True])
@pytest.mark.parametrize("factors", [False, True])
def test_all_rows_sampled_are_the_layer(trellis: bool, factors: bool) -> None:
    """Exactly, where errors do not spread among rows; nearly, where they do: rows are of other weights then."""
    layer, plan = important(2, 40, factors=factors)
    plan = replace(plan, trellis=trellis)
    bits, error = plan.sampled(layer, 0.2)
    quantized, whole = replace(plan, spreads=()).rounded(layer, 0.2)
    assert error == pytest.approx(whole, rel=1e-6)
    symbols = plan.matrix.view(quantized.symbols.reshape(layer.shape))
    codes = sum(item.values.size for item in plan.scales)
    assert bits == estimated_bits(symbols, trellis=trellis, scales=codes)
    assert error == pytest.approx(plan.rounded(layer, 0.2)[1], rel=0.1)


def test_some_rows_stand_for_all_with_their_own_importance() -> None:
    shape = (1, 1100, 16)
    layer, plan = planned(*shape)
    codes = np.where(np.arange(1100) % 8 < 4, -4, 4).astype(np.int32)[None]
    told = plan.with_importance(layer, codes, np.exp2(-codes / 2.0), ())
    assert told.sampled(layer, 0.2)[1] == pytest.approx(told.rounded(layer, 0.2)[1], rel=0.05)


@pytest.mark.parametrize("width", [0.01, 0.2, 3.0])
def test_without_factors_and_spreads_weights_move_by_half_a_bin_at_most(width: float) -> None:
    """And what is told of it is Σ importance · (ŵ − w)² / max |w|²."""
    layer, plan = important(2, 40, spreads=False)
    quantized, error = plan.rounded(layer, width)
    moved = quantized.restored("float32", layer.shape).reshape(layer.shape) - layer.values.astype(np.float64)
    widths = np.broadcast_to(bin_widths(width, quantized.scales, 3), layer.shape)
    np.testing.assert_allclose(widths, width * np.exp2(plan.rows / 4)[..., None] * np.ones(20), rtol=1e-12)
    assert (np.abs(moved) <= widths * (0.5 + 1e-4)).all()
    assert np.abs(moved / widths).max() > 0.45
    assert plan.importance is not None
    wanted = np.sum(plan.importance[..., None] * moved**2) / np.abs(layer.values).max() ** 2
    assert error == pytest.approx(float(wanted), rel=1e-4)
    assert nearest_widths(plan, layer, width) is None


def test_rows_alike_have_importance_without_codes() -> None:
    """Scales are those of the columns alone, before and after rows that are nearly 0 get narrow bins."""
    shape = (40, 20)
    values = np.random.default_rng(0).standard_normal(shape)
    values[7] = 0
    layer = layer_of(values)
    columns = Plan.of(Arrangement.of(shape).matrix((), (0,), (1,)))
    columns = replace(columns, columns=(np.arange(20, dtype=np.int32) % 3)[None])
    columns = replace(columns, scales=(Codes((1,), columns.columns[0]),))
    for codes in (np.zeros((1, 40), np.int32), np.arange(40, dtype=np.int32)[None] % 7 - 3):
        plan = columns.with_importance(layer, codes, np.exp2(-codes / 2.0), ())
        assert [scale.axes for scale in plan.scales] == ([(1,), (0,)] if codes.any() else [(1,)])
        trellised = plan.with_trellis(layer, 0.3)
        assert trellised is not None
        assert [scale.axes for scale in trellised.scales] == [(1,), (0,)]
        np.testing.assert_array_equal(trellised.scales[0].values, columns.columns[0])
        np.testing.assert_array_equal(trellised.scales[1].values, trellised.rows[0])
        wanted = codes[0].copy()
        wanted[7] -= 40
        np.testing.assert_array_equal(trellised.rows[0], wanted)
        quantized, error = trellised.rounded(layer, 0.3)
        moved = quantized.restored("float32", shape).reshape(shape) - layer.values.astype(np.float64)
        weighed = np.exp2(-codes[0] / 2.0) @ np.sum(moved**2, axis=1) / np.abs(values).max() ** 2
        assert error == pytest.approx(float(weighed), rel=1e-3)
        assert np.abs(quantized.restored("float32", shape).reshape(shape)[7]).max() < 1e-3


def test_a_trellis_keeps_how_rows_matter() -> None:
    layer, plan = important(2, 40, columns=64)
    trellised = plan.with_trellis(layer, 0.3)
    assert trellised is not None
    assert trellised.trellis
    assert trellised.importance is plan.importance
    assert trellised.spreads == plan.spreads
    np.testing.assert_array_equal(trellised.rows, plan.rows)
    assert trellised.scales == plan.scales
    assert trellised.rounded(layer, 0.3)[1] < 0.97 * plan.rounded(layer, 0.3)[1]


def test_rows_that_are_nearly_zero_take_over_nothing_along_a_trellis() -> None:
    """Their bins are too narrow for errors of others: these would cost symbols of many bits."""
    steps = np.abs(np.subtract.outer(np.arange(40), np.arange(40)))
    values = np.random.default_rng(0).standard_normal((1, 40, 64))
    values[0, ::4] = 0
    layer, plan = layer_of(values), planned(1, 40, 64)[1]
    told = with_importance(plan, layer, 0.02, (drawn(0.95**steps, 500, 0), drawn(0.95**steps, 500, 1)))
    assert told is not None
    trellised = told.with_trellis(layer, 0.3)
    assert trellised is not None
    assert (trellised.rows[0, ::4] <= -40 + 16).all()
    quantized, _ = trellised.rounded(layer, 0.3)
    assert np.abs(quantized.symbols.reshape(40, 64)[::4]).max() <= 1
    assert np.abs(quantized.restored("float32", layer.shape).reshape(40, 64)[::4]).max() < 1e-3
    others, error = told.rounded(layer, 0.3)
    assert trellised.rounded(layer, 0.3)[1] < error
    assert np.abs(others.symbols.reshape(40, 64)[::4]).max() <= 2


@given(
    seed=st.integers(0, 1 << 30),
    groups=st.integers(1, 3),
    rows=st.integers(FEW, 50),
    columns=st.integers(1, 30),
    fineness=st.floats(-8, 3),
    trellis=st.booleans(),
    quiet=st.integers(0, 4),
)
def test_whatever_rows_are_what_is_restored_is_near(
    seed: int, groups: int, rows: int, columns: int, fineness: float, trellis: bool, quiet: int
) -> None:
    """Symbols, scales and a lane's signs tell the weights; sums of what earlier rows are off stay small."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((groups, rows, columns))
    values[:, :quiet] *= 10.0 ** -generator.integers(1, 9)
    layer, plan = layer_of(values), planned(groups, rows, columns)[1]
    mixed = generator.standard_normal((rows, rows)) * np.exp2(generator.uniform(-6, 6, rows))
    halves = [effects_of(generator.standard_normal((60, groups, rows)) @ mixed) for _ in range(2)]
    told = with_importance(plan, layer, 0.02, (halves[0], halves[1]))
    width = float(np.exp2(fineness))
    if told is None:
        return
    if trellis:
        told = told.with_trellis(layer, width) or told
    quantized, error = told.rounded(layer, width)
    back = quantized.restored("float32", layer.shape).reshape(layer.shape)
    widest = width * 2 ** (int(told.rows.max()) / 4)
    assert np.isfinite(error)
    assert np.abs(back - values).max() < 20 * widest
    assert np.sqrt(np.mean(np.square(back - values))) < 2 * widest


# ---- probing --------------------------------------------------------------------------------------------------------


class Counted:
    """A prober to which the deviation is a share of the relative squares of the rows' errors."""

    def __init__(self, weights: Weights) -> None:
        self._weights, self.asked = weights, 0

    def deviations(self, changed: Mapping[int, Any]) -> list[float]:
        self.asked += 1
        before = self._weights.layers[0].values
        norms = np.linalg.norm(before, axis=-1, keepdims=True)
        return [float(np.mean(np.square((changed[0] - before) / norms)))]


def test_rows_told_apart_by_effects_are_not_by_their_norms() -> None:
    """With importance there is nothing to try; without, rows of very different norms get bin widths of their own."""
    layer, plan = important(1, 64, 64)
    layer.values[:] *= np.exp2(np.arange(64) % 8).astype(np.float32)[:, None]
    asked: list[int] = []
    for given_plan in (plan, Plan.of(plan.matrix)):
        weights = Weights([layer])
        prober: Any = Counted(weights)
        probes = Probes(weights, {0: given_plan})
        probes.first(prober, 0, 0.2)
        asked.append(prober.asked)
        assert (probes.plans[0] is given_plan) == (given_plan is plan)
    assert asked == [1, 2]


def test_effects_that_cannot_be_told_are_left_out() -> None:
    values = np.random.default_rng(0).standard_normal((50, 2, 9))
    spoiled = values.copy()
    spoiled[7, 1, 3], spoiled[20, 0, 0] = np.inf, np.nan
    one, other = effects_of(spoiled), effects_of(np.delete(values, [7, 20], axis=0))
    assert one.count == other.count == 48
    np.testing.assert_allclose(one.squares, other.squares, rtol=1e-12)
    wanted = np.delete(values, [7, 20], axis=0)[:, 1]
    np.testing.assert_allclose(one.moments(1, np.arange(2, 9)), (wanted.T @ wanted)[2:, 2:] / 48, rtol=1e-3, atol=1e-4)


def test_schemes_go_without_what_gradients_say_of_positions_or_of_anything() -> None:
    layer, plan = important(1, 64, 64, factors=True)
    alike = replace(Plan.of(plan.matrix), factors=(Factor(0, 64, factorized(np.eye(64)[None], Damping(0.1))),))
    nearest = Plan.nearest(layer)
    plans = {0: replace(plan, positions="shared", alike=alike), 1: nearest}
    scheme = Scheme(Allocation("measured", {0: 1.0}), plans)
    assert (scheme.has_positions, scheme.has_importance) == (True, True)
    even, plain, decided = scheme.even, scheme.plain, scheme.decided
    assert (even.has_positions, even.has_importance) == (False, True)
    assert (plain.has_positions, plain.has_importance) == (False, False)
    assert (decided.has_positions, decided.has_importance) == (True, True)
    assert even.plans[0].factors == plain.plans[0].factors == alike.factors
    assert even.plans[0].spreads == plan.spreads and plain.plans[0].spreads == ()
    np.testing.assert_array_equal(even.plans[0].rows, plan.rows)
    assert plan.rows.any() and not plain.plans[0].rows.any()
    assert decided.plans[0].alike is None and decided.plans[0].factors == plan.factors
    assert decided.even.plans[0].factors == plan.factors, "it is too late"
    assert even.plans[1] is plain.plans[1] is nearest
    assert len({each.kind for each in (scheme, even, plain)}) == 3
