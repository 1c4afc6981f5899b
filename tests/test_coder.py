"""Symbols ↔ table and streams: exact bytes, exact round trips, entropy as the measure, and damage that is noticed."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import pytest
import reference_decoder
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from riq_cli.entropy.ans import decode_runs, encode_runs
from riq_cli.entropy.codes import Codes
from riq_cli.entropy.histogram import Histogram, Table, decode_symbols, encode_symbols
from riq_cli.errors import CorruptArchive
from riq_cli.limits import STREAM_SYMBOLS, TABLE_SYMBOLS
from riq_cli.quantize.scalar import SYMBOL_MAX

TOTAL = 1 << 24

alphabets = st.one_of(
    st.sets(st.integers(-20, 20), min_size=2),
    st.sets(st.integers(-SYMBOL_MAX, SYMBOL_MAX), min_size=2, max_size=20),
    st.sets(st.sampled_from([-SYMBOL_MAX, -1, 0, 1, SYMBOL_MAX]), min_size=2),
)


@st.composite
def symbol_arrays(draw: st.DrawFn) -> NDArray[np.int32]:
    """At least two different symbols, drawn with very unequal probabilities."""
    alphabet = np.array(sorted(draw(alphabets)), np.int32)
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    weights = rng.random(alphabet.size) ** draw(st.sampled_from([0.1, 1, 8]))
    drawn = rng.choice(alphabet, draw(st.integers(0, 3000)), p=weights / weights.sum())
    return np.concatenate([alphabet[:2], drawn]).astype(np.int32)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    symbols = np.array(sorted(draw(alphabets)), np.int64)
    roots = draw(st.lists(st.integers(1, 1 << draw(st.integers(0, 24))), min_size=len(symbols), max_size=len(symbols)))
    return Table(symbols, np.array(roots, np.int64))


def encoded(symbols: NDArray[np.int32]) -> tuple[Table, bytes, list[bytes]]:
    table = Table.of(Histogram.of(symbols))
    return table, table.to_bytes(), encode(symbols, table)


def read(stored: bytes) -> Table:
    table, end = Table.read(stored)
    if end < len(stored):
        raise CorruptArchive("longer than its symbols")
    return table


def encode(symbols: NDArray[np.int32], table: Table, executor: Executor | None = None) -> list[bytes]:
    return encode_symbols(symbols, table, executor)


def decode(streams: Sequence[bytes], table: Table, size: int, executor: Executor | None = None) -> NDArray[np.int32]:
    return np.concatenate([*decode_symbols(streams, [table], [size], executor), np.empty(0, np.int32)])


def laplace(size: int, scale: float, seed: int = 0) -> NDArray[np.int32]:
    return np.rint(np.random.default_rng(seed).laplace(scale=scale, size=size)).astype(np.int32)


# Histogram


@given(symbol_arrays())
def test_a_histogram_is_numpys(symbols: NDArray[np.int32]) -> None:
    values, counts = np.unique(symbols, return_counts=True)
    histogram = Histogram.of(symbols)
    assert histogram.symbols.tolist() == values.tolist()
    assert histogram.counts.tolist() == counts.tolist()


def test_a_histogram_counts_across_the_bound_of_a_stream() -> None:
    symbols = np.zeros(STREAM_SYMBOLS + 3, np.int32)
    symbols[-2:] = 5
    histogram = Histogram.of(symbols)
    assert (histogram.symbols.tolist(), histogram.counts.tolist()) == ([0, 5], [STREAM_SYMBOLS + 1, 2])


# Table


def test_roots_are_square_roots_of_counts_and_at_least_1() -> None:
    table = Table.of(Histogram(np.arange(6), np.array([1, 2, 3, 6, 7, 1 << 40])))
    assert table.roots.tolist() == [1, 1, 2, 2, 3, 1 << 20]


def test_frequencies_by_hand() -> None:
    # V = 1 + 4 + 9 = 14 and 2²⁴ − 3 to share out; what is missing goes to the largest
    frequencies = Table(np.arange(3), np.array([1, 2, 3])).frequencies().tolist()
    assert frequencies[0] == 1 + (TOTAL - 3) // 14 == 1198373
    assert frequencies[1] == 1 + 4 * (TOTAL - 3) // 14 == 4793490
    assert frequencies[2] == TOTAL - 1198373 - 4793490


def test_what_is_missing_goes_to_the_first_of_the_largest() -> None:
    frequencies = Table(np.arange(7), np.array([1, 5, 5, 1, 5, 2, 1])).frequencies().tolist()
    least = [1 + root * root * (TOTAL - 7) // 82 for root in (1, 5, 5, 1, 5, 2, 1)]
    assert sum(least) == TOTAL - 3
    assert frequencies == [least[0], least[1] + 3, *least[2:]]


@given(tables())
def test_frequencies_are_positive_sum_to_2_24_and_agree_with_the_reference(table: Table) -> None:
    frequencies = table.frequencies()
    assert int(frequencies.sum()) == TOTAL
    assert int(frequencies.min()) >= 1
    assert frequencies.tolist() == reference_decoder.frequencies_of(table.roots.tolist())


@pytest.mark.parametrize("large", [(1 << 19) - 1, 1 << 19, (1 << 19) + 1, 1 << 20, 1 << 24])
def test_frequencies_are_exact_for_roots_whose_squares_leave_64_bits(large: int) -> None:
    roots = np.array([1, large, 77, large - 1, large], np.int64)
    frequencies = Table(np.arange(5), roots).frequencies()
    assert frequencies.tolist() == reference_decoder.frequencies_of(roots.tolist())
    assert int(frequencies.sum()) == TOTAL


@pytest.mark.parametrize("size", [1 << 15, TABLE_SYMBOLS])
def test_frequencies_of_many_huge_roots(size: int) -> None:
    table = read(Table(np.arange(size), np.full(size, 1 << 24)).to_bytes())
    frequencies = table.frequencies()
    assert int(frequencies.min()) >= 1
    assert frequencies.tolist() == reference_decoder.frequencies_of(table.roots.tolist())


def test_the_bits_of_a_small_table() -> None:
    table = Table(np.array([-1, 0, 2]), np.array([1, 3, 2]))
    bits = "".join(
        [
            "0001",  # order of the differences of roots
            "10010",  # 3 symbols: 2, order 4
            "10001",  # symbol −1: zigzag 1, order 4
            "100000000",  # root 1: 0, order 8
            *("1", "0110"),  # the next symbol; +2: zigzag 4, order 1
            *("010", "11"),  # one symbol left out; −1: zigzag 1, order 1
            "0000000",  # to a whole byte
        ]
    )
    assert table.to_bytes() == int(bits, 2).to_bytes(5, "big")
    assert table.to_bytes().hex() == "1946016580"


@given(tables())
def test_a_table_is_read_back(table: Table) -> None:
    stored = table.to_bytes()
    again = read(stored)
    assert again.symbols.tolist() == table.symbols.tolist()
    assert again.roots.tolist() == table.roots.tolist()
    assert reference_decoder.read_table(stored) == (table.symbols.tolist(), table.roots.tolist(), len(stored))


def test_a_table_with_one_symbol_too_many_is_refused() -> None:
    size = TABLE_SYMBOLS + 1
    stored = Table(np.arange(size), np.ones(size, np.int64)).to_bytes()
    with pytest.raises(CorruptArchive, match="a table has more symbols than allowed; the archive is damaged"):
        read(stored)


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ("", "a table is cut off"),
        ("0000" + "0000", "an impossible code"),
        ("0" * 400, "an impossible code"),
        ("0000" + "10000" + "10000", "an impossible code"),  # no root follows
        ("0000" + "10000" + "10000" + "10", "a table is cut off"),  # within the root
        ("0000" + "10000" + "10000" + "100000000" + "1", "longer than its symbols"),
        ("0000" + "10000" + "10000" + "100000000" + "0" + "0" * 8, "longer than its symbols"),
        ("0000" + "10001" + "10000" + "100000000" + "1" + "010" + "000", "impossible values"),  # root 1 − 1
        ("0000" + "10000" + "10000" + "0" * 16 + format((1 << 24) + 256, "b"), "impossible values"),  # root 2²⁴ + 1
        ("0000" + "10000" + "0" * 28 + format((1 << 32) + 16, "b") + "100000000", "impossible values"),  # symbol 2³¹
        ("0000" + "10000" + "0" * 41 + "1" + "0" * 60, "an impossible code"),
    ],
)
def test_impossible_tables_are_refused(bits: str, message: str) -> None:
    padded = bits + "0" * (-len(bits) % 8)
    stored = int(padded or "0", 2).to_bytes(len(padded) // 8, "big")
    with pytest.raises(CorruptArchive, match=message):
        read(stored)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_table_or_a_corrupt_archive(stored: bytes) -> None:
    try:
        table = read(stored)
    except CorruptArchive:
        return
    assert (np.diff(table.symbols) > 0).all()
    assert int(table.frequencies().sum()) == TOTAL
    assert reference_decoder.read_table(stored) == (table.symbols.tolist(), table.roots.tolist(), len(stored))


# Streams


def test_the_words_of_a_small_stream() -> None:
    frequencies = np.array([TOTAL // 2, TOTAL // 4, TOTAL // 4], np.int64)
    stream = encode_runs([(np.array([0, 1, 2, 0, 0, 2, 1], np.int32), frequencies)])
    # From the last symbol to the first, state ← ⌊state / f⌋ · 2²⁴ + F + state mod f, beginning with 0.
    state = 0
    cumulative = [0, TOTAL // 2, 3 * TOTAL // 4]
    words = []
    for symbol in [1, 2, 0, 0, 2, 1, 0]:
        frequency = int(frequencies[symbol])
        if state >= frequency << 40:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // frequency << 24) + cumulative[symbol] + state % frequency
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    assert stream == struct.pack(f"<{len(words)}I", *words)
    assert stream.hex() == "0000004f01000000"


def test_a_stream_of_the_first_symbol_alone_is_empty() -> None:
    frequencies = np.array([TOTAL - 1, 1], np.int64)
    assert encode_runs([(np.zeros(100, np.int32), frequencies)]) == b""
    assert decode_runs(b"", [(frequencies, 100)])[0].tolist() == [0] * 100


@given(symbol_arrays())
def test_symbols_are_decoded_as_they_were_encoded(symbols: NDArray[np.int32]) -> None:
    table, stored, streams = encoded(symbols)
    again = decode(streams, read(stored), symbols.size)
    assert again.dtype == np.int32
    assert again.tolist() == symbols.tolist()
    assert len(streams) == 1
    indices = reference_decoder.read_stream(streams[0], table.frequencies().tolist(), symbols.size)
    assert table.symbols[indices].tolist() == symbols.tolist()


def test_symbols_that_are_far_apart_take_little_memory() -> None:
    symbols = np.array([1 - (1 << 31), 0, 7, (1 << 31) - 1] * 50, np.int32)
    tracemalloc.start()
    try:
        _, stored, streams = encoded(symbols)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert decode(streams, read(stored), symbols.size).tolist() == symbols.tolist()


def test_a_rare_symbol_of_the_smallest_frequency_is_decoded_by_both_decoders() -> None:
    frequencies = np.array([1, TOTAL - 2, 1], np.int64)
    indices = np.ones(5000, np.int32)
    indices[[0, 7, 4999]] = [0, 2, 0]
    stream = encode_runs([(indices, frequencies)])
    assert decode_runs(stream, [(frequencies, 5000)])[0].tolist() == indices.tolist()
    assert reference_decoder.read_stream(stream, frequencies.tolist(), 5000) == indices.tolist()


@pytest.mark.parametrize("gaps", [1, 3])
@pytest.mark.parametrize("size", [STREAM_SYMBOLS, STREAM_SYMBOLS + 1, 2 * STREAM_SYMBOLS + 12_345])
def test_every_run_of_2_20_symbols_has_its_own_stream(size: int, gaps: int) -> None:
    symbols = laplace(size, 0.7, seed=size) * np.int32(gaps)
    table, _, streams = encoded(symbols)
    assert len(streams) == -(-size // STREAM_SYMBOLS)
    assert np.array_equal(decode(streams, table, size), symbols)
    last = symbols[(len(streams) - 1) * STREAM_SYMBOLS :]
    alone = decode_runs(streams[-1], [(table.frequencies(), last.size)])[0]
    assert np.array_equal(table.symbols[alone], last)


@pytest.mark.parametrize("gaps", [1, 3])
def test_an_executor_changes_no_byte(gaps: int) -> None:
    symbols = laplace(2 * STREAM_SYMBOLS + 99, 1.5) * np.int32(gaps)
    table = Table.of(Histogram.of(symbols))
    alone = encode(symbols, table)
    with ThreadPoolExecutor(2) as executor:
        assert encode(symbols, table, executor) == alone
        assert np.array_equal(decode(alone, table, symbols.size, executor), symbols)


def test_groups_have_streams_of_their_own() -> None:
    groups = [laplace(STREAM_SYMBOLS + 5, 2), np.full(9, 7, np.int32), laplace(400, 30), laplace(50, 0.5)]
    tables = [Table.of(Histogram.of(group)) for group in groups]
    streams = [stream for group, table in zip(groups, tables, strict=True) for stream in encode(group, table)]
    assert len(streams) == 2 + 0 + 1 + 1
    assert streams[2:3] == encode(groups[2], tables[2])
    sizes = [group.size for group in groups]
    with ThreadPoolExecutor(2) as executor:
        for again in (
            decode_symbols(streams, tables, sizes),
            decode_symbols(streams, tables, sizes, executor),
        ):
            np.testing.assert_array_equal(np.concatenate(list(again)), np.concatenate(groups))
    for wrong in (streams[:-1], [*streams, b""]):
        with pytest.raises(CorruptArchive, match=f"^{len(wrong)} streams instead of 4; the archive is damaged$"):
            decode_symbols(wrong, tables, sizes)


def test_tables_lie_back_to_back() -> None:
    tables = [Table.of(Histogram.of(laplace(size, scale))) for size, scale in ((9, 1), (70_000, 900), (1, 5), (300, 2))]
    stored, end = b"".join(table.to_bytes() for table in tables), 0
    for table in tables:
        again, end = Table.read(stored + b"\xff" * 3000, end)
        assert (again.symbols.tolist(), again.roots.tolist()) == (table.symbols.tolist(), table.roots.tolist())
    assert end == len(stored)


@given(st.lists(st.integers(-300, 300), min_size=1, max_size=60))
@example([-(2**31) + 1, 2**31 - 1])
def test_codes_come_back(codes: list[int]) -> None:
    section = Codes((0,), np.array(codes, np.int32)).to_bytes()
    assert Codes.from_bytes((0,), (len(codes),), section).values.tolist() == codes
    with pytest.raises(CorruptArchive):
        Codes.from_bytes((0,), (len(codes),), section + bytes(4))


@pytest.mark.parametrize("size", [10_001, 200_000])
@pytest.mark.parametrize("scale", [0.05, 0.2, 1, 8, 60])
def test_streams_stay_within_1_percent_of_the_entropy(size: int, scale: float) -> None:
    symbols = laplace(size, scale)
    symbols[:2] = [0, 1]  # two symbols at least
    _, _, streams = encoded(symbols)
    bits = Histogram.of(symbols).entropy * size
    assert bits * 0.999 - 64 <= 8 * sum(map(len, streams)) <= 1.01 * bits + 64  # 64: the state at the end


def test_a_table_costs_a_few_bits_a_symbol() -> None:
    symbols = laplace(200_000, 20)
    table, stored, _ = encoded(symbols)
    assert 8 * len(stored) <= 7 * table.symbols.size


# Damage


def test_words_that_are_left_over_are_noticed() -> None:
    symbols = laplace(300, 2)
    table, _, (stream,) = encoded(symbols)
    message = "a stream does not hold the symbols it should; the archive is damaged"
    for extra in (b"\x01", b"\x01\x00\x00\x00", bytes(4), b"\xff" * 8):
        for changed in (stream + extra, extra + stream):
            with pytest.raises(CorruptArchive, match=message):
                decode([changed], table, symbols.size)
    with pytest.raises(CorruptArchive, match=message):
        decode([stream], table, symbols.size - 1)


@given(data=st.data())
def test_a_changed_stream_is_noticed_or_gives_other_symbols(data: st.DataObject) -> None:
    symbols = laplace(400, data.draw(st.sampled_from([0.3, 2, 30])))
    table, _, (stream,) = encoded(symbols)
    position = data.draw(st.integers(0, len(stream) - 1))
    changed = bytearray(stream)
    changed[position] ^= data.draw(st.integers(1, 255))
    try:
        again = decode([bytes(changed)], table, symbols.size)
    except CorruptArchive:
        return
    assert again.tolist() != symbols.tolist()


@given(st.binary(max_size=40), st.integers(1, 300))
def test_any_bytes_are_a_stream_or_a_corrupt_archive(stream: bytes, size: int) -> None:
    frequencies = Table(np.arange(4), np.array([5, 1, 1000, 30])).frequencies()
    try:
        indices = decode_runs(stream, [(frequencies, size)])[0].tolist()
    except CorruptArchive:
        with pytest.raises(reference_decoder.FormatError):
            reference_decoder.read_stream(stream, frequencies.tolist(), size)
    else:
        assert indices == reference_decoder.read_stream(stream, frequencies.tolist(), size)
