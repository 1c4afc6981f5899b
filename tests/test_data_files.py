"""Tensor data in files, the model's own and those beside it: where it may lie, how much there is, and mapped."""

from __future__ import annotations

import mmap
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import FORMS, conv, info, matmul, model, node, save, tensor

import riq_cli as riq
from riq_cli.errors import ModelError
from riq_cli.memory import give_back_mapped_memory
from riq_cli.model import Model
from riq_cli.model.places import find_tensor
from tests import builders, command
from tests.memory import growth, on_linux

maps = pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="nothing is mapped here")
posix = pytest.mark.skipif(sys.platform == "win32", reason="links and FIFOs need POSIX")


def outside(tensor: onnx.TensorProto, location: str, **entries: object) -> bytes:
    """The data of a tensor, which afterwards points at a file instead."""
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return data


def pointing(location: str, folder: Path, **entries: object) -> tuple[Path, bytes]:
    """A model whose weight points at a file, and the bytes that belong there."""
    proto = matmul()
    data = outside(proto.graph.initializer[0], location, **entries)
    folder.mkdir(exist_ok=True)
    return save(proto, folder), data


def loads(path: Path, follow_links: bool = False) -> bool:
    """Whether the weight is read, and is the right one."""
    return Model.load(path, follow_links).to_bytes() == matmul().SerializeToString(deterministic=True)


# ---- how much ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [{}, {"length": 0}])
def test_without_a_length_the_shape_tells_it(length: dict[str, int], tmp_path: Path) -> None:
    path, data = pointing("w.bin", tmp_path, offset=5, **length)
    (tmp_path / "w.bin").write_bytes(b"12345" + data + b"what lies behind")
    assert loads(path)


def test_the_shape_tells_it_for_tensors_that_are_no_layers_too(tmp_path: Path) -> None:
    proto = model(
        [node("Gather", "x ids", "g", axis=1), node("MatMul", "g w", "y")],
        [info("x", "batch", 6)],
        [info("y", "batch", 4)],
        [tensor("ids", np.array([2, 3, 5])), tensor("w", builders.Random(0)(3, 4))],
    )
    whole = proto.SerializeToString(deterministic=True)
    (tmp_path / "ids.bin").write_bytes(outside(proto.graph.initializer[0], "ids.bin") + b"more")
    assert Model.load(save(proto, tmp_path)).to_bytes() == whole


@pytest.mark.parametrize(("kind", "nbytes"), [("INT4", 3), ("UINT4", 3), ("UINT8", 5), ("BOOL", 5), ("COMPLEX64", 40)])
def test_elements_may_share_a_byte(kind: str, nbytes: int, tmp_path: Path) -> None:
    proto = matmul()
    extra = proto.graph.initializer.add(name="extra", dims=[5], data_type=onnx.TensorProto.DataType.Value(kind))
    outside(extra, "extra.bin")
    (tmp_path / "extra.bin").write_bytes(bytes(range(50)))
    assert Model.load(save(proto, tmp_path)).skeleton.graph.initializer[-1].raw_data == bytes(range(nbytes))


@pytest.mark.parametrize("kind", [onnx.TensorProto.STRING, 99])
def test_without_a_length_a_type_of_unknown_size_is_an_error(kind: int, tmp_path: Path) -> None:
    proto = matmul()
    outside(proto.graph.initializer.add(name="odd", dims=[5], data_type=kind), "odd.bin")
    (tmp_path / "odd.bin").write_bytes(b"12345")
    with pytest.raises(ModelError, match=f"^tensor 'odd': riq does not know how large its data type {kind} is$"):
        Model.load(save(proto, tmp_path))


BEYOND = r"tensor 'w': its data ends behind the end of w\.bin; the file is cut off"
NO_NUMBER = r"tensor 'w': .* of its external data is not a number of bytes"
NOT_READ = "lies outside of the model's folder; it is not read"
WRONG: list[tuple[str, dict[str, object], str]] = [  # location, other entries, message
    ("missing.bin", {}, r"external data .*missing\.bin: cannot be read"),
    (".", {}, r"external data .*cannot be read"),
    ("", {}, r"external data .*cannot be read"),
    ("w.bin/x", {}, r"external data .*cannot be read"),
    ("empty.bin", {}, r"its data ends behind the end of empty\.bin; the file is cut off"),
    ("w.bin", {"offset": 1}, BEYOND),
    ("w.bin", {"offset": 121}, BEYOND),
    ("w.bin", {"offset": 4, "length": 120}, BEYOND),
    ("w.bin", {"length": 60}, r"tensor 'w': 60 bytes do not fill the shape \[6, 5\]"),
    ("w.bin", {"offset": "zero"}, NO_NUMBER),
    ("w.bin", {"offset": -4}, NO_NUMBER),
    ("w.bin", {"length": "1e3"}, NO_NUMBER),
    ("w.bin", {"length": -120}, NO_NUMBER),
    ("../secret.bin", {}, f"secret.bin.*{NOT_READ}"),
    ("sub/../../secret.bin", {}, f"secret.bin.*{NOT_READ}"),
    ("{absolute}", {}, f"secret.bin.*{NOT_READ}"),
]


@pytest.mark.parametrize(("location", "entries", "told"), WRONG)
def test_external_data_that_is_not_there_is_an_error(
    location: str, entries: dict[str, object], told: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    path, data = pointing(location.format(absolute=tmp_path / "secret.bin"), folder, **entries)
    for file, content in ((folder / "w.bin", data), (folder / "empty.bin", b""), (tmp_path / "secret.bin", data)):
        file.write_bytes(content)
    for follow_links in (False, True):
        with pytest.raises(ModelError, match=told):
            Model.load(path, follow_links)


def test_an_empty_file_holds_the_data_of_a_tensor_without_elements(tmp_path: Path) -> None:
    proto = matmul()
    empty = tensor("nothing", np.zeros((0, 5), np.float32))
    outside(empty, "empty.bin", offset=0, length=0)
    proto.graph.initializer.append(empty)
    (tmp_path / "empty.bin").write_bytes(b"")
    assert [layer.name for layer in Model.load(save(proto, tmp_path)).layers] == ["w", "b"]


# ---- links ------------------------------------------------------------------------------------------------------


LINKS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "symbolic": (lambda link, target: link.symlink_to(target), "reached through a symbolic link"),
    "hard": (lambda link, target: os.link(target, link), r"a file with several names \(hard links\)"),
}


@posix
@pytest.mark.parametrize("kind", LINKS)
def test_data_behind_a_link_is_read_only_where_links_may_be_followed(kind: str, tmp_path: Path) -> None:
    link, told = LINKS[kind]
    path, data = pointing("w.bin", tmp_path / "model")
    (tmp_path / "secret").write_bytes(data)
    link(path.parent / "w.bin", tmp_path / "secret")
    with pytest.raises(ModelError, match=f"^external data 'w.bin' is {told}; .* use --follow-links"):
        Model.load(path)
    assert loads(path, follow_links=True)


@posix
def test_a_folder_on_the_way_is_no_link_either(tmp_path: Path) -> None:
    path, data = pointing("parts/w.bin", tmp_path / "model")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "w.bin").write_bytes(data)
    (path.parent / "parts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"'parts/w\.bin' is reached through a symbolic link; .* use --follow-links"):
        Model.load(path)
    assert loads(path, follow_links=True)


@posix
@pytest.mark.parametrize("follow_links", [False, True])
def test_data_in_a_folder_inside_is_read(follow_links: bool, tmp_path: Path) -> None:
    path, data = pointing("parts/w.bin", tmp_path / "model")
    (path.parent / "parts").mkdir()
    (path.parent / "parts" / "w.bin").write_bytes(data)
    assert loads(path, follow_links)


@posix
def test_a_model_behind_a_link_has_its_data_beside_the_link(tmp_path: Path) -> None:
    """As caches of hubs have it: blobs under their hashes, and folders of links to them."""
    path, data = pointing("model.onnx_data", tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blobs" / "data").write_bytes(data)
    (tmp_path / "snapshot" / "model.onnx").symlink_to(path)
    (tmp_path / "snapshot" / "model.onnx_data").symlink_to(tmp_path / "blobs" / "data")
    with pytest.raises(ModelError, match="--follow-links"):
        Model.load(tmp_path / "snapshot" / "model.onnx")
    assert loads(tmp_path / "snapshot" / "model.onnx", follow_links=True)
    (tmp_path / "snapshot" / "model.onnx_data").unlink()
    (tmp_path / "snapshot" / "model.onnx_data").write_bytes(data)
    assert loads(tmp_path / "snapshot" / "model.onnx")


@posix
@pytest.mark.parametrize("follow_links", [False, True])
def test_a_fifo_is_refused_at_once(follow_links: bool, tmp_path: Path) -> None:
    path, _ = pointing("w.bin", tmp_path)
    os.mkfifo(tmp_path / "w.bin")
    code = f"from riq_cli import Model; Model.load({str(path)!r}, {follow_links})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert re.search("ModelError: external data .*w.bin: cannot be read: it is not a regular file\n$", done.stderr)


@posix
def test_commands_follow_links_when_they_are_told(tmp_path: Path) -> None:
    path, data = pointing("w.bin", tmp_path)
    (tmp_path / "blob").write_bytes(data)
    (tmp_path / "w.bin").symlink_to("blob")
    samples = np.concatenate([feed["x"] for feed in builders.feeds(matmul(), 8)])
    np.savez(tmp_path / "samples.npz", x=samples)
    data_option = ["--calibration", "samples.npz"]
    compress = ["compress", path.name, *data_option, "--preset", "fast", "--min-size", "1"]
    verify = ["verify", "model.riqz", "--against", path.name, *data_option]
    sweep = ["sweep", path.name, *data_option, "--presets", "fast", "--deviations", "0.1", "--min-size", "1"]
    command.fails(1, "'w.bin' is reached through a symbolic link; .* use --follow-links", *compress, folder=tmp_path)
    for words in (compress, verify, sweep):
        done = command.riq(*words, "--follow-links", folder=tmp_path)
        assert done.returncode == 0, done.stderr
    command.fails(1, "use --follow-links", *verify, folder=tmp_path)
    command.fails(1, "use --follow-links", *sweep, folder=tmp_path)
    assert riq.Archive.open(tmp_path / "model.riqz").manifest.source["bytes"] == path.stat().st_size + len(data)


# ---- the model's own file -------------------------------------------------------------------------------------------


def mapped(path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    with monkeypatch.context() as patch:
        patch.setattr("riq_cli.model.data_files._LARGE", 0)
        patch.setattr("riq_cli.model.data_files._INSIDE", 1)
        return Model.load(path)


def is_mapped(values: np.ndarray) -> bool:
    base: object = values
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(getattr(base, "obj", base), mmap.mmap)


@maps
@pytest.mark.parametrize("name", FORMS)
def test_all_models_are_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = FORMS[name]()
    path = save(proto, tmp_path)
    read, found = Model.load(path), mapped(path, monkeypatch)
    assert found.to_bytes() == read.to_bytes()
    assert found.source == read.source
    for layer, other in zip(found.layers, read.layers, strict=True):
        assert (layer.name, layer.places, layer.dtype, layer.shape) == (
            other.name, other.places, other.dtype, other.shape,
        )  # fmt: skip
        raw = find_tensor(proto, layer.places[0]).HasField("raw_data")  # else it is in fields of numbers
        assert is_mapped(layer.values) == raw and not is_mapped(other.values)
    give_back_mapped_memory()
    assert found.to_bytes() == read.to_bytes()


@maps
def test_files_of_usual_size_are_read(tmp_path: Path) -> None:
    assert not any(is_mapped(layer.values) for layer in Model.load(save(conv(), tmp_path)).layers)


@maps
def test_a_message_may_be_in_two_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protobuf joins the parts of a message."""
    proto, first, second = conv(), onnx.ModelProto(), onnx.ModelProto()
    first.CopyFrom(proto)
    second.graph.initializer.extend(proto.graph.initializer[1:])
    del first.graph.initializer[1:]
    path = tmp_path / "model.onnx"
    path.write_bytes(first.SerializeToString() + second.SerializeToString())
    found = mapped(path, monkeypatch)
    assert found.to_bytes() == Model.load(save(proto, tmp_path, "whole.onnx")).to_bytes()
    assert all(is_mapped(layer.values) for layer in found.layers)


@maps
def test_attributes_of_a_function_may_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = builders.function()
    proto.functions[0].attribute.append("alpha")
    assert mapped(save(proto, tmp_path), monkeypatch).to_bytes() == proto.SerializeToString()


@maps
def test_a_large_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for content in (bytes(1 << 24), b"\x3a\x80\x80\x80\x08" * (1 << 22)):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"model\.onnx: .*an ONNX model"):
            Model.load(path)


@on_linux
def test_a_large_file_is_not_read_to_be_opened(tmp_path: Path) -> None:
    weights = [tensor(name, np.full((1 << 12, 1 << 12), number, "f4")) for number, name in enumerate("vw")]
    proto = model(
        [node("MatMul", "x v", "h"), node("MatMul", "h w", "y")],
        [info("x", 1, 1 << 12)],
        [info("y", 1, 1 << 12)],
        weights,
    )
    path = save(proto, tmp_path)
    assert growth("from riq_cli.model import Model", "Model.load(sys.argv[1])", path) < 32 << 20  # of 128 MiB


@maps
def test_a_model_replaces_the_one_that_it_is_mapped_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(conv(), tmp_path)
    model = mapped(path, monkeypatch)
    before = model.to_bytes()
    save(conv(seed=1), tmp_path, "other.onnx").replace(path)
    give_back_mapped_memory()
    assert model.to_bytes() == before
    model.save(path, overwrite=True)
    assert path.read_bytes() == before


@maps
def test_archives_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(builders.perceptron(0), tmp_path)
    for name, each in (("read", Model.load(path)), ("mapped", mapped(path, monkeypatch))):
        riq.compress(each, rounding="nearest").save(tmp_path / name)
    assert (tmp_path / "mapped").read_bytes() == (tmp_path / "read").read_bytes()
