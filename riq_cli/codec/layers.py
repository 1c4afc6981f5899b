"""One layer ↔ its entry in the manifest, its table and its streams."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np

from riq_cli import coder, quantizer
from riq_cli.archive import LayerEntry, deflate, inflate
from riq_cli.errors import CorruptArchive
from riq_cli.limits import STREAM_SYMBOLS, TABLE_SYMBOLS
from riq_cli.model import Layer

# Above this share of its own bytes a coded layer may be larger than a deflated one: only then is that tried.
_POOR = 0.8


def encode_layer(layer: Layer, width: float | None, executor: Executor | None) -> tuple[LayerEntry, list[bytes]]:
    """A layer's entry in the manifest and its sections: the table and the streams.

    Args:
        layer: the weights.
        width: bin width Δ; None: exactly, as `raw`.
        executor: where the streams are encoded; None: here.
    """
    if width is None:
        return _encode_raw(layer)
    symbols = quantizer.quantize(layer.values, layer.dtype, width)
    histogram = coder.Histogram.of(symbols)
    in_use = histogram.symbols.size
    if in_use > TABLE_SYMBOLS:
        return _encode_raw(layer)
    table = coder.Table.of(histogram)
    stored_table = table.to_bytes()
    streams = [] if in_use == 1 else coder.encode(symbols, table, executor)
    if len(stored_table) + sum(map(len, streams)) > _POOR * layer.values.nbytes:
        entry, sections = _encode_raw(layer)
        if entry.stored <= len(stored_table) + sum(map(len, streams)):
            return entry, sections
    checksum = 0
    for begin in range(0, symbols.size, STREAM_SYMBOLS):
        part = quantizer.dequantize(symbols[begin : begin + STREAM_SYMBOLS], layer.dtype, width)
        checksum = zlib.crc32(part.data, checksum)
    entry = LayerEntry(
        name=layer.name,
        op=layer.op,
        tensors=layer.places,
        dtype=layer.dtype,
        shape=layer.shape,
        coding="constant" if in_use == 1 else "ans",
        symbols=in_use,
        entropy=round(quantizer.entropy(histogram.counts), 4),
        table=len(stored_table),
        streams=tuple(map(len, streams)),
        crc32=checksum,
        bin_width=width,
    )
    return entry, [stored_table, *streams]


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


def decode_layer(entry: LayerEntry, table: bytes, streams: Sequence[bytes], executor: Executor | None) -> Layer:
    """The restored layer that an entry, its table and its streams describe.

    Raises:
        CorruptArchive: table, streams or checksum do not agree.
    """
    storage = quantizer.STORAGE[entry.dtype]
    if entry.bin_width is None:
        data = inflate(streams[0], entry.size * storage.itemsize, f"layer {entry.name!r}")
        if len(data) != entry.size * storage.itemsize:
            raise CorruptArchive(f"layer {entry.name!r}: not as many weights as its shape says; the archive is damaged")
        values = np.frombuffer(data, storage)
    else:
        values = _dequantized(entry, table, streams, executor)
    if zlib.crc32(values.data) != entry.crc32:
        raise CorruptArchive(f"layer {entry.name!r}: checksum differs; the archive is damaged")
    return Layer(entry.name, entry.op, entry.tensors, entry.dtype, entry.shape, values.reshape(entry.shape))


def _dequantized(
    entry: LayerEntry, table: bytes, streams: Sequence[bytes], executor: Executor | None
) -> quantizer.Array:
    assert entry.bin_width is not None
    try:
        shared = coder.Table.from_bytes(table)
        if shared.symbols.size != entry.symbols:
            raise CorruptArchive("the table does not have the symbols that were announced; the archive is damaged")
        if entry.coding == "constant":
            symbols = shared.symbols.astype(np.int32)
        else:
            symbols = coder.decode(streams, shared, entry.size, executor)
    except CorruptArchive as error:
        raise CorruptArchive(f"layer {entry.name!r}: {error}") from error
    values = quantizer.dequantize(symbols, entry.dtype, entry.bin_width)
    return np.full(entry.size, values[0]) if entry.coding == "constant" else values
