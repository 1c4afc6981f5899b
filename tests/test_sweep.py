"""riq sweep and riq plot: what the CSV holds, that it is gone on with, and that pictures come out."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import riq_cli as riq_library
from riq_cli.points import COLUMNS, HEADER, Point, read_points
from tests import builders
from tests.command import fails, riq

POINTS = ("--deviations", "0.05,0.02", "--presets", "fast,small")
SWEEP = ("sweep", "model.onnx", "--calibration", "calibration.npz", *POINTS)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.onnx, other.onnx, calibration.npz, validation.npz, and curve.csv of four points."""
    folder = tmp_path_factory.mktemp("swept")
    builders.save(builders.dense(), folder)
    builders.save(builders.dense(seed=1), folder, "other.onnx")
    generator = np.random.default_rng(0)
    for name in ("calibration", "validation"):
        np.savez(folder / f"{name}.npz", x=generator.standard_normal((24, 16)).astype(np.float32))
    done = riq(*SWEEP, "--validation", "validation.npz", "-o", "curve.csv", folder=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""
    return folder


@pytest.fixture
def folder(swept: Path, tmp_path: Path) -> Path:
    """A copy of `swept` to write into."""
    return Path(shutil.copytree(swept, tmp_path / "work"))


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


# ---- what it holds ----


def test_a_row_is_what_compress_and_verify_say(folder: Path) -> None:
    rows = table(folder / "curve.csv")
    assert [(row["preset"], row["target"]) for row in rows] == [
        ("fast", "0.05"), ("fast", "0.02"), ("small", "0.05"), ("small", "0.02")
    ]  # fmt: skip
    arguments = ("compress", "model.onnx", "--calibration", "calibration.npz", "--preset", "fast", "--json")
    for row in rows[:2]:
        facts = json.loads(riq(*arguments, "--deviation", row["target"], "-f", folder=folder).stdout)
        assert row["reached"] == "yes"
        assert int(row["bytes"]) == facts["archive_bytes"]
        assert int(row["evaluations"]) == facts["evaluations"]
        for column, key in {"deviation": "deviation", "rate": "rate", "ratio": "ratio", "k": "k"}.items():
            assert float(row[column]) == pytest.approx(facts[key], rel=1e-5)
        verified = riq("verify", "model.riqz", "--against", "model.onnx", "--calibration", "validation.npz", "--json",
                       "--deviation", "1", folder=folder)  # fmt: skip
        assert float(row["validation"]) == pytest.approx(json.loads(verified.stdout)["deviation"], rel=1e-5)
        assert float(row["fixed_rate"]) > float(row["rate"]) - 1  # a table can outweigh the gain in a tiny layer


def test_targets_share_one_pass_of_probes(swept: Path) -> None:
    assert [int(row["probes"]) > 0 for row in table(swept / "curve.csv")] == [False, False, True, False]


def test_a_sweep_is_a_function_too_whose_points_are_what_compress_finds_or_about_that(swept: Path) -> None:
    model, data = riq_library.Model.load(swept / "model.onnx"), riq_library.Calibration.load(swept / "calibration.npz")
    goals = [riq_library.Settings(deviation=target, allocation="norm") for target in (0.05, 0.02)]
    outcomes = list(riq_library.sweep(model, data, goals))
    assert [outcome.settings for outcome in outcomes] == goals
    assert [outcome.archive.size if outcome.archive else None for outcome in outcomes] == [
        int(row["bytes"]) for row in table(swept / "curve.csv") if row["preset"] == "fast"
    ]
    goal = riq_library.Settings(deviation=0.02)
    alone = riq_library.compress(model, data, goal)
    for about in (None, 0.02):
        (outcome,) = riq_library.sweep(model, data, [goal], about=about)
        assert outcome.archive is not None
        assert outcome.archive.size == pytest.approx(alone.size, rel=0.2 if about else 0)
        assert outcome.archive.manifest.result["deviation"] == outcome.deviation <= 0.02


def test_a_model_without_layers_is_a_point_too(tmp_path: Path) -> None:
    builders.save(builders.int8_qdq(), tmp_path)
    done = riq("sweep", "model.onnx", "--presets", "fast", "--deviations", "0.01", "--exclude", "*", "--json",
               folder=tmp_path)  # fmt: skip
    (point,) = json.loads(done.stdout)["points"]
    assert (point["reached"], point["deviation"], point["rate"], point["k"]) == (True, 0, 0, None)


def test_a_point_does_not_depend_on_the_others(folder: Path) -> None:
    text = (folder / "curve.csv").read_text().splitlines(keepends=True)
    (folder / "curve.csv").write_text("".join(text[:-2]) + text[-1])  # small at 0.05 is missing
    assert riq(*SWEEP, "--validation", "validation.npz", "-o", "curve.csv", folder=folder).returncode == 0
    costs = {"evaluations", "probes", "seconds"}
    again = table(folder / "curve.csv")[-1]
    before = next(csv.DictReader([text[0], text[3]]))
    assert {key: value for key, value in again.items() if key not in costs} == {
        key: value for key, value in before.items() if key not in costs
    }


def test_a_target_out_of_reach_is_a_row_with_the_best_deviation(tmp_path: Path, folder: Path) -> None:
    done = riq("sweep", "model.onnx", "--calibration", "calibration.npz", "--presets", "paper", "--epsilon", "0.3",
               "--deviations", "0.9,1e-9", folder=folder)  # fmt: skip
    assert done.returncode == 0
    reached, missed = csv.DictReader(done.stdout.decode().splitlines())
    assert (reached["reached"], missed["reached"], reached["settings"]) == ("yes", "no", "epsilon=0.3")
    assert float(missed["deviation"]) > 1e-9
    assert missed["bytes"] == missed["ratio"] == missed["k"] == ""
    assert re.search(r"^paper 1e-09: out of reach: the best deviation is 0\.\d+; ", done.stderr.decode(), re.MULTILINE)


def test_k_takes_the_place_of_targets(folder: Path) -> None:
    done = riq("sweep", "model.onnx", "--calibration", "calibration.npz", "--presets", "paper,uniform", "--k", "20,40",
               "--json", folder=folder)  # fmt: skip
    assert re.match(r"paper, k = 20: [\d.]+ k?B, ×", done.stderr.decode())
    points = json.loads(done.stdout)["points"]
    assert [(p["preset"], p["k"], p["target"], p["reached"], p["evaluations"]) for p in points] == [
        (preset, k, None, None, 1) for preset in ("paper", "uniform") for k in (20, 40)
    ]
    assert points[0]["deviation"] > points[1]["deviation"]
    assert [p["epsilon"] for p in points] == [0.01, 0.01, 0, 0]


def test_json_and_csv_say_the_same(folder: Path) -> None:
    done = riq(*SWEEP, "--validation", "validation.npz", "-o", "curve.csv", "--json", folder=folder)
    document = json.loads(done.stdout)
    assert tuple(document["points"][0]) == COLUMNS
    assert (folder / "curve.csv").read_text().splitlines()[0] == (
        "preset,target,reached,deviation,validation,rate,fixed_rate,ratio,bytes,k,epsilon,"
        "evaluations,probes,seconds,model,calibration,validated,settings"
    )
    points, _ = read_points(str(folder / "curve.csv"))
    assert [asdict(point) for point in points] == document["points"]


def test_without_a_file_the_csv_goes_to_stdout(folder: Path) -> None:
    arguments = ("sweep", "model.onnx", "--calibration", "calibration.npz", "--presets", "fast", "--deviations", "0.05")
    for dash in ((), ("-o", "-")):
        done = riq(*arguments, *dash, folder=folder)
        assert done.stdout.decode().startswith(HEADER)
        assert len(done.stdout.splitlines()) == 2
        assert re.fullmatch(r"fast 0\.05: [\d.]+ k?B, ×[\d.]+, deviation 0\.0\d+; \d\.\d s\n", done.stderr.decode())
    assert riq(*arguments, "-q", folder=folder).stderr == b""


# ---- going on ----


@pytest.mark.parametrize(
    ("whole", "end"),  # lines that are there, and what stands behind them
    [(5, b""), (3, "small,0.02,yes,0.01,0.02,\xb2".encode()[:-1]), (0, b""), (0, b"preset,tar")],
)
def test_a_sweep_goes_on_behind_the_last_whole_line(whole: int, end: bytes, folder: Path) -> None:
    lines = (folder / "curve.csv").read_bytes().splitlines(keepends=True)
    (folder / "curve.csv").write_bytes(b"".join(lines[:whole]) + end)
    done = riq(*SWEEP, "--validation", "validation.npz", "-o", "curve.csv", "--log", "log.jsonl", folder=folder)
    assert done.returncode == 0, done.stderr
    after = (folder / "curve.csv").read_bytes().splitlines(keepends=True)
    assert (after[: whole or 1], len(after)) == (lines[: whole or 1], 5)
    new = table(folder / "curve.csv")[max(whole - 1, 0) :]
    searched = [line for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines())
                if line["phase"] == "search"]  # fmt: skip
    assert len(searched) == sum(int(row["evaluations"]) for row in new)  # what is there is not computed again
    assert [row["preset"] for row in table(folder / "curve.csv")] == ["fast", "fast", "small", "small"]


def test_other_settings_and_samples_add_to_the_csv_and_force_begins_anew(folder: Path) -> None:
    arguments = (*SWEEP[:4], "--presets", "fast", "--deviations", "0.05", "-o", "curve.csv", "-q")
    assert riq(*arguments, folder=folder).returncode == 0  # without validation samples
    assert riq(*arguments, "--min-size", "300", folder=folder).returncode == 0
    rows = table(folder / "curve.csv")[4:]
    assert [(bool(row["validated"]), row["settings"]) for row in rows] == [(False, ""), (False, "min_size=300")]
    assert riq(*arguments, "-f", folder=folder).returncode == 0
    assert len(table(folder / "curve.csv")) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_sweep_says_how_to_go_on_and_does(sent: signal.Signals, folder: Path) -> None:
    targets = [f"{0.001 * number:g}" for number in range(20, 60)]

    def arguments(targets: list[str]) -> list[str]:
        return [*SWEEP[:4], "--presets", "fast", "--deviations", ",".join(targets), "-o", "long.csv"]

    command = [sys.executable, "-m", "riq_cli", *arguments(targets), "--log", "log.jsonl", "-f"]
    running = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE,
                               env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
                               preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL))  # fmt: skip
    ends = time.monotonic() + 600
    while time.monotonic() < ends and not (
        (file := folder / "long.csv").exists() and file.read_bytes().count(b"\n") > 1
    ):
        time.sleep(0.005)
    running.send_signal(sent)
    _, stderr = running.communicate(timeout=600)
    assert running.returncode == 128 + sent, stderr
    last = stderr.decode().splitlines()[-1]
    assert re.fullmatch(
        r"riq: error: interrupted after \d+ points?; the same command without --force goes on with long\.csv", last
    )
    assert json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["error"] == "interrupted"
    whole = (folder / "long.csv").read_bytes()
    some = targets[: whole.count(b"\n") + 2]  # three more: the line before the points is the header
    assert riq(*arguments(some), "-q", folder=folder).returncode == 0
    assert (folder / "long.csv").read_bytes().startswith(whole)
    assert [row["target"] for row in table(folder / "long.csv")] == some


# ---- errors ----


@pytest.mark.parametrize("text", ["a,b\n1,2\n", HEADER + "fast,x\n", HEADER.replace("\n", ",more\n")])
def test_a_file_that_is_no_sweep_of_the_model_is_refused(text: str, folder: Path) -> None:
    (folder / "notes.csv").write_text(text)
    fails(1, r"notes\.csv: exists already and is no sweep to go on with: .*; use --force", *SWEEP, "-o", "notes.csv",
          folder=folder)  # fmt: skip
    assert (folder / "notes.csv").read_text() == text
    fails(1, r"curve\.csv: holds points of another model \(SHA-256 [0-9a-f]{16}…, not [0-9a-f]{16}…\); use --force",
          "sweep", "other.onnx", "--calibration", "calibration.npz", "-o", "curve.csv", folder=folder)  # fmt: skip


def test_a_target_named_twice_is_one_point(folder: Path) -> None:
    done = riq(*SWEEP[:4], "--presets", "fast,fast", "--deviations", "0.05,0.050", "-q", folder=folder)
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("code", "message", "arguments"),
    [
        (
            2,
            r"no preset is named 'tiny'; there are fast, balanced, small, smallest, deployable, paper",
            ("--presets", "tiny"),
        ),
        (2, r"a deviation of 2 is not in \(0, 1\]", ("--deviations", "2")),
        (2, r"is not a fraction; write 0.01 or 1%; a list is written as 0.01,0.001$", ("--deviations", "few")),
        (
            2,
            r"--k has no meaning for the measured allocation; presets paper, fast and uniform have k",
            ("--presets", "small", "--k", "9"),
        ),
        (2, r"--json and -o - both want stdout", ("--json", "-o", "-")),
        (2, r"'curve\.pdf' ends neither in \.png nor in \.svg", ("--plot", "curve.pdf")),
        (1, r"calibration\.npz: is read by this command", ("-o", "calibration.npz")),
        (1, r"old\.png: exists already", ("--plot", "old.png")),
        (2, r"x\.svg: two outputs have this name; give one of them another", ("-o", "x.svg", "--plot", "x.svg")),
        (1, r"other\.npz: the data has y; the model's inputs are x", ("--validation", "other.npz")),
        (1, r"no/c\.csv: cannot be written: No such file or directory", ("-o", "no/c.csv")),
    ],
)
def test_what_is_refused(code: int, message: str, arguments: tuple[str, ...], folder: Path) -> None:
    (folder / "old.png").touch()
    np.savez(folder / "other.npz", y=np.zeros((2, 16), np.float32))
    fails(code, message, *SWEEP[:4], *arguments, folder=folder)


def test_the_presets_of_the_command_line_are_those_of_the_library() -> None:
    from riq_cli.cli.options import PRESETS as NAMES
    from riq_cli.pipeline import PRESETS

    assert set(NAMES) == set(PRESETS)


# ---- the uniform allocation ----


def test_uniform_bin_widths_are_ranges_over_k(swept: Path) -> None:
    model, data = riq_library.Model.load(swept / "model.onnx"), riq_library.Calibration.load(swept / "calibration.npz")
    archive = riq_library.compress(model, data, allocation="uniform", k=40)
    spans = {layer.name: float(np.ptp(layer.values.astype(np.float64))) for layer in model.layers}
    assert archive.manifest.layers
    for entry in archive.manifest.layers:
        assert entry.bin_width == pytest.approx(spans[entry.name] / 40)
        assert entry.symbols <= 41
    assert archive.manifest.result["allocation"] == "uniform"


@pytest.mark.parametrize(
    ("options", "message"), [({"epsilon": 0.01}, "epsilon"), ({"rounding": "compensated"}, "rounding")]
)
def test_uniform_goes_with_neither_epsilon_nor_compensation(options: dict[str, object], message: str) -> None:
    from riq_cli.errors import SettingsError
    from riq_cli.pipeline import Settings

    with pytest.raises(SettingsError, match=f"does not go with .*{message}"):
        Settings(allocation="uniform", **options)  # type: ignore[arg-type]


# ---- pictures ----


def drawn(path: Path) -> None:
    """The file is a whole picture."""
    data = path.read_bytes()
    if path.suffix == ".png":
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        assert data.endswith(b"IEND\xae\x42\x60\x82")
    else:
        assert ElementTree.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_sweep_draws_its_curve(suffix: str, folder: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    picture = f"curve.{suffix}"
    arguments = (*SWEEP, "--validation", "validation.npz", "-o", "curve.csv", "--plot", picture)
    done = riq(*arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    said = rf"curve\.csv: holds (\d) of \1 points already\ncurve\.{suffix}: [\d.]+ kB\n"
    assert re.fullmatch(said, done.stderr.decode())
    drawn(folder / picture)
    before = (folder / picture).read_bytes()
    assert riq("plot", "curve", "curve.csv", "-o", picture, folder=folder).returncode == 1
    assert (folder / picture).read_bytes() == before


@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize("kind", [("curve",), ("curve", "--rate"), ("coder",), ("k",), ("epsilon",), ("prediction",)])
def test_every_kind_of_picture_is_drawn(kind: tuple[str, ...], suffix: str, folder: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    shutil.copy(folder / "curve.csv", folder / "second.csv")
    for sweeps in (("curve.csv",), ("curve.csv", "second.csv")):
        done = riq("plot", *kind, *sweeps, "-o", f"figure.{suffix}", "-f", folder=folder)
        assert (done.returncode, done.stdout) == (0, b""), done.stderr
        drawn(folder / f"figure.{suffix}")
    before = (folder / f"figure.{suffix}").read_bytes()
    assert riq("plot", *kind, "curve.csv", "second.csv", "-o", f"figure.{suffix}", "-f", folder=folder).returncode == 0
    assert (folder / f"figure.{suffix}").read_bytes() == before  # the same points give the same picture


def test_a_report_draws_the_rate_of_each_layer(folder: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    assert riq("compress", "model.onnx", "--preset", "fast", "-q", folder=folder).returncode == 0
    done = riq("report", "model.riqz", "--plot", "rates.svg", folder=folder)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    drawn(folder / "rates.svg")
    fails(2, "--plot shows one archive", "report", "model.riqz", "model.riqz", "--plot", "x.svg", folder=folder)


def point(**fields: object) -> Point:
    about = {"preset": "paper", "target": 0.01, "reached": True, "deviation": 0.009, "ratio": 8.0, "k": 300.0,
             "epsilon": 0.0, "evaluations": 9, "probes": 0, "seconds": 1.0, "model": "a", "calibration": "npz 1",
             "validated": "", "settings": ""}  # fmt: skip
    return Point(**dict.fromkeys(COLUMNS) | about | fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sweeps", "labels"),
    [
        ({"m": [point()]}, ["paper"]),
        ({"m": [point(), point(preset="small")]}, ["paper", "small"]),
        ({"m": [point()], "n": [point(model="b", calibration="npz 2")]}, ["m", "n"]),  # of course with other samples
        ({"m": [point(), point(calibration="random 2")]}, ["real samples", "random samples"]),
        ({"m": [point(), point(calibration="npz 2")]}, ["npz 1", "npz 2"]),
        ({"m": [point(settings="epsilon=0.1; k=9"), point(settings="epsilon=0.0; k=9")]}, ["ε₀ = 0.1", "ε₀ = 0"]),
    ],
)
def test_curves_are_named_by_what_differs(sweeps: dict[str, list[Point]], labels: list[str]) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    from riq_cli import plots

    texts = written(plots.picture("curve", sweeps, ".svg").decode())
    assert [text for text in texts if text in labels] == labels


def test_over_k_points_of_another_epsilon_are_another_curve() -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    from riq_cli import plots

    points = [point(epsilon=0.01, k=300.0), point(target=0.001, epsilon=0.0, k=900.0)]
    for kind, labels in (("k", 2), ("epsilon", 2), ("curve", 0)):
        texts = written(plots.picture(kind, {"m": points}, ".svg").decode())  # type: ignore[arg-type]
        assert len([text for text in texts if text.startswith("ε₀ = ")]) == labels


def written(picture: str) -> list[str]:
    """The texts of a picture, which are drawn as paths."""
    return re.findall(r"<!-- (.*?) -->", picture)


def test_epsilons_are_one_picture_of_two_parts(folder: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    for epsilon in ("0", "0.1"):
        arguments = (*SWEEP[:4], "--epsilon", epsilon, "--k", "10,100", "-o", "k.csv")
        assert riq(*arguments, folder=folder).returncode == 0
    assert riq("plot", "epsilon", "k.csv", "-o", "e.svg", "--title", "a model", folder=folder).returncode == 0
    comments = written((folder / "e.svg").read_text())
    assert comments.count("deviation (cosine distance)") == comments.count("compression ratio (×, real bytes)") == 1
    assert comments.count("k (larger is finer)") == 1
    assert comments.count("a model: what ε₀ does") == 1
    assert [text for text in comments if text.startswith("ε₀ =")] == ["ε₀ = 0", "ε₀ = 0.1"]


def test_plot_says_what_is_wrong(folder: Path) -> None:
    missed = point(reached=False, k=None, ratio=None)
    (folder / "unreached.csv").write_text(HEADER + missed.line())
    fails(1, r"no point can be drawn: none has a k and a deviation; riq sweep --k measures such$", "plot", "k",
          "unreached.csv", "-o", "x.svg", folder=folder)  # fmt: skip
    fails(1, r"no point can be drawn: none has a deviation on validation samples; riq sweep --validation measures",
          "plot", "prediction", "unreached.csv", "-o", "x.svg", folder=folder)  # fmt: skip
    fails(1, r"no point can be drawn: each target is out of reach$", "plot", "curve", "unreached.csv", "-o", "x.svg",
          folder=folder)  # fmt: skip
    (folder / "notes.csv").write_text("a,b\n1,2\n")
    (folder / "empty.csv").write_text(HEADER)
    fails(1, r"notes\.csv: is not the CSV of a sweep: does not begin with", "plot", "curve", "notes.csv", "-o", "x.svg",
          folder=folder)  # fmt: skip
    fails(1, r"empty\.csv: holds no points yet", "plot", "k", "empty.csv", "-o", "x.svg", folder=folder)
    fails(2, r"--rate belongs to curve", "plot", "k", "curve.csv", "--rate", "-o", "x.svg", folder=folder)
    fails(2, r"named twice", "plot", "k", "curve.csv", "curve.csv", "-o", "x.svg", folder=folder)


def test_without_matplotlib_the_error_says_what_to_install(folder: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.argv = ['riq', *sys.argv[1:]]\n"
        "from riq_cli.cli import main; main()"
    )
    arguments = [*SWEEP, "--plot", "x.svg"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, timeout=600,
                          env={"PYTHONPATH": str(Path(__file__).parent.parent)})  # fmt: skip
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == "riq: error: pictures need matplotlib: pip install 'riq[plot]'\n"
    assert not (folder / "x.svg").exists()


# ---- the format ----


def test_a_point_survives_its_line(tmp_path: Path) -> None:
    point = Point("small", 0.01, True, 0.0098, None, 1.5, 3.5, 12.25, 1000, 345.678, 0.0, 40, 12, 1.5, "a" * 16,
                  "npz " + "b" * 16, "", 'exclude=["a,é"]; min_size=3')  # fmt: skip
    whole = HEADER + point.line()
    (tmp_path / "points.csv").write_text(whole + point.line()[:20], encoding="utf-8")
    assert read_points(str(tmp_path / "points.csv")) == ([point], len(whole.encode()))
