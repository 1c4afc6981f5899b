"""Coding by Student's t: frequencies, the contexts that are found, archives."""

from __future__ import annotations

import copy
import json
import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from riq_cli import limits
from riq_cli.archive import manifest
from riq_cli.decode import decode_layer
from riq_cli.decode.dequantize import Quantized
from riq_cli.entropy import contexts, fit
from riq_cli.entropy import student as student_module
from riq_cli.entropy.codes import Codes
from riq_cli.entropy.contexts import Contexts
from riq_cli.entropy.fit import fitted
from riq_cli.entropy.student import Student, StudentCoding, share_below
from riq_cli.errors import CorruptArchive, UnsupportedArchive
from riq_cli.model import Layer
from riq_cli.pipeline import layer_entry as encode_module
from riq_cli.pipeline.layer_entry import encode_layer
from tests.archives import archive_of, by_both_decoders, decoded, layer_of, levels_of, packed, refused, written

Ints = NDArray[np.int32]
IMPOSSIBLE = "a distribution has impossible numbers; the archive is damaged"
UNIT = Student(freedom=2, relative=False, scale=0, center=0, low_bits=0, first=-40, cells=81)


def normal(seed: int, *shape: int, scale: Any = 1.0) -> Ints:
    return np.rint(np.random.default_rng(seed).normal(size=shape) * scale).astype(np.int32)


class Found(NamedTuple):
    """What `fitted` finds."""

    bits: float
    coding: StudentCoding


def found(symbols: Ints, scales: tuple[Codes, ...] = ()) -> Found:
    result = fitted(symbols.reshape(-1), symbols.shape, scales, False)
    assert result is not None
    return Found(*result)


# ---- frequencies ----------------------------------------------------------------------------------------------------


def test_two_and_four_degrees_of_freedom_are_as_in_the_textbook() -> None:
    x = np.linspace(-9, 9, 37)
    np.testing.assert_allclose(share_below(4 * x, 0, 0), 0.5 + x / (2 * np.sqrt(2 + x * x)), rtol=1e-14)
    u = 1 + x * x / 4
    np.testing.assert_allclose(
        share_below(4 * x, 0, 1), 0.5 + 3 / 8 * x / np.sqrt(u) * (1 - x * x / (12 * u)), rtol=1e-12
    )


def test_many_degrees_of_freedom_are_a_gaussian() -> None:
    x = np.linspace(-4, 4, 33)
    gaussian = [(1 + math.erf(value / math.sqrt(2))) / 2 for value in x]
    np.testing.assert_allclose(share_below(4 * x, 0, 5), gaussian, atol=3e-3)
    assert np.abs(share_below(4 * x, 0, 4) - gaussian).max() > 3e-3


def test_a_scale_is_in_quarters_of_an_octave() -> None:
    np.testing.assert_allclose(share_below(np.array([8.0]), 4, 2), share_below(np.array([4.0]), 0, 2), rtol=0)
    np.testing.assert_allclose(
        share_below(np.array([4 * 2**0.25]), 1, 2), share_below(np.array([4.0]), 0, 2), rtol=1e-15
    )
    codes = np.array([[-6.0], [0.0], [9.0]])
    every = share_below(np.arange(-9.0, 10), codes, 3)
    for row, code in zip(every, (-6, 0, 9), strict=True):
        np.testing.assert_array_equal(row, share_below(np.arange(-9.0, 10), code, 3))


def test_frequencies_by_hand() -> None:
    """Two cells of ±1 bin around −½, of two degrees of freedom: each has half; three, of three bins: 1/√(1 + 8/9)."""
    halves = Student(0, False, 0, 0, 0, -1, 2).frequencies(0, True)
    assert halves.sum() == 1 << 24
    three = Student(0, False, 0, 0, 0, -1, 3).frequencies(0, False)
    inner = 0.5 / math.sqrt(2 + 0.25)
    outer = 1.5 / math.sqrt(2 + 2.25) - inner
    assert three[1] == pytest.approx(2**24 * 2 * inner / (2 * inner + 2 * outer), abs=8)
    assert (three[0], three.sum()) == (three[2], 1 << 24)


@given(
    st.integers(0, 5), st.integers(-limits.CODE_MAX, limits.CODE_MAX), st.integers(-99, 99), st.integers(0, 15),
    st.integers(-2000, 2000), st.integers(2, 300), st.booleans(),
)  # fmt: skip
def test_frequencies_are_positive_and_have_their_sum(
    freedom: int, scale: int, center: int, low_bits: int, first: int, cells: int, lanes: bool
) -> None:
    student = Student(freedom, lanes, scale, center, low_bits, first, cells)
    assert Student.from_bytes(student.to_bytes()) == student
    frequencies = student.frequencies(0, lanes)
    assert (frequencies.dtype, frequencies.size, frequencies.sum()) == (np.int64, cells, 1 << 24)
    assert frequencies.min() >= 1


def test_symbols_of_a_trellis_are_spread_around_a_quarter_below_their_center() -> None:
    frequencies = UNIT.frequencies(0, True)
    assert frequencies[39] > frequencies[41]
    wide = Student(2, False, 0, 0, 0, -41, 82)  # symbols −41 … 40 lie at −40¾ … 40¼: as far to both sides, less ½
    shares = wide.frequencies(8, True) / 2**24
    assert abs(np.dot(shares, np.arange(-41, 41) + 0.25)) < 1e-3


def numbers(**fields: int) -> bytes:
    """Those of a distribution as they are packed, whatever they are."""
    item = copy.copy(UNIT)
    for name, value in fields.items():
        object.__setattr__(item, name, value)
    return item.to_bytes()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (b"", "a table is cut off; the archive is damaged"),
        (UNIT.to_bytes()[:1], "a table holds an impossible code; the archive is damaged"),
        (UNIT.to_bytes()[:-1], "a table holds an impossible code; the archive is damaged"),
        (UNIT.to_bytes() + b"\0", "the numbers of a distribution are too long; the archive is damaged"),
        (numbers(scale=257), IMPOSSIBLE),
        (numbers(freedom=6), IMPOSSIBLE),
        (numbers(cells=1), IMPOSSIBLE),
        (numbers(cells=4097), IMPOSSIBLE),
        (numbers(low_bits=15, first=1 << 16), IMPOSSIBLE),
        (numbers(center=1 << 31), IMPOSSIBLE),
    ],
)  # fmt: skip
def test_numbers_that_no_encoder_writes(stored: bytes, message: str) -> None:
    with pytest.raises(CorruptArchive) as caught:
        Student.from_bytes(stored)
    assert str(caught.value) == message


def test_a_magnitude_beyond_its_bound() -> None:
    UNIT.frequencies(256, False)
    with pytest.raises(ValueError, match="a magnitude beyond ±256"):
        UNIT.frequencies(257, False)
    with pytest.raises(ValueError, match="a magnitude beyond ±256"):
        Contexts((Codes((0,), np.array([200, 0], np.int32)), Codes((1,), np.array([57, 0], np.int32))), (2, 2))


# ---- what is there is found -----------------------------------------------------------------------------------------


def test_symbols_without_a_difference_have_no_contexts() -> None:
    for shape in ((400, 300), (64, 32, 3, 3), (2, 96, 48), (1, 70, 1, 80), (5000,)):
        for scale in (0.4, 3.0, 30.0):
            coding = found(normal(1, *shape, scale=scale)).coding
            assert coding.contexts.codes == ()
            assert coding.student.freedom >= 3 or scale < 1
    assert fitted(np.full(90, 7, np.int32), (9, 10), (), False) is None


@pytest.mark.parametrize("scale", [0.5, 4.0, 300.0])
def test_rows_and_columns_have_contexts_at_the_same_time(scale: float) -> None:
    """Bits are those of Gaussians whose scales are known, and of the codes; no table of rows or columns gets there."""
    rows, columns = (np.random.default_rng(seed).integers(-6, 7, count) for seed, count in ((2, 200), (3, 300)))
    own = scale * np.exp2(rows[:, None] / 4) * np.exp2(columns / 4)
    symbols = normal(4, 200, 300, scale=own)
    best = found(symbols)
    codes = {item.axes: item.values for item in best.coding.contexts.codes}
    assert {*codes} == {(0,), (1,)}
    for difference in (codes[0,] - rows, codes[1,] - columns):  # but for what all rows have more and columns less
        assert np.abs(difference - np.median(difference)).mean() < 0.7
    upper, lower = ((symbols + side) / own / math.sqrt(2) for side in (0.5, -0.5))
    masses = (np.vectorize(math.erf)(upper) - np.vectorize(math.erf)(lower)) / 2
    ideal = -np.log2(masses).sum()
    assert ideal < best.bits < ideal + 500 * math.log2(13) + 0.012 * symbols.size + 300


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((40, 900), (0,)),
        ((200, 1, 5, 5), (2, 3)),  # taps of a depthwise convolution
        ((24, 32, 5, 4), (0, 1)),
        ((24, 32, 5, 4), (1, 2, 3)),
        ((2, 96, 80), (0, 1)),  # rows of both directions of a recurrent layer
    ],
)
def test_contexts_are_found_along_any_axes(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    random = np.random.default_rng(5)
    codes = random.integers(-8, 9, [size if axis in axes else 1 for axis, size in enumerate(shape)])
    best = found(normal(6, *shape, scale=3 * np.exp2(codes / 4)))
    assert [item.axes for item in best.coding.contexts.codes] == [axes]


def test_contexts_are_those_of_weights_where_bins_differ() -> None:
    """Columns of equal weights in bins that are not equal: the codes of these say all, once."""
    codes = Codes((1,), np.random.default_rng(7).integers(-9, 10, 300).astype(np.int32))
    symbols = normal(8, 200, 300, scale=12 * np.exp2(-codes.values / 4))
    best = found(symbols, (codes,))
    assert (best.coding.student.relative, best.coding.contexts.codes) == (True, ())
    alone = found(symbols)
    assert [item.axes for item in alone.coding.contexts.codes] == [(1,)]
    assert alone.bits - best.bits > 200 * math.log2(19)
    equal = found(normal(9, 200, 300, scale=12), (codes,)).coding
    assert (equal.student.relative, equal.contexts.codes) == (False, ())


def test_a_vector_far_from_zero_has_its_own_center() -> None:
    symbols = 500 + normal(10, 90, scale=3)
    assert abs(found(symbols).coding.student.center - 500) <= 2
    assert found(symbols).bits < 90 * (math.log2(3) + 2.05 + 0.2) + 80
    assert found(normal(11, 90, scale=3)).coding.student.center == 0


def test_symbols_that_are_far_apart_are_coded_in_cells() -> None:
    symbols = normal(12, 200, scale=3e5)
    student = found(symbols).coding.student
    assert student.low_bits > 6
    assert student.cells <= limits.CELLS
    assert found(symbols).bits < 200 * (math.log2(3e5) + 2.05 + 0.1) + 100
    layer = layer_of(symbols * 0.5, "float64")
    entry, _ = encode_layer(layer, Quantized(symbols, 0.5), None)
    assert entry.coding == "student"
    one = encode_layer(layer, Quantized(symbols, 0.5), None, {"student"})[0]
    assert entry.stored < 0.75 * one.stored


@pytest.mark.parametrize("scale", [1e7, 1e8])
def test_symbols_that_are_farther_apart_than_cells_may_be_come_back(scale: float) -> None:
    symbols = normal(12, 200, scale=scale)
    layer = layer_of(symbols * 0.5, "float64")
    with patch.object(encode_module, "_POOR", math.inf):
        archive = archive_of(layer, Quantized(symbols, 0.5))
    assert archive.manifest.layers[0].coding == ("student" if scale < 5e7 else "ans")
    assert by_both_decoders(written(archive)) == layer.values.tobytes()
    with pytest.raises(ValueError, match="a distribution has impossible numbers"):
        Student(2, False, 0, 0, 16, 0, 2)


def test_an_outlier_leaves_a_layer_to_its_table() -> None:
    symbols = normal(13, 64, 64)
    symbols[3, 5] = 1 << 23
    entry, _ = encode_layer(layer_of(symbols * 0.5), Quantized(symbols.reshape(-1), 0.5), None)
    assert entry.coding == "ans"


def test_bits_are_those_of_the_archive() -> None:
    for shape, scale in (((300, 200), 4.0), ((64, 32, 3, 3), 0.5), ((700,), 60.0)):
        symbols = normal(
            14,
            *shape,
            scale=scale * np.exp2(np.random.default_rng(15).normal(size=shape[:1] + (1,) * (len(shape) - 1))),
        )
        entry, _ = encode_layer(layer_of(symbols * 0.5), Quantized(symbols.reshape(-1), 0.5), None)
        assert entry.coding == "student"
        assert 8 * entry.stored == pytest.approx(found(symbols).bits, abs=200)


# ---- archives -------------------------------------------------------------------------------------------------------


@st.composite
def layers(draw: st.DrawFn) -> tuple[Ints, tuple[Codes, ...], tuple[int, ...] | None]:
    """Symbols of all distributions, with slices that differ, in bins that do, along a trellis or not."""
    shape = draw(st.sampled_from([(40,), (2, 3), (30, 20), (20, 1, 3, 3), (8, 6, 3, 2), (2, 20, 9), (1, 50, 1)]))
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    symbols = draw(st.sampled_from([random.normal, random.laplace, random.standard_cauchy]))(size=shape)
    for axis in draw(st.sets(st.integers(0, len(shape) - 1), max_size=2)):
        sizes = [size if number == axis else 1 for number, size in enumerate(shape)]
        symbols = symbols * np.exp(random.normal(scale=draw(st.sampled_from([0.5, 2])), size=sizes))
    rounded = np.rint(symbols * draw(st.sampled_from([0.3, 8, 1e4])) + draw(st.sampled_from([0, 0, 90])))
    scales = tuple(
        Codes((axis,), random.integers(-9, 10, shape[axis : axis + 1], np.int32))
        for axis in draw(st.sets(st.integers(0, len(shape) - 1), max_size=2))
    )
    lanes = draw(st.sampled_from([None, None, (0,), (len(shape) - 1,)]))
    return np.clip(rounded, -(1 << 23), 1 << 23).astype(np.int32), scales, lanes


@given(layers())
def test_layers_come_back_by_both_decoders(drawn: tuple[Ints, tuple[Codes, ...], tuple[int, ...] | None]) -> None:
    symbols, scales, lanes = drawn
    flat = symbols.reshape(-1)
    levels = flat if lanes is None else levels_of(flat, symbols.shape, lanes)
    quantized = Quantized(levels, 0.5, scales, lanes)
    layer = layer_of(symbols, "float64")
    with patch.object(encode_module, "_POOR", math.inf):
        archive = archive_of(layer, quantized)
    expected = quantized.restored("float64", symbols.shape)
    assert by_both_decoders(written(archive)) == expected.tobytes()
    result = fitted(flat, symbols.shape, scales, lanes is not None)
    if result is not None:  # whether or not a table is smaller
        coding = result[1]
        np.testing.assert_array_equal(decoded(coding, coding.encode(flat, None)), flat)


def mixed() -> tuple[Layer, Quantized]:
    """A layer with all that there is: contexts along two axes beside bin widths, low bits, lanes."""
    codes = Codes((1,), np.random.default_rng(20).integers(-5, 6, 24).astype(np.int32))
    symbols = normal(21, 10, 24, scale=900 * np.exp2(np.arange(10) - 5.0)[:, None] * np.exp2(2 * (np.arange(24) % 3)))
    levels = levels_of(symbols.reshape(-1), symbols.shape, (0,))
    return layer_of(symbols, "float64"), Quantized(levels, 0.25, (codes,), (0,))


ARCHIVE = archive_of(*mixed())
DATA = written(ARCHIVE)
DOCUMENT = json.loads(zlib.decompress(DATA[24 : 24 + ARCHIVE.manifest_bytes]))
SECTIONS = DATA[24 + ARCHIVE.manifest_bytes :]


def changed(**keys: Any) -> bytes:
    return packed(DOCUMENT | {"layers": [DOCUMENT["layers"][0] | keys]}, SECTIONS)


def test_a_decoder_that_does_not_know_the_coding_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "FEATURES", frozenset({"scales", "classes", "trellis"}))
    refused(DATA, UnsupportedArchive, "needs a newer riq: this one does not know student")


def test_the_coding_is_required() -> None:
    document = DOCUMENT | {"requires": ["scales", "trellis"]}
    refused(packed(document, SECTIONS), CorruptArchive, "layer 'w': student are not required; the archive is damaged")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"coding": "ans"}, "magnitudes with coding 'ans'"),
        ({"magnitudes": [{"axes": [0], "bytes": 1}] * 2}, "two magnitudes along the same axes"),
        ({"magnitudes": [{"axes": [0], "bytes": 1}] * 5}, "5 magnitudes; at most 4 are read"),
        ({"magnitudes": [{"axes": [2], "bytes": 1}]}, "codes along what are not ascending axes of its shape"),
        ({"streams": [8, 8]}, "2 streams instead of 1"),
        ({"symbols": 1}, "1 symbols with coding 'student'"),
        ({"symbols": 241}, "241 symbols with coding 'student'"),
        ({"classes": {"axes": [0], "bytes": 1}}, "classes with coding 'student'"),
    ],
)
def test_manifests_that_are_none(keys: dict[str, Any], message: str) -> None:
    refused(changed(**keys), CorruptArchive, f"layer 'w': {message}; the archive is damaged")


def test_encoding_is_the_same_wherever_it_runs() -> None:
    symbols = normal(22, 80, 64, 3, scale=2 * np.exp2(np.arange(80)[:, None, None] % 7))
    layer, quantized = layer_of(symbols * 0.5), Quantized(symbols.reshape(-1), 0.5)
    entry, sections = encode_layer(layer, quantized, None)
    assert entry.magnitudes
    with ThreadPoolExecutor(2) as executor:
        assert encode_layer(layer, quantized, executor) == (entry, sections)
        assert decode_layer(entry, sections, executor).tobytes() == layer.values.tobytes()
    with patch.object(fit, "_BLOCK", 1000), patch.object(contexts, "_BLOCK", 1000):
        assert encode_layer(layer, quantized, None) == (entry, sections)


def test_a_layer_has_several_streams_each_with_parts_of_contexts() -> None:
    symbols = normal(23, 24, 50, scale=900 * np.exp2(np.arange(24)[:, None] % 5))
    coding = found(symbols).coding
    with patch.object(student_module, "STREAM_SYMBOLS", 256):
        streams = coding.encode(symbols.reshape(-1), None)
        assert len(streams) == 5
        with ThreadPoolExecutor(2) as executor:
            assert coding.encode(symbols.reshape(-1), executor) == streams
            np.testing.assert_array_equal(decoded(coding, streams, executor), symbols.reshape(-1))
        with pytest.raises(CorruptArchive, match="4 streams instead of 5"):
            decoded(coding, streams[:4])


def test_streams_that_meet_at_a_million_symbols_come_back() -> None:
    symbols = normal(24, (1 << 20) + 9)
    coding = StudentCoding(Student(4, False, 0, 0, 0, -9, 19), Contexts((), symbols.shape), False)
    streams = coding.encode(symbols, None)
    assert len(streams) == 2
    np.testing.assert_array_equal(decoded(coding, streams), symbols)
