"""One layer → its entry in the manifest and its sections: codes, table or distribution, and streams."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from concurrent.futures import Executor

import numpy as np

from riq_cli.archive import CodesEntry, LayerEntry, deflate
from riq_cli.decode.dequantize import Quantized
from riq_cli.entropy.encode import encode
from riq_cli.limits import CODES, SCALES, STREAM_SYMBOLS
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
        ValueError: codes that do not fit the layer, or that no archive can hold.
    """
    if quantized is None:
        return _encode_raw(layer)
    _check(quantized, layer)
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
        scales=tuple(CodesEntry(scale.axes, len(part)) for scale, part in zip(scales, scale_sections, strict=True)),
        magnitudes=tuple(CodesEntry(axes, len(section)) for axes, section in coded.codes),
        trellis=quantized.trellis,
    )
    return entry, sections


def _check(quantized: Quantized, layer: Layer) -> None:
    """Nothing, or a ValueError for what an archive of this layer could not hold."""
    if quantized.levels.shape != (layer.size,):
        raise ValueError("not one symbol for each weight")
    all_axes = [scale.axes for scale in quantized.scales]
    if len(all_axes) > SCALES or len({*all_axes}) < len(all_axes):
        raise ValueError(f"more than {SCALES} scales, or two along the same axes")
    for axes in (*all_axes, *(() if quantized.trellis is None else (quantized.trellis,))):
        if not axes or list(axes) != sorted({*axes}) or axes[0] < 0 or axes[-1] >= len(layer.shape):
            raise ValueError(f"{axes} are not ascending axes of a shape of {len(layer.shape)}")
    for scale in quantized.scales:
        if scale.values.shape != tuple(layer.shape[axis] for axis in scale.axes) or scale.values.size > CODES:
            raise ValueError(f"codes along {scale.axes} have the wrong shape, or are more than {CODES}")


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
