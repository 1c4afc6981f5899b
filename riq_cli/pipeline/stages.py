"""The stages of compression by name: each is one decision about how layers are quantized, and may be left out.

In this order: statistics (`gradients`, `augmentation`) → plan of each layer (`gptq`, `columns`, `damping`, `bias`, rows
by `gradients`) → `allocation` of bits among layers → search for k → `trellis` → coding (`student`). A new stage that
decides about one layer is a function in `quantize/stages.py` that takes a plan and returns one, and a line in
`pipeline/fitting.py`, where its turn comes.
"""

from __future__ import annotations

from collections.abc import Sequence

from riq_cli.errors import SettingsError

STAGES = {
    "allocation": "bin widths by the measured deviation of layers (reverse water-filling); without: by norm",
    "gptq": "error feedback along columns; without: rounding to the nearest",
    "columns": "bin widths of columns by the diagonal of the Hessian's factor, in GPTQ",
    "damping": "damping of the Hessian, validated on the other half of the samples; without: 1 % of its mean diagonal",
    "bias": "a bias takes over what rounding adds to the outputs on average",
    "gradients": "output gradients weigh positions and rows: bin widths of rows, and error feedback along rows",
    "augmentation": "statistics of variations of the samples, too",
    "trellis": "trellis-coded quantization",
    "student": "symbols are coded by Student's t distribution with scale contexts; without: by tables",
}


def check(names: Sequence[str]) -> None:
    """Return nothing if every name is one of a stage.

    Raises:
        SettingsError: one is not.
    """
    for name in names:
        if name not in STAGES:
            raise SettingsError(f"no stage is named {name!r}; there are {', '.join(STAGES)}")
