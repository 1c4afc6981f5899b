"""What rules of all kinds do with arrays: inputs in float32, and gradients of what was broadcast."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np

from riq_cli.statistics.autodiff.rule import Array, Floats, NoRuleError


def floats(value: Array | None) -> Floats:
    """An input that must be there, in float32."""
    if value is None:
        raise NoRuleError("an input is missing")
    with np.errstate(over="ignore"):
        return np.asarray(value, np.float32)


def shape_of(value: Array | None) -> tuple[int, ...]:
    """That of an input; of one that is left out, that of a single number."""
    return () if value is None else value.shape


def unbroadcast(gradient: Floats, shape: Sequence[int]) -> Floats:
    """The gradient of a tensor of `shape` that was broadcast, from that of what it was broadcast to."""
    repeated = _repeated_axes(gradient, shape)
    return gradient.sum(axis=repeated).reshape(len(gradient), *shape) if repeated else gradient


def unbroadcast_product(gradient: Floats, factor: Floats, shape: Sequence[int]) -> Floats:
    """`unbroadcast(gradient * factor, shape)`, without the product in memory where it is summed."""
    repeated = _repeated_axes(gradient, shape)
    if not repeated:
        return gradient * factor
    axes = string.ascii_letters[: gradient.ndim]
    kept = "".join(letter for axis, letter in enumerate(axes) if axis not in repeated)
    factor = np.broadcast_to(factor, gradient.shape[1:])
    sums: Floats = np.einsum(f"{axes},{axes[1:]}->{kept}", gradient, factor)
    return sums.reshape(len(gradient), *shape)


def _repeated_axes(gradient: Floats, shape: Sequence[int]) -> tuple[int, ...]:
    """Axes of the gradient, the one of the probes counted, along which a tensor of `shape` was repeated."""
    added = gradient.ndim - len(shape)
    stretched = [added + i for i, length in enumerate(shape) if length == 1 != gradient.shape[added + i]]
    return (*range(1, added), *stretched)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(−x)), by tanh: the exponential overflows."""
    half: Floats = np.tanh(x * 0.5) * 0.5
    return half + 0.5
