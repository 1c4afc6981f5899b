"""The rate model against coded bytes: whatever the distribution, with rows and columns of different scales or not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from riq_cli.decode.dequantize import Quantized
from riq_cli.entropy.rate import ENTRY_BITS, estimated_bits
from riq_cli.model import Layer
from riq_cli.pipeline.layer_entry import encode_layer
from tests.archives import levels_of

RANDOM = np.random.default_rng(0)
ROWS, COLUMNS = (np.exp2(RANDOM.normal(size=size)) for size in ((200, 1), (1, 300)))
DISTRIBUTIONS = {
    "normal": RANDOM.normal(size=(200, 300)),
    "laplace": RANDOM.laplace(size=(200, 300)),
    "student": RANDOM.standard_t(4, size=(200, 300)),
}
SCALES = {"same": np.ones((1, 1)), "rows": ROWS, "columns": COLUMNS, "both": ROWS * COLUMNS}


def coded_bits(symbols: NDArray[np.int32], trellis: bool = False, without: frozenset[str] = frozenset()) -> float:
    """Bits of the sections of a layer with these symbols, and of an entry in the manifest."""
    flat = symbols.reshape(-1)
    quantized = Quantized(levels_of(flat, symbols.shape, (0,)), 1.0, (), (0,)) if trellis else Quantized(flat, 1.0)
    layer = Layer("w", "MatMul", ("graph.initializer[0]",), "float64", symbols.shape, symbols.astype(np.float64))
    entry, _ = encode_layer(layer, quantized, None, without)
    return 8 * entry.stored + ENTRY_BITS


def rounded(values: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.rint(values).astype(np.int32)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize(("width", "tolerance"), [(0.1, 0.01), (1.0, 0.03), (4.0, 0.08)])
def test_bits_are_about_those_of_the_archive(distribution: str, scales: str, width: float, tolerance: float) -> None:
    symbols = rounded(DISTRIBUTIONS[distribution] * SCALES[scales] / width)
    assert estimated_bits(symbols) == pytest.approx(coded_bits(symbols), rel=tolerance)


@pytest.mark.parametrize("width", [0.2, 1.0, 3.0])
def test_symbols_of_a_trellis_have_another_middle(width: float) -> None:
    symbols = rounded(DISTRIBUTIONS["normal"] * ROWS / width - 0.25)
    assert estimated_bits(symbols, trellis=True) == pytest.approx(coded_bits(symbols, trellis=True), rel=0.03)


@pytest.mark.parametrize("width", [0.02, 1.0])
def test_without_students_t_there_is_a_table(width: float) -> None:
    symbols = rounded(DISTRIBUTIONS["laplace"] * ROWS / width)
    found = estimated_bits(symbols, student=False)
    assert found == pytest.approx(coded_bits(symbols, without=frozenset({"student"})), rel=0.02)
    assert found > 1.02 * estimated_bits(symbols)


def test_a_constant_layer_takes_its_entry_and_a_table() -> None:
    assert estimated_bits(np.zeros((50, 70), np.int32)) == pytest.approx(ENTRY_BITS, abs=24)


@pytest.mark.parametrize("part", [(slice(None, None, 4), slice(None)), (slice(None), slice(None, None, 3))])
def test_some_rows_or_columns_stand_for_all(part: tuple[slice, slice]) -> None:
    scales = np.exp2(np.arange(200)[:, None] % 5 - np.arange(300) % 7 / 2)  # every fourth row is like the others
    symbols = rounded(DISTRIBUTIONS["normal"] * scales)
    some = symbols[part]
    found = symbols.size / some.size * estimated_bits(some, *symbols.shape, scales=200)
    assert found == pytest.approx(estimated_bits(symbols, scales=200), rel=0.02)


def test_symbols_may_be_nearly_all_the_same() -> None:
    symbols = np.zeros((1000, 700), np.int32)
    symbols[3, 5], symbols[700, 600] = 1, -40
    assert estimated_bits(symbols) == pytest.approx(coded_bits(symbols), abs=150)


def test_groups_are_matrices_of_their_own() -> None:
    symbols = rounded(DISTRIBUTIONS["normal"] * ROWS).reshape(2, 100, 300)
    assert estimated_bits(symbols) == pytest.approx(estimated_bits(symbols.reshape(200, 300)), rel=1e-3)


def test_rows_count_whichever_are_small() -> None:
    """Every fourth row is nearly zero, as padded channels are."""
    symbols = rounded(RANDOM.normal(size=(1024, 64)) * np.where(np.arange(1024) % 4, 10, 0.01)[:, None])
    assert estimated_bits(symbols) == pytest.approx(coded_bits(symbols), rel=0.05)
