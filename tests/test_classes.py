"""Which slices of a layer share a table: classes that are there are found, and none where there are none."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from riq_cli.archive import LayerEntry
from riq_cli.decode.layers import decode_layer
from riq_cli.entropy import clustering
from riq_cli.entropy.clustering import best_classes, candidate_axes
from riq_cli.entropy.layers import encode_layer
from riq_cli.model import Layer
from riq_cli.quantizer import Codes, Quantized

Ints = NDArray[np.int32]


def layer_of(symbols: Ints) -> tuple[Layer, Quantized]:
    """A layer that these symbols restore exactly, at bin width 0.5."""
    values = (symbols * 0.5).astype("<f4")
    return Layer("w", "Conv", ("graph.initializer[0]",), "float32", values.shape, values), Quantized(
        symbols.reshape(-1), 0.5
    )


def one_table(symbols: Ints) -> LayerEntry:
    """The entry of the layer without classes: those that do not differ are not stored."""
    layer, quantized = layer_of(symbols)
    same = Codes((0,), np.zeros(symbols.shape[0], np.int32))
    entry, _ = encode_layer(layer, Quantized(quantized.symbols, quantized.width, (), same), None)
    assert entry.classes is None
    return entry


def encoded(symbols: Ints) -> LayerEntry:
    """The entry of the layer with tables of the classes that are chosen for it, after it came back."""
    layer, quantized = layer_of(symbols)
    classes = chosen(symbols) or Codes((0,), np.zeros(symbols.shape[0], np.int32))
    entry, sections = encode_layer(layer, Quantized(quantized.symbols, quantized.width, (), classes), None)
    assert decode_layer(entry, sections, None).values.tobytes() == layer.values.tobytes()
    return entry


def chosen(symbols: Ints) -> Codes | None:
    return best_classes(symbols.reshape(-1), symbols.shape, candidate_axes(symbols.shape))


def even(seed: int, slices: int, length: int) -> Ints:
    """Slices in which −4 … 3 occur equally often: exactly 3 bits/symbol."""
    row = np.arange(length, dtype=np.int32) % 8 - 4
    return np.random.default_rng(seed).permuted(np.tile(row, (slices, 1)), axis=1)


def normal(seed: int, *shape: int, scale: float = 1.0) -> Ints:
    return np.rint(np.random.default_rng(seed).normal(scale=scale, size=shape)).astype(np.int32)


# Classes that are there


def test_two_scales_are_two_classes_and_save_what_they_should() -> None:
    """Half of the rows ×8: 0 has probability 1/8, 14 symbols have 1/16 each, 3.875 bits; a row alone has 3."""
    loud = np.random.default_rng(0).permutation(np.arange(256) % 2)
    symbols = even(1, 256, 256) * np.where(loud, 8, 1)[:, None].astype(np.int32)
    found = chosen(symbols)
    assert found is not None
    assert found.axes == (0,)
    np.testing.assert_array_equal(found.values, loud)
    one, two = one_table(symbols), encoded(symbols)
    assert (two.entropy, one.entropy) == (3.0, 3.875)
    assert two.classes is not None
    assert two.classes.axes == (0,)
    saved = 0.875 * symbols.size / 8 - 256 / 8  # codes of 256 rows: a bit each
    assert one.stored - two.stored == pytest.approx(saved, abs=40)  # heads of tables, and ends of streams


@pytest.mark.parametrize("axes", [(0,), (1,), (2, 3), (0, 2, 3), (1, 2, 3), (0, 1)])
def test_slices_along_any_axes_are_found(axes: tuple[int, ...]) -> None:
    shape = (24, 32, 5, 4)
    numbers = np.random.default_rng(2).permutation(np.arange(math.prod(shape[axis] for axis in axes)) % 3)
    where = Codes(axes, numbers.astype(np.int32).reshape([shape[axis] for axis in axes]))
    spread = np.array([0.6, 3, 15])[where.aligned(4)]
    symbols = np.rint(np.random.default_rng(3).normal(size=shape) * spread).astype(np.int32)
    found = chosen(symbols)
    assert found is not None
    assert found.axes == axes
    assert np.mean(found.values == where.values) > 0.99  # by magnitude, as they were numbered
    assert encoded(symbols).stored < 0.9 * one_table(symbols).stored


def test_symbols_of_the_same_magnitude_are_told_apart_too() -> None:
    """Rows of −2 and of +2, which their mean magnitude says nothing of."""
    sign = np.random.default_rng(4).permutation(np.arange(128) % 2 * 2 - 1)
    found = chosen(normal(5, 128, 90) + 2 * sign[:, None].astype(np.int32))
    assert found is not None
    assert found.axes == (0,)
    assert len({(code, side) for code, side in zip(found.values.tolist(), sign.tolist(), strict=True)}) == 2


@pytest.mark.parametrize("scale", [0.5, 2.0, 20.0])
def test_the_number_of_classes_comes_out_by_itself(scale: float) -> None:
    """Rows whose scales run from small to large, at rates where symbols share bins or not."""
    spread = np.geomspace(scale, 10 * scale, 400)
    symbols = np.rint(np.random.default_rng(6).normal(size=(400, 300)) * spread[:, None]).astype(np.int32)
    found = chosen(symbols)
    assert found is not None
    assert found.axes == (0,)
    layer, quantized = layer_of(symbols)
    stored = []
    for count in range(2, 17):
        parts = Codes((0,), (np.arange(400) * count // 400).astype(np.int32))
        stored.append(encode_layer(layer, Quantized(quantized.symbols, 0.5, (), parts), None)[0].stored)
    assert encoded(symbols).stored <= min(stored)  # equal parts, however many, are no better


def test_short_slices_are_classed() -> None:
    """Rows of a depthwise convolution: nine symbols each."""
    loud = np.arange(672) % 2
    symbols = np.rint(
        np.random.default_rng(7).normal(size=(672, 1, 3, 3)) * np.where(loud, 12, 0.7)[:, None, None, None]
    )
    found = chosen(symbols.astype(np.int32))
    assert found is not None
    assert found.axes == (0,)
    assert encoded(symbols.astype(np.int32)).stored < 0.9 * one_table(symbols.astype(np.int32)).stored


@pytest.mark.parametrize("scale", [1, 40])
@pytest.mark.parametrize("sides", [(1,), (-1,), (-1, 1)])
def test_symbols_far_away_do_no_harm(sides: tuple[int, ...], scale: int) -> None:
    symbols = normal(8, 64, 64, scale=scale) * np.where(np.arange(64) % 2, 8, 1)[:, None].astype(np.int32)
    for number, side in enumerate(sides):
        symbols[3, number] = side * (1 << 23)
    found = chosen(symbols)
    assert found is not None
    assert found.axes == (0,)
    assert encoded(symbols).stored < one_table(symbols).stored


# None where there are none


@pytest.mark.parametrize("scale", [0.3, 1.0, 10.0, 300.0])
@pytest.mark.parametrize("shape", [(2, 1000), (400, 300), (64, 32, 3, 3), (300, 1, 5, 5), (2, 96, 48), (1, 70, 1, 80)])
def test_symbols_without_a_difference_have_one_table(shape: tuple[int, ...], scale: float) -> None:
    symbols = normal(10, *shape, scale=scale)
    assert chosen(symbols) is None
    assert encoded(symbols) == one_table(symbols)


def test_a_saving_that_is_none_is_left() -> None:
    """Two rows of 400 that differ: their table and the codes cost more."""
    symbols = normal(11, 400, 40)
    symbols[7:9] *= 2
    assert chosen(symbols) is None


@pytest.mark.parametrize(
    "symbols",
    [
        np.zeros((60, 70), np.int32),
        np.full((60, 70), -7, np.int32),
        np.arange(8000, dtype=np.int32).reshape(80, 100),  # a table of too many symbols
        np.resize(np.array([-2, -1, 1, 2], np.int32) << 22, (60, 70)),  # too far apart
        np.repeat([0, 1], 2000).astype(np.int32),  # a single axis: every weight would have its own code
        np.repeat([0, 1], 2000).astype(np.int32).reshape(1, 4000, 1),
    ],
)
def test_layers_that_are_not_classed(symbols: Ints) -> None:
    assert chosen(symbols) is None
    assert encoded(symbols).classes is None


def test_small_layers_are_not_classed() -> None:
    symbols = even(12, 40, 48) * np.where(np.arange(40) % 2, 800, 1)[:, None].astype(np.int32)
    assert chosen(symbols) is not None
    assert encode_layer(*layer_of(symbols), None)[0].classes is None


def test_classes_that_are_given_stay() -> None:
    symbols = even(13, 64, 64) * np.where(np.arange(64) % 2, 8, 1)[:, None].astype(np.int32)
    layer, quantized = layer_of(symbols)
    given_ = Codes((1,), np.arange(64, dtype=np.int32) % 3)
    entry, sections = encode_layer(layer, Quantized(quantized.symbols, 0.5, (), given_), None)
    assert entry.classes is not None
    assert entry.classes.axes == (1,)
    assert decode_layer(entry, sections, None).values.tobytes() == layer.values.tobytes()


def test_axes_with_too_many_slices_are_left_out() -> None:
    symbols = normal(14, 3000, 30, scale=5) * np.where(np.arange(3000) % 2, 1, 8)[:, None].astype(np.int32)
    assert best_classes(symbols.reshape(-1), symbols.shape, [(0,)]) is not None
    assert best_classes(symbols.reshape(-1), symbols.shape, [(0, 1)]) is None
    assert best_classes(symbols.reshape(-1), symbols.shape, []) is None


# Axes


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((), ()),
        ((5000,), ()),
        ((1, 5000, 1), ()),
        ((70, 80), ((0,), (1,))),
        ((1, 70, 1, 80), ((1,), (3,))),
        ((2, 96, 48), ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2))),
        ((64, 1, 5, 5), ((0,), (2,), (3,), (0, 2), (0, 3), (2, 3))),
        ((64, 32, 3, 3), ((0,), (1,), (2, 3), (0, 1), (0, 2, 3), (1, 2, 3))),
        ((8, 4, 3, 2, 3), ((0,), (1,), (2, 3, 4), (0, 1), (0, 2, 3, 4), (1, 2, 3, 4))),
    ],
)
def test_candidate_axes(shape: tuple[int, ...], axes: tuple[tuple[int, ...], ...]) -> None:
    assert candidate_axes(shape) == axes


def test_histograms_of_slices_along_all_axes() -> None:
    shape = (7, 6, 5, 4)
    symbols = np.random.default_rng(15).integers(0, 9, shape).astype(np.uint8)
    axes = [subset for count in (1, 2, 3) for subset in itertools.combinations(range(4), count)]
    with patch.object(clustering, "_BLOCK", 50):
        found = clustering._histograms(symbols.reshape(-1), 9, shape, axes)
    assert {*found} == {*axes}
    for along, counts in found.items():
        others = tuple(axis for axis in range(4) if axis not in along)
        for symbol in range(9):
            np.testing.assert_array_equal(counts[:, symbol], (symbols == symbol).sum(axis=others).reshape(-1))


# Always


@st.composite
def layers(draw: st.DrawFn) -> Ints:
    """Symbols of all distributions, with slices that differ, a little or much, along some axes or none."""
    shape = draw(
        st.sampled_from([(40, 50), (2, 1000), (1000, 2), (300, 1, 3, 3), (16, 8, 5, 4), (2, 60, 20), (100, 90)])
    )
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    symbols = draw(st.sampled_from([random.normal, random.laplace, random.standard_cauchy]))(size=shape)
    for axis in draw(st.sets(st.integers(0, len(shape) - 1), max_size=2)):
        sizes = [size if number == axis else 1 for number, size in enumerate(shape)]
        symbols = symbols * np.exp(random.normal(scale=draw(st.sampled_from([0.1, 0.5, 2])), size=sizes))
    scaled = np.rint(symbols * draw(st.sampled_from([0.02, 0.3, 1, 8, 100])))
    return np.clip(scaled, -(1 << 23), 1 << 23).astype(np.int32)


@given(layers())
def test_a_layer_is_never_larger_for_its_classes(symbols: Ints) -> None:
    classes = chosen(symbols)
    entry, one = encoded(symbols), one_table(symbols)
    assert (entry.classes is None) == (classes is None or entry.coding == "raw")
    assert entry.stored <= one.stored
    if classes is not None:
        assert (classes.values.dtype, classes.values.min()) == (np.dtype(np.int32), 0)
        assert classes.class_sizes(symbols.size).sum() == symbols.size
        again = chosen(symbols.copy())
        assert again is not None
        assert again.axes == classes.axes
        np.testing.assert_array_equal(again.values, classes.values)
        if entry.coding == "ans":
            assert entry.stored < one.stored - 32


def test_encoding_is_the_same_wherever_it_runs() -> None:
    symbols = normal(16, 80, 64, 3, scale=2) * np.arange(1, 81, dtype=np.int32)[:, None, None]
    layer, quantized = layer_of(symbols)
    entry, sections = encode_layer(layer, quantized, None)
    assert entry.classes is not None
    with ThreadPoolExecutor(2) as executor:
        assert encode_layer(layer, quantized, executor) == (entry, sections)
    with patch.object(clustering, "_BLOCK", 1000):
        assert encode_layer(layer, quantized, None) == (entry, sections)
