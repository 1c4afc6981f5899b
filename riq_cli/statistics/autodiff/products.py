"""Rules of matrix products: MatMul, Gemm, FusedMatMul and Einsum."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

import numpy as np

from riq_cli.statistics.autodiff.rule import Array, Call, Floats, Gradients, NoRuleError, Rule, unbroadcast


def _matmul(call: Call) -> Gradients:
    """Of alpha · A @ B + beta · C, where A and B may enter transposed; MatMul has neither C nor any attribute."""
    attributes, gradient = call.attributes, call.gradient
    if attributes.get("transBatchA") or attributes.get("transBatchB"):
        raise NoRuleError("FusedMatMul with transposed batch axes")
    if attributes.get("alpha", 1.0) != 1:
        gradient = gradient * np.float32(attributes["alpha"])
    left, right = call.floats(0), call.floats(1)
    swaps = [bool(attributes.get(f"trans{name}")) and x.ndim > 1 for name, x in (("A", left), ("B", right))]
    if right.ndim == 1:
        right, gradient = right[:, None], gradient[..., None]
    if left.ndim == 1:
        left, gradient = left[None], np.expand_dims(gradient, -2)
    left, right = (x.swapaxes(-1, -2) if swap else x for x, swap in zip((left, right), swaps, strict=True))
    found: Gradients = [None, None, None]
    for place, of_operand in enumerate((_of_left, _of_right)):
        if call.wanted[place]:
            product = of_operand(gradient, left, right)
            product = product.swapaxes(-1, -2) if swaps[place] else product
            found[place] = product.reshape(len(gradient), *call.value(place).shape)
    if call.wants(2):
        found[2] = unbroadcast(call.gradient, call.value(2).shape) * np.float32(attributes.get("beta", 1.0))
    return found


def _of_left(gradient: Floats, left: Floats, right: Floats) -> Floats:
    if math.prod(right.shape[:-2]) == 1:  # one product of all rows, instead of one for each matrix of a batch
        rows = gradient.reshape(-1, gradient.shape[-1]) @ right.reshape(right.shape[-2:]).T
        return unbroadcast(rows.reshape(*gradient.shape[:-1], -1), left.shape)
    return unbroadcast(gradient @ right.swapaxes(-1, -2), left.shape)


def _of_right(gradient: Floats, left: Floats, right: Floats) -> Floats:
    if math.prod(right.shape[:-2]) == 1 and left.shape[:-2] == gradient.shape[1:-2]:
        # The sum over the batch is a part of the product.
        rows = gradient.reshape(len(gradient), -1, gradient.shape[-1])
        return (left.reshape(-1, left.shape[-1]).T @ rows).reshape(len(gradient), *right.shape)
    return unbroadcast(left.swapaxes(-1, -2) @ gradient, right.shape)


# ---- Einsum ---------------------------------------------------------------------------------------------------------


def _einsum(call: Call) -> Gradients:
    operands = [call.floats(place) for place in range(len(call.inputs))]
    if len(operands) > 2:
        raise NoRuleError("Einsum of more than two operands")
    labels, out = _labels(call.attributes["equation"], operands)
    operands, labels = [*operands, np.ones((), np.float32)], [*labels, ""]  # the other of one is a single number
    return [
        _contracted(call.gradient, out, operands[1 - place], labels[1 - place], labels[place], operands[place].shape)
        if want
        else None
        for place, want in enumerate(call.wanted)
    ]


def _labels(equation: str, operands: Sequence[Array]) -> tuple[list[str], str]:
    """A letter for every axis of each operand, and of the output."""
    before, arrow, out = equation.replace(" ", "").partition("->")
    if not arrow:
        raise NoRuleError("Einsum without an explicit output")
    terms = before.split(",")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    hidden = [operand.ndim - len(term.replace("...", "")) for term, operand in zip(terms, operands, strict=True)]
    rest = "".join(free[: max(hidden)])
    terms = [term.replace("...", rest[len(rest) - count :]) for term, count in zip(terms, hidden, strict=True)]
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        if len(set(term)) < len(term):
            raise NoRuleError("Einsum along a diagonal")
        for letter, size in zip(term, operand.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise NoRuleError("Einsum that broadcasts an axis")
    return terms, out.replace("...", rest)


def _contracted(gradient: Floats, out: str, factor: Floats, name: str, target: str, shape: tuple[int, ...]) -> Floats:
    """The gradient of an operand with axes `target`, the other being `factor` with axes `name`: one matrix product."""
    factor = factor.sum(axis=tuple(axis for axis, letter in enumerate(name) if letter not in out + target))
    name = "".join(letter for letter in name if letter in out + target)
    batch = [letter for letter in out if letter in name and letter in target]
    inner = [letter for letter in out if letter in name and letter not in target]
    rows = ["*", *(letter for letter in out if letter not in name)]  # * are the probes
    columns = [letter for letter in name if letter not in out]
    alone = [letter for letter in target if letter not in out + name]
    sizes = {"*": len(gradient), **dict(zip(out + name, gradient.shape[1:] + factor.shape, strict=True))}
    product = _grouped(gradient, "*" + out, batch, rows, inner) @ _grouped(factor, name, batch, inner, columns)
    order = [*batch, *rows, *columns, *alone]
    product = product.reshape([sizes.get(letter, 1) for letter in order])
    return np.broadcast_to(product.transpose([order.index(letter) for letter in "*" + target]), (len(gradient), *shape))


def _grouped(array: Floats, name: str, *groups: list[str]) -> Floats:
    """An array with axes `name`, transposed and reshaped to one axis for each group of them."""
    sizes = dict(zip(name, array.shape, strict=True))
    transposed = array.transpose([name.index(letter) for group in groups for letter in group])
    return transposed.reshape([math.prod(sizes[letter] for letter in group) for group in groups])


RULES: dict[str, Rule] = {
    "MatMul": _matmul,
    "Gemm": _matmul,
    "com.microsoft:FusedMatMul": _matmul,
    "Einsum": _einsum,
}
