"""Rules of operations that work element by element.

Where a derivative is infinite or undefined, as that of a square root at zero, it counts as zero: the gradient of one
such element would otherwise spoil those of all weights before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from riq_cli.statistics.autodiff.rule import Array, Call, Floats, Gradients, NoRuleError, Rule, sigmoid, unbroadcast

_ONE = np.float32(1)
_FLOAT_TYPES = (1, 10, 11, 16)  # of onnx.TensorProto: float32, float16, float64, bfloat16
_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875
_ERF_SCALE = 0.3275911  # formula 7.1.26 of Abramowitz and Stegun, at most 1.5e-7 off
_ERF_COEFFICIENTS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def _finite(derivative: Array) -> Floats:
    finite = np.isfinite(derivative)
    return derivative if finite.all() else np.where(finite, derivative, np.float32(0))


# ---- One input ------------------------------------------------------------------------------------------------------

Derivative = Callable[[Floats, Call], Array]


def _of_one(derivative: Derivative) -> Rule:
    return lambda call: [call.gradient * _finite(derivative(call.floats(0), call))]


def _of_biased(derivative: Derivative) -> Rule:
    """For operations that first add a bias, their second input, if it is there."""

    def rule(call: Call) -> Gradients:
        x = call.floats(0) if call.optional(1) is None else call.floats(0) + call.floats(1)
        return _of_sum(call, call.gradient * _finite(derivative(x, call)))

    return rule


def _elu(x: Floats, call: Call, alpha: float = 1) -> Array:
    return np.where(x > 0, _ONE, call.attributes.get("alpha", alpha) * np.exp(np.minimum(x, 0)))


def _hard_sigmoid(x: Floats, call: Call) -> Array:
    alpha, beta = call.attributes.get("alpha", 0.2), call.attributes.get("beta", 0.5)
    return np.where(np.abs(x * alpha + (beta - 0.5)) < 0.5, np.float32(alpha), np.float32(0))


def _swish(x: Floats, alpha: float) -> Array:
    """The derivative of x · sigmoid(alpha · x)."""
    scaled = x * alpha
    value = sigmoid(scaled)
    return value * (1 + scaled * (1 - value))


def _mish(x: Floats, call: Call) -> Array:
    tanh: Floats = np.tanh(np.logaddexp(x, np.float32(0)))
    return tanh + x * (1 - tanh * tanh) * sigmoid(x)


def _gelu(x: Floats, call: Call) -> Array:
    if call.attributes.get("approximate", "none") == "tanh":
        return _gelu_by_tanh(x, call)
    normal: Floats = np.exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
    return _erf(x * math.sqrt(0.5)) * 0.5 + 0.5 + x * normal


def _gelu_by_tanh(x: Floats, call: Call) -> Array:
    square = x * x
    scale = math.sqrt(2 / math.pi)
    tanh: Floats = np.tanh(x * (square * 0.044715 + 1) * scale)
    slope = (square * (3 * 0.044715) + 1) * scale
    doubled: Floats = 1 + tanh + x * (1 - tanh * tanh) * slope
    return doubled * 0.5


def _erf(x: Floats) -> Floats:
    inverse: Floats = np.reciprocal(np.abs(x) * _ERF_SCALE + 1)
    polynomial = inverse * _ERF_COEFFICIENTS[0]
    for coefficient in _ERF_COEFFICIENTS[1:]:
        polynomial = (polynomial + coefficient) * inverse
    size: Floats = 1 - polynomial * np.exp(-x * x)
    return np.copysign(size, x)


_DERIVATIVES: dict[str, Derivative] = {
    "Sqrt": lambda x, _: 0.5 / np.sqrt(x),
    "Exp": lambda x, _: np.exp(x),
    "Log": lambda x, _: 1 / x,
    "Abs": lambda x, _: np.sign(x),
    "Reciprocal": lambda x, _: -1 / (x * x),
    "Sin": lambda x, _: np.cos(x),
    "Cos": lambda x, _: -np.sin(x),
    "Tanh": lambda x, _: 1 - np.square(np.tanh(x)),
    "Erf": lambda x, _: np.exp(-x * x) * (2 / math.sqrt(math.pi)),
    "Sigmoid": lambda x, _: 0.25 * (1 - np.square(np.tanh(x * 0.5))),
    "HardSigmoid": _hard_sigmoid,
    "Softplus": lambda x, _: sigmoid(x),
    "Softsign": lambda x, _: 1 / np.square(np.abs(x) + 1),
    "Relu": lambda x, _: (x > 0).astype(np.float32),
    "LeakyRelu": lambda x, call: np.where(x > 0, _ONE, np.float32(call.attributes.get("alpha", 0.01))),
    "ThresholdedRelu": lambda x, call: (x > call.attributes.get("alpha", 1)).astype(np.float32),
    "Elu": _elu,
    "Selu": lambda x, call: _elu(x, call, _SELU_ALPHA) * call.attributes.get("gamma", _SELU_GAMMA),
    "Celu": lambda x, call: np.exp(np.minimum(x, 0) / call.attributes.get("alpha", 1)),
    "HardSwish": lambda x, _: np.where(np.abs(x) < 3, x / 3 + 0.5, x > 0).astype(np.float32, copy=False),
    "Swish": lambda x, call: _swish(x, call.attributes.get("alpha", 1)),
    "com.microsoft:QuickGelu": lambda x, call: _swish(x, call.attributes.get("alpha", 1.702)),
    "Mish": _mish,
    "Gelu": _gelu,
    "com.microsoft:Gelu": _gelu,
}


# ---- Several inputs that are broadcast ------------------------------------------------------------------------------


def _operands(call: Call) -> list[Floats]:
    if "axis" in call.attributes:
        raise NoRuleError(f"{call.operation.kind} with an axis, as before opset 7")
    return [call.floats(place) for place in range(len(call.inputs))]


def _of_several(*derivatives: Callable[..., Array]) -> Rule:
    """`derivatives`: for each input the derivative of the output by it, a function of all inputs."""

    def rule(call: Call) -> Gradients:
        values = _operands(call)
        return [
            unbroadcast(call.gradient, x.shape, _finite(derivative(*values))) if want else None
            for derivative, x, want in zip(derivatives, values, call.wanted, strict=True)
        ]

    return rule


def _power_by_base(base: Floats, exponent: Floats) -> Array:
    if exponent.size == 1 and exponent.item() == 2:
        return base * 2
    return exponent * np.power(base, exponent - 1)


def _of_sum(call: Call, gradient: Floats) -> Gradients:
    """Gradients of inputs that are added, from that of their sum."""
    return [unbroadcast(gradient, call.value(i).shape) if want else None for i, want in enumerate(call.wanted)]


def _add(call: Call) -> Gradients:
    _operands(call)
    return _of_sum(call, call.gradient)


def _subtract(call: Call) -> Gradients:
    left, right = _add(call)
    return [left, None if right is None else -right]


def _extreme(larger: Callable[[Any, Any], Any]) -> Rule:
    """Inputs that are equally extreme get equal parts of the gradient."""

    def rule(call: Call) -> Gradients:
        values = _operands(call)
        extreme = reduce(larger, values)
        reached = [(x == extreme).astype(np.float32) for x in values]
        part: Floats = np.reciprocal(np.maximum(sum(reached[1:], reached[0]), 1))
        return [
            unbroadcast(call.gradient, x.shape, hit * part) if want else None
            for x, hit, want in zip(values, reached, call.wanted, strict=True)
        ]

    return rule


def _clip(call: Call) -> Gradients:
    x = call.floats(0)
    low = call.attributes.get("min", -np.inf) if call.optional(1) is None else call.floats(1)
    high = call.attributes.get("max", np.inf) if call.optional(2) is None else call.floats(2)
    passes = (x >= low) & (x <= high), x < low, x > high
    return [
        unbroadcast(call.gradient, call.value(place).shape, passed.astype(np.float32)) if call.wants(place) else None
        for place, passed in enumerate(passes)
    ]


# ---- Others ---------------------------------------------------------------------------------------------------------


def _dropout(call: Call) -> Gradients:
    training = call.optional(2)
    if training is not None and training.item():
        raise NoRuleError("Dropout in training mode")
    return [call.gradient]


def _cast(call: Call) -> Gradients:
    """No gradient passes where one side is of integers or truth values."""
    to_floats = call.attributes["to"] in _FLOAT_TYPES if "to" in call.attributes else _is_float(call.value(1))
    return [call.gradient if to_floats and _is_float(call.value(0)) else None]


def _is_float(value: Array) -> bool:
    return value.dtype.kind not in "biuOSUT"


def _triangle(call: Call) -> Gradients:
    diagonal = call.optional(1)
    keep = np.triu if call.attributes.get("upper", 1) else np.tril
    return [keep(call.gradient, 0 if diagonal is None else int(diagonal.item()))]


def _quantize(call: Call) -> Gradients:
    """Straight through: rounding counts as no change, and nothing passes where the value is clipped."""
    x, zeros, steps = call.floats(0), call.optional(2), _grid(call, 1)
    kind = np.dtype(np.uint8) if zeros is None else zeros.dtype
    if kind.kind not in "iu":
        raise NoRuleError("a grid whose range numpy does not know")
    symbols, limits = np.rint(x / steps) + (0 if zeros is None else _grid(call, 2)), np.iinfo(kind)
    inside = (symbols >= limits.min) & (symbols <= limits.max)
    return [call.gradient * (inside / steps).astype(np.float32)]


def _dequantize(call: Call) -> Gradients:
    return [call.gradient * _grid(call, 1)]


def _grid(call: Call, place: int) -> Floats:
    """The steps or zero points of a grid, in a shape that fits the first input."""
    if call.attributes.get("block_size", 0):
        raise NoRuleError("a grid in blocks")
    values, rank = call.floats(place), call.value(0).ndim
    if values.size == 1:
        return values.reshape(())
    axis = call.axis(rank, 1)
    return values.reshape([values.size if i == axis else 1 for i in range(rank)])


RULES: dict[str, Rule] = {
    **{kind: _of_one(derivative) for kind, derivative in _DERIVATIVES.items()},
    "com.microsoft:BiasGelu": _of_biased(_gelu),
    "com.microsoft:FastGelu": _of_biased(_gelu_by_tanh),
    "Add": _add,
    "Sum": _add,
    "Sub": _subtract,
    "Mean": lambda call: _of_sum(call, call.gradient * (1 / len(call.inputs))),
    "Mul": _of_several(lambda x, y: y, lambda x, y: x),
    "Div": _of_several(lambda x, y: 1 / y, lambda x, y: -x / (y * y)),
    "Pow": _of_several(_power_by_base, lambda x, y: np.power(x, y) * np.log(x)),
    "PRelu": _of_several(lambda x, slope: np.where(x > 0, _ONE, slope), lambda x, slope: np.minimum(x, 0)),
    "Where": _of_several(lambda chosen, x, y: 0 * chosen, lambda chosen, x, y: chosen, lambda chosen, x, y: 1 - chosen),
    "Max": _extreme(np.maximum),
    "Min": _extreme(np.minimum),
    "Clip": _clip,
    "Neg": lambda call: [-call.gradient],
    "Identity": lambda call: [call.gradient],
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast,
    "Trilu": _triangle,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "com.microsoft:QuantizeLinear": _quantize,  # onnxruntime's own, for opsets without these or without their axes
    "com.microsoft:DequantizeLinear": _dequantize,
}
