"""Symbols in the order of the layer ↔ streams in the order of their magnitudes, each coded as far as it spreads.

A weight's magnitude is the sum of the codes of its slices along several axes, such as its row and its column. Weights
of a magnitude are spread as Student's t of its scale says, so that many of them cost no more than their codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from riq_cli import coder
from riq_cli.codec.classes import grouped, scattered
from riq_cli.errors import CorruptArchive
from riq_cli.limits import CODE_MAX, STREAM_SYMBOLS
from riq_cli.quantizer import Codes, Symbols
from riq_cli.student import Student

Integers = NDArray[np.int64]

_BLOCK = 1 << 18


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """The codes of magnitudes of a layer of some shape; none: all weights have magnitude 0.

    Where they are those of weights, and the bins are as wide as the codes of `scales` say, the symbols' own are smaller
    by as much.
    """

    codes: tuple[Codes, ...]
    shape: tuple[int, ...]
    scales: tuple[Codes, ...] = ()

    def __post_init__(self) -> None:
        if max(-self.lowest, self.lowest + self.count - 1) > CODE_MAX:
            raise ValueError(f"a magnitude beyond ±{CODE_MAX}")

    @property
    def lowest(self) -> int:
        """The smallest that there could be."""
        return sum(int(each.min()) for each in self._signed)

    @property
    def count(self) -> int:
        """How many different ones there could be."""
        return 1 + sum(int(each.max()) for each in self._signed) - self.lowest

    @property
    def _signed(self) -> list[Symbols]:
        return [*(item.values for item in self.codes), *(-item.values for item in self.scales)]

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
        """How many weights have each magnitude from the smallest on, i64[count]."""
        size = math.prod(self.shape)
        sizes = np.zeros(self.count, np.int64)
        for begin in range(0, size, _BLOCK):
            sizes += np.bincount(self.run(begin, min(begin + _BLOCK, size)), minlength=self.count)
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
        """The streams of symbols i32[n], all of them in cells of the distribution."""
        groups = grouped(symbols, self.magnitudes.run, self.magnitudes.sizes)
        bits, first = self.student.low_bits, self.student.first

        def jobs() -> Iterator[list[tuple[Symbols, Integers]]]:
            for runs in self._runs():
                parts = [(groups[group][begin:end], frequencies) for group, begin, end, frequencies in runs]
                cells = [((part >> bits) - first, frequencies) for part, frequencies in parts]
                low = [(np.concatenate([part for part, _ in parts]) & ((1 << bits) - 1), _even(bits))] if bits else []
                yield cells + low

        if executor is None:
            return [coder.encode_runs(job) for job in jobs()]
        return [job.result() for job in [executor.submit(coder.encode_runs, job) for job in jobs()]]

    def decode(self, streams: Sequence[bytes], executor: Executor | None) -> Symbols:
        """The symbols that `encode` was given.

        Raises:
            CorruptArchive: the streams do not hold them.
            ValueError: a magnitude beyond its bound.
        """
        bits, first = self.student.low_bits, self.student.first
        jobs = list(self._runs())
        if len(streams) != len(jobs):
            raise CorruptArchive(f"{len(streams)} streams instead of {len(jobs)}; the archive is damaged")

        def decoded(stream: bytes, runs: list[tuple[int, int, int, Integers]]) -> list[Symbols]:
            sizes = [end - begin for _, begin, end, _ in runs]
            low = [(_even(bits), sum(sizes))] if bits else []
            parts = coder.decode_runs(stream, [*((run[3], size) for run, size in zip(runs, sizes, strict=True)), *low])
            for part in parts[: len(runs)]:
                part += first
                part <<= bits
            for part, more in zip(parts, np.split(parts[-1], np.cumsum(sizes)[:-1]) if bits else (), strict=False):
                part += more
            return parts[: len(runs)]

        groups = [np.empty(size, np.int32) for size in self.magnitudes.sizes.tolist()]
        decode_all = map if executor is None else executor.map
        for runs, parts in zip(jobs, decode_all(decoded, streams, jobs), strict=True):
            for (group, begin, end, _), part in zip(runs, parts, strict=True):
                groups[group][begin:end] = part
        return scattered(groups, self.magnitudes.run)

    def _runs(self) -> Iterator[list[tuple[int, int, int, Integers]]]:
        """For each stream its runs: from which to which weight of which magnitude, with what frequencies."""
        runs: list[tuple[int, int, int, Integers]] = []
        room = STREAM_SYMBOLS
        for group, size in enumerate(self.magnitudes.sizes.tolist()):
            frequencies = self.student.frequencies(self.magnitudes.lowest + group, self.trellis) if size else None
            begin = 0
            while frequencies is not None and begin < size:
                end = min(begin + room, size)
                runs.append((group, begin, end, frequencies))
                room -= end - begin
                begin = end
                if not room:
                    yield runs
                    runs, room = [], STREAM_SYMBOLS
        if runs:
            yield runs


def _even(bits: int) -> Integers:
    """Frequencies of numbers of so many bits that are all as likely."""
    return np.full(1 << bits, 1 << (24 - bits), np.int64)
