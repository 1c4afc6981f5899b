"""Two decoders, one specification: what riq writes, FORMAT.md explains."""

from __future__ import annotations

import ast
import io
import math
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import reference_decoder
from hypothesis import example, given
from hypothesis import strategies as st
from reference_decoder import FormatError

from riq_cli.archive import DTYPE_BYTES, Archive, Manifest, SkeletonEntry, deflate
from riq_cli.decode import decode_layers
from riq_cli.decode.dequantize import Quantized
from riq_cli.limits import STORAGE
from riq_cli.model import Layer
from riq_cli.pipeline.layer_entry import encode_layer
from riq_cli.quantize.scalar import nearest

SKELETON = b"a skeleton"


def archive_of(*layers: tuple[str, Any, float | None]) -> bytes:
    """An archive of (dtype, values, bin width)."""
    entries, sections = [], [deflate(SKELETON)]
    for number, (dtype, values, width) in enumerate(layers):
        stored = values.astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16) if dtype == "bfloat16" else values
        stored = stored.astype(STORAGE[dtype])
        layer = Layer(f"w{number}", "Conv", (f"graph.initializer[{number}]",), dtype, values.shape, stored)
        entry, parts = encode_layer(layer, None if width is None else nearest(stored, dtype, width), None)
        entries.append(entry)
        sections += parts
    skeleton = SkeletonEntry(len(sections[0]), len(SKELETON), zlib.crc32(SKELETON))
    file = io.BytesIO()
    Archive.build(Manifest(skeleton, tuple(entries)), sections).write(file)
    return file.getvalue()


def both(data: bytes) -> list[bytes]:
    """The tensors of an archive, after the two decoders agreed on them."""
    skeleton, layers = reference_decoder.decode(data)
    with Archive.open(io.BytesIO(data)) as archive:
        assert skeleton == archive.skeleton()
        ours = list(decode_layers(archive))
    assert [entry["name"] for entry, _ in layers] == [entry.name for entry, _ in ours]
    assert [tuple(entry["shape"]) for entry, _ in layers] == [values.shape for _, values in ours]
    assert [tensor for _, tensor in layers] == [values.tobytes() for _, values in ours]
    return [tensor for _, tensor in layers]


SAMPLE = archive_of(
    ("float32", np.random.default_rng(0).normal(size=(9, 8)), 0.4),
    ("float16", np.full((2, 2), 3.0), 0.5),
    ("bfloat16", np.arange(5.0), None),
)


def test_it_needs_the_standard_library_alone() -> None:
    tree = ast.parse(Path(reference_decoder.__file__).read_text("utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert names
    lines = Path(reference_decoder.__file__).read_text("utf-8").splitlines()
    assert sum(map(bool, map(str.strip, lines))) < 330
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(DTYPE_BYTES)),
            st.sampled_from([(), (1,), (7,), (3, 4), (2, 3, 50), (1000,)]),
            st.integers(0, 99),
            st.one_of(st.none(), st.floats(0.01, 4)),
        ),
        max_size=4,
    )
)
@example([])
def test_both_decoders_give_the_same_bytes(layers: list[tuple[str, tuple[int, ...], int, float | None]]) -> None:
    values = [
        (dtype, np.asarray(np.random.default_rng(seed).laplace(size=shape)), width)
        for dtype, shape, seed, width in layers
    ]
    assert len(both(archive_of(*values))) == len(layers)


@given(
    st.sampled_from(sorted(DTYPE_BYTES)),
    st.integers(-(1 << 23), 1 << 23),
    st.one_of(st.floats(1e-320, 1e300), st.floats(1e-50, 1e45), st.floats(1e-10, 1e5)),
)
@example("float16", -1, 1e-10)  # below the smallest subnormal: the sign stays
@example("float16", 1, 65519.99)  # the last that is rounded to 65504
@example("float16", 1, 65520.0)  # the first that would be infinite
@example("float16", 3, 2.0**-25)  # a tie between subnormals
@example("bfloat16", -1, 3.4e38)
@example("bfloat16", 1, 3.3961775292304957e38)
@example("float32", 1, 3.4028235677973366e38)
@example("float64", -(1 << 23), 1e305)
def test_the_cast_is_the_same_to_the_last_bit(dtype: str, symbol: int, width: float) -> None:
    expected = Quantized(np.array([symbol], np.int32), width).restored(dtype, (1,))
    assert reference_decoder.cast(symbol * width, dtype) == expected.tobytes()


def test_what_is_too_large_becomes_the_largest() -> None:
    assert reference_decoder.cast(65520.0, "float16") == struct.pack("<e", 65504.0)
    assert reference_decoder.cast(-1e39, "bfloat16") == b"\x7f\xff"
    assert reference_decoder.cast(-math.inf, "float64") == struct.pack("<d", -sys.float_info.max)


def test_weights_at_the_end_of_a_type_are_restored_by_both_decoders() -> None:
    layers = [
        (dtype, np.array([largest, -largest, largest / 3]), min(factor * largest, sys.float_info.max))
        for dtype, largest in reference_decoder.LARGEST.items()
        for factor in (0.6, 1.5)
    ]
    restored = both(archive_of(*layers))
    for (dtype, _, _), tensor in zip(layers, restored, strict=True):
        assert tensor[: DTYPE_BYTES[dtype]] == reference_decoder.cast(math.inf, dtype)


def test_it_refuses_what_is_damaged() -> None:
    both(SAMPLE)
    for position in range(len(SAMPLE)):
        data = bytearray(SAMPLE)
        data[position] ^= 1 << position % 8
        try:
            _, layers = reference_decoder.decode(bytes(data))
        except FormatError:
            continue
        # The zlib header of the raw layer has bits that change nothing.
        assert [tensor for _, tensor in layers] == both(SAMPLE)


def test_it_refuses_what_is_cut_off_or_too_long() -> None:
    for length in range(len(SAMPLE)):
        with pytest.raises(FormatError):
            reference_decoder.decode(SAMPLE[:length])
    with pytest.raises(FormatError, match="bytes behind the last section"):
        reference_decoder.decode(SAMPLE + b"\0")


def test_it_refuses_more_than_its_bound() -> None:
    needed = len(SKELETON) + 9 * 8 * 4 + 4 * 2 + 5 * 2
    reference_decoder.decode(SAMPLE, needed)
    with pytest.raises(FormatError, match="too large"):
        reference_decoder.decode(SAMPLE, needed - 1)
