"""The loss on labelled samples: cross-entropy for class ids, mean squared error for float targets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.constraint.constraint import Constraint, Judge, Judgement, check_margin
from riq_cli.errors import ConstraintError, SettingsError
from riq_cli.runtime import Array, Candidate

Floats = NDArray[np.float64]

_SUM = 5e-3  # how far probabilities may be from a sum of 1: float16 has 11 bits
_SMALLEST_CROSS_ENTROPY = 1e-3  # nats: a smaller loss counts as this where an increase is taken relative to it
_SMALLEST_SQUARED_ERROR = 1e-6  # the same, as a share of the targets' mean square


@dataclass(frozen=True, eq=False)
class LossConstraint(Constraint):
    """A loss that must not rise by more than a share of the original's.

    With d the difference between a row's loss after and before, what must not exceed `max_increase` is
    (mean d + margin · standard error of mean d) / mean loss before. Where the mean loss before is next to nothing, less
    than 0.001 nats or a millionth of the targets' mean square, that bound stands in its place.

    Attributes:
        labels: one for each row of the samples, in their order. Integers are class ids, for the cross-entropy of an
            output [row, …, class] or [row, class, …]; with an output of the labels' own shape, 0 and 1 are the two
            classes of a single score. Floats are targets, for the mean squared error of an output of their shape.
        max_increase: share of the original's mean loss.
        margin: number z of standard errors that the increase must keep below `max_increase`.
    """

    labels: Array
    max_increase: float = 0.0
    margin: float = 0.0

    remedy = "allow more with a larger --max-loss-increase, or give more labelled samples"

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            SettingsError: a number out of range.
            ConstraintError: labels that are neither integers nor finite floats.
        """
        if not 0 <= self.max_increase < math.inf:
            raise SettingsError(f"a loss increase of {self.max_increase:g} is negative or not finite; 0.01 is 1 %")
        check_margin(self.margin)
        labels = np.asarray(self.labels)
        if labels.dtype.kind not in "iubf" or labels.ndim == 0:
            raise ConstraintError(
                f"the labels are {labels.dtype.name} of shape {list(labels.shape)}; give integers (class ids) or "
                "floats (targets), one for each sample along the first axis"
            )
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            raise ConstraintError("the labels hold NaN or infinity")

    def recorded(self) -> dict[str, Any]:
        """The settings that manifests keep."""
        return {"objective": "loss", "max_loss_increase": self.max_increase, "margin": self.margin}

    def begin(self, original: Candidate) -> Judge:
        """What compares losses with the original's, row by row.

        Raises:
            ConstraintError: labels that fit no output of the model, or a loss that is not finite.
        """
        loss = _chosen(np.asarray(self.labels), original)
        before = dict(zip(original.samples, loss.of(original), strict=True))
        if not all(np.isfinite(losses).all() for losses, _ in before.values()):
            raise ConstraintError(f"the original model's loss at {loss.tensor!r} is NaN or infinite")
        if self.margin and sum(losses.size for losses, _ in before.values()) < 2:
            raise ConstraintError("a margin in standard errors needs two samples at least")

        def judge(candidate: Candidate) -> Judgement:
            old, old_right = np.concatenate([before[number] for number in candidate.samples], axis=1)
            new, new_right = np.concatenate(list(loss.of(candidate)), axis=1)
            difference = new - old
            mean = float(difference.mean())
            count = difference.size
            error = float(difference.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
            value = (mean + self.margin * error) / max(float(old.mean()), loss.smallest)
            facts: dict[str, float | str] = {
                "measure": f"{loss.name} at {loss.tensor}",
                "loss_before": float(old.mean()),
                "loss_after": float(new.mean()),
                "standard_error": error,
                "samples": count,
            }
            if self.margin:
                facts["margin"] = self.margin
            if loss.form != "values":
                facts |= {"accuracy_before": float(old_right.mean()), "accuracy_after": float(new_right.mean())}
            return Judgement(value if math.isfinite(value) else math.inf, self.max_increase, facts)

        return judge


@dataclass(frozen=True)
class _Loss:
    """A loss of one tensor of the model.

    `labels` holds those of each sample, by its number; `form` is what the tensor holds, and `axis` where its classes
    lie: None for a score of two classes.
    """

    tensor: str
    labels: Sequence[Array]
    form: str
    axis: int | None = None
    smallest: float = _SMALLEST_CROSS_ENTROPY

    @property
    def name(self) -> str:
        return "mean squared error" if self.form == "values" else f"cross-entropy of {self.form}"

    def of(self, candidate: Candidate) -> Iterator[Floats]:
        """Of each sample: the loss of every row, and the share of its class ids that are right (0 of targets)."""
        for number, output in zip(candidate.samples, candidate.outputs(self.tensor), strict=True):
            labels, values = self.labels[number], output.astype(np.float64)
            rows = len(labels)
            if values.size != labels.size * (1 if self.axis is None else values.shape[self.axis]):
                raise ConstraintError(
                    f"{self.tensor!r} has shape {list(values.shape)} for labels of shape {list(labels.shape)}"
                )
            with np.errstate(all="ignore"):  # NaN and infinity are told by what comes out
                losses, right = self._measured(values, labels, np.finfo(output.dtype).tiny)
            yield np.stack([losses.reshape(rows, -1).mean(axis=1), right.reshape(rows, -1).mean(axis=1)])

    def _measured(self, values: Floats, labels: Array, tiny: float) -> tuple[Floats, Array]:
        """Loss and whether the class is right, element by element."""
        if self.form == "values":
            return np.square(values.reshape(labels.shape) - labels), np.zeros(labels.shape)
        if self.axis is None:  # one score: of class 1, against 0 or 1 − score of class 0
            score = values.reshape(labels.shape)
            values = np.stack([1 - score if self.form == "probabilities" else np.zeros_like(score), score])
            classes = values.reshape(2, -1).T
        else:
            classes = np.moveaxis(values, self.axis, -1).reshape(-1, values.shape[self.axis])
        flat = labels.reshape(-1).astype(np.int64)
        logarithms = log_probabilities(classes, self.form == "probabilities", tiny)
        return -logarithms[np.arange(len(flat)), flat], classes.argmax(axis=1) == flat


def _chosen(labels: Array, original: Candidate) -> _Loss:
    """The loss of the first tensor that the labels fit.

    Raises:
        ConstraintError: there is none; says why the first does not fit.
    """
    reason: ConstraintError | None = None
    for tensor in original.tensors:
        outputs = list(original.outputs(tensor))
        try:
            return _fitted(tensor, _parts(labels, outputs, original.rows), outputs)
        except ConstraintError as error:
            reason = reason or error
    raise reason or ConstraintError("the model has no float output to take a loss of; name a tensor with --output")


def _parts(labels: Array, outputs: Sequence[Array], rows: Sequence[int]) -> list[Array]:
    """The labels of each sample: as many as it has rows, or as its output has."""
    leading = [len(output) if output.ndim else 1 for output in outputs]
    for counts in (list(rows), leading):
        if sum(counts) == len(labels):
            return np.split(labels, np.cumsum(counts)[:-1])
    raise ConstraintError(
        f"there are {len(labels):,} labels for {sum(rows):,} samples; give one for each, in their order"
    )


def _fitted(tensor: str, labels: Sequence[Array], outputs: Sequence[Array]) -> _Loss:
    """The loss of a tensor with these values for these labels."""
    target, output = labels[0], outputs[0]
    elements = all(part.size == value.size for part, value in zip(labels, outputs, strict=True))
    if target.dtype.kind == "f":
        if not elements:
            raise ConstraintError(
                f"float targets of shape {list(target.shape)} do not fit {tensor!r} of shape {list(output.shape)}; "
                "class ids have to be integers: convert them with .astype('int64')"
            )
        square = float(np.mean([np.mean(np.square(part, dtype=np.float64)) for part in labels]))
        return _Loss(tensor, labels, "values", None, max(_SMALLEST_SQUARED_ERROR * square, 1e-300))
    low, high = min(int(part.min()) for part in labels), max(int(part.max()) for part in labels)
    if elements:
        if low < 0 or high > 1:
            raise ConstraintError(
                f"class ids {low} … {high} do not fit {tensor!r} of shape {list(output.shape)}: "
                "a single score tells 0 from 1"
            )
        inside = all(bool(np.all((value >= 0) & (value <= 1))) for value in outputs)
        return _Loss(tensor, labels, "probabilities" if inside else "scores")
    axis = _class_axis(target, output)
    if axis is None:
        raise ConstraintError(
            f"class ids of shape {list(target.shape)} do not fit {tensor!r} of shape {list(output.shape)}: an axis for "
            "the classes is missing, or others differ; name another tensor with --output"
        )
    classes = output.shape[axis]
    if low < 0 or high >= classes:
        raise ConstraintError(f"class ids go from {low} to {high}; {tensor!r} has {classes} classes, from 0 on")
    return _Loss(tensor, labels, "probabilities" if are_probabilities(outputs, axis) else "logits", axis)


def are_probabilities(outputs: Sequence[Array], axis: int) -> bool:
    """Whether outputs are probabilities along an axis, not negative and of sum 1; if not, they are taken as logits."""
    return all(
        bool(np.all(value >= 0)) and bool(np.all(np.abs(value.astype(np.float64).sum(axis=axis) - 1) < _SUM))
        for value in outputs
    )


def log_probabilities(classes: Floats, are_probabilities: bool, tiny: float) -> Floats:
    """Logarithms of probabilities, or of the softmax of logits, along the last axis.

    Args:
        classes: probabilities or logits, f64[…, class]; log-probabilities are logits too.
        are_probabilities: which of both.
        tiny: what a smaller probability counts as.
    """
    if are_probabilities:
        return np.asarray(np.log(np.maximum(classes, tiny)))
    shifted = classes - classes.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _class_axis(labels: Array, output: Array) -> int | None:
    """The axis of an output that labels lack, axes of length 1 aside: the last, or the one after the batch."""
    wanted = [size for size in labels.shape if size != 1]
    for axis in (output.ndim - 1, 1):
        if 0 <= axis < output.ndim and output.shape[axis] > 1:
            others = [size for size in (*output.shape[:axis], *output.shape[axis + 1 :]) if size != 1]
            if others == wanted:
                return axis
    return None
