"""Weights → symbols with error compensation: each column's rounding error is pushed onto the columns after it.

With second moments H = E[x xᵀ] of what a matrix W is multiplied with, rounding to Ŵ moves the outputs by
tr((Ŵ − W) H (Ŵ − W)ᵀ) on average. Columns are rounded one after another; what the error of one does to the outputs is
undone as well as later columns can (optimal brain quantization; GPTQ's order and factorization). With H⁻¹ = UᵀU, U
upper triangular, the error left is Σ_j ‖w_j − ŵ_j‖² / U_jj² of the columns as they were when they were rounded: bin
widths proportional to U_jj make all columns contribute alike, which costs the least rate (WaterSIC's allocation).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli import trellis
from riq_cli.trellis import Ways

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int32]
_Chosen = tuple[slice, slice | NDArray[np.int64]]  # groups and rows

CODES_MAX = 16  # of a column: 2⁴ times wider or narrower than the layer's bin width
_LEAF = 8  # columns that are rounded one by one; wider blocks go by halves, so that most of the work is matrix products
_SMALL = 64  # columns up to which many groups go side by side
_WAYS_LEAF = 64  # columns that ways through a trellis go on by, where errors of one spread to the others
_WAYS_ALONE = 128  # … where they do not
_WAYS_LANES = 1024  # lanes whose ways are followed side by side: so many stay in the processor's cache
_ROW_BLOCKS = 16  # in which rows are rounded one after another: more of them gain little and take long
_TINY = 1e-30  # of second moments that are all zero


class Factor:
    """How errors spread among the columns `begin … end` of every group: U, upper triangular.

    Only the triangle is kept: the factors of all layers are held as long as the search goes on.
    """

    def __init__(self, begin: int, end: int, upper: NDArray[np.float32]) -> None:
        """Pack `upper`, f32[groups, columns, columns]."""
        self.begin, self.end = begin, end
        groups, size, _ = upper.shape
        self._packed = np.empty((groups, size * (size + 1) // 2), np.float32)
        for row, place in enumerate(self._rows()):
            self._packed[:, place] = upper[:, row, row:]

    @property
    def upper(self) -> NDArray[np.float32]:
        """U, f32[groups, columns, columns], in memory of its own."""
        size = self.end - self.begin
        result = np.zeros((len(self._packed), size, size), np.float32)
        for row, place in enumerate(self._rows()):
            result[:, row, row:] = self._packed[:, place]
        return result

    @property
    def diagonal(self) -> NDArray[np.float32]:
        """U_jj, f32[groups, columns]."""
        return self._packed[:, [place.start for place in self._rows()]]

    def _rows(self) -> Iterator[slice]:
        """Where each row of the triangle is among the packed numbers."""
        end = 0
        for length in range(self.end - self.begin, 0, -1):
            begin, end = end, end + length
            yield slice(begin, end)


def factorized(moments: NDArray[np.float64], damping: float) -> NDArray[np.float32]:
    """U, upper triangular f32[groups, K, K], with (H + λ mean(diag H) I)⁻¹ = UᵀU.

    Args:
        moments: H f64[groups, K, K], symmetric and positive semidefinite.
        damping: λ > 0; more of it trusts the moments less.
    """
    groups, size, _ = moments.shape
    result = np.empty((groups, size, size), np.float32)
    for group, moment in enumerate(moments):
        # H = MMᵀ with M upper triangular comes from the Cholesky factor of H with rows and columns in reverse; U = M⁻¹.
        result[group] = _inverse(_cholesky(moment[::-1, ::-1], damping)[::-1, ::-1])
    return result


def _cholesky(moment: NDArray[np.float64], damping: float) -> NDArray[np.float64]:
    """The Cholesky factor of a damped moment; damped more, where what was summed in float32 leaves it indefinite."""
    level = max(float(np.trace(moment)) / len(moment), _TINY)
    result: NDArray[np.float64]
    while True:
        damped = moment.copy()
        np.einsum("ii->i", damped)[...] += damping * level
        try:
            result = np.asarray(np.linalg.cholesky(damped), np.float64)
            return result
        except np.linalg.LinAlgError:
            damping *= 10


def column_codes(factors: Sequence[Factor], exercised: NDArray[np.bool_]) -> Integers:
    """Relative bin widths of columns as codes i32[groups, K], quarters of an octave around their mean: ∝ U_jj.

    Args:
        factors: of all columns.
        exercised: bool[groups, K]: columns that the samples do not exercise get no wider bins than the mean.
    """
    diagonal = np.concatenate([factor.diagonal for factor in factors], axis=1)
    steps = np.log2(diagonal.astype(np.float64))
    codes = np.rint(4 * (steps - steps.mean()))
    result: Integers = np.clip(codes, -CODES_MAX, np.where(exercised, CODES_MAX, 0)).astype(np.int32)
    return result


@dataclass(frozen=True, eq=False)
class Spread:
    """How errors of some rows of a group are pushed onto others: they are rounded by blocks, in the order of `rows`.

    `blocks` hold for each the places of its rows in that order, and what part of their errors every later row takes
    over, f32[rows of the block, rows after it].
    """

    group: int
    rows: NDArray[np.int64]
    blocks: tuple[tuple[slice, NDArray[np.float32]], ...]


def spread(
    group: int, rows: NDArray[np.int64], moments: NDArray[np.float64], damping: float
) -> tuple[Spread, NDArray[np.float64]]:
    """How errors of rows are spread by how much, and how alike, these matter to the outputs.

    With G = E[g gᵀ] of the gradients g at the products of the rows, rounding moves the outputs by tr(Eᵀ G E H) on
    average, E = Ŵ − W. What rows of a block are off, the rows after it make up for as well as they can.

    Args:
        group: that the rows are in.
        rows: their numbers in it.
        moments: G f64[rows, rows] of these, in their order.
        damping: λ > 0, in units of the mean of G's diagonal.

    Returns:
        The spread, and how much each row matters when it is rounded, f64[rows]: G's diagonal without what later rows
        make up for, on average over blocks.
    """
    count = len(rows)
    block = np.arange(count) % min(_ROW_BLOCKS, count)  # neighbours are often alike: they go into different blocks
    order = np.argsort(block, kind="stable")
    upper = factorized(moments[None][:, order][:, :, order], damping)[0].astype(np.float64)
    blocks, importance = [], np.empty(count)
    end = 0
    for size in np.bincount(block).tolist():
        begin, end = end, end + size
        own = np.linalg.inv(upper[begin:end, begin:end])
        importance[order[begin:end]] = np.einsum("ij,ij->i", own, own)
        blocks.append((slice(begin, end), (own @ upper[begin:end, end:]).astype(np.float32)))
    return Spread(group, rows[order], tuple(blocks)), importance


def spread_error(
    spread: Spread, rows: NDArray[np.int64], moments: NDArray[np.float64], squares: NDArray[np.float64]
) -> float:
    """Σ E[eᵀ G e] of rows whose errors, as they are when they are rounded, have these mean squares.

    Args:
        spread: of these rows.
        rows: their numbers, ascending.
        moments: G f64[rows, rows] in that order, of other samples than the spread is of.
        squares: f64[rows], in that order.
    """
    order = np.searchsorted(rows, spread.rows)
    ways = np.eye(len(rows))  # from errors when rounded to those of the weights, in the order of the spread
    for place, shares in spread.blocks:
        ways[place.stop :, place] = shares.T
    # What a block is off was added to the targets of later rows: it is in their errors, as much as theirs are.
    moved = moments[np.ix_(order, order)] @ ways
    return float(np.einsum("ij,ij,j->", ways, moved, squares[order]))


def compensated(
    matrix: Floats,
    factors: Sequence[Factor],
    widths: NDArray[np.float64],
    spreads: Sequence[Spread] = (),
    importance: NDArray[np.float64] | None = None,
) -> tuple[Integers, float]:
    """Symbols i32[groups, rows, K] of error-compensated rounding, and the error of the outputs that they leave.

    Args:
        matrix: W [groups, rows, K], in any float type.
        factors: of all columns, in order; errors stay within a factor's columns. None: to the nearest.
        widths: bin widths > 0, broadcastable to W.
        spreads: of all rows of all groups, if errors spread among rows too.
        importance: weights of rows in the error, f64[groups, rows]; None: all are 1.

    Returns:
        The symbols, and Σ tr((Ŵ − W)(H + λI)(Ŵ − W)ᵀ) / max |W|² in the units of H.
    """
    return _rounded(matrix, factors, widths, spreads, importance, None)


def trellised(
    matrix: Floats,
    factors: Sequence[Factor],
    widths: NDArray[np.float64],
    spreads: Sequence[Spread] = (),
    importance: NDArray[np.float64] | None = None,
) -> tuple[Integers, float]:
    """Levels i32[groups, rows, K] of a trellis whose lanes are the rows, and the error, as `compensated` has it."""
    return _rounded(matrix, factors, widths, spreads, importance, max(_WAYS_LANES // matrix.shape[0], 1))


def _rounded(
    matrix: Floats,
    factors: Sequence[Factor],
    widths: NDArray[np.float64],
    spreads: Sequence[Spread],
    importance: NDArray[np.float64] | None,
    lanes: int | None,
) -> tuple[Integers, float]:
    """Symbols, or levels of a trellis whose ways are followed for so many lanes at a time."""
    groups, rows, size = matrix.shape
    peak = _peak(matrix)
    every = np.broadcast_to(widths, (widths.shape[0], widths.shape[1], size))
    uppers = [factor.upper for factor in factors]
    result = np.empty((groups, rows, size), np.int32)
    total = 0.0

    def some(left: Floats, chosen: _Chosen) -> Floats:
        """Round some rows, f32[groups, K, rows], which are used up; their bin widths times their symbols."""
        nonlocal total
        bins = (every[chosen] if every.shape[1] > 1 else every[chosen[0]]) / peak
        bins = np.broadcast_to(bins.transpose(0, 2, 1), left.shape).astype(np.float32)
        found, errors = np.empty(left.shape, np.int32), np.empty_like(left)
        _round_all(left, bins, factors, [upper[chosen[0]] for upper in uppers], found, errors, lanes is not None)
        result[chosen] = found.transpose(0, 2, 1)
        if importance is None:
            total += float(np.einsum("gkn,gkn->", errors, errors, dtype=np.float64))
        else:
            total += float(np.sum(np.einsum("gkn,gkn->gn", errors, errors, dtype=np.float64) * importance[chosen]))
        bins *= found
        return bins

    for spread in spreads:
        group = slice(spread.group, spread.group + 1)
        left = _columns(matrix[group, spread.rows], peak)
        for place, shares in spread.blocks:
            residual = np.ascontiguousarray(left[:, :, place])
            moved = some(residual.copy(), (group, spread.rows[place]))
            residual -= moved if lanes is None else moved / trellis.PARTS
            left[:, :, place.stop :] -= residual @ shares
    for begin in () if spreads else range(0, rows, lanes or rows):
        chosen = slice(None), slice(begin, begin + (lanes or rows))
        some(_columns(matrix[chosen], peak), chosen)
    return result, total


def _round_all(
    left: Floats,
    bins: Floats,
    factors: Sequence[Factor],
    uppers: Sequence[Floats],
    symbols: Integers,
    errors: Floats,
    trellised: bool,
) -> None:
    """Round all columns of some rows, as `_round` does those of one factor."""
    size = left.shape[1]
    ways = Ways(left.shape[0], left.shape[2]) if trellised else None
    for factor, upper in zip(factors, uppers, strict=True):
        part = slice(factor.begin, factor.end)
        _round(left[:, part], bins[:, part], upper, symbols[:, part], errors[:, part], ways)
    if factors:
        return
    if ways is None:
        symbols[...] = np.rint(left / bins)
        np.subtract(left, symbols * bins, out=errors)
        return
    for first in range(0, size, _WAYS_ALONE):
        part = slice(first, first + _WAYS_ALONE)
        ways.extend(left[:, part], bins[:, part], None, symbols[:, part], errors[:, part])


def _peak(matrix: Floats) -> float:
    """The largest magnitude; 1 of zeros."""
    return float(max(matrix.max(), -matrix.min())) or 1.0


def _columns(matrix: Floats, peak: float) -> NDArray[np.float32]:
    """The columns of W / peak, f32[groups, K, rows]: float32 holds them, whatever the scale of the weights."""
    groups, rows, size = matrix.shape
    result = np.empty((groups, size, rows), np.float32)
    np.divide(matrix.transpose(0, 2, 1), peak, out=result, dtype=np.float64, casting="same_kind")
    return result


def _round(
    left: Floats, bins: Floats, upper: Floats, symbols: Integers, errors: Floats, ways: Ways | None = None
) -> None:
    """Round the columns f32[groups, K, rows] of `left`, which is used up, and write symbols and scaled errors.

    With ways through a trellis, these go on, and levels are written for symbols.
    """
    groups, size, _ = left.shape
    if size > (_LEAF if ways is None else _WAYS_LEAF) and not (groups > 1 and size <= _SMALL):
        middle = size // 2
        first, second = slice(0, middle), slice(middle, size)
        _round(left[:, first], bins[:, first], upper[:, first, first], symbols[:, first], errors[:, first], ways)
        left[:, second] -= np.matmul(upper[:, first, second].transpose(0, 2, 1), errors[:, first])
        _round(left[:, second], bins[:, second], upper[:, second, second], symbols[:, second], errors[:, second], ways)
        return
    if ways is not None:
        ways.extend(left, bins, upper, symbols, errors)
        return
    for column in range(size):
        weights, width = left[:, column], bins[:, column]
        rounded = np.rint(weights / width)
        symbols[:, column] = rounded
        rounded *= width
        error = errors[:, column]
        np.subtract(weights, rounded, out=error)
        error /= upper[:, column, column, None]
        if column + 1 < size:
            left[:, column + 1 :] -= upper[:, column, column + 1 :, None] * error[:, None]


def _inverse(upper: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of an upper triangular matrix, by halves: mostly matrix products."""
    size = len(upper)
    if size <= _SMALL:
        result: NDArray[np.float64] = np.triu(np.linalg.inv(upper))
        return result
    middle = size // 2
    result = np.zeros_like(upper)
    first, second = _inverse(upper[:middle, :middle]), _inverse(upper[middle:, middle:])
    result[:middle, :middle], result[middle:, middle:] = first, second
    result[:middle, middle:] = -first @ upper[:middle, middle:] @ second
    return result
