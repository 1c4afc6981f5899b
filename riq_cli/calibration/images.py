"""Image files as the input of a model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from riq_cli.calibration.inputs import Sample, describe, sizes
from riq_cli.errors import CalibrationError
from riq_cli.model import ModelInput
from riq_cli.text import counted, first_line

IMAGE_SUFFIXES = frozenset(".png .jpg .jpeg .bmp .webp .gif .tif .tiff .ppm .pgm".split())


@dataclass(frozen=True)
class ImageOptions:
    """How an image file becomes an input: (pixel · scale − mean) / std, per channel, in the model's layout.

    `scale` multiplies pixels of 0…255; `mean` and `std` are in the units that result.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    image_layout: Literal["nchw", "nhwc"] = "nchw"
    channel_order: Literal["rgb", "bgr"] = "rgb"


def image_samples(
    files: Sequence[Path], inputs: Sequence[ModelInput], dims: Mapping[str, int], batch: int, options: ImageOptions
) -> list[Sample]:
    """Samples from image files, resized to the input's shape; `batch` of them in one run where the first axis is free.

    Raises:
        CalibrationError: an input that takes no images, a file that is none, or a rest that fills no batch.
    """
    if len(inputs) != 1 or inputs[0].shape is None or len(inputs[0].shape) != 4:
        raise CalibrationError(
            "a folder of images fits a model with one input of four axes; this one takes "
            + ", ".join(describe(item) for item in inputs)
        )
    item = inputs[0]
    shape = sizes(item, dims)
    if min(shape) < 1:
        raise CalibrationError(f"input {describe(item)}: has no room for images")
    channels, height, width = shape[1:] if options.image_layout == "nchw" else (shape[3], shape[1], shape[2])
    if channels not in (1, 3):
        raise CalibrationError(
            f"input {describe(item)}: {channels} channels in layout {options.image_layout}; is it "
            f"--image-layout {'nhwc' if options.image_layout == 'nchw' else 'nchw'}?"
        )
    free = not isinstance(inputs[0].shape[0], int)
    rows = batch if free and shape[0] == 1 else shape[0]
    if len(files) % rows and not free:
        raise CalibrationError(
            f"{len(files)} images do not fill batches of {rows}, as the model takes them: {describe(item)}; "
            "add some or leave some out"
        )
    arrays = [_image(file, channels, height, width, item.fed, options) for file in files]
    batches = [np.stack(arrays[begin : begin + rows]) for begin in range(0, len(arrays), rows)]
    return [Sample({item.name: pixels}, len(pixels)) for pixels in batches]


def _image(file: Path, channels: int, height: int, width: int, dtype: str, options: ImageOptions) -> NDArray[Any]:
    try:
        from PIL import Image
    except ImportError as error:
        raise CalibrationError("images need Pillow: pip install 'riq[images]'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, odd metadata and the like
            with Image.open(file) as image:
                converted = image.convert("RGB" if channels == 3 else "L")
            resized = converted.resize((width, height), Image.Resampling.BILINEAR)
    except Exception as error:  # what Pillow's many decoders make of damaged bytes has no other base
        raise CalibrationError(f"{file}: cannot be read as an image: {first_line(error)}") from error
    pixels = np.asarray(resized).reshape(height, width, channels)
    if options.channel_order == "bgr":
        pixels = pixels[..., ::-1]
    if np.dtype(dtype).kind == "f":
        for name, values in (("--mean", options.mean), ("--std", options.std)):
            if len(values) not in (1, channels):
                raise CalibrationError(f"{name}: {counted(len(values), 'value')} for {counted(channels, 'channel')}")
        pixels = (pixels * options.scale - np.array(options.mean)) / np.array(options.std)
    return (pixels.transpose(2, 0, 1) if options.image_layout == "nchw" else pixels).astype(dtype)
