"""Arrays cut into samples along the batch axis."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.calibration.inputs import Sample, check_dtype, check_names, listed, shape_error
from riq_cli.errors import CalibrationError
from riq_cli.model import ModelInput


def read_numpy(path: Path) -> Mapping[str, NDArray[Any]] | NDArray[Any]:
    """The array of an .npy file, or the arrays of an .npz file by name."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError as error:
        raise CalibrationError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CalibrationError(f"{path}: cannot be read as numpy data: {error}") from error


def cut(arrays: Mapping[str, NDArray[Any]] | NDArray[Any], inputs: Sequence[ModelInput], batch: int) -> list[Sample]:
    """Samples cut from the arrays, by input, along the batch axis; `batch` of them in one run where it is free."""
    if not isinstance(arrays, Mapping):
        if len(inputs) != 1:
            raise CalibrationError(
                f"an .npy file holds one array, the model has {len(inputs)} inputs: "
                f"{listed(i.name for i in inputs)}; use an .npz file"
            )
        arrays = {inputs[0].name: arrays}
    check_names(arrays, inputs)
    symbol = _batch_symbol(inputs)
    parts = {}
    for item in inputs:
        array = arrays[item.name]
        check_dtype(array, item)
        parts[item.name] = _Rows(array, item, symbol)
    counts = {name: rows.count for name, rows in parts.items() if rows.count != 1}
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise CalibrationError(f"the arrays hold different numbers of samples ({each})")
    total = max(counts.values(), default=1)
    cutting = [rows for rows in parts.values() if rows.count > 1]
    step = batch if all(rows.batchable for rows in cutting) else 1
    size = cutting[0].rows if cutting and len({rows.rows for rows in cutting}) == 1 else 1
    samples = []
    for begin in range(0, total, step):
        end = min(begin + step, total)
        feed = {name: rows.take(begin, end) for name, rows in parts.items()}
        samples.append(Sample(feed, (end - begin) * size))
    return samples


class _Rows:
    """An input's array, and how it falls apart into samples."""

    def __init__(self, array: NDArray[Any], item: ModelInput, symbol: str | None) -> None:
        self._array = array
        self.axis: int | None = None  # the axis that is cut; None: one sample that stands for all
        self.batchable = False  # several samples may be fed at once
        self.rows = 1  # rows along the batch axis in one sample
        if array.ndim == len(item.shape) + 1:
            self._stacked = True
            self.axis, self.count = 0, array.shape[0]
            expected: tuple[int, ...] = array.shape[1:]
        elif array.ndim == len(item.shape):
            self._stacked = False
            self.axis = _batch_axis(item, symbol) if array.ndim else None
            expected = array.shape
            if self.axis is None:
                self.count = 1
            else:
                fixed = item.shape[self.axis]
                self.batchable = not isinstance(fixed, int)
                self.rows = fixed if isinstance(fixed, int) else 1
                self.count, rest = divmod(array.shape[self.axis], self.rows)
                if rest:
                    raise shape_error(array, item)
                expected = tuple(self.rows if a == self.axis else n for a, n in enumerate(array.shape))
        else:
            raise shape_error(array, item)
        if any(isinstance(dim, int) and dim != size for dim, size in zip(item.shape, expected, strict=True)):
            raise shape_error(array, item)
        if self.count < 1:
            raise CalibrationError(f"input {item.name!r}: the array of shape {list(array.shape)} holds no samples")

    def take(self, begin: int, end: int) -> NDArray[Any]:
        """The feed for samples begin … end − 1."""
        if self.axis is None:
            return self._array
        if self.count == 1:
            begin, end = 0, 1
        if self._stacked:
            return np.ascontiguousarray(self._array[begin])
        index = [slice(None)] * self._array.ndim
        index[self.axis] = slice(begin * self.rows, end * self.rows)
        return np.ascontiguousarray(self._array[tuple(index)])


def _batch_symbol(inputs: Sequence[ModelInput]) -> str | None:
    """Name of the free dimension that counts the batch: the one that comes first in an input."""
    for item in inputs:
        if item.shape and isinstance(item.shape[0], str):
            return item.shape[0]
    return None


def _batch_axis(item: ModelInput, symbol: str | None) -> int | None:
    """The axis along which an input's samples lie: the batch's own name, else the first, else the first free one."""
    if symbol is not None and symbol in item.shape:
        return item.shape.index(symbol)
    if not isinstance(item.shape[0], int) or item.shape[0] == 1:
        return 0
    free = [axis for axis, dim in enumerate(item.shape) if not isinstance(dim, int)]
    return free[0] if free else 0
