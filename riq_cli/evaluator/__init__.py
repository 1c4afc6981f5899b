"""Weights → deviation: runs the model in onnxruntime and compares its outputs, eq. (1), or shows its inner tensors."""

from riq_cli.evaluator.deviation import Array, Deviation, TensorDeviation, cosine_distance, sample_deviations, short
from riq_cli.evaluator.evaluator import Evaluator, LoadedModel
from riq_cli.evaluator.observer import Observer
from riq_cli.evaluator.prober import Prober
from riq_cli.evaluator.sessions import DEFAULT_PROVIDER, Runtime, available_threads

__all__ = [
    "DEFAULT_PROVIDER",
    "Array",
    "Deviation",
    "Evaluator",
    "LoadedModel",
    "Observer",
    "Prober",
    "Runtime",
    "TensorDeviation",
    "available_threads",
    "cosine_distance",
    "sample_deviations",
    "short",
]
