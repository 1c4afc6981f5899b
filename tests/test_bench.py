"""The bench's own arithmetic and bookkeeping; nothing is compressed here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from riq_cli.model import ModelInput
from tests.bench import subjects
from tests.bench.journal import Journal
from tests.bench.measuring import Measurement
from tests.bench.results import Case, Int8, at_target, beside_default, beside_int8
from tests.bench.tables import write


def found(size: int | None, heldout: float | None = 0.01, seconds: float = 10.0, **others: Any) -> Measurement:
    return Measurement(4_000_000, seconds, 12, "top-1", 0.9, 0.875, size, 4.0, 0.0099, heldout, **others)


ROWS = {
    Case("a", 0.01, "small"): found(200_000, 0.005),
    Case("a", 0.01, "fast"): found(400_000, 0.02, 2.0),
    Case("a", 0.01, "paper"): found(None, None),
    Case("a", 0.01, "paper", freed=True): found(300_000, 0.01),
    Case("a", 0.001, "small"): found(500_000, 0.001),
    Case("a", 0.001, "fast"): found(500_000, 0.0005, 5.0),
    Case("b", 0.01, "small"): found(1_234_567),
}


def test_presets_are_compared_with_the_default_in_geometric_means() -> None:
    assert list(beside_default(ROWS))[1:] == [
        "| `fast` | 2 | ×1.41 | ×0.32 | 1.25 | 2.00 | 1 |",
        "| `small` | 3 | ×1.00 | ×1.00 | 1.00 | 1.00 | 0 |",
        "| `paper` | 1 | ×1.50 | ×1.00 | 1.00 | 1.00 | 0 |",  # by the row of the ε0 that reaches
    ]


def test_a_row_says_what_the_default_gives_and_how_others_compare() -> None:
    assert list(at_target(ROWS, ["a", "b", "c"], 0.01))[1:] == [
        "| a | ×20.00 | 4.00 | ×2.00 | ×1.50* | 0.00990 | 0.00500 | 0.900 → 0.875 | 12 |",
        "| b | ×3.24 | 4.00 | – | – | 0.00990 | 0.01000 | 0.900 → 0.875 | 12 |",
    ]


def test_a_model_that_int8_does_not_take_has_dashes() -> None:
    assert list(beside_int8(ROWS, {"a": Int8(1_000_000, 800_000, 0.5)}, ["a", "b"]))[1:] == [
        "| a | top-1 | 4 MB, 90.0 % | 1 MB, 50.0 % | 800 kB, 50.0 % | 200 kB, 87.5 % | 500 kB, 87.5 % |",
        "| b | top-1 | 4 MB, 90.0 % | – | – | 1.23 MB, 87.5 % | – |",
    ]


def test_a_table_replaces_what_is_between_its_marks(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("one\n<!-- results:begin -->\nold\n<!-- results:end -->\ntwo\n")
    write(path, "results", "new")
    write(path, "results", "newer")
    assert path.read_text() == "one\n<!-- results:begin -->\nnewer\n<!-- results:end -->\ntwo\n"


def test_a_journal_goes_on_after_an_interruption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    journal = Journal(Case, Measurement, path, resume=True)
    for case, row in ROWS.items():
        journal.add(case, row)
    assert Journal(Case, Measurement, path, resume=True).rows == ROWS

    # Interrupted while it wrote the last row: that one alone is missing.
    path.write_text(path.read_text()[:-40])
    again = Journal(Case, Measurement, path, resume=True)
    assert list(again.rows) == list(ROWS)[:-1]
    assert f"rows.jsonl:{len(ROWS)}: no row" in capsys.readouterr().err
    again.add(*list(ROWS.items())[-1])
    assert Journal(Case, Measurement, path, resume=True).rows == ROWS


def test_some_samples_are_taken_evenly_and_single_ones_stay(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(10, dtype=np.float32)[:, None], rate=np.int64(16000))

    inputs = [ModelInput("x", "float32", ("batch", 1)), ModelInput("rate", "int64", ())]
    for count, expected in ((4, [0, 2, 5, 7]), (None, list(range(10))), (99, list(range(10)))):
        samples = subjects.some(tmp_path / "data.npz", count).samples(inputs)
        assert [sample.feed["x"].item() for sample in samples] == expected
        assert {sample.feed["rate"].item() for sample in samples} == {16000}
