"""The damping of least cost, in few trials."""

from __future__ import annotations

import functools
from collections.abc import Callable

from riq_cli.quantize import Damping

_HIGHEST = 2  # levels are 10 to the half of such numbers
_FIRST = -2  # the level that is tried first: a tenth
_SHARES = (0.5, 0.0)  # of a damping that are for each by its own; the first is tried first

FIXED = Damping.of(0.01, 0.0)  # GPTQ's own, where none is searched for


def less(one: Damping, other: Damping | None) -> Damping:
    """The one that damps less, if there are two."""
    return one if other is None else min(one, other, key=lambda damping: damping.level)


def least_damping(cost: Callable[[Damping], float], lowest: int) -> tuple[Damping, float]:
    """The damping of least cost, and that cost.

    First how much, in steps of ten times; then of which kind; then how much again, in finer steps.

    Args:
        cost: asked once for each damping tried.
        lowest: the least level, 10 to the half of this.
    """

    @functools.cache
    def tried(half: int, share: float) -> float:
        return cost(Damping.of(10 ** (half / 2), share))

    def descended(begin: int, step: int, share: float) -> int:
        """From one level to the next as long as the cost falls, upwards or else downwards."""
        half = begin
        for way in (step, -step):
            while lowest <= half + way <= _HIGHEST and tried(half + way, share) < tried(half, share):
                half += way
            if half != begin:
                break
        return half

    half = descended(_FIRST, 2, _SHARES[0])
    share = min(_SHARES, key=lambda share: tried(half, share))
    half = descended(half, 1, share)
    return Damping.of(10 ** (half / 2), share), tried(half, share)
