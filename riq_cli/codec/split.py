"""Which samples do what: errors are compensated on some, the search measures on others, and a rest checks it."""

from __future__ import annotations

HOLDOUT_SAMPLES = 8  # with fewer samples none is held out
FIT_SAMPLES = 4  # samples at least for error compensation: two to fit, so that each can judge the other, two to search


def split(count: int, holdout: float, fitting: bool) -> tuple[list[int], list[int], list[int]]:
    """Numbers of the samples for the search, of those held out of it, and of those that compensation is fitted to.

    Held out is every so-manieth, none of a few. Half of all samples are for fitting: what is fitted to a sample does
    better on it than on any other, so the search must not measure there.

    Args:
        count: of the samples.
        holdout: share of them to hold out.
        fitting: whether any are to be fitted to.
    """
    held: set[int] = set()
    if holdout and count >= HOLDOUT_SAMPLES:
        held = {int((number + 0.5) / holdout) for number in range(int(count * holdout))} & set(range(count))
    rest = [number for number in range(count) if number not in held]
    if not fitting:
        return rest, sorted(held), []
    half = min(count // 2, len(rest) - 1)
    fit = {rest[number * len(rest) // half] for number in range(half)}
    return [number for number in rest if number not in fit], sorted(held), sorted(fit)
