"""Standard errors of the mean that a target is kept by: --margin, its default, and what verify says of a bound."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import riq_cli as riq
from riq_cli.errors import SettingsError
from riq_cli.pipeline import PRESETS
from riq_cli.runtime import Deviation
from tests import builders
from tests.command import riq as command

FAST = PRESETS["fast"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, samples of it, others, and an archive that was made with the ones."""
    folder = tmp_path_factory.mktemp("margin")
    builders.save(builders.perceptron(0), folder)
    for seed, (name, count) in enumerate({"samples": 24, "others": 16, "one": 1}.items()):
        np.savez(folder / f"{name}.npz", x=np.random.default_rng(seed).standard_normal((count, 64)).astype(np.float32))
    compressed(folder, holdout=0).save(folder / "model.riqz")
    return folder


def compressed(folder: Path, samples: str = "samples.npz", **options: object) -> riq.Archive:
    data = riq.Calibration.load(str(folder / samples))
    return riq.compress(riq.Model.load(folder / "model.onnx"), data, **FAST | options)


def held_with(archive: riq.Archive, margin: float) -> float:
    result = archive.manifest.result
    return result["holdout"] + margin * result["holdout_standard_error"]


def test_a_margin_is_added_to_the_mean_of_those_held_out(folder: Path) -> None:
    default, more = compressed(folder), compressed(folder, margin=1.65)
    assert default.manifest.result["holdout_samples"] == 6
    assert held_with(default, 1 / math.sqrt(6)) <= 0.01
    assert held_with(more, 1.65) <= 0.01 < held_with(default, 3)
    assert more.size > default.size
    assert more.manifest.settings["margin"] == 1.65
    assert "margin" not in default.manifest.settings


def test_a_margin_is_added_to_the_mean_of_all_where_none_are_held_out(folder: Path) -> None:
    default, more = compressed(folder, holdout=0), compressed(folder, holdout=0, margin=2.0)
    for archive, margin in ((default, 0.0), (more, 2.0)):
        result = archive.manifest.result
        assert result["deviation"] + margin * result["standard_error"] <= 0.01
    assert default.manifest.result["deviation"] > 0.0095  # nothing is added
    assert more.size > default.size


def test_a_margin_of_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"a margin of -1 standard errors is negative"):
        compressed(folder, margin=-1.0)
    done = command("verify", "model.riqz", "--against", "model.onnx", "--calibration", "others.npz", "--margin", "-1e9",
                   folder=folder)  # fmt: skip
    assert done.returncode == 2
    assert b"a margin of -1e+09 standard errors is negative or not finite" in done.stderr
    with pytest.raises(SettingsError, match="a margin is added to a deviation, a loss, flips or a divergence"):
        compressed(folder, margin=1.0, size=5000)
    with pytest.raises(SettingsError, match="needs two samples at least"):
        compressed(folder, "one.npz", margin=1.0)


def verified(folder: Path, samples: str, *options: str) -> tuple[int, str]:
    done = command("verify", "model.riqz", "--against", "model.onnx", "--calibration", samples, *options, folder=folder)
    return done.returncode, done.stdout.decode()


def test_verify_says_by_how_many_standard_errors_a_bound_is_exceeded(folder: Path) -> None:
    document = json.loads(verified(folder, "others.npz", "--json")[1])
    mean, error = document["deviation"], document["standard_error"]
    assert document["margin"] == 0
    by_chance, not_by_chance = "a --margin or more samples", "samples more like these, or a smaller --deviation"
    for bound, said in (
        (mean - 0.5 * error, f"above by less than one standard error of 16 samples; give riq compress {by_chance}"),
        (mean - 2.5 * error, f"above by 2.5 standard errors of 16 samples; give riq compress {by_chance}"),
        (mean - 3.5 * error, f"above by 3.5 standard errors of 16 samples; give riq compress {not_by_chance}"),
    ):
        code, text = verified(folder, "others.npz", "--deviation", str(bound))
        assert code == 3
        assert re.match(
            rf"model\.riqz: deviation {mean:.4g} ± {error:.2g} \(relative error \d+ %\), ABOVE the bound of", text
        )
        assert f"\n  {said}\n" in text


def test_verify_takes_a_margin(folder: Path) -> None:
    found = json.loads(verified(folder, "others.npz", "--json")[1])
    bound = str(found["deviation"] + 1.2 * found["standard_error"])
    assert verified(folder, "others.npz", "--deviation", bound, "--margin", "1")[0] == 0
    code, text = verified(folder, "others.npz", "--deviation", bound, "--margin", "1.65")
    assert code == 3
    assert "with 1.65 standard errors added" in text
    assert "  the mean of 16 samples is within the bound, but by less than the margin\n" in text


def test_a_single_sample_has_no_standard_error(folder: Path) -> None:
    code, text = verified(folder, "one.npz", "--deviation", "1")
    assert code == 0 and "±" not in text
    assert "; 1 sample\n" in text
    done = command("verify", "model.riqz", "--against", "model.onnx", "--calibration", "one.npz", "--margin", "1",
                   folder=folder)  # fmt: skip
    assert done.returncode == 2
    assert b"a margin in standard errors needs two samples at least" in done.stderr
    assert Deviation(("y",), (((0.5,),),)).standard_error is None


def test_a_margin_serves_a_loss_and_the_deviation_beside_it(folder: Path) -> None:
    np.save(folder / "labels.npy", np.random.default_rng(5).integers(0, 64, 24))
    words = ("--calibration", "samples.npz", "--labels", "labels.npy", "--max-loss-increase", "100%")
    for margin, options in ((0.0, ()), (3.0, ("--margin", "3"))):
        done = command("compress", "model.onnx", *words, "--preset", "fast", "--deviation", "0.005", *options,
                       "-o", f"{margin}.riqz", "--json", folder=folder)  # fmt: skip
        facts = json.loads(done.stdout)
        assert facts["settings"]["margin"] == margin
        assert facts["holdout"] + margin * facts["holdout_standard_error"] <= 0.005
        assert facts["constraint"]["holds"]
