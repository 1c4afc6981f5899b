"""A score that the user's own function gives a model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from riq_cli.callables import blamed
from riq_cli.constraint.constraint import Constraint, Judge, Judgement
from riq_cli.errors import ConstraintError, SettingsError
from riq_cli.runtime import Array, Candidate

_PREDICT = "predict"  # the parameter's name by which a function asks for feeds → outputs instead of a session


@dataclass(frozen=True, eq=False)
class MetricConstraint(Constraint):
    """A score that must not get worse by more than a drop.

    Attributes:
        function: called with an onnxruntime.InferenceSession, returns a score. One whose parameter is named `predict`
            gets a function instead: from a feed, by the names of the inputs, to the outputs by their names.
        max_drop: how much worse the score may get.
        relative: `max_drop` is a share of the original's score.
        direction: whether a `higher` or a `lower` score is better.
    """

    function: Callable[[Any], Any]
    max_drop: float = 0.0
    relative: bool = False
    direction: Literal["higher", "lower"] = "higher"

    on_samples = False
    remedy = "allow more with a larger --max-drop"

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            SettingsError: one of them is out of range.
        """
        if not 0 <= self.max_drop < math.inf:
            raise SettingsError(f"a drop of {self.max_drop:g} is negative or not finite; 0.004 is 0.4 points of 100")
        if self.direction not in ("higher", "lower"):
            raise SettingsError(f"no direction is named {self.direction!r}; there are higher and lower")

    @property
    def name(self) -> str:
        """The function as `module:name`."""
        function = self.function
        return f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', type(function).__name__)}"

    def recorded(self) -> dict[str, Any]:
        """The settings that manifests keep."""
        drop = f"{100 * self.max_drop:.12g}%" if self.relative else self.max_drop
        return {"objective": "metric", "metric": self.name, "max_drop": drop, "direction": self.direction}

    def begin(self, original: Candidate) -> Judge:
        """What compares scores with the original's.

        Raises:
            ConstraintError: the function fails or gives no number, or a relative drop is asked for of a score of 0.
        """
        before = self._score(original)
        if not math.isfinite(before):
            raise ConstraintError(f"{self.name}: gives {before} for the original model, which nothing compares with")
        if self.relative and before == 0:
            raise ConstraintError(f"{self.name}: gives 0 for the original model; a drop relative to that means nothing")
        sign = 1.0 if self.direction == "higher" else -1.0

        def judge(candidate: Candidate) -> Judgement:
            after = self._score(candidate)
            drop = sign * (before - after) / (abs(before) if self.relative else 1.0)
            facts = {"score_before": before, "score_after": after}
            return Judgement(drop if math.isfinite(drop) else math.inf, self.max_drop, facts)

        return judge

    def _score(self, candidate: Candidate) -> float:
        session = candidate.session()
        with blamed(self.name, ConstraintError):
            score = self.function(_predict(session) if self._wants_predict() else session)
        try:
            return float(score)
        except (TypeError, ValueError, OverflowError):
            raise ConstraintError(f"{self.name}: gives {type(score).__name__}, not a number") from None

    def _wants_predict(self) -> bool:
        try:
            return _PREDICT in inspect.signature(self.function).parameters
        except (TypeError, ValueError):  # some that are not written in Python do not tell
            return False


def _predict(session: Any) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))
