"""Models above protobuf's limit, which is lowered here: saved as the model and its data, in two files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import FORMS, Random, dense, info, model, node, save, tensor, tied
from test_model import LAYERS, assert_same_outputs, described, outputs

from riq_cli.errors import OutputError
from riq_cli.model import Model
from tests import command

pytestmark = pytest.mark.usefixtures("tiny_limit")


@pytest.fixture
def tiny_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riq_cli.model.model._PROTOBUF_MAX", 64)
    monkeypatch.setattr("riq_cli.model.model.SMALL", 17)  # as many as Resize's scales have, and one more


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def loaded(seed: int, folder: Path) -> Model:
    """A model, from a file in a folder of its own."""
    (folder / "sources").mkdir(exist_ok=True)
    return Model.load(save(dense(seed=seed), folder / "sources", f"{seed}.onnx"))


def saved(seed: int, folder: Path, overwrite: bool = False) -> Path:
    """The data's file of a model that is saved."""
    path, data = loaded(seed, folder).save(folder / "out" / "big.onnx", overwrite)
    assert path == folder / "out" / "big.onnx"
    return data


def whole(model: Model) -> bytes:
    """A model in one message, as it is below the limit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("riq_cli.model.model._PROTOBUF_MAX", 1 << 30)
        return model.to_bytes()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("name", FORMS)
def test_a_model_is_saved_with_its_data_beside(name: str, tmp_path: Path) -> None:
    proto = FORMS[name]()
    source = save(proto, tmp_path, "source.onnx")
    before = Model.load(source)
    path, data = before.save(tmp_path / "big.onnx")
    assert {file.name for file in tmp_path.iterdir()} == {"big.onnx", data.name, "source.onnx"}
    assert data.name == f"big.onnx.{hashlib.sha256(data.read_bytes()).hexdigest()[:8]}.data"
    onnx.checker.check_model(path, full_check=name != "sparse")
    assert_same_outputs(source, path, proto)
    again = Model.load(path)
    assert [described(layer) for layer in again.layers] == LAYERS[name]
    assert whole(again) == whole(before)


def test_tensors_begin_at_pages_and_tied_ones_are_written_once(tmp_path: Path) -> None:
    path, data = Model.load(save(tied(), tmp_path)).save(tmp_path / "big.onnx")
    found = {}
    for item in onnx.load(path, load_external_data=False).graph.initializer:
        found[item.name] = {entry.key: entry.value for entry in item.external_data}
    first = {"location": data.name, "offset": "0", "length": "6400"}
    assert found == {"encoder": first, "decoder": first, "other": {**first, "offset": "8192"}}
    assert data.stat().st_size == 8192 + 6400


def test_tensors_of_less_than_1024_bytes_stay_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riq_cli.model.model.SMALL", 1024)
    r = Random(0)
    proto = model(
        [node("MatMul", "x w", "m"), node("Add", "m b", "a"), node("Add", "a c", "y")],
        [info("x", "batch", 6)],
        [info("y", "batch", 256)],
        [tensor("w", r(6, 256)), tensor("b", r(256)), tensor("c", r(255))],
    )
    Model.load(save(proto, tmp_path)).save(tmp_path / "big.onnx")
    stored = onnx.load(tmp_path / "big.onnx", load_external_data=False).graph.initializer
    assert [item.HasField("raw_data") for item in stored] == [False, False, True]


# ---- where files exist ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["model", "data"])
def test_neither_file_appears_where_one_exists(which: str, tmp_path: Path, out: Path) -> None:
    existing = out / "big.onnx" if which == "model" else saved(1, tmp_path)
    (out / "big.onnx").unlink(missing_ok=True)
    existing.write_bytes(b"precious")
    with pytest.raises(OutputError, match=f"{existing.name}: exists already"):
        saved(1, tmp_path)
    assert contents(out) == {existing.name: b"precious"}


def test_a_model_that_replaces_another_removes_the_data_of_that(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does one that needs a single file; what its layers are mapped from stays until it is written anew."""
    first, second = saved(1, tmp_path), saved(2, tmp_path, overwrite=True)
    assert first != second
    assert set(contents(out)) == {"big.onnx", second.name}
    again, before = Model.load(out / "big.onnx"), contents(out)
    assert whole(again) == whole(loaded(2, tmp_path))
    again.save(out / "big.onnx", overwrite=True)
    assert contents(out) == before
    monkeypatch.setattr("riq_cli.model.model._PROTOBUF_MAX", 1 << 20)
    assert loaded(2, tmp_path).save(out / "big.onnx", overwrite=True) == (out / "big.onnx",)
    assert set(contents(out)) == {"big.onnx"}


def renamed(folder: Path, data: Path) -> Path:
    """The same data under a name that riq does not give."""
    return rewritten(folder, data, data.rename(folder / "big.onnx.data"))


def grown(folder: Path, data: Path) -> Path:
    """Data that riq did not write under its name."""
    data.write_bytes(data.read_bytes() + b"more")
    return data


def unrelated(folder: Path, data: Path) -> Path:
    """Data of another model than the one that is replaced."""
    save(dense(), folder, "big.onnx")
    return data


def rewritten(folder: Path, old: Path, new: Path) -> Path:
    proto = onnx.load(folder / "big.onnx", load_external_data=False)
    for item in proto.graph.initializer:
        for entry in item.external_data:
            entry.value = new.name if entry.value == old.name else entry.value
    save(proto, folder, "big.onnx")
    return new


@pytest.mark.parametrize("change", [renamed, grown, unrelated])
def test_data_that_may_be_somebody_elses_stays(change: Callable[[Path, Path], Path], tmp_path: Path, out: Path) -> None:
    kept = change(out, saved(1, tmp_path))
    content = kept.read_bytes()
    saved(2, tmp_path, overwrite=True)
    assert kept.read_bytes() == content


# ---- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("failing", [".onnx", ".data"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_whatever_fails_leaves_what_was_there(
    overwrite: bool, failing: str, error: BaseException, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While either file is given its name; a model that was there still has its own data."""
    if overwrite:
        saved(1, tmp_path)
    before, genuine = contents(out), os.replace if overwrite else os.link

    def fails(source: str, target: Path) -> None:
        if Path(target).suffix == failing:
            raise error
        genuine(source, target)

    monkeypatch.setattr(os, "replace", fails)
    monkeypatch.setattr(os, "link", fails)
    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
        saved(2, tmp_path, overwrite)
    assert contents(out) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interruption_after_the_model_has_its_name_leaves_it_its_data(
    overwrite: bool, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if overwrite:
        saved(1, tmp_path)
    name = "replace" if overwrite else "link"
    genuine = getattr(os, name)

    def interrupted(source: Path, target: Path) -> None:
        genuine(source, target)
        if target.suffix == ".onnx":
            raise KeyboardInterrupt

    monkeypatch.setattr(os, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        saved(2, tmp_path, overwrite)
    assert not list(out.glob(".riq-*"))
    assert_same_outputs(out / "big.onnx", tmp_path / "sources" / "2.onnx", dense())


def test_the_model_is_never_seen_with_data_that_is_not_its_own(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a file gets its name, a reader finds one model or the other."""
    saved(1, tmp_path)
    genuine, seen = os.replace, []

    def watched(source: str, target: Path) -> None:
        seen.append(outputs(out / "big.onnx", dense()))
        genuine(source, target)
        seen.append(outputs(out / "big.onnx", dense()))

    monkeypatch.setattr(os, "replace", watched)
    saved(2, tmp_path, overwrite=True)
    wanted = [outputs(tmp_path / "sources" / f"{seed}.onnx", dense()) for seed in (1, 2)]
    np.testing.assert_array_equal(seen, [wanted[0]] * 3 + [wanted[1]])


def test_decompress_tells_both_files(tmp_path: Path) -> None:
    save(dense(), tmp_path)
    samples = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=samples)
    done = command.riq("compress", "model.onnx", "--calibration", "samples.npz", "--preset", "fast", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for options in ([], ["--force"]):
        done = command.riq("decompress", "model.riqz", *options, folder=tmp_path)
        assert (done.returncode, done.stdout) == (0, b"")
        (data,) = tmp_path.glob("*.data")
        size = (tmp_path / "model.restored.onnx").stat().st_size
        assert f"model.restored.onnx: {size} B, and {data.name}: " in done.stderr.decode()
        assert done.stderr.decode().endswith(" kB; keep both together\n")
