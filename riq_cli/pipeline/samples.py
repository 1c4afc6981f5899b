"""What each sample is for: statistics are taken of some, k is searched on others, and a rest checks the solution."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from riq_cli.errors import SettingsError
from riq_cli.pipeline.settings import Settings

HOLDOUT_SAMPLES = 8  # with fewer samples none is held out
FIT_SAMPLES = 4  # samples at least for statistics: two to fit, so that each can judge the other, two to search
_ENOUGH = 8  # samples that are neither fitted to nor held out, to search on no others
_MARGIN_SAMPLES = 16  # samples from which on the default margin does not shrink
_MANY = 1024  # samples; of more, none is taken to be similar to another

Halves = tuple[tuple[int, ...], tuple[int, ...]]  # numbers of samples, those of each half


@dataclass(frozen=True)
class Roles:
    """Numbers of samples by what they are for.

    Attributes:
        others: all that are not held out.
        held_out: solutions have to hold on them, and nothing else depends on them.
        fit: statistics are taken of them, in two halves of which one judges what is fitted to the other.
        probed: the rest of the others, on which k is searched.
        searched: k is searched under a constraint on these: `probed`, and of a few samples as many of `fit`.
    """

    others: tuple[int, ...]
    held_out: tuple[int, ...]
    probed: tuple[int, ...]
    searched: tuple[int, ...]
    fit: Halves = ((), ())

    @property
    def unfitted(self) -> tuple[int, ...]:
        """Samples that are not of `fit`: what is fitted to a sample does better on it than on any other."""
        return tuple(sorted((*self.probed, *self.held_out)))

    @property
    def every(self) -> tuple[int, ...]:
        """All samples."""
        return tuple(sorted((*self.others, *self.held_out)))


def default_margin(samples: int) -> float:
    """Standard errors that are added to the mean of some samples where no margin was asked for: 1/√n, ¼ from 16 on.

    The fewer there are, the less their own scatter tells of that of others.
    """
    return 1 / math.sqrt(min(samples, _MARGIN_SAMPLES))


def held_count(count: int, holdout: float) -> int:
    """How many of the samples are held out, given the share of them; none of a few."""
    return int(count * holdout) if count >= HOLDOUT_SAMPLES else 0


def compensates(settings: Settings, random: bool, samples: int) -> bool:
    """Whether errors are to be compensated: if asked for, or if not, where the calibration data can carry it.

    Args:
        settings: what is asked for.
        random: the samples are made up.
        samples: their number.

    Raises:
        SettingsError: it is asked for, and the data cannot carry it.
    """
    held = held_count(samples, settings.holdout)
    few = samples - held < FIT_SAMPLES
    if settings.rounding == "compensated" and (random or few):
        raise SettingsError(
            "compensated rounding needs real samples, random ones would mislead it; give --calibration"
            if random
            else f"compensated rounding needs at least {FIT_SAMPLES} samples"
            f"{' that are not held out' if held else ''}; there are {samples - held}"
        )
    return settings.rounding == "compensated" or (settings.may_compensate and not random and not few)


def roles(count: int, holdout: float, similarity: NDArray[np.float64] | None = None) -> Roles:
    """The roles of samples: held out is every so-manieth, none of a few.

    Where statistics are taken, half of all samples are for that; similar ones, such as crops of one photo, have the
    same role.

    Args:
        count: of the samples.
        holdout: share of them to hold out.
        similarity: of every two samples, f64[count, count], where statistics are to be taken: `FIT_SAMPLES` at least
            beside those held out.
    """
    spare = held_count(count, holdout)
    if similarity is None:
        held = {int((number + 0.5) / holdout) for number in range(spare)}
        others = tuple(number for number in range(count) if number not in held)
        return Roles(others, tuple(sorted(held)), others, others)
    fitted = min(count // 2, count - spare - 1)
    wanted = [fitted - fitted // 2, fitted // 2, count - spare - fitted, spare]
    given: list[list[int]] = [[], [], [], []]
    # No cluster is larger than what a role wants: so none that wants samples stays without.
    for cluster in clusters(similarity, min(2 + count // 16, *filter(None, wanted))):
        given[int(np.argmax([size - len(numbers) for size, numbers in zip(wanted, given, strict=True)]))] += cluster
    first, second, probed, spared = (tuple(sorted(numbers)) for numbers in given)
    seen = [number for pair in itertools.zip_longest(first, second) for number in pair if number is not None]
    return Roles(
        others=tuple(sorted((*first, *second, *probed))),
        held_out=spared,
        probed=probed,
        searched=probed if len(probed) >= _ENOUGH else tuple(sorted({*probed, *seen[: len(probed)]})),
        fit=(first, second),
    )


def clusters(similarity: NDArray[np.float64], largest: int) -> Sequence[list[int]]:
    """Samples that are similar, `largest` together at most: the two most similar clusters become one, again and again.

    The largest first; those of the same size in the order of their first samples.
    """
    found = [[number] for number in range(len(similarity))]
    if len(found) > _MANY:
        return found
    between = similarity.astype(np.float64).copy()  # mean similarity of two clusters
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
