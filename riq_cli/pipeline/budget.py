"""The least deviation within a budget of real bytes: of the whole archive, or, for a rate, of its coded layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from riq_cli.archive import Archive
from riq_cli.errors import TargetError
from riq_cli.model import Model
from riq_cli.pipeline.progress import Warn
from riq_cli.pipeline.settings import Settings
from riq_cli.pipeline.solution import Solution
from riq_cli.pipeline.solver import INVISIBLE, Solver
from riq_cli.pipeline.weights import Weights, Widths
from riq_cli.text import counted

_TRIES = 10
_FULL = 0.998  # share of a budget that counts as all of it
_NEARLY = 0.99  # share of it that is enough once a try was beyond it …
_OVER = 2  # … and any share is, once more tries than these were
_LARGEST = 1 << 62  # bytes; larger numbers mean no more
_NOTHING = 4.0  # bin width in largest weights of a layer, at which all of them become 0


@dataclass(frozen=True)
class Budget:
    """What may be spent.

    Attributes:
        bytes: of the archive, or of its coded layers.
        wish: how the user said it.
        source: bytes of the model.
        weights: how many may be coded, where the bytes are those of coded layers; None: all of the archive counts.
    """

    bytes: float
    wish: str
    source: int
    weights: int | None = None

    @classmethod
    def of(cls, settings: Settings, model: Model, weights: Weights) -> Budget:
        """The budget that settings with a size, a rate or a ratio ask for."""
        source = model.source.bytes if model.source is not None else model.nbytes
        if settings.size is not None:
            return cls(min(settings.size, _LARGEST), counted(settings.size, "byte"), source)
        if settings.rate is not None:
            allowed = min(settings.rate * weights.total / 8, _LARGEST)
            return cls(allowed, f"{settings.rate:g} bits/weight", source, weights.total)
        assert settings.ratio is not None
        return cls(min(source / settings.ratio, _LARGEST), f"a ratio of {settings.ratio:g}", source)

    def spent(self, archive: Archive) -> float:
        """Bytes of an archive that count; for a rate, what all weights that may be coded would take at its rate."""
        if self.weights is None:
            return archive.size
        layers = archive.manifest.layers
        coded = sum(layer.size for layer in layers)
        return sum(layer.stored for layer in layers) * self.weights / coded if coded else 0.0

    def in_words(self, spent: float) -> str:
        """So many bytes as people read them: beside the model's, or by the weight."""
        if self.weights is None:
            return f"{spent:,.0f} bytes, a ratio of {self.source / spent:.3g}"
        return f"{8 * spent / self.weights:.3g} bits/weight"

    def refuse(self, least: Archive) -> None:
        """Nothing, where an archive of no weights, the least that can be, is within the budget.

        Raises:
            TargetError: it is not.
        """
        if self.spent(least) > self.bytes:
            raise TargetError(
                f"the model cannot be brought into {self.wish}: with all weights rounded to 0 it takes "
                f"{self.in_words(self.spent(least))}; give it more room",
                math.inf,
            )


def nothing(weights: Weights) -> Widths:
    """Bin widths at which all weights become 0, where that takes less room than to leave a layer as it is."""
    widths: Widths = [None] * len(weights.layers)
    for number in weights.zeros:
        widths[number] = 1.0
    for number in (*weights.matrices, *weights.vectors):
        widths[number] = _NOTHING * weights.peaks[number]
    return weights.worthwhile(widths)


def within_budget(
    budget: Budget,
    solver: Solver,
    archive_of: Callable[[Solution], tuple[Archive, float]],
    bound: float | None,
    warn: Warn,
) -> Archive:
    """The archive of least deviation within a budget.

    Where no deviation could be seen with less than the budget, the archive takes less.

    Args:
        budget: what may be spent.
        solver: finds solutions.
        archive_of: a solution → its archive, and what a target bounds, measured on what the archive restores.
        bound: a deviation that must be kept; None: none.
        warn: called with what the user should know.

    Raises:
        TargetError: nothing is within the budget, or nothing of it keeps the bound.
    """
    aim, margin, best, least, over = budget.bytes, 8.0, None, math.inf, 0
    solution = solver.for_bits(8 * aim)
    for number in range(_TRIES):
        if number:
            solution = solver.within(solution.scheme, 8 * aim, solution.k)
        archive, deviation = archive_of(solution)
        spent = budget.spent(archive)
        is_within = spent <= budget.bytes
        least = min(least, spent)
        if is_within and solution.deviation <= INVISIBLE:
            warn(
                f"{budget.wish} is more room than the model needs: with {budget.in_words(spent)}, the deviation is "
                f"{deviation:.2g}, less than can be seen; ask for less room, or give a --deviation"
            )
            best = archive, deviation
            break
        if is_within:
            if best is None or spent > budget.spent(best[0]):
                best = archive, deviation
            is_last = spent >= _FULL * budget.bytes
        else:
            over += 1
            is_last = best is not None and (budget.spent(best[0]) >= _NEARLY * budget.bytes or over > _OVER)
            margin *= 2
        if is_last or aim <= 0:
            break
        aim += budget.bytes - spent - (0.0 if is_within else margin)
    if best is None:
        raise TargetError(
            f"the model was not brought into {budget.wish}; the least was {budget.in_words(least)}; give it more room",
            math.inf,
        )
    archive, deviation = best
    if bound is not None and deviation > bound:
        raise TargetError(
            f"within {budget.wish} the least deviation is {deviation:.3g}, above the bound of {bound:g}; "
            "give one of them more room",
            deviation,
        )
    return archive
