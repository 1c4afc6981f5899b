"""Samples → variations of them, to learn from what a model's inner tensors may hold too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from riq_cli.calibration.inputs import Feed, Sample

_LEAST, _MOST = 64, 256  # samples that are enough, the given ones and their variations: of small ones, more cost little
_FEW, _MANY = 1 << 21, 1 << 25  # values in the inputs of more than the least, of as many as the least
_TIMES = 32  # variations of one sample, at most
_JOINED, _FLIPPED = 0.3, 0.3  # share of variations that are made of two samples, of axes that are turned round
_SHIFT = 0.2  # of an axis's length, at most
_CUT = 0.3, 0.7  # where one sample goes over into another
_SEED = 0  # of how samples vary
_PLANE = 4  # axes from which on two of them vary, as those of images


def augmented(samples: Sequence[Sample], share: float = 1.0) -> list[Sample]:
    """Variations of samples: shifted round, some turned round, some with a part of another sample.

    So many that they are enough together with the samples; none of a sample that has nothing to vary. What an input
    means is not known: along its longest axis, or, from four axes on, its two longest, values change their places,
    in all inputs by the same amount. Where this makes no sense, what is learned from it is of no use for other samples.

    Args:
        samples: as the model takes them.
        share: of the variations that are enough.
    """
    random = np.random.default_rng(_SEED)
    times = min(int(share * _enough(samples)) // max(len(samples), 1) - 1, int(share * _TIMES))
    varying = [sample for sample in samples if any(_axes(value, sample.rows) for value in sample.feed.values())]
    return [_variation(sample, samples, random) for _ in range(times) for sample in varying]


def _enough(samples: Sequence[Sample]) -> int:
    """How many samples are enough."""
    values = max(sum(value.size for sample in samples for value in sample.feed.values()) // max(len(samples), 1), 1)
    return min(max(_FEW // values, _LEAST), _MANY // values, _MOST)


def _variation(sample: Sample, others: Sequence[Sample], random: np.random.Generator) -> Sample:
    """One variation of a sample, perhaps with a part of one of the others."""
    other = others[int(random.integers(len(others)))]
    joined = bool(random.random() < _JOINED) and _same_shapes(sample, other)
    cut, along = float(random.uniform(*_CUT)), int(random.integers(2))
    turned, shifts = random.random(2) < _FLIPPED, random.uniform(-_SHIFT, _SHIFT, 2)
    feed: Feed = {}
    for name, value in sample.feed.items():
        axes = _axes(value, sample.rows)
        if joined and axes:
            axis = axes[along % len(axes)]
            place = [int(cut * value.shape[axis])]
            value = np.concatenate([np.split(value, place, axis)[0], np.split(other.feed[name], place, axis)[1]], axis)
        for axis, turn, shift in zip(axes, turned, shifts, strict=False):
            value = np.roll(np.flip(value, axis) if turn else value, round(shift * value.shape[axis]), axis)
        feed[name] = np.ascontiguousarray(value)
    return sample._replace(feed=feed)


def _same_shapes(one: Sample, other: Sample) -> bool:
    """Whether two samples are of the same shapes."""
    return all(one.feed[name].shape == value.shape for name, value in other.feed.items())


def _axes(value: NDArray[np.generic], rows: int) -> list[int]:
    """The axes of an input that vary, the longest first."""
    lengths = [0 if axis == 0 and length == rows else length for axis, length in enumerate(value.shape)]
    longest = sorted(range(value.ndim), key=lambda axis: -lengths[axis])[: 2 if value.ndim >= _PLANE else 1]
    return [axis for axis in longest if lengths[axis] > 1]
