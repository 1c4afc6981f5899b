"""The commands as a user types them: exit codes, stdout, stderr, files."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from riq_cli import Archive
from riq_cli.version import VERSION
from tests import builders
from tests.command import ROOT, fails, riq


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.onnx, calibration.npz, heldout.npz and model.riqz."""
    folder = tmp_path_factory.mktemp("ready")
    builders.save(builders.dense(), folder)
    generator = np.random.default_rng(0)
    for name in ("calibration", "heldout"):
        np.savez(folder / f"{name}.npz", x=generator.standard_normal((12, 16)).astype(np.float32))
    done = riq("compress", "model.onnx", "--preset", "fast", "--calibration", "calibration.npz", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(ready: Path, tmp_path: Path) -> Path:
    """A copy of `ready` to write into."""
    return Path(shutil.copytree(ready, tmp_path / "work"))


def test_the_whole_way(folder: Path) -> None:
    (folder / "model.riqz").unlink()
    done = riq("compress", "model.onnx", "--deviation", "0.02", "--preset", "fast", "--calibration", "calibration.npz",
               folder=folder)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"")
    text = done.stderr.decode()
    assert re.match(r"model\.riqz: 1?\.?\d+ k?B, ×\d\.\d\d smaller than model\.onnx \(3\.\d+ kB\)\n", text)
    assert re.search(r"deviation  0\.0\d+ ± 0\.0\d+ ≤ 0\.02 \(relative error \d+ %\); 12 samples \(npz\)", text)
    assert re.search(r"    held out: 0\.0\d+ ± 0\.0\d+ \(relative error \d+ %\) on 3 of these samples", text)
    assert re.search(r"layers     2, 832 weights at \d\.\d+ bits/weight; ×\d\.\d\d by eq\. \(2\)", text)
    assert re.search(
        r"search     norm allocation, nearest rounding, k = [\d.]+, epsilon = 0; "
        r"\d+ evaluations, 0 probes, \d+\.\d s",
        text,
    )

    done = riq("decompress", "model.riqz", "-o", "restored.onnx", folder=folder)
    assert (done.returncode, done.stdout) == (0, b"")
    assert re.match(r"restored\.onnx: 3\.\d+ kB\n", done.stderr.decode())

    done = riq("verify", "model.riqz", "--against", "model.onnx", "--calibration", "heldout.npz", "--deviation", "0.1",
               folder=folder)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert re.match(
        r"model\.riqz: deviation 0\.0\d+ ± 0\.0\d+ \(relative error \d+ %\), within the bound of 0\.1; \d+ samples",
        done.stdout.decode(),
    )


def test_compress_json_always_parses_and_holds_the_facts(folder: Path) -> None:
    done = riq("compress", "model.onnx", "--preset", "fast", "--calibration", "calibration.npz", "-f", "--json",
               folder=folder)  # fmt: skip
    facts = json.loads(done.stdout)
    assert facts["archive"] == "model.riqz"
    assert facts["archive_bytes"] == (folder / "model.riqz").stat().st_size
    assert facts["source_bytes"] == (folder / "model.onnx").stat().st_size
    assert facts["ratio"] == facts["source_bytes"] / facts["archive_bytes"]
    assert facts["deviation"] <= facts["target"] == 0.01
    assert facts["evaluations"] > len(facts["trace"]) > 1  # the rest are of the other epsilon
    assert facts["layers"] == 2
    parts = ("header_bytes", "manifest_bytes", "skeleton_bytes", "table_bytes", "stream_bytes")
    assert sum(facts[part] for part in parts) == facts["archive_bytes"]


def test_without_calibration_random_samples_are_used_with_a_warning(folder: Path) -> None:
    done = riq("compress", "model.onnx", "-f", folder=folder)
    assert done.returncode == 0
    assert done.stderr.decode().startswith("riq: warning: no --calibration: measured on random samples")
    assert "4 random samples" in done.stderr.decode()


def test_quiet_prints_nothing_and_verbose_the_trace(folder: Path) -> None:
    assert riq("compress", "model.onnx", "-f", "-q", folder=folder).stderr == b""
    shown = riq("compress", "model.onnx", "-f", "-v", folder=folder).stderr.decode()
    assert re.search(r"^    k \d[\d.]* +deviation 0\.\d+$", shown, re.MULTILINE)


def test_the_summary_of_one_evaluation_and_of_nothing_to_code(folder: Path) -> None:
    arguments = ("compress", "model.onnx", "--calibration", "calibration.npz", "-f")
    text = riq(*arguments, "--k", "50", folder=folder).stderr.decode()
    assert re.search(r"k = 50, epsilon = 0\.01; 1 evaluation, 0 probes, \d", text)
    assert "; riq 0" in (shown := riq("report", "model.riqz", folder=folder).stdout.decode()) and "None" not in shown
    text = riq(*arguments, "--exclude", "*", folder=folder).stderr.decode()
    assert text.splitlines()[-1] == "  layers     none is coded: all of the model is stored as it is"


def test_the_log_holds_every_evaluation_and_probe_as_a_line_of_json(folder: Path) -> None:
    arguments = ("compress", "model.onnx", "--calibration", "calibration.npz", "-f", "--log", "search.jsonl")
    facts = json.loads(riq(*arguments, "--json", folder=folder).stdout)
    lines = [json.loads(line) for line in (folder / "search.jsonl").read_text().splitlines()]
    searched = [line for line in lines if line["phase"] == "search"]
    assert [line["evaluation"] for line in searched] == list(range(1, facts["evaluations"] + 1))
    assert set(searched[0]) == {
        "seconds", "phase", "evaluation", "allocation", "rounding", "epsilon", "k", "deviation", "failed_below",
        "held_from",
    }  # fmt: skip
    probed = [line for line in lines if line["phase"] in ("probe", "reprobe")]
    assert set(probed[0]) == {"seconds", "phase", "done", "total", "layer", "deviation"}
    assert all(0 < line["deviation"] < 1 and line["done"] <= line["total"] for line in probed)
    assert {line["layer"] for line in probed} >= {"first.weight", "second.weight"}
    assert len(probed) == facts["probes"]
    assert lines[-1] == {"phase": "result"} | {key: value for key, value in facts.items() if key != "trace"}
    assert [line["seconds"] for line in lines[:-1]] == sorted(line["seconds"] for line in lines[:-1])


def test_the_log_of_a_search_that_fails_ends_with_why(folder: Path) -> None:
    fails(3, "the best is", "compress", "model.onnx", "--calibration", "calibration.npz", "-o", "t.riqz", "--deviation",
          "1e-6", "--epsilon", "0.2", "--log", "search.jsonl", folder=folder)  # fmt: skip
    *searched, last = [json.loads(line) for line in (folder / "search.jsonl").read_text().splitlines()]
    assert last["phase"] == "failed"
    assert re.match("a deviation of 1e-06 is not reached with epsilon = 0.2: the best is", last["error"])
    assert searched and {line["phase"] for line in searched} == {"original", "search"}


def test_pipes_carry_archive_and_model(folder: Path) -> None:
    archive = riq(
        "compress", "model.onnx", "--preset", "fast", "--calibration", "calibration.npz", "-o", "-", folder=folder
    ).stdout
    assert archive == (folder / "model.riqz").read_bytes()
    restored = riq("decompress", "-", "-o", "-", folder=folder, data=archive).stdout
    riq("decompress", "model.riqz", "-o", "restored.onnx", folder=folder)
    assert restored == (folder / "restored.onnx").read_bytes()
    assert riq("report", "-", folder=folder, data=archive).stdout == riq("report", "model.riqz", folder=folder).stdout


def test_report_shows_every_layer_and_the_sums(ready: Path) -> None:
    text = riq("report", "model.riqz", folder=ready).stdout.decode()
    header, first, second = text.splitlines()[:3]
    assert header.split() == "layer shape bits/weight bytes share".split()
    assert first.split()[:2] == ["first.weight", "32×16"]
    assert second.split()[:2] == ["second.weight", "10×32"]
    wide = riq("report", "model.riqz", "--wide", folder=ready).stdout.decode()
    header, first, second = wide.splitlines()[:3]
    columns = "layer op shape coding symbols bin width codes entropy bits/weight bytes share"
    assert header.split() == columns.split()
    assert first.split()[:4] == ["first.weight", "Gemm", "32×16", "student"]
    assert second.split()[:4] == ["second.weight", "Gemm", "10×32", "student"]
    assert text.partition("\n\n")[2] == wide.partition("\n\n")[2]
    assert "2 layers, 832 weights at" in text
    assert "calibration: 12 samples, npz, SHA-256 " in text
    assert "settings: preset = fast, deviation = 0.01; riq 0.1.0" in text


def test_report_shows_codes_where_there_are_any() -> None:
    folder = ROOT / "tests" / "goldens"
    lines = riq("report", "v1-classes.riqz", "--wide", folder=folder).stdout.decode().splitlines()
    assert lines[0].split()[5:9] == ["bin", "width", "codes", "entropy"]
    shown = {line.split("  ")[0]: line for line in lines}
    assert " classes 40 " in shown["rows"]
    assert " scales 50, classes 24 " in shown["pairs"]
    assert " – " in shown["no classes"]
    assert any(line.startswith("  scales of rows and columns (codes) ") for line in lines)
    lines = riq("report", "v1-scales.riqz", "--wide", folder=folder).stdout.decode().splitlines()
    assert any(line.startswith("conv ") and " scales 12+45 " in line for line in lines)
    row = json.loads(riq("report", "v1-scales.riqz", "--json", folder=folder).stdout)["layers"][0]
    assert [(scale["axes"], scale["codes"]) for scale in row["scales"]] == [([0], 12), ([1, 2, 3], 45)]
    assert row["classes"] is None
    lines = riq("report", "v1-student.riqz", "--wide", folder=folder).stdout.decode().splitlines()
    shown = {line.split("  ")[0]: line for line in lines}
    assert " student " in shown["rows and columns"]
    assert " magnitudes 40+50 " in shown["rows and columns"]
    assert " magnitudes 24, trellis " in shown["lanes"]
    row = json.loads(riq("report", "v1-student.riqz", "--json", folder=folder).stdout)["layers"][0]
    assert [(item["axes"], item["codes"]) for item in row["magnitudes"]] == [([0], 40), ([1], 50)]


def test_report_json_and_sorting(ready: Path) -> None:
    document = json.loads(riq("report", "model.riqz", "--json", "--sort", "name", folder=ready).stdout)
    assert [row["name"] for row in document["layers"]] == ["first.weight", "second.weight"]
    assert set(document["layers"][0]) == {
        "name", "op", "shape", "dtype", "coding", "symbols", "bin_width", "entropy", "rate", "bytes", "share",
        "scales", "classes", "magnitudes", "trellis",
    }  # fmt: skip
    assert document["totals"]["archive_bytes"] == (ready / "model.riqz").stat().st_size
    for key in ("bytes", "rate"):
        rows = json.loads(riq("report", "model.riqz", "--json", "--sort", key, folder=ready).stdout)["layers"]
        assert [row[key] for row in rows] == sorted((row[key] for row in rows), reverse=True)


def test_verify_is_a_gate(ready: Path) -> None:
    arguments = ("verify", "model.riqz", "--against", "model.onnx", "--calibration")
    same = riq(*arguments, "calibration.npz", "--json", folder=ready)
    document = json.loads(same.stdout)
    assert (same.returncode, document["holds"], document["bound"]) == (0, True, 0.01)
    made = json.loads(riq("report", "model.riqz", "--json", folder=ready).stdout)["result"]
    assert document["deviation"] == made["deviation"]
    assert document["measured"] == made["measured"]
    assert len(document["samples"]) == 12
    said = riq(*arguments, "calibration.npz", "-v", folder=ready).stdout.decode().splitlines()[-1]
    worst = sorted(range(12), key=lambda number: -document["samples"][number])[:5]
    listed = ", ".join(f"{number} ({document['samples'][number]:.4g})" for number in worst)
    assert said == f"  worst samples, numbered from 0: {listed}"
    assert max(document["samples"]) == document["worst"]
    strict = riq(*arguments, "heldout.npz", "--deviation", "1e-6", folder=ready)
    assert strict.returncode == 3
    assert b"ABOVE the bound of 1e-06" in strict.stdout
    assert (
        json.loads(riq(*arguments, "heldout.npz", "--deviation", "1e-6", "--json", folder=ready).stdout)["holds"]
        is False
    )


def test_verify_writes_a_page_beside_its_verdict(folder: Path) -> None:
    arguments = ("verify", "model.riqz", "--against", "model.onnx", "--calibration", "heldout.npz", "--html")
    done = riq(*arguments, "page.html", "--deviation", "1e-6", folder=folder)
    assert done.returncode == 3
    assert b"ABOVE the bound" in done.stdout and done.stderr.startswith(b"page.html: ")
    page = (folder / "page.html").read_text()
    assert "does not hold" in page and "The worst samples" in page
    fails(1, "page.html: exists already", *arguments, "page.html", folder=folder)
    fails(1, "heldout.npz: is read by this command", *arguments, "heldout.npz", "-f", folder=folder)
    fails(2, "--json and --html - both want stdout", *arguments, "-", "--json", folder=folder)
    done = riq(*arguments, "-", "--deviation", "1e-6", folder=folder)
    assert (done.returncode, done.stdout.decode()) == (3, page)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("compress model.onnx", "deviation ratio rate k epsilon holdout scale mean std size"),
        ("sweep model.onnx", "deviations k epsilon holdout scale"),
        ("verify model.riqz --against model.onnx --calibration heldout.npz --json", "deviation scale"),
        ("report model.riqz", "min-ratio max-rate max-size"),
    ],
)
def test_numbers_are_finite(command: str, options: str, ready: Path) -> None:
    for option in options.split():
        for value in ("nan", "-inf"):
            message = rf"'--{option}': '{value}' is not a [a-z ]+; write [0-9a-z]"
            fails(2, message, *command.split(), f"--{option}", value, folder=ready)


def test_no_option_takes_what_is_not_finite() -> None:
    import click

    from riq_cli.cli.commands import riq as group

    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        assert not [param.name for param in command.params if isinstance(param.type, click.types.FloatParamType)]


def test_verify_warns_of_another_model(folder: Path) -> None:
    builders.save(builders.dense(seed=1), folder, "other.onnx")
    done = riq("verify", "model.riqz", "--against", "other.onnx", "--calibration", "heldout.npz", folder=folder)
    assert b"is not the file that model.riqz was made from" in done.stderr
    assert done.returncode == 3


@pytest.fixture(scope="module")
def broken(ready: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `ready` with models, archives and samples that are not as they should be."""
    folder = Path(shutil.copytree(ready, tmp_path_factory.mktemp("broken") / "work"))
    (folder / "text.onnx").write_text("this is not a model, not even close to one")
    (folder / "empty.onnx").write_bytes(b"")
    for name in ("mine.onnx", "mine.riqz", "mine.jsonl"):
        (folder / name).write_bytes(b"mine")
    (folder / "outside").mkdir()
    (builders.save_external(builders.dense(), folder / "outside")).rename(folder / "outside" / "model.onnx")
    (data,) = [path for path in (folder / "outside").iterdir() if path.suffix != ".onnx"]
    (folder / "data").symlink_to(data)
    strange = builders.dense()
    strange.graph.node[1].op_type = "NoSuchOperator"
    builders.save(strange, folder, "strange.onnx")
    free = builders.lstm()
    free.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    free.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "time"
    builders.save(free, folder, "free.onnx")
    archive = bytearray((folder / "model.riqz").read_bytes())
    (folder / "cut.riqz").write_bytes(archive[:-7])
    archive[-3] ^= 1
    (folder / "flipped.riqz").write_bytes(archive)
    archive[8] = 9
    (folder / "newer.riqz").write_bytes(archive)
    np.savez(folder / "name.npz", y=np.zeros((3, 16), np.float32))
    np.savez(folder / "shape.npz", x=np.zeros((3, 5), np.float32))
    np.savez(folder / "type.npz", x=np.zeros((3, 16), int))
    (folder / "zip.npz").write_bytes(b"PK\x03\x04 nonsense")
    return folder


COMPRESS = "compress model.onnx --calibration calibration.npz -o t.riqz"


@pytest.mark.parametrize(
    ("code", "message", "command"),
    [
        # wrong usage
        (2, r"No such command 'compres'\. Did you mean compress\? There are compress, decompress", "compres"),
        (2, "No such option", "compress model.onnx --deviate 1"),
        (2, "File 'none.onnx' does not exist", "compress none.onnx"),
        (2, "'lots' is not a size; write 500kB, 5MB or 2GiB", "decompress model.riqz -o t.onnx --max-size lots"),
        (2, "write height=224", "compress model.onnx --dim time"),
        (2, "t.riqz: two outputs have this name; give one of them another", f"{COMPRESS} --log ./t.riqz"),
        # settings are called by their options
        (2, r"--epsilon 1 is not in \[0, 1\)$", f"{COMPRESS} --epsilon 1"),
        (2, r"--holdout 1\.5 is not in \[0, 1\)$", f"{COMPRESS} --holdout 150%"),
        (2, r"--k -1 is not positive$", f"{COMPRESS} --k -1"),
        (2, r"--k has no meaning for the measured allocation; ", f"{COMPRESS} --k 100 --preset small"),
        (2, r"--k 1e-300 is not in 1e-30 … 1e\+30, where bin widths are doubles$", f"{COMPRESS} --k 1e-300"),
        (2, r"compensated rounding does not go with --max-bits; leave out one",
         f"{COMPRESS} --max-bits 4 --rounding compensated"),
        (2, r"a deviation of 2 is not in \(0, 1\]; 0\.01 is 1 %$", f"{COMPRESS} --deviation 2"),
        (2, r"no tensor 'max_bits = 3' in the model", f"{COMPRESS} --output 'max_bits = 3'"),
        (1, "'time' is free and has no size; give it with --dim time=N", "compress free.onnx --min-size 1"),
        # outputs are not replaced, and sources never touched
        (1, "mine.riqz: exists already; use --force", "compress model.onnx -o mine.riqz"),
        (1, "mine.onnx: exists already; use --force", "decompress model.riqz -o mine.onnx"),
        (1, "mine.jsonl: exists already; use --force", f"{COMPRESS} --log mine.jsonl"),
        (1, "nowhere/t.riqz: cannot be written: No such file", "compress model.onnx -o nowhere/t.riqz"),
        (1, "nowhere/l.jsonl: cannot be written", f"{COMPRESS} --log nowhere/l.jsonl"),
        (1, "model.onnx: is read by this command and never overwritten", "compress model.onnx -o model.onnx -f"),
        (1, "model.onnx: is read by this command", f"{COMPRESS} --log model.onnx -f"),
        (1, "calibration.npz: is read by this command", f"{COMPRESS} --log calibration.npz -f"),
        (1, "calibration.npz: is read by this command",
         "compress model.onnx --calibration calibration.npz -o calibration.npz -f"),
        (1, "model.riqz: is read by this command", "decompress model.riqz -o model.riqz -f"),
        (1, "data: is read by this command", "compress outside/model.onnx -o data -f"),
        # models and archives
        (1, "text.onnx: not an ONNX model", "compress text.onnx"),
        (1, "empty.onnx: not an ONNX model", "compress empty.onnx"),
        (1, "onnxruntime cannot run the model: .*NoSuchOperator", "compress strange.onnx"),
        (1, "model.onnx: not a riq archive", "decompress model.onnx -o t.onnx"),
        (1, "model.onnx: not a riq archive", "report model.onnx"),
        (1, "cut.riqz: the archive is cut off: ", "decompress cut.riqz"),
        (1, "flipped.riqz: layer 'second.weight': .*; the archive is damaged", "decompress flipped.riqz"),
        (1, "newer.riqz: archive version 9; .* install a newer one", "decompress newer.riqz"),
        (1, "the limit is 1,000; .* raise it with --max-size", "decompress model.riqz -o t.onnx --max-size 1kB"),
        # samples: names, shapes and types show both sides
        (1, r"data has y; the model's inputs are x float32\[batch, 16\]",
         "compress model.onnx --calibration name.npz -f"),
        (1, r"data has shape \[3, 5\], the model takes x float32\[batch, 16\]",
         "compress model.onnx --calibration shape.npz -f"),
        (1, r"data is int64, the model takes float32; convert it with .astype\('float32'\)",
         "compress model.onnx --calibration type.npz -f"),
        (1, "zip.npz: not a file of NumPy arrays but a zip archive", "compress model.onnx --calibration zip.npz -f"),
        (1, "nowhere.npz: no such file", "compress model.onnx --calibration nowhere.npz -f"),
        # targets out of reach
        (3, "the best is .*; give a smaller --epsilon, such as 0$", f"{COMPRESS} --deviation 1e-6 --epsilon 0.2"),
        (3, "give a larger --deviation, or keep sensitive layers exact with --exclude",
         f"{COMPRESS} --deviation 1e-18"),
        (3, "at k = 10 the deviation is", f"{COMPRESS} --k 10 --deviation 1e-6"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_told_in_one_line_and_leaves_all_files_as_they_were(
    code: int, message: str, command: str, broken: Path
) -> None:
    before = {path.name: path.read_bytes() for path in broken.iterdir() if path.is_file()}
    fails(code, message, *shlex.split(command), folder=broken)
    assert {path.name: path.read_bytes() for path in broken.iterdir() if path.is_file()} == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["decompress model.riqz -o -", "report model.riqz", "--help", "completion bash"])
def test_a_full_disk_is_told(folder: Path, command: str, unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "riq_cli", *command.split()],
            cwd=folder, stdout=full, stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert done.returncode == 1
    assert b"riq: error: " in done.stderr
    assert done.stderr.count(b"No space left on device") == 1
    assert b"Traceback" not in done.stderr


def test_a_reader_that_leaves_is_no_error_to_show(ready: Path) -> None:
    command = f"{sys.executable} -m riq_cli report model.riqz | head -1"
    done = subprocess.run(
        command, shell=True, cwd=ready, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.stderr == b""
    assert done.stdout.startswith(b"layer")


def test_a_package_that_is_missing_is_told(ready: Path) -> None:
    script = (
        "import sys; sys.modules['onnx'] = None; sys.argv = ['riq', 'compress', 'model.onnx', '-o', 'x']; "
        "from riq_cli.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ready, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 1
    message = f"riq: error: this Python, {sys.executable}, has no package 'onnx'; install riq again, with pip\n"
    assert done.stderr.decode() == message


COMMANDS = ("compress", "decompress", "verify", "test", "run", "report", "sweep", "plot", "web", "completion", "help")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_never_a_topic(command: str, tmp_path: Path) -> None:
    assert riq("help", command, folder=tmp_path).stdout.startswith(f"Usage: riq {command} ".encode())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_a_page_of_a_manual_whose_examples_have_options_that_there_are(command: str, ready: Path) -> None:
    import click

    from riq_cli.cli.commands import riq as group

    text = riq(command, "--help", folder=ready, COLUMNS="200").stdout.decode()
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert re.match(rf"Usage: riq {command} (?!\[OPTIONS\])", text)  # a synopsis
    assert f"Examples:\n  riq {command} " in text
    headings = re.findall(r"^([A-Z][\w ]*):$", text, re.MULTILINE)
    assert headings[-2:] == ["Examples", "Exit codes"]
    assert len(headings) == len(set(headings)) and ("Options" in headings) is (command in ("completion", "help"))
    codes = re.findall(r"^  (\d)  ", text.split("Exit codes:\n")[1], re.MULTILINE)
    assert codes == ["0", "1", "2", "3"][: 4 if command in ("compress", "report", "verify") else 3]
    found = group.get_command(click.Context(group), command)
    assert found is not None
    known = {option for param in found.params for option in param.opts}
    examples = text.replace("\\\n", " ").split("Examples:")[1]
    for line in re.findall(rf"^  riq {command} .*", examples, re.MULTILINE):
        words = shlex.split(line.split(" | ")[0], comments=True)
        assert {word for word in words if re.match("--?[a-z]", word)} <= known, line


def test_without_a_command_the_help_is_shown_as_it_is(ready: Path) -> None:
    top = riq("--help", folder=ready).stdout.decode()
    assert "Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 target not reached" in top
    assert all(f"\n  {command} " in top for command in COMMANDS)
    done = riq(folder=ready)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", top)
    assert riq("--version", folder=ready).stdout.decode() == f"riq, version {VERSION}\n"


@pytest.mark.parametrize(
    "fields",
    [{"result": {"measured": 5}}, {"result": {"k": "x"}}, {"source": {"bytes": "x"}}, {"settings": {"outputs": 5}}],
)
def test_an_archive_made_to_mislead_gives_no_traceback(fields: dict[str, Any], folder: Path) -> None:
    with Archive.open(folder / "model.riqz") as archive:
        archive.described(**fields).save(folder / "hostile.riqz")
    for command in (("report",), ("verify", "--against", "model.onnx", "--calibration", "heldout.npz")):
        fails(1, "hostile.riqz: ", command[0], "hostile.riqz", *command[1:], folder=folder)
