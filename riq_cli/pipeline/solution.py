"""A solution: bin widths, how they came about, and what was measured with them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from riq_cli.allocate.allocation import Allocation
from riq_cli.pipeline.weights import Plans, Widths

CLOSER = 1.01  # factor on k where the restored model misses what its form in the search met
CLOSER_TRIES = 20

Kind = tuple[str, str, float, bool, bool, bool, bool]


@dataclass(frozen=True)
class Scheme:
    """What stays the same while k is searched: how bin widths are shared out, and how errors are compensated.

    All but k of the paper's own solution comes from the weights. One number is hardly fitted to samples, so it need not
    be `guarded` by some that are held out. What is `refitted` depends on all samples but these.
    """

    allocation: Allocation
    plans: Plans
    guarded: bool = True
    refitted: bool = False

    @property
    def rounding(self) -> str:
        """How weights become symbols: `nearest`, `compensated`, `trellis`, `compensated trellis` or `directed`."""
        if any(plan.up is not None for plan in self.plans.values()):
            return "directed"
        if any(plan.trellis for plan in self.plans.values()):
            return "compensated trellis" if self.is_fitted else "trellis"
        return "compensated" if self.is_fitted else "nearest"

    @property
    def is_fitted(self) -> bool:
        """Whether how weights are rounded depends on samples."""
        return self.has_importance or any(plan.factors for plan in self.plans.values())

    @property
    def has_importance(self) -> bool:
        """Whether rows of any layer are told apart by what their errors do to the outputs."""
        return any(plan.importance is not None for plan in self.plans.values())

    @property
    def has_positions(self) -> bool:
        """Whether positions of what any layer multiplies count by how much they matter."""
        return any(plan.positions != "alike" for plan in self.plans.values())

    @property
    def even(self) -> Scheme:
        """The same with all positions alike."""
        return replace(self, plans={number: plan.even for number, plan in self.plans.items()})

    @property
    def plain(self) -> Scheme:
        """The same with all positions alike, and all rows of layers that gradients tell apart."""
        plans = {n: plan if plan.importance is None else plan.plain for n, plan in self.even.plans.items()}
        return replace(self, plans=plans)

    @property
    def decided(self) -> Scheme:
        """The same, which cannot be made even any more: that takes a second set of factors."""
        return replace(self, plans={number: replace(plan, alike=None) for number, plan in self.plans.items()})

    @property
    def name(self) -> tuple[str, str, float]:
        """Allocation, rounding and epsilon, for those who follow the search."""
        return self.allocation.name, self.rounding, self.allocation.epsilon

    @property
    def kind(self) -> Kind:
        """Name and what else matters: what was measured of a kind tells what to expect of it."""
        return *self.name, self.has_importance, self.has_positions, self.guarded, self.refitted


@dataclass(frozen=True)
class Solution:
    """Bin widths of a scheme at a k, the bits that they cost, and the deviation measured with them."""

    scheme: Scheme
    k: float
    widths: Widths
    bits: float
    deviation: float
