"""Gradients through sums, means, extremes and normalisations over axes: RULES by kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from riq_cli.model import Operation
from riq_cli.statistics.autodiff.arrays import floats, shape_of, unbroadcast, unbroadcast_product
from riq_cli.statistics.autodiff.rule import Array, Floats, Gradients, NoRuleError, Rule

Inputs = Sequence[Array | None]
Axes = tuple[int, ...]


# ---- Reductions -----------------------------------------------------------------------------------------------------

Derivative = Callable[[Floats, Axes], Floats]
"""(input, axes reduced) → derivative of the output by each number of the input."""


def _reduction(derivative: Derivative, axes_of: Callable[[Operation, Inputs, int], Axes]) -> Rule:
    def rule(
        operation: Operation, inputs: Inputs, gradients: Sequence[Floats | None], wanted: Sequence[bool]
    ) -> Gradients:
        found: Gradients = [None] * len(inputs)
        gradient = gradients[0]
        if gradient is not None and wanted[0]:
            x = floats(inputs[0])
            axes = axes_of(operation, inputs, x.ndim)
            kept = [1 if axis in axes else length for axis, length in enumerate(x.shape)]
            with np.errstate(all="ignore"):
                found[0] = gradient.reshape(len(gradient), *kept) * derivative(x, axes)
        return found

    return rule


def _reduced_axes(operation: Operation, inputs: Inputs, rank: int) -> Axes:
    given = inputs[1] if len(inputs) > 1 and inputs[1] is not None else operation.attributes.get("axes", ())
    axes = tuple(int(axis) % rank for axis in given)
    return axes if axes or operation.attributes.get("noop_with_empty_axes", 0) else tuple(range(rank))


def _spatial_axes(operation: Operation, inputs: Inputs, rank: int) -> Axes:
    return tuple(range(2, rank))


def _mean(x: Floats, axes: Axes) -> Floats:
    return np.broadcast_to(np.float32(1 / math.prod(x.shape[axis] for axis in axes)), x.shape)


def _sum(x: Floats, axes: Axes) -> Floats:
    return np.broadcast_to(np.float32(1), x.shape)


def _maximum(x: Floats, axes: Axes) -> Floats:
    return _shares(x == x.max(axis=axes, keepdims=True), axes)


def _minimum(x: Floats, axes: Axes) -> Floats:
    return _shares(x == x.min(axis=axes, keepdims=True), axes)


def _shares(reached: Array, axes: Axes) -> Floats:
    """Numbers that are equally extreme share the gradient."""
    shares = reached.astype(np.float32)
    count: Floats = shares.sum(axis=axes, keepdims=True)
    return shares / count


def _absolutes(x: Floats, axes: Axes) -> Floats:
    signs: Floats = np.sign(x)
    return signs


def _length(x: Floats, axes: Axes) -> Floats:
    """At zero, where it has no derivative, it counts as constant."""
    length: Floats = np.sqrt(np.square(x).sum(axis=axes, keepdims=True))
    quotient: Floats = np.divide(x, np.where(length > 0, length, np.float32(1)))
    return quotient


def _squares(x: Floats, axes: Axes) -> Floats:
    return x * 2


def _log_sum(x: Floats, axes: Axes) -> Floats:
    inverse: Floats = np.reciprocal(x.sum(axis=axes, keepdims=True))
    return np.broadcast_to(inverse, x.shape)


def _log_sum_of_exponentials(x: Floats, axes: Axes) -> Floats:
    exponentials: Floats = np.exp(x - x.max(axis=axes, keepdims=True))
    exponentials /= exponentials.sum(axis=axes, keepdims=True)
    return exponentials


def _product(x: Floats, axes: Axes) -> Floats:
    """The product of the others: that of all but the zeros, unless there is a further zero."""
    zero = x == 0
    nonzero = np.where(zero, np.float32(1), x)
    further = zero.sum(axis=axes, keepdims=True) - zero
    return np.where(further > 0, np.float32(0), nonzero.prod(axis=axes, keepdims=True) / nonzero)


_REDUCTIONS: dict[str, Derivative] = {
    "ReduceMean": _mean,
    "ReduceSum": _sum,
    "ReduceMax": _maximum,
    "ReduceMin": _minimum,
    "ReduceL1": _absolutes,
    "ReduceL2": _length,
    "ReduceSumSquare": _squares,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_of_exponentials,
    "ReduceProd": _product,
}


def _cumulative_sum(
    operation: Operation, inputs: Inputs, gradients: Sequence[Floats | None], wanted: Sequence[bool]
) -> Gradients:
    gradient = gradients[0]
    if gradient is None or not wanted[0]:
        return [None, None]
    if inputs[1] is None:
        raise NoRuleError("CumSum without an axis")
    axis = int(inputs[1].item()) % (gradient.ndim - 1) + 1
    backwards = not operation.attributes.get("reverse", 0)
    turned = np.flip(gradient, axis) if backwards else gradient
    sums: Floats = np.cumsum(turned, axis=axis, dtype=np.float32)
    if operation.attributes.get("exclusive", 0):
        sums -= turned
    return [np.flip(sums, axis) if backwards else sums, None]


# ---- Softmax --------------------------------------------------------------------------------------------------------


def _of_softmax(backward: Callable[[Floats, Floats], Floats]) -> Rule:
    """`backward`: (softmax over the last but one axis, gradient of the output) → gradient of the input."""

    def rule(
        operation: Operation, inputs: Inputs, gradients: Sequence[Floats | None], wanted: Sequence[bool]
    ) -> Gradients:
        gradient = gradients[0]
        if gradient is None or not wanted[0]:
            return [None]
        x = floats(inputs[0])
        flat = operation.version < 13
        axis = int(operation.attributes.get("axis", 1 if flat else -1))
        axis += x.ndim if axis < 0 else 0
        end = x.ndim if flat else axis + 1
        shape = math.prod(x.shape[:axis]), math.prod(x.shape[axis:end]), math.prod(x.shape[end:])
        with np.errstate(all="ignore"):
            softmax = _log_sum_of_exponentials(x.reshape(shape), (1,))
        found = np.empty((len(gradient), *shape), np.float32)
        for one, result in zip(gradient.reshape(found.shape), found, strict=True):
            result[...] = backward(softmax, one)
        return [found.reshape(gradient.shape)]

    return rule


def _softmax(softmax: Floats, gradient: Floats) -> Floats:
    product = softmax * gradient
    product -= softmax * product.sum(axis=1, keepdims=True)
    return product


def _log_softmax(softmax: Floats, gradient: Floats) -> Floats:
    total: Floats = gradient.sum(axis=1, keepdims=True)
    return gradient - softmax * total


# ---- Normalisations -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Normalisation:
    """(x − mean) / √(variance + epsilon), times a scale, plus a bias."""

    axes: Axes  # over which the mean and the variance are
    epsilon: float
    centred: bool = True  # without, the mean counts as zero

    def backward(
        self, x: Floats, scale: Floats, gradient: Floats, wanted: Sequence[bool], bias: Sequence[int]
    ) -> Gradients:
        """Gradients of x, of the scale and of the bias, from that of the result.

        Args:
            wanted: whether these three are.
            bias: its shape; like the scale's it may be broadcast to x's.
        """
        found: Gradients = [None, None, unbroadcast(gradient, bias) if wanted[2] else None]
        if not any(wanted[:2]):
            return found
        normal, inverse = self._normalise(x)
        if wanted[1]:
            found[1] = unbroadcast_product(gradient, normal, scale.shape)
        if wanted[0]:
            found[0] = results = np.empty(gradient.shape, np.float32)
            factor = scale * inverse
            for one, result in zip(gradient, results, strict=True):
                np.multiply(one, factor, out=result)
                self._project(result, normal)
        return found

    def _normalise(self, x: Floats) -> tuple[Floats, Floats]:
        """(x − mean) / √(variance + epsilon), and what it was divided by inverted."""
        centred = x - x.mean(axis=self.axes, keepdims=True) if self.centred else x
        variance = np.square(centred).mean(axis=self.axes, keepdims=True)
        inverse: Floats = np.reciprocal(np.sqrt(variance + self.epsilon))
        return centred * inverse, inverse

    def _project(self, gradient: Floats, normal: Floats) -> None:
        """Take out, in place, what moves all numbers alike and what stretches them."""
        along = (gradient * normal).mean(axis=self.axes, keepdims=True)
        if self.centred:
            gradient -= gradient.mean(axis=self.axes, keepdims=True)
        gradient -= normal * along


def _epsilon(operation: Operation, default: float = 1e-5) -> float:
    return float(operation.attributes.get("epsilon", default))


def _only_first(operation: Operation, gradients: Sequence[Floats | None]) -> Floats | None:
    if any(gradient is not None for gradient in gradients[1:]):
        raise NoRuleError(f"{operation.kind} whose mean or deviation is used")
    return gradients[0]


def _of_layers(centred: bool) -> Rule:
    """LayerNormalization, or what leaves out the mean; X, scale and possibly bias."""

    def rule(
        operation: Operation, inputs: Inputs, gradients: Sequence[Floats | None], wanted: Sequence[bool]
    ) -> Gradients:
        gradient = _only_first(operation, gradients)
        if gradient is None or not any(wanted):
            return [None] * len(inputs)
        x, scale = floats(inputs[0]), floats(inputs[1])
        first = int(operation.attributes.get("axis", -1)) % x.ndim
        normalisation = _Normalisation(tuple(range(first, x.ndim)), _epsilon(operation), centred)
        wants = (*wanted, False)[:3]
        return normalisation.backward(x, scale, gradient, wants, shape_of(_optional(inputs, 2)))[: len(inputs)]

    return rule


def _optional(inputs: Inputs, place: int) -> Array | None:
    return inputs[place] if len(inputs) > place else None


def _of_sums(centred: bool) -> Rule:
    """Microsoft's: input, skip, gamma, beta if centred, bias; the sum of input, skip and bias may be an output too."""
    bias_place = 4 if centred else 3

    def rule(
        operation: Operation, inputs: Inputs, gradients: Sequence[Floats | None], wanted: Sequence[bool]
    ) -> Gradients:
        found: Gradients = [None] * len(inputs)
        gradient = _only_first(operation, gradients[:3])
        of_sum = gradients[3] if len(gradients) > 3 else None
        added = [place for place in (0, 1, bias_place) if place < len(inputs) and inputs[place] is not None]
        wants = any(wanted[place] for place in added), wanted[2], centred and len(wanted) > 3 and wanted[3]
        if gradient is not None and any(wants):
            x = floats(inputs[0]) + floats(inputs[1])
            for place in added[2:]:
                x += floats(inputs[place])
            normalisation = _Normalisation((x.ndim - 1,), _epsilon(operation, 1e-12), centred)
            parts = normalisation.backward(x, floats(inputs[2]), gradient, wants, shape_of(_optional(inputs, 3)))
            found[2] = parts[1]
            if wants[2]:
                found[3] = parts[2]
            of_sum = parts[0] if of_sum is None or parts[0] is None else parts[0] + of_sum
        if of_sum is not None:
            for place in added:
                found[place] = unbroadcast(of_sum, shape_of(inputs[place])) if wanted[place] else None
        return found

    return rule


def _of_channels(
    operation: Operation, inputs: Inputs, gradients: Sequence[Floats | None], wanted: Sequence[bool]
) -> Gradients:
    """InstanceNormalization; GroupNormalization, whose scale is one for each group before opset 21, or each channel."""
    gradient = gradients[0]
    if gradient is None or not any(wanted):
        return [None] * 3
    x, scale = floats(inputs[0]), floats(inputs[1])
    samples, channels, *spatial = x.shape
    groups = int(operation.attributes.get("num_groups", channels))
    parted = samples, groups, channels // groups, *spatial
    of_scale = (groups, scale.size // groups, *[1] * len(spatial))
    parts = _Normalisation(tuple(range(2, len(parted))), _epsilon(operation)).backward(
        x.reshape(parted), scale.reshape(of_scale), gradient.reshape(len(gradient), *parted), wanted, of_scale
    )
    return [
        None if part is None else part.reshape(len(part), *value.shape)
        for part, value in zip(parts, (x, scale, scale), strict=True)
    ]


RULES: dict[str, Rule] = {
    **{kind: _reduction(derivative, _reduced_axes) for kind, derivative in _REDUCTIONS.items()},
    "GlobalAveragePool": _reduction(_mean, _spatial_axes),
    "GlobalMaxPool": _reduction(_maximum, _spatial_axes),
    "CumSum": _cumulative_sum,
    "Softmax": _of_softmax(_softmax),
    "LogSoftmax": _of_softmax(_log_softmax),
    "LayerNormalization": _of_layers(centred=True),
    "SimplifiedLayerNormalization": _of_layers(centred=False),
    "RMSNormalization": _of_layers(centred=False),
    "com.microsoft:SkipLayerNormalization": _of_sums(centred=True),
    "com.microsoft:SkipSimplifiedLayerNormalization": _of_sums(centred=False),
    "InstanceNormalization": _of_channels,
    "GroupNormalization": _of_channels,
}
