"""Trellis-coded quantization as archives have it: signs of levels, lanes of layers, and damage."""

from __future__ import annotations

import copy
import itertools
import math
import struct
import zlib
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from riq_cli.archive import Archive, Manifest, SkeletonEntry, deflate
from riq_cli.decode import trellis
from riq_cli.decode.dequantize import Quantized
from riq_cli.entropy.codes import Codes
from riq_cli.errors import CorruptArchive
from riq_cli.limits import STORAGE
from riq_cli.model import Layer
from riq_cli.model.matrix import Arrangement
from riq_cli.pipeline.layer_entry import encode_layer
from riq_cli.report import cells, rows
from riq_cli.report.histogram import histograms
from tests.archives import MANIFEST, SKELETON, TABLE, by_both_decoders, layer_of, levels_of, packed, refused, written

Floats = NDArray[np.float64]
Integers = NDArray[np.int32]

DEFLATED = zlib.compress(SKELETON, 9)


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


def archive_of(layer: Layer, quantized: Quantized) -> Archive:
    entry, sections = encode_layer(layer, quantized, None)
    assert entry.trellis == quantized.trellis
    skeleton = deflate(SKELETON)
    document = Manifest(SkeletonEntry(len(skeleton), len(SKELETON), zlib.crc32(SKELETON)), (entry,))
    return Archive.build(document, [skeleton, *sections])


def numbers(dtype: str, data: bytes) -> Floats:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else STORAGE[dtype]
    return np.frombuffer(data, kind).astype(np.float64)


@pytest.mark.parametrize("dtype", STORAGE)
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
