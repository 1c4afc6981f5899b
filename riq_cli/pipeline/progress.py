"""What compress says while it works: its steps, the phases to come, and warnings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

Phase = Literal[
    "resumed", "original", "gradients", "statistics", "rows", "probe", "reprobe", "search", "trellis", "coding",
    "decoding", "models",
]  # fmt: skip


class Expected(NamedTuple):
    """A phase that is to come, and about the seconds and, in a search, the evaluations that it will take."""

    phase: Phase
    seconds: float
    evaluations: int = 0


@dataclass(frozen=True)
class Progress:
    """A step of the work, for a progress display.

    Where a run goes on from a checkpoint, `resumed` comes first: `done` counts the steps that this holds, and `value`
    the seconds that they took. Then `original` runs the original model; `expected` are all phases then, itself
    included, and `fast` the seconds that the preset of that name would take, infinite where it is no choice. In a
    `search`, `done` counts evaluations, `k` and `value` are the newest one, of an `allocation`, a `rounding` and an
    `epsilon`, and `low` and `high` the bracket: the largest k that failed and the smallest that held. In a `probe` or
    `reprobe`, `value` is the deviation that `layer` caused alone. What `done` and `total` count is weights in `coding`
    and `decoding`, steps back through the model in `gradients`, samples in `original`, models in `models`, and layers
    elsewhere. `read_seconds` is how long it took to compute, in the run before, what was read from a checkpoint since
    the step before.
    """

    phase: Phase
    done: int
    total: int = 0
    k: float = 0.0
    value: float = 0.0
    low: float = 0.0
    high: float = math.inf
    allocation: str = ""
    rounding: str = ""
    epsilon: float = 0.0
    layer: str = ""
    measure: Literal["deviation", "constraint"] = "deviation"
    expected: tuple[Expected, ...] = ()
    fast: float = math.inf
    read_seconds: float = 0.0


Report = Callable[[Progress], None]
Warn = Callable[[str], None]


def once(warn: Warn) -> Warn:
    """What says each warning only once, however often the work begins again."""
    told: set[str] = set()

    def tell(message: str) -> None:
        if message not in told:
            told.add(message)
            warn(message)

    return tell
