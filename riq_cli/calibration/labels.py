"""Labels of calibration samples, from files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from riq_cli.calibration.arrays import read_numpy
from riq_cli.calibration.inputs import listed
from riq_cli.errors import CalibrationError


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
