"""What each sample is for: roles of samples that differ, and of those that are similar."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riq_cli.pipeline.samples import FIT_SAMPLES, clusters, default_margin, held_count, roles

HELD: dict[int, Sequence[int]] = {  # of a quarter
    **dict.fromkeys(range(1, 8), ()),
    **dict.fromkeys(range(8, 12), (2, 6)),
    12: (2, 6, 10),
    64: range(2, 64, 4),
}


@pytest.mark.parametrize("count", HELD)
def test_without_statistics_all_that_is_not_held_out_is_searched_and_probed(count: int) -> None:
    for holdout, held in ((0.25, HELD[count]), (0.0, ())):
        found = roles(count, holdout)
        rest = tuple(number for number in range(count) if number not in held)
        assert (found.held_out, found.others, found.searched, found.probed) == (tuple(held), rest, rest, rest)
        assert found.fit == ((), ()) and found.every == found.unfitted == tuple(range(count))
        assert held_count(count, holdout) == len(held)


@pytest.mark.parametrize(
    ("count", "holdout", "held"),
    [(7, 0.9, ()), (8, 0.1, ()), (10, 0.1, (5,)), (8, 0.5, (1, 3, 5, 7)), (8, 0.9, (0, 1, 2, 3, 5, 6, 7))],
)
def test_other_shares_are_held_out_evenly(count: int, holdout: float, held: Sequence[int]) -> None:
    assert roles(count, holdout).held_out == tuple(held)


@given(
    count=st.integers(FIT_SAMPLES, 80),
    holdout=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9]),
    seed=st.integers(0, 1 << 30),
    axes=st.integers(1, 6),
)
def test_nothing_is_fitted_to_samples_that_are_held_out(count: int, holdout: float, seed: int, axes: int) -> None:
    if count - held_count(count, holdout) < FIT_SAMPLES:
        return
    outputs = np.random.default_rng(seed).standard_normal((count, axes))
    outputs /= np.linalg.norm(outputs, axis=1, keepdims=True)
    found = roles(count, holdout, outputs @ outputs.T)
    first, second = found.fit
    assert first and second and not set(first) & set(second)
    for part in (first, second, found.held_out, found.others, found.probed, found.searched, found.unfitted):
        assert list(part) == sorted(set(part))
    assert sorted((*found.others, *found.held_out)) == list(range(count)) == list(found.every)
    assert bool(found.held_out) == (held_count(count, holdout) > 0)  # whole clusters are
    assert {*first, *second, *found.probed} == set(found.others) >= set(found.searched) >= set(found.probed)
    assert set(found.unfitted) == set(found.every) - {*first, *second} != set()


def test_samples_that_are_similar_have_the_same_role() -> None:
    """Four crops of each of eight photos, in any order: two photos are held out, the others in halves of three."""
    photos = np.random.default_rng(0).permutation(np.repeat(np.arange(8), 4))
    similarity = np.where(photos[:, None] == photos, 0.9, 0.3)
    np.fill_diagonal(similarity, 1.0)
    found = roles(32, 0.25, similarity)
    parts = (*found.fit, found.held_out)
    seen = [set(photos[list(part)]) for part in parts]
    assert len(seen[2]) == 2 and not seen[0] & seen[1] and not seen[2] & (seen[0] | seen[1])


def test_the_most_similar_become_clusters_first() -> None:
    similarity = np.array([[1.0, 0.1, 0.8, 0.0], [0.1, 1.0, 0.2, 0.7], [0.8, 0.2, 1.0, 0.3], [0.0, 0.7, 0.3, 1.0]])
    assert clusters(similarity, 1) == [[0], [1], [2], [3]]
    assert clusters(similarity, 2) == [[0, 2], [1, 3]]
    similarity[1, 3] = similarity[3, 1] = 0.0
    similarity[1, 2] = similarity[2, 1] = 0.5
    assert clusters(similarity, 3) == [[0, 1, 2], [3]]  # 1 is on average more like 0 and 2 (0.3) than 3 is (0.15)
    assert clusters(similarity, 4) == [[0, 1, 2, 3]]
    assert clusters(np.ones((1025, 1025)), 3) == [[number] for number in range(1025)]  # too many to compare


def test_the_default_margin_shrinks_to_a_quarter_of_a_standard_error() -> None:
    assert [default_margin(count) for count in (1, 4, 16, 100)] == [1.0, 0.5, 0.25, 0.25]
