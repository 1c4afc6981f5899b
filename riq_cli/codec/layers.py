"""One layer ↔ its entry in the manifest and its sections: codes, table and streams."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace

import numpy as np

from riq_cli import coder, quantizer, trellis
from riq_cli.archive import CodesEntry, LayerEntry, deflate, inflate
from riq_cli.codec.classes import grouped, scattered
from riq_cli.codec.clustering import best_classes, candidate_axes
from riq_cli.errors import CorruptArchive
from riq_cli.limits import CODES, SCALES, STREAM_SYMBOLS, TABLE_SYMBOLS
from riq_cli.model import Layer
from riq_cli.quantizer import Codes, Quantized

# Above this share of its own bytes a coded layer may be larger than a deflated one: only then is that tried.
_POOR = 0.8
_CLASSED = 2000  # weights from which on classes are looked for: of fewer, tables and codes outweigh what they save


def encode_layer(
    layer: Layer, quantized: Quantized | None, executor: Executor | None
) -> tuple[LayerEntry, list[bytes]]:
    """A layer's entry in the manifest and its sections: codes of scales and classes, table, streams.

    A layer becomes `raw` if it has too many symbols to be coded, or if that is smaller.

    Args:
        layer: the weights.
        quantized: what is restored in their place; None: themselves exactly, as `raw`. Without classes it gets those
            that take least room, if any pay; with classes that are all 0 it keeps a single table.
        executor: where the streams are encoded; None: here.

    Raises:
        ValueError: codes that do not fit the layer, or that no archive can hold.
    """
    if quantized is None:
        return _encode_raw(layer)
    _check(quantized, layer)
    quantized = _with_classes(quantized, layer.shape).simplified()
    symbols, scales, classes = quantized.symbols, quantized.scales, quantized.classes
    groups = [symbols] if classes is None else grouped(symbols, classes, layer.shape)
    histograms = [coder.Histogram.of(group) for group in groups]
    if max(histogram.symbols.size for histogram in histograms) > TABLE_SYMBOLS:
        return _encode_raw(layer)
    tables = [coder.Table.of(histogram) for histogram in histograms]
    table = b"".join(each.to_bytes() for each in tables)
    streams = coder.encode_groups(groups, tables, executor)
    codes = [
        (item.axes, coder.encode_codes(item.values.reshape(-1)))
        for item in (*scales, *(() if classes is None else (classes,)))
    ]
    sections = [*(section for _, section in codes), table, *streams]
    stored = sum(map(len, sections))
    if stored > _POOR * layer.values.nbytes:
        entry, raw = _encode_raw(layer)
        if entry.stored <= stored:
            return entry, raw
    checksum = 0
    for begin in range(0, symbols.size, STREAM_SYMBOLS):
        end = min(begin + STREAM_SYMBOLS, symbols.size)
        checksum = zlib.crc32(quantized.restored(layer.dtype, layer.shape, begin, end).data, checksum)
    entries = [CodesEntry(axes, len(section)) for axes, section in codes]
    in_use = sum(each.symbols.size for each in tables)
    entry = LayerEntry(
        name=layer.name,
        op=layer.op,
        tensors=layer.places,
        dtype=layer.dtype,
        shape=layer.shape,
        coding="constant" if in_use == 1 else "ans",
        symbols=in_use,
        entropy=round(sum(h.counts.sum() / symbols.size * quantizer.entropy(h.counts) for h in histograms), 4),
        table=len(table),
        streams=tuple(map(len, streams)),
        crc32=checksum,
        bin_width=quantized.width,
        scales=tuple(entries[: len(scales)]),
        classes=None if classes is None else entries[-1],
        trellis=quantized.trellis,
    )
    return entry, sections


def _with_classes(quantized: Quantized, shape: Sequence[int]) -> Quantized:
    """The same weights in the classes that take least room, if they have none yet and any pay."""
    if quantized.classes is not None or quantized.levels.size < _CLASSED:
        return quantized
    return replace(quantized, classes=best_classes(quantized.symbols, shape, candidate_axes(shape)))


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


def _restored(entry: LayerEntry, sections: Sequence[bytes], executor: Executor | None) -> quantizer.Array:
    try:
        quantized = _quantized(entry, sections, executor)
        if entry.coding == "constant" and not quantized.scales and quantized.trellis is None:
            return np.full(entry.size, quantized.restored(entry.dtype, entry.shape, 0, 1)[0])
        return quantized.restored(entry.dtype, entry.shape)
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
    classes = decoded.pop() if entry.classes else None
    sizes = [entry.size] if classes is None else classes.class_sizes(entry.size).tolist()
    tables = _tables(sections[count], len(sizes))
    if sum(table.symbols.size for table in tables) != entry.symbols:
        raise CorruptArchive("the table does not have the symbols that were announced; the archive is damaged")
    groups = coder.decode_groups(sections[count + 1 :], tables, sizes, executor)
    symbols = groups[0] if classes is None else scattered(groups, classes, entry.shape)
    levels = symbols if entry.trellis is None else trellis.levels(symbols, entry.shape, entry.trellis)
    return Quantized(levels, entry.bin_width, tuple(decoded), classes, entry.trellis)


def _tables(stored: bytes, count: int) -> list[coder.Table]:
    """The tables that are stored back to back."""
    tables, end = [], 0
    for _ in range(count):
        table, end = coder.Table.read(stored, end)
        tables.append(table)
    if end < len(stored):
        raise CorruptArchive("a table is longer than its symbols; the archive is damaged")
    return tables
