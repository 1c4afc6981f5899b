"""Gradients through operations that move numbers without changing them: RULES by kind.

What is merely arranged otherwise comes back as a view. What is taken from places goes back to them, summed where a
place is taken more than once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.model import Operation
from riq_cli.statistics.autodiff.arrays import shape_of, unbroadcast
from riq_cli.statistics.autodiff.rule import Array, Floats, Gradients, NoRuleError, Rule

Inputs = Sequence[Array | None]
Places = NDArray[np.intp]
_EVERYTHING = slice(None)


def scatter(gradient: Floats, places: Places, length: int) -> Floats:
    """Zeros [before, length, after] to which [before, places, after] is added at `places`; they may come repeatedly."""
    before, count, after = gradient.shape
    found = np.zeros((before, length, after), np.float32)
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    if len(first) == count:
        found[:, places] = gradient
    elif after == 1:
        for sums, one in zip(found, gradient, strict=True):
            sums[:, 0] = np.bincount(places, one[:, 0], length)
    else:
        found[:, ordered[first]] = np.add.reduceat(gradient[:, order], first, axis=1)
    return found


def _of_first(backward: Callable[[Operation, Inputs, Array, Floats], Floats]) -> Rule:
    """A rule where only the first input has a gradient, from that of the first output."""

    def rule(
        operation: Operation, inputs: Inputs, gradients: Sequence[Floats | None], wanted: Sequence[bool]
    ) -> Gradients:
        found: Gradients = [None] * len(inputs)
        if gradients[0] is not None and wanted[0] and inputs[0] is not None:
            found[0] = backward(operation, inputs, inputs[0], gradients[0])
        return found

    return rule


def _integers(operation: Operation, inputs: Inputs, place: int, name: str) -> list[int] | None:
    """What newer opsets take as an input and older ones as an attribute."""
    value = inputs[place] if len(inputs) > place else None
    if value is not None:
        return [int(number) for number in np.ravel(value)]
    return [int(number) for number in operation.attributes[name]] if name in operation.attributes else None


def _axis(operation: Operation, x: Array, default: int = 0) -> int:
    return int(operation.attributes.get("axis", default)) % x.ndim


# ---- Arranged otherwise ---------------------------------------------------------------------------------------------


def _reshape(operation: Operation, inputs: Inputs, x: Array, gradient: Floats) -> Floats:
    return gradient.reshape(len(gradient), *x.shape)


def _transpose(operation: Operation, inputs: Inputs, x: Array, gradient: Floats) -> Floats:
    order = operation.attributes.get("perm", range(x.ndim)[::-1])
    return gradient.transpose(0, *(np.argsort(order) + 1))


def _expand(operation: Operation, inputs: Inputs, x: Array, gradient: Floats) -> Floats:
    return unbroadcast(gradient, x.shape)


def _tile(operation: Operation, inputs: Inputs, x: Array, gradient: Floats) -> Floats:
    repeats = _integers(operation, inputs, 1, "repeats")
    if repeats is None or len(repeats) != x.ndim:
        raise NoRuleError("Tile as before opset 6")
    pairs = [length for pair in zip(repeats, x.shape, strict=True) for length in pair]
    sums: Floats = gradient.reshape(len(gradient), *pairs).sum(axis=tuple(range(1, 2 * x.ndim, 2)))
    return sums


def _depth_to_space(operation: Operation, inputs: Inputs, x: Array, gradient: Floats) -> Floats:
    block = int(operation.attributes["blocksize"])
    samples, channels, height, width = x.shape
    parted = gradient.reshape(len(gradient), samples, channels // block**2, height, block, width, block)
    by_columns = operation.attributes.get("mode", "DCR") == "CRD"
    order = (0, 1, 2, 4, 6, 3, 5) if by_columns else (0, 1, 4, 6, 2, 3, 5)
    return parted.transpose(order).reshape(len(gradient), *x.shape)


def _space_to_depth(operation: Operation, inputs: Inputs, x: Array, gradient: Floats) -> Floats:
    block = int(operation.attributes["blocksize"])
    samples, channels, height, width = x.shape
    parted = gradient.reshape(len(gradient), samples, block, block, channels, height // block, width // block)
    return parted.transpose(0, 1, 4, 5, 2, 6, 3).reshape(len(gradient), *x.shape)


# ---- Put together, and taken apart ----------------------------------------------------------------------------------


def _concatenation(
    operation: Operation, inputs: Inputs, gradients: Sequence[Floats | None], wanted: Sequence[bool]
) -> Gradients:
    found: Gradients = [None] * len(inputs)
    gradient = gradients[0]
    if gradient is None:
        return found
    axis = int(operation.attributes.get("axis", 1)) % (gradient.ndim - 1) + 1
    start = 0
    for i, x in enumerate(inputs):
        if x is None:
            raise NoRuleError("Concat without one of its inputs")
        end = start + x.shape[axis - 1]
        if wanted[i]:
            found[i] = gradient[(*[_EVERYTHING] * axis, slice(start, end))]
        start = end
    return found


def _split(
    operation: Operation, inputs: Inputs, gradients: Sequence[Floats | None], wanted: Sequence[bool]
) -> Gradients:
    found: Gradients = [None] * len(inputs)
    given = [gradient for gradient in gradients if gradient is not None]
    x = inputs[0]
    if not given or not wanted[0] or x is None:
        return found
    axis = _axis(operation, x) + 1
    ends = np.cumsum(_lengths(operation, inputs, x.shape[axis - 1], len(gradients)))
    total = np.empty((len(given[0]), *x.shape), np.float32)
    for gradient, part in zip(gradients, np.split(total, ends[:-1], axis=axis), strict=True):
        part[...] = 0 if gradient is None else gradient
    found[0] = total
    return found


def _lengths(operation: Operation, inputs: Inputs, length: int, parts: int) -> list[int]:
    """How long the parts of a Split are; without a word about it all are equal, but the last may be shorter."""
    given = _integers(operation, inputs, 1, "split")
    if given is not None:
        return given
    each = math.ceil(length / parts)
    return [each] * (parts - 1) + [length - each * (parts - 1)]


# ---- Taken from places ----------------------------------------------------------------------------------------------


def _slice(operation: Operation, inputs: Inputs, x: Array, gradient: Floats) -> Floats:
    starts, ends = _integers(operation, inputs, 1, "starts"), _integers(operation, inputs, 2, "ends")
    if starts is None or ends is None:
        raise NoRuleError("Slice without starts or ends")
    axes = _integers(operation, inputs, 3, "axes") or range(len(starts))
    steps = _integers(operation, inputs, 4, "steps") or [1] * len(starts)
    taken = [_EVERYTHING] * (x.ndim + 1)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        taken[axis % x.ndim + 1] = _range(start, end, step, x.shape[axis])
    found = np.zeros((len(gradient), *x.shape), np.float32)
    found[tuple(taken)] = gradient
    return found


def _range(start: int, end: int, step: int, length: int) -> slice:
    """Python's slice, except that a backward one starts at the first number even where its start is before it."""
    if step < 0 and start < -length:
        start = -length
    return slice(start, end, step)


def _gather(operation: Operation, inputs: Inputs, x: Array, gradient: Floats) -> Floats:
    axis = _axis(operation, x)
    length = x.shape[axis]
    places = np.ravel(_indices(inputs)) % length
    before, after = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
    taken = gradient.reshape(len(gradient) * before, len(places), after)
    return scatter(taken, places, length).reshape(len(gradient), *x.shape)


def _gather_elements(operation: Operation, inputs: Inputs, x: Array, gradient: Floats) -> Floats:
    axis = _axis(operation, x)
    indices = _indices(inputs)
    numbers = _numbers(x)[tuple(_EVERYTHING if i == axis else slice(n) for i, n in enumerate(indices.shape))]
    return _back_to(np.take_along_axis(numbers, indices % x.shape[axis], axis), x, gradient)


def _gather_tuples(operation: Operation, inputs: Inputs, x: Array, gradient: Floats) -> Floats:
    indices = _indices(inputs)
    common = int(operation.attributes.get("batch_dims", 0))
    outer = indices.shape[:-1]
    batches = [
        np.arange(length).reshape([length if i == axis else 1 for i in range(len(outer))])
        for axis, length in enumerate(outer[:common])
    ]
    return _back_to(_numbers(x)[(*batches, *np.moveaxis(indices, -1, 0))], x, gradient)


def _indices(inputs: Inputs) -> Places:
    if inputs[1] is None:
        raise NoRuleError("a gathering without indices")
    return inputs[1].astype(np.intp, copy=False)


def _numbers(x: Array) -> Places:
    """Where each element is, counted through."""
    return np.arange(x.size).reshape(x.shape)


def _back_to(places: Places, x: Array, gradient: Floats) -> Floats:
    taken = gradient.reshape(len(gradient), places.size, 1)
    return scatter(taken, places.ravel(), x.size).reshape(len(gradient), *x.shape)


def _top(operation: Operation, inputs: Inputs, x: Array, gradient: Floats) -> Floats:
    """Among equals the first are taken, as onnxruntime does."""
    axis = _axis(operation, x, -1)
    count = gradient.shape[axis + 1]
    if not operation.attributes.get("sorted", 1) and count > 1:
        raise NoRuleError("TopK in no order")
    descending = -x if operation.attributes.get("largest", 1) else x
    places = np.argsort(descending, axis=axis, kind="stable").take(range(count), axis)
    found = np.zeros((len(gradient), *x.shape), np.float32)
    np.put_along_axis(found, places[None], gradient, axis + 1)
    return found


# ---- Pad ------------------------------------------------------------------------------------------------------------


def _pad(operation: Operation, inputs: Inputs, gradients: Sequence[Floats | None], wanted: Sequence[bool]) -> Gradients:
    found: Gradients = [None] * len(inputs)
    gradient, x = gradients[0], inputs[0]
    if gradient is None or x is None or not any(wanted):
        return found
    pads = _pads(operation, inputs, x.ndim)
    mode = operation.attributes.get("mode", "constant")
    inner = _cropped(gradient, pads, x) if mode == "constant" else _folded(gradient, pads, x, mode)
    found[0] = inner if wanted[0] else None
    if len(wanted) > 2 and wanted[2]:
        axes = tuple(range(1, gradient.ndim))
        found[2] = (gradient.sum(axis=axes) - inner.sum(axis=axes)).reshape(len(gradient), *shape_of(inputs[2]))
    return found


def _pads(operation: Operation, inputs: Inputs, rank: int) -> list[tuple[int, int]]:
    """(before, after) for each axis."""
    given = _integers(operation, inputs, 1, "pads") or _integers(operation, inputs, 1, "paddings")
    if given is None:
        raise NoRuleError("Pad without pads")
    axes = _integers(operation, inputs, 3, "axes") or range(rank)
    pads = [(0, 0)] * rank
    for axis, before, after in zip(axes, given[: len(given) // 2], given[len(given) // 2 :], strict=True):
        pads[axis] = before, after
    return pads


def _cropped(gradient: Floats, pads: list[tuple[int, int]], x: Array) -> Floats:
    """Without what was padded; zeros where negative pads took something away."""
    kept = gradient[_inside(pads, gradient.shape[1:])]
    if kept.shape[1:] == x.shape:
        return kept
    found = np.zeros((len(gradient), *x.shape), np.float32)
    found[_inside([(-before, -after) for before, after in pads], x.shape)] = kept
    return found


def _inside(pads: list[tuple[int, int]], shape: Sequence[int]) -> tuple[slice, ...]:
    inner = [slice(max(before, 0), length - max(after, 0)) for (before, after), length in zip(pads, shape, strict=True)]
    return (_EVERYTHING, *inner)


def _folded(gradient: Floats, pads: list[tuple[int, int]], x: Array, mode: Any) -> Floats:
    """What was padded with numbers from inside goes back to them, one axis after the other."""
    if any(min(pad) < 0 for pad in pads):
        raise NoRuleError(f"Pad of mode {mode} with a negative pad")
    for axis, (pad, length) in enumerate(zip(pads, x.shape, strict=True), 1):
        if pad == (0, 0):
            continue
        lead: list[slice | int] = [_EVERYTHING] * axis
        folded = gradient[(*lead, slice(pad[0], pad[0] + length))].copy()
        sources = np.pad(np.arange(length), pad, mode)
        for place in (*range(pad[0]), *range(pad[0] + length, len(sources))):
            folded[(*lead, int(sources[place]))] += gradient[(*lead, place)]
        gradient = folded
    return gradient


RULES: dict[str, Rule] = {
    **dict.fromkeys(["Reshape", "Flatten", "Squeeze", "Unsqueeze"], _of_first(_reshape)),
    "Transpose": _of_first(_transpose),
    "Expand": _of_first(_expand),
    "Tile": _of_first(_tile),
    "DepthToSpace": _of_first(_depth_to_space),
    "SpaceToDepth": _of_first(_space_to_depth),
    "Concat": _concatenation,
    "Split": _split,
    "Slice": _of_first(_slice),
    "Gather": _of_first(_gather),
    "GatherElements": _of_first(_gather_elements),
    "GatherND": _of_first(_gather_tuples),
    "TopK": _of_first(_top),
    "Pad": _pad,
}
