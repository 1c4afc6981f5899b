"""What better solutions than the paper's are found with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from riq_cli.pipeline.probing import Probes
from riq_cli.pipeline.solution import Solution
from riq_cli.pipeline.weights import Plans, Widths

ProbesStart = Callable[[Solution, Plans], Probes]  # what layers cause alone at about the bin widths of a solution
PlansStart = Callable[[Widths], Plans]  # how errors are compensated at about these bin widths
RefitStart = Callable[[Widths, Plans], Plans]  # … like those plans, which are of fewer samples


@dataclass(frozen=True)
class Means:
    """What better solutions than the paper's are found with; None: that is not tried.

    `plans` are fitted to samples that solutions are not searched on, `refit` to all that are not held out.
    """

    probes: ProbesStart | None = None
    plans: PlansStart | None = None
    refit: RefitStart | None = None

    def kept(self, about: Solution) -> Means:
        """The same means for many targets: what they find at about this solution, found once and kept."""
        probe, fit, refit = self.probes, self.plans, self.refit

        @functools.cache
        def fitted() -> Plans:
            return {} if fit is None else fit(about.widths)

        again: dict[frozenset[tuple[object, ...]], Plans] = {}  # by what was found to pay, which targets differ in

        def refitted(_: Widths, before: Plans) -> Plans:
            assert refit is not None
            paid = frozenset((n, plan.importance is None, plan.positions, plan.varied) for n, plan in before.items())
            if paid not in again:
                again[paid] = refit(about.widths, before)
            return again[paid]

        @functools.cache
        def probed(compensated: bool) -> Probes:
            assert probe is not None
            return probe(about, fitted() if compensated else {})

        return Means(
            None if probe is None else lambda _, plans: probed(bool(plans)),
            None if fit is None else lambda _: fitted(),
            None if refit is None else refitted,
        )
