"""Measures, prints, asserts nothing: `python -m tests.bench speed|results|formats|loss|ablation|large`.

`speed` prints how fast riq's own parts are; `results` compresses real models with several presets, holds them against
int8, and writes the page of results and the table of the README; `formats` opens and runs each file that a model may
ship as, and writes the tables about them; `loss` trains small networks and holds fixed layouts against riq, under a
loss and under a deviation; `ablation` leaves out one stage of the search after the other; `large` prints time and
memory for a decoder of a billion weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from riq_cli.pipeline import PRESETS
from tests import zoo

from .ablation import LARGE, SMALL, ablation
from .formats import MODELS as FILES_OF
from .formats import formats
from .large import SIZES, large
from .loss import loss
from .results import MODELS, results
from .speed import in_javascript, speed
from .subjects import SAMPLES


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("what", choices=["speed", "results", "formats", "loss", "ablation", "large"])
    parser.add_argument(
        "--model", action="append", choices=(*SAMPLES, *zoo.NAMES), help="only this one; repeatable", metavar="NAME"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="results, ablation: keep rows in it, and do not measure them again"
    )
    parser.add_argument(
        "--folder", type=Path, metavar="FOLDER", help="formats, large: keep files in it, and do not make them again"
    )
    parser.add_argument("--size", choices=SIZES, help="large: weights of the decoder [default: 1.1B]")
    parser.add_argument("--preset", choices=PRESETS, help="large: of compress [default: fast]")
    parser.add_argument(
        "--archive",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="speed: only that of decoding this one in JavaScript; repeatable",
    )
    arguments = parser.parse_args()
    for option, value, takers in (
        ("--model", arguments.model, ("results", "formats", "ablation")),
        ("--json", arguments.json, ("results", "ablation")),
        ("--folder", arguments.folder, ("formats", "large")),
        ("--size", arguments.size, ("large",)),
        ("--preset", arguments.preset, ("large",)),
        ("--archive", arguments.archive, ("speed",)),
    ):
        if value and arguments.what not in takers:
            parser.error(f"{option} belongs to {', '.join(takers)}")
    names = tuple(dict.fromkeys(arguments.model or ()))
    if arguments.archive:
        for path in arguments.archive:
            in_javascript(f"{path.parent.name}/{path.name}", path)
    elif arguments.what == "speed":
        speed()
    elif arguments.what == "loss":
        loss()
    elif arguments.what == "large":
        large(arguments.size or "1.1B", arguments.preset or "fast", arguments.folder)
    elif arguments.what == "formats":
        formats(names or FILES_OF, arguments.folder)
    elif arguments.what == "ablation":
        ablation(names or (*SMALL, *LARGE), arguments.json)
    else:
        results(names or MODELS, arguments.json)


if __name__ == "__main__":
    main()
