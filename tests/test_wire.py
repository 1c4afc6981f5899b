"""Serialized models are walked as protobuf reads them: data is put in where it has it, sizes are those of parsing."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest

from riq_cli.archive import Archive, Manifest, SkeletonEntry, deflate
from riq_cli.errors import CorruptArchive, LimitExceeded, ModelError
from riq_cli.model import Layer, Model
from riq_cli.model.places import find_tensor
from riq_cli.model.wire import parsed_size
from riq_cli.pipeline import decompress
from tests import builders
from tests.memory import growth, on_linux

GROUP = b"\xfb\x3f\x0b\x08\x01\x0c\xfc\x3f"  # an unknown field with a group inside of a group


def field(number: int, content: bytes) -> bytes:
    """A field of a message that has a length."""
    digits = bytearray()
    for value in (number << 3 | 2, len(content)):
        while value > 127:
            digits.append(value & 127 | 128)
            value >>= 7
        digits.append(value)
    return bytes(digits) + content


def nodes(count: int) -> bytes:
    return field(7, field(1, b"") * count)


def archive_of(skeleton: bytes, max_size: int | None) -> Archive:
    stored = deflate(skeleton)
    entry = SkeletonEntry(len(stored), len(skeleton), zlib.crc32(skeleton))
    return Archive(Manifest(entry, ()), stored, max_size=max_size)


@pytest.mark.parametrize("name", builders.FORMS)
def test_a_model_is_written_as_protobuf_serializes_it(name: str, tmp_path: Path) -> None:
    onnx.save(builders.FORMS[name](), tmp_path / "model.onnx")
    model = Model.load(tmp_path / "model.onnx")
    expected = onnx.ModelProto()
    expected.CopyFrom(model.skeleton)
    for layer in model.layers:
        for place in layer.places:
            find_tensor(expected, place).raw_data = layer.values.tobytes()
    assert model.to_bytes() == expected.SerializeToString(deterministic=True)
    model.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == model.to_bytes()


def test_fields_that_are_not_known_stay(tmp_path: Path) -> None:
    tensor = onnx.numpy_helper.from_array(np.ones((9, 3), np.float32), "w")
    tensor.doc_string = "behind the data"
    content = field(5, tensor.SerializeToString() + GROUP + field(1000, b"?")) + field(12, field(1, b"y")) + GROUP
    (tmp_path / "model.onnx").write_bytes(field(7, content) + GROUP)
    again = Model.load(tmp_path / "model.onnx").to_bytes()
    assert again.count(GROUP) == 3 and field(1000, b"?") in again
    read = onnx.load_from_string(again)
    assert (read.graph.initializer[0].doc_string, read.graph.output[0].name) == ("behind the data", "y")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(read.graph.initializer[0]), np.ones((9, 3)))


def test_many_messages_are_refused_before_they_are_parsed() -> None:
    message = (
        "the skeleton of 2000004 bytes needs more than 33554432 bytes when it is parsed; "
        "if you trust the archive, raise the limit with --max-size"
    )
    with pytest.raises(LimitExceeded) as caught:
        decompress(archive_of(nodes(1_000_000), 1 << 20))
    assert str(caught.value) == message
    assert len(decompress(archive_of(nodes(1_000), 1 << 20)).skeleton.graph.node) == 1_000
    assert len(decompress(archive_of(nodes(300_000), None)).skeleton.graph.node) == 300_000  # made here


@on_linux
@pytest.mark.parametrize("command", [("decompress", "-o", "x.onnx", "--max-size", "32MB"), ("report", "--html", "x")])
def test_the_bound_holds_for_commands_as_a_whole(command: tuple[str, ...], tmp_path: Path) -> None:
    archive_of(nodes(4_000_000), 1 << 40).save(tmp_path / "x.riqz")
    limited = (
        "import resource, runpy\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"  # imports take half of it; the nodes would, all
        "runpy.run_module('riq_cli', run_name='__main__')"
    )
    words = [sys.executable, "-c", limited, command[0], "x.riqz", *command[1:]]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    if command[0] == "report":
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1
        assert done.stderr.startswith(
            "riq: error: x.riqz: the skeleton of 8000005 bytes needs more than 33554432 bytes"
        )


MANY = {
    "nodes": nodes(200_000),
    "attributes": field(7, field(1, field(5, b"") * 200_000)),
    "graphs": field(7, field(1, field(5, field(6, b"")) * 100_000)),
    "strings": field(7, field(1, field(1, b"abcdefgh") * 400_000)),
    "integers": field(7, field(5, field(7, b"\x01" * 2_000_000))),
    "floats": field(7, field(5, field(4, bytes(8_000_000)))),
    "bytes": field(7, field(5, field(9, bytes(30_000_000)))),
    "unknown": field(7, field(1, field(1000, b"x") * 300_000)),
}


@on_linux
@pytest.mark.parametrize("name", MANY)
def test_the_size_of_what_is_parsed_is_about_what_it_takes(name: str, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(MANY[name])
    taken = growth(
        "import onnx\ndata = open(sys.argv[1], 'rb').read()\nmodel = onnx.ModelProto()",
        "model.ParseFromString(data)",
        tmp_path / "model",
    )
    assert 0.8 * taken < parsed_size(MANY[name], 1 << 40) < 4 * taken + (4 << 20)


@pytest.mark.parametrize(
    "skeleton",
    [
        b"\x3a",
        b"\x3a\x05\x0a",
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x3b",
        b"\x3c",
        b"\x3e",
        b"\x08\x80",
    ],
)
def test_what_is_no_message_is_refused(skeleton: bytes) -> None:
    with pytest.raises(ValueError):
        parsed_size(skeleton, 1 << 20)
    with pytest.raises(CorruptArchive, match=r"^the skeleton is not an ONNX model; the archive is damaged$"):
        decompress(archive_of(skeleton + nodes(300_000), 1 << 20))


def test_messages_too_deep_are_refused() -> None:
    skeleton = b""
    for _ in range(60):
        skeleton = field(1, field(5, field(6, skeleton)))
    with pytest.raises(ValueError, match="messages more than 100 deep"):
        parsed_size(field(7, skeleton), 1 << 20)


def test_a_model_above_two_gigabytes_has_no_bytes() -> None:
    proto = onnx.ModelProto()
    values = np.broadcast_to(np.float32(1), (1 << 30,))
    model = Model(proto, [Layer("w", "MatMul", ("graph.initializer[0]",), "float32", values.shape, values)])
    with pytest.raises(ModelError, match="above 2 GiB"):
        model.to_bytes()
