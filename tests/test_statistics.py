"""Second moments A of inputs and G of output gradients, by numpy and by differences; damping, factors, weights."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from builders import Random, info, model, nodes, save, tensor, unknown
from numpy.typing import NDArray

from riq_cli.calibration import Sample
from riq_cli.errors import ModelError
from riq_cli.model import Linear, Model, linear_layers
from riq_cli.model.linear_inputs import ProductInput
from riq_cli.model.linear_outputs import ProductOutput
from riq_cli.model.matrix import Arrangement
from riq_cli.runtime import Runtime
from riq_cli.statistics.autodiff import Gradients
from riq_cli.statistics.autodiff.backward import RULES
from riq_cli.statistics.autodiff.rule import Call, NoRuleError
from riq_cli.statistics.fisher import ERRORS, Fisher, Take, collect_fisher, deviations, error_products
from riq_cli.statistics.gradients import Observed, Tick, position_weights, squared_gradients
from riq_cli.statistics.hessian import Damping, Hessian, factorized, least_damping
from riq_cli.statistics.moments import Moments, PositionWeights, collect, inputs_of, nbytes

Floats = NDArray[np.float64]


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32) + 1


def second(x: np.ndarray) -> Floats:
    """E[x xᵀ] of each group of [groups, m, columns], in float64."""
    x = x.astype(np.float64)
    return np.asarray(np.einsum("gmi,gmj->gij", x, x) / x.shape[1])


def moments_of(x: np.ndarray, weight: float | np.ndarray = 1.0, **options: int) -> Moments:
    result = Moments(x.shape[0], x.shape[2], **options)
    result.add(x, weight)
    return result


def assert_same(found: Moments, expected: Moments) -> None:
    assert found.bounds == expected.bounds
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
    for number in range(len(found.bounds)):
        np.testing.assert_allclose(found.block(number), expected.block(number), rtol=1e-6)


# ---- Moments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 5000, 20), (7, 300, 9), (1, 40, 700), (3, 1, 4)])
def test_moments_are_those_of_all_rows_however_they_come(shape: tuple[int, int, int]) -> None:
    x = rows(*shape)
    moments = Moments(shape[0], shape[2])
    for part in np.array_split(x, [1, 1, 3, 900, 950], axis=1):
        moments.add(part)
        assert np.isfinite(moments.block(0)).all()  # they may be read in between
    assert moments.count == shape[1]
    np.testing.assert_allclose(moments.block(0), second(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moments.mean, x.astype(np.float64).mean(axis=1), rtol=1e-5, atol=1e-6)


def test_moments_of_no_rows_are_zero() -> None:
    moments = moments_of(np.zeros((2, 0, 3), np.float32))
    assert moments.count == 0
    np.testing.assert_array_equal(moments.block(0), np.zeros((2, 3, 3)))
    np.testing.assert_array_equal(moments.mean, np.zeros((2, 3)))


def test_a_weight_says_how_often_a_row_counts() -> None:
    x = rows(1, 8, 3)
    repeated = moments_of(np.repeat(x, [3, 3, 3, 3, 3, 1, 1, 1], axis=1))
    weighted = moments_of(x[:, :5], 3.0)
    weighted.add(x[:, 5:])
    assert_same(weighted, repeated)
    assert_same(moments_of(x, np.float32([3, 3, 3, 3, 3, 1, 1, 1])), repeated)
    assert weighted.count == 8


def test_rows_that_are_not_finite_are_left_out_with_their_weights() -> None:
    x = rows(2, 6, 3)
    x[0, 1, 2], x[1, 4, 0] = np.nan, -np.inf
    kept = [0, 2, 3, 5]
    found = moments_of(x, np.arange(1, 7))
    assert found.count == 4
    assert_same(found, moments_of(x[:, kept], np.arange(1, 7)[kept]))
    assert_same(moments_of(x), moments_of(x[:, kept]))


def test_squares_of_inputs_may_be_beyond_single_precision() -> None:
    x = rows(1, 6, 3)
    np.testing.assert_allclose(moments_of(x * np.float32(1e30)).block(0) / 1e60, second(x), rtol=1e-5)


def test_of_many_columns_blocks_of_even_length_are_kept() -> None:
    x = rows(2, 50, 10)
    moments = moments_of(x, block=4)
    assert moments.bounds == ((0, 3), (3, 6), (6, 10))
    for number, (begin, end) in enumerate(moments.bounds):
        block = moments.block(number)
        np.testing.assert_allclose(block, second(x[..., begin:end]), rtol=1e-5)
        block[:] = 0  # it is of its own memory
        assert moments.block(number).any()
    assert moments.mean.shape == (2, 10)


@pytest.mark.parametrize("block", [4, 4096])
def test_joined_moments_are_those_of_all_rows(block: int) -> None:
    x, cuts, weights = rows(2, 60, 10), [10, 10, 45], (1.0, 7.0, 2.0, 5.0)
    parts = [moments_of(part, w, block=block) for part, w in zip(np.split(x, cuts, axis=1), weights, strict=True)]
    before = parts[0].block(0)
    joined = parts[0].joined(*parts[1:])
    assert joined.count == 60
    assert_same(joined, moments_of(x, np.repeat(weights, [10, 0, 35, 15]), block=block))
    np.testing.assert_array_equal(parts[0].block(0), before)


# ---- collect --------------------------------------------------------------------------------------------------------


def product(shape: tuple[int, int], *names: str) -> Linear:
    """A weight [columns, rows] on the right of activations; the output of that of x has the name x.out."""
    matrix = Arrangement.of(shape).matrix((), (1,), (0,))
    return Linear(matrix, tuple((ProductInput(x, False), ProductOutput((f"{x}.out",), False)) for x in names))


def test_halves_are_the_samples_of_the_second_and_all_others() -> None:
    samples = np.stack([rows(20, 3, seed=number) for number in range(5)])
    halves = collect({4: product((3, 2), "x")}, [("x", run, x) for run, x in enumerate(samples)], 5, (0, 3), {})[4]
    for half, runs in zip(halves, ([1, 2, 4], [0, 3]), strict=True):
        assert_same(half, moments_of(samples[runs].reshape(1, -1, 3)))
        assert half.count == 20 * len(runs)


def test_the_order_of_activations_does_not_matter() -> None:
    linear = {0: product((3, 2), "x"), 1: product((3, 2), "y", "x"), 2: product((3, 5), "y")}
    activations = [(name, number, rows(30000, 3, seed=number)) for name in "xy" for number in range(4)]
    one = collect(linear, activations, 4, (1, 3), {})
    other = collect(linear, reversed(activations), 4, (1, 3), {})
    for a, b in itertools.chain.from_iterable(zip(one[number], other[number], strict=True) for number in linear):
        assert_same(a, b)
        assert a.count == b.count == 4096


@pytest.mark.parametrize("weighted", [False, True])
def test_positions_count_the_same_or_by_their_weights_however_many_are_taken(weighted: bool) -> None:
    """A large and a small activation of one layer: 9 of 10 positions are in the large one."""
    large, small = np.repeat(np.float32([2, 4]), [80000, 10000])[:, None], np.full((10000, 1), 12, np.float32)
    known = {
        ProductOutput(("large.out",), False): [PositionWeights(90000, 10, np.repeat([0.5, 1], [8000, 1000]))],
        ProductOutput(("small.out",), False): [PositionWeights(10000, 1, np.full(10000, 4))],
    }
    activations, linear = [("large", 0, large), ("small", 0, small)], {0: product((1, 1), "large", "small")}
    every, none = collect(linear, activations, 1, (), known if weighted else {})[0]
    weights, values = np.array([4, 1, 4] if weighted else [8, 1, 1]), np.array([2, 4, 12])
    assert (every.count, none.count) == (8192, 0)
    np.testing.assert_allclose(every.mean, [[weights @ values / weights.sum()]], rtol=1e-3)
    np.testing.assert_allclose(every.block(0), [[[weights @ values**2 / weights.sum()]]], rtol=1e-3)


def test_a_layer_of_many_columns_gets_more_rows() -> None:
    activations = [("x", run, np.broadcast_to(np.float32(1), (40000, 2100))) for run in range(3)]
    one, other = collect({0: product((2100, 1), "x")}, activations, 3, (1,), {}, block=64)[0]
    assert (one.count, other.count) == (2 * 2800, 2800)


def test_layers_with_the_same_inputs_share_moments_unless_their_positions_have_weights() -> None:
    linear = {0: product((3, 2), "x"), 1: product((3, 5), "x"), 2: product((3, 5), "y")}
    activations = [("x", 0, rows(4, 3)), ("y", 0, rows(4, 3))]
    found = collect(linear, activations, 1, (), {})
    assert found[0] is found[1] is not found[2]
    assert inputs_of(linear) == ["x", "y"]
    assert nbytes(linear, 4096, {}) == 2 * 2 * 8 * 9
    assert nbytes({0: product((100, 2), "x")}, 50, {}) == 2 * 8 * 100 * 50
    linear[1] = Linear(linear[1].matrix, ((ProductInput("x", False), ProductOutput(("other",), False)),))
    weights = {ProductOutput(("other",), False): [PositionWeights(4, 1, np.ones(4))]}
    assert collect(linear, activations, 1, (), weights)[1] is not found[0]
    assert nbytes(linear, 4096, weights) == 3 * 2 * 8 * 9


def test_positions_count_by_their_weights_where_those_of_all_products_are_known() -> None:
    x, y = rows(300, 3), rows(50, 3, seed=1)
    known, of_x = PositionWeights(300, 7, np.random.default_rng(2).random(43)), ProductOutput(("x.out",), False)
    linear, activations = {0: product((3, 2), "x"), 1: product((3, 2), "x", "y")}, [("x", 0, x), ("y", 0, y)]
    found = collect(linear, activations, 1, (), {of_x: [known]})
    assert_same(found[0][0], moments_of(x[None], np.repeat(known.values, 7)[:300]))
    assert_same(found[1][0], moments_of(np.concatenate([x, y])[None]))
    of_fewer_positions = collect(linear, activations, 1, (), {of_x: [PositionWeights(299, 1, np.zeros(299))]})
    assert_same(of_fewer_positions[0][0], moments_of(x[None]))


# ---- Hessian --------------------------------------------------------------------------------------------------------


def correlated(groups: int, size: int) -> Floats:
    """Second moments of twice as many rows as columns, mixed and shifted."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((groups, 2 * size, size)) @ generator.standard_normal((groups, size, size))
    return second(x + generator.standard_normal((groups, 1, size)))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("block", [3, 10])
def test_a_hessian_gives_the_squared_error_of_outputs(centred: bool, block: int) -> None:
    """E ‖D x‖² or, where a bias has taken over D b, E ‖D (x − b)‖²; columns of different blocks as if uncorrelated."""
    x = rows(2, 400, 10)
    hessian = Hessian(moments_of(x, block=block), centred)
    generator = np.random.default_rng(1)
    difference, b = generator.standard_normal((2, 7, 10)), generator.standard_normal((2, 10))
    assert hessian.is_usable
    np.testing.assert_allclose(hessian.diagonal, np.square(x.astype(float)).mean(axis=1), rtol=1e-5)
    expected = 0.0
    for begin, end in hessian.bounds:
        part = x[..., begin:end].astype(float)
        part -= part.mean(axis=1, keepdims=True) if centred else 0
        expected += np.sum(np.square(part @ difference[..., begin:end].swapaxes(1, 2))) / 400
    expected += np.sum(np.square(np.einsum("gnk,gk->gn", difference, hessian.mean - b))) if centred else 0
    assert hessian.error(difference, b) == pytest.approx(expected, rel=1e-5)


def test_a_hessian_is_usable_if_there_are_rows_and_all_is_finite() -> None:
    assert not Hessian(Moments(1, 3), False).is_usable
    huge = np.full((1, 4, 3), 1e200)
    assert Hessian(moments_of(np.ones((1, 4, 3), np.float32)), False).is_usable
    assert not Hessian(moments_of(np.full((1, 4, 3), 1e50)), False).is_usable  # U would be 0 in single precision
    assert not Hessian(moments_of(huge), False).is_usable


@pytest.mark.parametrize(("groups", "size"), [(1, 1), (3, 5), (1, 64), (2, 65), (1, 200)])
@pytest.mark.parametrize("damping", [Damping(0.01), Damping(1.0, 0.5)])
def test_the_factor_is_that_of_the_damped_inverse(groups: int, size: int, damping: Damping) -> None:
    moments = correlated(groups, size)
    upper = factorized(moments, damping)
    assert (upper.dtype, upper.shape) == (np.float32, (groups, size, size))
    np.testing.assert_array_equal(upper, np.triu(upper))
    assert (np.einsum("gii->gi", upper) > 0).all()
    for factor, moment in zip(upper.astype(np.float64), moments, strict=True):  # each group has a level of its own
        level = np.trace(moment) / size
        damped = moment + damping.uniform * level * np.eye(size) + damping.diagonal * np.diag(np.diag(moment))
        inverse = np.linalg.inv(damped)
        assert np.linalg.norm(factor.T @ factor - inverse) < 1e-4 * np.linalg.norm(inverse)


def test_a_factor_tells_what_later_columns_leave_of_each() -> None:
    """1/U_jj² is the variance of x_j given all later columns: 1 − ρ² of an AR(1) process, 1 for the last column."""
    steps = np.arange(100)
    (upper,) = factorized(0.95 ** np.abs(steps[:, None] - steps)[None], Damping(1e-9))
    np.testing.assert_allclose(np.diagonal(upper)[:-1] ** -2.0, 1 - 0.95**2, rtol=1e-5)
    assert upper[-1, -1] == pytest.approx(1, rel=1e-5)


def test_a_moment_that_is_not_positive_definite_is_damped_more() -> None:
    """Sums in float32 leave eigenvalues a little below zero: here −0.005 of the mean diagonal."""
    vector = np.random.default_rng(0).standard_normal((1, 8, 1))
    moment = vector @ vector.swapaxes(1, 2)
    moment -= 0.005 / 1.005 * np.trace(moment[0]) / 8 * np.eye(8)
    np.testing.assert_array_equal(factorized(moment, Damping(0.001)), factorized(moment, Damping(0.01)))
    assert not np.array_equal(factorized(moment, Damping(0.02)), factorized(moment, Damping(0.01)))
    both = factorized(np.concatenate([np.eye(8)[None], moment]), Damping(0.001))
    np.testing.assert_allclose(both[0], np.eye(8) / np.sqrt(1.001), rtol=1e-6)  # this group's own damping is kept


@pytest.mark.parametrize("moment", [np.diag([-1e-3, -1e-4]), np.full((300, 300), 1e4), np.zeros((3, 3))])
def test_a_moment_of_any_rank_has_a_factor(moment: Floats) -> None:
    """What a mean leaves of a constant column may be a little below zero."""
    (upper,) = factorized(moment[None], Damping(1e-9, 0.05))
    assert np.isfinite(upper).all()
    assert (np.diagonal(upper) > 0).all()


@pytest.mark.parametrize(("best", "lowest", "expected"), [(1, -4, 1), (0.03, -4, 0.0316), (0, -2, 0.1), (99, -4, 10)])
@pytest.mark.parametrize("uniform", [False, True])
def test_the_damping_of_least_cost_is_found_by_a_descent(
    best: float, lowest: int, expected: float, uniform: bool
) -> None:
    asked: list[Damping] = []

    def cost(damping: Damping) -> float:
        asked.append(damping)
        return abs(sum(damping) - best) + 0.01 * ((damping.diagonal == 0) != uniform)

    damping, least = least_damping(cost, lowest)
    assert sum(damping) == pytest.approx(expected, rel=1e-2)
    assert damping.diagonal == (0 if uniform else damping.uniform)
    assert least == pytest.approx(abs(best - expected), abs=3e-3)
    assert len(asked) == len(set(asked)) <= 8
    assert 10 ** (lowest / 2) <= min(map(sum, asked)) * 1.01 and max(map(sum, asked)) <= 10.1


# ---- Fisher ---------------------------------------------------------------------------------------------------------


def integers(count: int, groups: int, rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8, 9, (count, groups, rows)).astype(np.float32)


def fisher_of(*parts: np.ndarray, most: int = 1024, diagonal: bool = False) -> Fisher:
    result = Fisher(*parts[0].shape[1:], most, diagonal)
    for part in parts:
        result.add(part)
    return result


@pytest.mark.parametrize(("rows", "most", "lengths"), [(12, 12, [12]), (12, 5, [4, 4, 4]), (7, 3, [2, 2, 3])])
def test_g_is_kept_within_blocks_of_rows(rows: int, most: int, lengths: list[int]) -> None:
    x = integers(500, 2, rows)
    found = fisher_of(*np.array_split(x, [7, 7, 300]), most=most)
    assert (found.count, found.is_usable) == (500, True)
    assert [(group, len(block)) for group, block in found.blocks] == [(g, n) for g in (0, 1) for n in lengths]
    whole = second(x.swapaxes(0, 1))
    np.testing.assert_allclose(found.squares, np.einsum("gii->gi", whole), rtol=1e-12)
    assert len(found.moments) == len(found.blocks)
    for (group, block), moments in zip(found.blocks, found.moments, strict=True):
        np.testing.assert_allclose(moments, whole[group][np.ix_(block, block)], rtol=1e-5, atol=1e-5)
    diagonal = fisher_of(x, most=most, diagonal=True)
    np.testing.assert_allclose(diagonal.squares, found.squares, rtol=1e-12)
    assert diagonal.moments == []


def test_without_products_g_is_not_usable() -> None:
    for parts in (np.zeros((0, 2, 3), np.float32), np.zeros((4, 2, 3), np.float32), np.full((2, 2, 3), np.nan)):
        found = fisher_of(parts)
        assert not found.is_usable
        np.testing.assert_array_equal(found.squares, np.zeros((2, 3)))
        np.testing.assert_array_equal(found.moments, np.zeros((2, 3, 3)))


def test_products_that_are_not_finite_are_left_out() -> None:
    x = integers(6, 2, 3)
    damaged = x.copy()
    damaged[1, 0, 2], damaged[4, 1, 0] = np.nan, -np.inf
    found, rest = fisher_of(damaged), fisher_of(x[[0, 2, 3, 5]])
    assert found.count == rest.count == 4
    np.testing.assert_array_equal(found.squares, rest.squares)
    np.testing.assert_array_equal(found.moments, rest.moments)


@pytest.mark.parametrize(
    "scales", [(1e-30,), (1e-18,), (1e15,), (1e25,), (1e-25, 1), (1, 1e-25), (1e-10, 1e10), (0, 1e-30)]
)
def test_products_may_be_of_very_different_sizes(scales: tuple[float, ...]) -> None:
    """Squares may be beyond single precision; beside the largest, the smallest may vanish."""
    parts = [integers(30, 1, 4, seed) * np.float32(scale) for seed, scale in enumerate(scales)]
    found, (expected,) = fisher_of(*parts), second(np.concatenate(parts).swapaxes(0, 1))
    np.testing.assert_allclose(found.moments[0] / expected.max(), expected / expected.max(), atol=1e-5)
    np.testing.assert_allclose(found.squares[0], np.diag(expected), rtol=1e-6)


# ---- models ---------------------------------------------------------------------------------------------------------


class Net(NamedTuple):
    """A model, its samples and its linear layers, by name and by number."""

    proto: onnx.ModelProto
    observed: Observed
    linear: dict[int, Linear]
    numbers: dict[str, int]

    def values(self, name: str) -> np.ndarray:
        return self.observed.layers[self.numbers[name]].values


def net(
    text: str,
    weights: Mapping[str, np.ndarray | Sequence[int]],
    feeds: Sequence[np.ndarray],
    folder: Path,
    split: int = -1,
    rows: int = 1,
    lean: bool = False,
) -> Net:
    """A model x → y of these nodes and weights, random ones where a shape is given; a feed for each run.

    The second half of the samples begins at number `split`.
    """
    random, first = Random(0), feeds[0]
    proto = model(
        nodes(text),
        [info("x", *first.shape, dtype=onnx.helper.np_dtype_to_tensor_dtype(first.dtype))],
        [unknown("y")],
        [tensor(name, w if isinstance(w, np.ndarray) else random(*w)) for name, w in weights.items()],
    )
    loaded = Model.load(save(proto, folder))
    form, linear = linear_layers(loaded.session_form(), loaded.layers)
    samples = [Sample({"x": x}, rows) for x in feeds]
    observed = Observed(
        loaded.layers, form, form.measured, (samples[:split], samples[split:]), Runtime(threads=1), lean
    )
    return Net(proto, observed, linear, {layer.name: number for number, layer in enumerate(loaded.layers)})


def inputs(*shape: int, count: int = 3) -> list[np.ndarray]:
    random = np.random.default_rng(5)
    return [random.standard_normal(shape, np.float32) for _ in range(count)]


def ignored(*_: int) -> None:
    """Of steps."""


def test_moments_of_a_model_are_those_of_what_enters_its_products(tmp_path: Path) -> None:
    text, weights = "MatMul x w > a; Relu a > h; MatMul h v > y", {"w": (6, 9), "v": (9, 4)}
    found = net(text, weights, inputs(5, 6, count=4), tmp_path, split=2)
    activations = found.observed.observer.activations(inputs_of(found.linear))
    collected = collect(found.linear, activations, 4, found.observed.second, {})
    feeds = np.stack([sample.feed["x"] for sample in found.observed.samples])
    for name, x in (("w", feeds), ("v", np.maximum(feeds @ found.values("w"), 0))):
        for half, runs in zip(collected[found.numbers[name]], ([0, 1], [2, 3]), strict=True):
            np.testing.assert_allclose(half.block(0), second(x[runs].reshape(1, 10, -1)), rtol=1e-4, atol=1e-5)


# ---- collect_fisher -------------------------------------------------------------------------------------------------

PROBES = 2


def movement(found: Net, name: str, run: int) -> Callable[[np.ndarray], Floats]:
    """What tells by central differences how far a change of a layer's matrices moves the outputs, f64[probes].

    That is the change of ⟨v, y / ‖y‖⟩ for every random v, summed over the samples of a batch.
    """
    proto, item, sample = copy.deepcopy(found.proto), found.linear[found.numbers[name]], found.observed.samples[run]
    (weight,) = (one for one in proto.graph.initializer if one.name == name)
    proto.graph.initializer.remove(weight)
    proto.graph.input.append(info(name, *weight.dims))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = found.values(name)

    def direction(change: np.ndarray) -> Floats:
        (y,) = session.run(["y"], {**sample.feed, name: values + item.matrix.restore(change, values.shape)})
        flat = np.asarray(y, np.float64).reshape(sample.rows, -1)
        return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True))

    size = direction(np.zeros(item.matrix.shape, np.float32)).shape
    vectors = np.random.default_rng((0, run)).standard_normal((PROBES, *size))
    step = np.float32(2e-2 / item.matrix.shape[2] ** 0.5)

    def moved(change: np.ndarray) -> Floats:
        difference = (direction(step * change) - direction(-step * change)) / (2 * float(step))
        return np.asarray(np.einsum("prn,rn->p", vectors, difference))

    return moved


def differences(found: Net, name: str, run: int, errors: np.ndarray) -> Floats:
    """How far an error of each row moves the outputs, f64[probes · errors, groups, rows]; see `movement`."""
    shape, moved = found.linear[found.numbers[name]].matrix.shape, movement(found, name, run)
    result = np.empty((PROBES, ERRORS, *shape[:2]))
    for error, group, row in np.ndindex(ERRORS, *shape[:2]):
        change = np.zeros(shape, np.float32)
        change[group, row] = errors[group, :, error]
        result[:, error, group, row] = moved(change)
    return result.reshape(-1, *shape[:2])


CASES: dict[str, tuple[str, dict[str, tuple[int, ...]], tuple[int, ...], int]] = {  # nodes, weights, x, rows of a batch
    "two layers": ("MatMul x w > a; Tanh a > b; MatMul b v > y", {"w": (5, 9), "v": (9, 4)}, (2, 5), 2),
    "on the left": ("MatMul w x > a; Sin a > y", {"w": (9, 5)}, (2, 5, 3), 1),
    "a stack": ("MatMul x w > a; Tanh a > y", {"w": (3, 5, 4)}, (2, 3, 6, 5), 1),
    "Gemm": ("Gemm x w > a transA=1 transB=1 alpha=0.5; Tanh a > y", {"w": (9, 5)}, (5, 3), 1),
    "Conv": ("Conv x w > a pads=[1,1,1,1] strides=[2,1]; Tanh a > y", {"w": (9, 3, 3, 3)}, (2, 3, 6, 5), 2),
    "Conv of groups": ("Conv x w > a group=3; Tanh a > y", {"w": (6, 2, 3)}, (2, 6, 8), 1),
    "ConvTranspose": ("ConvTranspose x w > a strides=[2] group=2; Tanh a > y", {"w": (4, 3, 3)}, (1, 4, 5), 1),
    "LSTM": ("LSTM x w r > a hidden_size=2; Sin a > y", {"w": (1, 8, 3), "r": (1, 8, 2)}, (4, 2, 3), 1),
    "GRU": (
        "GRU x w r > y hidden_size=3 direction='bidirectional' linear_before_reset=1",
        {"w": (2, 9, 4), "r": (2, 9, 3)}, (4, 1, 4), 1,
    ),
    "shared": ("MatMul x w > a; Tanh a > b; MatMul b w > y", {"w": (9, 9)}, (3, 9), 3),
    "many positions": ("MatMul x w > a; Tanh a > y", {"w": (256, 2)}, (1, 6000, 256), 1),
}  # fmt: skip


def net_of(name: str, folder: Path) -> Net:
    """The model of a case."""
    if name == "table":
        feeds = [np.random.default_rng(run).integers(0, 7, (2, 5)) for run in range(3)]
        return net("Gather table x > a; Tanh a > b; MatMul b v > y", {"table": (7, 9), "v": (9, 3)}, feeds, folder)
    text, weights, x, batch = CASES[name]
    return net(text, weights, inputs(*x), folder, rows=batch)


@pytest.mark.parametrize("name", [*CASES, "table"])
def test_the_deviation_of_a_change_is_what_differences_show(name: str, tmp_path: Path) -> None:
    found = net_of(name, tmp_path)
    random = np.random.default_rng(1)
    changes = {n: random.standard_normal(item.matrix.shape, np.float32) for n, item in found.linear.items()}
    known = deviations(found.observed, found.linear, lambda n: (changes[n].swapaxes(1, 2), 0.0), ignored, PROBES)
    assert set(known) == set(found.numbers.values())
    for layer, number in found.numbers.items():
        squares = [np.square(movement(found, layer, run)(changes[number])).mean() for run in range(3)]
        expected = np.mean(squares) / (2 * found.observed.samples[0].rows)
        np.testing.assert_allclose(known[number], expected, rtol=2e-2)


def test_a_bias_takes_part_in_the_deviation_of_a_change(tmp_path: Path) -> None:
    """The same is added to all products as another column of 1 in what enters would add."""
    text, weights = (
        "Concat x one > wide axis=-1; MatMul wide w > a; Tanh a > y",
        {"w": (6, 9), "one": np.ones((4, 1), "f4")},
    )
    found = net(text, weights, inputs(4, 5), tmp_path)
    number = found.numbers["w"]
    change = np.random.default_rng(1).standard_normal((1, 6, 9), np.float32)
    only = {number: found.linear[number]}
    whole = deviations(found.observed, only, lambda _: (change, 0.0), ignored, PROBES)
    parts = deviations(
        found.observed, only, lambda _: (change * (np.arange(6) < 5)[:, None], change[:, 5:]), ignored, PROBES
    )
    assert parts == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("name", [*CASES, "table"])
def test_g_is_what_differences_show(name: str, tmp_path: Path) -> None:
    found = net_of(name, tmp_path)
    random = np.random.default_rng(1)
    shapes = {number: item.matrix.shape for number, item in found.linear.items()}
    errors = {n: random.standard_normal((g, k, 2 * ERRORS), np.float32) for n, (g, _, k) in shapes.items()}
    steps: list[tuple[int, int]] = []
    collected = collected_fisher(found, errors, 6, lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert set(collected) == set(found.numbers.values())
    for layer, number in found.numbers.items():
        own = [errors[number][..., run % 2 * ERRORS :][..., :ERRORS] for run in range(3)]  # the next ones in each run
        shown = [differences(found, layer, run, own[run]) for run in range(3)]
        for half, products in zip(collected[number], (np.concatenate(shown[:2]), shown[2]), strict=True):
            assert half.count == len(products)
            whole = second(products.swapaxes(0, 1))
            squares = np.einsum("gii->gi", whole)
            np.testing.assert_allclose(half.squares, squares, rtol=2e-2, atol=1e-3 * squares.max())
            assert len(half.moments) == (0 if shapes[number][1] < 8 else len(half.blocks))
            for (group, block), moments in zip(half.blocks, half.moments, strict=False):
                assert len(block) <= 6
                expected = whole[group][np.ix_(block, block)]
                np.testing.assert_allclose(moments, expected, atol=2e-2 * squares.max())


def collected_fisher(found: Net, errors: dict[int, Floats], most: int, tick: Tick) -> dict[int, tuple[Fisher, Fisher]]:
    def products(take: Take) -> set[int]:
        runs = range(len(found.observed.samples))
        return error_products(found.observed, found.linear, errors, tick, PROBES, runs, take)

    return collect_fisher(found.observed, found.linear, most, 8, products)


def fisher(found: Net) -> dict[str, Floats]:
    """The diagonals of G in both halves, by layer, with equal errors in all weights of a row."""
    errors = {n: np.ones((i.matrix.shape[0], i.matrix.shape[2], ERRORS), np.float32) for n, i in found.linear.items()}
    collected = collected_fisher(found, errors, 64, ignored)
    names = {number: name for name, number in found.numbers.items()}
    return {names[n]: np.stack([half.squares for half in halves]) for n, halves in collected.items()}


def test_a_large_model_has_the_same_g_in_little_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was read of its layers is given back at every product, and at the end of every run."""
    text, weights, x, batch = CASES["two layers"]
    given_back: list[None] = []
    monkeypatch.setattr("riq_cli.statistics.gradients.give_back_mapped_memory", lambda: given_back.append(None))
    lean = fisher(net(text, weights, inputs(*x), tmp_path, rows=batch, lean=True))
    assert len(given_back) == 3 * (2 + 1)
    expected = fisher(net(text, weights, inputs(*x), tmp_path, rows=batch))
    assert lean.keys() == expected.keys()
    for name, squares in expected.items():
        np.testing.assert_allclose(lean[name], squares, rtol=1e-4)


# ---- weights of positions -------------------------------------------------------------------------------------------


def weights_of(found: Net, probes: int = 16) -> dict[str, list[np.ndarray]]:
    """Weights of all positions by the output of the operation, one array for each run."""
    runs = range(len(found.observed.samples))
    squares = squared_gradients(found.observed, found.linear, ignored, probes, runs)
    weights = position_weights(found.linear, squares, len(runs))
    return {
        leaving.operation[0]: [np.repeat(run.values, run.step)[: run.count] for run in runs]
        for leaving, runs in weights.items()
    }


def test_half_of_a_weight_is_by_squared_gradients(tmp_path: Path) -> None:
    """By hand for y = s · (x W): gradients at x W are s · (v − ⟨v, u⟩ u) / ‖y‖ with u = y / ‖y‖, for 4 random v.

    A sample of large inputs counts no more for it: deviations are of directions.
    """
    feeds, scale = inputs(1, 40, 16), np.geomspace(0.1, 10, 40).astype(np.float32)[:, None]
    feeds[2] *= 1000
    found = net("MatMul x w > a; Mul a s > y", {"w": (16, 64), "s": scale}, feeds, tmp_path)
    squares = []
    for run, x in enumerate(feeds):
        y = (x @ found.values("w") * scale).astype(np.float64).reshape(-1)
        v = np.random.default_rng((0, run)).standard_normal((4, y.size))
        gradients = (v - np.outer(v @ y, y) / (y @ y)) / np.linalg.norm(y)
        squares.append(np.sum(np.square(gradients.reshape(4, 40, 64) * scale), axis=(0, 2)))
    expected = 0.5 + 0.5 * np.array(squares) / np.mean(squares)
    np.testing.assert_allclose(weights_of(found, 4)["a"], expected, rtol=1e-4)


def test_positions_that_lead_nowhere_have_half_a_weight_and_the_mean_is_1(tmp_path: Path) -> None:
    """Only the first and the last of many positions are read; pairs of neighbours have one weight."""
    text, count = "MatMul x w > a; Gather a ends > b axis=1; Tanh b > c; MatMul c v > y", 4097
    weights = {"w": (16, 64), "v": (64, 32), "ends": np.array([0, count - 1])}
    found = weights_of(net(text, weights, inputs(1, count, 16, count=2), tmp_path))
    assert found.keys() == {"a"}, "4 positions say little of 64 columns"
    assert np.mean(found["a"]) == pytest.approx(1, rel=1e-5)
    for run in found["a"]:
        assert run.shape == (count,)
        np.testing.assert_array_equal(run[2:-1], 0.5)
        assert run[0] == run[1]
        assert run[[0, -1]].min() > 100


def test_tables_and_small_layers_have_no_weights(tmp_path: Path) -> None:
    text, weights = "Gather table x > a; MatMul a small > b; MatMul b v > y", {"table": (50, 64), "small": (64, 15)}
    found = net(text, weights | {"v": (15, 80)}, [np.arange(150) % 50], tmp_path)
    assert weights_of(found).keys() == {"y"}


def test_where_a_model_cannot_run_there_are_no_weights(tmp_path: Path) -> None:
    found = net("Gather table x > t; MatMul t w > y", {"table": (50, 64), "w": (64, 16)}, [np.full(150, 50)], tmp_path)
    with pytest.raises(ModelError):
        squared_gradients(found.observed, found.linear, ignored, 4, range(1))


# ---- layers of which not all is known -------------------------------------------------------------------------------

DETERMINANT = (
    "MatMul x w > a; MatMul a v > b; Tanh x > t; MatMul t {} > c; Reshape c cube > d; Det d > e; "
    "ReduceSum e > f keepdims=0; Add b f > y"
)


@pytest.mark.parametrize(("before", "known", "outputs"), [("w", {"v"}, {"b"}), ("u", {"w", "v"}, {"a", "b"})])
def test_gradients_are_known_where_all_products_of_a_layer_lead_to_outputs_by_rules(
    before: str, known: set[str], outputs: set[str], tmp_path: Path
) -> None:
    """Of w too, unless one of its two products lies before a Det, which has no rule."""
    weights = {"w": (32, 36), "v": (36, 32), "cube": np.array([-1, 6, 6])}
    own = {} if before == "w" else {before: (32, 36)}
    found = net(DETERMINANT.format(before), weights | own, inputs(30, 32), tmp_path)
    assert fisher(found).keys() == known
    assert weights_of(found).keys() == outputs


def test_a_layer_one_of_whose_products_has_no_gradient_is_left_out(tmp_path: Path) -> None:
    text = "MatMul x w > a; Cast a > i to=INT64; Cast i > b to=FLOAT; Tanh x > t; MatMul t w > c; Add b c > y"
    found = net(text, {"w": (32, 32)}, inputs(40, 32), tmp_path)
    assert not fisher(found) and not weights_of(found)


def test_a_rule_that_fails_in_one_run_leaves_the_layers_before_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, calls = RULES["Tanh"], itertools.count(1)

    def failing(call: Call) -> Gradients:
        if next(calls) == 4:
            raise NoRuleError("in the last run")
        return rule(call)

    monkeypatch.setitem(RULES, "Tanh", failing)
    found = net(CASES["shared"][0], {"w": (9, 9)}, inputs(3, 9, count=4), tmp_path, split=2)
    assert not fisher(found)


@pytest.mark.parametrize(("zeros", "in_halves", "in_all"), [(0, True, True), (1, False, True), (2, False, False)])
def test_a_layer_that_does_not_matter_is_left_out(zeros: int, in_halves: bool, in_all: bool, tmp_path: Path) -> None:
    """Each half of the samples must tell of G, weights of positions are of both together."""
    feeds = [np.zeros((60, 32), np.float32)] * zeros + inputs(60, 32, count=2 - zeros)
    found = net("MatMul x w > y", {"w": (32, 32)}, feeds, tmp_path)
    assert (bool(fisher(found)), bool(weights_of(found))) == (in_halves, in_all)
