"""A solution: bin widths, how they came about, and what was measured with them."""

from __future__ import annotations

from dataclasses import dataclass

from riq_cli.allocate.allocation import Allocation
from riq_cli.pipeline.weights import Plans, Widths


@dataclass(frozen=True)
class Scheme:
    """What stays the same while k is searched: how bin widths are allocated, and how layers are rounded.

    All but k of the paper's own solution comes from the weights. One number is hardly fitted to samples, so it need not
    be `guarded` by some that are held out.
    """

    allocation: Allocation
    plans: Plans
    guarded: bool = True

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
        return self.allocation.name != "fixed" and any(
            plan.factors or plan.row_factors or plan.rows.any() for plan in self.plans.values()
        )

    @property
    def is_base(self) -> bool:
        """Whether the allocation is given by a formula, and rounding is to the nearest."""
        return not self.plans and self.allocation.name in ("norm", "uniform")

    @property
    def name(self) -> tuple[str, str, float]:
        """Allocation, rounding and epsilon, for those who follow the search."""
        return self.allocation.name, self.rounding, self.allocation.epsilon


@dataclass(frozen=True)
class Solution:
    """Bin widths of a scheme at a k, the bits that they cost, and the deviation measured with them."""

    scheme: Scheme
    k: float
    widths: Widths
    bits: float
    deviation: float
