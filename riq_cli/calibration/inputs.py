"""Samples, and how data and a model's inputs are held against each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from riq_cli.errors import CalibrationError
from riq_cli.model import ModelInput

Feed = dict[str, NDArray[Any]]  # input name → array, what one run of the model takes


class Sample(NamedTuple):
    """One run of the model: its feed, and how many rows (samples of the batch) it holds."""

    feed: Feed
    rows: int = 1


def check_names(arrays: Mapping[str, Any], inputs: Sequence[ModelInput]) -> None:
    """Nothing if data and inputs have the same names; both sides in the error if not."""
    wanted, given = {item.name for item in inputs}, set(arrays)
    if wanted != given:
        raise CalibrationError(
            f"the calibration data has {listed(given)}; the model's inputs are "
            + ", ".join(describe(item) for item in inputs)
        )


def check_dtype(array: NDArray[Any], item: ModelInput) -> None:
    """Nothing if the array has the type of the input; both sides in the error if not."""
    if array.dtype.name != item.dtype and not (item.dtype == "object" and array.dtype.kind in "US"):
        raise CalibrationError(
            f"input {item.name!r}: the calibration data is {array.dtype.name}, the model takes {item.dtype}; "
            f"convert it with .astype('{item.dtype}')"
        )


def fits(shape: Sequence[int], item: ModelInput) -> bool:
    """Whether an array of a shape can be fed to an input as it is."""
    return item.shape is None or (
        len(shape) == len(item.shape)
        and all(not isinstance(dim, int) or dim == size for dim, size in zip(item.shape, shape, strict=True))
    )


def shape_error(array: NDArray[Any], item: ModelInput) -> CalibrationError:
    """The error of an array that does not fit an input; both sides in it."""
    return CalibrationError(
        f"input {item.name!r}: the calibration data has shape {list(array.shape)}, the model takes {describe(item)}, "
        "samples along its batch axis, or along one axis more in front"
    )


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
        name = dim if isinstance(dim, str) else f"{item.name}.{axis}"
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
