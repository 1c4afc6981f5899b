"""`riq test`: archives that are whole, and those that are not, without the model or onnxruntime."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from riq_cli.archive import Archive
from riq_cli.text import human_size
from tests.command import ROOT, fails, riq

GOLDENS = Path(__file__).parent / "goldens"
VARIABLES = os.environ | {"PYTHONPATH": str(ROOT)}
STUDENT = GOLDENS / "v1-student.riqz"
MANIFEST = Archive.open(STUDENT).manifest
WHOLE = f"whole.riqz: ok, 7 layers, {human_size(MANIFEST.restored)}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an archive that is whole, and with three that are not."""
    data = STUDENT.read_bytes()
    layers = len(data) - sum(entry.stored for entry in MANIFEST.layers)  # where their sections begin
    (tmp_path / "whole.riqz").write_bytes(data)
    (tmp_path / "cut.riqz").write_bytes(data[:-1])
    (tmp_path / "layer.riqz").write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    (tmp_path / "skeleton.riqz").write_bytes(data[: layers - 1] + bytes([data[layers - 1] ^ 1]) + data[layers:])
    return tmp_path


def test_an_archive_that_is_whole(folder: Path) -> None:
    done = riq("test", "whole.riqz", folder=folder)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (0, b"", WHOLE)
    done = riq("test", "-q", "whole.riqz", folder=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = riq("test", "-", folder=folder, data=STUDENT.read_bytes())
    assert (done.returncode, done.stderr.decode()) == (0, WHOLE.replace("whole.riqz", "-"))


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("*.riqz")), ids=lambda path: path.stem)
def test_every_golden_is_whole(path: Path) -> None:
    assert riq("test", path, folder=GOLDENS).returncode == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cut", "cut.riqz: the archive is cut off: "),
        ("layer", "layer.riqz: layer '.*'.*; the archive is damaged"),
        ("skeleton", "skeleton.riqz: the skeleton .*; the archive is damaged"),
    ],
)
def test_what_is_damaged(name: str, message: str, folder: Path) -> None:
    fails(1, message, "test", f"{name}.riqz", folder=folder)


def test_of_several_archives_each_gets_its_line(folder: Path) -> None:
    shutil.copy(folder / "whole.riqz", folder / "copy.riqz")
    done = riq("test", "whole.riqz", "cut.riqz", "copy.riqz", "--json", folder=folder)
    first, second, third = done.stderr.decode().splitlines(keepends=True)
    assert (done.returncode, first, third) == (1, WHOLE, WHOLE.replace("whole", "copy"))
    assert second.startswith("riq: error: cut.riqz: ")
    assert json.loads(done.stdout)["archives"] == [
        {"archive": "whole.riqz", "ok": True, "layers": 7, "restored_bytes": MANIFEST.restored},
        {"archive": "cut.riqz", "ok": False, "error": second.removeprefix("riq: error: ").rstrip()},
        {"archive": "copy.riqz", "ok": True, "layers": 7, "restored_bytes": MANIFEST.restored},
    ]


def test_the_limit_of_memory_holds(folder: Path) -> None:
    fails(1, "the limit is 1,000; .* --max-size", "test", "whole.riqz", "--max-size", "1kB", folder=folder)
    fails(2, "only one archive can come from stdin", "test", "-", "-", folder=folder)


def test_onnx_and_onnxruntime_are_not_imported(folder: Path) -> None:
    code = (
        "import sys; sys.argv = ['riq', 'test', 'whole.riqz']\n"
        "from riq_cli.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'onnx', 'google.protobuf', 'onnxruntime'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=VARIABLES, capture_output=True, text=True, check=True
    )
    assert (shown.stdout, shown.stderr) == ("[]\n", WHOLE)
