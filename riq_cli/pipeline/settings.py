"""What compress is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_args

from riq_cli.constraint import Constraint, LossConstraint, check_margin
from riq_cli.errors import SettingsError
from riq_cli.runtime import DEFAULT_PROVIDER, ActivationMethod, Runtime

DEFAULT_DEVIATION = 0.01
DEFAULT_EPSILON = 0.01  # the paper's ε0
DEFAULT_MIN_SIZE = 256
DEFAULT_HOLDOUT = 0.25
K_LEAST, K_MOST = 1e-30, 1e30  # far beyond all that is of use: coarser leaves nothing, finer is the finest

# What the presets set; options that are given win over them.
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"allocation": "norm", "rounding": "nearest", "search": "bisection"},
    "balanced": {"allocation": "measured", "rounding": None, "search": "bisection", "effort": "balanced"},
    "small": {"allocation": "measured", "rounding": None, "search": "bisection", "effort": "small"},
    "smallest": {"allocation": "measured", "rounding": None, "search": "bisection", "effort": "smallest"},
    "deployable": {
        "allocation": "measured",
        "rounding": None,
        "search": "bisection",
        "effort": "small",
        "deployable": True,
    },
    "paper": {
        "allocation": "norm",
        "rounding": "nearest",
        "search": "algorithm1",
        "epsilon": DEFAULT_EPSILON,
        "holdout": 0.0,
    },
    "uniform": {"allocation": "uniform", "rounding": "nearest", "search": "bisection", "holdout": 0.0},
}


class Effort(NamedTuple):
    """How much work goes into statistics and into the search for k.

    Attributes:
        gradients: whether gradients of the outputs are taken.
        probes: output directions of gradients in each sample, at most.
        augmentation: share of the variations of samples that are enough.
        points: k that are measured near the target.
    """

    gradients: bool
    probes: int
    augmentation: float
    points: int


EFFORTS = {
    "balanced": Effort(False, 0, 0.0, 4),
    "small": Effort(True, 8, 0.25, 5),
    "smallest": Effort(True, 16, 1.0, 10),
}


# The stages of compression by name: each is one decision about how layers are quantized, and may be left out.
# Their order: statistics (`gradients`, `augmentation`) → plan of each layer (`gptq`, `columns`, `damping`, `bias`, rows
# by `gradients`) → `allocation` of bits among layers → search for k → `trellis` → coding (`student`). A new stage that
# decides about one layer is a function in `quantize/stages.py` that takes a plan and returns one, and a line in
# `pipeline/fitting.py`, where its turn comes.
STAGES = {
    "allocation": "bin widths by the measured deviation of layers (reverse water-filling); without: by norm",
    "gptq": "error feedback along columns; without: rounding to the nearest",
    "columns": "bin widths of columns by the diagonal of the Hessian's factor, in GPTQ",
    "damping": "damping of the Hessian, validated on the other half of the samples; without: 1 % of its mean diagonal",
    "bias": "a bias takes over what rounding adds to the outputs on average",
    "gradients": "output gradients weigh positions and rows: bin widths of rows, and error feedback along rows",
    "augmentation": "statistics of variations of the samples, too",
    "trellis": "trellis-coded quantization",
    "student": "symbols are coded by Student's t distribution with scale contexts; without: by tables",
}

_DEPLOYED_BITS = 8  # at most
_NOT_DEPLOYED = ("columns", "trellis")  # stages that DequantizeLinear has no place for

# The values of settings that are chosen by name.
_NAMES: dict[str, Sequence[str]] = {
    "search": ("bisection", "algorithm1"),
    "effort": tuple(EFFORTS),
    "allocation": ("norm", "measured", "uniform"),
    "rounding": ("nearest", "compensated", "trellis", "directed"),
    "activations": ("int8",),
    "activation_method": get_args(ActivationMethod),
}
_MAY_BE_NONE = ("rounding", "activations")


@dataclass(frozen=True)
class FixedLayout:
    """Every layer at one of a few widths, with bins uniform over its range, chosen under the settings' constraint.

    Attributes:
        bits: widths to choose from: at b bits a layer has at most 2^b levels; `float`: it may stay exact.
        per_channel: every output channel has bins over its own range, of widths in steps of a quarter octave.
        variant: `R` tries the least bits of a layer first, and more where these are refused; `B` brings layers to the
            most bits below float first, and from there to less.
        mu: layers stay exact where the loss's slope in their inputs is smaller in magnitude; 0: none does for it.
    """

    bits: tuple[int | Literal["float"], ...] = (4, 8, "float")
    per_channel: bool = False
    variant: Literal["R", "B"] = "R"
    mu: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            SettingsError: one of them is out of range.
        """
        if not self.widths or any(not 2 <= width <= 16 for width in self.widths):
            raise SettingsError("bits are widths in 2 … 16, and `float` for layers that may stay exact: 4,8,float")
        if self.variant not in ("R", "B"):
            raise SettingsError(f"no variant is named {self.variant!r}; there are R and B")
        if not 0 <= self.mu < math.inf:
            raise SettingsError(f"mu = {self.mu:g} is negative or not finite")
        if self.mu and not self.may_stay:
            raise SettingsError("mu keeps layers in float, which bits do not allow")

    @property
    def widths(self) -> list[int]:
        """The widths in bits, ascending."""
        return sorted({width for width in self.bits if width != "float"})

    @property
    def may_stay(self) -> bool:
        """Whether layers may stay exact."""
        return "float" in self.bits

    def recorded(self) -> dict[str, Any]:
        """The settings that manifests keep."""
        bits = ",".join(map(str, self.bits))
        found = {"layout": "fixed", "bits": bits, "per_channel": self.per_channel, "variant": self.variant}
        return found | ({"mu": self.mu} if self.mu else {})


@dataclass(frozen=True)
class Settings:
    """What compress is asked for; one of `deviation`, `ratio`, `size`, `rate`, `k` and `constraint` is the goal.

    Beside one of the others, `deviation` is a bound that must hold as well.

    Attributes:
        deviation: target D, a fraction in (0, 1]: the smallest archive that keeps it.
        ratio: bytes of the source over bytes of the archive: the smallest deviation within.
        size: bytes of the archive: the smallest deviation within.
        rate: bits/weight of the coded layers, tables included: the smallest deviation within.
        k: the search parameter itself, instead of a search.
        allocation: `measured` (of the least rate for the deviation that layers cause), the paper's `norm`, or the
            baseline of its Fig. 4a, `uniform`: k bins over each layer's own range.
        rounding: `nearest`, or `compensated` (errors of a layer's columns are made up for by later ones; needs real
            samples), or `trellis` (the same, where there are samples for it, and along the best paths through a
            trellis), or, in a fixed layout, `directed` (all weights of a layer up or down, as the loss falls); None:
            `trellis` with the measured allocation, else `nearest`.
        effort: how much work goes into statistics and the search where errors are compensated (`EFFORTS`).
        search: `bisection`, or the paper's `algorithm1`.
        epsilon: ε0 of the norm allocation; None: 0.01 or 0, whichever takes less room. Uniform: always 0.
        max_bits: R: no layer has more than 2^R levels; None: no such bound.
        holdout: share of the samples that nothing is fitted to, to check the solution; 0: none.
        margin: standard errors of the mean on the held-out samples (on all, if none are) that are added to it before it
            is compared with the deviation: 1.65 is a one-sided bound of 95 %. None: 1/√n for n held-out samples, ¼ from
            16 on; 0 where none are held out, and beside a constraint.
        min_size: tensors with fewer weights stay exact; None: 256 for the norm allocation, for the measured one where
            coding does not pay.
        include: patterns of layer names; only matching ones are coded, all if empty.
        exclude: patterns of layer names that stay exact.
        outputs: tensors on which to measure; empty: float outputs and the pre-activations behind them.
        dims: sizes of free dimensions, for random data and images.
        batch_size: samples in one run, where the batch axis is free.
        threads: of onnxruntime; 0: all that this process may use.
        provider: onnxruntime's execution provider.
        custom_ops: files of libraries that hold custom operators; not recorded, since where they lie is no setting.
        layout: a fixed one, chosen greedily under the constraint; None: bin widths of any size, under one k.
        constraint: what is kept in place of a deviation, such as a loss on labels; `deviation` is a bound beside it.
        without: names of stages to leave out (`STAGES`).
        deployable: matrices are restored exactly from signed integers of `max_bits`, 8 by default, with one scale or
            with one for each index along one axis: `riq decompress --format int8`.
        activations: `int8`: what weights multiply is brought to 8-bit integers in the model that is restored, and the
            deviation is that of both; None: it stays in float.
        activation_method: how the ranges of these integers are found: `minmax`, `entropy` or `percentile`.
    """

    deviation: float | None = None
    ratio: float | None = None
    size: int | None = None
    rate: float | None = None
    k: float | None = None
    allocation: Literal["norm", "measured", "uniform"] = "measured"
    rounding: Literal["nearest", "compensated", "trellis", "directed"] | None = None
    effort: Literal["balanced", "small", "smallest"] = "small"
    search: Literal["bisection", "algorithm1"] = "bisection"
    epsilon: float | None = None
    max_bits: int | None = None
    holdout: float = DEFAULT_HOLDOUT
    margin: float | None = None
    min_size: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    dims: Mapping[str, int] = field(default_factory=dict)
    batch_size: int = 1
    threads: int = 0
    provider: str = DEFAULT_PROVIDER
    custom_ops: tuple[str, ...] = ()
    layout: FixedLayout | None = None
    constraint: Constraint | None = None
    without: tuple[str, ...] = ()
    deployable: bool = False
    activations: Literal["int8"] | None = None
    activation_method: ActivationMethod = "minmax"

    def __post_init__(self) -> None:
        """Set the default target, and refuse values that mean nothing.

        Raises:
            SettingsError: one of them is out of range, or two contradict each other.
        """
        for name in self.without:
            if name not in STAGES:
                raise SettingsError(f"no stage is named {name!r}; there are {', '.join(STAGES)}")
        goals = {name: getattr(self, name) for name in ("ratio", "size", "rate", "k")}
        given = [name for name, value in goals.items() if value is not None]
        if given and self.constraint is not None:
            raise SettingsError(f"{given[0]} = {goals[given[0]]:.9g} and a constraint are two goals; give one of them")
        if not given and self.deviation is None and self.constraint is None:
            object.__setattr__(self, "deviation", DEFAULT_DEVIATION)
        if len(given) > 1:
            values = " and ".join(f"{name} = {goals[name]:.9g}" for name in given)
            raise SettingsError(f"{values} are two goals; give one of them")
        if self.deviation is not None and not 0 < self.deviation <= 1:
            raise SettingsError(f"a deviation of {self.deviation:g} is not in (0, 1]; 0.01 is 1 %")
        for name in given:
            if not 0 < goals[name] < math.inf:
                raise SettingsError(f"{name} = {goals[name]:g} is not positive")
        if self.k is not None and not K_LEAST <= self.k <= K_MOST:
            raise SettingsError(f"k = {self.k:g} is not in {K_LEAST:g} … {K_MOST:g}, where bin widths are doubles")
        if self.epsilon is not None and not 0 <= self.epsilon < 1:
            raise SettingsError(f"epsilon = {self.epsilon:g} is not in [0, 1)")
        if not 0 <= self.holdout < 1:
            raise SettingsError(f"holdout = {self.holdout:g} is not in [0, 1)")
        if self.margin is not None:
            check_margin(self.margin)
            if self.deviation is None and not hasattr(self.constraint, "margin"):
                raise SettingsError("a margin is added to a deviation, a loss, flips or a divergence; give one of them")
        for name in (*self.include, *self.exclude, *self.dims):
            if any("\ud800" <= letter <= "\udfff" for letter in name):  # what a command line makes of other bytes
                raise SettingsError(f"{name!r} is not valid UTF-8, as all names in a model are")
        if self.max_bits is not None and not 2 <= self.max_bits <= 16:
            raise SettingsError(f"max_bits = {self.max_bits} is not in 2 … 16")
        for name, known in _NAMES.items():
            value = getattr(self, name)
            if value not in known and not (name in _MAY_BE_NONE and value is None):
                raise SettingsError(f"no {name} is named {value!r}; there are {', '.join(known)}")
        if self.deployable:
            self._check_deployable()
        if self._looks_ahead and (self.k is not None or self._is_bound):
            other = "k" if self.k is not None else "max_bits"
            raise SettingsError(f"{self.rounding} rounding does not go with {other}; leave out one of them")
        if self.layout is not None:
            self._check_layout()
        elif self.rounding == "directed":
            raise SettingsError("directed rounding belongs to the fixed layout")
        if self.allocation == "uniform":
            if self._looks_ahead or self.epsilon:
                other = "epsilon" if self.epsilon else f"{self.rounding} rounding"
                raise SettingsError(f"the uniform allocation does not go with {other}; leave out one of them")
            object.__setattr__(self, "epsilon", 0.0)

    def _check_deployable(self) -> None:
        if self.max_bits is not None and self.max_bits > _DEPLOYED_BITS:
            raise SettingsError(f"max_bits = {self.max_bits} does not fit the 8-bit integers of a deployable archive")
        if self.rounding == "trellis":
            raise SettingsError("a trellis has levels that 8-bit integers do not hold; leave out one of them")
        if self.layout is not None:
            raise SettingsError("a fixed layout does not go with a deployable archive; leave out one of them")

    def _check_layout(self) -> None:
        assert self.layout is not None
        if self.constraint is None:
            raise SettingsError(
                "a fixed layout is chosen by a constraint; give --labels, --metric, --max-flips or --max-kl"
            )
        if self._looks_ahead or self.activations is not None:
            other = f"{self.rounding} rounding does" if self._looks_ahead else "quantized activations do"
            raise SettingsError(f"{other} not go with a fixed layout; leave out one of them")
        by_slope = "mu" if self.layout.mu else "directed rounding" if self.rounding == "directed" else None
        if by_slope is not None and not isinstance(self.constraint, LossConstraint):
            raise SettingsError(f"{by_slope} goes by the slope of a loss; give --labels")

    @property
    def runtime(self) -> Runtime:
        """How onnxruntime runs the model."""
        return Runtime(self.threads, self.provider, tuple(self.custom_ops))

    @property
    def work(self) -> Effort:
        """What the effort comes to."""
        return EFFORTS[self.effort]

    @property
    def most(self) -> int | None:
        """The largest magnitude of symbols of matrices in a deployable archive; None: it is not to be one."""
        return int(2 ** ((self.max_bits or _DEPLOYED_BITS) - 1)) - 1 if self.deployable else None

    @property
    def left_out(self) -> frozenset[str]:
        """Names of the stages that are left out."""
        return frozenset((*self.without, *(_NOT_DEPLOYED if self.deployable else ())))

    @property
    def is_free(self) -> bool:
        """Whether there is more to choose than k."""
        return self.allocation == "measured" or self._looks_ahead

    @property
    def may_compensate(self) -> bool:
        """Whether errors may be compensated without being asked for, where there are real samples enough."""
        return self.rounding == "trellis" or (self.rounding is None and self._rounds_freely)

    @property
    def may_use_trellis(self) -> bool:
        """Whether layers may be rounded along a trellis."""
        return self.may_compensate and "trellis" not in self.left_out

    @property
    def _rounds_freely(self) -> bool:
        """Whether rounding is not to the nearest unless that is asked for."""
        return self.allocation == "measured" and self.k is None and not self._is_bound and self.layout is None

    @property
    def _is_bound(self) -> bool:
        """Whether levels have a bound that only nearest rounding keeps; those of deployable archives are clipped."""
        return self.max_bits is not None and not self.deployable

    @property
    def _looks_ahead(self) -> bool:
        """Whether it was asked for a rounding that is not one of each weight on its own."""
        return self.rounding in ("compensated", "trellis")

    def recorded(self) -> dict[str, Any]:
        """What the manifest keeps: settings that differ from the default and say something; the target always."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        layout, constraint = plain.pop("layout"), plain.pop("constraint")
        del plain["custom_ops"]
        if self.rounding == "nearest" and not self._rounds_freely:
            plain["rounding"] = None
        default = Settings()
        result = {
            name: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
            for name, value in plain.items()
            if value != getattr(default, name)
        }
        result["deviation"] = self.deviation
        for part in (constraint, layout):
            result |= {} if part is None else part.recorded()
        return result
