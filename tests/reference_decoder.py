"""A decoder of riq archives in Python's standard library alone, in the order of FORMAT.md.

It is written to be read, not to be fast. `decode` returns what an archive holds; damage is a `FormatError`.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
import zlib
from bisect import bisect_right
from typing import Any

MAGIC = b"\x89RIQZ\r\n\x1a"
VERSION = 1
MANIFEST_BYTES, MANIFEST_DEPTH = 16 << 20, 100
RESTORED = 8 << 30
DIMENSIONS = 32
LAYER_SYMBOLS, STREAM_SYMBOLS, TABLE_SYMBOLS = 1 << 40, 1 << 20, 1 << 16
ROOT_MAX = 1 << 24
SYMBOL_BOUND = 1 << 31
TOTAL = 1 << 24  # sum of all frequencies
WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
LARGEST = {
    "float16": 65504.0,
    "bfloat16": 2.0**128 - 2.0**120,
    "float32": 2.0**128 - 2.0**104,
    "float64": 2.0**1023 * (2 - 2.0**-52),
}


class FormatError(Exception):
    """The bytes are not an archive as FORMAT.md describes it."""


def check(condition: bool, message: str) -> None:
    if not condition:
        raise FormatError(message)


def inflate(stored: bytes, size: int, exactly: bool = True) -> bytes:
    """One zlib stream without anything behind it, of `size` inflated bytes (or at most, if not `exactly`)."""
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(stored, size + 1)
    except zlib.error as error:
        raise FormatError("not a zlib stream") from error
    check(inflater.eof and not inflater.unused_data, "a zlib stream of another length")
    check(len(data) == size if exactly else len(data) <= size, "inflated data of another length")
    return data


# Layout


def decode(archive: bytes, bound: int = RESTORED) -> tuple[bytes, list[tuple[dict[str, Any], bytes]]]:
    """The skeleton's bytes and, for each layer, its entry in the manifest and the restored tensor's bytes."""
    check(archive[:8] == MAGIC and len(archive) >= 24, "not a riq archive")
    version, reserved, checksum, length = struct.unpack_from("<HHIQ", archive, 8)
    check(version == VERSION, f"version {version}")
    check(reserved == 0, "the reserved field is not 0")
    check(length <= MANIFEST_BYTES, "the manifest is too long")
    stored = archive[24 : 24 + length]
    check(len(stored) == length and zlib.crc32(stored) == checksum, "the manifest is damaged")
    manifest = parse(inflate(stored, MANIFEST_BYTES, exactly=False))

    entry, layers = manifest["skeleton"], manifest["layers"]
    check(entry["size"] + sum(size_of(layer) * len(layer["tensors"]) for layer in layers) <= bound, "too large")
    places = [place for layer in layers for place in layer["tensors"]]
    check(len(places) == len(set(places)), "two layers claim the same tensor")

    position = 24 + length

    def section(size: int) -> bytes:
        nonlocal position
        position += size
        check(position <= len(archive), "the archive is cut off")
        return archive[position - size : position]

    skeleton = inflate(section(entry["bytes"]), entry["size"])
    check(zlib.crc32(skeleton) == entry["crc32"], "the skeleton is damaged")
    restored = []
    for layer in layers:
        table, streams = section(layer["table"]), [section(size) for size in layer["streams"]]
        data = restore(layer, table, streams)
        check(zlib.crc32(data) == layer["crc32"], f"layer {layer['name']!r} is damaged")
        restored.append((layer, data))
    check(position == len(archive), "bytes behind the last section")
    return skeleton, restored


# Manifest


def parse(text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        check(len(dict(pairs)) == len(pairs), "a key occurs twice")
        return dict(pairs)

    def constant(name: str) -> None:
        raise FormatError(f"{name} is not JSON")

    def number(digits: str) -> float:
        check(math.isfinite(float(digits)), "a number beyond all doubles")
        return float(digits)

    def writable(value: Any, depth: int = 0) -> None:
        if isinstance(value, str):
            value.encode()  # fails for lone surrogates
        elif isinstance(value, (dict, list)):
            check(depth < MANIFEST_DEPTH, "nested too deep")
            for item in itertools.chain(value, value.values() if isinstance(value, dict) else ()):
                writable(item, depth + 1)

    try:
        manifest: dict[str, Any] = json.loads(
            text.decode(), object_pairs_hook=unique, parse_constant=constant, parse_float=number
        )
        writable(manifest)
    except (ValueError, RecursionError) as error:
        raise FormatError("the manifest is not JSON") from error
    check(manifest["requires"] == [], f"requires {manifest['requires']}")
    return manifest


def size_of(layer: dict[str, Any]) -> int:
    """Bytes of a layer's tensor."""
    check(len(layer["shape"]) <= DIMENSIONS, "too many dimensions")
    size = int(math.prod(layer["shape"]))
    check(1 <= size <= LAYER_SYMBOLS, "too many weights, or none")
    return size * WIDTHS[layer["dtype"]]


# Codings


def restore(layer: dict[str, Any], table: bytes, streams: list[bytes]) -> bytes:
    """The bytes of a layer's tensor."""
    size, coding = int(math.prod(layer["shape"])), layer["coding"]
    if coding == "raw":
        check(len(streams) == 1 and not table and layer["symbols"] == 0, "sections of a raw layer")
        return inflate(streams[0], size_of(layer))
    symbols, roots = read_table(table)
    check(len(symbols) == layer["symbols"], "symbols in use")
    weights = [cast(symbol * float(layer["bin_width"]), layer["dtype"]) for symbol in symbols]
    if coding == "constant":
        check(len(symbols) == 1 and not streams, "sections of a constant layer")
        return weights[0] * size
    check(coding == "ans" and len(symbols) > 1, f"coding {coding!r}")
    lengths = [min(STREAM_SYMBOLS, size - begin) for begin in range(0, size, STREAM_SYMBOLS)]
    check(len(streams) == len(lengths), "number of streams")
    frequencies = frequencies_of(roots)
    indices = (read_stream(stream, frequencies, length) for stream, length in zip(streams, lengths, strict=True))
    return b"".join(weights[index] for index in itertools.chain.from_iterable(indices))


def cast(product: float, dtype: str) -> bytes:
    """A double in the layer's type, to nearest even; beyond its largest value, that value."""
    product = max(-LARGEST[dtype], min(product, LARGEST[dtype]))
    if dtype == "bfloat16":
        bits = int.from_bytes(struct.pack("<f", product), "little")
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).to_bytes(2, "little")
    return struct.pack({"float16": "<e", "float32": "<f", "float64": "<d"}[dtype], product)


# Table


def read_table(stored: bytes) -> tuple[list[int], list[int]]:
    """Symbols in use and the roots of their counts."""
    text = "".join(f"{byte:08b}" for byte in stored)
    position = 0

    def bits(count: int) -> int:
        nonlocal position
        position += count
        check(position <= len(text), "a table is cut off")
        return int(text[position - count : position] or "0", 2)

    def golomb(order: int) -> int:
        zeros = 0
        while bits(1) == 0:
            zeros += 1
        check(zeros <= 40, "an impossible code")
        return (1 << (zeros + order) | bits(zeros + order)) - (1 << order)

    def signed(order: int) -> int:
        value = golomb(order)
        return value // 2 if value % 2 == 0 else -(value // 2) - 1

    order, count = bits(4), golomb(4) + 1
    check(count <= TABLE_SYMBOLS, "too many symbols")
    symbols, roots = [signed(4)], [golomb(8) + 1]
    while len(symbols) < count:
        symbols.append(symbols[-1] + golomb(0) + 1)
        roots.append(roots[-1] + signed(order))
    check(all(1 <= root <= ROOT_MAX for root in roots), "an impossible root")
    check(max(abs(symbols[0]), abs(symbols[-1])) < SYMBOL_BOUND, "an impossible symbol")
    check(len(text) - position < 8 and "1" not in text[position:], "bits behind the table")
    return symbols, roots


def frequencies_of(roots: list[int]) -> list[int]:
    """Frequencies in units of 2⁻²⁴."""
    total = sum(root * root for root in roots)
    frequencies = [1 + root * root * (TOTAL - len(roots)) // total for root in roots]
    frequencies[frequencies.index(max(frequencies))] += TOTAL - sum(frequencies)
    return frequencies


# Stream


def read_stream(stream: bytes, frequencies: list[int], size: int) -> list[int]:
    """The `size` symbols of a stream, as positions in the table."""
    check(len(stream) % 4 == 0, "a stream of half words")
    words = list(struct.unpack(f"<{len(stream) // 4}I", stream))
    check(not words or words[-1] != 0, "the last word of a stream is 0")
    cumulative = [0, *itertools.accumulate(frequencies)]
    state = 0
    for _ in range(2):
        if words:
            state = state << 32 | words.pop()
    indices = []
    for _ in range(size):
        low = state & TOTAL - 1
        index = bisect_right(cumulative, low) - 1
        indices.append(index)
        state = frequencies[index] * (state >> 24) + low - cumulative[index]
        if state < 1 << 32 and words:
            state = state << 32 | words.pop()
    check(state == 0 and not words, "a stream is not used up")
    return indices
