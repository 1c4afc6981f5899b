"""Frequencies that an entropy coder takes: whole parts of 2²⁴, in proportion to how often symbols occur."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

PRECISION = 24  # bits of a frequency


def in_proportion(masses: Integers) -> Integers:
    """Frequencies f_i ≥ 1 in units of 2⁻²⁴, i64[s], of sum 2²⁴ exactly, in proportion to masses i64[s] ≥ 1."""
    spare = (1 << PRECISION) - masses.size
    if int(masses.max()) < 1 << (62 - PRECISION):
        result: Integers = 1 + masses * spare // masses.sum()
    else:  # mass · 2²⁴ and the sum of all may leave 64 bits: Python's integers do not
        total = sum(masses.tolist())
        result = np.array([1 + mass * spare // total for mass in masses.tolist()], np.int64)
    result[np.argmax(result)] += (1 << PRECISION) - int(result.sum())
    return result
