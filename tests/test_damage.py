"""Archives with all features, damaged in every way: each is refused with a message, or restores the same weights."""

from __future__ import annotations

import contextlib
import json
import zlib
from functools import cache
from typing import Any, NamedTuple

import pytest
import reference_decoder
from hypothesis import example, given
from hypothesis import strategies as st

from riq_cli.entropy.student import Student
from tests import test_codes, test_student
from tests.archives import (
    BOUND,
    VALUES,
    Edit,
    archive_of,
    by_both_decoders,
    edited,
    mutations,
    opened,
    packed,
    paths,
    refused_or_restored,
    traced,
    written,
)

FEATURES = "classes", "student"
CHANGES = [
    *VALUES, "delete", "double", "scales", "classes", "magnitudes", "ans", "raw", "constant",
    3, 4, 5, 6, 12, 64, 1 << 24, [0, 1], [1, 2], [0, 1, 2], {"axes": [0], "bytes": 8}, {"axes": [1], "bytes": 9},
]  # fmt: skip


class Whole(NamedTuple):
    """An archive in parts, and the weights that it restores."""

    document: dict[str, Any]
    sections: bytes
    weights: bytes
    paths: list[tuple[Any, ...]]


@cache
def whole(feature: str) -> Whole:
    """An archive with scales, and with classes or with Student's t and a trellis."""
    archive = archive_of(*(test_codes.mixed() if feature == "classes" else test_student.mixed()))
    data = written(archive)
    document = json.loads(zlib.decompress(data[24 : 24 + archive.manifest_bytes]))
    changeable = [path for path in paths(document) if path[0] in ("layers", "requires")]
    return Whole(document, data[24 + archive.manifest_bytes :], by_both_decoders(data), changeable)


def test_the_archives_have_everything() -> None:
    assert whole("classes").document["requires"] == ["classes", "scales"]
    assert whole("student").document["requires"] == ["scales", "student", "trellis"]
    item = whole("student")
    [(entry, sections)] = opened(packed(item.document, item.sections)).layer_sections()
    assert (0,) in {codes.axes for codes in entry.magnitudes}
    assert Student.from_bytes(sections[len(entry.codes)]).low_bits > 0


@pytest.mark.parametrize("feature", FEATURES)
def test_every_flipped_bit_of_the_sections_is_refused_or_harmless(feature: str) -> None:
    item = whole(feature)
    for bit in range(8 * len(item.sections)):
        sections = bytearray(item.sections)
        sections[bit // 8] ^= 1 << bit % 8
        data = packed(item.document, bytes(sections))
        refused_or_restored(data, [item.weights])
        if bit % 11 == 0:  # the other decoder refuses all of them but those that are harmless
            with contextlib.suppress(reference_decoder.FormatError):
                assert reference_decoder.decode(data)[1][0][1] == item.weights


@given(st.sampled_from(FEATURES), st.data())
def test_any_mutation_of_the_sections_is_refused_or_harmless(feature: str, data: st.DataObject) -> None:
    item = whole(feature)
    sections = data.draw(mutations(item.sections))
    size = len(item.sections)
    refused_or_restored(packed(item.document, sections[:size].ljust(size, b"\0")), [item.weights])


@given(
    st.sampled_from(FEATURES).flatmap(
        lambda feature: st.tuples(
            st.just(feature),
            st.lists(
                st.tuples(st.sampled_from(whole(feature).paths), st.sampled_from(CHANGES)), min_size=1, max_size=3
            ),
        )
    )
)
@example(("classes", [(("layers", 0, "shape"), [240]), (("layers", 0, "scales"), [])]))
@example(("student", [(("layers", 0, "shape"), [240]), (("layers", 0, "scales"), [])]))
def test_any_value_of_the_manifest_is_refused_or_harmless(drawn: tuple[str, list[Edit]]) -> None:
    feature, changes = drawn
    item = whole(feature)
    refused_or_restored(packed(edited(item.document, changes), item.sections), [item.weights])


@pytest.mark.parametrize("feature", FEATURES)
def test_hostile_values_are_met_in_bounded_memory(feature: str) -> None:
    item = whole(feature)

    def meet() -> None:
        for path in item.paths:
            for value in CHANGES:
                if isinstance(value, int | list):
                    refused_or_restored(packed(edited(item.document, [(path, value)]), item.sections), [item.weights])

    assert traced(meet) < 64 * BOUND
