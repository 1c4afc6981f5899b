"""Archives by hand, one that is right to begin with, and what tests do to them: damage, edit, restore."""

from __future__ import annotations

import copy
import io
import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import reference_decoder
from hypothesis import strategies as st
from numpy.typing import NDArray

from riq_cli import limits
from riq_cli.archive import Archive, CodesEntry, LayerEntry, Manifest, SkeletonEntry, deflate
from riq_cli.decode import decode_layers, trellis
from riq_cli.decode.dequantize import Quantized
from riq_cli.entropy.codes import Codes
from riq_cli.entropy.contexts import placed
from riq_cli.entropy.histogram import Histogram, Table, encode_symbols
from riq_cli.entropy.student import StudentCoding
from riq_cli.errors import ArchiveError
from riq_cli.model import Layer
from riq_cli.pipeline.layer_entry import encode_layer

MAGIC = b"\x89RIQZ\r\n\x1a"
SKELETON = b"the model without its weights"
DEFLATED = zlib.compress(SKELETON, 9)
BOUND = 1 << 16  # bytes restored at most, in the tests that mutate

# One layer of six weights 1.5 = 3 · 0.5, by hand: order 0000, one symbol 10000, symbol 3 10110, root 2 100000001, 0.
TABLE = bytes([0b00001000, 0b01011010, 0b00000010])
MANIFEST: dict[str, Any] = {
    "calibration": {},
    "creator": "",
    "layers": [
        {
            "bin_width": 0.5,
            "coding": "constant",
            "crc32": zlib.crc32(struct.pack("<6f", *[1.5] * 6)),
            "dtype": "float32",
            "entropy": 0.0,
            "name": "w",
            "op": "MatMul",
            "shape": [2, 3],
            "streams": [],
            "symbols": 1,
            "table": 3,
            "tensors": ["graph.initializer[0]"],
        }
    ],
    "requires": [],
    "result": {},
    "settings": {},
    "skeleton": {"bytes": len(zlib.compress(SKELETON, 9)), "crc32": zlib.crc32(SKELETON), "size": len(SKELETON)},
    "source": {},
}
SECTIONS = zlib.compress(SKELETON, 9) + TABLE


def packed(manifest: Any, sections: bytes = SECTIONS, **header: int) -> bytes:
    """An archive around a manifest (an object, or the JSON's bytes), its checksum and length as they should be."""
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    stored = zlib.compress(text)
    fields = {"version": 1, "reserved": 0, "checksum": zlib.crc32(stored), "length": len(stored)} | header
    return MAGIC + struct.pack("<HHIQ", *fields.values()) + stored + sections


def opened(data: bytes, max_size: int = limits.RESTORED) -> Archive:
    return Archive.open(io.BytesIO(data), max_size)


def restored(data: bytes, max_size: int = limits.RESTORED) -> tuple[bytes, list[Layer]]:
    with opened(data, max_size) as archive:
        return archive.skeleton(), [
            Layer(entry.name, entry.op, entry.tensors, entry.dtype, entry.shape, values)
            for entry, values in decode_layers(archive)
        ]


def refused(data: bytes, error: type[ArchiveError], message: str) -> None:
    with pytest.raises(ArchiveError) as caught:
        restored(data)
    assert (type(caught.value), str(caught.value)) == (error, message)


def written(archive: Archive) -> bytes:
    file = io.BytesIO()
    archive.write(file)
    return file.getvalue()


def refused_or_restored(data: bytes, weights: Sequence[bytes]) -> None:
    """An ArchiveError with a message, or the skeleton and the layers of these bytes."""
    try:
        skeleton, layers = restored(data, BOUND)
    except ArchiveError as error:
        assert str(error)
    else:
        assert skeleton == SKELETON
        assert [item.values.tobytes() for item in layers] == list(weights)


def levels_of(symbols: NDArray[np.int32], shape: Sequence[int], axes: Sequence[int]) -> NDArray[np.int32]:
    """Levels i32[n] of a layer's symbols i32[n], whose lanes lie at one index of each of these axes."""
    values = trellis.positive_levels(symbols).astype(np.float64)
    trellis.set_signs(values, np.packbits((symbols & 1).astype(bool)), shape, axes)
    return values.astype(np.int32)


def decoded(coding: StudentCoding, streams: Sequence[bytes], executor: Executor | None = None) -> NDArray[np.int32]:
    """The symbols i32[n] of a layer in its own order."""
    coded = np.concatenate(list(coding.decode(streams, executor)))
    blocks = placed(coded, 0, coding.contexts)
    return np.concatenate([symbols for _, symbols, _ in blocks])


def encoded_in_classes(layer: Layer, quantized: Quantized, classes: Codes) -> tuple[LayerEntry, list[bytes]]:
    """A layer whose classes of slices have a table each, as archives may have it and encoders no longer write it."""
    class_of = classes.run(layer.shape, 0, layer.size)
    groups = [quantized.symbols[class_of == number] for number in range(int(classes.values.max()) + 1)]
    tables = [Table.of(Histogram.of(group)) for group in groups]
    streams = [stream for pair in zip(groups, tables, strict=True) for stream in encode_symbols(*pair)]
    codes = [(item.axes, item.to_bytes()) for item in (*quantized.scales, classes)]
    *scales, own = (CodesEntry(axes, len(section)) for axes, section in codes)
    table = b"".join(item.to_bytes() for item in tables)
    entry = LayerEntry(
        layer.name, layer.op, layer.places, layer.dtype, layer.shape, "ans",
        symbols=sum(item.symbols.size for item in tables), entropy=0.0, table=len(table),
        streams=tuple(map(len, streams)), crc32=zlib.crc32(quantized.restored(layer.dtype, layer.shape).data),
        bin_width=quantized.width, scales=tuple(scales), classes=own, trellis=quantized.trellis,
    )  # fmt: skip
    return entry, [*(section for _, section in codes), table, *streams]


def layer_of(values: Any, dtype: str = "float32") -> Layer:
    stored = np.asarray(values, np.float64)
    if dtype == "bfloat16":
        stored = stored.astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    stored = stored.astype(limits.STORAGE[dtype])
    return Layer("w", "MatMul", ("graph.initializer[0]",), dtype, stored.shape, stored)


def archive_of(layer: Layer, quantized: Quantized, classes: Codes | None = None) -> Archive:
    entry, sections = (
        encode_layer(layer, quantized, None) if classes is None else encoded_in_classes(layer, quantized, classes)
    )
    skeleton = deflate(SKELETON)
    document = Manifest(SkeletonEntry(len(skeleton), len(SKELETON), zlib.crc32(SKELETON)), (entry,))
    return Archive.build(document, [skeleton, *sections])


def by_both_decoders(data: bytes) -> bytes:
    """The restored bytes of the only layer, after the two decoders agreed."""
    _, [(_, theirs)] = reference_decoder.decode(data)
    _, [ours] = restored(data)
    assert ours.values.tobytes() == theirs
    return theirs


def traced(action: Callable[[], object]) -> int:
    """Bytes that Python and numpy hold at most while something runs."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@st.composite
def mutations(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes flipped, inserted, deleted, doubled or swapped, once to four times."""
    mutated = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(mutated)))
        end = min(len(mutated), begin + draw(st.sampled_from([1, 1, 2, 4, 100])))
        match draw(st.sampled_from(["flip", "set", "insert", "delete", "double"])):
            case "flip":
                mutated[begin:end] = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in mutated[begin:end])
            case "set":
                mutated[begin:end] = bytes([draw(st.sampled_from([0, 1, 127, 128, 255]))]) * (end - begin)
            case "insert":
                mutated[begin:begin] = draw(st.binary(min_size=1, max_size=9))
            case "delete":
                del mutated[begin:end]
            case "double":
                mutated[begin:begin] = mutated[begin:end]
    return bytes(mutated)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there are values in a JSON document."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from paths(value[key], (*path, key))


VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 3, 8, 72, 80, 255, 65_536, 1 << 20, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 64),
    *(0.0, -0.0, 0.5, -1.5, 5e-324, 1e-310, 1e38, 1.7976931348623157e308, 10**30, 10**400),
    *("", "x", "\0", "\ud800", "ans", "constant", "raw", "float16", "bfloat16", "float32", "float64"),
    *("graph.initializer[0]", "graph.initializer[9]", [], [0], [1], [1, 1, 80], [-1], ["x"], [[]], {}, {"x": 1}),
]


Edit = tuple[tuple[Any, ...], Any]  # where in a document, and the value that is put there, "delete" or "double"


def edited(document: Any, edits: Sequence[Edit]) -> Any:
    """A copy of a JSON document with other values; an edit at a place that an earlier one took away changes nothing."""
    document = copy.deepcopy(document)
    for (*parents, key), value in edits:
        place = document
        try:
            for parent in parents:
                place = place[parent]
            if value == "delete":
                del place[key]
            elif value == "double" and isinstance(place, list):
                place.insert(key, place[key])
            else:
                place[key] = copy.deepcopy(value)
        except (KeyError, IndexError, TypeError):
            continue
    return document
