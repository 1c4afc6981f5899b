"""Numbers on the command line are taken as people write them, and refused with what to write."""

from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riq_cli.cli import quantities as q

KINDS = {
    q.parse_size: "is not a size; write 500kB, 5MB or 2GiB",
    q.parse_number: "is not a finite number; write it as 0.25",
    q.parse_fraction: "is not a fraction; write 0.01 or 1%",
    q.parse_target: "is not a fraction; write 0.01 or 1%",
    q.parse_ratio: "is not a ratio; write 8 or 8x",
    q.parse_dimension: "is not a name and a size; write height=224",
}


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (q.parse_size, "500000", 500_000),
        (q.parse_size, "500kB", 500_000),
        (q.parse_size, "10 GB", 10**10),
        (q.parse_size, "10GB", 10**10),
        (q.parse_size, "10g", 10**10),
        (q.parse_size, "1.5GiB", 3 << 29),
        (q.parse_size, "2TiB", 2 << 40),
        (q.parse_size, "1e9", 10**9),
        (q.parse_size, "1_000_000", 10**6),
        (q.parse_size, "712 B", 712),
        (q.parse_number, "1e-3", 0.001),
        (q.parse_number, "-2", -2.0),
        (q.parse_fraction, "30%", 0.3),
        (q.parse_fraction, "0.7 %", 0.007),
        (q.parse_fraction, "0", 0.0),
        (q.parse_fraction, "1.5", 1.5),
        (q.parse_target, "1%", 0.01),
        (q.parse_target, "100%", 1.0),
        (q.parse_target, "1.0", 1.0),
        (q.parse_drop, "0.4%", (0.004, True)),
        (q.parse_drop, "0.004", (0.004, False)),
        (q.parse_ratio, "8", 8.0),
        (q.parse_ratio, "8x", 8.0),
        (q.parse_ratio, "×8.5", 8.5),
        (q.parse_ratio, "8 ×", 8.0),
        (q.parse_numbers, "0.5, 0.25", (0.5, 0.25)),
        (q.parse_targets, "2%,0.01", (0.02, 0.01)),
        (q.parse_dimension, "past=0", ("past", 0)),
        (q.parse_dimension, "a=b=3", ("a=b", 3)),
    ],
)
def test_a_text_is_taken_as_it_is_meant(parse: Any, text: str, value: Any) -> None:
    assert parse(text) == value


NONE = ("", "nan", "inf", "-inf", "lots", "1e999", "1e99999999999", "%", "x", "8xx", "1.2.3")
OUT_OF_RANGE = {
    q.parse_size: ("0", "-5", "0.2", "5 parsecs", "5kib b"),
    q.parse_fraction: ("-1%",),
    q.parse_ratio: ("0", "-8x"),
    q.parse_dimension: ("time", "=3", "time=-1"),
}


@pytest.mark.parametrize(("parse", "message"), KINDS.items())
def test_what_is_none_is_refused_with_what_to_write(parse: Any, message: str) -> None:
    for text in (*NONE, *OUT_OF_RANGE.get(parse, ())):
        with pytest.raises(click.BadParameter) as caught:
            parse(text)
        assert caught.value.message == f"{text!r} {message}"


def test_a_deviation_of_one_is_most_likely_a_percent() -> None:
    with pytest.raises(click.BadParameter) as caught:
        q.parse_target("1")
    assert caught.value.message == "1 is 100 %, where outputs have nothing in common; write 1% or 0.01, or else 100%"


def test_a_list_says_how_lists_are_written() -> None:
    with pytest.raises(click.BadParameter) as caught:
        q.parse_targets("0.01,much")
    assert caught.value.message == "'much' is not a fraction; write 0.01 or 1%; a list is written as 0.01,0.001"


@given(st.floats(0, 1e6, exclude_min=True), st.integers(1, 1 << 62))
def test_what_is_printed_is_read_back(number: float, size: int) -> None:
    assert q.parse_number(str(number)) == q.parse_fraction(str(number)) == q.parse_ratio(f"{number}x") == number
    assert q.parse_size(str(size)) == pytest.approx(size, rel=1e-15)


@given(st.text(max_size=8))
def test_any_text_is_a_number_or_a_message(text: str) -> None:
    for parse in (*KINDS, q.parse_drop, q.parse_numbers, q.parse_targets):
        try:
            parse(text)
        except click.BadParameter as error:
            assert "; write" in error.message or error.message.startswith("1 is")
