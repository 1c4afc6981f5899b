"""Options that ask for a constraint: a loss on labels, a metric, or how much a choice among classes may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from riq_cli.cli import options
from riq_cli.cli.help import grouped
from riq_cli.cli.paths import FileOf
from riq_cli.cli.quantities import parse_drop, parse_fraction, parse_number
from riq_cli.remote import is_url

if TYPE_CHECKING:
    from riq_cli.calibration import Calibration
    from riq_cli.constraint import Constraint

_OF = {  # options by their objective
    "labels": "loss",
    "max_loss_increase": "loss",
    "metric": "metric",
    "max_drop": "metric",
    "direction": "metric",
    "max_flips": "flips",
    "max_kl": "kl",
}
_NEEDED = {"loss": "labels", "metric": "metric", "flips": "max_flips", "kl": "max_kl"}
OPTIONS = ("objective", "margin", *_OF)
# Settings of an archive that stand in for options.
_TOLD = ("max_loss_increase", "margin", "max_drop", "direction", "max_flips", "max_kl")

constraint_options = grouped(
    "Constraint",
    click.option("--objective", type=click.Choice(["deviation", "loss", "metric", "flips", "kl"]),
                 help="What must be kept. [default: what the other options here say, else the deviation]"),
    click.option("--max-flips", type=parse_fraction, metavar="X",
                 help="Flips: share of the samples (or positions of sequences) at which the top-1 may change: 0.01 or "
                 "1%. Measured at the first output that is a choice among classes, or at --output."),
    click.option("--max-kl", type=parse_number, metavar="X",
                 help="KL: how large the mean Kullback–Leibler divergence of an output's softmax may be, in nats. "
                 "Measured at the same output as --max-flips."),
    click.option("--labels", type=FileOf(".npy", ".npz", must_be_file=False), metavar="FILE",
                 help="Loss: labels of the samples, .npy, .npz:KEY, or a key of the calibration .npz. Integers: "
                 "cross-entropy; floats: mean squared error. Measured at the first float output, or at --output."),
    click.option("--max-loss-increase", type=parse_fraction, metavar="X",
                 help="Loss: how much it may rise, relative: 0.01 or 1%. [default: 0]"),
    click.option("--margin", type=parse_number, metavar="Z",
                 help="Standard errors of the mean to add to a deviation, a loss increase, flips or KL before it is "
                 "compared; 1.65 is a one-sided bound of 95 %. [default: 0; for the deviation of n held-out samples "
                 "1/√n, 1/4 from 16 on]"),
    click.option("--metric", metavar="MODULE:FUNCTION",
                 help="Metric: called with an onnxruntime session (or, by the parameter's name, `predict`), returns a "
                 "score."),
    click.option("--max-drop", type=parse_drop, metavar="X",
                 help="Metric: how much worse the score may get: 0.004, or relative 0.4%. [default: 0]"),
    click.option("--direction", type=click.Choice(["higher", "lower"]),
                 help="Metric: which scores are better. [default: higher]"),
)  # fmt: skip


def files(given: Mapping[str, Any]) -> tuple[str, ...]:
    """Files that are read for a constraint: that of the labels, as it is given and without a :KEY."""
    labels = given["labels"] or ""
    return tuple(filter(None, (labels, labels.rpartition(":")[0])))


def load(
    given: dict[str, Any],
    calibration: str | None,
    images: Mapping[str, Any],
    outputs: Sequence[str],
    told: Mapping[str, Any] | None = None,
) -> tuple[Constraint | None, Calibration | None]:
    """The constraint that the options ask for, and the calibration data without the labels that may lie in it.

    Args:
        given: those of `OPTIONS` that have a value.
        calibration: where the data is; None: there is none.
        images: options for images.
        outputs: tensors to measure; the first is the one that may not change.
        told: settings that an archive was made with, which stand in for options that are not given.
    """
    objectives = {_OF[name]: name for name in given if name in _OF}
    told = told or {}
    default = told["objective"] if told.get("objective") in ("flips", "kl") else "deviation"  # without further data
    objective = given.get("objective") or next(iter(objectives), default)
    for other, name in objectives.items():
        if other != objective:
            raise click.UsageError(
                f"--{name.replace('_', '-')} belongs to --objective {other}, not to {objective}; "
                "there is one constraint at a time"
            )
    if told.get("objective") == objective:
        given = {name: told[name] for name in _TOLD if name in told} | given
    needed = _NEEDED.get(objective)
    if needed is not None and needed not in given:
        asks = f"--{objectives[objective].replace('_', '-')}" if objective in objectives else f"--objective {objective}"
        raise click.UsageError(f"{asks} needs --{needed.replace('_', '-')}")
    if objective == "loss":
        if calibration is None:
            raise click.UsageError("--labels are those of real samples; give these with --calibration")
        from riq_cli.calibration import load_labels
        from riq_cli.constraint import LossConstraint

        if is_url(calibration) and not any(Path(file).exists() for file in files(given)):
            raise click.UsageError(
                f"--labels {given['labels']}: no such file; labels in samples behind a URL are not read, and need a "
                "file of their own"
            )
        labels, key = load_labels(given["labels"], calibration)
        data = options.load_calibration(calibration, images, key)
        return LossConstraint(labels, given.get("max_loss_increase", 0.0), given.get("margin", 0.0)), data
    samples = None if calibration is None else options.load_calibration(calibration, images)
    if objective == "deviation":
        return None, samples
    if objective in ("flips", "kl"):
        if calibration is None:
            raise click.UsageError(
                f"--max-{objective} says nothing on random samples; give real ones with --calibration"
            )
        from riq_cli.constraint import FlipsConstraint, KLConstraint

        kind = FlipsConstraint if objective == "flips" else KLConstraint
        output = next(iter(outputs or told.get("outputs", ())), None)
        return kind(given[f"max_{objective}"], output, given.get("margin", 0.0)), samples
    if ":" not in given["metric"]:
        raise click.UsageError(f"--metric {given['metric']}: write module:function")
    from riq_cli.callables import imported
    from riq_cli.constraint import MetricConstraint
    from riq_cli.errors import ConstraintError

    drop = given.get("max_drop", (0.0, False))
    drop, relative = drop if isinstance(drop, tuple) else parse_drop(drop)  # an archive has it as it was written
    function = imported(given["metric"], ConstraintError)
    return MetricConstraint(function, drop, relative, given.get("direction", "higher")), samples
