"""Measures, prints, asserts nothing: `python -m tests.bench [speed] [models]`; both by default.

`models` compresses real models with the default preset, and prints the table of the README; `speed` prints how fast
riq's own parts are.
"""

from __future__ import annotations

import argparse

from tests import zoo

from .models import models
from .speed import speed
from .subjects import PUBLIC, SAMPLES


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("what", nargs="*", choices=["speed", "models"], default=["speed", "models"])
    parser.add_argument(
        "--model", action="append", choices=(*SAMPLES, *zoo.NAMES), help="only this one; repeatable", metavar="NAME"
    )
    parser.add_argument("--deviation", action="append", type=float, help="target; repeatable; default 0.01 0.001")
    parser.add_argument("--samples", type=positive, help="calibration samples; default: all")
    parser.add_argument("--heldout", type=positive, help="held-out samples; default: all")
    arguments = parser.parse_args()
    names = unique(arguments.model or (*SAMPLES, *PUBLIC))
    if "speed" in arguments.what:
        speed()
    if "models" in arguments.what:
        models(names, unique(arguments.deviation or (0.01, 0.001)), arguments.samples, arguments.heldout)


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
