"""Models and samples by URL."""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import builders
from tests.command import fails, riq

fsspec = pytest.importorskip("fsspec", reason="needs fsspec, which comes with Dask")

OPTIONS = ("--preset", "fast", "--threads", "1")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a model whose data lies beside it, samples of it, and its archive; memory://store has the same."""
    kept = tmp_path / "kept"
    kept.mkdir()
    builders.save_external(builders.dense(), kept)
    np.savez(kept / "samples.npz", x=np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32))
    done = riq("compress", "kept/model.onnx", "--calibration", "kept/samples.npz", *OPTIONS, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    memory = fsspec.filesystem("memory")
    memory.put(str(kept), "/store", recursive=True)
    yield tmp_path
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("store", ["memory://store", "file://{folder}/kept", "local://{folder}/kept"])
def test_urls_have_the_same_archive_as_files(store: str, folder: Path) -> None:
    store = store.replace("{folder}", str(folder))
    data = f"{store}/samples.npz"
    done = riq("compress", f"{store}/model.onnx", "--calibration", data, *OPTIONS, "-o", "a.riqz", folder=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "a.riqz").read_bytes() == (folder / "kept" / "model.riqz").read_bytes()
    done = riq("verify", "a.riqz", "--against", f"{store}/model.onnx", "--calibration", data, folder=folder)
    assert done.returncode == 0, done.stderr
    curve = ("sweep", f"{store}/model.onnx", "--calibration", data, "--deviations", "0.01", "--presets", "fast")
    assert riq(*curve, "--threads", "1", folder=folder).returncode == 0


def test_an_archive_goes_to_the_folder_of_the_command_and_no_copies_stay(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = folder / "scratch"
    scratch.mkdir()
    command = ("compress", "memory://store/model.onnx", "--calibration", "memory://store/samples.npz", *OPTIONS)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(scratch))
    assert riq(*command, "--scratch", scratch, folder=folder).returncode == 0
    assert (folder / "model.riqz").exists()
    gc.collect()
    assert list(scratch.iterdir()) == []


def test_a_list_of_urls_is_a_batch(folder: Path) -> None:
    (folder / "list").write_text(
        "memory://store/model.onnx\n"
        "memory://store/none.onnx  memory://store/samples.npz\n"
        "memory://store/signed.onnx?key=a/b\n"
        f"file://{folder}/kept/model.onnx  file://{folder}/kept/samples.npz\n"
    )
    # A batch has a process for each model, which does not see the memory of this one.
    done = riq("compress", "--batch", "list", "--calibration", "{folder}/samples.npz", *OPTIONS, "-o", "out",
               folder=folder)  # fmt: skip
    assert done.returncode == 1
    for name in ("model.onnx", "none.onnx", "signed.onnx?key=a/b"):
        assert f"memory://store/{name}: memory://store/samples.npz: no such file or folder".encode() in done.stderr
    (written,) = (folder / "out").rglob("*.riqz")
    assert written.read_bytes() == (folder / "kept" / "model.riqz").read_bytes()


def test_a_folder_behind_a_url_has_samples(folder: Path) -> None:
    values = np.load(folder / "kept" / "samples.npz")["x"]
    for number, row in enumerate(values):
        place = folder / "tests" / f"test_data_set_{number}"
        place.mkdir(parents=True)
        (place / "input_0.pb").write_bytes(builders.tensor("x", row[None]).SerializeToString())
    fsspec.filesystem("memory").put(str(folder / "tests"), "/tests", recursive=True)
    shutil.rmtree(folder / "tests")
    done = riq("compress", "kept/model.onnx", "--calibration", "memory://tests", *OPTIONS, "-o", "a.riqz",
               folder=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"16 samples (test-data)" in done.stderr


def test_what_cannot_be_read_is_an_error_that_names_the_url(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/store/text.onnx", b"no model")
    fails(1, "memory://store/none.onnx: no such file or folder", "compress", "memory://store/none.onnx", folder=folder)
    fails(1, "memory://store/text.onnx: ", "compress", "memory://store/text.onnx", folder=folder)
    fails(1, "nonsense://x.onnx: cannot be read: Protocol not known: nonsense", "compress", "nonsense://x.onnx",
          folder=folder)  # fmt: skip
    fails(1, "memory://store/text.npz: no such file", "compress", "kept/model.onnx", "--calibration",
          "memory://store/text.npz", "-o", "a.riqz", folder=folder)  # fmt: skip
    samples = ("--calibration", "memory://store/samples.npz", "--labels", "y.npy", "--max-loss-increase", "1%")
    fails(2, "--labels y.npy: no such file; labels in samples behind a URL are not read", "compress",
          "kept/model.onnx", *samples, "-o", "a.riqz", folder=folder)  # fmt: skip
    memory.rm("/store/weights.bin")
    fails(1, "memory://store/weights.bin: no such file", "compress", "memory://store/model.onnx", folder=folder)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    fails(1, "memory://store/model.onnx: URLs need fsspec; install it with: pip install fsspec", "compress",
          "memory://store/model.onnx", folder=folder)  # fmt: skip


@pytest.mark.parametrize("scheme", ["file://", "local://", "simplecache::file://"])
def test_a_source_is_never_replaced(scheme: str, folder: Path) -> None:
    before = (folder / "kept" / "model.onnx").read_bytes()
    fails(1, "kept/model.onnx: is read by this command and never overwritten", "compress",
          f"{scheme}{folder}/kept/model.onnx", *OPTIONS, "-o", "kept/model.onnx", "--force", folder=folder)  # fmt: skip
    fails(1, "kept/samples.npz: is read by this command and never overwritten", "compress", "kept/model.onnx",
          "--calibration", f"{scheme}{folder}/kept/samples.npz", *OPTIONS, "-o", "kept/samples.npz", "--force",
          folder=folder)  # fmt: skip
    assert (folder / "kept" / "model.onnx").read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="makes a link")
@pytest.mark.parametrize("scheme", ["", "file://", "local://"])
def test_links_are_followed_only_where_that_is_asked_for(scheme: str, folder: Path) -> None:
    (folder / "secret").mkdir()
    (folder / "kept" / "weights.bin").rename(folder / "secret" / "weights.bin")
    (folder / "kept" / "weights.bin").symlink_to(folder / "secret" / "weights.bin")
    command = ("compress", f"{scheme}{folder}/kept/model.onnx", *OPTIONS, "-o", "a.riqz")
    fails(1, "--follow-links", *command, folder=folder)
    assert riq(*command, "--follow-links", folder=folder).returncode == 0


@pytest.mark.parametrize("location", ["**", "*", "private", "", ".", "?.bin", "../store/private/0.bin"])
def test_a_model_has_only_files_copied_that_it_names(
    location: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    for number in range(3):
        memory.pipe(f"/store/private/{number}.bin", bytes(100))
        memory.pipe(f"/store/{number}.bin", bytes(100))
    proto = builders.dense()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    tensor.external_data.add(key="location", value=location)
    memory.pipe("/store/hostile.onnx", proto.SerializeToString())
    read = list[str]()
    opened = memory.open
    monkeypatch.setattr(type(memory), "open", lambda _, path, *rest, **named: read.append(path) or opened(path))
    done = riq("compress", "memory://store/hostile.onnx", *OPTIONS, folder=folder)
    assert done.returncode == 1 and b"Traceback" not in done.stderr, done.stderr
    assert {path for path in read if memory.exists(path)} == {"/store/hostile.onnx"}


@pytest.mark.parametrize(
    "name", ["a[1].npz", "a?b.npz", "a*.npz", "samples.npz?key=1", "samples.npz?key=1/2.3", "samples.npz?download"]
)
def test_names_are_no_patterns_and_queries_no_part_of_them(name: str, folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put_file(str(folder / "kept" / "samples.npz"), f"/names/{name}")
    memory.pipe("/names/another.npz", b"")
    data = ("--calibration", f"memory://names/{name}")
    done = riq("compress", "kept/model.onnx", *data, *OPTIONS, "-o", "a.riqz", folder=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "a.riqz").read_bytes() == (folder / "kept" / "model.riqz").read_bytes()


def test_external_data_is_asked_for_by_the_query_of_its_model(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("model.onnx", "weights.bin"):
        memory.put_file(str(folder / "kept" / name), f"/signed/{name}?key=a/b.c")
    data = ("--calibration", "kept/samples.npz")
    done = riq("compress", "memory://signed/model.onnx?key=a/b.c", *data, *OPTIONS, folder=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "model.riqz").read_bytes() == (folder / "kept" / "model.riqz").read_bytes()
