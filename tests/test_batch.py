"""riq compress --batch and riq report FOLDER: what a folder, or a list, of models becomes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from riq_cli.cli.job import seen_from
from tests import builders
from tests.command import ROOT, Done, fails, riq

BATCH = ("compress", "--batch", "models", "--calibration", "{folder}/{stem}.npz", "--preset", "fast", "-o", "out")
UNREACHABLE = ("--preset", "paper", "--epsilon", "0.3", "--deviation", "1e-9")
DATA = """
import os, signal, time
import numpy as np

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

def slow():
    time.sleep(1000)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models/ of three models and their samples, out/ with their archives, and a module `data`."""
    folder = tmp_path_factory.mktemp("batch")
    for seed, name in enumerate(("a/one", "a/two", "three.v2")):
        path = folder / "models" / f"{name}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        builders.save(builders.dense(seed=seed), path.parent, path.name)
        samples(path.with_name(path.stem + ".npz"), seed)
    (folder / "data.py").write_text(DATA)
    done = riq(*BATCH, "--jobs", "2", folder=folder)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    return folder


def samples(path: Path, seed: int) -> None:
    np.savez(path, x=np.random.default_rng(seed).standard_normal((16, 16)).astype(np.float32))


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy of `prepared` to write into."""
    return Path(shutil.copytree(prepared, tmp_path / "work"))


def archives(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def statuses(done: Done) -> dict[str, str]:
    return {row["model"]: row["status"] for row in json.loads(done.stdout)["archives"]}


def test_archives_lie_as_the_models_do_and_are_those_of_each_alone(folder: Path) -> None:
    made = archives(folder / "out")
    assert sorted(made) == ["a/one.riqz", "a/two.riqz", "three.v2.riqz"]
    for name, content in made.items():
        stem = name.removesuffix(".riqz")
        alone = ("compress", f"models/{stem}.onnx", "--calibration", f"models/{stem}.npz", "--preset", "fast")
        assert riq(*alone, "-o", "alone.riqz", "-f", folder=folder).returncode == 0
        assert (folder / "alone.riqz").read_bytes() == content


def test_a_model_that_fails_or_misses_its_target_does_not_stop_the_others(folder: Path) -> None:
    shutil.rmtree(folder / "out")
    (folder / "models" / "a" / "broken.onnx").write_bytes(b"nonsense")
    done = riq(*BATCH[:5], *UNREACHABLE, "-o", "out", folder=folder)
    lines = done.stderr.decode().splitlines()
    errors = [line for line in lines if line.startswith("riq: error: ")]
    assert done.returncode == 1 and len(errors) == 4
    assert "riq: error: models/a/broken.onnx: models/a/broken.npz: no such file" in errors
    assert lines[-1] == "0 archives, 0 B; 3 missed; 1 failed"
    assert archives(folder / "out") == {}
    (folder / "models" / "a" / "broken.onnx").unlink()
    assert riq(*BATCH[:5], *UNREACHABLE, "-o", "out", folder=folder).returncode == 3


def test_what_is_there_is_gone_on_with(folder: Path) -> None:
    before = archives(folder / "out")
    (folder / "out" / "a" / "two.riqz").unlink()
    done = riq(*BATCH, "--json", folder=folder)
    assert done.returncode == 0 and archives(folder / "out") == before
    assert statuses(done) == {
        "models/a/one.onnx": "present",
        "models/a/two.onnx": "compressed",
        "models/three.v2.onnx": "present",
    }
    assert b"out/a/one.riqz: is there already" in done.stderr
    sums = json.loads(done.stdout)["totals"]
    assert (sums["archives"], sums["present"]) == (3, 2)
    assert sums["archive_bytes"] == sum(map(len, before.values()))


@pytest.mark.parametrize("other", ["model", "samples", "settings", "no archive"])
def test_an_archive_of_another_model_or_samples_or_settings_is_replaced_with_force_only(
    other: str, folder: Path
) -> None:
    before, options = archives(folder / "out"), BATCH
    if other == "model":
        builders.save(builders.dense(seed=9), folder / "models", "three.v2.onnx")
    elif other == "samples":
        samples(folder / "models" / "three.v2.npz", 9)
    elif other == "settings":
        shutil.rmtree(folder / "models" / "a")
        options = (*BATCH, "--deviation", "0.02")
    else:
        (folder / "out" / "three.v2.riqz").write_bytes(b"nonsense")
        before = archives(folder / "out")
    refused = riq(*options, folder=folder)
    assert refused.returncode == 1 and archives(folder / "out") == before
    assert b"out/three.v2.riqz: exists already, and is not of this model" in refused.stderr
    assert riq(*options, "--force", folder=folder).returncode == 0
    changed = {name for name, content in archives(folder / "out").items() if content != before[name]}
    assert changed == {"three.v2.riqz"}


def test_a_list_names_models_and_their_samples_beside_it(folder: Path) -> None:
    here = folder / "models" / "list.txt"
    here.write_text(f"# mine\n\na/one.onnx  a/one.npz\na/two.onnx\ta/two.npz\n{folder / 'models' / 'three.v2.onnx'}\n")
    done = riq(*BATCH[:2], here, *BATCH[3:-1], "listed", folder=folder)
    assert done.returncode == 0, done.stderr
    made = archives(folder / "listed")
    place = (folder / "models" / "three.v2.riqz").relative_to(folder.anchor).as_posix()
    known = archives(folder / "out")
    assert made == {"a/one.riqz": known["a/one.riqz"], "a/two.riqz": known["a/two.riqz"], place: known["three.v2.riqz"]}


def test_a_process_that_is_killed_ends_one_model_only(folder: Path) -> None:
    (folder / "list").write_text("models/a/one.onnx  data:killed\nmodels/a/two.onnx  models/a/two.npz\n")
    done = riq(*BATCH[:2], "list", "--preset", "fast", "-o", "new", folder=folder)
    assert done.returncode == 1
    assert b"riq: error: models/a/one.onnx: its process was killed, most often because memory ran out" in done.stderr
    assert list(archives(folder / "new")) == ["models/a/two.riqz"]


def test_an_archive_that_cannot_be_saved_leaves_its_checkpoint(folder: Path) -> None:
    """Its name is taken while the model is compressed."""
    (folder / "taking.py").write_text(
        "from pathlib import Path\n\n"
        "def metric(session):\n    Path('new/models/a/one.riqz').write_text('other')\n    return 1.0\n"
    )
    (folder / "list").write_text("models/a/one.onnx  models/a/one.npz\n")
    constrained = (*BATCH[:2], "list", "-o", "new", "--metric", "taking:metric", "--max-drop", "0.5")
    done = riq(*constrained, folder=folder)
    assert done.returncode == 1
    taken = b"new/models/a/one.riqz: exists already; use --force to replace it, or name another file; --resume goes on"
    assert taken in done.stderr
    assert sorted(archives(folder / "new")) == ["models/a/one.riqz", "models/a/one.riqz.checkpoint"]
    assert riq(*constrained, "--resume", "--force", folder=folder).returncode == 0
    assert list(archives(folder / "new")) == ["models/a/one.riqz"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_an_interruption_keeps_what_is_done_and_says_how_to_go_on(folder: Path) -> None:
    (folder / "list").write_text("models/a/one.onnx  models/a/one.npz\nmodels/a/two.onnx  data:slow\n")
    running = subprocess.Popen(
        [sys.executable, "-m", "riq_cli", *BATCH[:2], "list", "--preset", "fast", "-o", "new"],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stderr is not None
    assert running.stderr.readline().startswith("new/models/a/one.riqz: ")
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said == (
        "riq: error: interrupted after 1 of 2 models; the same command goes on with the others, and with --resume "
        "within those that had begun\n"
    )
    assert list(archives(folder / "new")) == ["models/a/one.riqz"]


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("MODEL is one model, and --batch names several", ("compress", "models/a/one.onnx", *BATCH[1:])),
        ("--log is of one model", (*BATCH, "--log", "search.jsonl")),
        ("--jobs belongs to --batch", ("compress", "models/a/one.onnx", "--jobs", "2")),
        ("--jobs is of this machine", (*BATCH, "--jobs", "2", "--scheduler", "tcp://host:8786")),
        ("workers cannot read stdin", ("compress", "-", "-o", "a.riqz", "--scheduler", "tcp://host:8786")),
        ("--batch needs -o FOLDER", BATCH[:-2]),
        ("empty: holds no model", (*BATCH[:2], "empty", *BATCH[3:])),
        ("neither a folder nor a list of models", (*BATCH[:2], "models/a/one.npz", *BATCH[3:])),
        ("list: line 2: write MODEL, or MODEL and its samples .* no ..", (*BATCH[:2], "list", *BATCH[3:])),
        ("twice: models/a/one.onnx and models/a/one.onnx both become", (*BATCH[:2], "twice", *BATCH[3:])),
        ("a deviation of 3 is not in", (*BATCH, "--deviation", "3")),
        ("Missing argument 'MODEL'", ("compress",)),
    ],
)
def test_wrong_usage_is_said_before_any_work(message: str, arguments: tuple[str, ...], folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "list").write_text("models/a/one.onnx\n../model.onnx\n")
    (folder / "twice").write_text("models/a/one.onnx\n./models/a/one.onnx\n")
    fails(2, message, *arguments, folder=folder)


# ---- riq report FOLDER ----


def test_a_folder_is_reported_as_a_table_with_its_sums(folder: Path) -> None:
    lines = riq("report", "out", folder=folder).stdout.decode().splitlines()
    assert lines[0].split() == ["archive", "size", "ratio", "bits/weight", "deviation"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:4]}
    assert set(rows) == set(archives(folder / "out"))
    document = json.loads(riq("report", "out", "--json", "--sort", "name", folder=folder).stdout)
    assert [row["archive"] for row in document["archives"]] == sorted(rows)
    for row in document["archives"]:
        alone = json.loads(riq("report", f"out/{row['archive']}", "--json", folder=folder).stdout)
        assert row.items() >= alone["totals"].items() and row.items() >= alone["result"].items()
    sources = sum(path.stat().st_size for path in (folder / "models").rglob("*.onnx"))
    size = sum(map(len, archives(folder / "out").values()))
    assert document["totals"]["ratio"] == sources / size
    assert lines[-1].startswith(f"3 archives, {size / 1000:.3g} kB, ×{sources / size:.2f} smaller than their models")


def test_bounds_are_for_each_archive_and_damaged_ones_do_not_hide_the_others(folder: Path) -> None:
    sizes = {name: len(content) for name, content in archives(folder / "out").items()}
    largest = max(sizes, key=lambda name: sizes[name])
    kept = riq("report", "out", "--max-size", sizes[largest], "-q", folder=folder)
    assert (kept.returncode, kept.stdout, kept.stderr) == (0, b"", b"")
    bound = sizes[largest] - 1
    missed = riq("report", "out", "--max-size", bound, folder=folder)
    assert missed.returncode == 3 and missed.stderr.count(b"\n") == list(sizes.values()).count(sizes[largest])
    assert f"riq: error: out/{largest}: {sizes[largest]:,} bytes".encode() in missed.stderr
    (folder / "out" / "bad.riqz").write_bytes(b"nonsense")
    damaged = riq("report", "out", "--max-size", bound, folder=folder)
    assert damaged.returncode == 1 and b"riq: error: out/bad.riqz: not a riq archive" in damaged.stderr
    assert b"3 archives" in damaged.stdout


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("a folder is reported alone", ("out", "out/a/one.riqz")),
        ("a folder is reported alone", ("out", "--markdown")),
        ("models: holds no archive", ("models",)),
    ],
)
def test_what_no_folder_has_is_wrong_usage(message: str, arguments: tuple[str, ...], folder: Path) -> None:
    fails(2, message, "report", *arguments, folder=folder)


def test_a_package_beside_the_models_is_not_taken_for_a_file_of_samples(tmp_path: Path) -> None:
    """Workers of a cluster get paths as they see them, and names of functions as they are."""
    (tmp_path / "data").mkdir()
    (tmp_path / "one.npz").touch()
    folder = str(tmp_path)
    assert seen_from(folder, "data") == str(tmp_path / "data")
    assert seen_from(folder, "data:samples") == "data:samples"
    assert seen_from(folder, "one.npz:x") == str(tmp_path / "one.npz:x")
    assert seen_from(folder, "nowhere.npz") == "nowhere.npz"
