"""Outputs of two models → how far they are from each other: the deviation, eq. (1), and how often the top-1 changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.errors import CalibrationError

Array = NDArray[Any]

NOTHING_TO_MEASURE = (
    "there is nothing to measure: the model's outputs are NaN, infinite, all zero or empty on these samples; give "
    "samples on which the original model works, or name another tensor with --output"
)


@dataclass(frozen=True)
class TensorDeviation:
    """Deviation measured at one tensor: mean and maximum over the samples, and their number.

    `standard_error` is that of the mean, as samples differ from each other; None for a single sample.
    """

    name: str
    mean: float
    worst: float
    samples: int
    standard_error: float | None


@dataclass(frozen=True)
class Deviation:
    """Deviation at every tensor that is measured; the model's is that of the worst tensor.

    Attributes:
        names: of the tensors.
        runs: deviations of the samples in each run, by tensor; NaN where they are undefined, see `has_direction`. Such
            samples are in no mean, in no maximum and in no count.
        changes: in each run, by tensors that are a choice among classes: for each sample, on how many choices the
            top-1 changed, and of how many.
    """

    names: tuple[str, ...]
    runs: tuple[tuple[tuple[float, ...], ...], ...]
    changes: tuple[Mapping[str, Array], ...] = ()

    @cached_property
    def tensors(self) -> tuple[TensorDeviation, ...]:
        """What there is to tell of each tensor at which it is defined for any sample; empty if nothing was measured."""
        return tuple(
            TensorDeviation(name, math.fsum(values) / len(values), max(values), len(values), standard_error(values))
            for name, values in zip(self.names, self._values, strict=True)
            if values
        )

    @property
    def is_measured(self) -> bool:
        """Whether there is anything to tell: if not, there is no mean."""
        return bool(self.tensors)

    @property
    def mean(self) -> float:
        """The mean over samples at the tensor where it is largest: what a target bounds.

        Raises:
            CalibrationError: it is defined for no sample; a measurement of nothing is no deviation of 0.
        """
        return self._largest.mean

    @property
    def standard_error(self) -> float | None:
        """The standard error of `mean`; None for a single sample."""
        return self._largest.standard_error

    @property
    def by_sample(self) -> NDArray[np.float64]:
        """Each sample's deviation at the tensor where the mean is largest; NaN where it is undefined."""
        number = self.names.index(self._largest.name)
        return np.array([value for run in self.runs for value in run[number]])

    @property
    def samples(self) -> NDArray[np.float64]:
        """The same without samples for which it is undefined."""
        found = self.by_sample
        return found[~np.isnan(found)]

    @property
    def worst(self) -> float:
        """The largest deviation of any sample at any tensor."""
        return max(tensor.worst for tensor in self.tensors)

    def of(self, runs: Sequence[int]) -> Deviation:
        """That of some of the runs alone, by their numbers."""
        changes = tuple(self.changes[number] for number in runs) if self.changes else ()
        return Deviation(self.names, tuple(self.runs[number] for number in runs), changes)

    @property
    def top1(self) -> list[dict[str, Any]]:
        """The top-1 of all samples at each tensor that is a choice among classes, as manifests keep it."""
        found = []
        for name in self.changes[0] if self.changes else ():
            changed, counts = np.concatenate([run[name] for run in self.changes], axis=1)
            changed, counts = changed[counts > 0], counts[counts > 0]
            samples, choices = len(counts), int(counts.sum())
            if samples:
                independent = effective(*share_of(changed, counts), samples, choices)
                more = {} if independent == samples else {"effective": independent}
                kept = choices - int(changed.sum())
                found.append({"name": name, "samples": samples, "choices": choices, "kept": kept, **more})
        return found

    def recorded(self) -> dict[str, Any]:
        """What manifests keep of it, by the keys of their `result`; nothing if nothing was measured."""
        if not self.is_measured:
            return {}
        return {
            "deviation": self.mean,
            "standard_error": short(self.standard_error),
            "worst": self.worst,
            "measured": [
                asdict(replace(tensor, standard_error=short(tensor.standard_error))) for tensor in self.tensors
            ],
            **({"top1": self.top1} if self.top1 else {}),
        }

    @property
    def _largest(self) -> TensorDeviation:
        """The tensor where the mean is largest; the first of several."""
        if not self.tensors:
            raise CalibrationError(NOTHING_TO_MEASURE)
        return max(self.tensors, key=lambda tensor: tensor.mean)

    @property
    def _values(self) -> list[list[float]]:
        """Deviations of the samples for which they are defined, by tensor."""
        return [
            [value for run in self.runs for value in run[number] if not math.isnan(value)]
            for number in range(len(self.names))
        ]


def standard_error(values: Sequence[float]) -> float | None:
    """The standard error of the mean of some values, s/√n; None for a single one, or where one is infinite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def share_of(parts: Array, counts: Array) -> tuple[float, float]:
    """Σ parts / Σ counts over samples, and its standard error as these differ; 0 of a single sample."""
    total, samples = float(counts.sum()), len(counts)
    share = float(parts.sum()) / total
    with np.errstate(invalid="ignore"):  # an infinite mean has no standard error
        variance = float(np.sum((parts - share * counts) ** 2)) * samples / max(samples - 1, 1)
    return share, math.sqrt(variance) / total


def effective(share: float, error: float, samples: int, choices: int) -> int:
    """How many independent choices would tell a share as well: those of one sample, as in a sequence, are not.

    Args:
        share: of the choices.
        error: its standard error, see `share_of`; 0 tells nothing of how they depend on each other.
        samples: how many there are; so many choices are independent at least.
        choices: how many there are in all samples.
    """
    if samples == 1 or error == 0:
        return 1 if samples == 1 else choices
    return round(min(max(share * (1 - share) / error**2, samples), choices))


def short(error: float | None) -> float | None:
    """A standard error for the manifest: three digits tell all that there is to know of one."""
    return None if error is None else float(f"{error:.3g}")


def compared(
    names: Sequence[str],
    references: Sequence[list[Array]],
    runs: Iterable[list[Array]],
    rows: Sequence[int],
    axes: Mapping[str, int] | None = None,
) -> Deviation:
    """The deviation at each tensor: outputs of one run after the other beside those of the original model.

    Args:
        names: of the tensors.
        references: outputs of the original model, by run and tensor.
        runs: those of the other model.
        rows: samples in each run.
        axes: along which the classes lie, by names of those tensors whose top-1 is compared too.
    """
    axes, deviations, changes = axes or {}, [], []
    for reference, outputs, count in zip(references, runs, rows, strict=True):
        pairs = dict(zip(names, zip(reference, outputs, strict=True), strict=True))
        deviations.append(tuple(tuple(sample_deviations(y, z, count)) for y, z in pairs.values()))
        changes.append({name: sums_of(top1_changes(*pairs[name], axis), count) for name, axis in axes.items()})
    return Deviation(tuple(names), tuple(deviations), tuple(changes) if axes else ())


def by_sample(values: Array, rows: int) -> Array:
    """The values of a run of so many samples, [samples, …]; where its first axis has another length, of one sample."""
    return values if values.ndim and len(values) == rows else values[None]


def sums_of(values: Array, rows: int) -> NDArray[np.float64]:
    """Sum and number of the values of each sample of a run, f64[2, samples], without those that are NaN."""
    samples = by_sample(values, rows)
    values = samples.reshape(len(samples), -1)
    return np.stack([np.nansum(values, axis=1), np.count_nonzero(~np.isnan(values), axis=1)])


def top1_changes(reference: Array, candidate: Array, axis: int) -> NDArray[np.float64]:
    """For each choice among classes 1 where the largest score is that of another class, else 0.

    NaN where the original has no single largest score, or it is NaN or infinite, or fewer than two classes: that is no
    choice.

    Args:
        reference: scores of the original model.
        candidate: those of the model with other weights.
        axis: along which the classes lie.
    """
    if reference.shape[axis] < 2:
        return np.full(np.delete(reference.shape, axis), np.nan)
    largest = reference.max(axis)
    choices = np.isfinite(largest) & ((reference == np.expand_dims(largest, axis)).sum(axis) == 1)
    changed = np.ones(choices.shape, bool)
    if reference.shape == candidate.shape:
        changed = (reference.argmax(axis) != candidate.argmax(axis)) | np.isnan(candidate.max(axis))
    return np.where(choices, changed, np.nan)


def sample_deviations(reference: Array, candidate: Array, rows: int = 1) -> list[float]:
    """Cosine distances of one run's outputs, eq. (1): one for each row of a batch, else one for the whole.

    NaN where the reference has no direction: nothing can be far from that, or near to it.

    Args:
        reference: output of the original model.
        candidate: output of the model with other weights.
        rows: samples in the run; where the first axis has that length, each row is a sample of its own.
    """
    if rows == 1 or not reference.ndim or len(reference) != rows:
        return [_deviation(reference, candidate)] * rows
    if reference.shape != candidate.shape:
        return [1.0 if has_direction(y) else math.nan for y in reference]
    return [_deviation(y, z) for y, z in zip(reference, candidate, strict=True)]


def _deviation(y: Array, z: Array) -> float:
    return cosine_distance(y, z) if has_direction(y) else math.nan


def has_direction(value: Array) -> bool:
    """Whether a value of the original model has any finite element that is not 0; if not, no deviation is defined."""
    return bool(np.any(np.isfinite(value) & (value != 0)))


def cosine_distance(y: Array, z: Array) -> float:
    """Deviation 1 − ⟨y, z⟩ / (‖y‖ ‖z‖), eq. (1), in float64 and not below 0.

    Where the equation defines none: 0 if both are zero, 1 if one of them is, 1 if their shapes differ; elements
    where y is NaN or infinite must be the same in z and are then left out, any other NaN or infinity in z makes the
    distance infinite.
    """
    if y.shape != z.shape:
        return 1.0
    a, b = y.astype(np.float64).ravel(), z.astype(np.float64).ravel()
    largest = _peak(a), _peak(b)
    if not math.isfinite(largest[0]):
        finite = np.isfinite(a)
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            return math.inf
        a, b = a[finite], b[finite]
        largest = _peak(a), _peak(b)
    if not math.isfinite(largest[1]):
        return math.inf
    if 0 in largest:
        return 0.0 if largest[0] == largest[1] else 1.0
    a /= largest[0]  # so that no square is too large or too small
    b /= largest[1]
    aa, bb, ab = float(np.sum(a * a)), float(np.sum(b * b)), float(np.sum(a * b))
    return max(0.0, 1.0 - ab / math.sqrt(aa * bb))  # one root: that of a square is exact, so y = z gives 0


def _peak(values: Array) -> float:
    """The largest absolute value; 0 of none, NaN if there is any."""
    return float(np.max(np.abs(values), initial=0.0))
