"""A layer's entry in the manifest and its sections → the restored weights, in little more memory than they take.

Streams are decoded one after another, and each piece of symbols becomes weights in the layer's own type at once. Signs
of a trellis depend on symbols that come earlier along its lanes, so they are set when all weights are there.
"""

from __future__ import annotations

import contextlib
import itertools
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.archive import Archive, LayerEntry, inflate_into
from riq_cli.decode import trellis
from riq_cli.decode.dequantize import Array, block_widths, dequantize
from riq_cli.entropy.bits import TOO_LONG
from riq_cli.entropy.codes import Codes, Symbols
from riq_cli.entropy.contexts import Contexts, placed
from riq_cli.entropy.histogram import Histogram, Table, decode_symbols
from riq_cli.entropy.student import Student, StudentCoding
from riq_cli.errors import CorruptArchive
from riq_cli.executors import ordered
from riq_cli.limits import CLASSES, STORAGE, STREAM_SYMBOLS

_WINDOW_SHARE = 0.2  # of the layer's bytes, for symbols that wait for their place
_WINDOW_LEAST = 1 << 25  # bytes of them at any rate: each window goes through all of the layer
_COUNTED_STREAMS = 16  # of a layer at most, for a picture of its symbols


def decode_layers(archive: Archive, executor: Executor | None = None) -> Iterator[tuple[LayerEntry, Array]]:
    """Each layer's entry and its restored weights, in the order of the manifest, decoded when they are asked for.

    At any time there is one layer in memory; with an executor, a few small ones too, and a few streams.

    Args:
        archive: opened, or fresh from compress.
        executor: where small layers, and the streams of large ones, are decoded side by side; None: here.

    Yields:
        An entry, and weights of its shape in storage type (bfloat16 as uint16).

    Raises:
        CorruptArchive: codes, table, streams or a checksum do not agree.
    """
    for is_small, some in itertools.groupby(archive.layer_sections(), lambda item: item[0].size <= STREAM_SYMBOLS):
        if is_small:
            yield from ordered(executor, _decoded, some)
        else:
            yield from ((entry, decode_layer(entry, sections, executor)) for entry, sections in some)


def _decoded(stored: tuple[LayerEntry, Sequence[bytes]]) -> tuple[LayerEntry, Array]:
    """A layer decoded in one piece: a job of a pool of processes, which has to pickle."""
    return stored[0], decode_layer(*stored, None)


def decode_layer(entry: LayerEntry, sections: Sequence[bytes], executor: Executor | None) -> Array:
    """The restored weights that an entry and its sections describe, of the layer's shape in storage type.

    Raises:
        CorruptArchive: codes, table, streams or checksum do not agree.
    """
    values = np.empty(entry.size, STORAGE[entry.dtype])
    if entry.bin_width is None:
        inflate_into(sections[-1], values.view(np.uint8).data, f"layer {entry.name!r}")
    else:
        with _naming(entry):
            _restore(entry, _Coded.of(entry, sections, executor), values)
    if zlib.crc32(values.data) != entry.crc32:
        raise CorruptArchive(f"layer {entry.name!r}: checksum differs; the archive is damaged")
    return values.reshape(entry.shape)


def decode_scales(entry: LayerEntry, sections: Sequence[bytes]) -> tuple[Codes, ...]:
    """The codes of a layer's bin widths, which belong to `entry.bin_width`.

    Raises:
        CorruptArchive: they are not as the entry says.
    """
    with _naming(entry):
        return _codes(entry, sections)[: len(entry.scales)]


def _codes(entry: LayerEntry, sections: Sequence[bytes]) -> tuple[Codes, ...]:
    """All codes of a layer: of its scales, then of its contexts."""
    return tuple(
        Codes.from_bytes(codes.axes, codes.shape(entry.shape), section)
        for codes, section in zip(entry.codes, sections, strict=False)
    )


def symbol_counts(entry: LayerEntry, sections: Sequence[bytes]) -> dict[int, int]:
    """How often each symbol occurs in a layer, which is not raw; of a large one, in some of its streams.

    Raises:
        CorruptArchive: codes, table or streams do not agree.
    """
    with _naming(entry):
        pieces = _Coded.of(entry, sections, None, -(-len(entry.streams) // _COUNTED_STREAMS) or 1).pieces
        counts: Counter[int] = Counter()
        for histogram in map(Histogram.of, pieces):
            counts.update(dict(zip(histogram.symbols.tolist(), histogram.counts.tolist(), strict=True)))
    return counts


@contextlib.contextmanager
def _naming(entry: LayerEntry) -> Iterator[None]:
    """Tell which layer is damaged."""
    try:
        yield
    except CorruptArchive as error:
        raise CorruptArchive(f"layer {entry.name!r}: {error}") from error
    except ValueError as error:  # codes that no encoder writes
        raise CorruptArchive(f"layer {entry.name!r}: {error}; the archive is damaged") from error


@dataclass(frozen=True, eq=False)
class _Coded:
    """The symbols of a layer in the order in which they are coded, and what restores them.

    `pieces` are the symbols of one stream after another; all of them lie between `low` and `high`. Weights of the same
    of `contexts` are coded behind each other.
    """

    pieces: Iterator[Symbols]
    low: int
    high: int
    scales: tuple[Codes, ...]
    contexts: Contexts

    @classmethod
    def of(cls, entry: LayerEntry, sections: Sequence[bytes], executor: Executor | None, step: int = 1) -> _Coded:
        """Those of a layer that is not raw; if its coding is `student`, of one of `step` streams alone."""
        codes = _codes(entry, sections)
        scales, others = codes[: len(entry.scales)], codes[len(entry.scales) :]
        table, streams = sections[len(codes)], sections[len(codes) + 1 :]
        if entry.coding == "student":
            student = Student.from_bytes(table)
            contexts = Contexts(others, entry.shape, scales if student.relative else ())
            pieces = StudentCoding(student, contexts, entry.trellis is not None).decode(streams, executor, step)
            return cls(pieces, student.low, student.high, scales, contexts)
        if others:  # an archive of version 0.1 may have classes, each with a table
            _check_classes(others[0])
        contexts = Contexts(others, entry.shape)
        sizes = contexts.sizes
        tables = _tables(table, sizes.size)
        if sum(item.symbols.size for item in tables) != entry.symbols:
            raise CorruptArchive("the table does not have the symbols that were announced; the archive is damaged")
        low, high = min(int(item.symbols[0]) for item in tables), max(int(item.symbols[-1]) for item in tables)
        return cls(decode_symbols(streams, tables, sizes.tolist(), executor), low, high, scales, contexts)


def _check_classes(classes: Codes) -> None:
    """Refuse numbers of classes other than 0 … C − 1, each of them in use, with at most `limits.CLASSES` classes.

    Raises:
        ValueError: they are not that.
    """
    if classes.values.min() < 0 or classes.values.max() >= CLASSES:
        raise ValueError(f"a class that is not below {CLASSES}")
    if not np.bincount(classes.values.reshape(-1)).all():
        raise ValueError("a class without weights")


def _tables(stored: bytes, count: int) -> list[Table]:
    """So many tables, stored back to back.

    Raises:
        CorruptArchive: cut off, too long, or with values that no encoder writes.
    """
    tables, end = [], 0
    for _ in range(count):
        table, end = Table.read(stored, end)
        tables.append(table)
    if end < len(stored):
        raise CorruptArchive(TOO_LONG)
    return tables


def _restore(entry: LayerEntry, coded: _Coded, values: Array) -> None:
    """Write the weights ŵ of a layer into `values`."""
    assert entry.bin_width is not None
    odd = None if entry.trellis is None else np.zeros(-(-entry.size // 8), np.uint8)  # one bit each
    width = entry.bin_width if odd is None else entry.bin_width / trellis.PARTS
    for begin, symbols, held in _in_order(coded, values.nbytes):
        target = values[begin : begin + symbols.size]
        levels = symbols if odd is None else trellis.positive_levels(symbols)
        out = target if held is None else np.empty_like(target)
        widths = block_widths(width, entry.shape, coded.scales, begin, begin + levels.size)
        dequantize(levels, entry.dtype, widths, out)
        if held is not None:
            np.copyto(target, out, where=held)
        if odd is not None:  # a piece begins at a whole byte
            flags = (symbols & 1).astype(bool)
            odd[begin // 8 : -(-(begin + symbols.size) // 8)] |= np.packbits(flags if held is None else flags & held)
    if odd is not None and entry.trellis is not None:
        trellis.set_signs(values, odd, entry.shape, entry.trellis)


def _in_order(coded: _Coded, size: int) -> Iterator[tuple[int, Symbols, NDArray[np.bool_] | None]]:
    """Symbols of a layer, which has `size` bytes: where they begin, themselves, and which are meant; None: all."""
    begin = 0
    if coded.contexts.span == 1:
        for piece in coded.pieces:
            yield begin, piece, None
            begin += piece.size
        return
    for window in _windows(coded, int(max(_WINDOW_LEAST, _WINDOW_SHARE * size))):
        yield from placed(window, begin, coded.contexts)
        begin += window.size


def _windows(coded: _Coded, room: int) -> Iterator[NDArray[Any]]:
    """The symbols in arrays of at most `room` bytes, each of which is valid until the next one is asked for."""
    kind = np.promote_types(np.min_scalar_type(min(coded.low, -1)), np.min_scalar_type(min(~coded.high, -1)))
    left = int(coded.contexts.sizes.sum())
    window: NDArray[Any] = np.empty(min(left, room // kind.itemsize), kind)
    filled = 0
    for piece in coded.pieces:
        while piece.size:
            part = piece[: min(left, window.size) - filled]
            window[filled : filled + part.size] = part
            piece, filled = piece[part.size :], filled + part.size
            if filled == min(left, window.size):
                yield window[:filled]
                left -= filled
                filled = 0
