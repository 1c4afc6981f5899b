"""The manifest's schema: every field that a command reads is checked when an archive is opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from riq_cli.errors import CorruptArchive
from tests.archives import MANIFEST, opened, packed, refused

MEASURED = {"name": "y", "mean": 0.01, "worst": 0.02, "samples": 4}
TOP1 = {"name": "y", "samples": 4, "choices": 8, "kept": 7, "effective": 6}
JUDGED = {"value": 0.1, "limit": None, "holds": True, "loss_before": 1.0, "measure": "cross-entropy"}
MADE: dict[str, dict[str, Any]] = {
    "source": {"bytes": 12, "sha256": "ab"},
    "calibration": {"kind": "npz", "samples": 4, "sha256": "cd"},
    "settings": {"deviation": None, "outputs": ["y"], "objective": "loss", "max_drop": "1%", "dims": {"n": 3}},
    "result": {
        "k": 9,
        "epsilon": 0.0,
        "allocation": "norm",
        "rounding": "nearest",
        "deviation": 0.01,
        "worst": 0.02,
        "measured": [MEASURED],
        "evaluations": 3,
        "probes": 0,
        "trace": [[9, 0.01]],
        "holdout": 0.01,
        "holdout_samples": 1,
        "top1": [TOP1],
        "holdout_top1": [],
        "constraint": JUDGED,
        "constraint_trace": [[9.0, -0.5]],
        "layout": {"float": 1, "8": 2},
    },
}


def test_what_is_told_is_kept_and_unknown_keys_are_ignored() -> None:
    made = {name: told | {"later": [{"x": None}]} for name, told in MADE.items()}
    manifest = opened(packed(MANIFEST | made)).manifest
    assert {name: getattr(manifest, name) for name in made} == made


@pytest.mark.parametrize(
    ("place", "key", "value", "kind"),
    [
        ("source", "bytes", 0, "a positive integer"),
        ("source", "bytes", 1 << 63, "a positive integer"),
        ("source", "sha256", 5, "a string"),
        ("calibration", "kind", ["npz"], "a string"),
        ("calibration", "samples", "4", "a non-negative integer"),
        ("settings", "deviation", -0.1, "a number from 0 to 1e+30 or null"),
        ("settings", "outputs", "y", "a list of strings"),
        ("settings", "direction", "up", "'higher' or 'lower'"),
        ("settings", "margin", True, "a number within ±1e+30"),
        ("result", "k", 0, "a positive number below 1e+30"),
        ("result", "k", 1e300, "a positive number below 1e+30"),
        ("result", "epsilon", None, "a number from 0 to 1e+30"),
        ("result", "deviation", "0.1", "a number from 0 to 1e+30"),
        ("result", "worst", -1, "a number from 0 to 1e+30"),
        ("result", "holdout", [], "a number from 0 to 1e+30"),
        ("result", "evaluations", 1.5, "a non-negative integer"),
        ("result", "measured", {}, "a list of objects"),
        ("result", "measured", [5], "a list of objects"),
        ("result", "trace", [[1.0]], "a list of pairs of k and a number"),
        ("result", "trace", [[0, 1.0]], "a list of pairs of k and a number"),
        ("result", "constraint", 5, "an object"),
        ("result", "layout", {"8": "x"}, "an object of non-negative integers"),
    ],
)  # fmt: skip
def test_a_value_that_is_not_of_its_kind(place: str, key: str, value: Any, kind: str) -> None:
    made = MADE | {place: MADE[place] | {key: value}}
    message = f"manifest: {place}: {key!r} is not {kind}; the archive is damaged"
    refused(packed(MANIFEST | made), CorruptArchive, message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("measured", [MEASURED, {"name": "x"}], "measured[1]: 'mean' is missing"),
        ("measured", [MEASURED | {"worst": "0"}], "measured[0]: 'worst' is not a number from 0 to 1e+30"),
        ("top1", [{"name": "y"}], "top1[0]: 'kept' is missing"),
        ("top1", [TOP1 | {"choices": 0}], "top1[0]: 'choices' is not a positive integer"),
        ("top1", [TOP1 | {"effective": 0}], "top1[0]: 'effective' is not a positive integer"),
        ("holdout_top1", [TOP1, TOP1 | {"kept": 9}], "holdout_top1[1]: more are 'kept' than there are 'choices'"),
        ("constraint", {"value": 1.0}, "constraint: 'limit' is missing"),
        ("constraint", JUDGED | {"holds": 1}, "constraint: 'holds' is not true or false"),
        ("constraint", JUDGED | {"value": "0.1"}, "constraint: 'value' is not a number within ±1e+30 or null"),
        ("constraint", JUDGED | {"x": []}, "constraint: 'x' is not a number, a string, true, false or null"),
    ],
)  # fmt: skip
def test_a_value_deeper_inside(key: str, value: Any, message: str) -> None:
    made = MANIFEST | {"result": MADE["result"] | {key: value}}
    refused(packed(made), CorruptArchive, f"manifest: result: {message}; the archive is damaged")


def test_a_rate_beyond_all_numbers_is_printed_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from riq_cli.cli.report import report

    layer = MANIFEST["layers"][0] | {"coding": "ans", "symbols": 2, "table": 0, "streams": [0], "entropy": 5e-324}
    (tmp_path / "x.riqz").write_bytes(packed(MANIFEST | {"layers": [layer]}, b"x" * MANIFEST["skeleton"]["bytes"]))
    report.main([str(tmp_path / "x.riqz"), "--json"], standalone_mode=False)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(capsys.readouterr().out, parse_constant=refuse)["totals"]["ratio_eq2"] == 192.0
