"""Gradients through operations that work number by number: RULES by kind.

Where a derivative is infinite or undefined, as that of a square root at zero, it counts as zero: the gradients of one
such place would otherwise spoil those of all weights before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np

from riq_cli.model import Operation
from riq_cli.statistics.autodiff.arrays import floats, shape_of, sigmoid, unbroadcast, unbroadcast_product
from riq_cli.statistics.autodiff.rule import Array, Floats, Gradients, NoRuleError, Rule

_ZERO = np.float32(0)
_ONE = np.float32(1)
_FLOAT_TYPES = (1, 10, 11, 16)  # of onnx.TensorProto: float32, float16, float64, bfloat16
_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875
_ERF_SCALE = 0.3275911  # formula 7.1.26 of Abramowitz and Stegun, at most 1.5e-7 off
_ERF_COEFFICIENTS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def _finite(derivative: Array) -> Floats:
    finite = np.isfinite(derivative)
    return derivative if finite.all() else np.where(finite, derivative, _ZERO)


# ---- Of one input ---------------------------------------------------------------------------------------------------

Derivative = Callable[[Floats, Operation], Array]


def _of_one(derivative: Derivative) -> Rule:
    def rule(
        operation: Operation, inputs: Sequence[Array | None], gradients: Sequence[Floats | None], wanted: Sequence[bool]
    ) -> Gradients:
        if gradients[0] is None or not wanted[0]:
            return [None] * len(inputs)
        with np.errstate(all="ignore"):
            return [gradients[0] * _finite(derivative(floats(inputs[0]), operation)), *[None] * (len(inputs) - 1)]

    return rule


def _of_biased(derivative: Derivative) -> Rule:
    """For operations that first add a bias, their second input, if it is there."""

    def rule(
        operation: Operation, inputs: Sequence[Array | None], gradients: Sequence[Floats | None], wanted: Sequence[bool]
    ) -> Gradients:
        if gradients[0] is None or not any(wanted):
            return [None] * len(inputs)
        x = floats(inputs[0])
        bias = inputs[1] if len(inputs) > 1 else None
        with np.errstate(all="ignore"):
            gradient = gradients[0] * _finite(derivative(x if bias is None else x + floats(bias), operation))
        return [
            unbroadcast(gradient, value.shape) if want and value is not None else None
            for value, want in zip(inputs, wanted, strict=True)
        ]

    return rule


def _number(operation: Operation, name: str, default: float) -> float:
    return float(operation.attributes.get(name, default))


def _erf(x: Floats) -> Floats:
    inverse: Floats = np.reciprocal(np.abs(x) * _ERF_SCALE + 1)
    polynomial = inverse * _ERF_COEFFICIENTS[0]
    for coefficient in _ERF_COEFFICIENTS[1:]:
        polynomial = (polynomial + coefficient) * inverse
    size: Floats = 1 - polynomial * np.exp(-x * x)
    return np.copysign(size, x)


def _elu(x: Floats, operation: Operation) -> Array:
    return np.where(x > 0, _ONE, _number(operation, "alpha", 1) * np.exp(np.minimum(x, 0)))


def _selu(x: Floats, operation: Operation) -> Array:
    alpha = _number(operation, "alpha", _SELU_ALPHA)
    return np.where(x > 0, _ONE, alpha * np.exp(np.minimum(x, 0))) * _number(operation, "gamma", _SELU_GAMMA)


def _celu(x: Floats, operation: Operation) -> Array:
    derivative: Floats = np.exp(np.minimum(x, 0) / _number(operation, "alpha", 1))
    return derivative


def _hard_sigmoid(x: Floats, operation: Operation) -> Array:
    alpha, beta = _number(operation, "alpha", 0.2), _number(operation, "beta", 0.5)
    return np.where(np.abs(x * alpha + (beta - 0.5)) < 0.5, np.float32(alpha), _ZERO)


def _hard_swish(x: Floats, operation: Operation) -> Array:
    return np.where(np.abs(x) < 3, x / 3 + 0.5, x > 0).astype(np.float32, copy=False)


def _sigmoid_derivative(x: Floats, operation: Operation) -> Array:
    value = sigmoid(x)
    return value * (1 - value)


def _swish(x: Floats, alpha: float) -> Array:
    """The derivative of x · sigmoid(alpha · x)."""
    scaled = x * alpha
    value = sigmoid(scaled)
    return value * (1 + scaled * (1 - value))


def _mish(x: Floats, operation: Operation) -> Array:
    tanh: Floats = np.tanh(np.logaddexp(x, _ZERO))
    return tanh + x * (1 - tanh * tanh) * sigmoid(x)


def _gelu(x: Floats, operation: Operation) -> Array:
    if operation.attributes.get("approximate", "none") == "tanh":
        return _gelu_by_tanh(x, operation)
    normal: Floats = np.exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
    return _erf(x * math.sqrt(0.5)) * 0.5 + 0.5 + x * normal


def _gelu_by_tanh(x: Floats, operation: Operation) -> Array:
    square = x * x
    scale = math.sqrt(2 / math.pi)
    tanh: Floats = np.tanh(x * (square * 0.044715 + 1) * scale)
    slope = (square * (3 * 0.044715) + 1) * scale
    doubled: Floats = 1 + tanh + x * (1 - tanh * tanh) * slope
    return doubled * 0.5


_DERIVATIVES: dict[str, Derivative] = {
    "Sqrt": lambda x, _: 0.5 / np.sqrt(x),
    "Exp": lambda x, _: np.exp(x),
    "Log": lambda x, _: 1 / x,
    "Abs": lambda x, _: np.sign(x),
    "Reciprocal": lambda x, _: -1 / (x * x),
    "Relu": lambda x, _: (x > 0).astype(np.float32),
    "LeakyRelu": lambda x, operation: np.where(x > 0, _ONE, np.float32(_number(operation, "alpha", 0.01))),
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "ThresholdedRelu": lambda x, operation: (x > _number(operation, "alpha", 1)).astype(np.float32),
    "Sigmoid": _sigmoid_derivative,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Swish": lambda x, operation: _swish(x, _number(operation, "alpha", 1)),
    "com.microsoft:QuickGelu": lambda x, operation: _swish(x, _number(operation, "alpha", 1.702)),
    "Mish": _mish,
    "Softplus": lambda x, _: sigmoid(x),
    "Softsign": lambda x, _: 1 / np.square(np.abs(x) + 1),
    "Tanh": lambda x, _: 1 - np.square(np.tanh(x)),
    "Erf": lambda x, _: np.exp(-x * x) * (2 / math.sqrt(math.pi)),
    "Gelu": _gelu,
    "com.microsoft:Gelu": _gelu,
    "Sin": lambda x, _: np.cos(x),
    "Cos": lambda x, _: -np.sin(x),
}


# ---- Of several inputs ----------------------------------------------------------------------------------------------

Backward = Callable[[list[Floats], Floats, Sequence[bool]], Gradients]
"""(inputs, gradient of the output, which inputs' gradients are wanted) → gradients of inputs."""


def _of_several(backward: Backward) -> Rule:
    def rule(
        operation: Operation, inputs: Sequence[Array | None], gradients: Sequence[Floats | None], wanted: Sequence[bool]
    ) -> Gradients:
        if gradients[0] is None or not any(wanted):
            return [None] * len(inputs)
        if "axis" in operation.attributes:
            raise NoRuleError(f"{operation.kind} with an axis, as before opset 7")
        with np.errstate(all="ignore"):
            return backward([floats(value) for value in inputs], gradients[0], wanted)

    return rule


def _sum(inputs: list[Floats], gradient: Floats, wanted: Sequence[bool]) -> Gradients:
    return [unbroadcast(gradient, x.shape) if want else None for x, want in zip(inputs, wanted, strict=True)]


def _mean(inputs: list[Floats], gradient: Floats, wanted: Sequence[bool]) -> Gradients:
    return _sum(inputs, gradient * (1 / len(inputs)), wanted)


def _subtract(inputs: list[Floats], gradient: Floats, wanted: Sequence[bool]) -> Gradients:
    left, right = inputs
    return [
        unbroadcast(gradient, left.shape) if wanted[0] else None,
        -unbroadcast(gradient, right.shape) if wanted[1] else None,
    ]


def _multiply(inputs: list[Floats], gradient: Floats, wanted: Sequence[bool]) -> Gradients:
    left, right = inputs
    return [
        unbroadcast_product(gradient, right, left.shape) if wanted[0] else None,
        unbroadcast_product(gradient, left, right.shape) if wanted[1] else None,
    ]


def _divide(inputs: list[Floats], gradient: Floats, wanted: Sequence[bool]) -> Gradients:
    left, right = inputs
    return [
        unbroadcast_product(gradient, _finite(1 / right), left.shape) if wanted[0] else None,
        unbroadcast_product(gradient, left, right.shape) * _finite(-1 / (right * right)) if wanted[1] else None,
    ]


def _power(inputs: list[Floats], gradient: Floats, wanted: Sequence[bool]) -> Gradients:
    base, exponent = inputs
    found: Gradients = [None, None]
    if wanted[0]:
        slope = base * 2 if exponent.size == 1 and exponent.item() == 2 else exponent * np.power(base, exponent - 1)
        found[0] = unbroadcast_product(gradient, _finite(slope), base.shape)
    if wanted[1]:
        found[1] = unbroadcast_product(gradient, _finite(np.power(base, exponent) * np.log(base)), exponent.shape)
    return found


def _parametric_relu(inputs: list[Floats], gradient: Floats, wanted: Sequence[bool]) -> Gradients:
    x, slope = inputs
    return [
        gradient * np.where(x > 0, _ONE, slope) if wanted[0] else None,
        unbroadcast_product(gradient, np.minimum(x, 0), slope.shape) if wanted[1] else None,
    ]


def _maximum(inputs: list[Floats], gradient: Floats, wanted: Sequence[bool]) -> Gradients:
    return _extreme(inputs, reduce(np.maximum, inputs), gradient, wanted)


def _minimum(inputs: list[Floats], gradient: Floats, wanted: Sequence[bool]) -> Gradients:
    return _extreme(inputs, reduce(np.minimum, inputs), gradient, wanted)


def _extreme(inputs: list[Floats], extreme: Floats, gradient: Floats, wanted: Sequence[bool]) -> Gradients:
    """Inputs that are equally extreme share the gradient."""
    reached = [(x == extreme).astype(np.float32) for x in inputs]
    share: Floats = np.reciprocal(np.maximum(sum(reached[1:], reached[0]), 1))
    return [
        unbroadcast_product(gradient, hit * share, x.shape) if want else None
        for x, hit, want in zip(inputs, reached, wanted, strict=True)
    ]


# ---- Others ---------------------------------------------------------------------------------------------------------


def _where(
    operation: Operation, inputs: Sequence[Array | None], gradients: Sequence[Floats | None], wanted: Sequence[bool]
) -> Gradients:
    found: Gradients = [None, None, None]
    if gradients[0] is not None:
        chosen = floats(inputs[0])
        if wanted[1]:
            found[1] = unbroadcast_product(gradients[0], chosen, shape_of(inputs[1]))
        if wanted[2]:
            found[2] = unbroadcast_product(gradients[0], 1 - chosen, shape_of(inputs[2]))
    return found


def _clip(
    operation: Operation, inputs: Sequence[Array | None], gradients: Sequence[Floats | None], wanted: Sequence[bool]
) -> Gradients:
    found: Gradients = [None] * len(inputs)
    if gradients[0] is None:
        return found
    x = floats(inputs[0])
    low, high = _bound(operation, inputs, 1, "min", -np.inf), _bound(operation, inputs, 2, "max", np.inf)
    places = ((x >= low) & (x <= high), x < low, x > high)
    for i in range(len(inputs)):
        if wanted[i]:
            found[i] = unbroadcast_product(gradients[0], places[i].astype(np.float32), shape_of(inputs[i]))
    return found


def _bound(operation: Operation, inputs: Sequence[Array | None], place: int, name: str, default: float) -> float:
    value = inputs[place] if len(inputs) > place else None
    return _number(operation, name, default) if value is None else float(value.item())


def _identity(
    operation: Operation, inputs: Sequence[Array | None], gradients: Sequence[Floats | None], wanted: Sequence[bool]
) -> Gradients:
    return [gradients[0] if wanted[0] else None, *[None] * (len(inputs) - 1)]


def _dropout(
    operation: Operation, inputs: Sequence[Array | None], gradients: Sequence[Floats | None], wanted: Sequence[bool]
) -> Gradients:
    if len(inputs) > 2 and inputs[2] is not None and inputs[2].item():
        raise NoRuleError("Dropout in training mode")
    return _identity(operation, inputs, gradients, wanted)


def _cast(
    operation: Operation, inputs: Sequence[Array | None], gradients: Sequence[Floats | None], wanted: Sequence[bool]
) -> Gradients:
    """No gradient passes where either side are integers or truth values."""
    to = operation.attributes["to"] in _FLOAT_TYPES if "to" in operation.attributes else _are_floats(inputs[1])
    passes = to and _are_floats(inputs[0])
    return _identity(operation, inputs, gradients if passes else [None], wanted)


def _are_floats(value: Array | None) -> bool:
    return value is not None and value.dtype.kind not in "biuOSUT"


def _triangle(
    operation: Operation, inputs: Sequence[Array | None], gradients: Sequence[Floats | None], wanted: Sequence[bool]
) -> Gradients:
    found: Gradients = [None] * len(inputs)
    if gradients[0] is not None and wanted[0]:
        diagonal = int(inputs[1].item()) if len(inputs) > 1 and inputs[1] is not None else 0
        keep = np.triu if operation.attributes.get("upper", 1) else np.tril
        found[0] = keep(gradients[0], diagonal)
    return found


def _constant(
    operation: Operation, inputs: Sequence[Array | None], gradients: Sequence[Floats | None], wanted: Sequence[bool]
) -> Gradients:
    """For operations whose derivative is zero wherever it exists."""
    return [None] * len(inputs)


def _negate(
    operation: Operation, inputs: Sequence[Array | None], gradients: Sequence[Floats | None], wanted: Sequence[bool]
) -> Gradients:
    return [None if gradients[0] is None or not wanted[0] else -gradients[0]]


def _quantize(
    operation: Operation, inputs: Sequence[Array | None], gradients: Sequence[Floats | None], wanted: Sequence[bool]
) -> Gradients:
    """Straight through: rounding counts as no change, and nothing passes where the value is clipped."""
    x, steps, zeros = _grid(operation, inputs)
    if gradients[0] is None or not wanted[0]:
        return [None] * len(inputs)
    kind = np.dtype(np.uint8) if len(inputs) < 3 or inputs[2] is None else inputs[2].dtype
    if kind.kind not in "iu":
        raise NoRuleError("a grid whose range numpy does not know")
    symbols, limits = np.rint(x / steps) + zeros, np.iinfo(kind)
    inside = (symbols >= limits.min) & (symbols <= limits.max)
    return [gradients[0] * (inside / steps).astype(np.float32), *[None] * (len(inputs) - 1)]


def _dequantize(
    operation: Operation, inputs: Sequence[Array | None], gradients: Sequence[Floats | None], wanted: Sequence[bool]
) -> Gradients:
    _, steps, _ = _grid(operation, inputs)
    if gradients[0] is None or not wanted[0]:
        return [None] * len(inputs)
    return [gradients[0] * steps, *[None] * (len(inputs) - 1)]


def _grid(operation: Operation, inputs: Sequence[Array | None]) -> tuple[Floats, Floats, Floats]:
    """The first input, and the steps and zero points of its grid in a shape that fits it."""
    x, steps = floats(inputs[0]), floats(inputs[1])
    zeros = floats(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else np.zeros_like(steps)
    if operation.attributes.get("block_size", 0):
        raise NoRuleError("a grid in blocks")
    if steps.size == 1:
        return x, steps.reshape(()), zeros.reshape(())
    shape = [1] * x.ndim
    shape[operation.attributes.get("axis", 1)] = steps.size
    return x, steps.reshape(shape), zeros.reshape(shape)


RULES: dict[str, Rule] = {
    **{kind: _of_one(derivative) for kind, derivative in _DERIVATIVES.items()},
    "com.microsoft:BiasGelu": _of_biased(_gelu),
    "com.microsoft:FastGelu": _of_biased(_gelu_by_tanh),
    "Add": _of_several(_sum),
    "Sub": _of_several(_subtract),
    "Mul": _of_several(_multiply),
    "Div": _of_several(_divide),
    "Pow": _of_several(_power),
    "PRelu": _of_several(_parametric_relu),
    "Max": _of_several(_maximum),
    "Min": _of_several(_minimum),
    "Sum": _of_several(_sum),
    "Mean": _of_several(_mean),
    "Neg": _negate,
    "Where": _where,
    "Clip": _clip,
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast,
    "Trilu": _triangle,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    **dict.fromkeys(["Ceil", "Floor", "Round", "Sign"], _constant),
}
