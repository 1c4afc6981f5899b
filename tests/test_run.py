"""`riq run`: what an archive or a model gives on samples, shown and written."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from riq_cli.calibration import write_npz
from riq_cli.errors import ModelError
from riq_cli.runtime import stacked_outputs
from tests import builders
from tests.command import fails, riq

CPU = ["CPUExecutionProvider"]
X = np.random.default_rng(0).standard_normal((12, 16)).astype(np.float32)
SHOWN = r"output +shape +type +min +max +mean\n[\w.]+ +12×\d+ +float32 +-?[\d.]+ +-?[\d.]+ +-?[\d.e-]+\n"


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.onnx, its archive, what that restores, and samples."""
    folder = tmp_path_factory.mktemp("ready")
    builders.save(builders.dense(), folder)
    np.savez(folder / "samples.npz", x=X)
    compress = ("compress", "model.onnx", "--preset", "fast", "--calibration", "samples.npz")
    for command in (compress, ("decompress", "model.riqz", "-o", "restored.onnx")):
        assert riq(*command, folder=folder).returncode == 0
    return folder


@pytest.fixture
def folder(ready: Path, tmp_path: Path) -> Path:
    """A copy of `ready` to write into."""
    return Path(shutil.copytree(ready, tmp_path / "work"))


def expected(path: Path) -> dict[str, np.ndarray]:
    """The outputs of a file's own session, row after row."""
    session = onnxruntime.InferenceSession(path, providers=CPU)
    runs = [session.run(None, {"x": X[row : row + 1]}) for row in range(len(X))]
    names = [item.name for item in session.get_outputs()]
    return {name: np.concatenate(values) for name, *values in zip(names, *runs, strict=True)}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize(("model", "file"), [("model.riqz", "restored.onnx"), ("model.onnx", "model.onnx")])
def test_outputs_are_those_of_the_file(model: str, file: str, folder: Path) -> None:
    done = riq("run", model, "--input", "samples.npz", "-o", "y.npz", "--threads", "1", folder=folder)
    assert (done.returncode, done.stdout) == (0, b"")
    assert re.fullmatch(r"y\.npz: 1 array, \d+ B\n|y\.npz: 1 array, [\d.]+ kB\n", done.stderr.decode())
    wanted = expected(folder / file)
    assert_same(dict(np.load(folder / "y.npz")), wanted)
    data = (folder / model).read_bytes()
    piped = riq("run", "-", "--input", "samples.npz", "-o", "-", "--batch-size", "1", folder=folder, data=data).stdout
    assert_same(dict(np.load(io.BytesIO(piped))), wanted)


def test_a_quick_look(folder: Path) -> None:
    done = riq("run", "model.riqz", "--input", "samples.npz", folder=folder)
    assert (done.returncode, done.stderr) == (0, b"")
    assert re.fullmatch(SHOWN, done.stdout.decode())
    done = riq("run", "model.riqz", "--input", "samples.npz", "--batch-size", "5", "--profile", folder=folder)
    assert re.fullmatch(SHOWN, done.stdout.decode())
    seconds = r"decode +[\d.]+ s\nsession +[\d.]+ s\nrun +[\d.]+ ms a sample, 12 samples\n"
    assert re.fullmatch(seconds, done.stderr.decode())
    done = riq("run", "model.riqz", "--input", "samples.npz", "-q", folder=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_json(folder: Path) -> None:
    done = riq("run", "model.riqz", "--input", "samples.npz", "--json", "--profile", folder=folder)
    document = json.loads(done.stdout)
    ((name, values),) = expected(folder / "restored.onnx").items()
    (output,) = document["outputs"]
    assert (document["model"], document["samples"], output["name"]) == ("model.riqz", 12, name)
    assert (output["shape"], output["dtype"]) == (list(values.shape), "float32")
    assert (output["min"], output["max"]) == (values.min(), values.max())
    assert document["seconds"].keys() == {"decode", "session", "run"}


def test_what_goes_wrong(folder: Path) -> None:
    given = ("--input", "samples.npz")
    (folder / "text.txt").write_text("no model\n")
    data = (folder / "model.riqz").read_bytes()
    (folder / "flipped.riqz").write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    np.savez(folder / "other.npz", y=X)
    fails(1, "text.txt: not an ONNX model but text", "run", "text.txt", *given, folder=folder)
    fails(1, "flipped.riqz: layer '.*'.*; the archive is damaged", "run", "flipped.riqz", *given, folder=folder)
    fails(1, "the limit is 1,000; .* --max-size", "run", "model.riqz", *given, "--max-size", "1kB", folder=folder)
    fails(1, "has y; the model's inputs are x", "run", "model.riqz", "--input", "other.npz", folder=folder)
    fails(2, "onnxruntime has no 'GPU' here", "run", "model.riqz", *given, "--provider", "GPU", folder=folder)
    for name, message, force in (("samples.npz", "is read by", ["-f"]), ("restored.onnx", "exists already", [])):
        fails(1, f"{name}: {message}", "run", "model.riqz", *given, "-o", name, *force, folder=folder)
    fails(2, "--json and -o - both want stdout", "run", "model.riqz", *given, "-o", "-", "--json", folder=folder)


# How outputs are put together


def stacked(proto: onnx.ModelProto, *inputs: np.ndarray, rows: int = 1) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=CPU)
    return stacked_outputs(session, [({"x": x}, rows) for x in inputs])


def identity(*shape: int | str | None) -> onnx.ModelProto:
    return builders.model(
        [builders.node("Identity", "x", "y")], [builders.info("x", *shape)], [builders.info("y", *shape)], []
    )


def test_rows_of_samples_lie_behind_each_other() -> None:
    first, second = np.float32([[1, 2], [3, 4]]), np.float32([[5, 6], [7, 8]])
    found = stacked(identity("batch", 2), first, second, rows=2)
    assert found["y"].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_whole_outputs_get_an_axis() -> None:
    assert stacked(identity(3), np.float32([1, 2, 3]), np.float32([4, 5, 6]))["y"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert stacked(identity(), np.array(1, np.float32), np.array(2, np.float32))["y"].tolist() == [1, 2]


def test_outputs_of_different_shapes_stay_apart() -> None:
    found = stacked(identity("length"), np.float32([1, 2, 3]), np.float32([4, 5]))
    assert {name: values.tolist() for name, values in found.items()} == {"y[0]": [1, 2, 3], "y[1]": [4, 5]}


def test_what_is_no_tensor_is_refused() -> None:
    sequence = builders.model(
        [builders.node("SequenceConstruct", "x x", "y")],
        [builders.info("x", 2)],
        [onnx.helper.make_tensor_sequence_value_info("y", 1, [2])],
        [],
    )
    with pytest.raises(ModelError, match=r"^output 'y' is not a tensor, but seq\(tensor\(float\)\)$"):
        stacked(sequence, np.zeros(2, np.float32))


def test_names_and_text_are_kept_in_a_file() -> None:
    arrays = {"file": np.arange(3), "a/b:0": np.array(["x", "yz"]), "y[0]": np.zeros((0, 2))}
    file = io.BytesIO()
    write_npz(file, arrays)
    file.seek(0)
    assert_same(dict(np.load(file)), arrays)
