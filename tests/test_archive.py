"""The container: what is written is read back, and one hand-written byte string for each thing that can be wrong."""

from __future__ import annotations

import copy
import io
import json
import os
import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from riq_cli import limits
from riq_cli.archive import Archive, LayerEntry, Manifest, SkeletonEntry, deflate, inflate
from riq_cli.decode import dequantize
from riq_cli.errors import (
    ArchiveError,
    CorruptArchive,
    LimitExceeded,
    NotAnArchive,
    OutputError,
    UnsupportedArchive,
)
from riq_cli.model import Layer
from riq_cli.pipeline.layer_entry import encode_layer
from riq_cli.quantize import scalar
from tests.archives import (
    BOUND,
    MAGIC,
    MANIFEST,
    SECTIONS,
    SKELETON,
    TABLE,
    VALUES,
    Edit,
    edited,
    mutations,
    opened,
    packed,
    paths,
    refused,
    refused_or_restored,
    restored,
    traced,
    written,
)


def changed(**keys: Any) -> dict[str, Any]:
    """The manifest with other values in its layer."""
    manifest = copy.deepcopy(MANIFEST)
    manifest["layers"][0] |= keys
    return manifest


def without(key: str, layer: bool = False) -> dict[str, Any]:
    manifest = copy.deepcopy(MANIFEST)
    del (manifest["layers"][0] if layer else manifest)[key]
    return manifest


def layer(name: str, values: Any, dtype: str | None = None, number: int = 0) -> Layer:
    values = np.asarray(values)
    return Layer(name, "MatMul", (f"graph.initializer[{number}]",), dtype or values.dtype.name, values.shape, values)


def nearest(item: Layer, width: float | None) -> dequantize.Quantized | None:
    return None if width is None else scalar.nearest(item.values, item.dtype, width)


def build(*layers: tuple[Layer, float | None], **fields: Any) -> Archive:
    """An archive of layers, each with its bin width."""
    encoded = [encode_layer(item, nearest(item, width), None) for item, width in layers]
    skeleton = deflate(SKELETON)
    entry = SkeletonEntry(len(skeleton), len(SKELETON), zlib.crc32(SKELETON))
    manifest = Manifest(entry, tuple(entry for entry, _ in encoded), **fields)
    return Archive.build(manifest, [skeleton, *(section for _, sections in encoded for section in sections)])


def small() -> Archive:
    """Every coding and every dtype, in under a kilobyte."""
    rng = np.random.default_rng(0)
    return build(
        (layer("half", rng.normal(size=(8, 9)).astype(np.float16), number=0), 0.3),
        (layer("brain", rng.integers(0x3F00, 0x4000, 80).astype(np.uint16), "bfloat16", number=1), 0.1),
        (layer("single", rng.normal(size=(5, 4, 4)).astype(np.float32), number=2), 0.5),
        (layer("double", rng.normal(size=33), number=3), 0.7),
        (layer("same", np.full(7, 2.25), number=4), 0.25),
        (layer("raw", np.array([1, np.nan, np.inf], np.float32), number=5), None),
        source={"bytes": 12},
    )


# Round trip


def test_the_archive_by_hand_is_read() -> None:
    skeleton, (only,) = restored(packed(MANIFEST))
    assert skeleton == SKELETON
    assert (only.name, only.op, only.places, only.dtype) == ("w", "MatMul", ("graph.initializer[0]",), "float32")
    assert only.values.tolist() == [[1.5] * 3] * 2
    assert only.values.dtype == np.float32


def test_riq_writes_the_archive_by_hand() -> None:
    archive = build((layer("w", np.full((2, 3), 1.5, np.float32)), 0.5))
    data = written(archive)
    assert data[:12] == MAGIC + b"\x01\x00\x00\x00"
    checksum, length = struct.unpack_from("<IQ", data, 12)
    stored = data[24 : 24 + length]
    assert checksum == zlib.crc32(stored)
    assert zlib.decompress(stored) == json.dumps(MANIFEST, separators=(",", ":")).encode()
    assert zlib.decompress(data[24 + length : -3]) == SKELETON
    assert data[-3:] == TABLE


def test_a_saved_archive_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "model.riqz"
    archive = small()
    archive.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.riqz"]
    with Archive.open(path) as again:
        assert again.manifest == archive.manifest
        assert again.size == archive.size == path.stat().st_size
        assert again.manifest_bytes == archive.manifest_bytes
        assert again.skeleton() == archive.skeleton() == SKELETON
        assert list(again.layer_sections()) == list(archive.layer_sections())
        assert written(again) == path.read_bytes()


def test_what_an_archive_holds_is_what_was_encoded() -> None:
    _, layers = restored(written(small()))
    assert [item.name for item in layers] == ["half", "brain", "single", "double", "same", "raw"]
    assert [item.dtype for item in layers] == ["float16", "bfloat16", "float32", "float64", "float64", "float32"]
    assert [item.shape for item in layers] == [(8, 9), (80,), (5, 4, 4), (33,), (7,), (3,)]
    single = np.random.default_rng(0)
    single.normal(size=(8, 9)), single.integers(0x3F00, 0x4000, 80)
    expected = np.rint(single.normal(size=(5, 4, 4)).astype(np.float32) / 0.5) * 0.5 + 0.0
    assert layers[2].values.tobytes() == expected.astype(np.float32).tobytes()
    assert layers[4].values.tolist() == [2.25] * 7
    assert layers[5].values.tobytes() == np.array([1, np.nan, np.inf], np.float32).tobytes()


def test_the_same_layers_give_the_same_bytes() -> None:
    assert written(small()) == written(small())


def test_an_existing_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "model.riqz"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        small().save(path)
    assert path.read_bytes() == b"old"
    small().save(path, overwrite=True)
    assert path.read_bytes() == written(small())


def test_an_archive_may_be_saved_over_itself(tmp_path: Path) -> None:
    path = tmp_path / "model.riqz"
    small().save(path)
    with Archive.open(path) as archive:
        archive.described(result={"k": 3}).save(path, overwrite=True)
    with Archive.open(path) as archive:
        assert archive.manifest == replace(small().manifest, result={"k": 3})
        assert list(archive.layer_sections()) == list(small().layer_sections())


@pytest.mark.parametrize("from_file", [False, True])
def test_described_keeps_the_sections(from_file: bool) -> None:
    archive = opened(written(small())) if from_file else small()
    other = archive.described(result={"deviation": 0.1}, settings={"target": 0.2}, calibration={"a": "é"})
    assert other.manifest == replace(
        archive.manifest, result={"deviation": 0.1}, settings={"target": 0.2}, calibration={"a": "é"}
    )
    assert archive.manifest == small().manifest
    data = written(other)
    assert len(data) == other.size
    again = opened(data)
    assert again.manifest == other.manifest
    assert again.skeleton() == SKELETON
    assert list(again.layer_sections()) == list(other.layer_sections()) == list(small().layer_sections())


def test_an_archive_without_layers_is_read() -> None:
    archive = opened(written(build()))
    assert archive.skeleton() == SKELETON
    assert list(archive.layer_sections()) == []


def test_sizes_and_rates_of_an_entry() -> None:
    entry = LayerEntry("w", "MatMul", ("a", "b"), "float16", (3, 4), "ans", 5, 2.0, 7, (8, 16), 0, 0.5)
    assert (entry.size, entry.stored, entry.restored, entry.rate) == (12, 31, 48, 8 * 31 / 12)
    assert replace(entry, shape=()).size == 1
    assert Manifest(SkeletonEntry(1, 100, 0), (entry, entry)).restored == 196


def test_a_pipe_is_read() -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as source:
        with open(writer, "wb") as sink:
            sink.write(written(small()))
        assert list(Archive.open(source).layer_sections()) == list(small().layer_sections())


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Archive.open(tmp_path / "missing.riqz")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are not listed here")
def test_a_file_is_open_only_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_open() -> bool:
        return any(os.path.realpath(entry) == str(path) for entry in Path("/proc/self/fd").iterdir())

    path = tmp_path.resolve() / "model.riqz"
    small().save(path)
    monkeypatch.chdir(tmp_path)
    archive = Archive.open("model.riqz")
    assert not is_open()
    monkeypatch.chdir("/")  # the path that was given is not taken for another one
    sections = archive.layer_sections()
    next(sections)
    assert is_open()
    assert len(list(sections)) == 5
    assert not is_open()
    sections = archive.layer_sections()
    next(sections)
    sections.close()
    assert not is_open()
    assert archive.skeleton() == SKELETON
    assert written(archive) == path.read_bytes()
    assert not is_open()


@pytest.mark.parametrize("change", [-1, 1, -100])
def test_a_file_that_has_changed_since_it_was_opened_is_refused(tmp_path: Path, change: int) -> None:
    path = tmp_path / "model.riqz"
    small().save(path)
    archive = Archive.open(path)
    path.write_bytes((written(small()) + b"\0")[: archive.size + change])
    for read in (archive.skeleton, lambda: list(archive.layer_sections()), lambda: written(archive)):
        with pytest.raises(CorruptArchive, match=r"^the archive has changed since it was opened; open it again$"):
            read()


def test_a_file_that_is_cut_off_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.riqz"
    rng = np.random.default_rng(0)
    build(*((layer(f"w{i}", rng.normal(size=40_000), number=i), 0.01) for i in range(3))).save(path)
    sections = Archive.open(path).layer_sections()
    next(sections)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CorruptArchive, match=r"^the archive is cut off$"):
        list(sections)


def test_an_archive_that_cannot_be_read_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "model.riqz"
    small().save(path)
    archive = Archive.open(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):  # not an OutputError: it is not the copy that is to blame
        archive.save(tmp_path / "copy.riqz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_named_pipe_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = Thread(target=lambda: path.write_bytes(written(small())))
    writer.start()
    archive = Archive.open(path)
    writer.join()
    assert archive.skeleton() == SKELETON
    assert list(archive.layer_sections()) == list(small().layer_sections())


@pytest.mark.parametrize("data", [b"", packed(MANIFEST)])
def test_a_stream_that_was_given_stays_open(data: bytes) -> None:
    file = io.BytesIO(data)
    try:
        list(Archive.open(file).layer_sections())
    except NotAnArchive:
        assert data == b""
    assert not file.closed


def test_keys_that_are_not_known_are_ignored() -> None:
    manifest = changed(rows=[1, 2], offsets={"a": None})
    manifest["skeleton"]["note"] = manifest["future"] = [1.5, None, True]
    assert restored(packed(manifest))[1][0].values.tolist() == [[1.5] * 3] * 2


@pytest.mark.parametrize(
    "place",
    [
        "graph.initializer[0]",
        "graph.node[5].attribute[0].t",
        "graph.node[7].attribute[1].g.initializer[0]",
        "graph.node[7].attribute[1].graphs[2].node[0].attribute[0].g.node[123456789].attribute[3].t",
        "functions[0].node[2].attribute[0].t",
    ],
)
def test_places_of_tensors_are_accepted(place: str) -> None:
    assert restored(packed(changed(tensors=[place])))[1][0].places == (place,)


def test_a_tensor_without_dimensions_has_one_weight() -> None:
    entry = changed(shape=[], crc32=zlib.crc32(struct.pack("<f", 1.5)))
    assert restored(packed(entry))[1][0].values.shape == ()


# Errors: one byte string for each thing that can be wrong

Refused = tuple[bytes, type[ArchiveError], str]
NAMED = "layer 'w'"
NEWER = "this riq reads version 1: install a newer one"


def corrupt(message: str, manifest: Any = MANIFEST, sections: bytes = SECTIONS, **header: int) -> Refused:
    return packed(manifest, sections, **header), CorruptArchive, f"{message}; the archive is damaged"


def layer_of(message: str, sections: bytes = SECTIONS, **keys: Any) -> Refused:
    return corrupt(f"{NAMED}: {message}", changed(**keys), sections)


def skeleton_of(**keys: Any) -> dict[str, Any]:
    return MANIFEST | {"skeleton": MANIFEST["skeleton"] | keys}


def stored_as(stored: bytes) -> bytes:
    return MAGIC + struct.pack("<HHIQ", 1, 0, zlib.crc32(stored), len(stored)) + stored


def flipped(data: bytes, byte: int) -> bytes:
    return data[:byte] + bytes([data[byte] ^ 1]) + data[byte + 1 :]


WHOLE = packed(MANIFEST)
SIZED = "the manifest does not have the size that was announced; the archive is damaged"
HEADER: dict[str, Refused] = {
    "magic, cut off": (MAGIC[:-1], NotAnArchive, "not a riq archive, or a damaged one"),
    "magic, line ends changed": (
        MAGIC[:5] + b"\n\x1a" + bytes(99), NotAnArchive, "not a riq archive, or a damaged one",
    ),
    "an ONNX model": (
        b"\x08\x08\x12\x04riqs", NotAnArchive,
        "not a riq archive but an ONNX model; riq compress makes an archive of it",
    ),
    "empty": (b"", NotAnArchive, "not a riq archive but an empty file; get it once more"),
    "anything": (bytes(100), NotAnArchive, "not a riq archive"),
    **{f"{n} bytes": (WHOLE[:n], CorruptArchive, "the archive is cut off in its header") for n in (8, 23)},
    **{
        f"version {n}": (packed(MANIFEST, version=n), UnsupportedArchive, f"archive version {n}; {NEWER}")
        for n in (2, 65535)
    },
    "version 2 before all else": (
        MAGIC + struct.pack("<HHIQ", 2, 7, 0, 1 << 63), UnsupportedArchive, f"archive version 2; {NEWER}",
    ),
    "version 0": corrupt("unknown version 0", version=0),
    "reserved": corrupt("the header's reserved field is not 0", reserved=0x8000),
    **{
        f"{n} bytes of manifest": (
            packed(MANIFEST, length=n), LimitExceeded, f"the manifest has {n} bytes; at most 16777216 are read",
        )
        for n in ((16 << 20) + 1, (1 << 64) - 1)
    },
    "30 bytes": (WHOLE[:30], CorruptArchive, "the archive is cut off in its manifest"),
    "a short manifest": (packed(MANIFEST, length=16 << 20), CorruptArchive, "the archive is cut off in its manifest"),
    "checksum": corrupt("the manifest's checksum differs", checksum=1),
    "a flipped bit": (
        flipped(WHOLE, 40), CorruptArchive, "the manifest's checksum differs; the archive is damaged",
    ),
    "bytes behind the manifest": (stored_as(zlib.compress(b"{}") + b"\0"), CorruptArchive, SIZED),
    "two manifests": (stored_as(zlib.compress(b"{}") * 2), CorruptArchive, SIZED),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADER)
def test_a_header_that_is_refused(name: str) -> None:
    refused(*HEADER[name])


@pytest.mark.parametrize("stored", [b"", b"{}", b"x\x9c", zlib.compress(b"{}")[:-1], b"\x1f\x8b\x08"])
def test_a_manifest_that_is_not_deflated(stored: bytes) -> None:
    with pytest.raises(CorruptArchive, match=r"^the manifest (cannot be inflated|does not have the size)"):
        opened(stored_as(stored))


# Errors of the JSON


@pytest.mark.parametrize(
    ("text", "because"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"{", "Expecting property name enclosed in double quotes"),
        (b"{}x", "Extra data: line 1 column 3 (char 2)"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"\xef\xbb\xbf{}", "Unexpected UTF-8 BOM (decode using utf-8-sig): line 1 column 1 (char 0)"),
        (b'{"a":1,"a":1}', "duplicate key"),
        (b'{"a":NaN}', "NaN is not a number of JSON"),
        (b'{"a":-Infinity}', "-Infinity is not a number of JSON"),
        (b'{"a":1e999}', "1e999 is beyond all doubles"),
        (b'{"a":[-' + b"9" * 400 + b".5]}", "-" + "9" * 39 + " is beyond all doubles"),
        (b'{"a":"\\ud800"}', "'utf-8' codec can't encode character '\\ud800' in position 0: surrogates not allowed"),
        (b'{"\\ud800":1}', "'utf-8' codec can't encode character '\\ud800'"),
        (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "nested more than 100 deep"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "nested more than 100 deep"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", ""),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, ""),
        (b'{"a":' + b"9" * 100_000 + b"}", "Exceeds the limit (4300"),
    ],
    ids=lambda value: value[:20].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_a_manifest_that_is_not_the_json_it_should_be(text: bytes, because: str) -> None:
    with pytest.raises(CorruptArchive) as caught:
        opened(packed(text))
    assert str(caught.value).startswith(f"the manifest is not the JSON it should be: {because}")


@pytest.mark.parametrize("document", [[], None, 1, "x", [MANIFEST]])
def test_a_manifest_that_is_not_an_object(document: object) -> None:
    refused(packed(document), CorruptArchive, "manifest: an object is expected")


INTEGER = "is not a non-negative integer"
INTEGERS = "is not a list of non-negative integers"
NO_PLACES = """ graph initializer[0] graph.initializer graph.initializer[] graph.initializer[-1]
graph.initializer[1234567890] graph.initializer[0].raw_data graph.node[0].attribute[0] graph.node[0].attribute[0].g
graph.sparse_initializer[0] functions.initializer[0] functions[0] graph.__class__ ../graph.initializer[0]""".split()
PATH = "not the path of a tensor"
OTHERS: dict[str, Refused] = {
    **{f"no {key}": corrupt(f"manifest: {key!r} is missing", without(key)) for key in MANIFEST},
    **{
        f"layer without {key}": corrupt(
            f"{'manifest: layers[0]' if key == 'name' else NAMED}: {key!r} is missing", without(key, layer=True)
        )
        for key in MANIFEST["layers"][0]
    },
    **{
        f"skeleton without {key}": corrupt(
            f"manifest: skeleton: {key!r} is missing",
            MANIFEST | {"skeleton": {k: v for k, v in MANIFEST["skeleton"].items() if k != key}},
        )
        for key in MANIFEST["skeleton"]
    },
    **{
        f"{key} {value!r}": layer_of(f"{key!r} {INTEGER}", **{key: value})
        for key in ("symbols", "table", "crc32")
        for value in (None, True, -1, 1.0, "1", [], 1 << 63)
    },
    **{
        f"skeleton's {key} {value!r}": corrupt(f"manifest: skeleton: {key!r} {INTEGER}", skeleton_of(**{key: value}))
        for key in ("bytes", "crc32", "size")
        for value in (None, True, -1, 0.5, "29")
    },
    **{
        f"bin_width {str(value)[:9]}": layer_of("'bin_width' is not a finite number", bin_width=value)
        for value in (None, True, "0.5", [0.5], 10**400)
    },
    **{
        f"bin_width {value}": layer_of("a bin width that is not positive", bin_width=value) for value in (0, -0.0, -0.5)
    },
    **{
        f"entropy {str(value)[:9]}": layer_of("'entropy' is not a number from 0 to 128", entropy=value)
        for value in (None, True, "0.5", 10**400, -0.1, 1.7e308)
    },
    **{
        f"{key} {value!r}": layer_of(f"{key!r} {INTEGERS}", **{key: value})
        for key in ("shape", "streams")
        for value in (None, "x", {}, 3, [1.0], [True], [-1], ["1"], [[2]], [1 << 63])
    },
    **{
        f"{key} {value!r}": layer_of(f"{key!r} is not a string", **{key: value})
        for key in ("op", "dtype", "coding")
        for value in (None, 1, ["x"])
    },
    **{
        f"tensors {value!r}": layer_of("'tensors' is not a list of strings", tensors=value)
        for value in (None, "x", [1])
    },
    **{
        f"{key} {value!r}": corrupt(f"manifest: {key!r} is not an object", MANIFEST | {key: value})
        for key in ("calibration", "result", "settings", "skeleton", "source")
        for value in (None, 1, [])
    },
    **{
        f"layers {value!r}": corrupt("manifest: 'layers' is not a list of objects", MANIFEST | {"layers": value})
        for value in (None, {}, [1], [[]])
    },
    "coding": layer_of("unknown coding 'huffman'", coding="huffman"),
    "dtype": layer_of("unknown dtype 'int8'", dtype="int8"),
    "33 dimensions": layer_of("33 dimensions; at most 32 are read", shape=[1] * 31 + [2, 3]),
    **{
        f"shape {value}": layer_of("shape without weights or beyond all bounds", shape=value)
        for value in ([0], [2, 0, 3], [(1 << 40) + 1], [1 << 20, 1 << 21], [(1 << 63) - 1] * 3)
    },
    **{
        f"place {place!r}": layer_of(PATH, tensors=["graph.initializer[1]", place])
        for place in ("", "graph.initializer[0]\n", " graph.initializer[0]", "graph.initializer[01]",
                      "graph.initializer[٠]", *NO_PLACES)
    },
    "no places": layer_of("no tensor to restore into", tensors=[]),
    **{
        f"{coding} {shape} with {len(streams)} streams": layer_of(
            f"{len(streams)} streams instead of {right}", coding=coding, shape=shape, streams=streams
        )
        for coding, shape, streams, right in [
            ("constant", [6], [0], 0), ("raw", [6], [], 1), ("raw", [6], [1, 2], 1), ("ans", [6], [], 1),
            ("ans", [1 << 20], [4, 4], 1), ("ans", [(1 << 20) + 1], [4], 2),
        ]
    },
    **{
        f"{symbols} symbols of {coding}": layer_of(
            f"{symbols} symbols with coding {coding!r}", coding=coding, symbols=symbols, streams=streams, table=0
        )
        for coding, symbols, streams in [
            ("constant", 0, []), ("constant", 2, []), ("ans", 0, [0]), ("ans", 1, [0]), ("ans", (1 << 16) + 1, [0]),
            ("raw", 5, [9]),
        ]
    },
    "a table of raw": layer_of("a table of 3 bytes with coding 'raw'", coding="raw", streams=[9], symbols=0),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_manifest_that_is_refused(name: str) -> None:
    refused(*OTHERS[name])


def test_as_many_dimensions_as_numpy_always_had() -> None:
    shape = [1] * 30 + [2, 3]
    assert restored(packed(changed(shape=shape)))[1][0].values.shape == tuple(shape)


def test_a_bin_width_may_be_an_integer() -> None:
    entry = changed(bin_width=2, crc32=zlib.crc32(struct.pack("<6f", *[6.0] * 6)))
    assert restored(packed(entry))[1][0].values.tolist() == [[6.0] * 3] * 2


def test_two_layers_that_claim_the_same_tensor() -> None:
    message = "manifest: two layers claim the same tensor"
    refused(packed(changed(tensors=["graph.initializer[0]"] * 2)), CorruptArchive, message)
    twice = MANIFEST | {"layers": MANIFEST["layers"] * 2}
    refused(packed(twice, SECTIONS + TABLE), CorruptArchive, message)


@pytest.mark.parametrize("manifest", [MANIFEST, {"layers": 7}])
def test_a_feature_that_is_not_known_is_told_before_all_else(manifest: dict[str, Any]) -> None:
    message = "needs a newer riq: this one does not know contexts, per-row"
    refused(packed(manifest | {"requires": ["contexts", "per-row"]}), UnsupportedArchive, message)


STORED = zlib.compress(SKELETON, 9)
OF_SECTIONS: dict[str, Refused] = {
    "longer": (
        WHOLE + b"\0", CorruptArchive,
        f"the archive is longer than its manifest says: {len(WHOLE) + 1:,} bytes instead of {len(WHOLE):,}",
    ),
    **{
        f"{n} missing": (
            WHOLE[:-n], CorruptArchive, f"the archive is cut off: {len(WHOLE) - n:,} bytes instead of {len(WHOLE):,}",
        )
        for n in (1, len(SECTIONS))
    },
    "another skeleton": corrupt(
        "skeleton: checksum differs", sections=zlib.compress(SKELETON.replace(b"weights", b"heights"), 9) + TABLE
    ),
    "a shorter skeleton": corrupt("skeleton: checksum differs", skeleton_of(size=len(SKELETON) + 1)),
    "no skeleton": corrupt("the skeleton cannot be inflated", sections=bytes(len(STORED)) + TABLE),
    "another layer": layer_of("checksum differs", crc32=1),
    "another width": layer_of("checksum differs", bin_width=0.25),
    "another table": layer_of(
        "the table does not have the symbols that were announced", coding="ans", streams=[0], symbols=2
    ),
    "a cut-off table": layer_of("a table is cut off", SECTIONS[:-2], table=1),
    **{
        name: corrupt(
            f"layer 'w'{message}", changed(coding="raw", streams=[len(data)], table=0, symbols=0), STORED + data
        )
        for name, data, message in [
            ("raw, shorter", zlib.compress(bytes(23)), " does not have the size that was announced"),
            ("raw, longer", zlib.compress(bytes(25)), " does not have the size that was announced"),
            ("raw, not deflated", bytes(24), " cannot be inflated"),
            ("raw, others", zlib.compress(bytes(24)), ": checksum differs"),
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OF_SECTIONS)
def test_sections_that_are_refused(name: str) -> None:
    refused(*OF_SECTIONS[name])


# Limits


def test_a_model_beyond_the_limit() -> None:
    data = packed(MANIFEST)
    needed = len(SKELETON) + 24
    assert opened(data, needed).manifest.restored == needed
    with pytest.raises(LimitExceeded) as caught:
        opened(data, needed - 1)
    assert str(caught.value) == (
        f"the restored model needs {needed:,} bytes, the limit is {needed - 1:,}; "
        "if you trust the archive, raise it with --max-size"
    )


def test_every_copy_of_a_tensor_counts() -> None:
    data = packed(changed(tensors=["graph.initializer[0]", "graph.initializer[1]"]))
    with pytest.raises(LimitExceeded):
        opened(data, len(SKELETON) + 47)


def test_the_limit_is_8_gib_unless_told_otherwise() -> None:
    data = packed(changed(shape=[1 << 31]))
    message = f"the restored model needs {(8 << 30) + len(SKELETON):,} bytes, the limit is {8 << 30:,}"
    with pytest.raises(LimitExceeded, match=message):
        Archive.open(io.BytesIO(data))


def test_a_manifest_that_inflates_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MANIFEST_INFLATED", 1 << 20)
    data = packed(b" " * (64 << 20))
    message = "the manifest does not have the size that was announced; the archive is damaged"
    assert traced(lambda: refused(data, CorruptArchive, message)) < 4 << 20


def test_a_skeleton_that_inflates_beyond_its_size() -> None:
    bomb = zlib.compress(bytes(64 << 20), 9)
    manifest = copy.deepcopy(MANIFEST)
    manifest["skeleton"]["bytes"] = len(bomb)
    data = packed(manifest, bomb + TABLE)
    message = "the skeleton does not have the size that was announced; the archive is damaged"
    assert traced(lambda: refused(data, CorruptArchive, message)) < 1 << 20


def test_a_raw_layer_that_inflates_beyond_its_size() -> None:
    bomb = zlib.compress(bytes(64 << 20), 9)
    entry = changed(coding="raw", streams=[len(bomb)], table=0, symbols=0)
    data = packed(entry, zlib.compress(SKELETON, 9) + bomb)
    message = "layer 'w' does not have the size that was announced; the archive is damaged"
    assert traced(lambda: refused(data, CorruptArchive, message)) < 1 << 20


def test_many_huge_dimensions_do_not_take_long() -> None:
    data = packed(changed(shape=[(1 << 63) - 1] * 10_000))
    begin = time.process_time()
    with pytest.raises(ArchiveError):
        opened(data)
    assert time.process_time() - begin < 0.1


@pytest.mark.parametrize("value", ["1e999", '"\\ud800"', "[" * 900 + "]" * 900, "[" * 98 + "]" * 98, "1e-999", "-0.0"])
def test_whatever_is_opened_can_be_written_again(value: str) -> None:
    text = json.dumps(MANIFEST).replace('"result": {}', f'"result": {{"x": {value}}}').encode()
    try:
        archive = opened(packed(text))
    except ArchiveError:
        return
    assert opened(written(archive)).manifest == archive.manifest


def test_a_manifest_that_could_not_be_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(zlib.decompress(small().manifest.to_bytes()))
    monkeypatch.setattr(limits, "MANIFEST_INFLATED", size)
    assert opened(written(small())).manifest == small().manifest
    monkeypatch.setattr(limits, "MANIFEST_INFLATED", size - 1)
    with pytest.raises(LimitExceeded, match=f"^the manifest has {size} bytes; at most {size - 1} are read$"):
        small()


# inflate


def test_inflate_takes_exactly_one_stream() -> None:
    stored = deflate(b"abc")
    assert inflate(stored, 3, "it") == inflate(stored, 1 << 40, "it") == b"abc"
    assert inflate(deflate(b""), 0, "it") == b""
    message = r"^it does not have the size that was announced; the archive is damaged$"
    for wrong, limit in ((stored, 2), (stored, 0), (stored[:-1], 3), (stored + b"\0", 3), (b"", 3)):
        with pytest.raises(CorruptArchive, match=message):
            inflate(wrong, limit, "it")
    for wrong in (b"abc", stored[:-1] + bytes([stored[-1] ^ 1])):
        with pytest.raises(CorruptArchive, match=r"^it cannot be inflated; the archive is damaged$"):
            inflate(wrong, 3, "it")


# Any mutation gives an ArchiveError, or the same weights

SMALL = written(small())
TENSORS = [item.values.tobytes() for item in restored(SMALL)[1]]
SMALL_MANIFEST = json.loads(zlib.decompress(SMALL[24 : 24 + small().manifest_bytes]))
SMALL_SECTIONS = SMALL[24 + small().manifest_bytes :]


def refused_or_the_same(data: bytes) -> None:
    refused_or_restored(data, TENSORS)


@given(mutations(SMALL))
def test_any_mutation_of_an_archive_is_refused_or_harmless(data: bytes) -> None:
    refused_or_the_same(data)


@given(mutations(SMALL_SECTIONS))
def test_any_mutation_of_the_sections_is_refused_or_harmless(sections: bytes) -> None:
    # As long as before, so that it is not the length that gives it away.
    refused_or_the_same(packed(SMALL_MANIFEST, sections[: len(SMALL_SECTIONS)].ljust(len(SMALL_SECTIONS), b"\0")))


def test_every_flipped_bit_is_refused_or_harmless() -> None:
    for bit in range(0, 8 * len(SMALL), 3):
        data = bytearray(SMALL)
        data[bit // 8] ^= 1 << bit % 8
        refused_or_the_same(bytes(data))


def test_every_cut_is_refused() -> None:
    for length in range(len(SMALL)):
        with pytest.raises(ArchiveError):
            opened(SMALL[:length])


@given(mutations(json.dumps(SMALL_MANIFEST).encode()))
def test_any_mutation_of_the_manifests_text_is_refused_or_harmless(text: bytes) -> None:
    refused_or_the_same(packed(text, SMALL_SECTIONS))


@given(mutations(zlib.compress(json.dumps(SMALL_MANIFEST).encode())))
def test_any_mutation_of_the_deflated_manifest_is_refused_or_harmless(stored: bytes) -> None:
    refused_or_the_same(stored_as(stored) + SMALL_SECTIONS)


PATHS = list(paths(SMALL_MANIFEST))


@given(
    st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from([*VALUES, "delete", "double"])), min_size=1, max_size=3)
)
@example([(("layers", 0, "shape"), [1 << 15]), (("layers", 0, "coding"), "constant")])
def test_any_value_of_the_manifest_is_refused_or_harmless(changes: list[Edit]) -> None:
    refused_or_the_same(packed(edited(SMALL_MANIFEST, changes), SMALL_SECTIONS))


def test_mutations_are_met_in_bounded_memory() -> None:
    def meet() -> None:
        for path in PATHS:
            for value in VALUES:
                if path[0] in ("layers", "skeleton") and isinstance(value, int | list):
                    refused_or_the_same(packed(edited(SMALL_MANIFEST, [(path, value)]), SMALL_SECTIONS))

    assert traced(meet) < 64 * BOUND
