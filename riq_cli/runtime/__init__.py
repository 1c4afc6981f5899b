"""Weights → deviation: runs the model in onnxruntime and compares its outputs, eq. (1), or shows its inner tensors."""

from onnxruntime import InferenceSession, SessionOptions

from riq_cli.runtime.deviation import (
    Array,
    Deviation,
    TensorDeviation,
    cosine_distance,
    effective,
    sample_deviations,
    share_of,
    short,
    sums_of,
    top1_changes,
)
from riq_cli.runtime.evaluator import Candidate, Evaluator
from riq_cli.runtime.observer import Observer, inlined
from riq_cli.runtime.prober import Prober
from riq_cli.runtime.ranges import ActivationMethod, activation_ranges
from riq_cli.runtime.sessions import (
    DEFAULT_PROVIDER,
    Provider,
    Runtime,
    check_providers,
    check_runs,
    engine_version,
    half_precision_converter,
    stacked_outputs,
    start_exact,
)

__all__ = [
    "DEFAULT_PROVIDER",
    "ActivationMethod",
    "Array",
    "Candidate",
    "Deviation",
    "Evaluator",
    "InferenceSession",
    "Observer",
    "Prober",
    "Provider",
    "Runtime",
    "SessionOptions",
    "TensorDeviation",
    "activation_ranges",
    "check_providers",
    "check_runs",
    "cosine_distance",
    "effective",
    "engine_version",
    "half_precision_converter",
    "inlined",
    "sample_deviations",
    "share_of",
    "short",
    "stacked_outputs",
    "start_exact",
    "sums_of",
    "top1_changes",
]
