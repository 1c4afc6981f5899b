"""What a choice among classes has to keep, without labels: its top-1, or its probabilities."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from riq_cli.constraint.constraint import Constraint, Judge, Judgement, check_margin
from riq_cli.constraint.loss import Floats, are_probabilities, log_probabilities
from riq_cli.errors import ConstraintError, SettingsError
from riq_cli.runtime import Array, Candidate, effective, share_of, short, sums_of, top1_changes
from riq_cli.text import counted, percent, wilson

# Scores of the original and of a candidate → a value for each choice; NaN where the original has none.
Compare = Callable[[Array, Array], Floats]


@dataclass(frozen=True)
class _ChoiceConstraint(Constraint):
    """A mean over all choices among classes, plus `margin` of its standard errors, that must not exceed `limit`.

    A sample has one choice, or one for each position of a sequence or image. These are not independent, so that the
    standard error is that of a mean over samples.

    Attributes:
        limit: what the mean must not exceed, >= 0.
        output: name of the tensor of scores, one that is measured; None: the first that is known to be a choice.
        margin: number z of standard errors.
    """

    limit: float
    output: str | None = None
    margin: float = 0.0

    objective: ClassVar[str]
    most: ClassVar[float]  # limits are below

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            SettingsError: one of them is out of range.
        """
        if not 0 <= self.limit < self.most:
            raise SettingsError(f"max_{self.objective} = {self.limit:g} is not in [0, {self.most:g}); try 0.01")
        check_margin(self.margin)

    def recorded(self) -> dict[str, Any]:
        """The settings that manifests keep."""
        return {"objective": self.objective, f"max_{self.objective}": self.limit, "margin": self.margin}

    @abc.abstractmethod
    def comparison(self, scores: Sequence[Array], axis: int) -> Compare:
        """What compares scores, given those of the original, whose classes lie along an axis."""

    @abc.abstractmethod
    def outcome(self, mean: float, error: float, choices: int, samples: int) -> tuple[float, dict[str, Any]]:
        """The value that is held against the limit, and what else there is to tell.

        Args:
            mean: over the choices.
            error: its standard error.
            choices: how many there are.
            samples: that these are of.
        """

    def begin(self, original: Candidate) -> Judge:
        """What compares the scores of candidates with the original's.

        Raises:
            ConstraintError: no output is known to be a choice among classes, or the one that is named is none.
        """
        tensor = _chosen(original, self.output)
        axis = original.axes.get(tensor, -1)
        # Copies: what a session gives out lies in its own memory.
        scores = [np.array(output) for output in original.outputs(tensor)]
        if not all(score.ndim and score.shape[axis] > 1 for score in scores):
            raise ConstraintError(f"{tensor!r} of shape {list(scores[0].shape)} is no choice: it holds no two classes")
        before = dict(zip(original.samples, zip(scores, original.rows, strict=True), strict=True))
        compare = self.comparison(scores, axis)

        def measured(numbers: Sequence[int], outputs: Iterable[Array]) -> tuple[Floats, Floats]:
            """Sum and number of the values of each of these samples; of those that have any."""
            found = []
            for number, output in zip(numbers, outputs, strict=True):
                scores, rows = before[number]
                with np.errstate(all="ignore"):  # NaN and infinity are told by what comes out
                    found.append(sums_of(compare(scores, output), rows))
            sums, counts = np.concatenate(found, axis=1)
            return sums[counts > 0], counts[counts > 0]

        if len(measured(original.samples, scores)[0]) < (2 if self.margin else 1):
            raise ConstraintError(
                "a margin in standard errors needs two samples at least"
                if self.margin
                else f"the original model's scores at {tensor!r} are NaN, infinite or all the same"
            )

        def judge(candidate: Candidate) -> Judgement:
            sums, counts = measured(candidate.samples, candidate.outputs(tensor))
            choices, samples = int(counts.sum()), len(counts)
            if not choices:  # all samples together have some
                return Judgement(0.0, self.limit)
            value, more = self.outcome(*share_of(sums, counts), choices, samples)
            facts = {"tensor": tensor, "choices": choices, "samples": samples, **more}
            facts |= {"margin": self.margin} if self.margin else {}
            return Judgement(value if math.isfinite(value) else math.inf, self.limit, facts)

        return judge


@dataclass(frozen=True)
class FlipsConstraint(_ChoiceConstraint):
    """The top-1 of an output changes on no more than a share `limit` of the choices among classes."""

    objective, most = "flips", 1.0
    remedy = "allow more with a larger --max-flips, or give more samples"

    def comparison(self, scores: Sequence[Array], axis: int) -> Compare:
        """What finds for each choice 1 if the largest score is another class's, else 0."""
        return lambda before, after: top1_changes(before, after, axis)

    def outcome(self, mean: float, error: float, choices: int, samples: int) -> tuple[float, dict[str, Any]]:
        """The share that is the margin of its own standard errors above the one that was measured, which may be 0.

        Also how many choices changed, and the 95 % interval of their share.

        Raises:
            ConstraintError: even if nothing changes, that share is above the limit.
        """
        _, least = wilson(0.0, choices, self.margin)
        if least > self.limit:
            raise ConstraintError(
                f"{counted(samples, 'sample')} cannot show at most {percent(self.limit)} flips with a margin of "
                f"{self.margin:g}: if none changes, it may still be {percent(least)}; give more samples, a smaller "
                "--margin, or --holdout 0"
            )
        independent = effective(mean, error, samples, choices)
        low, high = wilson(mean, independent)
        facts = {"changed": round(mean * choices), "low": short(low), "high": short(high)}
        return wilson(mean, independent, self.margin)[1], facts


@dataclass(frozen=True)
class KLConstraint(_ChoiceConstraint):
    """The mean Kullback–Leibler divergence KL(original ‖ candidate) of an output is at most `limit` nats for a choice.

    Its scores are probabilities if those of the original are not negative and of sum 1; else logits, and the divergence
    is that of their softmax.
    """

    objective, most = "kl", math.inf
    remedy = "allow more with a larger --max-kl, or give more samples"

    def comparison(self, scores: Sequence[Array], axis: int) -> Compare:
        """What finds the divergence of each choice in nats."""
        probable, tiny = are_probabilities(scores, axis), float(np.finfo(scores[0].dtype).tiny)

        def compare(before: Array, after: Array) -> Floats:
            defined = np.isfinite(before.max(axis))
            found = np.full(defined.shape, math.inf)
            if before.shape == after.shape:
                pair = (np.moveaxis(one.astype(np.float64), axis, -1) for one in (before, after))
                p, q = (log_probabilities(one, probable, tiny) for one in pair)
                found = np.where(p > -math.inf, np.exp(p) * (p - q), 0.0).sum(axis=-1)
            return np.where(defined, np.nan_to_num(found, nan=math.inf, posinf=math.inf), math.nan)

        return compare

    def outcome(self, mean: float, error: float, choices: int, samples: int) -> tuple[float, dict[str, Any]]:
        """The mean with the margin of its standard errors added; also both of them, if there are two samples."""
        return mean + self.margin * error, {"kl": mean, "standard_error": short(error) if samples > 1 else None}


def _chosen(original: Candidate, output: str | None) -> str:
    """The tensor that is named, or else the first that is known to be a choice among classes."""
    if output is None and original.axes:
        return next(iter(original.axes))
    if output is not None and output in original.tensors:
        return output
    problem = "no output is known to be a choice among classes" if output is None else f"{output!r} is not measured"
    raise ConstraintError(f"{problem}; name one with --output, such as {', '.join(original.tensors) or 'an inner one'}")
