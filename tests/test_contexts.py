"""Contexts: how many weights have each, and where the symbols of weights are coded."""

from __future__ import annotations

import itertools
import math
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from riq_cli.entropy import contexts
from riq_cli.entropy.codes import Codes
from riq_cli.entropy.contexts import Contexts, grouped, placed


@st.composite
def layers(draw: st.DrawFn) -> Contexts:
    """Contexts of layers whose codes lie along any axes, the same, others and overlapping ones."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    subsets = [axes for count in range(1, len(shape) + 1) for axes in itertools.combinations(range(len(shape)), count)]

    def codes() -> Codes:
        axes = draw(st.sampled_from(subsets))
        sizes = [shape[axis] for axis in axes]
        values = draw(st.lists(st.integers(-30, 30), min_size=math.prod(sizes), max_size=math.prod(sizes)))
        return Codes(axes, np.array(values, np.int32).reshape(sizes))

    return Contexts(
        tuple(codes() for _ in range(draw(st.integers(1, 3)))),
        shape,
        tuple(codes() for _ in range(draw(st.integers(0, 2)))),
    )


def contexts_of(layer: Contexts) -> NDArray[np.int64]:
    """The context of each weight, row-major, i64[n]."""
    total = np.zeros(layer.shape, np.int64)
    for item in layer.codes:
        total += item.aligned(len(layer.shape))
    for item in layer.scales:
        total -= item.aligned(len(layer.shape))
    return total.reshape(-1)


@given(layers(), st.sampled_from([1 << 18, 1 << 6, 1 << 3]))
def test_symbols_are_coded_context_by_context_in_the_order_of_the_layer(layer: Contexts, block: int) -> None:
    each = contexts_of(layer)
    order = np.argsort(each, kind="stable")  # which weight is coded at each place
    symbols = np.arange(each.size, dtype=np.int32)
    with patch.object(contexts, "_BLOCK", block):
        parts = grouped(symbols, layer)
        assert np.concatenate(parts).tolist() == order.tolist()
        assert [part.size for part in parts] == layer.sizes.tolist()
        for number, part in enumerate(parts):
            assert (each[part] == layer.lowest + number).all()
        starts, places = zip(*layer.places(), strict=True)
        assert np.concatenate(places).tolist() == np.argsort(order).tolist()
        assert all(start % 8 == 0 for start in starts)


@given(layers(), st.data())
def test_windows_of_coded_symbols_restore_each_weight_once(layer: Contexts, data: st.DataObject) -> None:
    coded = np.argsort(contexts_of(layer), kind="stable")
    size = data.draw(st.integers(1, coded.size))
    restored = np.full(coded.size, -1)
    with patch.object(contexts, "_BLOCK", 1 << 4):
        for begin in range(0, coded.size, size):
            for start, symbols, held in placed(coded[begin : begin + size], begin, layer):
                which = slice(None) if held is None else held
                target = restored[start : start + symbols.size]
                assert (target[which] == -1).all()
                target[which] = symbols[which]
    assert restored.tolist() == list(range(coded.size))


@pytest.mark.parametrize("big", [2**31 - 1, -(2**31)])
def test_codes_that_cancel_do_not_overflow(big: int) -> None:
    rows = Codes((0,), np.array([big, big], np.int32))
    turned = Codes((0, 1), np.full((2, 3), big, np.int32))
    layer = Contexts((rows, Codes((1,), np.array([0, 1, 0], np.int32))), (2, 3), (turned,))
    assert (layer.lowest, layer.span, layer.sizes.tolist()) == (0, 2, [4, 2])
