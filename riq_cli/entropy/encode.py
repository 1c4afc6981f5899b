"""The symbols of a layer → their codes, table or distribution, and streams, in the coding that takes least room."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from riq_cli.entropy.codes import Codes, Symbols
from riq_cli.entropy.fit import fitted
from riq_cli.entropy.histogram import Histogram, Table, encode_symbols
from riq_cli.entropy.rate import STREAM_BITS
from riq_cli.limits import TABLE_SYMBOLS


@dataclass(frozen=True)
class Coded:
    """The sections of a layer's symbols, with the axes of their codes, and what the manifest tells of them."""

    coding: str
    symbols: int
    entropy: float
    codes: list[tuple[tuple[int, ...], bytes]]
    table: bytes
    streams: list[bytes]


def encode(
    symbols: Symbols,
    shape: Sequence[int],
    scales: tuple[Codes, ...],
    trellis: bool,
    executor: Executor | None,
    student: bool = True,
) -> Coded | None:
    """The symbols i32[n] coded by a table or, if `student`, by Student's t, whichever is smaller.

    None if neither can code them. The `scales` are codes of the layer's bin widths; with `trellis`, the symbols are
    those of one.
    """
    histogram = Histogram.of(symbols)
    table = Table.of(histogram) if histogram.symbols.size <= TABLE_SYMBOLS else None
    found = fitted(symbols, shape, scales, trellis) if student else None
    if found is not None and (table is None or found[0] < _table_bits(histogram, table)):
        coding = found[1]
        streams = coding.encode(symbols, executor)
        codes = [(item.axes, item.to_bytes()) for item in coding.contexts.codes]
        entropy = 8 * sum(map(len, streams)) / symbols.size
        return Coded("student", histogram.symbols.size, entropy, codes, coding.student.to_bytes(), streams)
    if table is None:
        return None
    name = "constant" if histogram.symbols.size == 1 else "ans"
    streams = encode_symbols(symbols, table, executor)
    return Coded(name, histogram.symbols.size, histogram.entropy, [], table.to_bytes(), streams)


def _table_bits(histogram: Histogram, table: Table) -> float:
    """About the bits of symbols coded by a table, and of this itself."""
    coded = float(np.dot(histogram.counts, 24 - np.log2(table.frequencies())))
    return coded + 8 * len(table.to_bytes()) + STREAM_BITS
