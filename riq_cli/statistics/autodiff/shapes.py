"""Rules of operations that move elements without changing them.

What is merely arranged otherwise comes back as a view. What is taken from places goes back to them, summed where a
place is taken more than once.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from riq_cli.statistics.autodiff.axes import mapped_back
from riq_cli.statistics.autodiff.rule import Call, Floats, Gradients, NoRuleError, Rule, unbroadcast

Places = NDArray[np.intp]
_EVERYTHING = slice(None)


# ---- Arranged otherwise ---------------------------------------------------------------------------------------------


def _reshape(call: Call) -> Gradients:
    return [call.gradient.reshape(len(call.gradient), *call.value(0).shape)]


def _transpose(call: Call) -> Gradients:
    order = call.attributes.get("perm", range(call.value(0).ndim)[::-1])
    return [call.gradient.transpose(0, *(np.argsort(order) + 1))]


def _tile(call: Call) -> Gradients:
    shape, repeats = call.value(0).shape, call.integers(1, "repeats")
    if repeats is None or len(repeats) != len(shape):
        raise NoRuleError("Tile as before opset 6")
    pairs = [length for pair in zip(repeats, shape, strict=True) for length in pair]
    gradient = call.gradient.reshape(len(call.gradient), *pairs)
    return [gradient.sum(axis=tuple(range(1, gradient.ndim, 2)))]


def _blocks(call: Call) -> Gradients:
    """DepthToSpace and SpaceToDepth."""
    block, probes, shape = int(call.attributes["blocksize"]), len(call.gradient), call.value(0).shape
    samples, channels, height, width = shape
    if call.operation.kind == "SpaceToDepth":
        split, order = (block, block, channels, height // block, width // block), (0, 1, 4, 5, 2, 6, 3)
    else:
        split, order = (channels // block**2, height, block, width, block), (0, 1, 4, 6, 2, 3, 5)
        if call.attributes.get("mode", "DCR") == "CRD":
            order = (0, 1, 2, 4, 6, 3, 5)
    return [call.gradient.reshape(probes, samples, *split).transpose(order).reshape(probes, *shape)]


# ---- Put together, and taken apart ----------------------------------------------------------------------------------


def _concatenation(call: Call) -> Gradients:
    axis = int(call.attributes.get("axis", 1)) % (call.gradient.ndim - 1) + 1
    ends = np.cumsum([call.value(place).shape[axis - 1] for place in range(len(call.inputs))])
    return list(np.split(call.gradient, ends[:-1], axis=axis))


def _split(call: Call) -> Gradients:
    """Without a word about the parts' lengths all are equal, but the last may be shorter."""
    shape, parts = call.value(0).shape, len(call.gradients)
    axis = call.axis(len(shape))
    lengths = call.integers(1, "split") or [math.ceil(shape[axis] / parts)] * parts
    probes = next(len(gradient) for gradient in call.gradients if gradient is not None)
    total = np.zeros((probes, *shape), np.float32)
    for gradient, part in zip(call.gradients, np.split(total, np.cumsum(lengths)[:-1], axis + 1), strict=True):
        if gradient is not None:
            part[...] = gradient
    return [total]


# ---- Taken from places ----------------------------------------------------------------------------------------------


def _slice(call: Call) -> Gradients:
    shape = call.value(0).shape
    starts, ends = call.integers(1, "starts"), call.integers(2, "ends")
    if starts is None or ends is None:
        raise NoRuleError("Slice without starts or ends")
    axes = call.integers(3, "axes") or range(len(starts))
    steps = call.integers(4, "steps") or [1] * len(starts)
    taken = [_EVERYTHING] * (len(shape) + 1)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 0:  # unlike in Python, a start before the first element is the first
            start = max(start, -shape[axis])
        taken[axis % len(shape) + 1] = slice(start, end, step)
    found = np.zeros((len(call.gradient), *shape), np.float32)
    found[tuple(taken)] = call.gradient
    return [found]


def _gather(call: Call) -> Gradients:
    shape = call.value(0).shape
    axis = call.axis(len(shape))
    places = _indices(call).ravel() % shape[axis]
    before, after = len(call.gradient) * math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    taken = call.gradient.reshape(before, len(places), after)
    return [_scattered(taken, places, shape[axis]).reshape(len(call.gradient), *shape)]


def _gather_elements(call: Call) -> Gradients:
    x, indices = call.value(0), _indices(call)
    axis = call.axis(x.ndim)
    part = tuple(_EVERYTHING if i == axis else slice(length) for i, length in enumerate(indices.shape))
    return _back_to(np.take_along_axis(_numbers(x.shape)[part], indices % x.shape[axis], axis), x.size, call)


def _gather_tuples(call: Call) -> Gradients:
    indices = _indices(call)
    common = int(call.attributes.get("batch_dims", 0))
    batches = np.ix_(*map(np.arange, indices.shape[:-1]))[:common]
    numbers = _numbers(call.value(0).shape[: common + indices.shape[-1]])  # of what lies at a tuple of indices
    return _back_to(numbers[(*batches, *np.moveaxis(indices, -1, 0))], numbers.size, call)


def _top(call: Call) -> Gradients:
    """Among equals the first are taken, as onnxruntime does."""
    x = call.value(0)
    axis = call.axis(x.ndim, -1)
    count = call.gradient.shape[axis + 1]
    if not call.attributes.get("sorted", 1) and count > 1:
        raise NoRuleError("TopK in no order")
    order = np.argsort(-x if call.attributes.get("largest", 1) else x, axis=axis, kind="stable")
    return _back_to(np.take_along_axis(_numbers(x.shape), order.take(range(count), axis), axis), x.size, call)


def _indices(call: Call) -> Places:
    return call.value(1).astype(np.intp, copy=False)


def _numbers(shape: tuple[int, ...]) -> Places:
    """Elements of a tensor counted through: what an operation makes of them says where its output is from."""
    return np.arange(math.prod(shape)).reshape(shape)


def _back_to(places: Places, length: int, call: Call) -> Gradients:
    """The gradient of the first input, of `length` elements or slices, from the places of what was taken from it."""
    probes = len(call.gradient)
    taken = call.gradient.reshape(probes, places.size, -1)
    if taken.shape[2] == 1:  # with probes side by side, what is added is a row
        found = _scattered(taken.T, places.ravel(), length).T
    else:
        found = _scattered(taken, places.ravel(), length)
    return [found.reshape(probes, *call.value(0).shape)]


def _scattered(gradient: Floats, places: Places, length: int) -> Floats:
    """Zeros [before, length, after] to which [before, places, after] is added at `places`; they may come repeatedly."""
    before, count, after = gradient.shape
    found = np.zeros((before, length, after), np.float32)
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    if len(first) == count:
        found[:, places] = gradient
    else:
        found[:, ordered[first]] = np.add.reduceat(gradient[:, order], first, axis=1)
    return found


# ---- Pad ------------------------------------------------------------------------------------------------------------


def _pad(call: Call) -> Gradients:
    gradient, shape = call.gradient, call.value(0).shape
    mode, given = call.attributes.get("mode", "constant"), call.integers(1, "pads") or call.integers(1, "paddings")
    if given is None:
        raise NoRuleError("Pad without pads")
    pads = [(0, 0)] * len(shape)
    half = len(given) // 2
    for axis, *pair in zip(call.integers(3, "axes") or range(len(shape)), given[:half], given[half:], strict=True):
        pads[axis] = pair[0], pair[1]
    if mode != "constant":  # what is padded with elements from inside goes back to them, one axis after the other
        if min(given) < 0:
            raise NoRuleError(f"Pad of mode {mode} with a negative pad")
        for axis, (pad, length) in enumerate(zip(pads, shape, strict=True)):
            if pad != (0, 0):
                places = np.pad(np.arange(length), pad, mode)[None]
                gradient = mapped_back(gradient, axis + 1, places, np.ones(places.shape), length)
        return [gradient]
    found = inner = gradient[_inside(pads, gradient.shape[1:])]
    if inner.shape[1:] != shape:  # negative pads take away
        found = np.zeros((len(gradient), *shape), np.float32)
        found[_inside([(-before, -after) for before, after in pads], shape)] = inner
    if not call.wants(2):
        return [found]
    axes = tuple(range(1, gradient.ndim))
    outside: Floats = gradient.sum(axis=axes) - inner.sum(axis=axes)
    return [found, None, outside.reshape(len(gradient), *call.value(2).shape)]


def _inside(pads: list[tuple[int, int]], shape: tuple[int, ...]) -> tuple[slice, ...]:
    inner = [slice(max(before, 0), length - max(after, 0)) for (before, after), length in zip(pads, shape, strict=True)]
    return (_EVERYTHING, *inner)


RULES: dict[str, Rule] = {
    **dict.fromkeys(["Reshape", "Flatten", "Squeeze", "Unsqueeze"], _reshape),
    "Transpose": _transpose,
    "Expand": lambda call: [unbroadcast(call.gradient, call.value(0).shape)],
    "Tile": _tile,
    "DepthToSpace": _blocks,
    "SpaceToDepth": _blocks,
    "Concat": _concatenation,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_tuples,
    "TopK": _top,
    "Pad": _pad,
}
