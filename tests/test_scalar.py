"""Quantization: eq. (4) by hand, one arithmetic for encoder and decoder, and the paper's Lemma 1 as the judge."""

from __future__ import annotations

import math
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import reference_decoder
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from riq_cli.decode import dequantize
from riq_cli.entropy.codes import Codes, Symbols
from riq_cli.entropy.histogram import Histogram
from riq_cli.limits import STORAGE
from riq_cli.quantize import scalar

DTYPES = ("float16", "bfloat16", "float32", "float64")
BLOCK = 1 << 15  # the quantizer works in blocks of this many weights


def stored(values: object, dtype: str) -> NDArray[np.generic]:
    """Values in the storage type of `dtype`; bfloat16 by ml_dtypes, which shares no code with riq."""
    array = np.asarray(values, np.float64)
    if dtype == "bfloat16":
        return array.astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    return array.astype(STORAGE[dtype])


def as_float64(values: NDArray[np.generic], dtype: str) -> NDArray[np.float64]:
    return (values.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else values).astype(np.float64)


def restored_at(
    symbols: Symbols, dtype: str, width: dequantize.Width, shape: tuple[int, ...] | None = None
) -> NDArray[np.generic]:
    out = np.empty(symbols.size, STORAGE[dtype])
    dequantize.dequantize(symbols, dtype, dequantize.block_widths(width, shape or symbols.shape), out)
    return out


def restored_both_ways(weights: NDArray[np.generic], dtype: str, width: dequantize.Width) -> NDArray[np.generic]:
    """What `dequantize(quantize(w))` gives, after `requantize` was seen to give the same bits."""
    symbols = scalar.quantize(weights, dtype, width)
    assert symbols.shape == (weights.size,)
    long_way = restored_at(symbols, dtype, width, weights.shape)
    short_way = np.empty(weights.shape, weights.dtype)
    scalar.requantize(weights, dtype, width, short_way)
    assert long_way.tobytes() == short_way.tobytes()
    return long_way


# Eq. (4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_symbols_are_weights_over_bin_width_rounded_to_nearest(dtype: str) -> None:
    weights = stored([-0.0, 0.24, 0.26, 0.74, 0.76, -0.24, -0.26, 100.3, -100.3], dtype)
    symbols = scalar.quantize(weights, dtype, 0.5)
    assert symbols.dtype == np.int32
    assert symbols.tolist()[:7] == [0, 0, 1, 1, 2, 0, -1]
    assert abs(symbols[7]) in (200, 201)  # 100.3 is 100.5 in bfloat16
    assert symbols[8] == -symbols[7]
    assert not as_float64(restored_both_ways(weights[[0, 1, 5]], dtype, 0.5), dtype).view(np.int64).any()  # no −0


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_the_even_symbol(dtype: str) -> None:
    weights = stored([0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -3.5], dtype)
    assert scalar.quantize(weights, dtype, 1.0).tolist() == [0, 2, 2, 4, 0, -2, -2, -4]
    assert scalar.quantize(weights, dtype, 0.25).tolist() == [2, 6, 10, 14, -2, -6, -10, -14]


def test_the_quotient_is_taken_in_float64() -> None:
    weights = np.array([0.3], np.float32)
    tie = float(weights[0]) / 1.5  # in float32 all three quotients would be 1.5
    assert scalar.quantize(weights, "float32", tie * (1 + 1e-12)).tolist() == [1]
    assert scalar.quantize(weights, "float32", tie).tolist() == [2]
    assert scalar.quantize(weights, "float32", tie * (1 - 1e-12)).tolist() == [2]


def test_symbols_reach_the_largest_magnitude() -> None:
    weights = np.array([scalar.SYMBOL_MAX, -scalar.SYMBOL_MAX], np.float64)
    assert scalar.quantize(weights, "float64", 1.0).tolist() == [1 << 23, -(1 << 23)]


# One arithmetic


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 7])
def test_requantize_is_dequantize_of_quantize_around_the_block_size(dtype: str, size: int) -> None:
    weights = stored(np.random.default_rng(size).normal(size=size), dtype)
    restored = as_float64(restored_both_ways(weights, dtype, 0.037), dtype)
    expected = np.rint(as_float64(weights, dtype) / 0.037) * 0.037
    assert restored.tobytes() == (as_float64(stored(expected + 0.0, dtype), dtype)).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_order_and_read_only_inputs_do_not_matter(dtype: str) -> None:
    base = stored(np.random.default_rng(3).normal(size=(60, 700)), dtype)
    base.flags.writeable = False
    before = base.tobytes()
    for view in (base, base.T, base[::2, 1::3], base[::-1], np.asfortranarray(base)):
        expected = restored_both_ways(np.ascontiguousarray(view), dtype, 0.02)
        assert restored_both_ways(view, dtype, 0.02).tobytes() == expected.tobytes()
        assert restored_both_ways(view, dtype, np.full((1, view.shape[1]), 0.02)).tobytes() == expected.tobytes()
        assert scalar.norm(view, dtype) == pytest.approx(scalar.norm(view.copy(), dtype), rel=1e-14)
        assert scalar.peak(view, dtype) == scalar.peak(view.copy(), dtype)
    assert base.tobytes() == before


@given(
    dtype=st.sampled_from(DTYPES),
    values=st.lists(st.floats(-1000, 1000, allow_subnormal=False), min_size=1, max_size=50),
    width=st.floats(2.0**-13, 100),
)
def test_requantize_is_dequantize_of_quantize(dtype: str, values: list[float], width: float) -> None:
    weights = stored(values, dtype)
    restored = as_float64(restored_both_ways(weights, dtype, width), dtype)
    ulp = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-50}[dtype]
    bound = width / 2 + (np.abs(as_float64(weights, dtype)) + width) * ulp + 2.0**-25
    assert (np.abs(restored - as_float64(weights, dtype)) <= bound).all()


# Arrays of bin widths


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(), (1,), (7,), (BLOCK + 3,), (5, BLOCK), (3, BLOCK - 1), (300, 301), (9, 70, 11, 13), (BLOCK, 2, 1)]
)
def test_every_weight_has_its_own_bin_width(dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(math.prod(shape))
    weights = stored(rng.normal(size=shape), dtype)
    for choice in range(1 << len(shape)):
        lengths = [length if choice >> axis & 1 else 1 for axis, length in enumerate(shape)]
        widths = rng.uniform(0.01, 0.5, lengths)
        restored = restored_both_ways(weights, dtype, widths)
        expected = np.rint(as_float64(weights, dtype) / widths) * widths + 0.0
        assert restored.tobytes() == stored(expected, dtype).tobytes()
        every = np.broadcast_to(widths, shape).reshape(-1)
        flat = restored_at(scalar.quantize(weights, dtype, widths), dtype, every)
        assert flat.tobytes() == restored.tobytes()


def test_finite_weights_are_restored_finite_at_any_of_their_bin_widths() -> None:
    largest = 65504.0
    widths = np.array([1e-9, 0.6 * largest, 1.5 * largest])
    symbols = np.array([5, 2, -1], np.int32)
    assert restored_at(symbols, "float16", widths).tolist() == [0, largest, -largest]


def test_arrays_of_bin_widths_are_not_copied_as_a_whole() -> None:
    weights = np.zeros((2000, 1000), np.float32)
    out = np.empty_like(weights)
    rows, columns = np.full((2000, 1), 0.1), Codes((1,), np.arange(1000, dtype=np.int32) % 9)
    tracemalloc.start()
    try:
        scalar.requantize(weights, "float32", rows, out)
        assert tracemalloc.get_traced_memory()[1] < 4 * 8 * BLOCK
        quantized = scalar.nearest(weights, "float32", 0.1, (Codes((0,), columns.values.repeat(2)), columns))
        quantized.restored("float32", weights.shape)
        assert tracemalloc.get_traced_memory()[1] < 8 * weights.size + 16 * 8 * BLOCK
    finally:
        tracemalloc.stop()


# Codes of bin widths


def test_a_code_is_a_quarter_of_a_power_of_two() -> None:
    codes = np.arange(-256, 257).reshape(27, 19)
    widths = dequantize.scaled_widths(0.3, codes)
    assert widths.shape == codes.shape
    assert widths == pytest.approx(0.3 * 2.0 ** (codes / 4), rel=1e-15)
    for code, width in zip(codes.reshape(-1).tolist(), widths.reshape(-1).tolist(), strict=True):
        assert width == reference_decoder.scaled(0.3, code)
    assert dequantize.scaled_widths(0.3, np.array([0, 4, -8])).tolist() == [0.3, 0.6, 0.075]
    assert dequantize.scaled_widths(0.3, np.array(2, np.int32)) == 0.3 * 1.4142135623730951


@pytest.mark.parametrize("code", [257, -257, 2**31 - 1, -(2**31)])
def test_a_code_has_a_bound(code: int) -> None:
    with pytest.raises(ValueError, match="a code of bin widths beyond ±256"):
        dequantize.scaled_widths(1.0, np.array([0, code], np.int32))


def test_bin_widths_stay_normal_doubles() -> None:
    least = sys.float_info.min
    assert dequantize.scaled_widths(least, np.array([0, 3])).tolist() == [least, least * 1.681792830507429]
    assert dequantize.scaled_widths(sys.float_info.max, np.array([-4, 0])).tolist()[1] == sys.float_info.max
    with pytest.raises(ValueError, match="normal"):  # it is the product that overflows, and between two that do not
        dequantize.scaled_widths(sys.float_info.max, np.array([-4, -1, 0]))
    assert dequantize.scaled_widths(least / 16, np.array([16])).tolist() == [least]
    for width, code in ((least, -1), (least / 2, 3), (sys.float_info.max, 1), (math.inf, 0), (math.nan, 0), (0.0, 9)):
        with pytest.raises(ValueError, match="a bin width that is not a normal double"):
            dequantize.scaled_widths(width, np.array([code]))


def test_codes_of_scales_add_up() -> None:
    rows = Codes((0,), np.array([0, 1], np.int32))
    planes = Codes((0, 2), np.array([[4, 8, 12], [-4, 0, 4]], np.int32))
    widths = scalar.bin_widths(0.5, (rows, planes), 3)
    assert isinstance(widths, np.ndarray)
    assert widths.shape == (2, 1, 3)
    assert widths[0, 0].tolist() == [1.0, 2.0, 4.0]
    assert widths[1, 0].tolist() == dequantize.scaled_widths(0.5, np.array([-3, 1, 5])).tolist()
    assert scalar.bin_widths(0.5, (), 3) == 0.5


# bfloat16


def test_bfloat16_is_rounded_to_nearest_even_as_ml_dtypes_does() -> None:
    rng = np.random.default_rng(4)
    products = rng.integers(1, 1 << 16, 20_000) * 2.0 ** rng.integers(-40, 20, 20_000)
    for width in (float(products[0]), 3e-39, 1e-20, 0.1, 1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-40, 1e30):
        symbols = rng.integers(-(1 << 16), 1 << 16, 20_000).astype(np.int32)
        expected = (symbols * width).astype(np.float32).astype(ml_dtypes.bfloat16)
        assert restored_at(symbols, "bfloat16", width).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("product", "bits"),
    [
        (1.0, 0x3F80),
        (1 + 2.0**-8, 0x3F80),  # half-way between 0x3F80 and 0x3F81: to the even one
        (1 + 3 * 2.0**-8, 0x3F82),  # half-way between 0x3F81 and 0x3F82
        (1 + 2.0**-8 + 2.0**-23, 0x3F81),  # just above half-way
        (1 + 2.0**-8 + 2.0**-40, 0x3F80),  # float32 on the way makes it a tie again, as FORMAT.md has it
        (2.0**-133, 0x0001),  # the smallest subnormal
        (3.3895313892515355e38, 0x7F7F),  # the largest
    ],
)
def test_bfloat16_bits(product: float, bits: int) -> None:
    assert restored_at(np.array([1, -1], np.int32), "bfloat16", product).tolist() == [bits, bits | 0x8000]


# Where the type ends


LARGEST = [
    ("float16", 65504.0),
    ("bfloat16", 3.3895313892515355e38),
    ("float32", 3.4028234663852886e38),
    ("float64", sys.float_info.max),
]


@pytest.mark.parametrize(("dtype", "largest"), LARGEST)
def test_finite_weights_are_restored_finite(dtype: str, largest: float) -> None:
    weights = stored([largest, -largest, 0.0, largest / 8], dtype)
    for factor in (0.6, 1 / 1.45, 1.01, 1.5):
        width = min(factor * largest, sys.float_info.max)
        restored = as_float64(restored_both_ways(weights, dtype, width), dtype)
        assert np.isfinite(restored).all()
        symbols = scalar.quantize(weights, dtype, width).astype(float)
        with np.errstate(over="ignore"):
            expected = np.clip(symbols * width, -largest, largest)
        assert restored.tolist() == as_float64(stored(expected, dtype), dtype).tolist()


@pytest.mark.parametrize(("dtype", "largest"), LARGEST)
def test_the_largest_symbol_of_an_archive_is_restored_finite(dtype: str, largest: float) -> None:
    symbols = np.array([(1 << 31) - 1, 1 - (1 << 31)], np.int32)
    for width in (largest / 2.0**30, largest):
        restored = as_float64(restored_at(symbols, dtype, width), dtype)
        assert restored.tolist() == [largest, -largest]


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 65504.0), ("float32", 3.4028234663852886e38)])
def test_the_largest_weight_is_restored_where_a_bin_meets_it(dtype: str, largest: float) -> None:
    weights = stored([largest, -largest], dtype)
    assert restored_both_ways(weights, dtype, largest / 4).tobytes() == weights.tobytes()


# Norm, peak, entropy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, BLOCK, BLOCK + 1, 100_000])
def test_norm_and_peak_are_numpys_in_float64(dtype: str, size: int) -> None:
    weights = stored(np.random.default_rng(size).normal(size=size) - 0.3, dtype)
    exact = as_float64(weights, dtype)
    assert scalar.norm(weights, dtype) == pytest.approx(math.sqrt(math.fsum(exact**2)), rel=1e-13)
    assert scalar.peak(weights, dtype) == np.abs(exact).max()


def test_norm_of_float16_does_not_overflow() -> None:
    assert scalar.norm(np.full(100_000, 60_000, np.float16), "float16") == pytest.approx(6e4 * math.sqrt(1e5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_norm_and_peak_show_what_is_not_finite(dtype: str, value: float) -> None:
    weights = stored(np.append(np.ones(BLOCK), value), dtype)
    assert not math.isfinite(scalar.norm(weights, dtype))
    assert not math.isfinite(scalar.peak(weights, dtype))


@pytest.mark.parametrize(
    ("counts", "bits"),
    [
        ([7], 0.0),
        ([1, 1], 1.0),
        ([2, 1, 1], 1.5),
        ([8, 4, 2, 1, 1], 1.875),
        ([3, 1], 0.8112781244591328),
        ([5] * 8, 3.0),
    ],
)
def test_entropy_in_bits(counts: list[int], bits: float) -> None:
    entropy = Histogram(np.arange(len(counts)), np.array(counts)).entropy
    assert entropy == pytest.approx(bits, abs=1e-12)
    assert math.copysign(1, entropy) == 1


# The paper


def distortion(weights: NDArray[np.float64], width: float) -> float:
    """1 − cos θ between weights and restored weights."""
    restored = restored_at(scalar.quantize(weights, "float64", width), "float64", width)
    flat = weights.reshape(-1)
    return float(1 - restored @ flat / (np.linalg.norm(restored) * np.linalg.norm(flat)))


@pytest.mark.parametrize("distribution", ["normal", "laplace"])
@pytest.mark.parametrize("scale", [0.01, 3.0])
@pytest.mark.parametrize("k", [1000, 3000])  # bins of 0.32 and 0.11 standard deviations
def test_lemma_1_predicts_the_distortion_at_high_rate(distribution: str, scale: float, k: float) -> None:
    weights = getattr(np.random.default_rng(5), distribution)(scale=scale, size=100_000)
    norm = scalar.norm(weights, "float64")
    width = norm / k
    predicted = weights.size * width**2 / (24 * norm**2)
    assert distortion(weights, width) == pytest.approx(predicted, rel=0.02)


def test_distortion_does_not_change_when_the_weights_are_rotated() -> None:
    rng = np.random.default_rng(6)
    weights = rng.laplace(size=(200, 200))
    rotation, _ = np.linalg.qr(rng.normal(size=(200, 200)))
    rotated = rotation @ weights
    width = scalar.norm(weights, "float64") / 600
    assert scalar.norm(rotated, "float64") / 600 == pytest.approx(width, rel=1e-12)
    assert distortion(rotated, width) == pytest.approx(distortion(weights, width), rel=0.03)
