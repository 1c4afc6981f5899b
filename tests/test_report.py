"""`riq report`: gates, the difference of two archives, and the command that makes an archive again."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from riq_cli.archive import Archive, LayerEntry, Manifest, SkeletonEntry, deflate
from riq_cli.cli import markdown
from riq_cli.pipeline import PRESETS, Settings
from riq_cli.report import SortKey, command, difference, totals
from tests import builders
from tests.command import riq as run

ROOT = Path(__file__).parent.parent


def riq(folder: Path, *arguments: str, data: bytes | None = None) -> subprocess.CompletedProcess[str]:
    done = run(*arguments, folder=folder, data=data)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def entry(name: str, place: int, stored: int, size: int = 1000, crc32: int = 0, width: float = 0.1) -> LayerEntry:
    return LayerEntry(name, "Conv", (f"graph.initializer[{place}]",), "float32", (size,), "ans", 9, 2.0, 10,
                      (stored - 10,), crc32, width)  # fmt: skip


def archive(*layers: LayerEntry, skeleton: bytes = b"skeleton", **fields: object) -> Archive:
    stored = deflate(skeleton)
    about = {
        "source": {"bytes": 40_000, "sha256": "ab"},
        "calibration": {"kind": "npz", "samples": 64, "sha256": "cd"},
        "settings": {"deviation": 0.01},
        "result": {"deviation": 0.009, "worst": 0.04, "k": 300.0},
        "creator": "riq 0.1.0",
    } | fields
    manifest = Manifest(SkeletonEntry(len(stored), len(skeleton), 0), layers, **about)  # type: ignore[arg-type]
    return Archive.build(manifest, [stored, *(bytes(layer.stored) for layer in layers)])


OLD = archive(entry("same", 0, 200), entry("finer", 1, 400), entry("gone", 2, 100), entry("twice", 3, 50),
              entry("twice", 4, 60))  # fmt: skip
NEW = archive(entry("same", 0, 200), entry("twice", 1, 50), entry("twice", 2, 66, crc32=1),
              entry("finer", 3, 650, crc32=1, width=0.05), entry("fresh", 4, 30),
              settings={"deviation": 0.005, "exclude": ["gone"]},
              result={"deviation": 0.004, "worst": 0.02, "k": 500.0})  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    OLD.save(tmp_path / "old.riqz")
    NEW.save(tmp_path / "new.riqz")
    return tmp_path


# ---- difference ----


def layers(sort: SortKey) -> list[tuple[str, str, int]]:
    return [(layer["name"], layer["status"], layer["bytes"]) for layer in difference(OLD, NEW, sort)["layers"]]


def test_layers_are_paired_by_name_and_order_and_sorted_by_how_much_they_changed() -> None:
    assert layers("model") == [
        ("same", "unchanged", 0),
        ("twice", "unchanged", 0),
        ("twice", "changed", 6),
        ("finer", "changed", 250),
        ("fresh", "added", 30),
        ("gone", "removed", -100),
    ]
    assert [name for name, *_ in layers("bytes")[:4]] == ["finer", "gone", "fresh", "twice"]
    assert [name for name, *_ in layers("rate")[:2]] == ["finer", "twice"]
    assert [name for name, *_ in layers("name")] == ["finer", "fresh", "gone", "same", "twice", "twice"]


def test_totals_settings_and_data_are_compared() -> None:
    found = difference(OLD, NEW)
    for side, made, deviation in (("old", OLD, 0.009), ("new", NEW, 0.004)):
        known = {"archive_bytes": made.size, "ratio": 40_000 / made.size, "deviation": deviation, "holdout": None}
        assert known.items() <= found[side].items()
    assert found["settings"] == {
        "deviation": {"old": 0.01, "new": 0.005}, "exclude": {"old": None, "new": ["gone"]}
    }  # fmt: skip
    assert found["presets"] == {"old": "small", "new": "small"}
    assert (found["same_source"], found["same_calibration"]) == (True, True)
    other = difference(OLD, archive(source={"sha256": "xy"}, calibration={}))
    assert (other["same_source"], other["same_calibration"]) == (False, None)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_named_by_what_the_archive_says_of_its_settings(preset: str) -> None:
    made = archive(settings=Settings(deviation=0.02, exclude=("w",), **PRESETS[preset]).recorded())
    found = difference(archive(settings={}), made)
    assert found["presets"] == {"old": None, "new": preset}
    assert found["settings"] == {"deviation": {"old": None, "new": 0.02}, "exclude": {"old": None, "new": ["w"]}}
    of_k = archive(settings=Settings(k=300.0).recorded())
    assert difference(made, of_k)["presets"] == {"old": preset, "new": None}
    first = "riq compress MODEL --calibration DATA" + ("" if preset == "small" else f" --preset {preset}")
    assert command(made.manifest) == f"{first} --deviation 0.02 --exclude w"


def test_samples_are_the_same_by_a_whole_digest_and_by_the_beginning_that_newer_archives_keep() -> None:
    old, new = archive(calibration={"sha256": "cd" * 32}), archive(calibration={"sha256": "cd" * 8})
    other = archive(calibration={"sha256": "cd" * 7 + "00"})
    assert difference(old, new)["same_calibration"] is difference(new, old)["same_calibration"] is True
    assert difference(old, other)["same_calibration"] is difference(other, old)["same_calibration"] is False


def test_the_difference_as_text(folder: Path) -> None:
    done = riq(folder, "report", "old.riqz", "new.riqz")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("old.riqz → new.riqz: 1.")
    lines = [re.sub("  +", "|", line) for line in done.stdout.splitlines()]
    assert f"archive, bytes|{OLD.size:,}|{NEW.size:,}|+{NEW.size - OLD.size}|+{NEW.size / OLD.size - 1:.1%}" in lines
    assert "deviation|0.009|0.004|−0.005|−55.6%" in lines
    assert "worst sample|0.04|0.02|−0.02|−50.0%" in lines
    assert "finer|400|650|+62.5%|3.20 → 5.20" in lines
    assert "gone|100|–|removed|0.80 → –" in lines
    assert "fresh|–|30|added|– → 0.24" in lines
    assert lines[-4:] == [
        "layers: 2 changed, 1 added, 1 removed, 2 unchanged",
        "preset: small in both",
        "setting deviation: 0.01 → 0.005",
        "setting exclude: default → ['gone']",
    ]
    same = riq(folder, "report", "old.riqz", "old.riqz").stdout
    assert re.match(r"old\.riqz → old\.riqz: 1\.\d+ kB as before\n", same)
    assert same.endswith("\n\nlayers: 5 unchanged\npreset: small in both\n")
    wide = [
        re.sub("  +", "|", line) for line in riq(folder, "report", "old.riqz", "new.riqz", "--wide").stdout.splitlines()
    ]
    assert "finer|changed|400|650|+250|+62.5%|3.20|5.20" in wide
    assert "gone|removed|100|–|−100|0.80|–" in wide
    assert "fresh|added|–|30|+30|–|0.24" in wide


def test_the_difference_as_json(folder: Path) -> None:
    done = riq(folder, "report", "old.riqz", "new.riqz", "--json")
    document = json.loads(done.stdout)
    assert set(document) == {
        "old", "new", "change", "presets", "settings", "same_source", "same_calibration", "layers", "gates"
    }  # fmt: skip
    assert document["old"]["archive"] == "old.riqz"
    assert document["change"]["archive_bytes"] == NEW.size - OLD.size
    assert document["layers"][0] == {
        "name": "finer", "status": "changed", "bytes": 250, "rate": 2.0,
        "old": {"shape": [1000], "dtype": "float32", "coding": "ans", "symbols": 9, "bin_width": 0.1, "entropy": 2.0,
                "rate": 3.2, "bytes": 400},
        "new": {"shape": [1000], "dtype": "float32", "coding": "ans", "symbols": 9, "bin_width": 0.05, "entropy": 2.0,
                "rate": 5.2, "bytes": 650},
    }  # fmt: skip


def test_the_difference_as_markdown(folder: Path) -> None:
    text = riq(folder, "report", "old.riqz", "new.riqz", "--markdown").stdout
    assert text.startswith("### `old.riqz` → `new.riqz`: 1.")
    assert "| deviation | 0.009 | 0.004 | −0.005 | −55.6% |" in text
    assert "<details><summary>layers: 2 changed, 1 added, 1 removed, 2 unchanged</summary>" in text
    assert "| `finer` | changed | 400 | 650 | +250 | +62.5% | 3.20 | 5.20 |" in text
    assert text.endswith(
        "- preset: small in both\n- setting `deviation`: `0.01` → `0.005`\n"
        "- setting `exclude`: `default` → `['gone']`\n"
    )


def test_two_archives_of_one_name_are_called_by_their_paths_and_other_data_is_told(folder: Path) -> None:
    (folder / "main").mkdir()
    archive(source={"sha256": "xy", "bytes": 1}, calibration={"sha256": "zz"}).save(folder / "main" / "new.riqz")
    text = riq(folder, "report", "main/new.riqz", "new.riqz").stdout
    assert text.startswith("main/new.riqz → new.riqz: ")
    assert "the source models differ (SHA-256)\nthe calibration samples differ (SHA-256): the deviations are" in text
    assert riq(folder, "report", "main/new.riqz", "old.riqz").stdout.startswith("new.riqz → old.riqz: ")


def test_archives_that_cannot_be_compared(folder: Path) -> None:
    def refused(message: str, *arguments: str) -> None:
        done = riq(folder, "report", *arguments, data=b"")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"riq: error: {message}\n")

    refused("one archive to report on, or two to compare; 3 were given", "old.riqz", "new.riqz", "old.riqz")
    refused("only one of two archives can come from stdin", "-", "-")
    refused("--html shows one archive; leave out one of the two", "old.riqz", "new.riqz", "--html", "x.html")
    refused("--json and --markdown both want stdout; give one of them", "old.riqz", "--json", "--markdown")
    every = ("old.riqz", "--json", "--markdown", "--html", "-")
    refused("--json, --markdown and --html - all want stdout; give one of them", *every)
    assert riq(folder, "report").returncode == 2
    (folder / "bad.riqz").write_bytes(b"x")
    for pair in (("old.riqz", "bad.riqz"), ("bad.riqz", "old.riqz")):
        assert (
            riq(folder, "report", *pair).stderr
            == "riq: error: bad.riqz: not a riq archive but text; is it the right file?\n"
        )
    piped = riq(folder, "report", "-", "new.riqz", data=(folder / "old.riqz").read_bytes())
    assert piped.stdout.splitlines()[2:] == riq(folder, "report", "old.riqz", "new.riqz").stdout.splitlines()[2:]


def test_the_parts_of_an_archive_add_up() -> None:
    assert [name for name, _ in totals(OLD).parts] == ["streams", "tables", "skeleton", "manifest"]
    with_codes = totals(Archive.open(ROOT / "tests" / "goldens" / "v1-scales.riqz"))
    assert [name for name, _ in with_codes.parts] == ["streams", "tables", "codes", "skeleton", "manifest"]
    for sums in (totals(OLD), with_codes):
        assert sum(size for _, size in sums.parts) == sums.archive_bytes


# ---- markdown ----


def test_one_archive_as_markdown(folder: Path) -> None:
    text = riq(folder, "report", "old.riqz", "--markdown").stdout
    size = f"{OLD.size / 1000:.3g} kB | 40 kB | ×{40_000 / OLD.size:.2f}"
    assert text.startswith(
        "### `old.riqz`\n\n| size | source | ratio | bits/weight | deviation | worst sample |\n"
        f"| --: | --: | --: | --: | --: | --: |\n| {size} | 1.3 | 0.009 (relative error 13 %); target 0.01 | 0.04 |\n"
    )
    rate = f"{3200 / 1000:.2f}"
    assert f"| `finer` | `Conv` | 1000 | ans | 0.1 | {rate} | 400 | {400 / OLD.size:.1%} |" in text


def test_long_tables_are_cut_in_markdown() -> None:
    text = "\n".join(markdown.report(archive(*(entry(f"w{n}", n, 100 + n) for n in range(130))), "m.riqz", "bytes"))
    assert text.count("| ans |") == 100
    assert "| `w129` |" in text and "| `w29` |" not in text
    assert "… and 30 more" in text


def test_an_archive_above_its_source_is_larger_in_words(tmp_path: Path) -> None:
    made = archive(entry("w", 0, 400), source={"bytes": 500})
    made.save(tmp_path / "large.riqz")
    assert f"×{made.size / 500:.2f} larger than the source (500 B)" in riq(tmp_path, "report", "large.riqz").stdout


# ---- gates ----


def test_gates_pass_quietly(folder: Path) -> None:
    plain = riq(folder, "report", "old.riqz")
    exactly = ("--max-size", str(OLD.size), "--max-rate", str(totals(OLD).rate))
    assert riq(folder, "report", "old.riqz", "-q", *exactly).stdout == ""
    for gates in (("--max-size", "2MB", "--min-ratio", "8", "--max-rate", "3"), exactly):
        done = riq(folder, "report", "old.riqz", *gates)
        assert (done.returncode, done.stdout, done.stderr) == (0, plain.stdout, "")


def test_a_missed_gate_exits_with_3_and_says_by_how_much(folder: Path) -> None:
    done = riq(folder, "report", "old.riqz", "--max-size", "1kB", "--min-ratio", "100", "--max-rate", "1")
    assert done.returncode == 3
    assert done.stdout == riq(folder, "report", "old.riqz").stdout  # the report is there all the same
    assert done.stderr == (
        f"riq: error: old.riqz: {OLD.size:,} bytes ({OLD.size / 1000:.3g} kB) are above --max-size 1,000; "
        f"a ratio of {40_000 / OLD.size:.4g} is below --min-ratio 100; 1.296 bits/weight are above --max-rate 1\n"
    )
    archive(source={}).save(folder / "unknown.riqz")
    done = riq(folder, "report", "unknown.riqz", "--min-ratio", "2", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["gates"] == [{"gate": "min-ratio", "bound": 2.0, "found": None, "holds": False}]
    assert done.stderr == (
        "riq: error: unknown.riqz: the archive does not say how large its source is, so --min-ratio cannot be checked\n"
    )


def test_of_two_archives_the_new_one_is_checked(folder: Path) -> None:
    between = str((OLD.size + NEW.size) // 2)
    assert riq(folder, "report", "new.riqz", "old.riqz", "--max-size", between).returncode == 0
    done = riq(folder, "report", "old.riqz", "new.riqz", "--max-size", between)
    assert done.returncode == 3
    assert done.stderr.startswith(f"riq: error: new.riqz: {NEW.size:,} bytes")


def test_a_model_of_any_size_is_reported(tmp_path: Path) -> None:
    large = replace(entry("w", 0, 100), shape=(1 << 20, 1 << 20), streams=(0,) * (1 << 20))
    archive(large).save(tmp_path / "large.riqz")
    assert "w " in riq(tmp_path, "report", "large.riqz").stdout  # 4 TiB restored; nothing is restored here


# ---- reproduction ----


def test_the_command_holds_every_setting() -> None:
    settings = {
        "deviation": None, "ratio": 8.0, "allocation": "norm", "min_size": 100, "batch_size": 4,
        "outputs": ["a b", "c"], "dims": {"height": 224}, "exclude": ["*em'b*"], "new_flag": True, "off": False,
    }  # fmt: skip
    manifest = replace(OLD.manifest, settings=settings)
    assert command(manifest) == (
        "riq compress MODEL --calibration DATA --preset fast --batch-size 4 --dim height=224 "
        """--exclude '*em'"'"'b*' --min-size 100 --new-flag --output 'a b' --output c --ratio 8.0"""
    )
    manifest = replace(OLD.manifest, settings={"$(rm)": "`x`\x1b"}, calibration={"kind": "random"})
    assert command(manifest) == r"riq compress MODEL '--$(rm)' '`x`\x1b'"


def test_the_command_makes_the_same_bytes_again(tmp_path: Path) -> None:
    builders.save(builders.dense(), tmp_path)
    x = np.random.default_rng(0).standard_normal((12, 16)).astype(np.float32)
    np.savez(tmp_path / "calibration.npz", x=x)
    given = ["--calibration", "calibration.npz", "--preset", "paper", "--deviation", "0.02", "--max-bits", "8",
             "--exclude", "second*", "--output", "y", "--dim", "batch=1"]  # fmt: skip
    name = builders.dense().graph.output[0].name
    given[given.index("y")] = name
    assert riq(tmp_path, "compress", "model.onnx", *given).returncode == 0
    first = (tmp_path / "model.riqz").read_bytes()
    again = json.loads(riq(tmp_path, "report", "model.riqz", "--json").stdout)["command"]
    shown = riq(tmp_path, "report", "model.riqz").stdout
    assert f"exclude = second*, max_bits = 8, outputs = {name}" in shown and "dims = batch=1" in shown
    program, *arguments = shlex.split(again)
    assert program == "riq"
    for placeholder, name in (("MODEL", "model.onnx"), ("DATA", "calibration.npz")):
        arguments[arguments.index(placeholder)] = name
    assert riq(tmp_path, *arguments, "-f", "-q").returncode == 0
    assert (tmp_path / "model.riqz").read_bytes() == first


# ---- completion ----


def completed(folder: Path, line: str) -> list[str]:
    """What bash would offer at the end of a line, as type,value."""
    words = shlex.split(line) + ([""] if line.endswith(" ") else [])
    done = run(folder=folder, _RIQ_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    assert done.stderr == b""
    return done.stdout.decode().splitlines()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("a.onnx", "b.onnx", "m.riqz", "data.npz", "notes.txt", ".hidden.onnx", "has space.npy"):
        (tmp_path / name).touch()
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "c.onnx").touch()
    return tmp_path


def test_commands_options_and_choices_are_completed(models: Path) -> None:
    assert completed(models, "riq c") == ["plain,compress", "plain,completion"]
    assert completed(models, "riq report --ma") == ["plain,--markdown", "plain,--max-size", "plain,--max-rate"]
    assert completed(models, "riq compress a.onnx --preset ") == [
        f"plain,{name}" for name in ("fast", "balanced", "small", "smallest", "deployable", "paper", "uniform")
    ]
    assert completed(models, "riq help com") == ["plain,commands", "plain,compress", "plain,completion"]
    assert completed(models, "riq completion ") == ["plain,bash", "plain,zsh", "plain,fish"]


def test_files_are_completed_by_what_the_command_takes(models: Path) -> None:
    assert completed(models, "riq compress ") == ["plain,a.onnx", "plain,b.onnx", "plain,zoo/"]
    assert completed(models, "riq compress zoo/") == ["plain,zoo/c.onnx"]
    assert completed(models, f"riq compress {models}/a") == [f"plain,{models}/a.onnx"]
    assert completed(models, "riq compress .h") == ["plain,.hidden.onnx"]
    assert completed(models, "riq decompress m") == ["plain,m.riqz"]
    assert completed(models, "riq report m.riqz m") == ["plain,m.riqz"]
    assert completed(models, "riq verify m.riqz --against b") == ["plain,b.onnx"]
    assert completed(models, "riq compress a.onnx --calibration d") == ["plain,data.npz"]


def test_where_the_shell_knows_better_it_completes_itself(models: Path) -> None:
    assert completed(models, "riq compress zo") == ["file,zo"]  # a folder: no space after it
    assert completed(models, "riq compress a.onnx --calibration h") == ["file,h"]  # needs quotes
    assert completed(models, "riq compress nowhere/") == ["file,nowhere/"]
    assert completed(models, "riq decompress m.riqz -o ") == ["file,"]


def with_riq(folder: Path) -> dict[str, str]:
    """An environment in which a shell finds the program, in the folder's bin."""
    program = folder / "bin" / "riq"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m riq_cli "$@"\n')
    program.chmod(0o755)
    return os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("shell", "script"),
    [
        (["bash", "-c"], 'eval "$(riq completion bash)"; COMP_WORDS=(riq compress ""); COMP_CWORD=2; '
         '_riq_completion riq "" compress; printf "%s\\n" "${COMPREPLY[@]}"'),
        (["fish", "--no-config", "-c"], 'riq completion fish | source; complete --do-complete "riq compress "'),
    ],
    ids=["bash", "fish"],
)  # fmt: skip
def test_the_script_for_a_shell_completes_in_it(shell: list[str], script: str, models: Path) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"no {shell[0]}")
    done = subprocess.run([*shell, script], cwd=models, capture_output=True, env=with_riq(models), text=True)
    assert (done.stdout.split(), done.stderr) == (["a.onnx", "b.onnx", "bin/", "zoo/"], "")


def test_scripts_for_all_shells_name_riq(tmp_path: Path) -> None:
    for shell, word in (("bash", "complete -o nosort"), ("zsh", "#compdef riq"), ("fish", "complete --no-files")):
        done = riq(tmp_path, "completion", shell)
        assert (done.returncode, done.stderr) == (0, "")
        assert word in done.stdout and "_RIQ_COMPLETE" in done.stdout
    assert riq(tmp_path, "completion", "tcsh").returncode == 2
