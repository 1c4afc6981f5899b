"""Layers that cannot be changed at all, such as indices in disguise and divisors near 0: they have to stay exact.

Nothing in a graph tells them for sure, so they are looked for where a model fails with other weights, and only there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from concurrent.futures import Executor

from riq_cli.errors import ModelError
from riq_cli.model import SessionForm
from riq_cli.pipeline.weights import Weights
from riq_cli.runtime import Evaluator


class UnchangeableError(Exception):
    """Some layers turned out to be unchangeable: whoever began has to begin again, with these exact."""

    def __init__(self, layers: Sequence[int]) -> None:
        """Take the numbers of the layers."""
        super().__init__("layers cannot be changed")
        self.layers = layers


def unchangeable(weights: Weights, evaluator: Evaluator, form: SessionForm, pool: Executor) -> list[int]:
    """Numbers of the layers because of which the model fails, or is infinitely far off, even at the finest bin widths.

    Found by halves: the layers of one are changed while all others are exact. Layers that only fail together are all
    taken for unchangeable.

    Args:
        weights: all layers that may be coded.
        evaluator: measures deviations, or at least runs the model.
        form: the model that it runs.
        pool: its threads work at the same time.
    """
    widths = weights.finest_widths()
    changed = weights.requantize(widths, {}, weights.buffers(), pool)

    def fails(numbers: Collection[int]) -> bool:
        values = [changed[n] if n in numbers else original for n, original in enumerate(weights.originals)]
        try:
            deviation = evaluator.deviation(form, values)
        except ModelError:
            return True
        return deviation.is_measured and math.isinf(deviation.mean)

    def causes(numbers: range) -> list[int]:
        middle = len(numbers) // 2
        halves = (numbers[:middle], numbers[middle:]) if middle else ()
        return [n for half in halves if fails(half) for n in causes(half)] or list(numbers)

    every = range(len(weights.originals))
    found = causes(every) if fails(every) and not fails(()) else []
    return [number for number in found if widths[number] is not None]
