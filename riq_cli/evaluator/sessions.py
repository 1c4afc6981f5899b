"""Sessions of onnxruntime: forms of a model, with weights from outside."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from riq_cli.errors import ModelError
from riq_cli.model import SessionForm
from riq_cli.text import first_line

Array = NDArray[Any]
Run = Callable[[Sequence[str], Mapping[str, Array]], list[Array]]  # names of tensors and a feed → their values

DEFAULT_PROVIDER = "CPUExecutionProvider"
LARGE = 1 << 26  # bytes of weights above which copies of them that make runs a fifth faster are not worth their memory
_COPYING = ["NchwcTransformer"]  # optimizers that make such copies: of all filters, in the order that vectors take
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16; numpy holds it as uint16
_LOG_NOTHING = 4


def runner(form: SessionForm, weights: Sequence[Array], threads: int, provider: str, patient: bool = False) -> Run:
    """What runs a form with these weights.

    Args:
        form: the model, its layers initializers or inputs.
        weights: data of each layer, in storage type.
        threads: of onnxruntime; 0 for all that this process may use.
        provider: onnxruntime's execution provider.
        patient: leave memory and, between runs, processors to others.
    """
    if form.fed:
        fed = FedSession(form, threads, provider, patient)
        values = [ortvalue(weight) for weight in weights]
        return lambda names, feed: fed.run(names, feed, values)
    session = start(form, weights, threads, provider, patient)
    return lambda names, feed: session.run(list(names), dict(feed))


class FedSession:
    """A session of a form whose layers are inputs: onnxruntime copies none of them, and others may follow each run."""

    def __init__(self, form: SessionForm, threads: int, provider: str, patient: bool = False) -> None:
        """Start it; without some optimizations, if they take for granted that weights are constant."""
        levels = onnxruntime.GraphOptimizationLevel
        options = _options(threads, patient, lean=patient)
        try:
            options.graph_optimization_level = levels.ORT_ENABLE_ALL
            self._session = onnxruntime.InferenceSession(form.model, options, providers=[provider])
        except Exception:
            options.graph_optimization_level = levels.ORT_ENABLE_BASIC
            self._session = onnxruntime.InferenceSession(form.model, options, providers=[provider])
        self._weights = form.weights

    def run(
        self,
        names: Sequence[str],
        feed: Mapping[str, Array],
        values: Sequence[onnxruntime.OrtValue] | Mapping[int, onnxruntime.OrtValue],
    ) -> list[Array]:
        """The values of tensors when the layers hold `values`, by their numbers."""
        inputs = {name: values[number] for name, number in self._weights}
        inputs |= {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feed.items()}
        return [value.numpy() for value in self._session.run_with_ort_values(list(names), inputs)]


def start(
    form: SessionForm, weights: Sequence[Array], threads: int, provider: str, patient: bool = False
) -> onnxruntime.InferenceSession:
    """A session of a form whose layers are initializers; see `runner`."""
    large = nbytes(weights) > LARGE
    options = _options(threads, patient, lean=patient or large)
    if patient or large:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if form.weights:
        values = [ortvalue(weights[number]) for _, number in form.weights]
        options.add_external_initializers([name for name, _ in form.weights], values)
    unwanted = _COPYING if large else []
    return onnxruntime.InferenceSession(form.model, options, providers=[provider], disabled_optimizers=unwanted)


def _options(threads: int, patient: bool, lean: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_threads()
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = _LOG_NOTHING
    if lean:
        options.enable_cpu_mem_arena = False  # it keeps twice what a run needs
    if patient:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """A block in which whatever onnxruntime raises is a ModelError."""
    try:
        yield
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise ModelError(f"onnxruntime cannot run the model: {first_line(error)}") from error


def available_threads() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ortvalue(weights: Array) -> onnxruntime.OrtValue:
    """The weights as onnxruntime takes them, sharing their memory."""
    if weights.dtype == np.uint16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(weights, _BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(weights)


def nbytes(weights: Sequence[Array]) -> int:
    """Bytes of all weights."""
    return sum(weight.nbytes for weight in weights)
