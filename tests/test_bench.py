"""The bench's own arithmetic and bookkeeping; nothing is compressed here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import riq_cli as riq
from riq_cli.model import ModelInput
from tests import zoo
from tests.bench import presets as bench
from tests.bench import subjects
from tests.bench.journal import Journal
from tests.bench.measuring import Measurement
from tests.bench.presets import Plan, cells, presets
from tests.bench.summary import NOTES, Case, at_target, papers, summary
from tests.bench.tables import line

PLAN = Plan(("a", "b"), (0.01,), ("small", "paper"), 4, 8)


def case(model: str, preset: str, fallback: bool = False, target: float = 0.01) -> Case:
    return Case(model, target, preset, fallback, 4, 8)


def found(size: int, heldout: float = 0.01, **others: Any) -> Measurement:
    values = {
        "source_bytes": 4_000_000, "deviation": 0.0099, "evaluations": 12, "probes": 3, "seconds": 1.25,
        "bytes": size, "weights": 800_000, "rate": 4.0, "heldout": heldout, "epsilon": 0.01, "k": 100.0,
    } | others  # fmt: skip
    return Measurement(**values)


def missed(best: float = 0.02, k: float | None = None) -> Measurement:
    return Measurement(4_000_000, best, 300, 0, 60.0, k=k, note="not reached")


ROWS = {
    case("a", "paper"): found(400_000, heldout=0.01),
    case("a", "small"): found(200_000, heldout=0.04),
    case("b", "paper"): missed(),
    case("b", "paper", fallback=True): found(400_000, heldout=0.02, epsilon=0.0),
    case("b", "small"): found(800_000, heldout=0.005),
    case("c", "small"): found(100_000, heldout=0.005, rate=1.25),
    case("d", "paper"): found(300_000, heldout=0.0025, rate=1.5),
    case("d", "small"): found(100_000, heldout=0.005, rate=1.75),
}


def test_a_summary_compares_what_can_be_compared() -> None:
    assert summary(ROWS) == [
        "| target | preset | models | not reached | × paper | larger than paper | held-out ÷ target: median | worst "
        "| above 1 | × paper at equal held-out (estimate) |\n|---|---|---|---|---|---|---|---|---|---|",
        # b: the paper's row is that of the smaller ε0.
        "| 0.01 | paper | 3 | 1 | – | – | 1.00 | 2.00 | 1 | – |",
        # × paper: a 2, b 1/2, d 3, c has nothing to be held against: the cube root of 3.
        # At equal held-out: a 400/(200 + 100), b (400 + 50)/(800 − 50), d is below the law's reach: √0.8.
        "| 0.01 | small | 4 | 0 | ×1.442 | 1 of 3 | 0.50 | 4.00 | 1 | ×0.894 (2 of 3) |",
        "",
        *NOTES,
    ]


def test_a_summary_of_one_preset_or_of_nothing() -> None:
    rows = {case("a", "fast"): found(10), case("a", "fast", target=0.001): missed()}
    assert summary(rows)[1:3] == [
        "| 0.01 | fast | 1 | 0 | – | – | 1.00 | 1.00 | 0 | – |",
        "| 0.001 | fast | 0 | 1 | – | – | – | – | – | – |",
    ]
    assert len(summary({})) == 2 + len(NOTES)


@pytest.mark.parametrize(
    ("heldout", "rate", "size"),
    [(0.01, 4.0, 400_000), (0.04, 4.0, 500_000), (0.0025, 4.0, 300_000), (0.0025, 1.9, None), (0.0, 4.0, None)],
)
def test_one_bit_a_weight_is_four_times_the_deviation(heldout: float, rate: float, size: float | None) -> None:
    assert at_target(found(400_000, heldout, rate=rate), 0.01) == size


def test_rows_say_what_was_measured_and_with_which_epsilon() -> None:
    own, freed, compared = case("b", "paper"), case("b", "paper", fallback=True), case("b", "small")
    assert line(cells(own, ROWS[own], {})) == (
        "| b | 4.00 | 0.01 | paper | 0.01 | not reached | – | – | best 0.02000 | – | – | 300 | 0 | 60.0 | – |"
    )
    assert cells(own, missed(0.04, k=51234.5), {})[8] == "0.04000 at k = 51234"
    assert line(cells(freed, ROWS[freed], papers(ROWS, freed))) == (
        "| b | 4.00 | 0.01 | paper, ε0 freed, bisection | 0 | 400,000 | ×10.00 | 4.00 | 0.00990 | 0.02000 | – | 12 | 3 "
        "| 1.2 | – |"
    )
    measured = found(500_000, 0.011, epsilon=0.0, metric="top-1", before=0.9, after=0.875)
    assert line(cells(compared, measured, papers(ROWS, compared))) == (
        "| b | 4.00 | 0.01 | small | 0 | 500,000 | ×8.00 | 4.00 | 0.00990 | 0.01100 | top-1: 0.900 → 0.875 | 12 | 3 "
        "| 1.2 | ×0.800 (ε0 = 0) |"
    )


class Fake:
    """Stands in for the measuring: presets with ε0 > 0 miss on model b."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, riq.Settings]] = []
        self.broken = False
        monkeypatch.setattr(subjects, "get", self.get)
        monkeypatch.setattr(bench, "measure", self.measure)

    def get(self, name: str, samples: int, heldout: int) -> str:
        assert (samples, heldout) == (4, 8)
        if name == "c":
            raise zoo.ZooUnavailable("offline")
        return name

    def measure(self, subject: str, settings: riq.Settings) -> Measurement:
        self.calls.append((subject, settings))
        if self.broken:
            raise ValueError("a bug")
        if subject == "b" and settings.epsilon:
            return missed()
        return found(400_000 if settings.allocation == "norm" else 200_000, epsilon=settings.epsilon or 0.0)


def table(text: str) -> list[list[str]]:
    """The first, fourth, sixth and last cell of the first table's rows."""
    rows = [row.strip("| ").split(" | ") for row in text.split("\n\n")[0].splitlines()[2:]]
    return [[row[0], row[3], row[5], row[-1]] for row in rows]


def test_the_paper_comes_first_and_has_a_stand_in_where_it_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake, path = Fake(monkeypatch), tmp_path / "rows.jsonl"
    expected = [
        ["a", "paper", "400,000", "–"],
        ["a", "small", "200,000", "×2.000"],
        ["b", "paper", "not reached", "–"],
        ["b", "paper, ε0 freed, bisection", "400,000", "–"],
        ["b", "small", "200,000", "×2.000 (ε0 = 0)"],
    ]
    presets(PLAN, path)
    first = capsys.readouterr().out
    assert table(first) == expected
    assert [(name, s.search, s.epsilon, s.holdout) for name, s in fake.calls if s.allocation == "norm"] == [
        ("a", "algorithm1", 0.01, 0.0),
        ("b", "algorithm1", 0.01, 0.0),
        ("b", "bisection", None, 0.0),
    ]
    assert len(path.read_text().splitlines()) == len(fake.calls) == 5

    # Interrupted while it wrote the last row: that one alone is measured again.
    path.write_text(path.read_text()[:-40])
    presets(PLAN, path, resume=True)
    again = capsys.readouterr()
    assert again.out == first
    assert "rows.jsonl:5: no row" in again.err
    assert len(fake.calls) == 6

    presets(PLAN, path, resume=True)
    assert capsys.readouterr().out == first
    assert len(fake.calls) == 6

    # Other samples are other rows; so is a run that is not resumed.
    assert Case("a", 0.01, "paper", False, 5, 8) not in Journal(Case, Measurement, path, resume=True).rows
    presets(Plan(("a",), (0.01,), ("small",), 4, 8), path)
    assert table(capsys.readouterr().out) == [["a", "small", "200,000", "–"]]
    assert len(fake.calls) == 7

    # The paper's rows in the file are enough to be held against.
    presets(Plan(("b",), (0.01,), ("small",), 4, 8), path, resume=True)
    assert table(capsys.readouterr().out) == [expected[4]]


def test_a_model_that_fails_or_is_not_there_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake, path = Fake(monkeypatch), tmp_path / "rows.jsonl"
    fake.broken = True
    presets(Plan(("c", "a"), (0.01, 0.001), ("paper",), 4, 8), path)
    shown = capsys.readouterr()
    assert "| c | – | 0.01 | paper | – | cannot be had: offline |" in shown.out
    assert "| a | – | 0.001 | paper | – | failed: ValueError: a bug |" in shown.out
    assert shown.out.count("cannot be had") == 1
    assert shown.out.endswith("\n4 of the rows asked for could not be measured and are counted nowhere.\n")
    assert "ValueError: a bug" in shown.err
    assert not path.exists()  # what failed is tried again


def test_some_samples_are_taken_evenly_and_single_ones_stay(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(10, dtype=np.float32)[:, None], rate=np.int64(16000))

    inputs = [ModelInput("x", "float32", ("batch", 1)), ModelInput("rate", "int64", ())]
    for count, expected in ((4, [0, 2, 5, 7]), (None, list(range(10))), (99, list(range(10)))):
        samples = subjects.some(tmp_path / "data.npz", count).samples(inputs)
        assert [sample.feed["x"].item() for sample in samples] == expected
        assert {sample.feed["rate"].item() for sample in samples} == {16000}
