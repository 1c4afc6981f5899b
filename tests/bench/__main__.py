"""Measures, prints, asserts nothing: `python -m tests.bench [speed] [models] [int8] [presets] [loss] [ablation]`.

Without a name the first three.

`models` compresses real models with the default preset, and prints sizes, deviations and task metrics; `int8`
prints the table of the README, riq beside int8; `presets` compresses real models with several presets at the same
targets, and compares with the paper's; `speed` prints how fast riq's own parts are; `loss` trains small networks and
holds fixed layouts against riq, under a loss and under a deviation; `ablation` leaves out one stage of the search after
the other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from riq_cli.pipeline import PRESETS
from tests import zoo

from .ablation import LARGE, SMALL, ablation
from .int8 import int8
from .loss import loss
from .models import models
from .presets import Plan, presets
from .speed import speed
from .subjects import PUBLIC, SAMPLES

SOME = 32  # samples that `presets` takes where nothing is said; `models` takes all


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "what",
        nargs="*",
        choices=["speed", "models", "int8", "presets", "loss", "ablation"],
        default=["speed", "models", "int8"],
    )
    parser.add_argument(
        "--model", action="append", choices=(*SAMPLES, *zoo.NAMES), help="only this one; repeatable", metavar="NAME"
    )
    parser.add_argument(
        "--deviation", action="append", type=float, help="target; repeatable; default 0.01 0.001, presets: also 0.005"
    )
    parser.add_argument(
        "--preset", action="append", choices=tuple(PRESETS), help="repeatable; default: without uniform"
    )
    parser.add_argument("--samples", type=positive, help=f"calibration samples; models: all, presets: {SOME}")
    parser.add_argument("--heldout", type=positive, help=f"held-out samples; models: all, presets: {SOME}")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="presets, ablation: append each row to it, as a line of JSON"
    )
    parser.add_argument("--resume", action="store_true", help="presets: do not measure again what --json FILE holds")
    arguments = parser.parse_args()
    if "presets" not in arguments.what and arguments.preset:
        parser.error("--preset belongs to presets")
    if not {"presets", "ablation"} & set(arguments.what) and arguments.json:
        parser.error("--json belongs to presets and ablation")
    if arguments.resume and not arguments.json:
        parser.error("--resume needs --json FILE")
    names = unique(arguments.model or (*SAMPLES, *PUBLIC))
    if "speed" in arguments.what:
        speed()
    if "models" in arguments.what:
        models(names, unique(arguments.deviation or (0.01, 0.001)), arguments.samples, arguments.heldout)
    if "int8" in arguments.what:
        int8(unique(arguments.model or SAMPLES))
    if "loss" in arguments.what:
        loss()
    if "ablation" in arguments.what:
        ablation(unique(arguments.model or (*SMALL, *LARGE)), arguments.json)
    if "presets" in arguments.what:
        plan = Plan(
            models=names,
            targets=unique(arguments.deviation or (0.01, 0.005, 0.001)),
            presets=unique(arguments.preset or (name for name in PRESETS if name != "uniform")),
            samples=arguments.samples or SOME,
            heldout=arguments.heldout or SOME,
        )
        presets(plan, arguments.json, arguments.resume)


def positive(text: str) -> int:
    """A whole number above zero."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def unique(values):  # type: ignore[no-untyped-def]
    """The values in order, each once."""
    return tuple(dict.fromkeys(values))


if __name__ == "__main__":
    main()
