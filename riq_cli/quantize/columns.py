"""Columns of weights → symbols, one after another: errors of each are fed forward to those after it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from riq_cli.quantize.factor import Factor, Floats, Integers
from riq_cli.quantize.trellis import Viterbi

_LEAF = 8  # columns that are rounded one by one; wider blocks go by halves, so that most of the work is matrix products
_SMALL, _FEW = 64, 4  # columns and rows up to which many groups go side by side
_TRELLIS_LEAF = 64  # columns after which the best path through a trellis is kept alone, with error feedback
_TRELLIS_ALONE = 128  # … and without


def round_all(
    left: Floats,
    bins: Floats,
    factors: Sequence[Factor],
    symbols: Integers,
    errors: Floats,
    paths: Viterbi | None,
) -> None:
    """Round all columns f32[groups, K, rows], as `round_columns` does those of one factor; without any, to the nearest.

    Args:
        left: the weights, used up.
        bins: their bin widths.
        factors: of all columns, in order.
        symbols: written.
        errors: written.
        paths: through a trellis, at the beginning of their lanes; None: to the nearest.
    """
    for factor in factors:
        part = slice(factor.begin, factor.end)
        round_columns(left[:, part], bins[:, part], factor.upper, symbols[:, part], errors[:, part], paths)
    if not factors:
        round_alone(left, bins, symbols, errors, paths)


def round_alone(left: Floats, bins: Floats, symbols: Integers, errors: Floats, paths: Viterbi | None) -> None:
    """Round columns without error feedback, as `round_columns` does with it."""
    if paths is None:
        rounded = np.rint(left / bins)
        symbols[...] = rounded
        np.subtract(left, rounded * bins, out=errors)
        return
    for first in range(0, left.shape[1], _TRELLIS_ALONE):
        part = slice(first, first + _TRELLIS_ALONE)
        paths.extend(left[:, part], bins[:, part], None, symbols[:, part], errors[:, part])


def round_columns(
    left: Floats, bins: Floats, upper: Floats, symbols: Integers, errors: Floats, paths: Viterbi | None = None
) -> None:
    """Round the columns f32[groups, K, rows] of `left`, which may be used up, and write symbols and scaled errors.

    With a trellis its paths go on, and levels are written for symbols.
    """
    groups, size, rows = left.shape
    if size > (_LEAF if paths is None else _TRELLIS_LEAF) and not (groups > 1 and rows < _FEW and size <= _SMALL):
        middle = size // 2
        first, second = slice(0, middle), slice(middle, size)
        round_columns(
            left[:, first], bins[:, first], upper[:, first, first], symbols[:, first], errors[:, first], paths
        )
        left[:, second] -= np.matmul(upper[:, first, second].transpose(0, 2, 1), errors[:, first])
        round_columns(
            left[:, second], bins[:, second], upper[:, second, second], symbols[:, second], errors[:, second], paths
        )
        return
    if paths is not None:
        paths.extend(left, bins, upper, symbols, errors)
        return
    # Errors of a column are scaled by what it has on the diagonal, in the end, those of all columns at once.
    diagonal = np.ascontiguousarray(np.einsum("gii->ig", upper))[..., None]
    feedback = np.ascontiguousarray(upper.transpose(1, 2, 0) / diagonal.swapaxes(1, 2))[..., None]
    missing, widths = (np.ascontiguousarray(part.swapaxes(0, 1)) for part in (left, bins))
    for column, (weights, width) in enumerate(zip(missing, widths, strict=True)):
        rounded = weights / width
        np.rint(rounded, out=rounded)
        symbols[:, column] = rounded
        rounded *= width
        weights -= rounded
        if column + 1 < size:
            missing[column + 1 :] -= feedback[column, column + 1 :] * weights
    missing /= diagonal
    errors[...] = missing.swapaxes(0, 1)
