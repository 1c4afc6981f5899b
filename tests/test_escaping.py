"""Text out of a file is inert wherever it is shown: no escape sequence, markup, link, mention or script of it lives."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from riq_cli.archive import Archive
from riq_cli.text import code_span, html_text, printable
from tests.command import riq
from tests.test_page import Tree

HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\r\n\n\t| a | b |\u202eevil\u2066\u200b\ufe0f\u3164\u2028\x9b31m` ``` </code></script>"
    "<script>alert(1)</script><img src=x onerror=alert(2)> ![x](http://evil.example/p.png) [a](javascript:alert(3)) "
    "@someone #123 $\\frac{$ 'quoted' \"double\" {0} %s\nriq: error: forged"
)
PLAIN = "plain"
REPORTS = {
    "report": ("report", "model.riqz"),
    "sorted": ("report", "model.riqz", "--sort", "name"),
    "markdown": ("report", "model.riqz", "--markdown"),
    "html": ("report", "model.riqz", "--html", "-"),
    "json": ("report", "model.riqz", "--json"),
    "difference": ("report", "other.riqz", "model.riqz"),
    "difference in markdown": ("report", "model.riqz", "other.riqz", "--markdown"),
    "difference in JSON": ("report", "other.riqz", "model.riqz", "--json"),
}


def model(name: str) -> onnx.ModelProto:
    """Two layers; all names are `name` and a number."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(24, 24)).astype(np.float32), f"{name} w{number}")
        for number in range(2)
    ]
    nodes = [
        helper.make_node("MatMul", [f"{name} x", f"{name} w0"], [f"{name} h"], f"{name} first"),
        helper.make_node("MatMul", [f"{name} h", f"{name} w1"], [f"{name} y"], f"{name} second"),
    ]
    ends = [helper.make_tensor_value_info(f"{name} {end}", TensorProto.FLOAT, [1, 24]) for end in "xy"]
    graph = helper.make_graph(nodes, f"{name} graph", ends[:1], ends[1:], weights, doc_string=name)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name=name)


def about(text: str) -> dict[str, Any]:
    """All that a manifest can tell, with a text in each field that may hold one, keys of free form included."""
    judged = {"value": 0.1, "limit": 0.2, "holds": True}
    return {
        "creator": text,
        "source": {"bytes": 9999, "sha256": text},
        "calibration": {"kind": text, "samples": 4, "sha256": text},
        "settings": {"deviation": 0.01, "outputs": [text], "objective": text, "max_drop": text, "dims": {text: text},
                     text: text, f"{text}-list": [text, 5]},
        "result": {
            "k": 9.0,
            "epsilon": 0.0,
            "deviation": 0.01,
            "worst": 0.02,
            "allocation": text,
            "rounding": text,
            "evaluations": 1,
            "probes": 0,
            "trace": [[9.0, 0.01]],
            "measured": [{"name": text, "mean": 0.01, "worst": 0.02}],
            "top1": [{"name": text, "samples": 4, "choices": 4, "kept": 4}],
            "holdout": 0.01,
            "holdout_samples": 1,
            "constraint": judged | {text: text},
            "constraint_holdout": judged | {"loss_before": text, "loss_after": text, "accuracy_before": text,
                                            "samples": text, "measure": text},
            "layout": {text: 1, "float": 2},
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with the plain text and one with the hostile: model, archive, another archive, samples."""
    made = {}
    for text in (PLAIN, HOSTILE):
        folder = tmp_path_factory.mktemp("plain" if text == PLAIN else "hostile")
        onnx.save(model(text), folder / "model.onnx")
        np.save(folder / "samples.npy", np.random.default_rng(1).normal(size=(4, 1, 24)).astype(np.float32))
        done = riq("compress", "model.onnx", "-o", "made.riqz", "--preset", "fast",
                   "--calibration", "samples.npy", "--log", "log.jsonl",
                   folder=folder)  # fmt: skip
        assert done.returncode == 0, done.stderr
        (folder / "summary").write_bytes(done.stderr)
        with Archive.open(folder / "made.riqz") as archive:
            layers = tuple(replace(layer, op=text) for layer in archive.manifest.layers)
            told = replace(archive.manifest, layers=layers, **about(text))
            Archive(told, archive._source, archive._start).save(folder / "model.riqz")
            other = replace(told, layers=(replace(layers[0], name=f"other {text}", crc32=1), *layers[1:]),
                            settings={text: f"other {text}"}, calibration={"sha256": f"other {text}"})  # fmt: skip
            Archive(other, archive._source, archive._start).save(folder / "other.riqz")
        made[text] = folder
    return made


def outputs(folder: Path, *arguments: str) -> tuple[str, str]:
    done = riq(*arguments, folder=folder)
    return done.stdout.decode(), done.stderr.decode()


def check_terminal(text: str, like: str) -> None:
    """As many lines as the plain text has, and nothing in them that a terminal does not just draw."""
    assert text.isprintable() or set(filter(lambda c: not c.isprintable(), text)) == {"\n"}
    assert not set("\ufe0f\u3164") & set(text)
    assert text.count("\n") == like.count("\n")


def without_code(line: str) -> str:
    """A line of markdown without its code spans."""
    return re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", line)


@pytest.mark.parametrize("name", REPORTS)
def test_reports_of_a_hostile_archive(name: str, folders: dict[str, Path]) -> None:
    arguments = REPORTS[name]
    (plain, _), (text, errors) = (outputs(folders[kind], *arguments) for kind in (PLAIN, HOSTILE))
    assert errors == ""
    if "--json" in arguments:
        assert text.isascii() and text.replace("\n", "").isprintable()
        assert HOSTILE in set(strings(json.loads(text)))  # as it is: JSON is for programs
        return
    check_terminal(text, plain)
    if "--markdown" in arguments:
        bare = "\n".join(map(without_code, text.split("\n")))
        allowed = {"<details>", "</details>", "<summary>", "</summary>"}
        assert set(re.findall(r"</?\w+[^>]*>", bare)) <= allowed
        assert not re.search(r"[!@#\[\]$]|http|script", bare.replace("### ", ""))
        rows = [line for line in text.split("\n") if line.startswith("|")]
        cells = [len(re.split(r"(?<!\\)\|", line)) for line in rows]
        assert cells == [len(re.split(r"(?<!\\)\|", line)) for line in plain.split("\n") if line.startswith("|")]
    if "--html" in arguments:
        found, expected = Tree(text), Tree(plain)
        assert found.tags.count("script") == 1 and not {"a", "img", "iframe", "link"} & set(found.tags)
        names, others = ({name for name, _ in tree.attributes} for tree in (found, expected))
        assert names == others | {"title"} and not [name for name in names if name.startswith("on")]
        assert [tag for tag in found.tags if tag != "wbr"] == [tag for tag in expected.tags if tag != "wbr"]


def strings(value: Any) -> Iterator[str]:
    """All strings of a JSON document, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value:
            yield from strings(item)
        for item in value.values() if isinstance(value, dict) else ():
            yield from strings(item)


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_pictures_of_a_hostile_archive(suffix: str, folders: dict[str, Path]) -> None:
    picture = folders[HOSTILE] / f"rates.{suffix}"
    _, errors = outputs(folders[HOSTILE], "report", "model.riqz", "--plot", picture.name)
    check_terminal(errors, "\n")
    if suffix == "svg":
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(picture).iter()}
        assert not tags & {"script", "a", "image", "foreignObject"}


def test_summary_and_log_of_a_hostile_model(folders: dict[str, Path]) -> None:
    plain, hostile = ((folders[text] / "summary").read_text("utf-8") for text in (PLAIN, HOSTILE))
    check_terminal(hostile, plain)
    log = (folders[HOSTILE] / "log.jsonl").read_text("utf-8")
    assert log.isascii() and all(json.loads(line) for line in log.splitlines())


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "made.riqz", "--against", "model.onnx", "--calibration", "samples.npy"),
        ("verify", "model.riqz", "--against", "model.onnx", "--calibration", "samples.npy"),
        ("decompress", "made.riqz", "-o", "restored.onnx"),
        ("test", "made.riqz"),
        ("run", "made.riqz", "--input", "samples.npy"),
        ("run", "model.onnx", "--input", "log.jsonl"),
        ("sweep", "model.onnx", "--calibration", "samples.npy", "--presets", "fast", "--deviations", "0.1"),
        ("sweep", "model.onnx", "--calibration", "samples.npy", "--k", "9", "-o", "curve.csv", "--plot", "curve.svg"),
        ("compress", "model.onnx", "-o", "x.riqz", "--calibration", "samples.npy", "--output", "nowhere"),
        ("compress", "model.onnx", "-o", "x.riqz", "--calibration", "log.jsonl"),
        ("compress", "model.onnx", "-o", "x.riqz", "--exclude", "nothing", "--preset", "fast"),
        ("compress", "model.onnx", "-o", "y.riqz", "--deviation", "1e-9", "--max-bits", "2", "--preset", "fast", "-vv"),
    ],
)
def test_what_other_commands_say_of_a_hostile_model(arguments: tuple[str, ...], folders: dict[str, Path]) -> None:
    for text in outputs(folders[HOSTILE], *arguments):
        check_terminal(text, text)
        assert "riq: error: forged" not in text.splitlines()


def test_a_damaged_archive_is_named_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray((folders[HOSTILE] / "made.riqz").read_bytes())
    data[-5] ^= 1
    (tmp_path / "bad.riqz").write_bytes(data)
    text, errors = outputs(tmp_path, "decompress", "bad.riqz")
    check_terminal(errors, "\n")
    assert text == "" and errors.startswith("riq: error: bad.riqz: layer ")


def test_each_target_by_hand() -> None:
    assert printable("a\x1b\u202e\n\u3164é\\") == r"a\x1b\u202e\n\u3164é\\"[:-1]
    assert code_span("`a` <b>") == "`` `a` <b> ``"
    assert html_text("<b a='\"'>&\x00") == "&lt;b a=&#x27;&quot;&#x27;&gt;&amp;\\x00"


def test_a_picture_of_a_hostile_sweep(folders: dict[str, Path]) -> None:
    folder = folders[PLAIN]
    outputs(folder, "sweep", "model.onnx", "--calibration", "samples.npy", "--k", "9,18", "-o", "sweep.csv")
    header, *points = (folder / "sweep.csv").read_text("utf-8").splitlines()
    quoted = '"' + HOSTILE.replace('"', '""') + '"'
    (folder / "sweep.csv").write_text("\n".join([header, *(point.replace("paper", quoted) for point in points), ""]))
    text, errors = outputs(folder, "plot", "coder", "sweep.csv", "-o", "sweep.svg")
    assert text == "" and errors.startswith("sweep.svg: ")
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(folder / "sweep.svg").iter()}
    assert not tags & {"script", "a", "image", "foreignObject"}
