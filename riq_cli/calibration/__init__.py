"""Calibration data, and its samples."""

from riq_cli.calibration.arrays import load_labels, write_npz
from riq_cli.calibration.augmentation import augmented
from riq_cli.calibration.calibration import RANDOM_SAMPLES, Calibration, digest, scarcity
from riq_cli.calibration.images import ImageOptions
from riq_cli.calibration.inputs import Sample

__all__ = [
    "RANDOM_SAMPLES",
    "Calibration",
    "ImageOptions",
    "Sample",
    "augmented",
    "digest",
    "load_labels",
    "scarcity",
    "write_npz",
]
