"""Which layers may be coded: also those that a model rounds to a grid itself; and what is said of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import riq_cli as riq
from riq_cli.pipeline import PRESETS
from tests import builders


def compressed(name: str, folder: Path, **options: Any) -> tuple[riq.Archive, list[str]]:
    """An archive of a form by the fast preset, and the warnings."""
    build, warnings = builders.FORMS[name], list[str]()
    model = riq.Model.load(builders.save(build(), folder))
    data = riq.Calibration.from_feeds(builders.feeds(build(), 8))
    return riq.compress(model, data, **PRESETS["fast"] | options, warn=warnings.append), warnings


def test_float_weights_of_a_model_trained_for_int8_are_coded_by_the_operator_behind_their_grid(tmp_path: Path) -> None:
    archive, warnings = compressed("trained_for_int8", tmp_path, min_size=16)
    assert [(entry.name, entry.op) for entry in archive.manifest.layers] == [("w", "Gemm"), ("v", "MatMul")]
    assert warnings == []


def test_float_weights_that_are_all_kept_exact_are_not_said_to_be_missing(tmp_path: Path) -> None:
    archive, warnings = compressed("dense", tmp_path, exclude=("*",))
    assert archive.manifest.layers == ()
    assert warnings == ["there are no float weights to code, or all are kept exact; the model is stored as it is"]


def test_a_quantized_model_is_stored_as_it_is(tmp_path: Path) -> None:
    archive, warnings = compressed("int8_qdq", tmp_path)
    assert archive.manifest.layers == ()
    assert warnings == ["the model is already quantized; it is stored as it is"]


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        (
            "int8_qdq",
            {"include": ("*",)},
            ["2 included layers kept exact, scales or biases of quantized operators: 'w_scale', 'x_scale'",
             "the model is already quantized; it is stored as it is"],
        ),
        (
            "trained_for_int8",
            {"include": ("w", "w_steps"), "min_size": 16},
            ["1 included layer kept exact, scales or biases of quantized operators: 'w_steps'"],
        ),
        (
            "arguments",
            {"include": ("w", "exponents", "low"), "min_size": 16},
            ["2 included layers kept exact, single numbers, or values that tell an operator what to do: "
             "'exponents', 'low'"],
        ),
        (
            "dense",
            {"include": ("*",), "exclude": ("second.bias",), "min_size": 16},
            ["1 included layer kept exact, no matrices of enough weights for norm allocation: 'first.bias'"],
        ),
        (
            "dense",
            {"include": ("*bias", "first.weight"), "min_size": 64},
            ["2 included layers kept exact, fewer than 64 weights (--min-size): 'first.bias', 'second.bias'"],
        ),
    ],
)  # fmt: skip
def test_included_layers_that_stay_exact_are_named_with_the_reason(
    name: str, options: dict[str, Any], wanted: list[str], tmp_path: Path
) -> None:
    assert compressed(name, tmp_path, **options)[1] == wanted
