"""A looser target gives no larger archive: `fast` strictly, the default within the few per cent that luck is worth."""

from __future__ import annotations

import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import riq_cli as riq
from riq_cli.pipeline import PRESETS
from tests import builders

SAMPLES = Path(__file__).parent.parent / "sample_models"
TARGETS = [0.05, 0.02, 0.01, 0.005, 0.002, 0.001]


@cache
def small(seed: int, samples: int) -> tuple[riq.Model, riq.Calibration]:
    rows = np.random.default_rng(seed).standard_normal((samples, 64)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        return riq.Model.load(builders.save(builders.perceptron(seed), Path(folder))), riq.Calibration.from_arrays(
            {"x": rows}
        )


@settings(max_examples=settings().max_examples // 6)  # each compresses several times
@given(
    seed=st.integers(0, 2),
    samples=st.sampled_from([4, 16]),
    steps=st.lists(st.integers(0, 35), min_size=2, max_size=4, unique=True),
)
def test_fast_gives_no_larger_archive_for_a_looser_target(seed: int, samples: int, steps: list[int]) -> None:
    """Targets a fifth apart: closer ones may end at the same k, where the manifest's digits differ by a byte or two."""
    model, data = small(seed, samples)
    targets = [round(0.2 * 0.8**step, 5) for step in sorted(steps)]
    archives = [riq.compress(model, data, deviation=target, **PRESETS["fast"]) for target in targets]
    sizes = [archive.size for archive in archives]
    assert sizes == sorted(sizes)


def test_fast_is_monotone_on_the_sample_model() -> None:
    model = riq.Model.load(SAMPLES / "cnn.onnx")
    data = riq.Calibration.load(SAMPLES / "calibration.npz")
    sizes = [riq.compress(model, data, deviation=target, **PRESETS["fast"]).size for target in TARGETS[1:-1]]
    assert sizes == sorted(sizes)
    assert sizes[1] < 30_000  # at 0.01; with ε0 = 0.01 alone it was 40 kB


@pytest.mark.slow
def test_the_default_is_monotone_within_a_few_per_cent() -> None:
    model, data = small(0, 32)
    sizes = [riq.compress(model, data, deviation=target).size for target in TARGETS]
    assert all(looser <= 1.05 * tighter for looser, tighter in pairwise(sizes))
