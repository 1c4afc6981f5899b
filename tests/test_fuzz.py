"""What fuzzers found stays found; and the fuzzers themselves run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.__main__ import outcome
from tests.fuzz.targets import NAMES, TARGETS

BAD = Path(__file__).parent / "goldens" / "bad"


FINDS = {  # by the names of files: how an error begins, None where there is none any more
    "manifest-limit-is-text": "manifest: result: constraint: 'limit' is not a number within",
    "model-location-that-is-not-utf-8": "tensor 'conv.bias': the location b'data",
    "model-name-that-is-not-utf-8": "tensor ",
    "model-type-that-is-none": None,
}


def test_every_find_is_expected() -> None:
    assert sorted(path.name for path in BAD.iterdir()) == sorted(FINDS)


@pytest.mark.parametrize("name", FINDS)
def test_a_find_ends_well_or_in_its_error(name: str) -> None:
    target, message = TARGETS[name.partition("-")[0]], FINDS[name]
    data = (BAD / name).read_bytes()
    if message is None:
        target.run(data)
        return
    with pytest.raises(target.errors) as caught:
        target.run(data)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", NAMES)
def test_some_cases_of_each_target_end_well(name: str) -> None:
    for number in range(40):
        data = TARGETS[name].make(np.random.default_rng([0, number]))
        assert outcome(TARGETS[name], data) is None
