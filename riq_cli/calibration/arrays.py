"""Files of NumPy arrays, and arrays cut into samples along the batch axis."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from riq_cli.calibration.inputs import Sample, Warn, as_taken, check_names, describe, fits, listed, shape_error
from riq_cli.errors import CalibrationError
from riq_cli.kinds import HEAD, instead
from riq_cli.model import ModelInput
from riq_cli.text import first_line

_UNNAMED = "arr_0"  # as np.savez(file, array) calls it
_OBJECTS = "holds Python objects, which are not read; store numbers, or text as numpy's strings"


def read_numpy(path: Path, without: str | None = None) -> Mapping[str, NDArray[Any]] | NDArray[Any]:
    """The array of an .npy file, or those of an .npz file by name, each read when it is asked for; one may be left out.

    Raises:
        CalibrationError: no such file, or it is damaged or holds something else; or, later, an array does.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            with loaded:
                return _Arrays(path, [name for name in loaded.files if name != without])
    except FileNotFoundError as error:
        raise CalibrationError(f"{path}: no such file") from error
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # what numpy, zipfile and zlib make of other bytes has no other base
        why = _OBJECTS if _holds_objects(error) else instead("a file of NumPy arrays", head)
        raise CalibrationError(f"{path}: {why}") from error


def write_npz(file: BinaryIO, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write what `numpy.load` reads, whatever the names are: `numpy.savez` has parameters of its own among them."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


class _Arrays(Mapping[str, NDArray[Any]]):
    """The arrays of an .npz file: what nobody asks for is not inflated."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._path, self._names = path, tuple(names)

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        try:
            with np.load(self._path, allow_pickle=False) as file:
                array = file[name]
        except MemoryError:
            raise
        except Exception as error:  # as above
            why = _OBJECTS if _holds_objects(error) else f"is damaged: {first_line(error)}"
            raise CalibrationError(f"{self._path}: array {name!r} {why}") from error
        if not isinstance(array, np.ndarray):
            raise CalibrationError(f"{self._path}: {name!r} is not an array")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _holds_objects(error: Exception) -> bool:
    return isinstance(error, ValueError) and "allow_pickle" in str(error) and "Object arrays" in str(error)


def load_labels(source: str, calibration: str) -> tuple[NDArray[Any], str | None]:
    """Labels, and their key among the calibration data if they lie there beside the inputs.

    Args:
        source: an `.npy` file, an `.npz` file with one array, `file.npz:key`, or a key of the calibration data.
        calibration: where these are.

    Raises:
        CalibrationError: there is nothing of that kind.
    """
    file, colon, key = source.rpartition(":")
    if not colon or not Path(file).exists():
        file, key = source, ""
    if not Path(file).exists() and Path(calibration).suffix == ".npz" and Path(file).suffix not in (".npy", ".npz"):
        file, key = calibration, source
    arrays = read_numpy(Path(file))
    if not isinstance(arrays, Mapping):
        return arrays, None
    if not key and len(arrays) == 1:
        key = next(iter(arrays))
    if key not in arrays:
        lacks = f"has no array {key!r}" if key else "holds several arrays"
        raise CalibrationError(f"{file}: {lacks}; name labels as FILE.npz:KEY, with one of {listed(arrays)}")
    beside = Path(file).resolve() == Path(calibration).resolve()
    return arrays[key], key if beside else None


def cut(
    arrays: Mapping[str, NDArray[Any]] | NDArray[Any], inputs: Sequence[ModelInput], batch: int, warn: Warn
) -> list[Sample]:
    """Samples cut from the arrays, by input, along the batch axis; `batch` of them in one run where it is free."""
    if not isinstance(arrays, Mapping):
        if len(inputs) != 1:
            raise CalibrationError(
                f"an .npy file holds one array, the model has {len(inputs)} inputs: "
                f"{listed(i.name for i in inputs)}; use an .npz file"
            )
        arrays = {inputs[0].name: arrays}
    if list(arrays) == [_UNNAMED] and len(inputs) == 1 and inputs[0].name != _UNNAMED:
        warn(f"the only array of the data has no name and is taken for the only input, {inputs[0].name!r}")
        arrays = {inputs[0].name: arrays[_UNNAMED]}
    check_names(arrays, inputs)
    symbol = _batch_symbol(inputs)
    parts = {}
    for item in inputs:
        array = as_taken(arrays[item.name], item, warn)
        parts[item.name] = array, _divided(array.shape, item, symbol)
    counts = {name: rows.count for name, (_, rows) in parts.items() if rows.count != 1}
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise CalibrationError(f"the arrays hold different numbers of samples ({each})")
    total = max(counts.values(), default=1)
    cutting = [rows for _, rows in parts.values() if rows.count > 1]
    step = batch if all(rows.batchable for rows in cutting) else 1
    size = cutting[0].rows if cutting and len({rows.rows for rows in cutting}) == 1 else 1
    samples = []
    for begin in range(0, total, step):
        end = min(begin + step, total)
        feed = {name: rows.take(array, begin, end) for name, (array, rows) in parts.items()}
        samples.append(Sample(feed, (end - begin) * size))
    return samples


class _Rows:
    """How an input's array falls apart into samples."""

    def __init__(self, shape: Sequence[int], item: ModelInput, symbol: str | None) -> None:
        """Divide an array of a shape, which need not fit."""
        self.axis: int | None = None  # the axis that is cut; None: one sample that stands for all
        self.batchable = False  # several samples may be fed at once
        self.rows = 1  # rows along the batch axis in one sample
        self.count = 1
        self.rest = 0  # rows that fill no sample
        self.stacked = item.shape is not None and len(shape) == len(item.shape) + 1
        sample = list(shape)  # the shape of one
        if self.stacked:
            self.axis, self.count = 0, sample.pop(0)
        elif item.shape and len(shape) == len(item.shape):
            axis = _batch_axis(item.shape, symbol)
            dim = item.shape[axis]
            if dim != 0:
                self.axis = axis
                self.batchable = not isinstance(dim, int)
                self.rows = dim if isinstance(dim, int) else 1
                self.count, self.rest = divmod(sample[axis], self.rows)
                sample[axis] = self.rows
        self.fits = fits(sample, item)

    def take(self, array: NDArray[Any], begin: int, end: int) -> NDArray[Any]:
        """The feed for samples begin … end − 1."""
        if self.axis is None:
            return array
        if self.count == 1 and self.batchable:
            return np.repeat(array, end - begin, self.axis)
        if self.count == 1:
            begin, end = 0, 1
        if self.stacked:
            return np.asarray(array[begin], order="C")
        index = [slice(None)] * array.ndim
        index[self.axis] = slice(begin * self.rows, end * self.rows)
        return np.asarray(array[tuple(index)], order="C")


def _divided(shape: Sequence[int], item: ModelInput, symbol: str | None) -> _Rows:
    """How an array of a shape falls apart into samples, without a rest.

    Raises:
        CalibrationError: it does not, or holds none.
    """
    rows = _Rows(shape, item, symbol)
    if not rows.fits:
        raise shape_error(shape, item, lambda other: (made := _Rows(other, item, symbol)).fits and not made.rest)
    if rows.rest:
        raise CalibrationError(
            f"the model takes batches of {rows.rows} ({describe(item)}); {rows.count * rows.rows + rows.rest} rows of "
            f"calibration data leave {rows.rest} over: leave them out, or add {rows.rows - rows.rest}"
        )
    if rows.count < 1:
        raise CalibrationError(f"input {item.name!r}: the array of shape {list(shape)} holds no samples")
    return rows


def _batch_symbol(inputs: Sequence[ModelInput]) -> str | None:
    """Name of the free dimension that counts the batch: one with "batch" in it, else the first that leads an input."""
    names = [dim for item in inputs for dim in item.shape or () if isinstance(dim, str) and "batch" in dim.lower()]
    names += [item.shape[0] for item in inputs if item.shape and isinstance(item.shape[0], str)]
    return names[0] if names else None


def _batch_axis(shape: tuple[int | str | None, ...], symbol: str | None) -> int:
    """The axis along which an input's samples lie: the batch's own name, else the first, else the first free one."""
    if symbol is not None and symbol in shape:
        return shape.index(symbol)
    if not isinstance(shape[0], int) or shape[0] == 1:
        return 0
    free = [axis for axis, dim in enumerate(shape) if not isinstance(dim, int)]
    return free[0] if free else 0
