"""The log of a search, which the archive does not keep: what --json prints of it, and what report plots from it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from riq_cli.archive import Archive
from tests import builders
from tests.command import fails, riq

COMPRESS = ("compress", "model.onnx", "--preset", "fast", "--calibration", "calibration.npz")
HOW_TO = (
    "For a plot of the search, keep its log with <code>riq compress --log FILE</code>, and make this page with "
    "<code>riq report --html PAGE --log FILE</code>."
)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an archive, what --json said of it, and its log; and those of another archive."""
    folder = tmp_path_factory.mktemp("ready")
    builders.save(builders.perceptron(0), folder)
    rows = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    np.savez(folder / "calibration.npz", x=rows)
    np.save(folder / "labels.npy", np.zeros((16, 64), np.float32))
    for name, target in (("model", "0.01"), ("other", "0.02")):
        done = riq(*COMPRESS, "--deviation", target, "-o", f"{name}.riqz", "--log", f"{name}.jsonl", "--json",
                   folder=folder)  # fmt: skip
        assert done.returncode == 0, done.stderr
        (folder / f"{name}.json").write_bytes(done.stdout)
    return folder


@pytest.fixture
def folder(ready: Path, tmp_path: Path) -> Path:
    """A copy of `ready` to write into."""
    return Path(shutil.copytree(ready, tmp_path / "work"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def points(page: str) -> list[tuple[str, str]]:
    """The numbers below the plot of the search."""
    return re.findall(
        r'<tr><td class="number">\d+</td><td class="number">(.*?)</td><td class="number">(.*?)</td>', page
    )


def test_the_archive_keeps_neither_the_search_nor_more_of_the_samples_digest_than_is_shown(ready: Path) -> None:
    manifest = Archive.open(ready / "model.riqz").manifest
    assert not {"trace", "constraint_trace"} & set(manifest.result)
    assert re.fullmatch("[0-9a-f]{16}", manifest.calibration["sha256"])
    assert re.fullmatch("[0-9a-f]{64}", manifest.source["sha256"])


def test_json_has_all_measurements_of_the_chosen_scheme_and_of_no_other(ready: Path) -> None:
    facts = json.loads((ready / "model.json").read_text())
    searched = [line for line in lines(ready / "model.jsonl") if line["phase"] == "search"]
    assert {line["epsilon"] for line in searched} == {0.0, 0.01}
    chosen = [[line["k"], line["deviation"]] for line in searched if line["epsilon"] == facts["epsilon"]]
    assert facts["trace"] == chosen
    assert len(searched) == facts["evaluations"] > len(chosen) > 1
    assert [facts["k"], facts["deviation"]] in chosen


def test_json_has_those_of_a_constraint_beside_them(folder: Path) -> None:
    done = riq(*COMPRESS, "--labels", "labels.npy", "--max-loss-increase", "5%", "-f", "--log", "loss.jsonl", "--json",
               folder=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    searched = [line for line in lines(folder / "loss.jsonl") if line["phase"] == "search"]
    for key, measure in (("trace", "deviation"), ("constraint_trace", "constraint")):
        found = [line for line in searched if line["epsilon"] == facts["epsilon"] and measure in line]
        assert facts[key] == [[line["k"], line[measure]] for line in found if line[measure] is not None] != []
    assert "constraint_trace" not in Archive.open(folder / "model.riqz").manifest.result
    page = riq("report", "model.riqz", "--html", "-", "--log", "loss.jsonl", folder=folder).stdout.decode()
    assert points(page) == [(f"{k:.5g}", f"{value:.4g}") for k, value in facts["constraint_trace"]]
    assert "Value of the constraint at each k" in page and ">limit 0.05</li>" in page


def test_a_fixed_layout_is_searched_without_k_and_has_no_constraint_trace(folder: Path) -> None:
    done = riq("compress", "model.onnx", "--calibration", "calibration.npz", "--labels", "labels.npy", "--layout",
               "fixed", "-f", "--json", folder=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert "constraint_trace" not in facts
    assert facts["trace"] == [[1.0, facts["deviation"]]]


def test_report_plots_the_search_from_the_log(ready: Path) -> None:
    facts = json.loads((ready / "model.json").read_text())
    done = riq("report", "model.riqz", "--html", "-", "--log", "model.jsonl", folder=ready)
    assert (done.returncode, done.stderr) == (0, b"")
    page = done.stdout.decode()
    assert points(page) == [(f"{k:.5g}", f"{value:.4g}") for k, value in facts["trace"]]
    met = sum(value <= 0.01 for _, value in facts["trace"])
    assert page.count('<circle class="holds"') == met + 1  # one is the key's
    assert page.count('<path class="misses"') == len(facts["trace"]) - met + 1
    every = [line for line in lines(ready / "model.jsonl") if line["phase"] == "search"]
    assert page.count('<circle class="other"') == len(every) - len(facts["trace"]) + 1  # other schemes are there too
    assert HOW_TO not in page
    assert facts["command"] in page and facts["command"].startswith("riq compress model.onnx ")


def test_without_its_log_the_page_says_how_to_get_the_plot(ready: Path) -> None:
    page = riq("report", "model.riqz", "--html", "-", folder=ready).stdout.decode()
    assert HOW_TO in page
    assert '<figure class="trace">' not in page


def test_a_log_of_several_runs_counts_from_the_last_that_ended(folder: Path) -> None:
    logs = [(folder / f"{name}.jsonl").read_text() for name in ("other", "model", "other")]
    (folder / "all.jsonl").write_text(logs[0] + logs[1] + logs[2].rpartition('{"seconds"')[0])  # the last goes on
    done = riq("report", "model.riqz", "--html", "-", "--log", "all.jsonl", folder=folder)
    assert done.stdout == riq("report", "model.riqz", "--html", "-", "--log", "model.jsonl", folder=folder).stdout


NO_LOG = "is no log of a search; give the file that riq compress --log wrote$"
NO_LOGS = (b"k,deviation\n1,2\n", b"\x89RIQZ\r\n", b"[1]\n", b"5\n", b'"phase"\n', b'{"k": 1}\n', b"\xff\xfe",
           b"[" * 100_000, b'{"phase": "search"}\n\n')  # fmt: skip
ANOTHER = r"is the log of another archive \({} differs\); give the one written with this archive$"
NO_RESULT = "holds no result; give the log of the riq compress that wrote this archive$"


def damaged(lines: list[dict[str, Any]], **wrong: Any) -> bytes:
    """A log whose last evaluation of the chosen scheme says something else."""
    *searched, result = lines
    last = max(number for number, line in enumerate(searched) if line.get("epsilon") == result["epsilon"])
    searched[last] |= wrong
    return "\n".join(map(json.dumps, [*searched, result])).encode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, NO_LOG) for text in NO_LOGS),
        *((partial(damaged, **wrong), NO_LOG) for wrong in ({"k": 0}, {"k": None}, {"k": "1"}, {"deviation": [1]},
                                                        {"deviation": float("nan")})),
        (b"", NO_RESULT),  # of a search that failed or goes on still, or of a sweep
        (lambda lines: json.dumps(lines[0]).encode(), NO_RESULT),
        (lambda lines: json.dumps(lines[-1] | {"archive_bytes": 1}).encode(), ANOTHER.format("archive_bytes")),
        (lambda lines: json.dumps(lines[-1] | {"worst": 0.5}).encode(), ANOTHER.format("worst")),
    ],
)  # fmt: skip
def test_what_is_not_the_log_of_the_archive_is_refused(
    text: bytes | Callable[[list[dict[str, Any]]], bytes], message: str, folder: Path
) -> None:
    (folder / "no.jsonl").write_bytes(text if isinstance(text, bytes) else text(lines(folder / "model.jsonl")))
    fails(
        1, rf"no\.jsonl: {message}", "report", "model.riqz", "--html", "page.html", "--log", "no.jsonl", folder=folder
    )
    assert not (folder / "page.html").exists()


def test_a_log_is_read_for_a_page_alone_and_never_overwritten(folder: Path) -> None:
    fails(2, "--log is for the plot of the search on a page; give --html as well", "report", "model.riqz", "--log",
          "model.jsonl", folder=folder)  # fmt: skip
    fails(1, r"model\.jsonl: is read by this command and never overwritten", "report", "model.riqz", "--log",
          "model.jsonl", "--html", "model.jsonl", "-f", folder=folder)  # fmt: skip
