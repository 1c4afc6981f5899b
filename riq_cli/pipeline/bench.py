"""What solutions are found and measured with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

from riq_cli.pipeline.means import Means
from riq_cli.pipeline.solver import Solver
from riq_cli.runtime import Evaluator


@dataclass(frozen=True)
class Bench:
    """What solutions are found and measured with: `held` are the numbers of samples that the search does not see."""

    solver: Solver
    means: Means
    evaluator: Evaluator
    held: Sequence[int]
    calibration: Mapping[str, Any]
    pool: Executor

    def kept(self, about: float) -> Bench:
        """The same for many targets: layers are probed and compensation is fitted once, for this one in the middle."""
        return replace(self, means=self.solver.kept(about, self.means))
