"""Which samples do what: errors are compensated on some, the search measures on others, and a rest checks it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HOLDOUT_SAMPLES = 8  # with fewer samples none is held out
FIT_SAMPLES = 4  # samples at least for error compensation: two to fit, so that each can judge the other, two to search
REFIT_SAMPLES = 4  # held out at least, to tell how well compensation does that is fitted to all others
_ENOUGH = 8  # samples that are neither fitted to nor held out, to search on no others
_PROBED, _HELD = 2, 3  # roles, after the two halves that are fitted to
_MARGIN_SAMPLES = 16  # samples from which on the default margin does not shrink
_MANY = 1024  # samples; of more, each is taken for unlike the others

Halves = tuple[tuple[int, ...], tuple[int, ...]]  # numbers of samples, those of each half


@dataclass(frozen=True)
class Roles:
    """Numbers of samples: those held out, and what the `others` are for where errors are compensated.

    `fit` are the samples that compensation is fitted to, in two halves that judge each other. What is fitted to a
    sample does better on it than on any other: layers are probed on the rest, and what a compensated solution causes is
    told by the `unfitted`. In the end, compensation may be fitted to all `others`, in the halves `refit`.

    Under a constraint, compensated solutions are `searched` on those probed; of a few samples in all, on as many of
    `fit` besides. Those of the norm are searched on all `others`.
    """

    others: tuple[int, ...]
    held: tuple[int, ...]
    searched: tuple[int, ...]
    probed: tuple[int, ...]
    fit: Halves = ((), ())
    refit: Halves = ((), ())

    @property
    def weighed(self) -> tuple[int, ...]:
        """Samples on which what was fitted to `fit`, and again to all `others`, can be held against each other.

        What is fitted to more samples does less well on those of `fit`, and better on the rest. If a share 1 − 1/g of
        the deviation is what being fitted to hides, with g of 1.6 and 1.4, or 3 and 2, that is even where three times
        as many are of the first. Neither was fitted to those held out.
        """
        fitted = (*self.fit[0], *self.fit[1])
        return tuple(sorted((*fitted, *self.probed[: len(fitted) // 3], *self.held)))

    @property
    def unfitted(self) -> tuple[int, ...]:
        """Samples that are not of `fit`."""
        return tuple(sorted((*self.probed, *self.held)))

    @property
    def every(self) -> tuple[int, ...]:
        """All samples."""
        return tuple(sorted((*self.others, *self.held)))


def default_margin(samples: int) -> float:
    """Standard errors that are added to the mean of some samples where no margin was asked for: 1/√n, ¼ from 16 on.

    The fewer there are, the less their own scatter tells of that of others.
    """
    return 1 / math.sqrt(min(samples, _MARGIN_SAMPLES))


def held_count(count: int, holdout: float) -> int:
    """How many of the samples are held out, given the share of them; none of a few."""
    return int(count * holdout) if count >= HOLDOUT_SAMPLES else 0


def roles(count: int, holdout: float, likeness: NDArray[np.float64] | None = None) -> Roles:
    """The roles of samples: held out is every so-manieth, none of a few.

    Where errors are to be compensated, half of all samples are for fitting; samples that are alike, such as crops of
    one photo, have the same role.

    Args:
        count: of the samples.
        holdout: share of them to hold out.
        likeness: of every two samples, f64[count, count], where errors are to be compensated: `FIT_SAMPLES` at least
            beside those held out.
    """
    spare = held_count(count, holdout)
    if likeness is None:
        held = {int((number + 0.5) / holdout) for number in range(spare)}
        others = tuple(number for number in range(count) if number not in held)
        return Roles(others, tuple(sorted(held)), others, others)
    half = min(count // 2, count - spare - 1)
    wanted = [half - half // 2, half // 2, count - spare - half, spare]
    given: list[list[int]] = [[], [], [], []]
    again: tuple[list[int], list[int]] = ([], [])
    # No cluster is larger than what a role wants: so none that wants samples stays without.
    for cluster in clusters(likeness, min(2 + count // 16, *filter(None, wanted))):
        role = int(np.argmax([size - len(numbers) for size, numbers in zip(wanted, given, strict=True)]))
        given[role] += cluster
        if role < _HELD:
            again[role if role < _PROBED else int(len(again[1]) < len(again[0]))].extend(cluster)
    first, second, probed, held_out = (tuple(sorted(numbers)) for numbers in given)
    seen = [number for pair in itertools.zip_longest(first, second) for number in pair if number is not None]
    return Roles(
        others=tuple(sorted((*first, *second, *probed))),
        held=held_out,
        searched=probed if len(probed) >= _ENOUGH else tuple(sorted((*probed, *seen[: len(probed)]))),
        probed=probed,
        fit=(first, second),
        refit=(tuple(sorted(again[0])), tuple(sorted(again[1]))),
    )


def clusters(likeness: NDArray[np.float64], largest: int) -> Sequence[list[int]]:
    """Samples that are alike, `largest` together at most: the two most alike clusters become one, again and again.

    The largest first; those of the same size in the order of their first samples.
    """
    found = [[number] for number in range(len(likeness))]
    if len(found) > _MANY:
        return found
    between = likeness.astype(np.float64).copy()  # mean likeness of two clusters
    np.fill_diagonal(between, -np.inf)
    sizes = np.ones(len(found))
    while True:
        between[sizes[:, None] + sizes > largest] = -np.inf
        one, other = divmod(int(np.argmax(between)), len(found))
        if between[one, other] == -np.inf:
            break
        mean = (sizes[one] * between[one] + sizes[other] * between[other]) / (sizes[one] + sizes[other])
        between[one], between[:, one] = mean, mean
        between[one, one] = between[other] = between[:, other] = -np.inf
        sizes[one] += sizes[other]
        found[one] += found[other]
        found[other] = []
    return sorted((sorted(cluster) for cluster in found if cluster), key=lambda cluster: (-len(cluster), cluster))
