"""Trellis-coded quantization: its signs, the best way through it, what it saves, and its way through an archive."""

from __future__ import annotations

import copy
import itertools
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from riq_cli.decode import dequantize, trellis
from riq_cli.decode.dequantize import Quantized
from riq_cli.entropy.codes import Codes
from riq_cli.entropy.histogram import Histogram
from riq_cli.errors import CorruptArchive
from riq_cli.model.matrix import Arrangement
from riq_cli.pipeline.plans import Plan
from riq_cli.quantize import Damping, Factor, compensated, factorized, scalar, trellised
from riq_cli.quantize.trellis import SYMBOL_MAX, Viterbi
from riq_cli.report import cells, rows
from riq_cli.report.histogram import histograms
from tests.archives import (
    DEFLATED,
    MANIFEST,
    TABLE,
    archive_of,
    by_both_decoders,
    layer_of,
    levels_of,
    packed,
    refused,
    written,
)

Floats = NDArray[np.float64]
Integers = NDArray[np.int32]


def by_definition(lane: list[int]) -> list[int]:
    """The levels of one lane, as FORMAT.md defines them."""
    levels, sign, before = [], 1, 1
    for symbol in lane:
        levels.append(sign * (4 * symbol + 1))
        sign, before = (-before if symbol % 2 else before), sign
    return levels


def lanes_of(values: Integers, axes: tuple[int, ...]) -> list[list[int]]:
    """What lies at one index of each of the axes, row-major along the others."""
    indices = itertools.product(*(range(values.shape[axis]) for axis in axes))
    return [
        values[tuple(at[axes.index(axis)] if axis in axes else slice(None) for axis in range(values.ndim))]
        .reshape(-1)
        .tolist()
        for at in indices
    ]


# ---- signs ----------------------------------------------------------------------------------------------------------


@given(st.data())
def test_levels_are_those_of_the_definition_and_give_the_symbols_back(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    bound = data.draw(st.sampled_from([1, 3, 100, (1 << 29) - 1]))
    symbols = np.random.default_rng(math.prod(shape)).integers(-bound, bound + 1, shape, np.int32)
    with patch.object(trellis, "_PART", data.draw(st.sampled_from([1, 7, 30, 1 << 20]))):  # signs go from part to part
        levels = levels_of(symbols.reshape(-1), shape, axes)
    found = lanes_of(levels.reshape(shape), axes)
    assert found == [by_definition(lane) for lane in lanes_of(symbols, axes)]
    assert trellis.symbols(levels).tolist() == symbols.reshape(-1).tolist()


@pytest.mark.parametrize("symbol", [1 << 29, -(1 << 29), (1 << 31) - 1])
def test_symbols_without_a_level_are_refused(symbol: int) -> None:
    with pytest.raises(ValueError, match=r"a symbol whose level is not below 2\^31"):
        levels_of(np.array([0, symbol, 0], np.int32), (3,), (0,))


# ---- the best way ---------------------------------------------------------------------------------------------------


def least_error(lane: Floats, width: float) -> float:
    """The least Σ (w − ŵ)² of all ways through a short lane, by trying the parities of all symbols."""
    found = math.inf
    for parities in itertools.product((0, 1), repeat=len(lane)):
        sign, before, total = 1, 1, 0.0
        for weight, parity in zip(lane / width, parities, strict=True):
            point = sign * weight - 0.25
            total += (2 * round((point - parity) / 2) + parity - point) ** 2
            sign, before = (-before if parity else before), sign
        found = min(found, total * width**2)
    return found


@pytest.mark.parametrize("width", [0.3, 1.0, 2.5])
def test_the_way_is_the_best_of_all(width: float) -> None:
    matrix = np.random.default_rng(1).normal(size=(2, 9, 8))
    levels, error = trellised(matrix, (), np.full((1, 1, 1), width))
    assert levels.tolist() == [[by_definition(lane) for lane in trellis.symbols(group).tolist()] for group in levels]
    best = [[least_error(lane, width) for lane in group] for group in matrix]
    np.testing.assert_allclose(np.square(levels * width / 4 - matrix).sum(axis=2), best, rtol=1e-4)
    assert error == pytest.approx(np.sum(best) / np.max(np.abs(matrix)) ** 2, rel=1e-4)


def entropy(symbols: Integers) -> float:
    return Histogram.of(symbols.reshape(-1)).entropy


@pytest.mark.parametrize("width", [0.1, 0.5, 1.0, 2.0])
def test_a_trellis_saves_what_theory_says_of_independent_weights(width: float) -> None:
    """Four states have 0.99 dB of the 1.53 dB of space-filling; that is 0.16 of 0.25 bits at equal error."""
    matrix = np.random.default_rng(2).normal(size=(1, 300, 400))
    levels, _ = trellised(matrix, (), np.full((1, 1, 1), width))
    rounded = np.rint(matrix / width)
    ours, theirs = (np.mean(np.square(found - matrix)) for found in (levels * width / 4, rounded * width))
    saved = entropy(rounded.astype(np.int32)) - entropy(trellis.symbols(levels)) + math.log2(theirs / ours) / 2
    assert 0.145 < saved < 0.2


def moment(size: int, rows: int = 200, groups: int = 1) -> Floats:
    generator = np.random.default_rng(size)
    x = generator.normal(size=(groups, rows, size)) @ (np.eye(size) + generator.normal(size=(size, size)) / 10)
    return np.asarray(x.swapaxes(1, 2) @ x / rows)


@pytest.mark.parametrize(("groups", "rows_", "size"), [(1, 300, 150), (1, 1500, 40), (3, 50, 20), (2, 40, 130)])
def test_errors_are_compensated_on_the_way(groups: int, rows_: int, size: int) -> None:
    second = moment(size, groups=groups)
    factors = [Factor(0, size, factorized(second, Damping(0.01)))]
    matrix = np.random.default_rng(3).normal(size=(groups, rows_, size))
    widths = np.full((1, 1, size), 0.8)
    levels, error = trellised(matrix, factors, widths)
    symbols, scalar = compensated(matrix, factors, widths)
    damped = second + 0.01 * np.trace(second, axis1=1, axis2=2)[:, None, None] / size * np.eye(size)
    left = levels * 0.2 - matrix
    expected = np.einsum("gnk,gkl,gnl->", left, damped, left) / np.max(np.abs(matrix)) ** 2
    assert error == pytest.approx(expected, rel=1e-3)  # what it says is what it leaves
    assert error < (0.91 if size == 20 else 0.87) * scalar
    assert entropy(trellis.symbols(levels)) < entropy(symbols) + 0.03


def test_lanes_go_on_from_one_factor_to_the_next() -> None:
    second = moment(60)
    cut = [Factor(b, b + 20, factorized(second[:, b : b + 20, b : b + 20], Damping(0.1))) for b in (0, 20, 40)]
    levels, _ = trellised(np.random.default_rng(4).normal(size=(1, 20, 60)), cut, np.full((1, 1, 60), 0.5))
    assert levels[0].tolist() == [by_definition(lane) for lane in trellis.symbols(levels[0]).tolist()]


@pytest.mark.parametrize("feedback", [False, True])
def test_groups_may_go_on_some_at_a_time(feedback: bool) -> None:
    """Panel by panel, as they are taken and put back, levels are those of lanes and of all groups at once."""
    generator = np.random.default_rng(10)
    weights = generator.normal(size=(3, 40, 30)).astype(np.float32)
    bins, upper = np.full_like(weights, 0.7), np.triu(generator.normal(size=(3, 40, 40)).astype(np.float32) / 9)
    upper[:, np.arange(40), np.arange(40)] = 1

    def levels(together: Sequence[Sequence[int]]) -> Integers:
        paths, found, errors = Viterbi(3, 30), np.empty(weights.shape, np.int32), np.empty_like(weights)
        for begin in (0, 16, 32):
            panel = slice(begin, min(begin + 16, 40))
            for groups in together:
                some, own, error = paths.of(groups), found[groups, panel], errors[groups, panel]
                spread = upper[groups, panel, panel] if feedback else None
                some.extend(weights[groups, panel], bins[groups, panel], spread, own, error)
                found[groups, panel], errors[groups, panel] = own, error
                paths.put(groups, some)
        return found

    alone = levels([[0], [1], [2]])
    np.testing.assert_array_equal(alone, levels([[2, 0], [1]]))
    lanes = alone.transpose(0, 2, 1).reshape(90, 40)
    assert lanes.tolist() == [by_definition(lane) for lane in trellis.symbols(lanes).tolist()]


# ---- layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "rows_", "columns", "lanes"),
    [
        ((5, 9), [0], [1], (0,)),
        ((9, 5), [1], [0], (1,)),
        ((4, 3, 2, 2), [0], [1, 2, 3], (0,)),
        ((4, 3, 2, 2), [1], [0, 2, 3], (1,)),
        ((4, 3, 2, 2), [0], [2, 1, 3], None),  # columns in another order than lanes have them
        ((4, 1, 3, 3), [0], [1, 2, 3], (0,)),
        ((1, 9), [0], [1], None),  # of one row there is nothing to tell
    ],
)
def test_rows_are_lanes_where_their_columns_are_in_order(
    shape: tuple[int, ...], rows_: list[int], columns: list[int], lanes: tuple[int, ...] | None
) -> None:
    matrix = Arrangement.of(shape).matrix([], rows_, columns)
    assert matrix.lanes == lanes
    if lanes is not None:
        values = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
        assert matrix.view(values).reshape(-1, matrix.shape[2]).tolist() == lanes_of(values, lanes)


def test_a_plan_takes_a_trellis_where_it_saves_bits() -> None:
    layer = layer_of(np.random.default_rng(5).normal(size=(64, 50)))
    plan = Plan.nearest(layer)
    found = plan.with_trellis(layer, 0.5)
    assert found is not None
    quantized, error = found.rounded(layer, 0.5)
    assert quantized.trellis == (0,)
    back = quantized.restored("float32", layer.shape).reshape(layer.shape)
    assert error == pytest.approx(scalar.squared_error(layer.values, back, "float32"), rel=1e-4)
    assert error < 0.87 * plan.rounded(layer, 0.5)[1]
    assert plan.with_trellis(layer, 6.0) is None  # all but a few would be 0
    assert Plan.nearest(layer_of(np.ones((64, 7)))).with_trellis(layer_of(np.ones((64, 7))), 0.5) is None  # too short


def test_bins_too_narrow_for_a_trellis_are_rounded_without() -> None:
    layer = layer_of(np.random.default_rng(6).normal(size=(30, 20)))
    found = Plan.nearest(layer).with_trellis(layer, 0.1)
    assert found is not None
    width = scalar.peak(layer.values, "float32") / SYMBOL_MAX
    assert found.rounded(layer, 1.01 * width)[0].trellis == (0,)
    assert found.rounded(layer, 0.99 * width)[0].trellis is None


def test_rows_of_zeros_stay_near_zero() -> None:
    """A padding row or a dead channel is not to become a quarter of a bin, nor to cost bits."""
    values = np.random.default_rng(9).normal(size=(64, 50))
    values[3], values[7] = 0, values[7] * 1e-3
    layer = layer_of(values)
    found = Plan.nearest(layer).with_trellis(layer, 0.5)
    assert found is not None
    assert found.rows[0, [0, 3, 63]].tolist() == [0, -40, 0]
    quantized, _ = found.rounded(layer, 0.5)
    restored = quantized.restored("float32", layer.shape).reshape(layer.shape)
    assert np.abs(restored[3]).max() == pytest.approx(0.5 / 4 / 1024)
    assert np.abs(restored[7]).max() < 2 * np.abs(values[7]).max()
    assert np.abs(quantized.symbols.reshape(64, 50)[[3, 7]]).max() <= 1
    loud = Plan.nearest(layer).with_row_codes(layer, np.full((1, 64), 2, np.int32)).with_trellis(layer, 0.5)
    assert loud is not None
    assert loud.rows[0, [0, 3]].tolist() == [2, -38]
    assert len(loud.scales) == 1


def test_columns_of_zeros_stay_near_zero_where_errors_do_not_spread_to_them() -> None:
    """So does the padding entry of a table, whose entries are the columns."""
    values = np.random.default_rng(9).normal(size=(50, 64))
    values[3] = 0
    layer = layer_of(values)
    table = Arrangement.of(values.shape).matrix((), (1,), (0,))
    found = Plan.of(table).with_trellis(layer, 0.5)
    assert found is not None
    assert found.columns[0, [0, 3, 49]].tolist() == [0, -40, 0] and not found.rows.any()
    restored = found.rounded(layer, 0.5)[0].restored("float32", layer.shape).reshape(layer.shape)
    assert np.abs(restored[3]).max() < 0.5 / 1024
    assert found.rounded(layer, 0.5)[0].trellis == (1,)
    spreading = replace(Plan.of(table), factors=(Factor(0, 50, np.triu(np.ones((1, 50, 50), np.float32))),))
    other = spreading.with_trellis(layer, 0.5)
    assert other is None or not other.columns.any()


def numbers(dtype: str, data: bytes) -> Floats:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dequantize.STORAGE[dtype]
    return np.frombuffer(data, kind).astype(np.float64)


@pytest.mark.parametrize("dtype", dequantize.STORAGE)
@pytest.mark.parametrize("shape", [(12, 40), (3, 4, 5, 6), (50,)])
def test_a_layer_goes_through_an_archive(dtype: str, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(7)
    layer = layer_of(generator.normal(size=shape), dtype)
    symbols = np.rint(generator.normal(size=layer.size) * 3).astype(np.int32)
    axes = (0,) if len(shape) < 4 else (0, 2)
    scales = (Codes((0,), generator.integers(-9, 9, shape[:1], np.int32)),)
    levels = levels_of(symbols, shape, axes)
    for given_scales in ((), scales):
        archive = archive_of(layer, Quantized(levels, 0.3, given_scales, axes))
        assert archive.manifest.requires == (*(("scales",) if given_scales else ()), "student", "trellis")
        data = by_both_decoders(written(archive))
        widths = 0.3 * 2.0 ** (scales[0].aligned(len(shape)) / 4.0) if given_scales else 0.3
        expected = (levels.reshape(shape) * (widths / 4)).reshape(-1)
        precision = {"float16": 1e-3, "bfloat16": 1e-2, "float32": 1e-6, "float64": 1e-14}[dtype]
        np.testing.assert_allclose(numbers(dtype, data), expected, rtol=precision)


def test_symbols_that_are_all_the_same_differ_in_their_signs() -> None:
    layer = layer_of(np.zeros((8, 300)))
    for symbol, signs in ((1, [1, -1, -1, 1]), (2, [1, 1, 1, 1])):
        levels = levels_of(np.full(layer.size, symbol, np.int32), layer.shape, (0,))
        archive = archive_of(layer, Quantized(levels, 1.0, trellis=(0,)))
        assert [entry.coding for entry in archive.manifest.layers] == ["constant"]
        data = numbers("float32", by_both_decoders(written(archive)))
        assert data[:4].tolist() == [sign * (symbol + 0.25) for sign in signs]


# ---- manifests ------------------------------------------------------------------------------------------------------


def with_trellis(value: Any, requires: tuple[str, ...] = ("trellis",), **keys: Any) -> bytes:
    """A layer of six symbols 3 in two rows, each a lane: +3¼ −3¼ −3¼ bins of 0.5."""
    document = copy.deepcopy(MANIFEST) | {"requires": list(requires)}
    crc32 = zlib.crc32(struct.pack("<6f", *[1.625, -1.625, -1.625] * 2))
    document["layers"][0] |= {"trellis": value, "crc32": crc32} | keys
    return packed(document, DEFLATED + TABLE)


def test_a_trellis_by_hand_is_read() -> None:
    assert numbers("float32", by_both_decoders(with_trellis([0]))).tolist() == [1.625, -1.625, -1.625] * 2


@pytest.mark.parametrize("axes", [[], [2], [0, 2], [1, 0], [0, 0], [0] * 40])
def test_axes_that_a_layer_does_not_have(axes: list[int]) -> None:
    message = "layer 'w': a trellis along what are not ascending axes of its shape; the archive is damaged"
    refused(with_trellis(axes), CorruptArchive, message)


@pytest.mark.parametrize("value", [None, 0, "0", {}, [-1], [0.5], [True], [[0]]])
def test_axes_that_are_none(value: object) -> None:
    message = "layer 'w': 'trellis' is not a list of non-negative integers; the archive is damaged"
    refused(with_trellis(value), CorruptArchive, message)


def test_a_trellis_has_to_be_required() -> None:
    refused(
        with_trellis([0], requires=()), CorruptArchive,
        "layer 'w': trellis are not required; the archive is damaged",
    )  # fmt: skip


def test_other_signs_do_not_pass_the_checksum() -> None:
    refused(with_trellis([1]), CorruptArchive, "layer 'w': checksum differs; the archive is damaged")


# ---- reports --------------------------------------------------------------------------------------------------------


def test_reports_tell_of_a_trellis() -> None:
    generator = np.random.default_rng(8)
    layer = layer_of(generator.normal(size=(40, 100)))
    symbols = np.rint(generator.normal(size=layer.size)).astype(np.int32)
    archive = archive_of(layer, Quantized(levels_of(symbols, layer.shape, (0,)), 1.0, trellis=(0,)))
    [row], [histogram] = rows(archive), histograms(archive, 1)
    assert row["trellis"] == {"axes": [0]}
    assert cells(row)["codes"] == "trellis"
    assert histogram.zero == 0.0  # symbol 0 is a quarter of a bin
