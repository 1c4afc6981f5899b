"""The wait: what compress says while it works, and how the command line shows it."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import riq_cli as riq
from riq_cli.cli.progress import Wait
from riq_cli.pipeline import PRESETS, Progress
from riq_cli.pipeline.progress import Expected
from tests import builders

ROOT = Path(__file__).parent.parent


class Clock:
    """A clock that is moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


# What is expected to take 51 seconds takes 153: phases, their steps, and the seconds of each step.
EXPECTED = (Expected("original", 1), Expected("probe", 20), Expected("search", 20, 5), Expected("coding", 10))
TAKEN: list[tuple[Any, int, float]] = [("original", 1, 3), ("probe", 60, 1), ("search", 5, 12), ("coding", 30, 1)]
FAST = 10.0  # seconds that --preset fast is expected to take
SECONDS = sum(steps * seconds for _, steps, seconds in TAKEN)


def lines(capsys: pytest.CaptureFixture[str], quiet: bool = False, read: int = 0, **options: Any) -> list[str]:
    """What stderr gets where it is no terminal, and where so many phases are read from a checkpoint."""
    clock = Clock()
    with Wait("running the original", quiet, clock=clock, **options) as wait:
        for number, (phase, steps, seconds) in enumerate(TAKEN):
            for done in range(1, steps + 1):
                clock.now += 0 if number < read else seconds
                wait.draw()
                expected, fast = (EXPECTED, FAST) if phase == "original" else ((), 0.0)
                total = 0 if phase == "search" else steps
                read_seconds = seconds if number < read else 0.0
                wait(Progress(phase, done, total, done, 1 / done, expected=expected, fast=fast,
                              read_seconds=read_seconds))  # fmt: skip
    return capsys.readouterr().err.splitlines()


def test_without_a_terminal_there_is_a_line_for_each_phase_and_each_minute(capsys: pytest.CaptureFixture[str]) -> None:
    assert [re.sub("about [0-9:]+ left", "…", line) for line in lines(capsys)] == [
        "riq: this will take about 80 s; --preset fast takes about 15 s",
        "riq 2/4 probing layers  6/60 · 0:10 elapsed, …",
        "riq 3/4 measuring · 1:03 elapsed, …",
        "riq 3/4 measuring k = 4, deviation 0.25 · 2:03 elapsed, …",
        "riq 4/4 coding layers  9/30 · 2:13 elapsed, …",
    ]


def test_the_rest_is_told_within_a_factor_of_two_from_a_third_on(capsys: pytest.CaptureFixture[str]) -> None:
    found = [re.search("([0-9]+):([0-9]+) elapsed, about ([0-9]+):([0-9]+) left", line) for line in lines(capsys)]
    told = [tuple(map(int, match.groups())) for match in found if match is not None]
    rest = [(60 * told[2] + told[3], SECONDS - 60 * told[0] - told[1]) for told in told if 60 * told[0] + told[1] > 51]
    assert len(rest) == 3
    assert all(true / 2 < about < true * 2 for about, true in rest)


def test_verbose_leaves_a_line_for_each_phase(capsys: pytest.CaptureFixture[str]) -> None:
    found = [line.split() for line in lines(capsys, verbose=1) if not line.startswith("riq")]
    assert found == [
        "running the original 1 sample 3.0 s".split(),
        "probing layers 60 layers 60.0 s".split(),
        "measuring 5 evaluations 60.0 s".split(),
        "coding layers 30 weights 30.0 s".split(),
    ]


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, quiet=True, verbose=1) == []


def test_what_is_read_from_a_checkpoint_counts_as_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    """Phases that were read took three times as long as expected. Then the others do, of which 30 seconds were."""
    first, *_ = lines(capsys, read=2)
    assert first == "riq: this will take about 70 s; --preset fast takes about 15 s"


def test_without_stderr_nothing_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Python has none where the caller closed it, as `2>&-` does."""
    monkeypatch.setattr("sys.stderr", None)
    assert lines(capsys, verbose=1) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and samples for it."""
    folder = tmp_path_factory.mktemp("model")
    builders.save(builders.perceptron(0), folder)
    rows = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    np.savez(folder / "calibration.npz", x=rows)
    return folder


@pytest.mark.parametrize(
    "options",
    [*PRESETS.values(), {"k": 50.0, **PRESETS["fast"]}, {"size": 4000}, {"without": ("gradients", "trellis")}],
    ids=[*PRESETS, "k", "size", "without stages"],
)
def test_all_phases_are_expected_in_their_order(options: dict[str, Any], folder: Path) -> None:
    steps: list[Progress] = []
    calibration = riq.Calibration.load(folder / "calibration.npz")
    riq.compress(riq.Model.load(folder / "model.onnx"), calibration, **options, progress=steps.append)
    phases = iter(expected.phase for expected in steps[0].expected)
    came = [step.phase for step, before in zip(steps, [None, *steps], strict=False)
            if before is None or before.phase != step.phase]  # fmt: skip
    assert {step.phase for step in steps[1:] if step.expected} == set()
    if "size" not in options:  # whose archives are tried until one fits
        assert [phase for phase in came if phase not in phases] == []
    assert all(expected.seconds >= 0 for expected in steps[0].expected)
    assert math.isinf(steps[0].fast) == ("deployable" in options)  # --preset fast is no choice for those who need that


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="terminals of POSIX")
def test_a_terminal_shows_one_line_that_fits_and_goes_away(folder: Path) -> None:
    """Warnings and the summary are what stays, each on a line of its own."""
    import fcntl
    import struct
    import termios

    terminal, other = os.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
    command = [sys.executable, "-m", "riq_cli", "compress", "model.onnx", "-o", "terminal.riqz", "--preset", "balanced"]
    with subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=other) as process:
        os.close(other)
        written = b""
        while True:
            try:
                read = os.read(terminal, 1 << 16)
            except OSError:  # all who write have closed it
                break
            if not read:
                break
            written += read
    os.close(terminal)
    assert process.returncode == 0
    screen, drawn = [], []
    for line in written.decode().split("\r\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
            drawn += [part] if re.match(r"riq \d+/", part) else []
        screen.append(shown.rstrip())
    assert {part.split("/")[0] for part in drawn} >= {"riq 2", "riq 5", "riq 9"}
    assert max(map(len, drawn)) == 49
    assert [line.split(":")[0] for line in screen if line[:1] not in ("", " ")] == ["riq", "terminal.riqz"]
    assert screen[0].startswith("riq: warning: no --calibration")
