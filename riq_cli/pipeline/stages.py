"""The mechanisms of the search by name: each may be left out, to see what it is worth."""

from __future__ import annotations

from collections.abc import Sequence

from riq_cli.errors import SettingsError

STAGES = {
    "allocation": "bin widths by the measured deviation of layers; without: by norm",
    "reprobes": "layers are probed again near their bin widths and at narrow ones",
    "blends": "measured bin widths half-way to those of the norm are tried too",
    "candidates": "the solution of the paper, and compensation without gradients, are tried too",
    "rows": "bin widths of rows by their norms",
    "gptq": "rounding with error feedback along columns; without: to the nearest",
    "columns": "bin widths of columns by the diagonal of the factor, in GPTQ",
    "damping": "damping by cross-validation; without: 1 % of the mean of the diagonal",
    "bias": "a bias takes over what rounding adds to the outputs on average",
    "gradients": "gradients of the outputs weigh positions and rows",
    "variations": "Hessians and gradients of variations of the samples",
    "refit": "a second fit to all samples that are not held out",
    "trellis": "trellis-coded quantization",
    "student": "symbols are coded by Student's t distribution; without: by tables",
    "crossing": "k by a line through several deviations; without: by bisection",
}


def check(names: Sequence[str]) -> None:
    """Return nothing if every name is one of a stage.

    Raises:
        SettingsError: one is not.
    """
    for name in names:
        if name not in STAGES:
            raise SettingsError(f"no stage is named {name!r}; there are {', '.join(STAGES)}")
