"""What has to hold at a k: a deviation, or a constraint. Each finds the smallest k of a scheme at which it does."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

from riq_cli.archive import Archive
from riq_cli.errors import TargetError
from riq_cli.model import Model
from riq_cli.pipeline.measuring import Measuring
from riq_cli.pipeline.solution import Scheme, Solution
from riq_cli.runtime import Evaluator

CORRECTION = 1.01  # least factor on k where the restored model misses what the search met


class Objective(abc.ABC):
    """What has to hold: `deviation` is about what it comes to, where layers are probed and statistics fitted."""

    k_holds = True  # whether the k that `find_k` returns was measured to hold
    # Share of a rough solution's bits below which nearest rounding is not searched: it cannot be smaller.
    base_share = 0.0

    def __init__(self, measuring: Measuring, deviation: float) -> None:
        self._measuring, self.deviation = measuring, deviation

    @abc.abstractmethod
    def find_k(self, scheme: Scheme, start: float, few: bool = False) -> float:
        """About the smallest k at which a scheme holds on samples that it was not fitted to.

        Args:
            scheme: what is searched.
            start: first k to try.
            few: the start is nearly right, and a few measurements will do.

        Raises:
            TargetError: it holds at no k.
        """

    @abc.abstractmethod
    def confirm(self, scheme: Scheme, k: float) -> Solution:
        """The solution at k, or at the next k that was measured to hold on all samples.

        Raises:
            TargetError: none does.
        """

    @abc.abstractmethod
    def base_solution(self, best: Solution | None) -> Solution:
        """The smallest solution of nearest rounding by a formula, or `best` where that is smaller.

        Raises:
            TargetError: there is neither.
        """

    @abc.abstractmethod
    def correction(self, archive: Archive, deviation: float) -> float | None:
        """The factor on k where the restored model does not hold; None where it does."""

    @abc.abstractmethod
    def failure(self, archive: Archive, deviation: float) -> TargetError:
        """The error that the restored model does not hold, though the search found that it does."""

    def facts(self, evaluator: Evaluator, restored: Model, held: Sequence[int]) -> dict[str, Any]:
        """What the manifest's result says of a restored model, beside its deviation."""
        return {}
