"""How often symbols occur, and their coding by a table that tells (FORMAT.md, "Table")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from riq_cli.entropy.ans import decode_runs, encode_runs, in_proportion
from riq_cli.entropy.bits import Bits, golomb, golomb_bits, packed, unzigzag, zigzag
from riq_cli.errors import CorruptArchive
from riq_cli.executors import ordered
from riq_cli.limits import STREAM_SYMBOLS, TABLE_SYMBOLS

Symbols = NDArray[np.int32]
Integers = NDArray[np.int64]

COUNT_ORDER, FIRST_ORDER, _ROOT_ORDER, _GAP_ORDER = 4, 4, 8, 0  # of the Exp-Golomb codes
_ROOT_MAX = 1 << 24


@dataclass(frozen=True)
class Histogram:
    """Which symbols are in use and how often.

    `symbols` i64[s], ascending, and `counts` i64[s] > 0, of the same length s.
    """

    symbols: Integers
    counts: Integers

    @classmethod
    def of(cls, symbols: Symbols) -> Histogram:
        """The histogram of symbols i32[n], n ≥ 1."""
        low, high = int(symbols.min()), int(symbols.max())
        if high - low > 4 * symbols.size + 1024:  # a few outliers far away: sorting is cheaper than counting
            values, counts = np.unique(symbols, return_counts=True)
            return cls(values.astype(np.int64), counts.astype(np.int64))
        counts = np.zeros(high - low + 1, np.int64)
        for begin in range(0, symbols.size, STREAM_SYMBOLS):  # bincount converts to int64: not all at once
            counts += np.bincount(symbols[begin : begin + STREAM_SYMBOLS] - low, minlength=counts.size)
        used = np.flatnonzero(counts)
        return cls(used + low, counts[used])

    @property
    def entropy(self) -> float:
        """Empirical entropy in bits/symbol, eq. (2)."""
        total = self.counts.sum()
        return float(abs(np.log2(total) - np.dot(self.counts, np.log2(self.counts)) / total))


@dataclass(frozen=True)
class Table:
    """What encoder and decoder share of a layer: symbols in use i64[s], roots of their counts i64[s]."""

    symbols: Integers
    roots: Integers

    @classmethod
    def of(cls, histogram: Histogram) -> Table:
        """The table for a histogram: v_i = max(1, round(√c_i))."""
        return cls(histogram.symbols, np.maximum(1, np.rint(np.sqrt(histogram.counts))).astype(np.int64))

    @classmethod
    def read(cls, stored: bytes, begin: int = 0) -> tuple[Table, int]:
        """The table whose bytes begin at `begin`, and where they end: a table says itself how long it is.

        Raises:
            CorruptArchive: cut off, or with values that no encoder writes.
        """
        reader = Bits(stored, begin)
        order = reader.bits(4)
        count = reader.golomb(COUNT_ORDER) + 1
        if count > TABLE_SYMBOLS:
            raise CorruptArchive("a table has more symbols than allowed; the archive is damaged")
        symbols, roots = [unzigzag(reader.golomb(FIRST_ORDER))], [reader.golomb(_ROOT_ORDER) + 1]
        for _ in range(count - 1):
            symbols.append(symbols[-1] + 1 + reader.golomb(_GAP_ORDER))
            roots.append(roots[-1] + unzigzag(reader.golomb(order)))
        end = reader.finish()
        if min(roots) < 1 or max(roots) > _ROOT_MAX or max(abs(symbols[0]), abs(symbols[-1])) >= 1 << 31:
            raise CorruptArchive("a table holds impossible values; the archive is damaged")
        return cls(np.array(symbols, np.int64), np.array(roots, np.int64)), end

    def frequencies(self) -> Integers:
        """Frequencies f_i ≥ 1 in units of 2⁻²⁴, i64[s], of sum 2²⁴ exactly."""
        return in_proportion(self.roots**2)

    def indices(self, symbols: Symbols) -> Symbols:
        """Where each of symbols i32[m], all of them in use, is among those in use, i32[m]."""
        if self.symbols[-1] - self.symbols[0] + 1 == self.symbols.size:  # none is left out
            return symbols - np.int32(self.symbols[0])
        return np.searchsorted(self.symbols.astype(np.int32), symbols).astype(np.int32)

    def to_bytes(self) -> bytes:
        """The table as FORMAT.md packs it."""
        gaps = np.diff(self.symbols) - 1
        steps = [zigzag(step) for step in np.diff(self.roots).tolist()]
        order = min(range(16), key=lambda order: sum(golomb_bits(step, order) for step in steps))
        head = [
            format(order, "04b"),
            golomb(len(self.symbols) - 1, COUNT_ORDER),
            golomb(zigzag(int(self.symbols[0])), FIRST_ORDER),
            golomb(int(self.roots[0]) - 1, _ROOT_ORDER),
        ]
        rest = (golomb(gap, _GAP_ORDER) + golomb(step, order) for gap, step in zip(gaps.tolist(), steps, strict=True))
        return packed([*head, *rest])


def encode_symbols(symbols: Symbols, table: Table, executor: Executor | None = None) -> list[bytes]:
    """The streams of symbols i32[n], all of them in the table: one for each run of 2²⁰; none for one symbol."""
    if table.symbols.size == 1:
        return []
    frequencies = table.frequencies()

    def runs() -> Iterator[list[tuple[Symbols, Integers]]]:
        for begin in range(0, symbols.size, STREAM_SYMBOLS):
            yield [(table.indices(symbols[begin : begin + STREAM_SYMBOLS]), frequencies)]

    return list(ordered(executor, encode_runs, runs()))


def decode_symbols(
    streams: Sequence[bytes], tables: Sequence[Table], sizes: Sequence[int], executor: Executor | None = None
) -> Iterator[Symbols]:
    """Groups of symbols, each of which `encode_symbols` was given, one behind the other, in pieces of at most 2²⁰.

    Where a table has one symbol, a piece is a view of just that one.

    Raises:
        CorruptArchive: there are more or fewer streams than that, or (later) they do not hold the symbols.
    """
    known = [(table.symbols.astype(np.int32), table.frequencies()) for table in tables]
    pieces = [
        (symbols, frequencies, min(STREAM_SYMBOLS, size - begin))
        for (symbols, frequencies), size in zip(known, sizes, strict=True)
        for begin in range(0, size, STREAM_SYMBOLS)
    ]
    coded = [[(frequencies, size)] for symbols, frequencies, size in pieces if symbols.size > 1]
    if len(streams) != len(coded):
        raise CorruptArchive(f"{len(streams)} streams instead of {len(coded)}; the archive is damaged")
    runs = ordered(executor, decode_runs, streams, coded)
    return (
        np.take(symbols, next(runs)[0]) if symbols.size > 1 else np.broadcast_to(symbols, size)
        for symbols, _, size in pieces
    )
