"""What a gradient rule is, and what rules share: access to inputs, and gradients of what was broadcast."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.model import Operation

Array = NDArray[Any]
Floats = NDArray[np.float32]
Gradients = list[Floats | None]


class NoRuleError(Exception):
    """The operation is used in a way that its rule does not know."""


@dataclass(frozen=True)
class Call:
    """An operation in one run of the model, with the gradients of its outputs.

    Gradients have one axis more than their tensors, in front: several are taken back at a time, [probes, *shape].
    None stands for zeros.

    Attributes:
        operation: what is run.
        inputs: the values of its inputs, None for those that are left out.
        gradients: of its outputs; at least one is there.
        wanted: whether the gradient of each input is wanted.
    """

    operation: Operation
    inputs: Sequence[Array | None]
    gradients: Sequence[Floats | None]
    wanted: Sequence[bool]

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Those of the operation."""
        return self.operation.attributes

    @property
    def gradient(self) -> Floats:
        """That of the first output."""
        if self.gradients[0] is None:
            raise NoRuleError(f"{self.operation.kind} of which only a later output is used")
        return self.gradients[0]

    def wants(self, place: int) -> bool:
        """Whether the gradient of an input is wanted; of one that is left out, it is not."""
        return place < len(self.wanted) and self.wanted[place]

    def optional(self, place: int) -> Array | None:
        """The value of an input, if it is there."""
        return self.inputs[place] if place < len(self.inputs) else None

    def value(self, place: int) -> Array:
        """The value of an input that must be there."""
        value = self.optional(place)
        if value is None:
            raise NoRuleError(f"{self.operation.kind} without its input {place}")
        return value

    def floats(self, place: int) -> Floats:
        """The value of an input that must be there, in float32."""
        return np.asarray(self.value(place), np.float32)

    def integers(self, place: int, name: str) -> list[int] | None:
        """Integers that newer opsets take as an input and older ones as an attribute, if they are given."""
        value = self.optional(place)
        if value is None:
            value = self.attributes.get(name)
        return None if value is None else [int(number) for number in np.ravel(value)]

    def axis(self, rank: int, default: int = 0) -> int:
        """The attribute of this name, counted from the front."""
        return int(self.attributes.get("axis", default)) % rank


Rule = Callable[[Call], Gradients]
"""A call → gradients of its inputs: its vector-Jacobian products. Those that are not wanted may be None or missing.

Rules do not write into what they get, and what they return may be a view of it.
"""


def unbroadcast(gradient: Floats, shape: Sequence[int], factor: Array | None = None) -> Floats:
    """The gradient of a tensor of `shape`, from that of what it was broadcast to and multiplied by a factor."""
    added = gradient.ndim - len(shape)
    stretched = [added + i for i, length in enumerate(shape) if length == 1 != gradient.shape[added + i]]
    repeated = (*range(1, added), *stretched)
    if factor is None:
        return gradient.sum(axis=repeated).reshape(len(gradient), *shape) if repeated else gradient
    if not repeated:
        return gradient * factor
    letters = string.ascii_letters[: gradient.ndim]
    kept = "".join(letter for axis, letter in enumerate(letters) if axis not in repeated)
    factor = np.broadcast_to(factor, gradient.shape[1:])
    sums: Floats = np.einsum(f"{letters},{letters[1:]}->{kept}", gradient, factor)  # no product in memory
    return sums.reshape(len(gradient), *shape)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(−x)), by tanh: the exponential overflows."""
    half: Floats = np.tanh(x * 0.5) * 0.5
    return half + 0.5
