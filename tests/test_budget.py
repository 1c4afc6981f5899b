"""A size, a ratio or a rate: more room than the model needs is said and not used, too little is an error at once."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import riq_cli as riq
from riq_cli.errors import TargetError
from riq_cli.pipeline import PRESETS, Progress
from riq_cli.report import totals
from tests import builders
from tests.command import riq as command

WEIGHTS = 2 * 64 * 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("budget")
    builders.save(builders.perceptron(0), folder)
    np.savez(folder / "samples.npz", x=np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32))
    return folder


def compressed(folder: Path, **options: Any) -> tuple[riq.Archive, list[str], list[Progress]]:
    """An archive, the warnings, and the steps of the work."""
    warnings: list[str] = []
    steps: list[Progress] = []
    data = riq.Calibration.load(str(folder / "samples.npz"))
    model = riq.Model.load(folder / "model.onnx")
    return riq.compress(model, data, **options, warn=warnings.append, progress=steps.append), warnings, steps


@pytest.mark.parametrize("preset", ["fast", "small"])
@pytest.mark.parametrize(
    ("goal", "wish"),
    [
        ({"size": 10**10}, "10,000,000,000 bytes"),
        ({"size": 10**400}, None),
        ({"size": 30_000}, "30,000 bytes"),
        ({"ratio": 1.0}, "a ratio of 1"),
        ({"ratio": 1e-300}, "a ratio of 1e-300"),
        ({"rate": 1e300}, "1e+300 bits/weight"),
    ],
)
def test_more_room_than_the_model_needs_is_said_and_not_used(
    preset: str, goal: dict[str, Any], wish: str | None, folder: Path
) -> None:
    archive, warnings, steps = compressed(folder, **goal, **PRESETS[preset])
    assert 1e-7 < archive.manifest.result["deviation"] <= 1e-6
    assert archive.size < 20_000
    spent = r"[\d.]+ bits/weight" if "rate" in goal else r"1\d,\d{3} bytes, a ratio of [\d.]+"
    begin = re.escape(f"{wish} is") if wish else r"1[,0]+ bytes is"
    assert len(warnings) == 1
    assert re.fullmatch(
        rf"{begin} more room than the model needs: with {spent}, the deviation is (\S+e-07|1e-06), less than "
        "can be seen; ask for less room, or give a --deviation",
        warnings[0],
    )
    phases = {step.phase for step in steps}
    assert phases == {"original", "coding", "search", "decoding"}  # nothing is fitted or probed for it
    assert archive.manifest.result["evaluations"] < 25


def test_a_size_that_the_model_needs_is_used(folder: Path) -> None:
    archive, warnings, _ = compressed(folder, size=6_000, **PRESETS["fast"])
    assert 0.98 * 6_000 <= archive.size <= 6_000
    assert warnings == []


@pytest.mark.parametrize(
    ("goal", "wish"), [({"size": 100}, "100 bytes"), ({"size": 1}, "1 byte"), ({"ratio": 1e6}, "a ratio of 1e+06")]
)
def test_less_room_than_anything_takes_is_an_error_before_the_search(
    goal: dict[str, Any], wish: str, folder: Path
) -> None:
    with pytest.raises(TargetError) as error:
        compressed(folder, **goal)
    found = re.fullmatch(
        rf"the model cannot be brought into {re.escape(wish)}: with all weights rounded to 0 it takes ([\d,]+) bytes, "
        r"a ratio of ([\d.]+); give it more room",
        str(error.value),
    )
    assert found is not None
    least = int(found[1].replace(",", ""))
    source = (folder / "model.onnx").stat().st_size
    assert float(found[2]) == pytest.approx(source / least, rel=0.01)
    assert error.value.best == math.inf
    archive, _, _ = compressed(folder, size=least + 600, **PRESETS["fast"])  # a manifest tells what was measured
    assert least < archive.size


@pytest.mark.parametrize("preset", ["fast", "balanced"])
def test_a_rate_is_that_of_all_coded_layers_as_a_report_counts_it(preset: str, folder: Path) -> None:
    archive, _, _ = compressed(folder, rate=3.0, **PRESETS[preset])
    assert 0.97 * 3 <= totals(archive).rate <= 3


def test_the_command_line_takes_any_size(folder: Path) -> None:
    words = ("--calibration", "samples.npz", "--preset", "fast", "-f")
    done = command("compress", "model.onnx", *words, "--size", "10GB", folder=folder)
    assert done.returncode == 0
    assert b"riq: warning: 10,000,000,000 bytes is more room than the model needs" in done.stderr
    done = command("compress", "model.onnx", *words, "--size", "100", folder=folder)
    assert done.returncode == 3
    assert done.stderr.startswith(b"riq: error: the model cannot be brought into 100 bytes")
