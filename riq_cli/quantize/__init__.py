"""Weights → symbols, with errors compensated where it is known what they do to the outputs."""

from riq_cli.quantize.compensation import compensated, trellised
from riq_cli.quantize.factor import CODES_MAX, TINY, Damping, Factor, Floats, Integers, column_codes, factorized
from riq_cli.quantize.spread import Spread, spread

__all__ = [
    "CODES_MAX",
    "TINY",
    "Damping",
    "Factor",
    "Floats",
    "Integers",
    "Spread",
    "column_codes",
    "compensated",
    "factorized",
    "spread",
    "trellised",
]
