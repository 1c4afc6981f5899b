"""Calibration data: from files, folders and callables to samples that fit a model's inputs."""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from riq_cli.errors import CalibrationError
from riq_cli.model import ModelInput, read_tensor_file

Feed = dict[str, NDArray[Any]]  # input name → array, what one run of the model takes

IMAGE_SUFFIXES = frozenset(".png .jpg .jpeg .bmp .webp .gif .tif .tiff .ppm .pgm".split())
RANDOM_SAMPLES = 4


class Sample(NamedTuple):
    """One run of the model: its feed, and how many rows (samples of the batch) it holds."""

    feed: Feed
    rows: int = 1


@dataclass(frozen=True)
class ImageOptions:
    """How an image file becomes an input: (pixel · scale − mean) / std, per channel, in the model's layout.

    `scale` multiplies pixels of 0…255; `mean` and `std` are in the units that result.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    layout: Literal["nchw", "nhwc"] = "nchw"
    channel_order: Literal["rgb", "bgr"] = "rgb"


@dataclass(frozen=True)
class Calibration:
    """Calibration data that still has to be fitted to a model's inputs, by `samples`.

    `kind` says where it came from (`npz`, `npy`, `test-data`, `images`, `python`, `random`); `fit` makes the feeds.
    """

    kind: str
    fit: Callable[[Sequence[ModelInput], Mapping[str, int], int], list[Sample]] = field(repr=False)

    @classmethod
    def load(cls, source: str | os.PathLike[str], images: ImageOptions | None = None) -> Calibration:
        """The calibration data in a file or folder, or from `module:callable`.

        Args:
            source: `.npz` (input name → array), `.npy` (for a model with one input), a folder of ONNX test data
                (`test_data_set_*/input_*.pb`), a folder of images, or `module:callable`.
            images: how images become inputs.

        Raises:
            CalibrationError: it cannot be read or is none of these.
        """
        text, path = os.fspath(source), Path(source)
        if path.is_dir():
            return _from_folder(path, images or ImageOptions())
        if path.suffix in (".npz", ".npy"):
            return cls.from_arrays(_read_numpy(path), "npz" if path.suffix == ".npz" else "npy")
        module, colon, name = text.partition(":")
        if colon and not path.exists():
            return cls("python", lambda inputs, dims, batch: _whole_feeds(_call(module, name), inputs))
        if not path.exists():
            raise CalibrationError(f"{path}: no such file or folder")
        raise CalibrationError(
            f"{path}: not calibration data: give an .npz or .npy file, a folder of images or tests, module:callable"
        )

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]] | NDArray[Any], kind: Literal["npz", "npy"] = "npz"
    ) -> Calibration:
        """Calibration data in memory: input name → array, or one array for a model with one input.

        An array with as many axes as the input is cut along the batch axis; with one axis more, each row is a whole
        input; an array of one sample stands for all.
        """
        return cls(kind, lambda inputs, dims, batch: _cut(arrays, inputs, batch))

    @classmethod
    def from_feeds(cls, feeds: Iterable[Mapping[str, NDArray[Any]]]) -> Calibration:
        """Calibration data as whole feeds, each what one run of the model takes."""
        kept = [dict(feed) for feed in feeds]
        return cls("python", lambda inputs, dims, batch: _whole_feeds(kept, inputs))

    @classmethod
    def random(cls, seed: int = 0, samples: int = RANDOM_SAMPLES) -> Calibration:
        """Seeded random samples fitted to every input: the paper's Fig. 1a shows that they predict poorly."""
        return cls("random", lambda inputs, dims, batch: _random(inputs, dims, seed, samples))

    def samples(
        self, inputs: Sequence[ModelInput], dims: Mapping[str, int] | None = None, batch: int = 1
    ) -> list[Sample]:
        """What to run the model on, at least one sample.

        Args:
            inputs: the model's inputs.
            dims: sizes of free dimensions, by name; only random data and images need them.
            batch: samples in one run, where the batch axis is free.

        Raises:
            CalibrationError: names, shapes or types do not fit the inputs, or a free dimension has no size.
        """
        samples = self.fit(inputs, dims or {}, batch)
        if not samples:
            raise CalibrationError("the calibration data holds no samples")
        return samples


def digest(samples: Iterable[Sample]) -> str:
    """SHA-256 of samples: names, types, shapes and values, in order."""
    result = hashlib.sha256()
    for sample in samples:
        for name, array in sorted(sample.feed.items()):
            result.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
            result.update(np.ascontiguousarray(array).tobytes())
    return result.hexdigest()


# ---- arrays ---------------------------------------------------------------------------------------------------------


def _read_numpy(path: Path) -> Mapping[str, NDArray[Any]] | NDArray[Any]:
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


def _cut(arrays: Mapping[str, NDArray[Any]] | NDArray[Any], inputs: Sequence[ModelInput], batch: int) -> list[Sample]:
    if not isinstance(arrays, Mapping):
        if len(inputs) != 1:
            raise CalibrationError(
                f"an .npy file holds one array, the model has {len(inputs)} inputs: "
                f"{_names(i.name for i in inputs)}; use an .npz file"
            )
        arrays = {inputs[0].name: arrays}
    _check_names(arrays, inputs)
    symbol = _batch_symbol(inputs)
    parts = {}
    for item in inputs:
        array = arrays[item.name]
        _check_dtype(array, item)
        parts[item.name] = _Rows(array, item, symbol)
    counts = {name: rows.count for name, rows in parts.items() if rows.count != 1}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise CalibrationError(f"the arrays hold different numbers of samples ({listed})")
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
                    raise _shape_error(array, item)
                expected = tuple(self.rows if a == self.axis else n for a, n in enumerate(array.shape))
        else:
            raise _shape_error(array, item)
        if any(isinstance(dim, int) and dim != size for dim, size in zip(item.shape, expected, strict=True)):
            raise _shape_error(array, item)
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


def _check_names(arrays: Mapping[str, Any], inputs: Sequence[ModelInput]) -> None:
    wanted, given = {item.name for item in inputs}, set(arrays)
    if wanted != given:
        raise CalibrationError(
            f"the calibration data has {_names(given)}; the model's inputs are "
            + ", ".join(_describe(item) for item in inputs)
        )


def _check_dtype(array: NDArray[Any], item: ModelInput) -> None:
    if array.dtype.name != item.dtype and not (item.dtype == "object" and array.dtype.kind in "US"):
        raise CalibrationError(
            f"input {item.name!r}: the calibration data is {array.dtype.name}, the model takes {item.dtype}; "
            f"convert it with .astype('{item.dtype}')"
        )


def _shape_error(array: NDArray[Any], item: ModelInput) -> CalibrationError:
    return CalibrationError(
        f"input {item.name!r}: the calibration data has shape {list(array.shape)}, the model takes {_describe(item)}, "
        "samples along its batch axis, or along one axis more in front"
    )


def _describe(item: ModelInput) -> str:
    return f"{item.name} {item.dtype}[{', '.join('?' if d is None else str(d) for d in item.shape)}]"


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "no arrays"


# ---- whole feeds ----------------------------------------------------------------------------------------------------


def _whole_feeds(feeds: Iterable[Mapping[str, NDArray[Any]]], inputs: Sequence[ModelInput]) -> list[Sample]:
    samples = []
    for feed in feeds:
        _check_names(feed, inputs)
        for item in inputs:
            array = np.asarray(feed[item.name])
            _check_dtype(array, item)
            fits = array.ndim == len(item.shape) and all(
                not isinstance(dim, int) or dim == size for dim, size in zip(item.shape, array.shape, strict=True)
            )
            if not fits:
                raise _shape_error(array, item)
        samples.append(Sample({name: np.asarray(array) for name, array in feed.items()}))
    return samples


def _call(module: str, name: str) -> Iterable[Mapping[str, NDArray[Any]]]:
    """The feeds from `module:callable`: an iterable, or an onnxruntime CalibrationDataReader."""
    sys.path.insert(0, os.getcwd())
    try:
        source = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise CalibrationError(f"{module}:{name}: the module cannot be imported: {error}") from error
    except AttributeError as error:
        raise CalibrationError(f"{module}:{name}: the module has no {name!r}") from error
    finally:
        sys.path.pop(0)
    try:
        result = source() if callable(source) else source
        reader = getattr(result, "get_next", None)
        return list(iter(reader, None)) if reader is not None else list(result)
    except Exception as error:
        raise CalibrationError(f"{module}:{name}: {type(error).__name__}: {error}") from error


# ---- folders --------------------------------------------------------------------------------------------------------


def _from_folder(path: Path, options: ImageOptions) -> Calibration:
    sets = sorted(folder for folder in path.glob("test_data_set_*") if folder.is_dir())
    if not sets and any(path.glob("input_*.pb")):
        sets = [path]
    if sets:
        return Calibration("test-data", lambda inputs, dims, batch: _test_data(sets, inputs))
    images = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise CalibrationError(f"{path}: holds neither images nor ONNX test data (test_data_set_*/input_*.pb)")
    return Calibration("images", lambda inputs, dims, batch: _images(images, inputs, dims, options))


def _test_data(sets: Sequence[Path], inputs: Sequence[ModelInput]) -> list[Sample]:
    feeds = []
    for folder in sets:
        files = sorted(folder.glob("input_*.pb"), key=lambda file: int(file.stem.rpartition("_")[2]))
        tensors = [read_tensor_file(file) for file in files]
        if len(tensors) != len(inputs):
            raise CalibrationError(f"{folder}: holds {len(tensors)} inputs, the model has {len(inputs)}")
        named = {name for name, _ in tensors} == {item.name for item in inputs}
        feeds.append({name if named else item.name: array for (name, array), item in zip(tensors, inputs, strict=True)})
    return _whole_feeds(feeds, inputs)


def _images(
    files: Sequence[Path], inputs: Sequence[ModelInput], dims: Mapping[str, int], options: ImageOptions
) -> list[Sample]:
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise CalibrationError(
            "a folder of images fits a model with one input of four axes; this one takes "
            + ", ".join(_describe(item) for item in inputs)
        )
    item = inputs[0]
    shape = _sizes(item, dims)
    channels, height, width = shape[1:] if options.layout == "nchw" else (shape[3], shape[1], shape[2])
    if channels not in (1, 3):
        raise CalibrationError(
            f"input {_describe(item)}: {channels} channels in layout {options.layout}; is it --layout "
            f"{'nhwc' if options.layout == 'nchw' else 'nchw'}?"
        )
    rows = shape[0]
    arrays = [_image(file, channels, height, width, item.dtype, options) for file in files]
    batches = [arrays[i : i + rows] for i in range(0, len(arrays) - rows + 1, rows)]
    return [Sample({item.name: np.stack(batch)}, rows) for batch in batches]


def _image(file: Path, channels: int, height: int, width: int, dtype: str, options: ImageOptions) -> NDArray[Any]:
    try:
        from PIL import Image
    except ImportError as error:
        raise CalibrationError("images need Pillow: pip install 'riq[images]'") from error
    try:
        with Image.open(file) as image:
            resized = image.convert("RGB" if channels == 3 else "L").resize((width, height), Image.Resampling.BILINEAR)
    except OSError as error:
        raise CalibrationError(f"{file}: cannot be read as an image: {error}") from error
    pixels = np.asarray(resized).reshape(height, width, channels)
    if options.channel_order == "bgr":
        pixels = pixels[..., ::-1]
    if np.dtype(dtype).kind == "f":
        for name, values in (("--mean", options.mean), ("--std", options.std)):
            if len(values) not in (1, channels):
                raise CalibrationError(f"{name}: {len(values)} values for {channels} channels")
        pixels = (pixels * options.scale - np.array(options.mean)) / np.array(options.std)
    return (pixels.transpose(2, 0, 1) if options.layout == "nchw" else pixels).astype(dtype)


# ---- random data ----------------------------------------------------------------------------------------------------


def _random(inputs: Sequence[ModelInput], dims: Mapping[str, int], seed: int, count: int) -> list[Sample]:
    generator = np.random.default_rng(seed)
    shapes = {item.name: _sizes(item, dims) for item in inputs}
    return [
        Sample({item.name: _random_array(item, shapes[item.name], generator) for item in inputs}) for _ in range(count)
    ]


def _random_array(item: ModelInput, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[Any]:
    dtype = np.dtype(item.dtype)
    if dtype.kind == "f" or item.dtype == "bfloat16":
        return np.asarray(generator.standard_normal(shape)).astype(dtype)
    if item.vocabulary is not None:
        return np.asarray(generator.integers(0, item.vocabulary, shape)).astype(dtype)
    if dtype.kind == "O":
        raise CalibrationError(f"input {item.name!r} takes strings; random ones mean nothing: give --calibration")
    if dtype == np.uint8 and math.prod(shape) > 1:  # most often an image
        return np.asarray(generator.integers(0, 256, shape)).astype(dtype)
    return np.ones(shape, dtype)


def _sizes(item: ModelInput, dims: Mapping[str, int]) -> tuple[int, ...]:
    """The input's shape with every free dimension given a size: the first is the batch of 1, others by `dims`."""
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
                f"input {_describe(item)}: dimension {name!r} is free and has no size; give it with --dim {name}=N, "
                "or real data with --calibration"
            )
    return tuple(sizes)
