"""What a candidate for a model's weights has to keep."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from riq_cli.errors import SettingsError
from riq_cli.runtime import Candidate
from riq_cli.text import finite


@dataclass(frozen=True)
class Judgement:
    """What was measured of a candidate: it holds if `value` ≤ `limit`.

    `facts` say more of it by name: they are kept in the archive, and shown to whoever reads its report.
    """

    value: float
    limit: float
    facts: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether the candidate keeps the constraint."""
        return bool(self.value <= self.limit)

    def recorded(self) -> dict[str, Any]:
        """The judgement as manifests keep it: None for what is not finite."""
        facts = {"value": self.value, "limit": self.limit, **self.facts}
        plain = {name: fact if isinstance(fact, (str, int)) else finite(float(fact)) for name, fact in facts.items()}
        return {**plain, "holds": self.holds}


Judge = Callable[[Candidate], Judgement]


def check_margin(margin: float) -> None:
    """Return nothing for a number of standard errors that can be added to a mean.

    Raises:
        SettingsError: it is negative or not finite.
    """
    if not 0 <= margin < math.inf:
        raise SettingsError(f"a margin of {margin:g} standard errors is negative or not finite")


class Constraint(abc.ABC):
    """What compress is to keep: write `begin` for one of your own, and pass it as `compress(…, constraint=…)`.

    Candidates come with a part of the samples, the searched or the held-out ones, and with all of them: they are to be
    held against the original on the same. With `on_samples = False` they come with all alone; so it is for constraints
    that bring data of their own.
    """

    on_samples = True
    remedy = "allow more, or give more samples"  # what a message tells the user to do where nothing holds

    @abc.abstractmethod
    def begin(self, original: Candidate) -> Judge:
        """What judges candidates; called once, with the original model and all samples.

        Raises:
            ConstraintError: the original cannot be judged.
        """

    def recorded(self) -> dict[str, Any]:
        """The settings that manifests keep: JSON values by name, `objective` among them."""
        return {"objective": type(self).__name__}
