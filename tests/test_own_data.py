"""Layers that are mapped from the model's own file are those that are read from it."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import FORMS, conv, save

import riq_cli as riq
from riq_cli.model import Model
from riq_cli.model.places import find_tensor
from tests.test_compensation import loaded, stored

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="nothing is mapped here")


def mapped(path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    with monkeypatch.context() as patch:
        patch.setattr("riq_cli.model.data_files._LARGE", 0)
        return Model.load(path)


def is_mapped(values: np.ndarray) -> bool:
    base: object = values
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(getattr(base, "obj", base), mmap.mmap)


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
    found.release()
    assert found.to_bytes() == read.to_bytes()


def test_files_of_usual_size_are_read(tmp_path: Path) -> None:
    assert not any(is_mapped(layer.values) for layer in Model.load(save(conv(), tmp_path)).layers)


def test_a_message_in_two_parts_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protobuf joins the parts of a message, and numbers what they hold on; places in the file do not."""
    proto, first, second = conv(), onnx.ModelProto(), onnx.ModelProto()
    first.CopyFrom(proto)
    second.graph.initializer.extend(proto.graph.initializer[1:])
    del first.graph.initializer[1:]
    path = tmp_path / "model.onnx"
    path.write_bytes(first.SerializeToString() + second.SerializeToString())
    found = mapped(path, monkeypatch)
    assert found.to_bytes() == Model.load(save(proto, tmp_path, "whole.onnx")).to_bytes()
    assert not all(is_mapped(layer.values) for layer in found.layers)


def test_a_model_replaces_the_one_that_it_is_mapped_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(conv(), tmp_path)
    model = mapped(path, monkeypatch)
    before = model.to_bytes()
    save(conv(seed=1), tmp_path, "other.onnx").replace(path)
    model.release()
    assert model.to_bytes() == before
    model.save(path, overwrite=True)
    assert path.read_bytes() == before


def test_archives_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = loaded("convolutions", tmp_path)
    archive = riq.compress(model, data, deviation=0.01, rounding="nearest")
    again = riq.compress(mapped(tmp_path / "model.onnx", monkeypatch), data, deviation=0.01, rounding="nearest")
    assert stored(again) == stored(archive)
