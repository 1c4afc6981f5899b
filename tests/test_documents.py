"""README and pages: their commands and their Python run, their links lead somewhere, and what they show is so."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from riq_cli.cli.options import PRESETS
from riq_cli.cli.topics import TOPICS
from tests import builders
from tests.command import riq as run
from tests.test_action import ACTION, parse

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "sample_models"
PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "riq_cli" / "docs").glob("*.md")))}
SHELL = re.compile(r"[|>]")

EVALUATION = """
import numpy as np

with np.load("heldout.npz") as loaded:
    images = loaded["image"]
labels = np.load("heldout_labels.npy")
"""


def classifier() -> onnx.ModelProto:
    """A small network with the inputs and outputs of the sample models: sparse random features, and a fitted layer.

    The README's commands take a second on it, and many on a sample model.
    """
    with np.load(SAMPLES / "heldout.npz") as loaded:
        images = loaded["image"]
    classes = np.eye(10)[np.load(SAMPLES / "heldout_labels.npy")]
    pooled = images.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196)
    features = builders.Random(0)(196, 24) * (np.random.default_rng(0).random((196, 24)) < 0.2).astype(np.float32)
    hidden = np.maximum(pooled @ features, 0)
    fitted = np.linalg.lstsq(hidden, classes, rcond=None)[0].astype(np.float32)
    return builders.model(
        [
            builders.node("AveragePool", "image", "pooled", kernel_shape=[2, 2], strides=[2, 2]),
            builders.node("Flatten", "pooled", "flat"),
            builders.node("MatMul", "flat features", "sums"),
            builders.node("Relu", "sums", "hidden"),
            builders.node("MatMul", "hidden fitted", "logits"),
        ],
        [builders.info("image", "batch", 1, 28, 28)],
        [builders.info("logits", "batch", 10)],
        [builders.tensor("features", features), builders.tensor("fitted", fitted)],
    )


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page].read_text(), re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """The commands of riq in blocks of a console, and in jobs and hooks."""
    console = re.findall(r"^\$ ((?:.*\\\n)*.*)", "\n".join(blocks(page, "console")), re.MULTILINE)
    jobs = re.findall(r"(?:run|entry): (?:>\n +)?(riq .*(?:\n +--.*)*)", "\n".join(blocks(page, "yaml")))
    lines = [re.sub(r"\s+# .*", "", re.sub(r"\\?\n *", " ", text)) for text in (*console, *jobs)]
    return list(dict.fromkeys(line for line in lines if re.search(r"(^|\| )riq ", line)))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file names that the pages use, and with bin/riq."""
    folder = tmp_path_factory.mktemp("documents")
    builders.save(classifier(), folder)
    with np.load(SAMPLES / "calibration.npz") as samples, np.load(SAMPLES / "heldout.npz") as heldout:
        np.savez(folder / "samples.npz", image=samples["image"][:16])  # few: what a command does is asked, not how well
        np.save(folder / "photos.npy", heldout["image"][:80])
    np.save(folder / "labels.npy", np.load(SAMPLES / "calibration_labels.npy")[:16])
    shutil.copy(SAMPLES / "heldout.npz", folder / "heldout.npz")
    shutil.copy(SAMPLES / "heldout_labels.npy", folder / "heldout_labels.npy")
    (metric,) = blocks("loss.md", "py")
    (folder / "evaluation.py").write_text(EVALUATION + metric)
    runtime = folder / "node_modules" / "onnxruntime-web" / "dist"
    runtime.mkdir(parents=True)
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        (runtime / name).touch()
    (folder / "bin").mkdir()
    (folder / "bin" / "riq").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m riq_cli "$@"\n')
    (folder / "bin" / "riq").chmod(0o755)
    arguments = ("compress", "model.onnx", "--calibration", "samples.npz")
    sweep = ("sweep", *arguments[1:], "--presets", "fast", "--deviations", "0.02,0.01", "-o", "curve.csv")
    logged, old = (*arguments, "--log", "search.jsonl"), (*arguments, "--preset", "fast", "-o", "old.riqz")
    deployable = (*arguments, "--preset", "deployable", "-o", "deployable.riqz")
    for words in (logged, old, deployable, sweep):
        done = run(*words, folder=folder)
        assert done.returncode == 0, done.stderr
    shutil.copy(folder / "model.riqz", folder / "new.riqz")
    for name in ("models", "archives"):
        (folder / name).mkdir()
    shutil.copy(folder / "model.onnx", folder / "models" / "net.onnx")
    shutil.copy(folder / "samples.npz", folder / "models" / "net.npz")
    shutil.copy(folder / "old.riqz", folder / "archives" / "old.riqz")
    (folder / "models.txt").write_text("model.onnx  samples.npz\n")
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy of `prepared` to write into."""
    return Path(shutil.copytree(prepared, tmp_path / "work"))


def typed(command: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """The command line as a user of the folder would type it, at home there."""
    command = command.replace("500kB", "2.5kB")  # the model here is that much smaller
    if not SHELL.search(command):
        return run(*shlex.split(command)[1:], folder=folder)
    if shutil.which("sh") is None:
        pytest.skip("needs a shell")
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "HOME": str(folder), "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, env=environment, timeout=600)


@pytest.mark.parametrize(("page", "command"), [(page, command) for page in PAGES for command in commands(page)])
def test_every_command_works(page: str, command: str, folder: Path) -> None:
    if "plot" in command:
        pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    if "riq compress" in command:
        (folder / "model.riqz").unlink()
        (folder / "search.jsonl").unlink()
        (folder / "deployable.riqz").unlink()
    if "riq decompress" in command:
        (folder / "model.onnx").unlink()
    redirected = [folder / name.removeprefix("~/") for name in re.findall(r" > (\S+)", command)]
    for path in redirected:
        path.parent.mkdir(parents=True, exist_ok=True)
    done = typed(command, folder)
    assert done.returncode == 0, done.stderr
    prints = re.search("riq (report|verify|run|help)", command)
    prints = prints and not re.search("report.* --html|--plot|run.* -o", command)
    assert bool(done.stdout) == bool(prints and not redirected)
    assert all(path.stat().st_size for path in redirected)


def shape(printed: str) -> str:
    """What a command prints, without its numbers, and without what depends on them: the trellis and the advice."""
    numbered = re.sub(r"\d[\d,.]*(e-\d+)?( [kM]?B\b)?", "#", printed.strip())
    return re.sub(r" trellis|\n  advice .*", "", numbered)


def test_the_readme_shows_what_the_commands_print(folder: Path) -> None:
    (folder / "model.riqz").unlink()
    shown = [part for block in blocks("README.md", "console") for part in block.split("\n\n") if "\n" in part.strip()]
    shown = [part for part in shown if part.startswith("$ riq")]
    assert len(shown) == 3
    for part in shown:
        command, _, printed = part.partition("\n")
        done = typed(command.removeprefix("$ "), folder)
        assert shape((done.stdout + done.stderr).decode()) == shape(printed)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_of_a_page_works(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.riqz").unlink()
    monkeypatch.chdir(folder)
    exec(compile("\n".join(blocks(page, "python")), page, "exec"), {})
    assert (folder / ("restored.onnx" if page == "python.md" else "samples.npz")).exists()


def test_the_page_on_integration_names_every_input_of_the_action() -> None:
    text = PAGES["ci.md"].read_text()
    (given,) = re.findall(r"uses: ACCOUNT/riq/\.github/actions/riq@main\n.*?\n +with:\n((?: {10}.*\n)+)", text)
    used = re.findall(r"^ +([\w-]+):", given, re.MULTILINE)
    listed = [name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall("`(.*?)`", row)]
    assert sorted(used + listed) == sorted(parse(ACTION.read_text())["inputs"])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", PAGES[page].read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            assert (PAGES[page].parent / name).exists() and not anchor, target
    for topic in re.findall(r"`riq help (\S+)`", text):
        assert topic in (*TOPICS, "TOPIC", "COMMAND"), topic


@pytest.mark.parametrize("page", ["README.md", "commands.md"])
def test_presets_are_shown_as_help_has_them(page: str) -> None:
    rows = [f"| `{name}` | {' | '.join(cells)} |" for name, cells in PRESETS.items()]
    shown = rows[:4] if page == "README.md" else rows  # without the paper's presets
    table = "\n".join(["| preset | size | time | |", "|---|--:|--:|---|", *shown])
    assert f"<!-- presets:begin -->\n{table}\n<!-- presets:end -->" in PAGES[page].read_text()


def test_help_shows_the_pages_that_ship(tmp_path: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert '"FORMAT.md"' in project and '"riq_cli.docs" = ["*.md"]' in project
    assert {f"{topic}.md" for topic in TOPICS} == {*PAGES, "format.md"} - {"README.md"}
    for topic in TOPICS:
        page = ROOT / "riq_cli" / "FORMAT.md" if topic == "format" else PAGES[f"{topic}.md"]
        shown = re.sub("<!--.*-->\n", "", page.read_text()).strip()  # marks that only the bench reads
        assert run("help", topic, folder=tmp_path).stdout.decode().strip() == shown
    overview = run("help", folder=tmp_path).stdout.decode()
    assert overview == run("--help", folder=tmp_path).stdout.decode()
    assert all(f"\n  {topic} " in overview and line in overview for topic, line in TOPICS.items())


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
def test_pages_fit_a_terminal(page: str) -> None:
    lines = PAGES[page].read_text().splitlines()
    assert [line for line in lines if len(line) > 80 and not line.startswith("|")] == []


def test_a_topic_that_there_is_not_is_wrong_usage(tmp_path: Path) -> None:
    done = run("help", "comands", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"No such topic or command 'comands'. Did you mean commands? There are commands, how-it-works" in done.stderr
    assert b"Did you mean" not in run("help", "xyz", folder=tmp_path).stderr
    assert b"Did you mean compress?" in run("compres", folder=tmp_path).stderr


@pytest.mark.skipif(shutil.which("sed") is None or os.name != "posix", reason="needs a terminal and sed")
@pytest.mark.parametrize(("lines", "paged"), [(24, True), (200, False)])
def test_what_is_longer_than_the_terminal_goes_through_the_pager(lines: int, paged: bool) -> None:
    import pty

    command = [sys.executable, "-m", "riq_cli", "help", "limits"]
    variables = os.environ | {"PAGER": "sed s/^/paged/", "LINES": str(lines), "COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, env=variables) as running:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    assert running.returncode == 0
    assert shown.decode().startswith("paged# Limits" if paged else "# Limits")
