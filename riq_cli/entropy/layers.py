"""One layer ↔ its entry in the manifest and its sections: codes, table or distribution, and streams."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np

from riq_cli import quantizer
from riq_cli.archive import CodesEntry, LayerEntry, deflate
from riq_cli.entropy import coder
from riq_cli.entropy.classes import grouped, numbers_of
from riq_cli.entropy.clustering import best_classes, candidate_axes
from riq_cli.entropy.magnitudes import Spread
from riq_cli.entropy.rates import CODES_BITS, STREAM_BITS
from riq_cli.entropy.spreading import best_spread
from riq_cli.limits import CODES, SCALES, STREAM_SYMBOLS, TABLE_SYMBOLS
from riq_cli.model import Layer
from riq_cli.quantizer import Codes, Quantized, Symbols

# Above this share of its own bytes a coded layer may be larger than a deflated one: only then is that tried.
_POOR = 0.8
_CLASSED = 2000  # weights from which on classes are looked for: of fewer, tables and codes outweigh what they save


def encode_layer(
    layer: Layer, quantized: Quantized | None, executor: Executor | None, without: Collection[str] = ()
) -> tuple[LayerEntry, list[bytes]]:
    """A layer's entry in the manifest and its sections: codes of scales, of classes or magnitudes, table, streams.

    It is coded with tables of its symbols or as Student's t says that they are spread, whichever is smaller, and
    becomes `raw` if neither can be, or if that is smaller still.

    Args:
        layer: the weights.
        quantized: what is restored in their place; None: themselves exactly, as `raw`. With classes it keeps tables,
            those of its classes; if these are all 0, a single one.
        executor: where the streams are encoded; None: here.
        without: names of stages that are left out.

    Raises:
        ValueError: codes that do not fit the layer, or that no archive can hold.
    """
    if quantized is None:
        return _encode_raw(layer)
    _check(quantized, layer)
    symbols, spreading = quantized.symbols, None
    if quantized.classes is None:
        if quantized.levels.size >= _CLASSED and "classes" not in without:
            classes = best_classes(symbols, layer.shape, candidate_axes(layer.shape))
            quantized = replace(quantized, classes=classes)
        spreading = None if "student" in without else best_spread(quantized, layer.shape)
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
