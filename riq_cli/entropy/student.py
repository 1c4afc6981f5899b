"""Coding by Student's t: frequencies of symbols follow from a few numbers and from contexts, without a table.

The distribution function of an even number of degrees of freedom is made of products, quotients and a square root,
which IEEE 754 rounds identically everywhere: FORMAT.md, "Student", gives frequencies to the last bit. Two degrees of
freedom have heavy tails, 32 are a Gaussian to all purposes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.entropy.ans import PRECISION, decode_runs, encode_runs, in_proportion
from riq_cli.entropy.bits import Bits, golomb, packed, unzigzag, zigzag
from riq_cli.entropy.codes import Symbols
from riq_cli.entropy.contexts import Contexts, grouped
from riq_cli.entropy.histogram import COUNT_ORDER, FIRST_ORDER
from riq_cli.errors import CorruptArchive
from riq_cli.executors import ordered
from riq_cli.limits import CELLS, CODE_MAX, QUARTERS, STREAM_SYMBOLS

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]

FREEDOM_MAX, LOW_BITS_MAX = 5, 15
_SCALE_ORDER, _CENTER_ORDER = 4, 0  # of the Exp-Golomb codes
_FREEDOM_BITS, _LOW_BITS = 3, 4
_UNIT = 2.0**32  # of masses
_SYMBOL_BOUND = 1 << 31
_MASSES = 1 << 14  # that are computed at once, about


@dataclass(frozen=True)
class Student:
    """The distribution of a layer's symbols, and the cells in which they are coded.

    `freedom` i: 2^(i + 1) degrees of freedom; `relative`: whether contexts are those of weights, so that symbols of
    wider bins are smaller; `scale`: in quarters of an octave, 0 for one bin width; `center`: the symbol in the middle.
    A cell is a run of 2^`low_bits` symbols, cell 0 begins with symbol 0; there are `cells` of them from `first` on.
    """

    freedom: int
    relative: bool
    scale: int
    center: int
    low_bits: int
    first: int
    cells: int

    def __post_init__(self) -> None:
        if (
            not 0 <= self.freedom <= FREEDOM_MAX
            or not 0 <= self.low_bits <= LOW_BITS_MAX
            or not 2 <= self.cells <= CELLS
            or max(abs(self.center), -self.low, self.high) >= _SYMBOL_BOUND
            or abs(self.scale) > CODE_MAX
        ):
            raise ValueError("a distribution has impossible numbers")

    @property
    def low(self) -> int:
        """The smallest symbol of its cells."""
        return self.first << self.low_bits

    @property
    def high(self) -> int:
        """The largest symbol of its cells."""
        return ((self.first + self.cells) << self.low_bits) - 1

    def to_bytes(self) -> bytes:
        """The numbers as FORMAT.md packs them."""
        return packed(
            [
                format(self.freedom, f"0{_FREEDOM_BITS}b"),
                format(self.relative, "b"),
                format(self.low_bits, f"0{_LOW_BITS}b"),
                golomb(zigzag(self.scale), _SCALE_ORDER),
                golomb(zigzag(self.center), _CENTER_ORDER),
                golomb(zigzag(self.first), FIRST_ORDER),
                golomb(self.cells - 1, COUNT_ORDER),
            ]
        )

    @classmethod
    def from_bytes(cls, stored: bytes) -> Student:
        """The numbers that `to_bytes` packed.

        Raises:
            CorruptArchive: cut off, too long, or with values that no encoder writes.
        """
        reader = Bits(stored)
        freedom, relative, low_bits = reader.bits(_FREEDOM_BITS), reader.bits(1) == 1, reader.bits(_LOW_BITS)
        scale, center = (unzigzag(reader.golomb(order)) for order in (_SCALE_ORDER, _CENTER_ORDER))
        first, cells = unzigzag(reader.golomb(FIRST_ORDER)), reader.golomb(COUNT_ORDER) + 1
        if reader.finish() < len(stored):
            raise CorruptArchive("the numbers of a distribution are too long; the archive is damaged")
        try:
            return cls(freedom, relative, scale, center, low_bits, first, cells)
        except ValueError as error:
            raise CorruptArchive(f"{error}; the archive is damaged") from error

    def frequencies(self, contexts: int | Integers, trellis: bool) -> Integers:
        """The frequency of each cell, i64[…, cells], of sum 2²⁴, for weights of a context or of each of several.

        A context is in quarters of an octave; the middle of symbols of a trellis is a quarter of a bin below `center`.

        Raises:
            ValueError: a context beyond its bound.
        """
        codes = self.scale + np.asarray(contexts)
        if np.abs(codes).max() > CODE_MAX:
            raise ValueError(f"a magnitude beyond ±{CODE_MAX}")
        edges = np.arange(self.first, self.first + self.cells + 1, dtype=np.int64) << self.low_bits
        below = share_below(4.0 * (edges - self.center) - (1.0 if trellis else 2.0), codes[..., None], self.freedom)
        return in_proportion(1 + (_UNIT * np.maximum(np.diff(below), 0.0)).astype(np.int64))


@dataclass(frozen=True, eq=False)
class StudentCoding:
    """What encoder and decoder share of a layer; `trellis`: whether symbols are those of a trellis."""

    student: Student
    contexts: Contexts
    trellis: bool

    def encode(self, symbols: Symbols, executor: Executor | None) -> list[bytes]:
        """The streams of symbols i32[n], all of them in cells of the distribution.

        Raises:
            ValueError: a context beyond its bound.
        """
        contexts = self.contexts
        groups = [symbols] if contexts.span == 1 else grouped(symbols, contexts)
        jobs = (
            [(contexts.lowest + group, groups[group][begin:end]) for group, begin, end in runs]
            for runs in self._streams()
        )
        return list(ordered(executor, _encoded, itertools.repeat(self.student), itertools.repeat(self.trellis), jobs))

    def decode(self, streams: Sequence[bytes], executor: Executor | None, step: int = 1) -> Iterator[Symbols]:
        """The symbols that `encode` was given in the order of their contexts, those of one stream after another.

        Of `step` streams, one is decoded.

        Raises:
            CorruptArchive: there are more or fewer streams than that, or (later) they do not hold the symbols.
            ValueError: (later) a context beyond its bound.
        """
        lowest, jobs = self.contexts.lowest, list(self._streams())
        if len(streams) != len(jobs):
            raise CorruptArchive(f"{len(streams)} streams instead of {len(jobs)}; the archive is damaged")
        sizes = ([(lowest + group, end - begin) for group, begin, end in runs] for runs in jobs[::step])
        return ordered(
            executor, _decoded, itertools.repeat(self.student), itertools.repeat(self.trellis), sizes, streams[::step]
        )

    def _streams(self) -> Iterator[list[tuple[int, int, int]]]:
        """The runs of each stream: of a group of weights with the same context, from which weight up to which."""
        runs, room = [], STREAM_SYMBOLS
        for group, size in enumerate(self.contexts.sizes.tolist()):
            begin = 0
            while begin < size:
                end = min(begin + room, size)
                runs.append((group, begin, end))
                room -= end - begin
                begin = end
                if not room:
                    yield runs
                    runs, room = [], STREAM_SYMBOLS
        if runs:
            yield runs


def share_below(quarters: Floats, codes: int | Floats | Integers, freedom: int) -> Floats:
    """The share of symbols below places in quarters of a bin from the middle, in this very order of operations.

    Codes of scales and places are broadcast.
    """
    degrees = float(2 << freedom)
    whole, quarter = np.divmod(codes, 4)
    value = quarters / 4 / np.ldexp(np.take(QUARTERS, np.asarray(quarter, np.intp)), np.asarray(whole, np.int32))
    root = np.sqrt(degrees + value * value)
    share = degrees / (root * root)
    total = np.ones(np.shape(share))
    for number in range((1 << freedom) - 1, 0, -1):
        total = 1 + total * share * ((2 * number - 1) / (2 * number))
    result: Floats = 0.5 + value / root * total / 2
    return result


# Jobs of a pool of processes: what they take and return has to pickle.


def _encoded(student: Student, trellis: bool, parts: Sequence[tuple[int, Symbols]]) -> bytes:
    """One stream of symbols: those of one context after another, each context with its symbols."""
    bits = student.low_bits
    indices = ((symbols >> bits) - student.first for _, symbols in parts)
    runs = list(zip(indices, _frequencies(student, [context for context, _ in parts], trellis), strict=True))
    if bits:
        runs.append((np.concatenate([symbols for _, symbols in parts]) & ((1 << bits) - 1), _even(bits)))
    return encode_runs(runs)


def _decoded(student: Student, trellis: bool, sizes: Sequence[tuple[int, int]], stream: bytes) -> Symbols:
    """All symbols of a stream in its order, i32[n], of contexts each with the number of its symbols.

    Raises:
        CorruptArchive: the stream does not hold them.
        ValueError: a context beyond its bound.
    """
    bits = student.low_bits
    frequencies = _frequencies(student, [context for context, _ in sizes], trellis)
    runs = zip(frequencies, (size for _, size in sizes), strict=True)
    low = [(_even(bits), sum(size for _, size in sizes))] if bits else []
    parts = decode_runs(stream, itertools.chain(runs, low))
    symbols = np.concatenate(parts[: len(sizes)])
    symbols += student.first
    symbols <<= bits
    if bits:
        symbols += parts[-1]
    return symbols


def _frequencies(student: Student, contexts: Sequence[int], trellis: bool) -> Iterator[Integers]:
    """The frequencies of each of some contexts, some computed at once: numpy is slow in small pieces."""
    step = max(1, _MASSES // student.cells)
    for begin in range(0, len(contexts), step):
        yield from student.frequencies(np.array(contexts[begin : begin + step]), trellis)


def _even(bits: int) -> Integers:
    """Frequencies of numbers of so many bits that are all as likely."""
    return np.full(1 << bits, 1 << (PRECISION - bits), np.int64)
