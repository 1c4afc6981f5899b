"""Second moments: what comes of rows, and of a model's activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import Random, info, model, node, save, tensor, unknown

from riq_cli.model import Linear, Model, linear_layers
from riq_cli.model.linear_inputs import ProductInput
from riq_cli.model.linear_outputs import ProductOutput
from riq_cli.model.matrix import Arrangement
from riq_cli.runtime import Observer, Runtime
from riq_cli.statistics.moments import Moments, PositionShares, collect, inputs_of, nbytes


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32) + 1


def second(x: np.ndarray) -> np.ndarray:
    """E[x xᵀ] of each group, in float64."""
    x = x.astype(np.float64)
    return np.asarray(np.einsum("gmi,gmj->gij", x, x) / x.shape[1])


# ---- Moments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 5000, 20), (7, 300, 9), (1, 40, 2000), (3, 1, 4)])
def test_moments_are_those_of_all_rows_however_they_come(shape: tuple[int, int, int]) -> None:
    x = rows(*shape)
    moments = Moments(shape[0], shape[2])
    for part in np.array_split(x, [1, 1, 3, 900, 950], axis=1):
        moments.add(part)
    assert moments.count == shape[1]
    (found,) = moments.second
    assert found.dtype == moments.mean.dtype == np.float64
    np.testing.assert_allclose(found, second(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moments.mean, x.astype(np.float64).mean(axis=1), rtol=1e-5, atol=1e-6)


def test_small_numbers_are_exact() -> None:
    x = np.random.default_rng(0).integers(-8, 9, (2, 3000, 30)).astype(np.float32)
    moments = Moments(2, 30)
    moments.add(x[:, :2000])
    moments.add(x[:, 2000:])
    np.testing.assert_array_equal(moments.second[0], second(x))


def test_moments_may_be_read_between() -> None:
    x = rows(1, 60, 50)
    moments = Moments(1, 50)
    moments.add(x[:, :10])
    np.testing.assert_allclose(moments.second[0], second(x[:, :10]), rtol=1e-5)
    moments.add(x[:, 10:])
    np.testing.assert_allclose(moments.second[0], second(x), rtol=1e-5)


def test_of_no_rows_they_are_zero() -> None:
    moments = Moments(2, 3)
    moments.add(np.zeros((2, 0, 3), np.float32))
    assert moments.count == 0
    np.testing.assert_array_equal(moments.second[0], np.zeros((2, 3, 3)))
    np.testing.assert_array_equal(moments.mean, np.zeros((2, 3)))


def test_a_weight_is_a_number_of_times() -> None:
    x = rows(1, 8, 3)
    weighted, repeated = Moments(1, 3), Moments(1, 3)
    weighted.add(x[:, :5], 3.0)
    weighted.add(x[:, 5:])
    repeated.add(np.concatenate([x[:, :5]] * 3 + [x[:, 5:]], axis=1))
    np.testing.assert_allclose(weighted.second[0], repeated.second[0], rtol=1e-6)
    np.testing.assert_allclose(weighted.mean, repeated.mean, rtol=1e-6)
    assert weighted.count == 8
    one_by_one = Moments(1, 3)
    one_by_one.add(x, np.float32([3, 3, 3, 3, 3, 1, 1, 1]))
    np.testing.assert_allclose(one_by_one.second[0], repeated.second[0], rtol=1e-6)
    np.testing.assert_allclose(one_by_one.mean, repeated.mean, rtol=1e-6)


def test_rows_that_are_not_finite_go_with_their_weights() -> None:
    x = rows(2, 6, 3)
    x[1, 2, 0] = np.nan
    found, expected = Moments(2, 3), Moments(2, 3)
    found.add(x, np.arange(1, 7))
    expected.add(np.delete(x, 2, axis=1), np.array([1, 2, 4, 5, 6]))
    np.testing.assert_array_equal(found.second[0], expected.second[0])
    np.testing.assert_array_equal(found.mean, expected.mean)


def test_rows_that_are_not_finite_are_left_out() -> None:
    x = rows(2, 6, 3)
    damaged = x.copy()
    damaged[0, 1, 2], damaged[1, 4, 0] = np.nan, -np.inf
    moments = Moments(2, 3)
    moments.add(damaged)
    np.testing.assert_allclose(moments.second[0], second(x[:, [0, 2, 3, 5]]), rtol=1e-6)
    assert moments.count == 4


def test_squares_may_be_beyond_single_precision() -> None:
    x = rows(1, 6, 3)
    moments = Moments(1, 3)
    moments.add(x * np.float32(1e30))
    np.testing.assert_allclose(moments.second[0] / 1e60, second(x), rtol=1e-5)


def test_of_many_columns_blocks_of_even_length_are_kept() -> None:
    x = rows(2, 50, 10)
    moments = Moments(2, 10, block=4)
    assert moments.bounds == ((0, 3), (3, 6), (6, 10))
    moments.add(x[:, :20])
    moments.add(x[:, 20:])
    np.testing.assert_array_equal(moments.block(1), moments.second[1])
    assert moments.block(1) is not moments.block(1)
    whole = second(x)
    for block, (begin, end) in zip(moments.second, moments.bounds, strict=True):
        np.testing.assert_allclose(block, whole[:, begin:end, begin:end], rtol=1e-5, atol=1e-6)
    assert moments.mean.shape == (2, 10)


# ---- collect --------------------------------------------------------------------------------------------------------


def product(shape: tuple[int, int], *names: str) -> Linear:
    matrix = Arrangement.of(shape).matrix((), (1,), (0,))
    leaving = ProductOutput(("y",), transposed=False)
    return Linear(matrix, tuple((ProductInput(name, transposed=False), leaving) for name in names))


def test_layers_that_share_moments_may_look_at_them_at_the_same_time() -> None:
    """Nothing is left to be multiplied then."""
    x = rows(2000, 3)
    one, other = collect({0: product((3, 2), "x")}, [("x", 0, x), ("x", 1, x)], 2, (1,))[0].alike
    assert not one._pending and not other._pending
    np.testing.assert_allclose(one.second[0], second(x[None]), rtol=1e-5)


def test_halves_are_the_samples_named_and_all_others() -> None:
    samples = [rows(20, 3, seed=number) for number in range(5)]
    found = collect({4: product((3, 2), "x")}, [("x", number, x) for number, x in enumerate(samples)], 5, (0, 3))
    one, other = found[4].alike
    np.testing.assert_allclose(one.second[0], second(np.concatenate([samples[n] for n in (1, 2, 4)])[None]), rtol=1e-5)
    np.testing.assert_allclose(other.second[0], second(np.concatenate([samples[n] for n in (0, 3)])[None]), rtol=1e-5)
    assert (one.count, other.count) == (60, 40)


def test_the_order_of_activations_does_not_matter() -> None:
    linear = {0: product((3, 2), "x"), 1: product((3, 2), "y", "x"), 2: product((3, 5), "y")}
    activations = [(name, number, rows(30000, 3, seed=number)) for name in "xy" for number in range(4)]
    one, other = collect(linear, activations, 4, (1, 3)), collect(linear, reversed(activations), 4, (1, 3))
    for number in linear:
        for a, b in zip(one[number].alike, other[number].alike, strict=True):
            np.testing.assert_allclose(a.second[0], b.second[0], rtol=1e-6)
            np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12)
            assert a.count == b.count == 4096
    again = collect(linear, activations, 4, (1, 3))
    assert all(np.array_equal(one[n].alike[0].second[0], again[n].alike[0].second[0]) for n in linear)
    assert not np.array_equal(collect(linear, activations, 4, (1, 3), seed=1)[0].alike[0].mean, one[0].alike[0].mean)


def test_every_position_counts_the_same_however_many_are_taken() -> None:
    """A large and a small activation of one shared layer: 9 of 10 positions are in the large one."""
    large, small = np.full((90000, 1), 2.0, np.float32), np.full((10000, 1), 12.0, np.float32)
    found = collect({0: product((1, 1), "large", "small")}, [("large", 0, large), ("small", 0, small)], 1, ())
    all_rows, none = found[0].alike
    assert all_rows.count == 8192
    np.testing.assert_allclose(all_rows.mean, [[3.0]], rtol=1e-6)
    np.testing.assert_allclose(all_rows.second[0], [[[0.9 * 4 + 0.1 * 144]]], rtol=1e-5)
    assert none.count == 0


def test_layers_with_the_same_inputs_share_their_moments() -> None:
    linear = {0: product((3, 2), "x"), 1: product((3, 5), "x"), 2: product((3, 5), "y")}
    found = collect(linear, [("x", 0, rows(4, 3)), ("y", 0, rows(4, 3))], 1, ())
    assert found[0] is found[1]
    assert found[2] is not found[1]
    assert inputs_of(linear) == ["x", "y"]
    assert nbytes(linear) == 2 * 2 * 8 * 9
    assert nbytes({0: product((100, 2), "x")}, block=50) == 2 * 8 * 100 * 50


def test_shares_say_how_much_positions_count() -> None:
    matrix = Arrangement.of((3, 2)).matrix((), (1,), (0,))
    outputs = [ProductOutput((name,), transposed=False) for name in ("a", "b", "c")]
    x, y = (ProductInput(name, transposed=False) for name in ("x", "y"))
    linear = {
        0: Linear(matrix, ((x, outputs[0]),)),
        1: Linear(matrix, ((x, outputs[1]),)),
        2: Linear(matrix, ((x, outputs[0]), (y, outputs[2]))),
    }
    activations = [("x", 0, rows(20000, 3)), ("y", 0, rows(50, 3, seed=1))]
    shares = PositionShares(20000, 3, np.random.default_rng(2).random(6667, np.float32))
    share = np.repeat(shares.values, 3)
    plain = collect(linear, activations, 1, ())
    found = collect(linear, activations, 1, (), shares={outputs[0]: [shares]})
    first, *others = (found[number].shared for number in linear)
    assert first is not None and others == [None, None]  # nothing is known of all products
    chosen = x.chosen((20000, 3), first[0].count, np.random.default_rng((0, 0, 0, 0)))
    assert chosen.size == 8192
    taken, weights = activations[0][2][chosen].astype(np.float64), share[chosen].astype(np.float64)
    np.testing.assert_allclose(first[0].second[0][0], (taken.T * weights) @ taken / weights.sum(), rtol=1e-4)
    np.testing.assert_allclose(first[0].mean[0], weights @ taken / weights.sum(), rtol=1e-5)
    assert plain[0] is plain[1] and found[0] is not found[1]
    for number in linear:
        assert plain[number].shared is None
        np.testing.assert_allclose(found[number].alike[0].mean, plain[number].alike[0].mean, rtol=0.05)
    assert nbytes(linear) == 2 * 2 * 8 * 9
    assert nbytes(linear, shares={outputs[0]: [shares]}) == (3 + 1) * 2 * 8 * 9


def test_a_layer_of_many_columns_gets_more_rows() -> None:
    x = rows(40000, 2100)
    one, other = collect({0: product((2100, 1), "x")}, [("x", number, x) for number in range(3)], 3, (1,))[0].alike
    assert (one.count, other.count) == (2 * 2800, 2800)


def network() -> onnx.ModelProto:
    r = Random(0)
    return model(
        [
            node("Conv", "x w b", "c", pads=[1, 1, 1, 1], strides=[2, 2]),
            node("Relu", "c", "a"),
            node("Conv", "a depthwise", "d", group=8, pads=[1, 1, 1, 1]),
            node("GlobalAveragePool", "d", "p"),
            node("Flatten", "p", "f"),
            node("Gemm", "f head", "y", transB=1),
        ],
        [info("x", 2, 3, 16, 16)],
        [unknown("y")],
        [
            tensor("w", r(8, 3, 3, 3)),
            tensor("b", r(8)),
            tensor("depthwise", r(8, 1, 3, 3)),
            tensor("head", r(5, 8)),
        ],
    )


def test_moments_of_a_model_tell_the_energy_of_its_products(tmp_path: Path) -> None:
    """W H Wᵀ = E[W x (W x)ᵀ], the products by onnxruntime."""
    loaded = Model.load(save(network(), tmp_path))
    form, linear = linear_layers(loaded.session_form(), loaded.layers)
    generator = np.random.default_rng(0)
    samples = [({"x": generator.standard_normal((2, 3, 16, 16), np.float32)}, 2) for _ in range(6)]
    weights = [layer.values for layer in loaded.layers]
    observer = Observer(form, weights, samples, runtime=Runtime(threads=1))
    found = collect(linear, observer.activations(inputs_of(linear)), len(samples), (1, 3, 5))
    numbers = {layer.name: number for number, layer in enumerate(loaded.layers)}
    assert set(linear) == {numbers[name] for name in ("w", "depthwise", "head")}
    assert linear[numbers["w"]].bias == numbers["b"]
    outputs: dict[str, list[np.ndarray]] = {"c": [], "d": [], "y": []}
    for name, sample, value in observer.activations(list(outputs)):
        if sample % 2:
            shift = weights[numbers["b"]].reshape(1, 8, 1, 1) if name == "c" else 0
            outputs[name].append(np.moveaxis(value - shift, 1, 0).reshape(value.shape[1], -1))
    for layer, name in (("w", "c"), ("depthwise", "d"), ("head", "y")):
        number = numbers[layer]
        matrices = linear[number].matrix.view(weights[number])
        _, odd = found[number].alike
        truth = np.concatenate(outputs[name], axis=1).reshape(*matrices.shape[:2], -1)
        (moments,) = odd.second
        np.testing.assert_allclose(
            matrices @ moments @ matrices.swapaxes(1, 2),
            truth @ truth.swapaxes(1, 2) / truth.shape[2],
            rtol=1e-4,
            atol=1e-5,
        )
        np.testing.assert_allclose((matrices @ odd.mean[..., None])[..., 0], truth.mean(axis=2), rtol=1e-4, atol=1e-5)
