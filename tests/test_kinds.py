"""A file of another kind is called by its name, with what to do about it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

import riq_cli
from riq_cli.errors import ModelError
from riq_cli.kinds import instead
from tests import builders
from tests.command import fails


def zipped(*names: str) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as file:
        for name in names:
            file.writestr(name, b"content")
    return buffer.getvalue()


def arrays() -> bytes:
    np.savez(buffer := io.BytesIO(), x=np.ones(3))
    return buffer.getvalue()


def array() -> bytes:
    np.save(buffer := io.BytesIO(), np.ones(3))
    return buffer.getvalue()


def tarred() -> bytes:
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as file:
        file.addfile(tarfile.TarInfo("model.onnx"))
    return buffer.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


MODEL = builders.dense().SerializeToString()
TORCH, TENSORFLOW = "export the model with torch.onnx.export", "convert it with tf2onnx"
SOURCE, UNPACK = "give the ONNX model that it was made from", "unpack it, and give what is inside"
KINDS = {
    "pt": (zipped("archive/data.pkl", "archive/data/0"), f"a PyTorch file; {TORCH}"),
    "pth": (pickle.dumps({"w": 1}, 2), f"a Python pickle, as older PyTorch files are; {TORCH}"),
    "tflite": (b"\x20\0\0\0TFL3" + bytes(99), "a TensorFlow Lite model; convert it with tf2onnx --tflite"),
    "ort": (b"\x20\0\0\0ORTM" + bytes(99), f"a model in onnxruntime's own format; {SOURCE}"),
    "pb": (b"\n\x13\n\x01x\x12\x0bPlaceholder*\x01a", f"a TensorFlow graph; {TENSORFLOW}"),
    "saved_model.pb": (b"\x08\x01\x12\x20\x12\x0e\n\x05serve\x2a\x0c1.0tensorflow" + bytes(9),
                       f"a TensorFlow graph; {TENSORFLOW}"),
    "keras": (zipped("metadata.json", "config.json", "model.weights.h5"), f"a Keras model; {TENSORFLOW}"),
    "h5": (b"\x89HDF\r\n\x1a\n" + bytes(99), f"an HDF5 file, as Keras models are; {TENSORFLOW}"),
    "zip": (zipped("model.onnx"), f"a zip archive; {UNPACK}"),
    "tar": (tarred(), f"a tar archive; {UNPACK}"),
    "safetensors": (safetensors(), "weights without a graph (safetensors); export the model that they belong to"),
    "npz": (arrays(), "a file of NumPy arrays; samples come with --calibration"),
    "npy": (array(), "a file of NumPy arrays; samples come with --calibration"),
    "gguf": (b"GGUF\3\0\0\0" + bytes(99), f"a GGUF model; {SOURCE}"),
    "xml": (b'<?xml version="1.0"?>\n<net name="m" version="11">', f"an OpenVINO model; {SOURCE}"),
    "onnx.gz": (gzip.compress(MODEL), "a file that gzip compressed; unpack it with gunzip"),
    "onnx.zst": (b"\x28\xb5\x2f\xfd" + bytes(99), "a file that zstd compressed; unpack it with unzstd"),
    "onnx.xz": (lzma.compress(MODEL), "a file that xz compressed; unpack it with unxz"),
    "onnx.bz2": (bz2.compress(MODEL), "a file that bzip2 compressed; unpack it with bunzip2"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
                "a pointer of Git LFS; git lfs pull gets the file itself"),
    "html": (b"\n<!DOCTYPE html>\n<html><head>", "a web page; its download went wrong: get the file once more"),
    "empty": (b"", "an empty file; get it once more"),
    "txt": ("ein Modell? – nein, Text".encode(), "text; is it the right file?"),
    "long.txt": ("–".encode() * 2000, "text; is it the right file?"),
    "riqz": (b"\x89RIQZ\r\n\x1a" + bytes(99), "a riq archive; it is compressed already, and riq decompress "
             "restores the model"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_model_is_called_by_its_name(kind: str, tmp_path: Path) -> None:
    content, said = KINDS[kind]
    path = tmp_path / f"model.{kind}"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        riq_cli.Model.load(path)
    assert str(caught.value) == f"{path}: not an ONNX model but {said}"


def test_what_is_unknown_or_damaged_is_not_called_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for content, said in ((bytes(99), "not an ONNX model"), (MODEL[:99], "not an ONNX model, or a damaged one")):
        path.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            riq_cli.Model.load(path)
        assert str(caught.value) == f"{path}: {said}"


@pytest.mark.parametrize("name", builders.FORMS)
def test_every_model_is_known_as_one(name: str) -> None:
    head = builders.FORMS[name]().SerializeToString()
    assert instead("an archive", head) == "not an archive but an ONNX model; riq compress makes an archive of it"


def test_commands_say_it_with_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(MODEL)
    (tmp_path / "model.pt").write_bytes(KINDS["pt"][0])
    (tmp_path / "samples.npz").write_text("x\n1\n2\n")
    for command in ("decompress", "report"):
        message = "model.onnx: not a riq archive but an ONNX model; riq compress makes an archive of it$"
        fails(1, message, command, "model.onnx", folder=tmp_path)
    fails(1, rf"model.pt: not an ONNX model but a PyTorch file; {TORCH}$", "compress", "model.pt", folder=tmp_path)
    message = r"samples.npz: not a file of NumPy arrays but text; is it the right file\?$"
    fails(1, message, "compress", "model.onnx", "--calibration", "samples.npz", folder=tmp_path)
