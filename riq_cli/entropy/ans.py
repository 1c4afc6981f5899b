"""Indices ↔ streams: asymmetric numeral systems (Duda 2009, arXiv:0902.0271), as FORMAT.md specifies them, "Stream".

The coder is constriction's. Its models are made of floats, but with integer frequencies f_i of sum 2²⁴ and
"probabilities" f_i − 1 their quantization is exact, so that the streams are defined in integers alone;
`tests/reference_decoder.py` decodes them without constriction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import constriction
import numpy as np
from numpy.typing import NDArray

from riq_cli.errors import CorruptArchive

Indices = NDArray[np.int32]
Integers = NDArray[np.int64]

PRECISION = 24  # bits of a frequency
_NOT_HELD = "a stream does not hold the symbols it should; the archive is damaged"


def in_proportion(masses: Integers) -> Integers:
    """Frequencies f_i ≥ 1 in units of 2⁻²⁴, i64[…, s], of sum 2²⁴ exactly, in proportion to masses i64[…, s] ≥ 1."""
    spare = (1 << PRECISION) - masses.shape[-1]
    if int(masses.max()) < 1 << (62 - PRECISION):
        result: Integers = 1 + masses * spare // masses.sum(axis=-1, keepdims=True)
    else:  # mass · 2²⁴ and the sum of all may leave 64 bits: Python's integers do not
        exact = masses.astype(object)
        result = (1 + exact * spare // exact.sum(axis=-1, keepdims=True)).astype(np.int64)
    rows = result.reshape(-1, result.shape[-1])  # a view
    rows[np.arange(len(rows)), np.argmax(rows, axis=1)] += (1 << PRECISION) - rows.sum(axis=1)
    return result


def encode_runs(runs: Sequence[tuple[Indices, Integers]]) -> bytes:
    """The rANS words, little-endian, of one run of indices i32[m] after another, each into frequencies of its own."""
    coder = constriction.stream.stack.AnsCoder()
    for indices, frequencies in reversed(runs):
        coder.encode_reverse(indices, _model(frequencies))
    words: bytes = coder.get_compressed().astype("<u4").tobytes()
    return words


def decode_runs(stream: bytes, runs: Iterable[tuple[Integers, int]]) -> list[Indices]:
    """The runs of indices that `encode_runs` was given, of their frequencies and sizes.

    Raises:
        CorruptArchive: the stream is not used up by them, or ends before.
    """
    if len(stream) % 4:
        raise CorruptArchive(_NOT_HELD)
    words = np.frombuffer(stream, "<u4").astype(np.uint32)
    try:
        coder = constriction.stream.stack.AnsCoder(words)
    except ValueError as error:  # the last word is 0
        raise CorruptArchive(_NOT_HELD) from error
    indices = [coder.decode(_model(frequencies), size) for frequencies, size in runs]
    if not coder.is_empty():
        raise CorruptArchive(_NOT_HELD)
    return indices


def _model(frequencies: Integers) -> constriction.stream.model.Categorical:
    return constriction.stream.model.Categorical((frequencies - 1).astype(np.float64), perfect=False)
