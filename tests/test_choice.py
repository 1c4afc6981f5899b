"""--max-flips and --max-kl: shares and divergences against values worked out by hand, and compress under them."""

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import riq_cli as riq
from riq_cli.constraint import FlipsConstraint, Judgement, KLConstraint
from riq_cli.errors import ConstraintError, SettingsError
from tests import builders
from tests.command import fails
from tests.command import riq as command

SAMPLES = Path(__file__).parent.parent / "sample_models"
FAST: dict[str, Any] = {"allocation": "norm", "rounding": "nearest"}


class Given:
    """A candidate whose outputs are given."""

    def __init__(
        self, outputs: Sequence[Any], rows: int = 1, axes: Mapping[str, int] | None = None, samples: Sequence[int] = ()
    ) -> None:
        self._outputs = [np.asarray(output) for output in outputs]
        self.samples = samples or range(len(outputs))
        self.rows = [rows] * len(outputs)
        self.tensors = ["y"]
        self.axes = {"y": -1} if axes is None else axes

    def outputs(self, tensor: str) -> Iterator[np.ndarray]:
        assert tensor == "y"
        return iter(self._outputs)


def flips(before: Given, after: Given, **options: Any) -> Judgement:
    return FlipsConstraint(0.25, **options).begin(before)(after)


def divergence(before: Sequence[Any], after: Sequence[Any], **options: Any) -> Judgement:
    return KLConstraint(0.01, **options).begin(Given(before))(Given(after))


# ---- flips ----


ONES = [[[0.0, 1.0, 0.5]]] * 10
THREE_OF_TEN = [[[0.0, 1.0, 2.0]]] * 3 + ONES[3:]


def test_flips_are_the_share_of_the_choices_whose_largest_score_is_another() -> None:
    found = flips(Given(ONES), Given(THREE_OF_TEN))
    assert (found.value, found.limit, found.holds) == (0.3, 0.25, False)
    assert found.facts == {
        "tensor": "y", "choices": 10, "samples": 10, "changed": 3, "low": 0.108, "high": 0.603,  # Wilson's interval
    }  # fmt: skip
    assert flips(Given(ONES), Given(ONES)).value == 0


def is_above(value: float, share: float, errors: float, count: int) -> bool:
    """Whether a value is so many of its own standard errors above a share of so many independent choices."""
    return value > share and value - share == pytest.approx(errors * math.sqrt(value * (1 - value) / count), rel=1e-9)


def test_the_margin_adds_standard_errors_of_the_share() -> None:
    found = flips(Given(ONES), Given(THREE_OF_TEN), margin=1.65)
    assert is_above(found.value, 0.3, 1.65, 10)
    assert found.facts["margin"] == 1.65
    # Where nothing changed, the share may still be larger than 0.
    assert is_above(flips(Given(ONES), Given(ONES), margin=1.65).value, 0.0, 1.65, 10)
    with pytest.raises(ConstraintError) as error:
        flips(Given(ONES[:8]), Given(ONES[:8]), margin=1.65)
    assert str(error.value) == (
        "8 samples cannot show at most 25 % flips with a margin of 1.65: if none changes, it may still be 25 %; "
        "give more samples, a smaller --margin, or --holdout 0"
    )


def test_positions_of_a_sequence_count_each() -> None:
    before, after = np.zeros((2, 4, 1, 5, 3))
    before[..., 0] = after[..., 0] = 1
    after[range(4), 0, range(4), 2] = 2  # one position of each sample
    found = flips(Given(before), Given(after), margin=1.0)
    assert is_above(found.value, 0.2, 1.0, 20)  # none depends on the others of its sample
    assert (found.facts["changed"], found.facts["choices"], found.facts["samples"]) == (4, 20, 4)
    swapped = [Given(values.swapaxes(2, 3), axes={"y": 1}) for values in (before, after)]
    assert flips(*swapped, margin=1.0) == found


def test_positions_that_change_together_count_as_fewer() -> None:
    before, after = np.zeros((2, 4, 1, 5, 3))
    before[..., 0] = after[..., 0] = 1
    after[0, ..., 2] = 2  # all positions of one sample
    assert is_above(flips(Given(before), Given(after), margin=1.0).value, 0.25, 1.0, 4)
    after[1, 0, :3, 2] = 2  # and three of the second: the standard error is that of 1, 0.6, 0, 0
    shares = np.array([1, 0.6, 0, 0])
    independent = 0.4 * 0.6 / (shares.var(ddof=1) / 4)
    assert independent < 4
    assert is_above(flips(Given(before), Given(after), margin=1.0).value, 0.4, 1.0, 4)
    assert is_above(flips(Given(before[1:]), Given(after[1:]), margin=1.0).value, 0.2, 1.0, 4)


def test_each_row_of_a_batch_is_a_sample() -> None:
    rows = [np.concatenate(list(values)) for values in (ONES, THREE_OF_TEN)]
    found = flips(*(Given([batch[:5], batch[5:]], rows=5) for batch in rows), margin=1.0)
    assert found == flips(Given(ONES), Given(THREE_OF_TEN), margin=1.0)


def test_a_candidate_on_some_samples_is_held_against_the_same_of_the_original() -> None:
    before = [[[0.0, 1.0]], [[1.0, 0.0]], [[0.0, 1.0]]]
    judge = FlipsConstraint(0.0).begin(Given(before))
    assert judge(Given([before[2], before[1]], samples=[2, 1])).holds
    assert judge(Given([before[1]], samples=[2])).value == 1


def test_nan_is_another_class() -> None:
    assert flips(Given(ONES), Given([[[math.nan] * 3]] * 10)).value == 1


# ---- divergences ----


P, Q = np.array([0.5, 0.5]), np.array([0.25, 0.75])
KL = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)


@pytest.mark.parametrize("form", [np.array, np.log, lambda p: np.log(p) + 7])
def test_the_divergence_of_probabilities_or_of_the_softmax_of_logits(form: Any) -> None:
    found = divergence([form(P), form(P)], [form(P), form(Q)])
    assert found.value == found.facts["kl"] == pytest.approx(KL / 2, rel=1e-12)
    assert found.facts["standard_error"] == pytest.approx(KL / 2, rel=1e-2)  # of 0 and KL; three digits
    assert divergence([form(P)], [form(Q)]).facts["standard_error"] is None  # of one sample, it is not known
    added = divergence([form(P), form(P)], [form(P), form(Q)], margin=2.0)
    assert added.value == pytest.approx(KL / 2 + 2 * KL / 2, rel=1e-12)


def test_classes_without_probability_add_nothing_and_those_that_lose_all_of_it_much() -> None:
    impossible = np.array([0.0, 0.0, -math.inf])
    assert divergence([impossible] * 2, [impossible, np.array([0.0, 0.0, -50.0])]).value < 1e-20
    assert divergence([np.zeros(3)], [impossible]).value == math.inf
    sure = np.array([0.0, 1.0], np.float32)
    bound = 0.5 * math.log(0.5) - 0.5 * math.log(np.finfo(np.float32).tiny) + 0.5 * math.log(0.5)
    assert divergence([P.astype(np.float32)], [sure]).value == pytest.approx(bound)


def test_what_is_nan_or_of_another_shape_diverges_without_bound() -> None:
    for after in ([math.nan, 0.0], [0.0, 0.0, 0.0]):
        found = divergence([np.zeros(2)] * 2, [np.zeros(2), np.array(after)], margin=1.0)
        assert found.value == math.inf
        assert found.recorded()["value"] is None


# ---- what is refused ----

NONE = "no output is known to be a choice among classes; name one with --output, such as "


def test_bounds_out_of_range_are_refused() -> None:
    for kind, limit in ((FlipsConstraint, 1.0), (FlipsConstraint, -0.1), (KLConstraint, math.inf), (KLConstraint, -1)):
        with pytest.raises(SettingsError, match=r"max_(flips|kl) = .* is not in \[0, (1|inf)\); try 0.01"):
            kind(limit)
    with pytest.raises(SettingsError, match="a margin of -1"):
        KLConstraint(0.1, margin=-1.0)


@pytest.mark.parametrize(
    ("original", "options", "text"),
    [
        (Given(ONES, axes={}), {}, NONE + "y"),
        (Given(ONES), {"output": "z"}, "'z' is not measured; name one with --output, such as y"),
        (Given([[[1.0]]]), {}, "'y' of shape [1, 1] is no choice: it holds no two classes"),
        (Given([[[0.0, 0.0]]]), {}, "the original model's scores at 'y' are NaN, infinite or all the same"),
        (Given(ONES[:1]), {"margin": 1.0}, "a margin in standard errors needs two samples at least"),
    ],
)  # fmt: skip
def test_what_decides_nothing_is_an_error(original: Given, options: dict, text: str) -> None:
    with pytest.raises(ConstraintError) as error:
        FlipsConstraint(0.1, **options).begin(original)
    assert str(error.value) == text


def test_an_output_that_is_named_is_taken_for_a_choice_along_its_last_axis() -> None:
    named = Given(ONES, axes={}), Given(THREE_OF_TEN, axes={})
    assert flips(*named, output="y") == flips(Given(ONES), Given(THREE_OF_TEN))


# ---- compress ----


@pytest.mark.parametrize("constraint", [FlipsConstraint(0.05), KLConstraint(0.02, margin=1.0)])
def test_what_ships_was_judged(constraint: Any) -> None:
    model, data = riq.Model.load(SAMPLES / "lstm.onnx"), riq.Calibration.load(SAMPLES / "calibration.npz")
    archive = riq.compress(model, data, constraint=constraint, **FAST)
    result = archive.manifest.result
    assert archive.manifest.settings == {"allocation": "norm", "deviation": None, **constraint.recorded()}
    for found, samples in ((result["constraint"], 64), (result["constraint_holdout"], 16)):
        assert found["holds"] and found["value"] <= found["limit"] == constraint.limit
        assert (found["samples"], found["choices"], found["tensor"]) == (samples, samples, "logits")
    assert riq.check(archive, model, data, constraint).recorded() == result["constraint"]
    (top1,) = result["top1"]
    assert top1["choices"] - top1["kept"] == result["constraint"].get("changed", top1["choices"] - top1["kept"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("lstm.onnx", "calibration.npz", "heldout.npz"):
        shutil.copy(SAMPLES / name, tmp_path)
    return tmp_path


COMPRESS = ("compress", "lstm.onnx", "--preset", "fast", "--calibration", "calibration.npz")
VERIFY = ("verify", "lstm.riqz", "--against", "lstm.onnx", "--calibration", "heldout.npz")


def test_flips_on_the_command_line(folder: Path) -> None:
    done = command(*COMPRESS, "--max-flips", "5%", folder=folder)
    text = done.stderr.decode()
    assert done.returncode == 0, text
    said = r"top-1 at logits changed on \d of {} choices \([\d.]+ % ≤ 5 %; 95 % interval [\d.]+ % to [\d.]+ %\)\n"
    assert re.search("\n  constraint " + said.format(64) + "    held out: " + said.format(16), text)
    report = command("report", "lstm.riqz", folder=folder).stdout.decode()
    assert re.search("\nconstraint: " + said.format(64) + "constraint, held out: " + said.format(16), report)
    assert "--max-flips 0.05" in report

    done = command(*VERIFY, folder=folder)  # the tolerance is the archive's
    assert done.returncode == 0
    assert "  constraint: top-1 at logits changed on " in done.stdout.decode()
    done = command(*VERIFY, "--max-flips", "0", "--json", folder=folder)
    found = json.loads(done.stdout)
    assert (done.returncode, found["holds"], found["bound"]) == (3, False, None)
    assert found["constraint"]["changed"] == found["top1"][0]["choices"] - found["top1"][0]["kept"] > 0


def test_the_summary_gives_advice_where_the_top_1_changes_often(folder: Path) -> None:
    text = command(*COMPRESS, "--deviation", "0.1", folder=folder).stderr.decode()
    kept = re.search(r"held out: (\d+) of 16 choices, ", text)
    assert kept is not None
    changed = 16 - int(kept[1])
    share = f"{100 * changed / 16:.2g} %"
    assert (
        f"\n  advice     top-1 changed on {changed} of 16 choices held out ({share}): --max-flips 1% or --max-kl 0.01 "
        "bounds that, --deviation 0.025 about halves it\n"
    ) in text
    again = (*COMPRESS, "--force")
    assert "advice     top-1 changed on" in command(*again, "--holdout", "0", folder=folder).stderr.decode()
    few = "\n  advice     few samples (64) for 1 %: on others, 5.7 % may change; give more, or --max-kl, for which each"
    assert few in command(*again, "--max-flips", "1%", folder=folder).stderr.decode()
    for options in (("--deviation", "1e-6"), ("--size", "20kB"), ("--max-flips", "50%")):
        assert "advice" not in command(*again, *options, folder=folder).stderr.decode()


def test_a_divergence_on_the_command_line(folder: Path) -> None:
    done = command(*COMPRESS, "--max-kl", "0.01", "--margin", "1", "--output", "logits", folder=folder)
    text = done.stderr.decode()
    assert done.returncode == 0, text
    assert "  constraint KL divergence at logits 0.00" in text
    assert " with 1 standard error ≤ 0.01), 64 choices\n" in text
    assert command(*VERIFY, folder=folder).returncode == 0
    assert command(*VERIFY, "--objective", "deviation", "--deviation", "1", folder=folder).returncode == 0
    assert command(*VERIFY, "--max-kl", "1e-9", folder=folder).returncode == 3


def test_what_does_not_go_together_is_a_usage_error(folder: Path) -> None:
    fails(2, "--max-kl belongs to --objective kl, not to flips; there is one constraint at a time", *COMPRESS,
          "--max-flips", "1%", "--max-kl", "1", folder=folder)  # fmt: skip
    fails(2, "--objective flips needs --max-flips", *COMPRESS, "--objective", "flips", folder=folder)
    fails(2, "--size 30000 and a constraint", *COMPRESS, "--max-flips", "1%", "--size", "30kB", folder=folder)


def test_a_model_without_a_choice_names_its_outputs(tmp_path: Path) -> None:
    builders.save(builders.dense(), tmp_path)
    words = ("compress", "model.onnx", "--max-flips", "1%")
    fails(2, "--max-flips says nothing on random samples; give real ones with --calibration", *words, folder=tmp_path)
    (image,) = (feed["x"] for feed in builders.feeds(builders.dense(), 1))
    np.savez(tmp_path / "samples.npz", x=image)
    fails(1, NONE, *words, "--calibration", "samples.npz", folder=tmp_path)
