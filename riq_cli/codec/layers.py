"""One layer ↔ its entry in the manifest and its sections: codes, table or distribution, and streams."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np

from riq_cli import coder, quantizer, trellis
from riq_cli.archive import CodesEntry, LayerEntry, deflate, inflate
from riq_cli.codec.classes import grouped, numbers_of, scattered
from riq_cli.codec.clustering import best_classes, candidate_axes
from riq_cli.codec.magnitudes import Magnitudes, Spread
from riq_cli.codec.rates import CODES_BITS, STREAM_BITS
from riq_cli.codec.spreading import best_spread
from riq_cli.errors import CorruptArchive
from riq_cli.limits import CODES, SCALES, STREAM_SYMBOLS, TABLE_SYMBOLS
from riq_cli.model import Layer
from riq_cli.quantizer import Codes, Quantized, Symbols
from riq_cli.student import Student

# Above this share of its own bytes a coded layer may be larger than a deflated one: only then is that tried.
_POOR = 0.8
_CLASSED = 2000  # weights from which on classes are looked for: of fewer, tables and codes outweigh what they save


def encode_layer(
    layer: Layer, quantized: Quantized | None, executor: Executor | None
) -> tuple[LayerEntry, list[bytes]]:
    """A layer's entry in the manifest and its sections: codes of scales, of classes or magnitudes, table, streams.

    It is coded with tables of its symbols or as Student's t says that they are spread, whichever is smaller, and
    becomes `raw` if neither can be, or if that is smaller still.

    Args:
        layer: the weights.
        quantized: what is restored in their place; None: themselves exactly, as `raw`. With classes it keeps tables,
            those of its classes; if these are all 0, a single one.
        executor: where the streams are encoded; None: here.

    Raises:
        ValueError: codes that do not fit the layer, or that no archive can hold.
    """
    if quantized is None:
        return _encode_raw(layer)
    _check(quantized, layer)
    symbols, spreading = quantized.symbols, None
    if quantized.classes is None:
        if quantized.levels.size >= _CLASSED:
            classes = best_classes(symbols, layer.shape, candidate_axes(layer.shape))
            quantized = replace(quantized, classes=classes)
        spreading = best_spread(quantized, layer.shape)
    quantized = quantized.simplified()
    tabled = _Tabled.of(symbols, quantized.classes, layer.shape)
    if spreading is not None and (tabled is None or spreading.bits < tabled.bits):
        coded = _spread(symbols, spreading.spread, executor)
    elif tabled is not None:
        coded = tabled.coded(executor)
    else:
        return _encode_raw(layer)
    scales = [(scale.axes, coder.encode_codes(scale.values.reshape(-1))) for scale in quantized.scales]
    sections = [*(section for _, section in scales), *(section for _, section in coded.codes)]
    sections += [coded.table, *coded.streams]
    stored = sum(map(len, sections))
    if stored > _POOR * layer.values.nbytes:
        entry, raw = _encode_raw(layer)
        if entry.stored <= stored:
            return entry, raw
    checksum = 0
    for begin in range(0, layer.size, STREAM_SYMBOLS):
        end = min(begin + STREAM_SYMBOLS, layer.size)
        checksum = zlib.crc32(quantized.restored(layer.dtype, layer.shape, begin, end).data, checksum)
    codes = tuple(CodesEntry(axes, len(section)) for axes, section in coded.codes)
    entry = LayerEntry(
        name=layer.name,
        op=layer.op,
        tensors=layer.places,
        dtype=layer.dtype,
        shape=layer.shape,
        coding=coded.coding,
        symbols=coded.symbols,
        entropy=round(coded.entropy, 4),
        table=len(coded.table),
        streams=tuple(map(len, coded.streams)),
        crc32=checksum,
        bin_width=quantized.width,
        scales=tuple(CodesEntry(axes, len(section)) for axes, section in scales),
        classes=codes[0] if codes and coded.coding == "ans" else None,
        magnitudes=codes if coded.coding == "student" else (),
        trellis=quantized.trellis,
    )
    return entry, sections


@dataclass(frozen=True)
class _Coded:
    """The sections of a layer's symbols, with the axes of their codes, and what the manifest tells of them."""

    coding: str
    symbols: int
    entropy: float
    codes: list[tuple[tuple[int, ...], bytes]]
    table: bytes
    streams: list[bytes]


@dataclass(frozen=True, eq=False)
class _Tabled:
    """A layer's symbols in groups, one for each class, with a table each; `bits` that they take, codes and all."""

    groups: list[Symbols]
    tables: list[coder.Table]
    histograms: list[coder.Histogram]
    codes: list[tuple[tuple[int, ...], bytes]]
    bits: float

    @classmethod
    def of(cls, symbols: Symbols, classes: Codes | None, shape: Sequence[int]) -> _Tabled | None:
        """Those of a layer of this shape; None if they are too many for a table."""
        groups, codes = [symbols], []
        if classes is not None:
            groups = grouped(symbols, numbers_of(classes, shape), classes.class_sizes(symbols.size))
            codes = [(classes.axes, coder.encode_codes(classes.values.reshape(-1)))]
        histograms = [coder.Histogram.of(group) for group in groups]
        if max(histogram.symbols.size for histogram in histograms) > TABLE_SYMBOLS:
            return None
        tables = [coder.Table.of(histogram) for histogram in histograms]
        bits = 8.0 * sum(len(section) for _, section in codes) + CODES_BITS * len(codes)
        for histogram, table in zip(histograms, tables, strict=True):
            bits += 8 * len(table.to_bytes()) + STREAM_BITS
            bits += float(np.dot(histogram.counts, 24 - np.log2(table.frequencies())))
        return cls(groups, tables, histograms, codes, bits)

    def coded(self, executor: Executor | None) -> _Coded:
        """Their sections."""
        size, in_use = sum(group.size for group in self.groups), sum(table.symbols.size for table in self.tables)
        return _Coded(
            coding="constant" if in_use == 1 else "ans",
            symbols=in_use,
            entropy=sum(each.counts.sum() / size * quantizer.entropy(each.counts) for each in self.histograms),
            codes=self.codes,
            table=b"".join(table.to_bytes() for table in self.tables),
            streams=coder.encode_groups(self.groups, self.tables, executor),
        )


def _spread(symbols: Symbols, spread: Spread, executor: Executor | None) -> _Coded:
    """The sections of a layer's symbols, coded as far as they are spread."""
    streams = spread.encode(symbols, executor)
    return _Coded(
        coding="student",
        symbols=coder.Histogram.of(symbols).symbols.size,
        entropy=8 * sum(map(len, streams)) / symbols.size,
        codes=[(codes.axes, coder.encode_codes(codes.values.reshape(-1))) for codes in spread.magnitudes.codes],
        table=spread.student.to_bytes(),
        streams=streams,
    )


def _check(quantized: Quantized, layer: Layer) -> None:
    """Nothing, or a ValueError for what an archive of this layer could not hold."""
    if quantized.levels.shape != (layer.size,):
        raise ValueError("not one symbol for each weight")
    if len(quantized.scales) > SCALES or len({scale.axes for scale in quantized.scales}) < len(quantized.scales):
        raise ValueError(f"more than {SCALES} scales, or two along the same axes")
    several = (*quantized.scales, *(() if quantized.classes is None else (quantized.classes,)))
    for axes in (*(codes.axes for codes in several), *(() if quantized.trellis is None else (quantized.trellis,))):
        if not axes or list(axes) != sorted({*axes}) or axes[0] < 0 or axes[-1] >= len(layer.shape):
            raise ValueError(f"{axes} are not ascending axes of a shape of {len(layer.shape)}")
    for codes in several:
        axes = codes.axes
        if codes.values.shape != tuple(layer.shape[axis] for axis in axes) or codes.values.size > CODES:
            raise ValueError(f"codes along {axes} have the wrong shape, or are more than {CODES}")


def _encode_raw(layer: Layer) -> tuple[LayerEntry, list[bytes]]:
    data = np.ascontiguousarray(layer.values)
    stream = deflate(data.data)
    entry = LayerEntry(
        name=layer.name,
        op=layer.op,
        tensors=layer.places,
        dtype=layer.dtype,
        shape=layer.shape,
        coding="raw",
        symbols=0,
        entropy=0.0,
        table=0,
        streams=(len(stream),),
        crc32=zlib.crc32(data.data),
    )
    return entry, [b"", stream]


def decode_layer(entry: LayerEntry, sections: Sequence[bytes], executor: Executor | None) -> Layer:
    """The restored layer that an entry and its sections describe.

    Raises:
        CorruptArchive: codes, table, streams or checksum do not agree.
    """
    storage = quantizer.STORAGE[entry.dtype]
    if entry.bin_width is None:
        data = inflate(sections[-1], entry.size * storage.itemsize, f"layer {entry.name!r}")
        if len(data) != entry.size * storage.itemsize:
            raise CorruptArchive(f"layer {entry.name!r}: not as many weights as its shape says; the archive is damaged")
        values = np.frombuffer(data, storage)
    else:
        values = _restored(entry, sections, executor)
    if zlib.crc32(values.data) != entry.crc32:
        raise CorruptArchive(f"layer {entry.name!r}: checksum differs; the archive is damaged")
    return Layer(entry.name, entry.op, entry.tensors, entry.dtype, entry.shape, values.reshape(entry.shape))


def symbol_counts(entry: LayerEntry, sections: Sequence[bytes]) -> dict[int, int]:
    """How often each symbol occurs in a layer, which is not raw.

    Raises:
        CorruptArchive: codes, table or streams do not agree.
    """
    with _naming(entry):
        histogram = coder.Histogram.of(_quantized(entry, sections, None).symbols)
    return dict(zip(histogram.symbols.tolist(), histogram.counts.tolist(), strict=True))


def _restored(entry: LayerEntry, sections: Sequence[bytes], executor: Executor | None) -> quantizer.Array:
    with _naming(entry):
        quantized = _quantized(entry, sections, executor)
        if entry.coding == "constant" and not quantized.scales and quantized.trellis is None:
            return np.full(entry.size, quantized.restored(entry.dtype, entry.shape, 0, 1)[0])
        return quantized.restored(entry.dtype, entry.shape)


@contextlib.contextmanager
def _naming(entry: LayerEntry) -> Iterator[None]:
    """Tell which layer is damaged."""
    try:
        yield
    except CorruptArchive as error:
        raise CorruptArchive(f"layer {entry.name!r}: {error}") from error
    except ValueError as error:  # codes that no encoder writes
        raise CorruptArchive(f"layer {entry.name!r}: {error}; the archive is damaged") from error


def _quantized(entry: LayerEntry, sections: Sequence[bytes], executor: Executor | None) -> Quantized:
    """The levels and codes of a layer; symbols that are all the same take the memory of one."""
    assert entry.bin_width is not None
    count = len(entry.codes)
    decoded = [
        Codes(codes.axes, coder.decode_codes(section, math.prod(shape)).reshape(shape))
        for codes, section in zip(entry.codes, sections, strict=False)
        for shape in (codes.shape(entry.shape),)
    ]
    if entry.coding == "student":
        symbols = _spread_of(entry, decoded, sections[count]).decode(sections[count + 1 :], executor)
        return _leveled(entry, symbols, decoded[: len(entry.scales)])
    classes = decoded.pop() if entry.classes else None
    sizes = [entry.size] if classes is None else classes.class_sizes(entry.size).tolist()
    tables = _tables(sections[count], len(sizes))
    if sum(table.symbols.size for table in tables) != entry.symbols:
        raise CorruptArchive("the table does not have the symbols that were announced; the archive is damaged")
    groups = coder.decode_groups(sections[count + 1 :], tables, sizes, executor)
    symbols = groups[0] if classes is None else scattered(groups, numbers_of(classes, entry.shape))
    return _leveled(entry, symbols, decoded)


def _leveled(entry: LayerEntry, symbols: Symbols, scales: Sequence[Codes]) -> Quantized:
    """The symbols of a layer with what restores them."""
    assert entry.bin_width is not None
    levels = symbols if entry.trellis is None else trellis.levels(symbols, entry.shape, entry.trellis)
    return Quantized(levels, entry.bin_width, tuple(scales), None, entry.trellis)


def _spread_of(entry: LayerEntry, codes: Sequence[Codes], table: bytes) -> Spread:
    """How far the symbols of a layer are spread that has these codes, those of magnitudes behind those of scales."""
    student, count = Student.from_bytes(table), len(entry.scales)
    magnitudes = Magnitudes(tuple(codes[count:]), entry.shape, tuple(codes[:count]) if student.relative else ())
    return Spread(student, magnitudes, entry.trellis is not None)


def _tables(stored: bytes, count: int) -> list[coder.Table]:
    """The tables that are stored back to back."""
    tables, end = [], 0
    for _ in range(count):
        table, end = coder.Table.read(stored, end)
        tables.append(table)
    if end < len(stored):
        raise CorruptArchive("a table is longer than its symbols; the archive is damaged")
    return tables
