"""`riq decompress` never costs a user the model that was compressed."""

import os
import threading
from pathlib import Path

import pytest

import riq_cli
from riq_cli.cli.commands import riq
from riq_cli.errors import OutputError
from riq_cli.model import Model
from tests import builders


def compressed(model: Path) -> Path:
    """The archive of a model, beside it."""
    archive = model.with_suffix(".riqz")
    riq_cli.compress(Model.load(model), k=30, allocation="norm", rounding="nearest").save(archive)
    return archive


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive, beside the model that it was made from."""
    return compressed(builders.save(builders.dense(), tmp_path))


def decompress(*arguments: object) -> None:
    riq.main(["decompress", *map(str, arguments)], prog_name="riq", standalone_mode=False)


def test_the_default_output_is_not_the_models_own_name(archive: Path) -> None:
    original = archive.with_suffix(".onnx").read_bytes()
    decompress(archive)
    assert sorted(path.name for path in archive.parent.iterdir()) == ["model.onnx", "model.restored.onnx", "model.riqz"]
    assert archive.with_suffix(".onnx").read_bytes() == original
    decompress(archive, "--force")  # what was restored before is no original


def test_only_the_suffix_of_an_archive_gives_way(archive: Path) -> None:
    decompress(archive.rename(archive.with_name("model.v2")))
    assert (archive.parent / "model.v2.restored.onnx").exists()


@pytest.mark.parametrize("name", ["model.onnx", "copy.onnx", "link.onnx"])
def test_the_original_is_never_overwritten(archive: Path, name: str) -> None:
    original = archive.with_suffix(".onnx").read_bytes()
    (archive.parent / "copy.onnx").write_bytes(original)
    (archive.parent / "link.onnx").symlink_to("model.onnx")
    output = archive.with_name(name)
    with pytest.raises(OutputError) as caught:
        decompress(archive, "-o", output, "--force")
    assert str(caught.value) == (
        f"{output}: is the original that the archive was made from, which is never overwritten; "
        "name another file with -o"
    )
    assert output.read_bytes() == original


def test_an_original_with_external_data_is_known_too(tmp_path: Path) -> None:
    model = builders.save_external(builders.dense(), tmp_path)
    archive = compressed(model)
    with pytest.raises(OutputError, match="is the original that the archive was made from"):
        decompress(archive, "-o", model, "--force")


@pytest.mark.parametrize("what", ["another model", "text"])
def test_other_files_are_replaced_where_that_is_asked_for(archive: Path, what: str) -> None:
    other = builders.dense(seed=1).SerializeToString() if what == "another model" else b"text"
    output = archive.with_name("other.onnx")
    output.write_bytes(other)
    decompress(archive, "-o", output, "--force")
    assert Model.load(output).source != Model.load(archive.with_suffix(".onnx")).source
    assert output.read_bytes() != other


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_named_pipe_is_written_to_and_never_read(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe, found = archive.with_name("pipe"), list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
    reader.start()
    decompress(archive, "-o", pipe)
    reader.join()
    assert capsys.readouterr().err == ""
    assert found == [riq_cli.decompress(riq_cli.Archive.open(archive)).to_bytes()]
