"""What compress is asked for, and what it says while it works."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from riq_cli.errors import SettingsError
from riq_cli.evaluator import DEFAULT_PROVIDER

DEFAULT_DEVIATION = 0.01
DEFAULT_EPSILON = 0.01  # the paper's ε0
DEFAULT_MIN_SIZE = 256


@dataclass(frozen=True)
class Settings:
    """What compress is asked for.

    Attributes:
        deviation: target D, a fraction in (0, 1]; None: no target, `k` must be given.
        k: the search parameter itself, instead of a search.
        epsilon: ε0; None: 0.01, or the largest smaller one that reaches the target.
        search: `secant`, or the paper's `algorithm1`.
        min_size: tensors with fewer weights stay exact.
        include: patterns of layer names; only matching ones are coded, all if empty.
        exclude: patterns of layer names that stay exact.
        outputs: tensors on which to measure; empty: float outputs and the pre-activations behind them.
        dims: sizes of free dimensions, for random data and images.
        batch_size: samples in one run, where the batch axis is free.
        threads: of onnxruntime; 0: all that this process may use.
        provider: onnxruntime's execution provider.
    """

    deviation: float | None = DEFAULT_DEVIATION
    k: float | None = None
    epsilon: float | None = None
    search: Literal["secant", "algorithm1"] = "secant"
    min_size: int = DEFAULT_MIN_SIZE
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    dims: Mapping[str, int] = field(default_factory=dict)
    batch_size: int = 1
    threads: int = 0
    provider: str = DEFAULT_PROVIDER

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            SettingsError: one of them is out of range.
        """
        if self.deviation is not None and not 0 < self.deviation <= 1:
            raise SettingsError(f"a deviation of {self.deviation:g} is not in (0, 1]; 0.01 is 1 %")
        if self.deviation is None and self.k is None:
            raise SettingsError("neither a target deviation nor k is given")
        if self.k is not None and not 0 < self.k < math.inf:
            raise SettingsError(f"k = {self.k:g} is not positive")
        if self.epsilon is not None and not 0 <= self.epsilon < 1:
            raise SettingsError(f"epsilon = {self.epsilon:g} is not in [0, 1)")
        if self.search not in ("secant", "algorithm1"):
            raise SettingsError(f"no search is named {self.search!r}; there are secant and algorithm1")


@dataclass(frozen=True)
class Progress:
    """A step of the work, for a progress display.

    In a `search`, `done` counts evaluations, `k` and `value` are the newest one, and `low` and `high` the bracket: the
    largest k that failed and the smallest that held. Otherwise `done` of `total` weights are through.
    """

    phase: Literal["search", "coding", "decoding"]
    done: int
    total: int = 0
    k: float = 0.0
    value: float = 0.0
    low: float = 0.0
    high: float = math.inf


Report = Callable[[Progress], None]
Warn = Callable[[str], None]
