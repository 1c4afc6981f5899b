"""Sessions of onnxruntime: forms of a model, with weights from outside."""

from __future__ import annotations

import contextlib
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime import InferenceSession, SessionOptions

from riq_cli.errors import ModelError, SettingsError
from riq_cli.executors import available_threads
from riq_cli.memory import mapped_memory_given_back
from riq_cli.model import SessionForm
from riq_cli.runtime.deviation import Array
from riq_cli.text import first_line

Samples = Sequence[tuple[Mapping[str, Array], int]]  # feeds, each with the number of rows in it
Run = Callable[[Sequence[str], Mapping[str, Array]], list[Array]]  # names of tensors and a feed → their values
FedRun = Callable[[Sequence[str], Mapping[str, Array], Mapping[int, onnxruntime.OrtValue]], list[Array]]  # … of layers

Provider = str | tuple[str, Mapping[str, Any]]  # an execution provider: its name, or that with its options

DEFAULT_PROVIDER = "CPUExecutionProvider"
_UNKNOWN = re.compile(r"(\S*):(\S+)\(-?\d+\) is not a registered function/op")  # as onnxruntime says it
LARGE = 1 << 26  # bytes of weights above which copies of them that make runs a fifth faster are not worth their memory
_COPYING = ["NchwcTransformer"]  # optimizers that make such copies: of all filters, in the order that vectors take
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16; numpy holds it as uint16
_LOG_NOTHING = 4
# Weights that onnxruntime's options refer to without owning them.
_HELD: MutableMapping[SessionOptions, list[onnxruntime.OrtValue]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Runtime:
    """How onnxruntime runs models.

    Attributes:
        threads: of each session; 0 for all that this process may use.
        provider: onnxruntime's execution provider.
        custom_ops: files of the libraries that hold custom operators.
    """

    threads: int = 0
    provider: str = DEFAULT_PROVIDER
    custom_ops: tuple[str, ...] = ()

    def check(self) -> None:
        """Nothing, if all of it is here.

        Raises:
            SettingsError: an unknown provider, or a library that is missing or cannot be loaded.
        """
        check_providers([self.provider])
        for library in self.custom_ops:
            if not Path(library).is_file():
                raise SettingsError(f"{library}: no such file; --custom-ops takes a library of custom operators")
            try:
                _register(library, SessionOptions())
            except Exception as error:
                raise SettingsError(
                    f"{library}: onnxruntime cannot load it as a library of custom operators: {first_line(error)}"
                ) from error

    def options(self, patient: bool, lean: bool) -> SessionOptions:
        """Options of a session that, if `patient`, lets others have memory and processors, and if `lean`, memory."""
        options = SessionOptions()
        options.intra_op_num_threads = self.threads or available_threads()
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = _LOG_NOTHING
        if lean:
            options.enable_cpu_mem_arena = False  # it keeps twice what a run needs
        if patient:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for library in self.custom_ops:
            _register(library, options)
        return options


def engine_version() -> str:
    """The version of onnxruntime."""
    return str(onnxruntime.__version__)


def check_providers(providers: Iterable[Provider]) -> None:
    """Nothing, if onnxruntime has all of these execution providers.

    Raises:
        SettingsError: it lacks one.
    """
    available = onnxruntime.get_available_providers()
    for provider in providers:
        name = provider if isinstance(provider, str) else provider[0]
        if name not in available:
            raise SettingsError(f"onnxruntime has no {name!r} here; it has {', '.join(available)}")


def _register(library: str, options: SessionOptions) -> None:
    """Register a library of custom operators; a name without a folder would be looked for elsewhere."""
    options.register_custom_ops_library(str(Path(library).absolute()))


DEFAULT_RUNTIME = Runtime()


def runner(form: SessionForm, weights: Sequence[Array], runtime: Runtime, patient: bool = False) -> Run:
    """What runs a form with these weights.

    Args:
        form: the model, its layers initializers or inputs.
        weights: data of each layer, in storage type.
        runtime: how it is run.
        patient: leave memory and, between runs, processors to others.
    """
    if form.fed:
        fed = fed_runner(form, runtime, patient, nbytes(weights) > LARGE)
        values = dict(enumerate(map(ortvalue, weights)))
        return lambda names, feed: fed(names, feed, values)
    session = start(form, weights, runtime, patient)
    return lambda names, feed: session.run(list(names), dict(feed))


def fed_runner(form: SessionForm, runtime: Runtime, patient: bool = False, large: bool = False) -> FedRun:
    """What runs a form whose layers are inputs: onnxruntime copies none of them, and others may follow each run.

    Args:
        form, runtime, patient: see `runner`.
        large: the layers have more than `LARGE` bytes.
    """
    options = runtime.options(patient, lean=patient or large)

    def started(level: onnxruntime.GraphOptimizationLevel) -> InferenceSession:
        options.graph_optimization_level = level
        return InferenceSession(form.model, options, providers=[runtime.provider])

    try:
        session = started(onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    except Exception:  # some optimizations take for granted that weights are constant
        session = started(onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC)

    def run(names: Sequence[str], feed: Mapping[str, Array], values: Mapping[int, onnxruntime.OrtValue]) -> list[Array]:
        fed = {**feed, **{name: values[number] for name, number in form.weights}}
        with mapped_memory_given_back() if large else contextlib.nullcontext():
            found: list[Array] = session.run(list(names), fed)
        return found

    return run


def start(form: SessionForm, weights: Sequence[Array], runtime: Runtime, patient: bool = False) -> InferenceSession:
    """A session of a form whose layers are initializers; see `runner`."""
    large = nbytes(weights) > LARGE
    options = runtime.options(patient, lean=patient or large)
    if patient or large:
        options.add_session_config_entry("session.disable_prepacking", "1")
    values = [ortvalue(weights[number]) for _, number in form.weights]
    _give(options, form, values)
    unwanted = _COPYING if large else []
    return InferenceSession(form.model, options, providers=[runtime.provider], disabled_optimizers=unwanted)


def start_exact(
    form: SessionForm,
    weights: Sequence[Array],
    providers: Sequence[Provider] | None = None,
    options: SessionOptions | None = None,
) -> InferenceSession:
    """A session of an exact form, for those who use the model: it is run as onnxruntime would run its file.

    onnxruntime copies the weights. The caller's options refer to them nevertheless, and so they are kept as long as the
    caller keeps these options, which the session does not; without any, nothing of them stays.

    Args:
        form: the model.
        weights: data of each layer, in storage type.
        providers: execution providers, as onnxruntime takes them; None: its own choice.
        options: the caller's, for this session alone; None: onnxruntime's defaults.

    Raises:
        SettingsError: the options were given for another session already.
        ModelError: onnxruntime cannot run the model.
    """
    if options is not None and options in _HELD:
        raise SettingsError("these session options hold the weights of another session; make new ones for each session")
    given = SessionOptions() if options is None else options
    _HELD[given] = [ortvalue(weights[number]) for _, number in form.weights]
    with explained():
        _give(given, form, _HELD[given])
        session = InferenceSession(form.model, given, providers=providers)
    session._sess_options = session._sess_options_initial = SessionOptions()  # it would keep `given` to its own end
    return session


def stacked_outputs(session: InferenceSession, samples: Samples) -> dict[str, Array]:
    """What a session computes from samples, by names of outputs.

    An output with a row for each sample of a run has the rows of all runs behind each other. Another has a first axis
    of runs, if its shape is the same in all of them; if not, each run has an array of its own, such as `y[0]`.

    Raises:
        ModelError: onnxruntime cannot run the model, or an output is not a tensor.
    """
    with explained():
        runs = [session.run(None, dict(feed)) for feed, _ in samples]
    found: dict[str, Array] = {}
    for output, values in zip(session.get_outputs(), zip(*runs, strict=True), strict=True):
        if not all(isinstance(value, np.ndarray) for value in values):
            raise ModelError(f"output {output.name!r} is not a tensor, but {output.type}")
        arrays = [value.astype(str) if value.dtype.hasobject else value for value in values]
        has_rows = all(array.ndim and len(array) == rows for array, (_, rows) in zip(arrays, samples, strict=True))
        if has_rows and len({array.shape[1:] for array in arrays}) == 1:
            found[output.name] = np.concatenate(arrays)
        elif len({array.shape for array in arrays}) == 1:
            found[output.name] = np.stack(arrays)
        else:
            found |= {f"{output.name}[{number}]": array for number, array in enumerate(arrays)}
    return found


def _give(options: SessionOptions, form: SessionForm, values: Sequence[onnxruntime.OrtValue]) -> None:
    """Have options hold the values of a form's initializers; they do not own the memory of these."""
    if values:
        options.add_external_initializers([name for name, _ in form.weights], values)


def check_runs(model: bytes, runtime: Runtime) -> None:
    """Return nothing if onnxruntime takes a serialized model.

    Raises:
        ModelError: it does not.
        SettingsError: see `Runtime.check`.
    """
    runtime.check()
    with explained():
        onnxruntime.InferenceSession(model, runtime.options(False, False), providers=[runtime.provider])


def half_precision_converter() -> Callable[[Any], Any]:
    """What onnxruntime has to convert the graph of an onnx.ModelProto to float16; its inputs and outputs stay.

    Raises:
        ModelError: (also later) this installation has none, or it cannot convert the model.
    """
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as error:
        raise ModelError(f"this onnxruntime has no converter to float16: {first_line(error)}") from error

    def convert(model: Any) -> Any:
        try:
            return convert_float_to_float16(model, keep_io_types=True)
        except Exception as error:  # it raises what it likes
            raise ModelError(f"onnxruntime cannot convert the graph to float16: {first_line(error)}") from error

    return convert


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """A block in which whatever onnxruntime raises is a ModelError."""
    try:
        yield
    except Exception as error:  # onnxruntime's exceptions share no other base
        unknown = _UNKNOWN.search(str(error))
        if unknown is not None:
            raise ModelError(
                f"onnxruntime does not know the operator {unknown[2]} of the domain {unknown[1]!r}; name the library "
                "that holds it with --custom-ops LIBRARY"
            ) from error
        raise ModelError(f"onnxruntime cannot run the model: {first_line(error)}") from error


def ortvalue(weights: Array) -> onnxruntime.OrtValue:
    """The weights as onnxruntime takes them, sharing their memory."""
    if weights.dtype == np.uint16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(weights, _BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(weights)


def nbytes(weights: Sequence[Array]) -> int:
    """Bytes of all weights."""
    return sum(weight.nbytes for weight in weights)
