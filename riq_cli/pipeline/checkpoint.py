"""Results of finished steps, kept in a file while compress works: a run that was interrupted goes on from them.

Compress is deterministic. So a run that goes on begins as every run does, and each step whose result is in the file is
read instead of computed: gradients, plans of layers, probes, all that is measured in the search, and coded layers.

The file is a line that names the format, and records behind it. A record is the CRC-32 and the length of its content,
and the content: the step's name, the seconds that it took and its result as JSON in one line, and then the bytes of
arrays. The first record tells what all steps depend on. Records are appended, each in one piece; what follows one that
is torn or damaged is not used. What is read becomes numbers, text, arrays and objects of a few classes of riq: no code
is run, whoever wrote the file.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import fields, is_dataclass
from io import FileIO
from itertools import compress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np

from riq_cli.allocate.allocation import Curve
from riq_cli.allocate.probing import Probe
from riq_cli.archive import CodesEntry, LayerEntry
from riq_cli.calibration import Sample, digest
from riq_cli.constraint import Judgement, LossConstraint
from riq_cli.errors import CheckpointError, OutputError, SettingsError
from riq_cli.executors import available_threads, begun
from riq_cli.files import growing_file
from riq_cli.model import GateOutput, LookupOutput, Model, ProductOutput, WindowOutput
from riq_cli.pipeline.progress import Warn
from riq_cli.pipeline.settings import Settings
from riq_cli.quantize.factor import PackedFactor
from riq_cli.quantize.rows import RowFactor
from riq_cli.runtime import Array, Deviation, engine_version
from riq_cli.statistics.moments import PositionWeights
from riq_cli.text import fingerprint, shortened
from riq_cli.version import VERSION

_FORMAT = b"riq checkpoint 1\n"
_HEAD = struct.Struct("<IQ")  # of a record: CRC-32 of its content, and bytes of that
_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        CodesEntry, Curve, Deviation, GateOutput, Judgement, LayerEntry, LookupOutput, PackedFactor, PositionWeights,
        Probe, ProductOutput, RowFactor, WindowOutput,
    )
}  # fmt: skip
_MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)
_ANEW = "leave out --resume to begin anew"

Value = TypeVar("Value")


def identity(model: Model, samples: Sequence[Sample], settings: Settings) -> dict[str, Any]:
    """What the results of all steps depend on: JSON values by what an error calls them.

    Raises:
        SettingsError: the model has no bytes to be known by.
    """
    if model.source is None:
        raise SettingsError("a checkpoint knows a model by the bytes it was loaded from; save this one, and load it")
    constraint = settings.constraint
    labels = constraint.labels if isinstance(constraint, LossConstraint) else None
    return settings.recorded() | {
        "model": fingerprint(model.source.sha256),
        "calibration data": digest(samples),
        "labels": None if labels is None else digest([Sample({"labels": labels})]),
        "custom operators": list(settings.custom_ops),
        "threads": settings.threads or available_threads(),
        "riq": VERSION,
        "numpy": np.__version__,
        "onnxruntime": engine_version(),
    }


class Checkpoint:
    """The results of a run's steps, in a file that is there from the first of them on; without a path, nowhere.

    Steps may come from several threads; those of the same name come one after the other, in the same order in all runs.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, resume: bool = False) -> None:
        """Take the file's path; nothing is read or written before `begin`.

        Args:
            path: of the file; None: nothing is kept.
            resume: go on from what the file holds, if it is there; if not, it is replaced.
        """
        self.path = None if path is None else Path(path)
        self.read_seconds = 0.0  # that steps took whose results were read since this was set to 0
        self._resume, self._begun, self._writes = resume, False, path is not None
        self._identity = ""  # in JSON
        self._warn: Warn = lambda _: None
        self._counts: Counter[str] = Counter()  # of steps so far, by their names
        self._places: dict[str, tuple[int, int]] = {}  # of the contents of records: their offset, and bytes
        self._end = 0  # of the records that are whole
        self._open = contextlib.ExitStack()
        self._file: FileIO | None = None  # open once there is a record to write
        self._newest = 0.0  # when the newest record was written
        self._lock = threading.Lock()

    @property
    def is_there(self) -> bool:
        """Whether there is a file that a run can go on from."""
        return self.path is not None and self._begun and self.path.exists()

    def begin(self, identity: Mapping[str, Any], warn: Warn) -> tuple[int, float]:
        """Read what there is to go on from: the number of steps, and the seconds that they took.

        It may be called again where the run begins again without some layers; that is no other run.

        Args:
            identity: what the results of all steps depend on.
            warn: called with what the user should know.

        Raises:
            CheckpointError: the file is no checkpoint, or that of another run; or another run began with this object.
        """
        assert self.path is not None
        if self._begun:
            if differences := _differences(json.loads(self._identity), identity):
                raise CheckpointError(
                    f"{self.path}: another run began with this checkpoint ({differences}); give each run its own"
                )
            return 0, 0.0
        self._begun, self._identity, self._warn, self._newest = True, json.dumps(identity), warn, time.monotonic()
        if not self.path.exists():
            return 0, 0.0
        with self.path.open("rb") as file:
            head = file.read(len(_FORMAT))
            if not _FORMAT.startswith(head):
                raise CheckpointError(f"{self.path}: is no checkpoint of this version of riq; remove it to begin anew")
            if head != _FORMAT:  # the run before ended as it began to write
                return 0, 0.0
            if not self._resume:
                warn(f"{self.path}: is of a run that did not end, and is replaced; --resume would have gone on from it")
                return 0, 0.0
            with self._explained():
                return self._read_all(file)

    def has(self, name: str) -> bool:
        """Whether the result of the next step of this name can be read."""
        return f"{name} {self._counts[name] + 1}" in self._places

    def step(self, name: str, compute: Callable[[], Value]) -> Value:
        """The result of a step: read if the file has it, else computed and kept.

        Args:
            name: of the step, and of others before and after it.
            compute: gives numbers, text, bytes, arrays, mappings, objects of `_KINDS`, or tuples of all these. They
                depend on the identity of the run and on earlier steps alone. What it raises is raised, and not kept.
        """
        if not self._begun:
            return compute()
        with self._lock:
            self._counts[name] += 1
            key = f"{name} {self._counts[name]}"
        if key not in self._places:
            value = compute()
            with self._lock:
                self._append(key, value)
            return value
        assert self.path is not None
        begin, length = self._places[key]
        with self._explained(), self.path.open("rb") as file:
            file.seek(begin)
            _, seconds, value = _decoded(file.read(length))
        with self._lock:
            self.read_seconds += seconds
        return cast(Value, value)

    def mapped(
        self,
        name: str,
        executor: Executor | None,
        function: Callable[..., Value],
        numbers: Collection[int],
        *arguments: Iterable[Any],
    ) -> Iterator[Value]:
        """The results of a step for one number after another, read or computed as `ordered` does."""
        names = [f"{name} {number}" for number in numbers]
        missing = [not self.has(one) for one in names]
        computed = begun(executor, function, *(compress(values, missing) for values in (numbers, *arguments)))
        return (self.step(one, lambda: next(computed)()) for one in names)

    def close(self) -> None:
        """Write nothing more; the file stays."""
        self._writes = False
        self._open.close()

    def remove(self) -> None:
        """Remove the file: there is nothing left to go on with."""
        self.close()
        if self.path is not None and self._begun:
            self.path.unlink(missing_ok=True)
            self._end = 0

    def _read_all(self, file: BinaryIO) -> tuple[int, float]:
        total = 0.0
        for begin, content in _records(file):
            if self._end == 0:
                self._compare(json.loads(_decoded(content)[2]))
            else:
                key, seconds, _ = json.loads(_line(content))
                self._places[key], total = (begin, len(content)), total + seconds
            self._end = begin + len(content)
        return len(self._places), total

    def _compare(self, other: Mapping[str, Any]) -> None:
        own = json.loads(self._identity)
        if differences := _differences(other, own):
            only_threads = own | {"threads": other.get("threads")} == other
            advice = f"give --threads {other['threads']} to go on, or " if only_threads else ""
            raise CheckpointError(f"{self.path}: is of another run ({differences}); {advice}{_ANEW}")

    def _append(self, key: str, value: Any) -> None:
        """Append a record; where that fails, go on without any more."""
        seconds, self._newest = time.monotonic() - self._newest, time.monotonic()
        if not self._writes:
            return
        assert self.path is not None
        try:
            if self._file is None:
                self._file = self._open.enter_context(growing_file(self.path, overwrite=True, keep=self._end))
            begin = b"" if self._end else _FORMAT + _record("identity", 0.0, self._identity)
            self._end += self._file.write(begin + _record(key, seconds, value))
        except OutputError as error:
            self._warn(f"{error}; the run goes on, and --resume can go on from what was written before")
            self._writes = False

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except _MALFORMED as error:
            raise CheckpointError(f"{self.path}: is damaged; {_ANEW}") from error


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Where two identities differ; empty if they are the same."""
    return "; ".join(
        f"{name} {_shown(before.get(name))}, now {_shown(now.get(name))}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    )


def _shown(value: Any) -> str:
    return "unset" if value is None else shortened(str(value))


# ---- records ----


def _records(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Where the content of each record begins, and the content; up to the first that is not whole."""
    size = os.fstat(file.fileno()).st_size
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        checksum, length = _HEAD.unpack(head)
        begin = file.tell()
        content = file.read(length) if length <= size - begin else b""
        if len(content) < length or zlib.crc32(content) != checksum:
            break
        yield begin, content


def _record(key: str, seconds: float, value: Any) -> bytes:
    """The bytes of a record."""
    arrays: list[Array] = []
    line = json.dumps([key, seconds, _plain(value, arrays)]).encode()
    content = b"".join([line, b"\n", *(array.tobytes() for array in arrays)])
    return _HEAD.pack(zlib.crc32(content), len(content)) + content


def _line(content: bytes) -> bytes:
    """The JSON of a record."""
    return content[: content.index(b"\n")]


def _decoded(content: bytes) -> tuple[str, float, Any]:
    """The key of a record, its seconds and its value."""
    line = _line(content)
    key, seconds, plain = json.loads(line)
    return key, seconds, _restored(plain, content, [len(line) + 1])


def _plain(value: Any, arrays: list[Array]) -> Any:
    """A value as JSON has it: types and shapes of arrays stay, and their data is added to the list."""
    kind = type(value).__name__
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {"array": [value.dtype.str, value.shape]}
    if isinstance(value, bytes):
        arrays.append(np.frombuffer(value, np.uint8))
        return {"bytes": len(value)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (tuple, list)):
        return [_plain(item, arrays) for item in value]
    if isinstance(value, Mapping):
        return {"mapping": [_plain(item, arrays) for item in value.items()]}
    if kind in _KINDS:  # without what a dataclass caches
        names = [field.name for field in fields(value)] if is_dataclass(value) else vars(value)
        return {kind: {name: _plain(getattr(value, name), arrays) for name in names}}
    return value


def _restored(plain: Any, content: bytes, offset: list[int]) -> Any:
    """The value that `_plain` made this of; `offset` holds where the next array begins in the content."""
    if isinstance(plain, list):
        return tuple(_restored(item, content, offset) for item in plain)
    if not isinstance(plain, dict):
        return plain
    ((kind, inner),) = plain.items()
    if kind == "array":
        dtype, shape = np.dtype(inner[0]), inner[1]
        array = np.frombuffer(content, dtype, math.prod(shape), offset[0]).reshape(shape)
        offset[0] += array.nbytes
        return array.copy()
    if kind == "bytes":
        offset[0] += inner
        return content[offset[0] - inner : offset[0]]
    if kind == "mapping":
        return dict(_restored(inner, content, offset))
    result = object.__new__(_KINDS[kind])
    vars(result).update({name: _restored(item, content, offset) for name, item in inner.items()})
    return result
