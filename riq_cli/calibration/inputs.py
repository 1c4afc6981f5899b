"""Samples, and how data and a model's inputs are held against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from riq_cli.errors import CalibrationError
from riq_cli.model import ModelInput

Warn = Callable[[str], None]  # told what the user should know

_MOST_AXES = 6  # of which all orders are tried

Feed = dict[str, NDArray[Any]]  # input name → array, what one run of the model takes


class Sample(NamedTuple):
    """One run of the model: its feed, and how many rows (samples of the batch) it holds."""

    feed: Feed
    rows: int = 1


def check_names(arrays: Mapping[str, Any], inputs: Sequence[ModelInput]) -> None:
    """Nothing if data and inputs have the same names; both sides and what to do in the error if not."""
    wanted, given = {item.name for item in inputs}, set(arrays)
    if wanted == given:
        return
    if wanted < given:
        advice = f"leave out {listed(given - wanted)}"
    elif given < wanted:
        advice = f"add {listed(wanted - given)}"
    else:
        advice = "name the arrays after the inputs"
    inputs_are = ", ".join(describe(item) for item in inputs)
    raise CalibrationError(
        f"the data has {listed(given)}; "
        + (f"the model's inputs are {inputs_are}; {advice}" if inputs else "the model has no inputs; leave it out")
    )


def as_taken(array: NDArray[Any], item: ModelInput, warn: Warn) -> NDArray[Any]:
    """The array in the type that sessions take for the input.

    Floats are rounded to it, integers of another width are converted if all of them fit. What stands for a picture or
    for a number is not told by the type: integers are no floats.

    Raises:
        CalibrationError: another kind of type, or values that do not fit.
    """
    given, wanted = array.dtype, item.fed
    if given.name == wanted or (wanted == "object" and given.kind in "US"):
        return array
    floats = wanted.startswith("float") and (given.kind == "f" or given.name == "bfloat16")
    integers = wanted.startswith(("int", "uint")) and given.kind in "biu"
    if not (floats or integers):
        raise CalibrationError(
            f"input {item.name!r}: the data is {given.name}, the model takes {item.dtype}; "
            f"convert it with .astype('{wanted}')"
        )
    with np.errstate(over="ignore"):
        result = array.astype(wanted)
    if not (_is_finite_where(result, array) if floats else _holds(wanted, array)):
        raise CalibrationError(f"input {item.name!r}: values of the {given.name} data are beyond {wanted}")
    if wanted == item.dtype:
        warn(f"input {item.name!r}: the data is {given.name} and is taken as {wanted}")
    return result


def _is_finite_where(result: NDArray[Any], array: NDArray[Any]) -> bool:
    return bool(np.all(np.isfinite(result) | ~np.isfinite(array)))


def _holds(wanted: str, array: NDArray[Any]) -> bool:
    """Whether an integer type can hold all values of an array."""
    bounds = np.iinfo(wanted)
    return not array.size or (bounds.min <= int(array.min()) and int(array.max()) <= bounds.max)


def fits(shape: Sequence[int], item: ModelInput) -> bool:
    """Whether an array of a shape can be fed to an input as it is."""
    return item.shape is None or (
        len(shape) == len(item.shape)
        and all(not isinstance(dim, int) or dim == size for dim, size in zip(item.shape, shape, strict=True))
    )


def shape_error(shape: Sequence[int], item: ModelInput, would_fit: Callable[[Sequence[int]], bool]) -> CalibrationError:
    """The error of an array of a shape that does not fit an input, and the order of axes, if any, that `would_fit`."""
    what = f"input {item.name!r}: the data has shape {list(shape)}, the model takes {describe(item)}"
    if len(shape) <= _MOST_AXES:
        for order in permutations(range(len(shape))):
            if would_fit([shape[axis] for axis in order]):
                return CalibrationError(f"{what}; it fits after .transpose{order}")
    return CalibrationError(f"{what}, samples along its batch axis, or along one axis more in front")


def describe(item: ModelInput) -> str:
    """An input as messages show it: `image float32[batch, 3, 224, 224]`."""
    if item.shape is None:
        return f"{item.name} {item.dtype} of any shape"
    return f"{item.name} {item.dtype}[{', '.join('?' if d is None else str(d) for d in item.shape)}]"


def listed(names: Iterable[str]) -> str:
    """Names, sorted, for a message."""
    return ", ".join(sorted(names)) or "no arrays"


def sizes(item: ModelInput, dims: Mapping[str, int]) -> tuple[int, ...]:
    """The input's shape with every free dimension given a size: the first is the batch of 1, others by `dims`.

    Raises:
        CalibrationError: a dimension, or the whole shape, is not known.
    """
    if item.shape is None:
        raise CalibrationError(f"input {describe(item)}: nothing can be made up for it; give real data as .npz or .npy")
    sizes = []
    for axis, dim in enumerate(item.shape):
        name = _dimension_name(item, axis)
        if isinstance(dim, int):
            sizes.append(dim)
        elif name in dims:
            sizes.append(dims[name])
        elif axis == 0 or "batch" in name.lower():
            sizes.append(1)
        else:
            raise CalibrationError(
                f"input {describe(item)}: dimension {name!r} is free and has no size; give it with --dim {name}=N, "
                "or real data with --calibration"
            )
    return tuple(sizes)


def unknown_dimensions(dims: Iterable[str], inputs: Sequence[ModelInput]) -> list[str]:
    """Those of the names that no dimension of the inputs has."""
    known = {_dimension_name(item, axis) for item in inputs for axis in range(len(item.shape or ()))}
    return [name for name in dims if name not in known]


def _dimension_name(item: ModelInput, axis: int) -> str:
    """What a dimension is called, such as `height`; `image.2` where the model has no name for it."""
    dim = (item.shape or ())[axis]
    return dim if isinstance(dim, str) else f"{item.name}.{axis}"
