"""Stages that are left out by name, and the arithmetic of the table that compares what is left."""

import math
from pathlib import Path

import pytest
from click.testing import CliRunner

import riq_cli as riq
from riq_cli.cli.commands import riq as command
from riq_cli.pipeline.settings import STAGES
from tests.bench import subjects
from tests.bench.ablation import ALL, LARGE, SMALL, Case, Row, bytes_at, cases, measure, table
from tests.bench.journal import Journal


def test_a_name_that_no_stage_has_is_refused() -> None:
    with pytest.raises(riq.RiqError, match="no stage is named 'magic'; there are allocation, "):
        riq.Settings(without=("magic",))


def test_what_is_left_out_is_recorded() -> None:
    assert riq.Settings(without=("trellis", "damping")).recorded()["without"] == ["trellis", "damping"]
    assert "without" not in riq.Settings().recorded()


def test_the_option_is_hidden_from_help() -> None:
    found = CliRunner().invoke(command, ["compress", "--help"])
    assert found.exit_code == 0
    assert "--without" not in found.output


def test_bytes_are_read_off_a_line_in_the_logarithm_of_the_deviation() -> None:
    points = [(0.02, 1000), (0.01, 1200), (0.005, 1400)]
    assert bytes_at(0.01, points) == pytest.approx(1200)
    assert bytes_at(0.0025, points) == pytest.approx(1600)


def test_every_stage_is_left_out_of_small_models_in_three_draws_and_the_costly_ones_of_large_models_once() -> None:
    small, large = list(cases(SMALL[:1])), list(cases(LARGE[:1]))
    assert small[0] == Case(SMALL[0], 0, ALL)
    assert [case.without for case in small] == 3 * [ALL, *STAGES]
    assert [case.draw for case in large] == len(large) * [0]
    assert {case.without for case in large} < {ALL, *STAGES}


@pytest.mark.slow
def test_a_case_gives_bytes_at_each_target_and_seconds() -> None:
    folder = Path(__file__).parent.parent / "sample_models"
    data, heldout = (subjects.some(folder / f"{name}.npz", 12, 0) for name in ("calibration", "heldout"))
    row = measure(riq.Model.load(folder / "lstm.onnx"), data, heldout, "gradients")
    assert 0 < row.bytes[0] < row.bytes[1] and row.seconds > 0


def test_a_row_of_the_table_compares_pairs_of_the_same_model_and_draw() -> None:
    rows = {
        Case("a", 0, ALL): Row((1000.0, 2000.0), 8.0),
        Case("a", 0, "gptq"): Row((1100.0, 2000.0), 4.0),
        Case("b", 1, "gptq"): Row((9.0, 9.0), 1.0),  # nothing to compare it with
    }
    mean = 100 * math.expm1(math.log(1.1) / 2)
    error = 100 * math.log(1.1) / 2
    assert table(rows)[1:] == [f"| gptq | 2 | +{mean:.1f} % | +0.0 % … +10.0 % | ± {error:.1f} | ×0.50 |"]


@pytest.mark.slow
def test_a_search_without_any_stage_is_that_of_the_norm(tmp_path: Path) -> None:
    folder = Path(__file__).parent.parent / "sample_models"
    archive = riq.compress(
        riq.Model.load(folder / "cnn.onnx"),
        riq.Calibration.load(folder / "calibration.npz"),
        deviation=0.01,
        without=tuple(STAGES),
    )
    result = archive.manifest.result
    assert (result["allocation"], result["rounding"], result["probes"]) == ("norm", "nearest", 0)
    assert {layer.coding for layer in archive.manifest.layers} <= {"ans", "raw"}


def test_an_interrupted_ablation_goes_on_behind_the_rows_that_it_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    case, row = Case("a", 0, "gptq"), Row((1.5, 2.5), 3.5)
    Journal(Case, Row, path).add(case, row)
    path.write_text(path.read_text() + '{"model": "b", "dra')  # it was killed while it wrote
    assert {key: (*kept.bytes, kept.seconds) for key, kept in Journal(Case, Row, path, resume=True).rows.items()} == {
        case: (1.5, 2.5, 3.5)
    }
