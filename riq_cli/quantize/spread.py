"""Second moments of gradients → how errors of rows spread to the rows after them, and how much each row matters."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from riq_cli.quantize.factor import Damping, factorized, half

_BLOCKS = 32  # at most, in which rows are rounded one after another


@dataclass(frozen=True, eq=False)
class Spread:
    """How errors of some rows of a group are pushed onto others: they are rounded block after block.

    `rows` i64[blocks, length] are the numbers of the rows in that order, −1 where there is none. `shares` hold for each
    block what part of its errors later rows take over, f16[length, rows after the block].
    """

    group: int
    rows: NDArray[np.int64]
    shares: tuple[NDArray[np.float16], ...]

    def sparing(self, spared: NDArray[np.bool_]) -> Spread:
        """The same, except that some rows of the group take over nothing; their own errors spread as before."""
        flat = self.rows.reshape(-1)
        taking = ((flat >= 0) & ~spared[flat]).astype(np.float16)
        length = self.rows.shape[1]
        shares = (share * taking[(block + 1) * length :] for block, share in enumerate(self.shares))
        return replace(self, shares=tuple(shares))


def spread(
    group: int, rows: NDArray[np.int64], moments: NDArray[np.float64], damping: Damping
) -> tuple[Spread, NDArray[np.float64]]:
    """How errors of rows are spread by how much, and how alike, these matter to the outputs.

    With G = E[g gᵀ] of the gradients g at the products of the rows, and H of what the rows multiply, rounding moves the
    outputs by about tr(Eᵀ G E H), E = Ŵ − W. What rows of a block are off, the rows after it make up for as well as
    they can: for that, errors of rows spread by the factor of G, as errors of columns do by that of H.

    Args:
        group: that the rows are in.
        rows: their numbers in it, ascending.
        moments: G f64[rows, rows] of these, in their order.
        damping: of G, `even` > 0.

    Returns:
        The spread, and how much each row matters when it is rounded, f64[rows]: G's diagonal without what later blocks
        make up for.
    """
    count = len(rows)
    blocks = min(_BLOCKS, count)
    length = -(-count // blocks)
    blocks = -(-count // length)
    order = np.arange(blocks * length).reshape(length, blocks).T  # neighbours are often alike: into different blocks
    places = np.where(order < count, order, -1)
    flat = places.reshape(-1)
    there = np.flatnonzero(flat >= 0)
    turned = moments[np.ix_(flat[there], flat[there])]
    upper = np.eye(flat.size)
    upper[np.ix_(there, there)] = factorized(turned[None], damping)[0]
    importance = np.empty(count)
    shares = []
    for block in range(blocks):
        begin, end = block * length, (block + 1) * length
        own = np.linalg.inv(upper[begin:end, begin:end])
        used = flat[begin:end] >= 0
        importance[flat[begin:end][used]] = np.einsum("ij,ij->i", own, own)[used]
        shares.append(half(own @ upper[begin:end, end:]))
    return Spread(group, np.where(places >= 0, rows[places], -1), tuple(shares)), importance
