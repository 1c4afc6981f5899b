"""Variations of samples: what changes places, and what stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from riq_cli.calibration import Sample, augmented


def image(number: int, shape: tuple[int, ...] = (1, 3, 20, 30)) -> Sample:
    return Sample({"image": np.random.default_rng(number).standard_normal(shape, np.float32)})


def of_one(sample: Sample) -> list[Sample]:
    """Variations in which there is no other sample."""
    return augmented([sample])


@pytest.mark.parametrize(
    ("given", "side", "made"),
    [
        (0, 20, 0), (1, 20, 32), (4, 20, 128), (8, 20, 248), (12, 20, 240), (128, 20, 128), (129, 20, 0),
        (8, 80, 96), (8, 224, 56), (12, 224, 48), (32, 224, 32), (33, 224, 0), (8, 640, 16),
        (8, 1280, 0),
    ],
)  # fmt: skip
def test_there_are_as_many_as_are_enough_with_the_samples(given: int, side: int, made: int) -> None:
    assert len(augmented([image(number, (1, 3, side, side)) for number in range(given)])) == made


@pytest.mark.parametrize(("given", "share", "made"), [(4, 0.25, 32), (8, 0.25, 56), (32, 0.25, 32), (4, 0.01, 0)])
def test_a_share_of_them_may_do(given: int, share: float, made: int) -> None:
    assert len(augmented([image(number) for number in range(given)], share)) == made


def test_they_are_the_same_every_time() -> None:
    samples = [image(number) for number in range(3)]
    once, again = augmented(samples), augmented(samples)
    for one, two in zip(once, again, strict=True):
        np.testing.assert_array_equal(one.feed["image"], two.feed["image"])


def test_values_change_places_along_the_two_longest_axes_of_an_image() -> None:
    sample = image(0)
    before = sample.feed["image"]
    for varied in of_one(sample):
        after = varied.feed["image"]
        assert (after.shape, after.dtype, after.flags.c_contiguous) == (before.shape, before.dtype, True)
        assert not np.array_equal(after, before)
        for channel in range(3):
            np.testing.assert_array_equal(np.sort(after[0, channel], None), np.sort(before[0, channel], None))
    assert before is sample.feed["image"]
    np.testing.assert_array_equal(before, image(0).feed["image"])


def test_shifts_are_a_fifth_of_an_axis_at_most() -> None:
    steps = np.arange(100, dtype=np.float32)[None]
    for varied in of_one(Sample({"x": steps})):
        x = varied.feed["x"][0]
        turned = x[1] == (x[0] - 1) % 100
        first = (x[0] - 99 if turned else -x[0]) % 100
        np.testing.assert_array_equal(np.roll(steps[0, ::-1] if turned else steps[0], int(first)), x)
        assert min(first, 100 - first) <= 20


def test_axes_of_equal_places_vary_alike() -> None:
    """A mask stays over what it masks."""
    ids = np.arange(40)[None]
    samples = [Sample({"ids": ids + 40 * number, "mask": (ids % 3 == 0)}) for number in range(4)]
    for varied in augmented(samples):
        np.testing.assert_array_equal(varied.feed["mask"], varied.feed["ids"] % 40 % 3 == 0)


def test_some_go_over_into_another_sample() -> None:
    samples = [Sample({"x": np.full((1, 50), number, np.int64)}) for number in range(4)]
    mixed = [varied.feed["x"][0] for varied in augmented(samples) if len(set(varied.feed["x"][0].tolist())) > 1]
    assert len(augmented(samples)) // 8 < len(mixed) < len(augmented(samples)) // 2
    for x in mixed:
        _, counts = np.unique(x, return_counts=True)
        assert len(counts) == 2 and counts.min() >= 15


def test_samples_of_other_shapes_are_left_alone() -> None:
    samples = [Sample({"x": np.full((1, 10 + number), number)}) for number in range(4)]
    for varied in augmented(samples):
        x = varied.feed["x"]
        assert x.shape[1] == 10 + x[0, 0] and (x == x[0, 0]).all()


@pytest.mark.parametrize(
    ("feed", "rows", "axes"),
    [
        ({"x": np.zeros(())}, 1, []),
        ({"x": np.zeros((1, 1))}, 1, []),
        ({"x": np.zeros(4)}, 4, []),
        ({"x": np.arange(4.0)}, 1, [0]),
        ({"x": np.arange(6.0).reshape(3, 2)}, 3, [1]),
        ({"x": np.arange(24.0).reshape(2, 3, 4)}, 2, [2]),
        ({"x": np.array([["a", "b", "c"]], object)}, 1, [1]),
    ],
)
def test_the_batch_stays_in_order_and_what_has_nothing_to_vary_is_left_out(
    feed: dict[str, Any], rows: int, axes: list[int]
) -> None:
    found = of_one(Sample(feed, rows))
    assert bool(found) == bool(axes)
    for varied in found:
        assert varied.rows == rows
        for axis in set(range(feed["x"].ndim)) - set(axes):
            pair = [np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1) for x in (feed["x"], varied.feed["x"])]
            one, other = (np.sort(slices) for slices in pair)
            np.testing.assert_array_equal(one, other)
