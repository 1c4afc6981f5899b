"""Rules of sums, means, extremes and normalizations over axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from riq_cli.statistics.autodiff.rule import Array, Call, Floats, Gradients, NoRuleError, Rule, unbroadcast

Axes = tuple[int, ...]


# ---- Reductions -----------------------------------------------------------------------------------------------------

Derivative = Callable[[Floats, Axes], Array]
"""(input, reduced axes) → derivative of the output by each element of the input, which may have to be broadcast."""


def _reduction(derivative: Derivative, spatial: bool = False) -> Rule:
    """A rule for reductions over the axes that the call names; `spatial`: over all but the first two."""

    def rule(call: Call) -> Gradients:
        x, probes = call.floats(0), len(call.gradient)
        axes = tuple(range(2, x.ndim)) if spatial else _axes(call, x.ndim)
        kept = [1 if axis in axes else length for axis, length in enumerate(x.shape)]
        gradient = call.gradient.reshape(probes, *kept) * derivative(x, axes)
        return [np.broadcast_to(gradient, (probes, *x.shape))]

    return rule


def _axes(call: Call, rank: int) -> Axes:
    axes = tuple(axis % rank for axis in call.integers(1, "axes") or ())
    return axes if axes or call.attributes.get("noop_with_empty_axes", 0) else tuple(range(rank))


def _mean(x: Floats, axes: Axes) -> Array:
    return np.asarray(1 / math.prod(x.shape[axis] for axis in axes), np.float32)


def _maximum(x: Floats, axes: Axes) -> Array:
    """Elements that are equally extreme get equal parts of the gradient."""
    reached = x == x.max(axis=axes, keepdims=True)
    return np.asarray(reached / reached.sum(axis=axes, keepdims=True), np.float32)


def _length(x: Floats, axes: Axes) -> Array:
    """At zero, where it has no derivative, it counts as constant."""
    length = np.sqrt(np.square(x).sum(axis=axes, keepdims=True))
    return np.asarray(x / np.where(length > 0, length, np.float32(1)))


def _softmax(x: Floats, axes: Axes) -> Floats:
    exponentials: Floats = np.exp(x - x.max(axis=axes, keepdims=True))
    exponentials /= exponentials.sum(axis=axes, keepdims=True)
    return exponentials


def _product(x: Floats, axes: Axes) -> Array:
    """The product of the others: that of all but the zeros, unless there is a further zero."""
    zero = x == 0
    nonzero = np.where(zero, np.float32(1), x)
    further = zero.sum(axis=axes, keepdims=True) - zero
    return np.where(further > 0, np.float32(0), nonzero.prod(axis=axes, keepdims=True) / nonzero)


def _cumulative_sum(call: Call) -> Gradients:
    gradient = call.gradient
    axis = int(call.value(1).item()) % (gradient.ndim - 1) + 1
    backwards = not call.attributes.get("reverse", 0)
    flipped = np.flip(gradient, axis) if backwards else gradient
    sums: Floats = np.cumsum(flipped, axis=axis, dtype=np.float32)
    if call.attributes.get("exclusive", 0):
        sums -= flipped
    return [np.flip(sums, axis) if backwards else sums]


def _of_softmax(call: Call, log: bool) -> Gradients:
    x, gradient = call.floats(0), call.gradient
    flat = call.operation.version < 13  # over all axes from this one on
    axis = call.axis(x.ndim, 1 if flat else -1)
    end = x.ndim if flat else axis + 1
    shape = math.prod(x.shape[:axis]), math.prod(x.shape[axis:end]), math.prod(x.shape[end:])
    softmax = _softmax(x.reshape(shape), (1,))
    found = np.empty((len(gradient), *shape), np.float32)
    for one, result in zip(gradient.reshape(found.shape), found, strict=True):  # each fits a processor's cache
        if log:
            np.subtract(one, softmax * one.sum(axis=1, keepdims=True), out=result)
        else:
            np.multiply(one, softmax, out=result)
            result -= softmax * result.sum(axis=1, keepdims=True)
    return [found.reshape(gradient.shape)]


# ---- Normalizations -------------------------------------------------------------------------------------------------


def _normalized(
    gradient: Floats, x: Floats, scale: Floats, axes: Axes, epsilon: float, centered: bool, wanted: Sequence[bool]
) -> Gradients:
    """Gradients of x and of the scale, from that of (x − mean) / √(variance + epsilon) · scale.

    Mean and variance are over `axes` of x. Without `centered`, the mean counts as zero.
    """
    found: Gradients = [None, None]
    if any(wanted[:2]):
        normal = x - x.mean(axis=axes, keepdims=True) if centered else x
        inverse: Floats = np.reciprocal(np.sqrt(np.square(normal).mean(axis=axes, keepdims=True) + epsilon))
        normal = normal * inverse
    if wanted[1]:
        found[1] = unbroadcast(gradient, scale.shape, normal)
    if wanted[0]:
        found[0] = result = gradient * (scale * inverse)
        for one in result:  # each fits a processor's cache
            along = (one * normal).mean(axis=axes, keepdims=True)
            if centered:
                one -= one.mean(axis=axes, keepdims=True)
            one -= normal * along
    return found


def _layer_normalization(call: Call, centered: bool, epsilon: float = 1e-5) -> Gradients:
    """Of X, scale and possibly bias; without `centered` it leaves out the mean."""
    if any(gradient is not None for gradient in call.gradients[1:]):
        raise NoRuleError(f"{call.operation.kind} whose mean or deviation is used")
    x = call.floats(0)
    axes = tuple(range(call.axis(x.ndim, -1), x.ndim))
    epsilon = call.attributes.get("epsilon", epsilon)
    found = _normalized(call.gradient, x, call.floats(1), axes, epsilon, centered, call.wanted)
    return [*found, unbroadcast(call.gradient, call.value(2).shape) if call.wants(2) else None]


def _skip_normalization(call: Call, centered: bool) -> Gradients:
    """Microsoft's: input, skip, gamma, beta if centered, bias; the sum of input, skip and bias may be an output too."""
    added = [place for place in (0, 1, 4 if centered else 3) if call.optional(place) is not None]
    found: Gradients = [None] * len(call.inputs)
    of_sum = call.gradients[3] if len(call.gradients) > 3 else None
    if any(gradient is not None for gradient in call.gradients[:3]):
        x = sum((call.floats(place) for place in added[1:]), call.floats(0))
        wanted = [any(map(call.wants, added)), call.wants(2), centered and call.wants(3)]
        inner = Call(call.operation, [x, *call.inputs[2:4]], call.gradients[:3], wanted)
        of_x, found[2], of_beta = _layer_normalization(inner, centered, 1e-12)
        if wanted[2]:
            found[3] = of_beta
        of_sum = of_x if of_sum is None or of_x is None else of_x + of_sum
    for place in added:
        if call.wants(place) and of_sum is not None:
            found[place] = unbroadcast(of_sum, call.value(place).shape)
    return found


def _channel_normalization(call: Call) -> Gradients:
    """InstanceNormalization; GroupNormalization, whose scale is one for each group before opset 21, or each channel."""
    x, scale, probes = call.floats(0), call.floats(1), len(call.gradient)
    samples, channels, *spatial = x.shape
    groups = int(call.attributes.get("num_groups", channels))
    x = x.reshape(samples, groups, channels // groups, *spatial)
    scale = scale.reshape(groups, scale.size // groups, *[1] * len(spatial))
    gradient = call.gradient.reshape(probes, *x.shape)
    axes, epsilon = tuple(range(2, x.ndim)), call.attributes.get("epsilon", 1e-5)
    found = _normalized(gradient, x, scale, axes, epsilon, True, call.wanted)
    found.append(unbroadcast(gradient, scale.shape) if call.wants(2) else None)
    return [None if part is None else part.reshape(probes, *call.value(i).shape) for i, part in enumerate(found)]


def _batch_normalization(call: Call) -> Gradients:
    attributes, version, x = call.attributes, call.operation.version, call.floats(0)
    if attributes.get("training_mode") or (version < 14 and any(call.operation.outputs[1:])):
        raise NoRuleError("BatchNormalization in training")
    if x.ndim < 2 or attributes.get("spatial", 1) == 0 or (version < 7 and not attributes.get("is_test")):
        raise NoRuleError("BatchNormalization of other statistics than the channels'")
    channels = (-1, *[1] * (x.ndim - 2))
    scale, mean, variance = (call.floats(place).reshape(channels) for place in (1, 3, 4))
    deviation: Floats = np.sqrt(variance + np.float32(attributes.get("epsilon", 1e-5)))
    slope = scale / deviation
    found: Gradients = [call.gradient * slope if call.wanted[0] else None]
    if any(call.wanted[1:]):
        normal = (x - mean) / deviation
        factors = normal, np.float32(1), -slope, -0.5 * normal * slope / deviation  # of scale, bias, mean, variance
        of_channels = [unbroadcast(call.gradient, slope.shape, np.asarray(factor)) for factor in factors]
        found += [part.reshape(len(part), -1) for part in of_channels]
    return found


RULES: dict[str, Rule] = {
    "ReduceMean": _reduction(_mean),
    "ReduceSum": _reduction(lambda x, axes: np.ones((), np.float32)),
    "ReduceMax": _reduction(_maximum),
    "ReduceMin": _reduction(lambda x, axes: _maximum(-x, axes)),
    "ReduceL1": _reduction(lambda x, axes: np.sign(x)),
    "ReduceL2": _reduction(_length),
    "ReduceSumSquare": _reduction(lambda x, axes: x * 2),
    "ReduceLogSum": _reduction(lambda x, axes: 1 / x.sum(axis=axes, keepdims=True)),
    "ReduceLogSumExp": _reduction(_softmax),
    "ReduceProd": _reduction(_product),
    "GlobalAveragePool": _reduction(_mean, spatial=True),
    "GlobalMaxPool": _reduction(_maximum, spatial=True),
    "CumSum": _cumulative_sum,
    "Softmax": partial(_of_softmax, log=False),
    "LogSoftmax": partial(_of_softmax, log=True),
    "LayerNormalization": partial(_layer_normalization, centered=True),
    "SimplifiedLayerNormalization": partial(_layer_normalization, centered=False),
    "RMSNormalization": partial(_layer_normalization, centered=False),
    "com.microsoft:SkipLayerNormalization": partial(_skip_normalization, centered=True),
    "com.microsoft:SkipSimplifiedLayerNormalization": partial(_skip_normalization, centered=False),
    "InstanceNormalization": _channel_normalization,
    "GroupNormalization": _channel_normalization,
    "BatchNormalization": _batch_normalization,
}
