"""Rules of matrix products: gradients of MatMul, Gemm, FusedMatMul and Einsum with respect to every operand."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

import numpy as np

from riq_cli.model import Operation
from riq_cli.statistics.autodiff.arrays import floats, unbroadcast
from riq_cli.statistics.autodiff.rule import Array, Floats, Gradients, NoRuleError, Rule


def _matmul(
    operation: Operation,
    inputs: Sequence[Array | None],
    outputs: Sequence[Floats | None],
    wanted: Sequence[bool],
) -> Gradients:
    return _product(inputs, outputs[0], wanted, (False, False), 1.0)


def _fused_matmul(
    operation: Operation,
    inputs: Sequence[Array | None],
    outputs: Sequence[Floats | None],
    wanted: Sequence[bool],
) -> Gradients:
    attributes = operation.attributes
    if outputs[0] is not None and (attributes.get("transBatchA") or attributes.get("transBatchB")):
        raise NoRuleError("FusedMatMul with transposed batch axes")
    turned = (bool(attributes.get("transA")), bool(attributes.get("transB")))
    return _product(inputs, outputs[0], wanted, turned, attributes.get("alpha", 1.0))


def _gemm(
    operation: Operation,
    inputs: Sequence[Array | None],
    outputs: Sequence[Floats | None],
    wanted: Sequence[bool],
) -> Gradients:
    attributes, gradient = operation.attributes, outputs[0]
    turned = (bool(attributes.get("transA")), bool(attributes.get("transB")))
    result = _product(inputs[:2], gradient, wanted[:2], turned, attributes.get("alpha", 1.0))
    if len(inputs) < 3:
        return result
    if gradient is None or not wanted[2] or inputs[2] is None:
        return [*result, None]
    return [*result, _scaled(unbroadcast(gradient, inputs[2].shape), attributes.get("beta", 1.0))]


def _product(
    inputs: Sequence[Array | None],
    gradient: Floats | None,
    wanted: Sequence[bool],
    turned: tuple[bool, bool],
    scale: float,
) -> Gradients:
    """Gradients of the operands of `scale` · left @ right, where those that are `turned` enter transposed."""
    result: Gradients = [None, None]
    left, right = inputs
    if gradient is None or left is None or right is None:
        return result
    if left.ndim == 1:
        gradient = np.expand_dims(gradient, -1 if right.ndim == 1 else -2)
    if right.ndim == 1:
        gradient = np.expand_dims(gradient, -1)
    turns = [turn and operand.ndim > 1 for turn, operand in zip(turned, (left, right), strict=True)]
    first = _turned(left[None] if left.ndim == 1 else left, turns[0])
    second = _turned(right[:, None] if right.ndim == 1 else right, turns[1])
    probes = len(gradient)
    if wanted[0]:
        found = _scaled(_of_left(gradient, first.shape, second), scale)
        result[0] = _turned(found, turns[0]).reshape(probes, *left.shape)
    if wanted[1]:
        found = _scaled(_of_right(gradient, first, second.shape), scale)
        result[1] = _turned(found, turns[1]).reshape(probes, *right.shape)
    return result


def _of_left(gradient: Floats, shape: tuple[int, ...], right: Array) -> Floats:
    factor = floats(right).swapaxes(-1, -2)
    if math.prod(right.shape[:-2]) == 1:  # one product of all rows, instead of one for each matrix of a batch
        factor = factor.reshape(factor.shape[-2:])
        rows = gradient.reshape(-1, gradient.shape[-1]) @ factor
        return unbroadcast(rows.reshape(*gradient.shape[:-1], -1), shape)
    return unbroadcast(gradient @ factor, shape)


def _of_right(gradient: Floats, left: Array, shape: tuple[int, ...]) -> Floats:
    factor = floats(left)
    batch = gradient.shape[1:-2]
    if math.prod(shape[:-2]) == 1 and left.shape[:-2] == batch:  # the sum over the batch is part of the product
        rows = gradient.reshape(len(gradient), -1, gradient.shape[-1])
        found = factor.reshape(-1, factor.shape[-1]).T @ rows
        return found.reshape(len(gradient), *shape)
    return unbroadcast(factor.swapaxes(-1, -2) @ gradient, shape)


def _turned(array: Array, turn: bool) -> Array:
    return array.swapaxes(-1, -2) if turn else array


def _scaled(array: Floats, scale: float) -> Floats:
    return array if scale == 1 else array * np.float32(scale)


def _einsum(
    operation: Operation,
    inputs: Sequence[Array | None],
    outputs: Sequence[Floats | None],
    wanted: Sequence[bool],
) -> Gradients:
    gradient, result = outputs[0], list[Floats | None]([None] * len(inputs))
    if gradient is None:
        return result
    operands = [operand for operand in inputs if operand is not None]
    if len(operands) > 2:
        raise NoRuleError("Einsum of more than two operands")
    labels, out = _labels(operation.attributes["equation"], operands)
    for number, operand in enumerate(operands):
        if not wanted[number]:
            continue
        if len(operands) == 2:
            factor, name = floats(operands[1 - number]), labels[1 - number]
        else:
            factor, name = np.ones((), np.float32), ""
        result[number] = _contracted(gradient, out, factor, name, labels[number], operand.shape)
    return result


def _labels(equation: str, operands: Sequence[Array]) -> tuple[list[str], str]:
    """A letter for every axis of each operand, and of the output."""
    equation = equation.replace(" ", "")
    if "->" not in equation:
        raise NoRuleError("Einsum without an explicit output")
    before, out = equation.split("->")
    terms = before.split(",")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    hidden = [operand.ndim - len(term.replace("...", "")) for term, operand in zip(terms, operands, strict=True)]
    most = max(hidden)
    rest = "".join(free[:most])
    terms = [term.replace("...", rest[most - count :]) for term, count in zip(terms, hidden, strict=True)]
    out = out.replace("...", rest)
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        if len(set(term)) < len(term):
            raise NoRuleError("Einsum along a diagonal")
        for letter, size in zip(term, operand.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise NoRuleError("Einsum that broadcasts an axis")
    if not set(out) <= set(sizes):
        raise NoRuleError("Einsum with an axis of its output alone")
    return terms, out


def _contracted(gradient: Floats, out: str, factor: Floats, name: str, target: str, shape: tuple[int, ...]) -> Floats:
    """Gradient of an operand with axes `target`: one matrix product over the axes of the others that it lacks."""
    factor = factor.sum(axis=tuple(axis for axis, letter in enumerate(name) if letter not in out + target))
    name = "".join(letter for letter in name if letter in out + target)
    batch = [letter for letter in out if letter in name and letter in target]
    inner = [letter for letter in out if letter in name and letter not in target]
    rows = [letter for letter in out if letter not in name]
    columns = [letter for letter in name if letter not in out]
    alone = [letter for letter in target if letter not in out + name]
    sizes = {**dict(zip(out, gradient.shape[1:], strict=True)), **dict(zip(name, factor.shape, strict=True))}
    left = _grouped(gradient, "*" + out, [*batch], ["*", *rows], [*inner], {**sizes, "*": len(gradient)})
    right = _grouped(factor, name, batch, inner, columns, sizes)
    found = (left @ right).reshape(
        *(sizes[letter] for letter in batch), len(gradient), *(sizes[letter] for letter in [*rows, *columns])
    )
    found = found.reshape(*found.shape, *(1 for _ in alone))
    order = [*batch, "*", *rows, *columns, *alone]
    found = found.transpose([order.index(letter) for letter in "*" + target])
    return np.broadcast_to(found, (len(gradient), *shape))


def _grouped(
    array: Floats, name: str, batch: list[str], rows: list[str], columns: list[str], sizes: dict[str, int]
) -> Floats:
    """An array as [batch, rows, columns], each of some of its axes."""
    turned = array.transpose([name.index(letter) for letter in [*batch, *rows, *columns]])
    return turned.reshape([math.prod(sizes[letter] for letter in group) for group in (batch, rows, columns)])


RULES: dict[str, Rule] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "com.microsoft:FusedMatMul": _fused_matmul,
    "Einsum": _einsum,
}
