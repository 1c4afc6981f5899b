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
SCALES, CODE_MAX, CODES, CLASSES = 4, 256, 1 << 24, 64
FACTORS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)
FEATURES = {"scales", "classes", "trellis", "student"}
CELLS = 1 << 12
ROOT_MAX = 1 << 24
SYMBOL_BOUND, LEVEL_BOUND = 1 << 31, 1 << 29
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
        needs = {feature for feature in FEATURES if layer.get(feature) or layer["coding"] == feature}
        check(needs.issubset(manifest["requires"]), f"{needs} are not required")
        codes = [section(entry["bytes"]) for entry in codes_of(layer)]
        table, streams = section(layer["table"]), [section(size) for size in layer["streams"]]
        data = restore(layer, codes, table, streams)
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
    check(FEATURES.issuperset(manifest["requires"]), f"requires {manifest['requires']}")
    return manifest


def size_of(layer: dict[str, Any]) -> int:
    """Bytes of a layer's tensor."""
    check(len(layer["shape"]) <= DIMENSIONS, "too many dimensions")
    size = int(math.prod(layer["shape"]))
    check(1 <= size <= LAYER_SYMBOLS, "too many weights, or none")
    return size * WIDTHS[layer["dtype"]]


def codes_of(layer: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of a layer's codes, in the order of their sections."""
    scales, magnitudes, shape = layer.get("scales", []), layer.get("magnitudes", []), layer["shape"]
    entries = [*scales, *([layer["classes"]] if "classes" in layer else []), *magnitudes]
    for several in (scales, magnitudes):
        check(len(several) <= SCALES, "too many codes")
        check(len({tuple(entry["axes"]) for entry in several}) == len(several), "codes along the same axes")
    for axes in (entry["axes"] for entry in entries):
        check(ascending(axes, shape), "axes of codes")
        check(math.prod(shape[axis] for axis in axes) <= CODES, "too many codes")
    return entries


# Codings


def restore(layer: dict[str, Any], codes: list[bytes], table: bytes, streams: list[bytes]) -> bytes:
    """The bytes of a layer's tensor."""
    size, coding = int(math.prod(layer["shape"])), layer["coding"]
    if coding == "raw":
        check(len(streams) == 1 and not table and not codes and layer["symbols"] == 0, "sections of a raw layer")
        return inflate(streams[0], size_of(layer))
    check(coding in ("ans", "student") or (coding == "constant" and "classes" not in layer), f"coding {coding!r}")
    check(coding == "ans" or "classes" not in layer, "classes without tables")
    check(coding == "student" or not layer.get("magnitudes"), "magnitudes without a distribution")
    spread = [spread_codes(layer["shape"], *pair) for pair in zip(codes_of(layer), codes, strict=True)]
    if coding == "student":
        count = len(layer.get("scales", []))
        symbols = spread_symbols(layer, spread[:count], spread[count:], table, streams)
        return dequantized(layer, symbols, spread[:count])
    classes = spread.pop() if "classes" in layer else [0] * size
    check(max(classes) < CLASSES and set(classes) == set(range(max(classes) + 1)), "classes")
    symbols, in_use, position, rest = [0] * size, 0, 0, iter(streams)
    for number in range(max(classes) + 1):
        members = [index for index, other in enumerate(classes) if other == number]
        in_table, roots, position = read_table(table, position)
        in_use += len(in_table)
        for begin in range(0, len(members), STREAM_SYMBOLS):
            run = members[begin : begin + STREAM_SYMBOLS]
            indices = [0] * len(run)
            if len(in_table) > 1:
                stream = next(rest, None)
                check(stream is not None, "a stream is missing")
                indices = read_stream(stream or b"", frequencies_of(roots), len(run))
            for member, index in zip(run, indices, strict=True):
                symbols[member] = in_table[index]
    check(position == len(table), "bytes behind the table")
    check(next(rest, None) is None, "a stream too many")
    check(in_use == layer["symbols"] and (in_use == 1) == (coding == "constant"), "symbols in use")
    return dequantized(layer, symbols, spread)


def dequantized(layer: dict[str, Any], symbols: list[int], spread: list[list[int]]) -> bytes:
    """The bytes of a layer's tensor, from its symbols and the codes of its scales, for every weight."""
    size, width = len(symbols), float(layer["bin_width"])
    if "trellis" in layer:
        symbols, width = levels_of(symbols, layer["shape"], layer["trellis"]), width / 4
    totals = [sum(parts) for parts in zip(*spread, strict=True)] or [0] * size
    widths = {code: scaled(width, code) for code in set(totals)} if spread else {0: width}
    pairs = list(zip(symbols, totals, strict=True))
    weights = {pair: cast(pair[0] * widths[pair[1]], layer["dtype"]) for pair in set(pairs)}
    return b"".join(weights[pair] for pair in pairs)


def spread_codes(shape: list[int], entry: dict[str, Any], section: bytes) -> list[int]:
    """The code of every weight."""
    axes = entry["axes"]
    symbols, roots, position = read_table(section, 0)
    codes = [symbols[0]] * math.prod(shape[axis] for axis in axes)
    if len(symbols) > 1:
        codes = [symbols[index] for index in read_stream(section[position:], frequencies_of(roots), len(codes))]
    check(len(symbols) > 1 or position == len(section), "a stream of codes that are all the same")
    return [codes[number] for number in slices(shape, axes)]


def slices(shape: list[int], axes: list[int]) -> list[int]:
    """For every weight the number of its slice along these axes."""
    own = [shape[axis] for axis in axes]
    strides = [math.prod(own[axes.index(axis) + 1 :]) if axis in axes else 0 for axis in range(len(shape))]
    numbers = [0]
    for length, stride in zip(shape, strides, strict=True):
        numbers = [number + stride * index for number in numbers for index in range(length)]
    return numbers


def levels_of(symbols: list[int], shape: list[int], axes: list[int]) -> list[int]:
    """The levels of a trellis: each symbol's sign follows from those before it in its lane."""
    check(ascending(axes, shape), "axes of a trellis")
    check(all(abs(symbol) < LEVEL_BOUND for symbol in symbols), "an impossible level")
    levels = []
    signs: dict[int, tuple[int, int]] = {}  # of each lane, its next one and the one before
    for symbol, lane in zip(symbols, slices(shape, axes), strict=True):
        sign, before = signs.get(lane, (1, 1))
        levels.append(sign * (4 * symbol + 1))
        signs[lane] = (-before if symbol % 2 else before), sign
    return levels


def ascending(axes: list[int], shape: list[int]) -> bool:
    return bool(axes) and axes == sorted(set(axes)) and axes[0] >= 0 and axes[-1] < len(shape)


def scaled(width: float, code: int) -> float:
    """The bin width of a code."""
    check(abs(code) <= CODE_MAX, "a code beyond its bound")
    try:
        width = math.ldexp(width * FACTORS[code % 4], code // 4)
    except OverflowError:
        width = math.inf
    check(2.0**-1022 <= width < math.inf, "a bin width that is not a normal double")
    return width


def cast(product: float, dtype: str) -> bytes:
    """A double in the layer's type, to nearest even; beyond its largest value, that value."""
    product = max(-LARGEST[dtype], min(product, LARGEST[dtype]))
    if dtype == "bfloat16":
        bits = int.from_bytes(struct.pack("<f", product), "little")
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).to_bytes(2, "little")
    return struct.pack({"float16": "<e", "float32": "<f", "float64": "<d"}[dtype], product)


# Student


def spread_symbols(
    layer: dict[str, Any], scales: list[list[int]], magnitudes: list[list[int]], table: bytes, streams: list[bytes]
) -> list[int]:
    """The symbols of a layer that are coded as far as they are spread."""
    size = int(math.prod(layer["shape"]))
    fields = Fields(table)
    freedom, relative, low_bits = fields.bits(3), fields.bits(1), fields.bits(4)
    scale, center = fields.signed(4), fields.signed(0)
    first, cells = fields.signed(4), fields.golomb(4) + 1
    check(fields.end() == len(table), "bytes behind the distribution")
    check(freedom <= 5 and abs(scale) <= CODE_MAX and 2 <= cells <= CELLS, "an impossible distribution")
    check(2 <= layer["symbols"] <= size, "symbols in use")
    low, high = first << low_bits, (first + cells << low_bits) - 1
    check(max(abs(center), -low, high) < SYMBOL_BOUND, "an impossible symbol")
    signed = [*magnitudes, *([-code for code in codes] for codes in scales if relative)]
    for end in (min, max):
        check(abs(sum(end(codes) for codes in signed)) <= CODE_MAX, "an impossible magnitude")
    sums = [sum(parts) for parts in zip(*signed, strict=True)] or [0] * size
    order = sorted(range(size), key=lambda number: sums[number])  # stable: row-major among the same
    edges = [4.0 * ((number << low_bits) - center) - (1 if "trellis" in layer else 2)
             for number in range(first, first + cells + 1)]  # fmt: skip
    frequencies = {}
    for magnitude in set(sums):
        check(abs(scale + magnitude) <= CODE_MAX, "an impossible magnitude")
        shares = [share_below(edge, scale + magnitude, 2 << freedom) for edge in edges]
        masses = [1 + int(2.0**32 * max(above - below, 0.0)) for below, above in itertools.pairwise(shares)]
        frequencies[magnitude] = proportional(masses)
    check(len(streams) == -(-size // STREAM_SYMBOLS), "number of streams")
    symbols = [0] * size
    for number, stream in enumerate(streams):
        run = order[number * STREAM_SYMBOLS : (number + 1) * STREAM_SYMBOLS]
        even = [[1 << 24 - low_bits] * (1 << low_bits)] if low_bits else []
        parts = read_runs(stream, [frequencies[sums[member]] for member in run] + even * len(run))
        for place, member in enumerate(run):
            symbols[member] = (first + parts[place] << low_bits) + (parts[len(run) + place] if low_bits else 0)
    return symbols


def share_below(quarters: float, code: int, degrees: int) -> float:
    """Student's distribution function, in exactly these operations."""
    value = quarters / 4 / math.ldexp(FACTORS[code % 4], code // 4)
    root = math.sqrt(degrees + value * value)
    share, total = degrees / (root * root), 1.0
    for number in range(degrees // 2 - 1, 0, -1):
        total = 1 + total * share * ((2 * number - 1) / (2 * number))
    return 0.5 + value / root * total / 2


# Table


class Fields:
    """The fields of a table, one after another."""

    def __init__(self, stored: bytes, begin: int = 0) -> None:
        self._text = "".join(f"{byte:08b}" for byte in stored)
        self._position = 8 * begin

    def bits(self, count: int) -> int:
        self._position += count
        check(self._position <= len(self._text), "a table is cut off")
        return int(self._text[self._position - count : self._position] or "0", 2)

    def golomb(self, order: int) -> int:
        zeros = 0
        while self.bits(1) == 0:
            zeros += 1
        check(zeros <= 40, "an impossible code")
        return (1 << (zeros + order) | self.bits(zeros + order)) - (1 << order)

    def signed(self, order: int) -> int:
        value = self.golomb(order)
        return value // 2 if value % 2 == 0 else -(value // 2) - 1

    def end(self) -> int:
        """The byte behind the last field."""
        end = -(-self._position // 8)
        check("1" not in self._text[self._position : 8 * end], "bits behind the table")
        return end


def read_table(stored: bytes, begin: int = 0) -> tuple[list[int], list[int], int]:
    """Symbols in use, the roots of their counts, and the byte behind the table."""
    fields = Fields(stored, begin)
    order, count = fields.bits(4), fields.golomb(4) + 1
    check(count <= TABLE_SYMBOLS, "too many symbols")
    symbols, roots = [fields.signed(4)], [fields.golomb(8) + 1]
    while len(symbols) < count:
        symbols.append(symbols[-1] + fields.golomb(0) + 1)
        roots.append(roots[-1] + fields.signed(order))
    check(all(1 <= root <= ROOT_MAX for root in roots), "an impossible root")
    check(max(abs(symbols[0]), abs(symbols[-1])) < SYMBOL_BOUND, "an impossible symbol")
    return symbols, roots, fields.end()


def frequencies_of(roots: list[int]) -> list[int]:
    """Frequencies in units of 2⁻²⁴."""
    return proportional([root * root for root in roots])


def proportional(masses: list[int]) -> list[int]:
    """Frequencies in proportion to masses."""
    total = sum(masses)
    frequencies = [1 + mass * (TOTAL - len(masses)) // total for mass in masses]
    frequencies[frequencies.index(max(frequencies))] += TOTAL - sum(frequencies)
    return frequencies


# Stream


def read_stream(stream: bytes, frequencies: list[int], size: int) -> list[int]:
    """The `size` symbols of a stream, as positions in the table."""
    return read_runs(stream, [frequencies] * size)


def read_runs(stream: bytes, frequencies: list[list[int]]) -> list[int]:
    """The symbols of a stream, as positions among the frequencies of each."""
    check(len(stream) % 4 == 0, "a stream of half words")
    words = list(struct.unpack(f"<{len(stream) // 4}I", stream))
    check(not words or words[-1] != 0, "the last word of a stream is 0")
    cumulative = {id(each): [0, *itertools.accumulate(each)] for each in {id(one): one for one in frequencies}.values()}
    state = 0
    for _ in range(2):
        if words:
            state = state << 32 | words.pop()
    indices = []
    for own in frequencies:
        low, starts = state & TOTAL - 1, cumulative[id(own)]
        index = bisect_right(starts, low) - 1
        indices.append(index)
        state = own[index] * (state >> 24) + low - starts[index]
        if state < 1 << 32 and words:
            state = state << 32 | words.pop()
    check(state == 0 and not words, "a stream is not used up")
    return indices
