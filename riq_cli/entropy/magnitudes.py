"""Symbols in the order of the layer ↔ streams in the order of their magnitudes, each coded as far as it spreads.

A weight's magnitude is the sum of the codes of its slices along several axes, such as its row and its column. Weights
of a magnitude are spread as Student's t of its scale says, so that many of them cost no more than their codes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from riq_cli.entropy import coder
from riq_cli.entropy.classes import grouped
from riq_cli.entropy.codes import Codes, Symbols
from riq_cli.entropy.frequencies import PRECISION
from riq_cli.entropy.student import Student
from riq_cli.errors import CorruptArchive
from riq_cli.executors import ordered
from riq_cli.limits import CODE_MAX, STREAM_SYMBOLS

Integers = NDArray[np.int64]

_BLOCK = 1 << 18


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """The codes of magnitudes of a layer of some shape; none: all weights have magnitude 0.

    Where they are those of weights, and the bins are as wide as the codes of `scales` say, the symbols' own are smaller
    by as much.

    Raises:
        ValueError: a magnitude could be beyond its bound.
    """

    codes: tuple[Codes, ...]
    shape: tuple[int, ...]
    scales: tuple[Codes, ...] = ()

    def __post_init__(self) -> None:
        if max(-self.lowest, self.lowest + self.span - 1) > CODE_MAX:
            raise ValueError(f"a magnitude beyond ±{CODE_MAX}")

    @cached_property
    def lowest(self) -> int:
        """The smallest that there could be."""
        smallest = sum(int(item.values.min()) for item in self.codes)
        return smallest - sum(int(item.values.max()) for item in self.scales)

    @cached_property
    def span(self) -> int:
        """How many different ones there could be."""
        return 1 + sum(int(np.ptp(item.values)) for item in (*self.codes, *self.scales))

    def run(self, begin: int, end: int) -> Symbols:
        """How much more than the smallest is that of each weight from number `begin` up to `end`, i32[end − begin]."""
        total = np.full(end - begin, -self.lowest, np.int32)
        for item in self.codes:
            total += item.run(self.shape, begin, end)
        for item in self.scales:
            total -= item.run(self.shape, begin, end)
        return total

    @cached_property
    def sizes(self) -> Integers:
        """How many weights have each magnitude from the smallest on, i64[span]."""
        size = math.prod(self.shape)
        if self.span == 1:
            return np.array([size])
        sizes = np.zeros(self.span, np.int64)
        for begin in range(0, size, _BLOCK):
            sizes += np.bincount(self.run(begin, min(begin + _BLOCK, size)), minlength=self.span)
        return sizes


@dataclass(frozen=True, eq=False)
class Spread:
    """How the symbols of a layer are coded: by Student's t, with the magnitudes of its weights.

    `trellis`: whether the symbols are those of a trellis.
    """

    student: Student
    magnitudes: Magnitudes
    trellis: bool

    def encode(self, symbols: Symbols, executor: Executor | None) -> list[bytes]:
        """The streams of symbols i32[n], all of them in cells of the distribution.

        Raises:
            ValueError: a magnitude beyond its bound.
        """
        magnitudes = self.magnitudes
        groups = [symbols] if magnitudes.span == 1 else grouped(symbols, magnitudes.run, magnitudes.sizes)
        jobs = (
            [(magnitudes.lowest + run.group, groups[run.group][run.begin : run.end]) for run in runs]
            for runs in self._runs()
        )
        return list(ordered(executor, _encoded, itertools.repeat(self.student), itertools.repeat(self.trellis), jobs))

    def decode(self, streams: Sequence[bytes], executor: Executor | None, step: int = 1) -> Iterator[Symbols]:
        """The symbols that `encode` was given in the order of their magnitudes, those of one stream after another.

        Args:
            streams: of the layer, all of them.
            executor: where they are decoded; None: here.
            step: of so many streams one is decoded.

        Raises:
            CorruptArchive: there are more or fewer streams than that, or (later) they do not hold the symbols.
            ValueError: (later) a magnitude beyond its bound.
        """
        lowest, jobs = self.magnitudes.lowest, list(self._runs())
        if len(streams) != len(jobs):
            raise CorruptArchive(f"{len(streams)} streams instead of {len(jobs)}; the archive is damaged")
        sizes = ([(lowest + run.group, run.end - run.begin) for run in runs] for runs in jobs[::step])
        return ordered(
            executor, _decoded, itertools.repeat(self.student), itertools.repeat(self.trellis), sizes, streams[::step]
        )

    def _runs(self) -> Iterator[list[_Run]]:
        """The runs of each stream."""
        runs: list[_Run] = []
        room = STREAM_SYMBOLS
        for group, size in enumerate(self.magnitudes.sizes.tolist()):
            begin = 0
            while begin < size:
                runs.append(_Run(group, begin, min(begin + room, size)))
                room -= runs[-1].end - begin
                begin = runs[-1].end
                if not room:
                    yield runs
                    runs, room = [], STREAM_SYMBOLS
        if runs:
            yield runs


class _Run(NamedTuple):
    """From which to which weight of those of a magnitude, which is so much more than the lowest."""

    group: int
    begin: int
    end: int


# Jobs of a pool of processes: what they take and return has to pickle.


def _encoded(student: Student, trellis: bool, parts: Sequence[tuple[int, Symbols]]) -> bytes:
    """One stream of symbols: those of one magnitude after another, each magnitude with its symbols."""
    bits = student.low_bits
    runs = [((symbols >> bits) - student.first, student.frequencies(number, trellis)) for number, symbols in parts]
    if bits:
        runs.append((np.concatenate([symbols for _, symbols in parts]) & ((1 << bits) - 1), _even(bits)))
    return coder.encode_runs(runs)


def _decoded(student: Student, trellis: bool, sizes: Sequence[tuple[int, int]], stream: bytes) -> Symbols:
    """All symbols of a stream in its order, i32[n], of magnitudes each with the number of its symbols.

    Raises:
        CorruptArchive: the stream does not hold them.
        ValueError: a magnitude beyond its bound.
    """
    bits = student.low_bits
    runs = ((student.frequencies(number, trellis), size) for number, size in sizes)
    low = [(_even(bits), sum(size for _, size in sizes))] if bits else []
    parts = coder.decode_runs(stream, itertools.chain(runs, low))
    symbols = np.concatenate(parts[: len(sizes)])
    symbols += student.first
    symbols <<= bits
    if bits:
        symbols += parts[-1]
    return symbols


def _even(bits: int) -> Integers:
    """Frequencies of numbers of so many bits that are all as likely."""
    return np.full(1 << bits, 1 << (PRECISION - bits), np.int64)
