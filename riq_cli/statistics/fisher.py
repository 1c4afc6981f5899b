"""Gradients at a layer's products → second moments G of its rows: which errors of rows reach the outputs.

With A, they are the two factors of a Kronecker-factored Fisher matrix (J. Martens, R. Grosse,
https://arxiv.org/abs/1503.05671). The gradient of a layer's weights in one sample is V = Σ g xᵀ over all positions of
the product; here G = E[V e eᵀ Vᵀ] over random errors e of a row as GPTQ leaves them, so that positions that share an
error add up as they do in the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from riq_cli.model import Linear
from riq_cli.statistics.autodiff import Array, Floats
from riq_cli.statistics.gradients import Observed, Tick
from riq_cli.statistics.moments import Float64, bounds_of

ERRORS = 8  # random errors of a row in each sample
Take = Callable[[int, int, Floats], None]  # a layer, a run, and products

_PIECE = 1 << 20  # numbers of a layer's input that are held as rows at a time
_PANELS = 8  # into which the moments of a block are cut
_ABOVE = 1e6  # a product that is so much larger than those before it changes the scale of what is kept


class Fisher:
    """Second moments G = E[d dᵀ], over all that were added: d[r] is how far an error of row r moves the outputs.

    Of many rows, only moments within `blocks` of them are kept: pairs of a group and the numbers of rows.
    """

    def __init__(
        self,
        groups: int,
        rows: int,
        most: int,
        diagonal: bool,
        keep: Callable[[Floats], Floats] = lambda values: values,
    ) -> None:
        """None yet.

        Args:
            groups: matrices of the layer.
            rows: of each.
            most: rows of a block.
            diagonal: keep only squares.
            keep: the same values in memory where they have room.
        """
        self.count = 0
        blocks = [] if diagonal else _blocks(rows, most)
        self.blocks = [(group, block) for group in range(groups) for block in blocks]
        self._squares = np.zeros((groups, rows))
        self._moments = [[*map(keep, _zeros(len(block)))] for _, block in self.blocks]
        self._scale = 0.0  # of what is in the moments: float32 holds no squares of very small numbers

    def add(self, products: Floats) -> None:
        """Take products in, [count, groups, rows]; those not finite are left out."""
        if not np.isfinite(products).all():
            products = products[np.isfinite(products).all(axis=(1, 2))]
        self.count += len(products)
        self._squares += np.einsum("cgn,cgn->gn", products, products, dtype=np.float64)
        if not self.blocks:
            return
        largest = float(np.max(np.abs(products), initial=0))
        if largest > _ABOVE * self._scale:
            for panel in itertools.chain(*self._moments):
                panel *= np.float32((self._scale / largest) ** 2)
            self._scale = largest
        for panels, (group, block) in zip(self._moments, self.blocks, strict=True):
            part = products[:, group, block] / np.float32(self._scale or 1)
            for panel in panels:
                rest = part[:, len(block) - panel.shape[1] :]
                panel += rest[:, : len(panel)].T @ rest

    @property
    def is_usable(self) -> bool:
        """Whether anything was added that is not zero."""
        return self.count > 0 and bool(self._squares.any())

    @property
    def squares(self) -> Float64:
        """The diagonal of G, f64[groups, rows]."""
        result: Float64 = self._squares / max(self.count, 1)
        return result

    @property
    def moments(self) -> list[Float64]:
        """G within each of the blocks, f64[rows, rows]; none if only squares were kept."""
        scale = self._scale**2 / max(self.count, 1)
        return [_whole(panels) * scale for panels in self._moments]


def _zeros(rows: int) -> list[Floats]:
    """Moments of a block, a few rows after another, each with the columns from its own on: the others are the same."""
    bounds = bounds_of(rows, _PANELS)
    return [np.zeros((end - begin, rows - begin), np.float32) for begin, end in bounds if end > begin]


def _whole(panels: Sequence[Floats]) -> Float64:
    """All moments of a block, f64[rows, rows]."""
    rows = panels[0].shape[1]
    result = np.empty((rows, rows))
    for panel in panels:
        begin = rows - panel.shape[1]
        result[begin : begin + len(panel), begin:] = panel
        result[begin:, begin : begin + len(panel)] = panel.T
    return result


def _blocks(rows: int, most: int) -> list[NDArray[np.int64]]:
    """All rows in blocks of about the same length, `most` at most."""
    return [np.arange(begin, end) for begin, end in bounds_of(rows, -(-rows // most))]


def collect_fisher(
    observed: Observed, linear: Mapping[int, Linear], most: int, few: int, products: Callable[[Take], set[int]]
) -> dict[int, tuple[Fisher, Fisher]]:
    """G of layers over the two halves of the samples, by their numbers, where gradients are known.

    Args:
        observed: the model and samples.
        linear: the layers.
        most: rows of a block at most.
        few: of fewer rows only squares are kept.
        products: gives what `error_products` gives, for all runs.
    """
    shapes = {number: item.matrix.shape[:2] for number, item in linear.items()}
    halves = {
        number: (
            Fisher(*shape, most, shape[1] < few, observed.keep),
            Fisher(*shape, most, shape[1] < few, observed.keep),
        )
        for number, shape in shapes.items()
    }

    def take(number: int, run: int, found: Floats) -> None:
        halves[number][run in observed.second].add(found)

    known = products(take)
    return {number: both for number, both in halves.items() if number in known and all(one.is_usable for one in both)}


def error_products(
    observed: Observed,
    linear: Mapping[int, Linear],
    errors: Mapping[int, Floats],
    tick: Tick,
    probes: int,
    runs: Sequence[int],
    take: Take,
) -> set[int]:
    """The layers for which `take` was called with all that they come to; it may have been called for others too.

    Args:
        observed: the model and samples.
        linear: the layers.
        errors: random errors of a row of each layer, f32[groups, columns, n]: `ERRORS` of them are used in each run.
        tick: called with steps through the model done, and their number in all.
        probes: output directions in each run.
        runs: their numbers.
        take: called with a layer, a run, and how far errors of its rows move the outputs, see `Fisher.add`.

    Raises:
        ModelError: onnxruntime cannot run the model so that its inner tensors are seen.
    """

    def products(number: int, index: int, run: int, value: Array, gradient: Floats) -> Floats:
        first = run * ERRORS % errors[number].shape[2]
        return _products(linear[number], index, value, gradient, errors[number][:, :, first : first + ERRORS])

    return _summed(observed, linear, products, tick, probes, runs, take)


def deviations(
    observed: Observed,
    linear: Mapping[int, Linear],
    change: Callable[[int], tuple[Floats, Floats | float]],
    tick: Tick,
    probes: int,
) -> dict[int, float]:
    """The deviation that a change of each layer alone causes, to first order, where gradients are known.

    With the gradient V of a layer's weights and their change δ, it is ½ E[⟨V, δ⟩²].

    Args:
        observed: the model and samples.
        linear: the layers.
        change: of a layer's weights, f32[groups, columns, rows], and of its bias, f32[groups, 1, rows] or 0.
        tick: called with steps through the model done, and their number in all.
        probes: output directions in each run.

    Raises:
        ModelError: onnxruntime cannot run the model so that its inner tensors are seen.
    """
    found: dict[int, list[float]] = {number: [] for number in linear}
    rows = [sample.rows for sample in observed.samples]

    def products(number: int, index: int, _: int, value: Array, gradient: Floats) -> Floats:
        entering, leaving = linear[number].products[index]
        weights, bias = change(number)
        at = [leaving.rows(one, len(weights)) for one in gradient]  # [groups, positions, rows]
        step = max(_PIECE // (len(weights) * max(weights.shape[1:])), 1)
        moved = np.zeros(len(at), np.float32)
        for piece, product in enumerate(entering.products(value, weights, step)):
            positions = slice(piece * step, piece * step + product.shape[1])
            moved += [np.vdot(one[:, positions], product + bias) for one in at]
        return moved

    def take(number: int, run: int, moved: Floats) -> None:
        found[number].append(float(np.square(moved).mean()) / (2 * rows[run]))

    known = _summed(observed, linear, products, tick, probes, range(len(rows)), take)
    return {number: float(np.mean(each)) for number, each in found.items() if number in known and each}


def _summed(
    observed: Observed,
    linear: Mapping[int, Linear],
    products: Callable[[int, int, int, Array, Floats], Floats],
    tick: Tick,
    probes: int,
    runs: Sequence[int],
    take: Take,
) -> set[int]:
    """What `error_products` returns; `take` is called with what `products` gives, summed over a layer's products.

    Args:
        observed, linear, tick, probes, runs, take: see `error_products`.
        products: of a layer, the number of a product of it, a run, what enters the product, and gradients at it.
    """
    sums: dict[tuple[int, int], tuple[int, Floats]] = {}  # of layers with several products: how many so far, their sum

    def add(number: int, index: int, run: int, value: Array | None, gradient: Floats) -> None:
        assert value is not None
        count, found = len(linear[number].products), products(number, index, run, value, gradient)
        if count > 1:
            done, total = sums.pop((number, run), (0, np.float32(0)))
            found = total + found
            if done + 1 < count:
                sums[number, run] = done + 1, found
                return
        take(number, run, found)

    return observed.gradients(linear, add, tick, probes, runs)


def _products(item: Linear, index: int, value: Array, gradients: Floats, errors: Floats) -> Floats:
    """How far errors move the outputs by one of a layer's products in one run, V e, f32[probes · errors, groups, rows].

    Args:
        item: the layer.
        index: of the product.
        value: of the layer's input.
        gradients: at the product, [probes, *shape].
        errors: of a row of weights, f32[groups, columns, errors].
    """
    entering, leaving = item.products[index]
    groups, columns, count = errors.shape
    step = max(_PIECE // (groups * max(columns, count)), 1)
    at = [leaving.rows(gradient, groups) for gradient in gradients]  # [groups, positions, rows]
    found = np.zeros((len(at), groups, at[0].shape[2], count), np.float32)
    for number, products in enumerate(entering.products(value, errors, step)):
        piece = slice(number * step, number * step + products.shape[1])
        for total, gradient in zip(found, at, strict=True):
            total += np.matmul(gradient[:, piece].swapaxes(1, 2), products)
    return found.transpose(0, 3, 1, 2).reshape(len(at) * count, *found.shape[1:3])
