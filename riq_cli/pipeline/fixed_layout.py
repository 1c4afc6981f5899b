"""A fixed layout: every layer at one of a few widths, chosen greedily by the measured change per byte saved."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from riq_cli.allocate.allocation import Allocation
from riq_cli.archive import Archive
from riq_cli.constraint import Constraint
from riq_cli.errors import TargetError
from riq_cli.model import Linear, Model, SessionForm, linear_layers, offset_form
from riq_cli.pipeline.constraint_objective import ConstraintObjective
from riq_cli.pipeline.measuring import Measuring
from riq_cli.pipeline.solution import Scheme, Solution
from riq_cli.quantize import scalar
from riq_cli.quantize.factor import CODES_MAX
from riq_cli.quantize.plan import LayerPlan
from riq_cli.runtime import Array, Evaluator

_OFFSET = 0.01  # what is added to a layer's inputs: small beside activations of order 1, large beside rounding errors
_HAIR = 1 + 1e-9  # so that ties at both ends of a range make no level more

Layout = Mapping[int, int]  # bits of layers by their number; others stay exact


@dataclass(frozen=True, order=True)
class _Move:
    """A layer brought to a width, and what that did when it was measured: `change` per byte saved orders moves."""

    change: float
    number: int
    bits: int
    step: int  # moves that had been accepted when it was measured


class FixedLayoutSearch(ConstraintObjective):
    """Chooses the widths of a fixed layout.

    Every layer begins exact, or at the largest width if none may stay so. All possible moves of a layer to a width are
    measured; the one of least change of the constraint's value per byte saved is measured again with all moves that
    were accepted before it, and accepted if no other then promises more and the model still holds, on the samples held
    out too. Where a move is refused, the layer's next is tried.
    """

    def __init__(self, measuring: Measuring, constraint: Constraint) -> None:
        """Begin with the original model, see `ConstraintObjective`; the settings have a layout."""
        super().__init__(measuring, constraint)
        assert measuring.settings.layout is not None
        self._layout, self._weights = measuring.settings.layout, measuring.weights
        self._chosen: dict[int, int] = {}
        self._rounded_at = functools.cache(self._round_at)  # by the number of the layer, and bits

    def solution(self) -> Solution:
        """The layout that greedy choice comes to.

        Raises:
            TargetError: a layout whose layers may not stay exact does not hold.
        """
        widths = self._layout.widths
        layout = {} if self._layout.may_stay else dict.fromkeys(self._weights.matrices, widths[-1])
        begin = self._scheme(layout)
        if self.excess(begin, 1.0) > 0:
            raise self._unkept(self.judgements[-1])
        self._greedy(layout, [number for number in self._weights.matrices if not self._stays(number)])
        self._chosen = layout
        return self._measuring.solution(self._scheme(layout), 1.0)

    def correction(self, archive: Archive, deviation: float) -> float | None:
        """None: a fixed layout has no finer neighbour.

        Raises:
            TargetError: the restored model does not hold.
        """
        if super().correction(archive, deviation) is None:
            return None
        raise TargetError("the restored model does not keep the constraint, though the search found that it does", 0.0)

    def facts(self, evaluator: Evaluator, restored: Model, held: Sequence[int]) -> dict[str, Any]:
        """What the manifest's result says: judgements of the restored model, and how many layers have which width."""
        found = super().facts(evaluator, restored, held)
        counts = {str(bits): list(self._chosen.values()).count(bits) for bits in self._layout.widths}
        return found | {"layout": counts | {"float": len(self._weights.matrices) - len(self._chosen)}}

    # ---- the choice ----

    def _greedy(self, layout: dict[int, int], numbers: Sequence[int]) -> None:
        """Add moves of some layers to the layout, as long as it holds."""
        widths = self._layout.widths if self._layout.may_stay else self._layout.widths[:-1]
        order = widths if self._layout.variant == "R" else widths[::-1]  # in which a layer's are tried
        moves: list[_Move] = []
        accepted, last = 0, self._value(layout)

        def propose(number: int, bits: int) -> None:
            saved = self._bytes(number, layout.get(number)) - self._bytes(number, bits)
            if saved > 0:
                change = self._value({**layout, number: bits}) - last
                heapq.heappush(moves, _Move(change / saved, number, bits, accepted))

        for number in numbers if order else ():
            propose(number, order[0])
        while moves:
            move = heapq.heappop(moves)
            if move.step < accepted:  # measured before others were accepted
                propose(move.number, move.bits)
                continue
            changed = {**layout, move.number: move.bits}
            holds = self.excess(self._scheme(changed), 1.0) <= 0
            if holds:
                layout[move.number] = move.bits
                accepted, last = accepted + 1, self._value(layout)
            rest = order[order.index(move.bits) + 1 :]
            if rest and holds == (self._layout.variant == "B"):  # B goes on from what holds, R from what does not
                propose(move.number, rest[0])

    def _value(self, layout: Layout) -> float:
        """The constraint's value of the whole model in a layout, on the samples that the search may see."""
        scheme = self._scheme(layout)
        found = self.judged(scheme, 1.0, self.visible(scheme))
        self.keep(scheme, 1.0, found)
        return found.value

    def _bytes(self, number: int, bits: int | None) -> float:
        if bits is None:
            return self._weights.exact_bits(number) / 8
        width, plan = self._rounded_at(number, bits)
        return self._weights.coded_bits(number, width, plan) / 8

    # ---- layers ----

    def _scheme(self, layout: Layout) -> Scheme:
        """The layout as a scheme whose bin widths are those at k = 1."""
        found = {number: self._rounded_at(number, bits) for number, bits in layout.items()}
        plans = {number: plan for number, (_, plan) in found.items() if plan is not None}
        return Scheme(Allocation("fixed", {number: width for number, (width, _) in found.items()}), plans)

    def _round_at(self, number: int, bits: int) -> tuple[float, LayerPlan | None]:
        """Bin width and plan of a layer at a width in bits."""
        layer = self._weights.layers[number]
        low, high = scalar.extremes(layer.values, layer.dtype)
        width, plan = ((high - low) or abs(high)) / (2**bits - 1) * _HAIR, None
        if self._layout.per_channel:
            width, plan = self._per_channel(number, bits) or (width, plan)
        if self._measuring.settings.rounding == "directed":
            up = self._weight_slope(number, width / 2) < 0
            plan = replace(plan or LayerPlan.nearest(layer), up=up)
        return width, plan

    def _per_channel(self, number: int, bits: int) -> tuple[float, LayerPlan] | None:
        """The bin width of the widest channel, and a plan with codes for all; None where channels cannot be told."""
        layer = self._weights.layers[number]
        linear = self._linear[1].get(number)
        plan = LayerPlan.nearest(layer) if linear is None else LayerPlan.of(layer, linear.matrix)
        if plan.matrix.row_axes is None:
            return None
        rows = plan.matrix.view(scalar.widened(layer.values, layer.dtype))
        ranges = rows.max(axis=2) - rows.min(axis=2)
        ranges = np.where(ranges > 0, ranges, np.abs(rows).max(axis=2))
        largest = float(ranges.max())
        logarithms = np.log2(np.maximum(ranges, largest * 2.0**-CODES_MAX) / largest)
        codes = np.maximum(np.ceil(4 * logarithms), -CODES_MAX).astype(np.int32)
        return largest / (2**bits - 1) * _HAIR, replace(plan, rows=codes)

    # ---- slopes ----

    @functools.cached_property
    def _linear(self) -> tuple[SessionForm, dict[int, Linear]]:
        form, linear = linear_layers(self._measuring.form, self._weights.layers)
        return form, {number: item for number, item in linear.items() if not item.is_table}

    def _stays(self, number: int) -> bool:
        """Whether a layer stays exact because of mu.

        Its slope is the secant (loss with a constant added to all of the layer's inputs − loss) / that constant, 0.01:
        what the document writes |∂ℓ/∂h · 1|, by forward runs alone. A layer whose inputs are no activations, such as an
        embedding, has none and stays.
        """
        if not self._layout.mu:
            return False
        form, linear = self._linear
        if number not in linear:
            return True
        tensors = list(dict.fromkeys(item.tensor for item in linear[number].inputs))
        form = offset_form(form, tensors, _OFFSET, self._weights.layers[number].dtype)
        return abs(self._loss_change(form, self._weights.originals)) / _OFFSET < self._layout.mu

    def _weight_slope(self, number: int, offset: float) -> float:
        """The loss's slope in a layer's weights: the secant to all of them larger by an offset."""
        layer = self._weights.layers[number]
        values = list(self._weights.originals)
        values[number] = scalar.added(layer.values, np.array(offset), layer.dtype)
        return self._loss_change(self._measuring.form, values) / offset

    def _loss_change(self, form: SessionForm, values: Sequence[Array]) -> float:
        candidate = self._measuring.evaluator.loaded(form, values, self._measuring.roles.others)
        facts = self._measuring.checkpoint.step("slope", lambda: self.judge(candidate)).facts
        return float(facts["loss_after"]) - float(facts["loss_before"])
