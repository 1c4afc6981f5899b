"""What a solution fitted to more samples is searched for: the target, by way of the one it was fitted anew from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from riq_cli.allocation import Allocation
from riq_cli.codec.means import Means
from riq_cli.codec.solution import Scheme, Solution
from riq_cli.codec.solver import Solver


class Refitting(Solver):
    """A solver whose measurements are given; it keeps the goal of its search."""

    def __init__(self, weighed: float, unseen: float) -> None:
        self._parts: Any = SimpleNamespace(weighed=(0, 1))
        self.weighed, self.unseen = weighed, unseen
        self.goal = 0.0

    def _refitted_scheme(self, found: Solution, means: Means) -> Scheme | None:
        return found.scheme

    def deviation(self, *_: object) -> float:
        return self.weighed

    def _unseen_deviation(self, _: Solution) -> float:
        return self.unseen

    def _solved(self, scheme: Scheme, target: float, *_: Any, **__: Any) -> Solution:
        self.goal = target
        return Solution(scheme, 1.0, [], 1.0, target)

    def confirmed(self, solution: Solution, target: float) -> Solution:
        return solution


@pytest.mark.parametrize(
    ("searched", "unseen", "weighed", "goal"),
    [
        (0.010, 0.008, 0.006, 0.006),  # as well as before, where before was as well as asked for
        (0.008, 0.010, 0.006, 0.006),
        (0.005, 0.004, 0.003, 0.006),  # less well by as much as before was better
        (0.001, 0.002, 0.001, 0.004),  # a quarter of the target, and not less, is believed
        (0.004, 0.005, 0.009, 0.010),  # never worse than asked for
    ],
)
def test_what_is_refitted_is_as_good_as_is_asked_for(
    searched: float, unseen: float, weighed: float, goal: float
) -> None:
    scheme = Scheme(Allocation("measured", {}), {})
    solver = Refitting(weighed, unseen)
    assert solver._refitted(Solution(scheme, 1.0, [], 1.0, searched), 0.01, Means()) is not None
    assert solver.goal == pytest.approx(goal)
