"""Symbols ↔ table and streams: asymmetric numeral systems, as FORMAT.md specifies them.

The coder is constriction's. Its models are made of floats, but with integer frequencies f_i of sum 2²⁴ and
"probabilities" f_i − 1 their quantization is exact, so that the streams are defined in integers alone;
`tests/reference_decoder.py` decodes them without constriction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor

import constriction
import numpy as np
from numpy.typing import NDArray

from riq_cli.entropy.codes import Symbols
from riq_cli.entropy.histogram import Histogram, Table
from riq_cli.errors import CorruptArchive
from riq_cli.executors import ordered
from riq_cli.limits import STREAM_SYMBOLS

_DENSE = 1 << 22  # symbols from the first to the last at most, to look positions up in one array

Integers = NDArray[np.int64]


def encode_groups(groups: Iterable[Symbols], tables: Sequence[Table], executor: Executor | None = None) -> list[bytes]:
    """The streams of one group of symbols after another: one for each run of 2²⁰; none for a table of one symbol.

    Args:
        groups: of symbols i32[n], all of them in the table of the group.
        tables: one for each group.
        executor: where the streams are encoded, at the same time if it has several workers; None: here.
    """

    def streams() -> Iterator[list[tuple[Symbols, Integers]]]:
        for symbols, table in zip(groups, tables, strict=True):
            if table.symbols.size > 1:
                position_of, frequencies = _positions(table), table.frequencies()
                for begin in range(0, symbols.size, STREAM_SYMBOLS):
                    yield [(position_of(symbols[begin : begin + STREAM_SYMBOLS]), frequencies)]

    return list(ordered(executor, encode_runs, streams()))


def decode_groups(
    streams: Sequence[bytes], tables: Sequence[Table], sizes: Sequence[int], executor: Executor | None = None
) -> Iterator[Symbols]:
    """The groups of symbols that `encode_groups` was given, one behind the other, in pieces of at most 2²⁰.

    Where a table has one symbol, a piece is a view of just that one.

    Raises:
        CorruptArchive: there are more or fewer streams than that, or (later) they do not hold the symbols.
    """
    pieces = [
        (table, min(STREAM_SYMBOLS, size - begin))
        for table, size in zip(tables, sizes, strict=True)
        for begin in range(0, size, STREAM_SYMBOLS)
    ]
    coded = [(table, size) for table, size in pieces if table.symbols.size > 1]
    if len(streams) != len(coded):
        raise CorruptArchive(f"{len(streams)} streams instead of {len(coded)}; the archive is damaged")
    runs = ordered(executor, decode_stream, streams, _frequencies(coded), (size for _, size in coded))
    return (
        _symbols(next(runs), table) if table.symbols.size > 1 else np.broadcast_to(table.symbols.astype(np.int32), size)
        for table, size in pieces
    )


def _frequencies(pieces: Iterable[tuple[Table, int]]) -> Iterator[Integers]:
    """The frequencies of each piece's table."""
    last, frequencies = None, np.empty(0, np.int64)
    for table, _ in pieces:
        if table is not last:
            last, frequencies = table, table.frequencies()
        yield frequencies


def _symbols(run: Symbols, table: Table) -> Symbols:
    """The symbols at positions i32[m] in a table; the positions are written over."""
    if _has_gaps(table):
        return np.take(table.symbols.astype(np.int32), run)
    run += np.int32(table.symbols[0])
    return run


def encode_codes(codes: Symbols) -> bytes:
    """The section of codes i32[m]: their table and, if they differ, one stream (FORMAT.md, "Codes")."""
    table = Table.of(Histogram.of(codes))
    stored = table.to_bytes()
    if table.symbols.size == 1:
        return stored
    return stored + encode_stream(_positions(table)(codes), table.frequencies())


def decode_codes(section: bytes, size: int) -> Symbols:
    """The m = `size` codes, i32[m], that `encode_codes` was given.

    Raises:
        CorruptArchive: the section does not hold them, or more than them.
    """
    table, end = Table.read(section)
    if table.symbols.size > 1:
        indices = decode_stream(section[end:], table.frequencies(), size)
        return np.take(table.symbols.astype(np.int32), indices)
    if end < len(section):
        raise CorruptArchive("codes that are all the same have a stream; the archive is damaged")
    return np.full(size, table.symbols[0], np.int32)


def encode_stream(indices: Symbols, frequencies: Integers) -> bytes:
    """The rANS words, little-endian, of indices i32[m] into the frequencies i64[s]."""
    return encode_runs([(indices, frequencies)])


def encode_runs(runs: Sequence[tuple[Symbols, Integers]]) -> bytes:
    """The rANS words, little-endian, of one run of indices after another, each into frequencies of its own."""
    coder = constriction.stream.stack.AnsCoder()
    for indices, frequencies in reversed(runs):
        coder.encode_reverse(indices, _model(frequencies))
    words: bytes = coder.get_compressed().astype("<u4").tobytes()
    return words


def decode_stream(stream: bytes, frequencies: Integers, size: int) -> Symbols:
    """The indices i32[size] that `encode_stream` was given.

    Raises:
        CorruptArchive: the stream is not used up by `size` symbols, or ends before them.
    """
    return decode_runs(stream, [(frequencies, size)])[0]


def decode_runs(stream: bytes, runs: Iterable[tuple[Integers, int]]) -> list[Symbols]:
    """The runs of indices that `encode_runs` was given, of their frequencies and sizes.

    Raises:
        CorruptArchive: the stream is not used up by them, or ends before.
    """
    message = "a stream does not hold the symbols it should; the archive is damaged"
    if len(stream) % 4:
        raise CorruptArchive(message)
    words = np.frombuffer(stream, "<u4").astype(np.uint32)
    try:
        coder = constriction.stream.stack.AnsCoder(words)
    except ValueError as error:  # the last word is 0
        raise CorruptArchive(message) from error
    indices = [coder.decode(_model(frequencies), size) for frequencies, size in runs]
    if not coder.is_empty():
        raise CorruptArchive(message)
    return indices


def _model(frequencies: Integers) -> constriction.stream.model.Categorical:
    return constriction.stream.model.Categorical((frequencies - 1).astype(np.float64), perfect=False)


def _positions(table: Table) -> Callable[[Symbols], Symbols]:
    """A function from symbols i32[m] to their positions in the table, i32[m]."""
    first, span = table.symbols[0].astype(np.int32), _span(table)
    if not _has_gaps(table):
        return lambda symbols: symbols - first
    if span > _DENSE:  # outliers far away
        return lambda symbols: np.searchsorted(table.symbols, symbols).astype(np.int32)
    dense = np.zeros(span, np.int32)
    dense[table.symbols - table.symbols[0]] = np.arange(table.symbols.size, dtype=np.int32)
    return lambda symbols: dense[symbols - first]


def _span(table: Table) -> int:
    return int(table.symbols[-1] - table.symbols[0]) + 1


def _has_gaps(table: Table) -> bool:
    return _span(table) != table.symbols.size
