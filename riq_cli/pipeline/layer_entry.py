"""One layer → its entry in the manifest and its sections: codes, table or distribution, and streams."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from concurrent.futures import Executor

import numpy as np

from riq_cli.archive import CodesEntry, LayerEntry, deflate
from riq_cli.decode.dequantize import Quantized
from riq_cli.entropy.encode import encode
from riq_cli.limits import STREAM_SYMBOLS
from riq_cli.model import Layer

# Above this share of its own bytes a coded layer may be larger than a deflated one: only then is that tried.
_POOR = 0.8


def encode_layer(
    layer: Layer, quantized: Quantized | None, executor: Executor | None, without: Collection[str] = ()
) -> tuple[LayerEntry, list[bytes]]:
    """A layer's entry in the manifest and its sections: codes of scales, codes of contexts, table, streams.

    It is coded by a table of its symbols or by Student's t, whichever is smaller, and becomes `raw` if neither can
    code it, or if that is smaller still.

    Args:
        layer: the weights.
        quantized: what is restored in their place; None: themselves exactly, as `raw`.
        executor: where the streams are encoded; None: here.
        without: names of stages that are left out.

    Raises:
        ValueError: bin widths that no archive can hold.
    """
    if quantized is None:
        return _encode_raw(layer)
    scales = tuple(scale for scale in quantized.scales if scale.values.any()) if quantized.levels.any() else ()
    lanes = quantized.trellis is not None
    coded = encode(quantized.symbols, layer.shape, scales, lanes, executor, "student" not in without)
    if coded is None:
        return _encode_raw(layer)
    scale_sections = [scale.to_bytes() for scale in scales]
    sections = [*scale_sections, *(section for _, section in coded.codes), coded.table, *coded.streams]
    stored = sum(map(len, sections))
    if stored > _POOR * layer.values.nbytes:
        entry, raw = _encode_raw(layer)
        if entry.stored <= stored:
            return entry, raw
    checksum = 0
    for begin in range(0, layer.size, STREAM_SYMBOLS):
        end = min(begin + STREAM_SYMBOLS, layer.size)
        checksum = zlib.crc32(quantized.restored(layer.dtype, layer.shape, begin, end).data, checksum)
    entry = LayerEntry(
        *_named(layer),
        coding=coded.coding,
        symbols=coded.symbols,
        entropy=round(coded.entropy, 4),
        table=len(coded.table),
        streams=tuple(map(len, coded.streams)),
        crc32=checksum,
        bin_width=quantized.width,
        scales=tuple(CodesEntry(scale.axes, len(part)) for scale, part in zip(scales, scale_sections, strict=True)),
        magnitudes=tuple(CodesEntry(axes, len(section)) for axes, section in coded.codes),
        trellis=quantized.trellis,
    )
    return entry, sections


def _encode_raw(layer: Layer) -> tuple[LayerEntry, list[bytes]]:
    data = np.ascontiguousarray(layer.values)
    stream = deflate(data.data)
    return LayerEntry(*_named(layer), "raw", 0, 0.0, 0, (len(stream),), zlib.crc32(data.data)), [b"", stream]


def _named(layer: Layer) -> tuple[str, str, tuple[str, ...], str, tuple[int, ...]]:
    """What the manifest tells of any layer first."""
    return layer.name, layer.op, layer.places, layer.dtype, layer.shape
