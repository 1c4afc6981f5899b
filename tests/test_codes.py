"""Scales and classes: a layer with many bin widths and several tables, in and out of an archive, whole and refused."""

from __future__ import annotations

import copy
import json
import math
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import reference_decoder
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from riq_cli import limits
from riq_cli.archive import CodesEntry, LayerEntry, Manifest, SkeletonEntry, manifest
from riq_cli.decode import decode_layer
from riq_cli.decode.dequantize import Quantized
from riq_cli.entropy.codes import Codes
from riq_cli.errors import CorruptArchive, UnsupportedArchive
from riq_cli.model import Layer
from riq_cli.pipeline import layer_entry
from riq_cli.pipeline.layer_entry import encode_layer
from riq_cli.quantize.scalar import bin_widths, nearest, requantize, widened
from riq_cli.report import rows, totals
from tests.archives import (
    DEFLATED,
    MANIFEST,
    TABLE,
    archive_of,
    by_both_decoders,
    encoded_in_classes,
    layer_of,
    opened,
    packed,
    refused,
    written,
)


def int32(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def section_of(*codes: int) -> bytes:
    return Codes((0,), int32(*codes)).to_bytes()


def bits(*fields: str) -> bytes:
    text = "".join(fields)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


# Codes 0 and 4 of two rows by hand: order, two symbols, the first, its root 1, the gap less 1, no difference of roots.
# Behind them one word: both frequencies are 2²³, and the state goes 0 → 2²³ → 2²⁴.
SCALE = bits("0000", "10001", "10000", "100000000", "00100", "1") + struct.pack("<I", 1 << 24)
CLASSES = bits("0000", "10001", "10000", "100000000", "1", "1") + struct.pack("<I", 1 << 24)  # 0 and 1
SAME = bits("0000", "10000", "11000", "100000000")  # as many codes 4 as there should be
FIVE = bits("0000", "10000", "11010", "100000001")  # the table of symbol 5 alone, root 2


def scaled(section: bytes = SCALE, **keys: Any) -> dict[str, Any]:
    """A manifest whose layer has symbol 3 in two rows of bin widths 0.5 and 1."""
    document = copy.deepcopy(MANIFEST) | {"requires": ["scales"]}
    document["layers"][0] |= {
        "scales": [{"axes": [0], "bytes": len(section)}],
        "crc32": zlib.crc32(struct.pack("<6f", *[1.5] * 3, *[3.0] * 3)),
    } | keys
    return document


def classed(section: bytes = CLASSES, **keys: Any) -> dict[str, Any]:
    """A manifest whose layer has symbol 3 in its first row and symbol 5 in its second."""
    document = copy.deepcopy(MANIFEST) | {"requires": ["classes"]}
    document["layers"][0] |= {
        "classes": {"axes": [0], "bytes": len(section)},
        "coding": "ans",
        "crc32": zlib.crc32(struct.pack("<6f", *[1.5] * 3, *[2.5] * 3)),
        "symbols": 2,
        "table": 6,
    } | keys
    return document


def with_scale(section: bytes, **keys: Any) -> bytes:
    return packed(scaled(section, **keys), DEFLATED + section + TABLE)


def with_classes(section: bytes, tables: bytes = TABLE + FIVE, **keys: Any) -> bytes:
    return packed(classed(section, **{"table": len(tables)} | keys), DEFLATED + section + tables)


# By hand


@pytest.mark.parametrize(
    ("data", "weights"),
    [
        (packed(scaled(), DEFLATED + SCALE + TABLE), [1.5] * 3 + [3.0] * 3),
        (packed(classed(), DEFLATED + CLASSES + TABLE + FIVE), [1.5] * 3 + [2.5] * 3),
        (with_scale(SAME, crc32=zlib.crc32(struct.pack("<6f", *[3.0] * 6))), [3.0] * 6),
        (packed(scaled(b"", scales=[], crc32=MANIFEST["layers"][0]["crc32"]), DEFLATED + TABLE), [1.5] * 6),
    ],
    ids=["scales", "classes", "codes that are all the same have no stream", "an empty list of scales is none"],
)
def test_archives_by_hand_are_read(data: bytes, weights: list[float]) -> None:
    assert by_both_decoders(data) == struct.pack("<6f", *weights)


def test_scales_are_written_as_by_hand() -> None:
    layer = layer_of([[1.5] * 3, [3.0] * 3])
    scale = Codes((0,), int32(0, 4))
    with patch.object(layer_entry, "_POOR", math.inf):
        archive = archive_of(layer, nearest(layer.values, "float32", 0.5, (scale,)))
    data = written(archive)
    assert section_of(4) == SAME
    assert json.loads(zlib.decompress(data[24 : 24 + archive.manifest_bytes])) == scaled()
    assert data[24 + archive.manifest_bytes :] == DEFLATED + SCALE + TABLE


def test_a_bin_width_may_be_numpys() -> None:
    layer = layer_of(np.random.default_rng(2).normal(size=(20, 30)))
    scale = Codes((0,), np.arange(20, dtype=np.int32) % 3)
    for scales in ((), (scale,)):
        ours = archive_of(layer, nearest(layer.values, "float32", np.float64(0.3), scales))
        assert written(ours) == written(archive_of(layer, nearest(layer.values, "float32", 0.3, scales)))


# What is refused


@pytest.mark.parametrize("feature", ["scales", "classes"])
def test_a_feature_is_known_and_required(feature: str, monkeypatch: pytest.MonkeyPatch) -> None:
    document = (scaled() if feature == "scales" else classed()) | {"requires": []}
    message = f"layer 'w': {feature} are not required; the archive is damaged"
    refused(packed(document, DEFLATED), CorruptArchive, message)
    monkeypatch.setattr(manifest, "FEATURES", frozenset())  # as in the first version
    data = with_scale(SCALE) if feature == "scales" else with_classes(CLASSES)
    refused(data, UnsupportedArchive, f"needs a newer riq: this one does not know {feature}")


def test_an_archive_requires_what_its_layers_need() -> None:
    entry = LayerEntry("w", "MatMul", ("a",), "float16", (3, 4), "ans", 5, 2.0, 7, (8, 16), 0, 0.5)
    skeleton = SkeletonEntry(1, 1, 0)
    assert Manifest(skeleton, (entry,)).requires == ()
    finer = replace(entry, scales=(CodesEntry((0,), 9), CodesEntry((1,), 3)), classes=CodesEntry((1,), 4))
    assert Manifest(skeleton, (entry, finer)).requires == ("classes", "scales")
    assert (finer.sections, finer.stored, finer.rate) == ((9, 3, 4, 7, 8, 16), 47, 8 * 47 / 12)


NO_AXES = "codes along what are not ascending axes of its shape"
FAR = limits.CODES + 1
RAW = {"coding": "raw", "streams": [4], "symbols": 0, "table": 0}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        *((scaled(scales=value), "'scales' is not a list of objects") for value in (None, True, 1, "x", {}, [1], [[]])),
        *((classed(classes=value), "'classes' is not an object") for value in (None, True, 1, "x", [], [{}])),
        (scaled(scales=[{"axes": [0], "bytes": 8}] * 2), "two scales along the same axes"),
        (scaled(scales=[{"axes": [0], "bytes": 8}] * 5), "5 scales; at most 4 are read"),
        (scaled(shape=[]), NO_AXES),
        (scaled(shape=[FAR, 2]), f"{FAR} codes along some axes; at most {limits.CODES} are read"),
        (classed(shape=[FAR, 2], streams=[4] * 33), f"{FAR} codes along some axes; at most {limits.CODES} are read"),
        (scaled(**RAW), "scales with coding 'raw'"),
        (classed(**RAW), "classes with coding 'raw'"),
        (classed(coding="constant", symbols=1), "classes with coding 'constant'"),
        (classed(streams=[4] * 65), "65 streams; at most 64 are possible"),  # for few weights: one each
        *(
            (classed(symbols=symbols), f"{symbols} symbols with coding 'ans'")
            for symbols in (0, 1, limits.CLASSES * limits.TABLE_SYMBOLS + 1)
        ),
    ],
)
def test_manifests_that_no_encoder_writes(document: dict[str, Any], message: str) -> None:
    refused(packed(document), CorruptArchive, f"layer 'w': {message}; the archive is damaged")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"axes": [0]}, "'bytes' is missing"),
        ({"bytes": 8}, "'axes' is missing"),
        *(({"axes": [0], "bytes": size}, "'bytes' is not a non-negative integer") for size in (-1, 1 << 63, True)),
        *(
            ({"axes": axes, "bytes": 8}, "'axes' is not a list of non-negative integers")
            for axes in (0, [-1], [0.0], [False], [[0]])
        ),
        *(
            ({"axes": axes, "bytes": 8}, NO_AXES)
            for axes in ([], [2], [0, 2], [1, 0], [0, 0], [0, 1, 1], [(1 << 63) - 1], [0] * 1000)
        ),
    ],
)
def test_codes_whose_keys_are_not_what_they_should_be(entry: dict[str, Any], message: str) -> None:
    for document, where in ((scaled(scales=[entry]), "scales[0]"), (classed(classes=entry), "classes")):
        where = "" if message == NO_AXES else f"{where}: "
        refused(packed(document), CorruptArchive, f"layer 'w': {where}{message}; the archive is damaged")


NOT_HELD = "a stream does not hold the symbols it should"
BEYOND = "a code of bin widths beyond ±256"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (with_scale(b""), "a table is cut off"),
        (with_scale(SCALE[:2]), "a table is cut off"),
        (with_scale(SCALE[:-1]), NOT_HELD),
        (with_scale(SCALE + bytes(4)), NOT_HELD),
        (with_scale(SCALE + struct.pack("<I", 1)), NOT_HELD),
        (with_scale(SAME + b"\0"), "codes that are all the same have a stream"),
        (with_scale(SAME + struct.pack("<I", 1)), "codes that are all the same have a stream"),
        (with_scale(section_of(0, 257)), BEYOND),
        (with_scale(section_of(-257, 0)), BEYOND),
        (with_scale(section_of(-(2**31) + 1, 2**31 - 1)), BEYOND),
        (with_scale(section_of(4, 0)), "checksum differs"),
        (with_scale(SCALE[:4]), "checksum differs"),  # an empty stream: the first code twice
        (with_classes(section_of(0, 2)), "a class without weights"),
        (with_classes(section_of(1, 1)), "a class without weights"),
        (with_classes(section_of(-1, 0)), "a class that is not below 64"),
        (with_classes(section_of(0, 64)), "a class that is not below 64"),
        (with_classes(section_of(0, 2**31 - 1)), "a class that is not below 64"),
        (with_classes(section_of(1, 0)), "checksum differs"),
        (with_classes(CLASSES, TABLE), "a table is cut off"),
        (with_classes(CLASSES, TABLE + FIVE[:2]), "a table is cut off"),
        (with_classes(CLASSES, TABLE + FIVE + TABLE), "a table is longer than its symbols"),
        (with_classes(CLASSES, TABLE + FIVE + b"\0"), "a table is longer than its symbols"),
        (with_classes(CLASSES, TABLE[:-1] + bytes([TABLE[-1] | 1]) + FIVE), "a table is longer than its symbols"),
        (with_classes(CLASSES, symbols=3), "the table does not have the symbols that were announced"),
        (
            packed(classed(streams=[4]), DEFLATED + CLASSES + TABLE + FIVE + struct.pack("<I", 1)),
            "1 streams instead of 0",
        ),
        *(
            (with_scale(section_of(*codes), bin_width=width), "a bin width that is not a normal double")
            for width, codes in [
                (1.2e308, (0, 3)), (1.7e308, (0, 1)), (1e300, (0, 200)), (1e-300, (0, -200)), (5e-324, (0, 4)),
                (4e-308, (-4, 0)),
            ]
        ),
    ],
)  # fmt: skip
def test_sections_that_are_damaged(data: bytes, message: str) -> None:
    refused(data, CorruptArchive, f"layer 'w': {message}; the archive is damaged")
    with pytest.raises(reference_decoder.FormatError):
        reference_decoder.decode(data)


def test_the_sum_of_scales_is_bounded_not_each() -> None:
    wide, back = section_of(300, 301), section_of(-300, -300, -300)
    keys = {"scales": [{"axes": [0], "bytes": len(wide)}, {"axes": [1], "bytes": len(back)}]}
    values = struct.pack("<6f", *[1.5] * 3, *[1.5 * 2**0.25] * 3)
    data = packed(scaled(crc32=zlib.crc32(values), **keys), DEFLATED + wide + back + TABLE)
    assert by_both_decoders(data) == values
    far = section_of(-2_000_000_000, -2_000_000_000, -2_000_000_000)
    keys = {"scales": [{"axes": [1], "bytes": len(far)}, {"axes": [0, 1], "bytes": 0}]}
    every = section_of(*[-2_000_000_000] * 6)
    keys["scales"][1]["bytes"] = len(every)
    data = packed(scaled(**keys), DEFLATED + far + every + TABLE)
    refused(data, CorruptArchive, "layer 'w': a code of bin widths beyond ±256; the archive is damaged")


# Round trips


@st.composite
def finer(draw: st.DrawFn) -> tuple[Layer, float, tuple[Codes, ...], Codes | None]:
    """A layer, its bin width, and codes of all kinds."""
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    subsets = st.sets(st.integers(0, len(shape) - 1), min_size=1).map(lambda axes: tuple(sorted(axes)))
    scales = []
    for axes in draw(st.lists(subsets, max_size=4, unique=True)):
        reach = draw(st.sampled_from([0, 1, 5, 30]))
        values = random.integers(-reach, reach + 1, [shape[axis] for axis in axes])
        scales.append(Codes(axes, values.astype(np.int32)))
    classes = None
    if draw(st.booleans()):
        axes = draw(subsets)
        numbers = random.integers(0, draw(st.integers(1, 64)), [shape[axis] for axis in axes])
        numbers = np.unique(numbers, return_inverse=True)[1].reshape(numbers.shape)  # without holes
        classes = Codes(axes, numbers.astype(np.int32))
    values = random.laplace(size=shape) * draw(st.sampled_from([0, 1, 30]))
    return layer_of(values, draw(st.sampled_from([*limits.STORAGE]))), 0.37, tuple(scales), classes


@given(finer())
def test_layers_with_codes_come_back(drawn: tuple[Layer, float, tuple[Codes, ...], Codes | None]) -> None:
    layer, width, scales, classes = drawn
    quantized = nearest(layer.values, layer.dtype, width, scales)
    widths = np.full(layer.shape, width)
    for index in np.ndindex(*layer.shape):
        code = sum(int(scale.values[tuple(index[axis] for axis in scale.axes)]) for scale in scales)
        widths[index] = math.ldexp(width * [1.0, 2**0.25, 2**0.5, 2**0.75][code % 4], code // 4)
    exact = widened(layer.values, layer.dtype)
    product = np.rint(exact / widths) * widths + 0.0
    largest = reference_decoder.LARGEST[layer.dtype]
    expected = layer_of(np.clip(product, -largest, largest), layer.dtype).values.tobytes()
    with patch.object(layer_entry, "_POOR", math.inf):  # however small it is
        archive = archive_of(layer, quantized, classes if np.ptp(quantized.levels) else None)
    assert archive.manifest.layers[0].coding != "raw"
    assert by_both_decoders(written(archive)) == expected
    again = np.empty_like(layer.values)
    requantize(layer.values, layer.dtype, bin_widths(width, scales, len(layer.shape)), again)
    assert again.tobytes() == expected
    for begin, end in ((0, 1), (layer.size // 2, layer.size)):
        part = quantized.restored(layer.dtype, layer.shape, begin, end).tobytes()
        size = layer.values.itemsize
        assert part == expected[begin * size : end * size]


def test_blocks_meet_at_any_axis() -> None:
    """Larger than the blocks in which bin widths are looked up and classes are sorted."""
    random = np.random.default_rng(4)
    layer = layer_of(random.normal(size=(7, 300, 331)), "float16")
    scales = (
        Codes((1,), random.integers(-9, 9, 300).astype(np.int32)),
        Codes((0, 2), random.integers(-3, 3, (7, 331)).astype(np.int32)),
    )
    numbers = np.arange(7 * 300, dtype=np.int32).reshape(7, 300) % 5
    codes = scales[0].values[None, :, None].astype(int) + scales[1].values[:, None, :]
    expected = np.ldexp(0.2 * (2.0 ** (np.arange(4) / 4))[codes % 4], codes // 4)
    expected = (np.rint(layer.values / expected) * expected + 0.0).astype(np.float16)
    for classes in (Codes((0, 1), numbers), Codes((2,), np.arange(331, dtype=np.int32) % 3)):
        quantized = nearest(layer.values, "float16", 0.2, scales)
        entry, sections = encoded_in_classes(layer, quantized, classes)
        assert decode_layer(entry, sections, None).tobytes() == expected.tobytes()
        with ThreadPoolExecutor(2) as executor:
            assert decode_layer(entry, sections, executor).tobytes() == expected.tobytes()


def test_a_large_class_has_several_streams() -> None:
    size = limits.STREAM_SYMBOLS
    values = np.zeros((3, size + 9), np.float32)
    values[0, ::1000], values[2, 7] = 1, 2
    layer = layer_of(values)
    quantized = nearest(layer.values, "float32", 1.0)
    entry, sections = encoded_in_classes(layer, quantized, Codes((0,), int32(1, 0, 1)))
    assert (entry.symbols, len(entry.streams)) == (1 + 3, 3)  # class 0 is constant, class 1 twice a stream and a bit
    assert decode_layer(entry, sections, None).tobytes() == values.tobytes()


def test_codes_that_do_not_pay_leave_a_layer_raw() -> None:
    layer = layer_of(np.zeros((4, 4)), "float16")
    scale = Codes((0, 1), np.random.default_rng(7).integers(-200, 200, (4, 4)).astype(np.int32))
    quantized = Quantized(np.arange(16, dtype=np.int32) % 2, 1.0, (scale,))
    entry, _ = encode_layer(layer, quantized, None)
    assert (entry.coding, entry.scales, Manifest(SkeletonEntry(1, 1, 0), (entry,)).requires) == ("raw", (), ())


def mixed() -> tuple[Layer, Quantized, Codes]:
    random = np.random.default_rng(3)
    layer = layer_of(random.normal(size=(8, 5, 6)) * random.choice([0.1, 1, 8], (8, 1, 1)))
    scales = (
        Codes((0,), random.integers(-3, 4, 8).astype(np.int32)),
        Codes((1, 2), random.integers(-2, 3, (5, 6)).astype(np.int32)),
    )
    classes = Codes((0,), int32(0, 1, 2, 0, 1, 2, 1, 0))
    return layer, nearest(layer.values, "float32", 0.3, scales), classes


def test_a_report_counts_codes() -> None:
    archive = opened(written(archive_of(*mixed())))
    [row] = rows(archive)
    scales = archive.manifest.layers[0].scales
    assert row["scales"] == [
        {"axes": [0], "codes": 8, "bytes": scales[0].bytes},
        {"axes": [1, 2], "codes": 30, "bytes": scales[1].bytes},
    ]
    assert row["classes"]["codes"] == 8
    codes = sum(scale["bytes"] for scale in row["scales"]) + row["classes"]["bytes"]
    sums = totals(archive)
    assert sums.code_bytes == codes
    assert row["bytes"] == codes + sums.table_bytes + sums.stream_bytes
    assert sums.rate == row["rate"] == 8 * row["bytes"] / archive.manifest.layers[0].size
    assert sums.archive_bytes == row["bytes"] + sums.header_bytes + sums.manifest_bytes + sums.skeleton_bytes
