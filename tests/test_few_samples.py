"""Few samples, samples that are all the same, random ones: a result, and a word on what it is worth."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import riq_cli as riq
from riq_cli.calibration import Sample, scarcity
from tests import builders
from tests.command import riq as command

REMEDY = ": on others the deviation may be many times as large; give 16 samples or more that differ"
RANDOM = "no promise for real data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    builders.save(builders.perceptron(0), folder)
    np.savez(folder / "real.npz", x=np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32))
    done = command("compress", "model.onnx", "--preset", "fast", folder=folder)
    (folder / "summary.txt").write_bytes(done.stderr)
    return folder


@pytest.mark.parametrize(("seed", "copies"), [(0, 4), (3, 16)])
def test_samples_that_are_all_alike_give_a_result(copies: int, seed: int, tmp_path: Path) -> None:
    """One sample alone has to come out right: errors can be made up for at any bin width."""
    model = riq.Model.load(builders.save(builders.perceptron(seed), tmp_path))
    rows = np.repeat(np.random.default_rng(seed).standard_normal((1, 64)).astype(np.float32), copies, axis=0)
    warnings: list[str] = []
    archive = riq.compress(model, riq.Calibration.from_arrays({"x": rows}), warn=warnings.append)
    assert archive.manifest.result["deviation"] <= 0.01
    assert warnings == [f"the {copies} samples are all the same{REMEDY}"]


def test_a_target_that_constant_outputs_meet_is_warned_of(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [builders.node("MatMul", "x w", "z"), builders.node("Add", "z b", "y")]
    tensors = [builders.tensor("w", rng.standard_normal((64, 8)).astype(np.float32))]
    offset = builders.tensor("b", np.full(8, 100, np.float32))
    proto = builders.model(nodes, [builders.info("x", 1, 64)], [builders.info("y", 1, 8)], [*tensors, offset])
    samples = riq.Calibration.from_arrays({"x": rng.standard_normal((16, 64)).astype(np.float32)})
    model = riq.Model.load(builders.save(proto, tmp_path))
    warnings: list[str] = []
    riq.compress(model, samples, preset="fast", deviation=1e-2, warn=warnings.append)
    (warning,) = warnings
    constant = float(warning.split("by only ")[1].split(",")[0])
    assert warning == (
        f"a model that gives the same outputs for every sample would deviate by only {constant:.2g}, so that a "
        f"deviation of 0.01 promises little; give a smaller --deviation ({0.01 * constant:.1g} or less), samples that "
        "differ more, or a score of your own with --metric"
    )
    assert constant == pytest.approx(64 / 100**2 / 2, rel=0.3)  # half of the variance of 64 products, over 100²
    warnings.clear()
    riq.compress(model, samples, preset="fast", deviation=1e-5, warn=warnings.append)
    assert not warnings


def feeds(*values: float, rows: int = 1) -> list[Sample]:
    return [Sample({"x": np.full((rows, 2), value, np.float32)}, rows) for value in values]


def test_fewer_than_eight_samples_that_differ_are_few() -> None:
    assert scarcity(feeds(1)) == f"only 1 sample{REMEDY}"
    assert scarcity(feeds(*range(7))) == f"only 7 samples{REMEDY}"
    assert scarcity(feeds(*range(8))) is None
    assert scarcity(feeds(1, 2, 1, 2, 1, 2, 1, 2)) == f"only 2 of the 8 samples differ{REMEDY}"
    assert scarcity(feeds(1, 1)) == f"the 2 samples are all the same{REMEDY}"
    assert scarcity(feeds(1, rows=8)) is None  # its rows may differ
    assert scarcity(feeds(1, 2, rows=2)) == f"only 4 samples{REMEDY}"


def test_random_samples_promise_nothing_wherever_their_deviation_is_shown(folder: Path) -> None:
    summary = (folder / "summary.txt").read_text()
    assert re.search(
        rf"deviation  0\.\d+ ± 0\.\d+ ≤ 0\.01 \(relative error \d+ %\); 4 random samples: {RANDOM}\n", summary
    )
    assert "only 4 samples" not in summary
    assert (
        f"calibration: 4 samples, random: {RANDOM}, SHA-256"
        in command("report", "model.riqz", folder=folder).stdout.decode()
    )
    command("report", "model.riqz", "--html", "page.html", folder=folder)
    assert f"4 samples, random: {RANDOM}" in (folder / "page.html").read_text()
    words = ("--against", "model.onnx", "--calibration", "real.npz", "--deviation", "0.001")
    done = command("verify", "model.riqz", *words, folder=folder)
    assert done.returncode == 3
    assert "  the archive was made on random samples, which promise nothing; give riq compress real ones\n" in (
        done.stdout.decode()
    )
