"""Methods of a bench's objects, called on workers that have such objects of their own, made of the same files."""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, TypeVar

from riq_cli.calibration import Calibration
from riq_cli.errors import RiqError
from riq_cli.model import Model
from riq_cli.pipeline.bench import Bench
from riq_cli.pipeline.fitting import Fit
from riq_cli.pipeline.measuring import Measuring
from riq_cli.pipeline.settings import Settings
from riq_cli.pipeline.solver import Preparation
from riq_cli.pipeline.weights import Weights

# What a worker has of its own, so that it is not sent: the only object of each class, by the path from the bench to it.
_HELD = {
    Fit: ("preparation", "fit"),
    Measuring: ("measuring",),
    Model: ("model",),
    Preparation: ("preparation",),
    Weights: ("measuring", "weights"),
}
_BUILDING = threading.Lock()
_open: dict[bytes, tuple[Bench, contextlib.ExitStack]] = {}  # the newest bench of this process

Result = TypeVar("Result")


@dataclass(frozen=True)
class Machines:
    """Other machines to work on.

    Attributes:
        executor: runs functions of modules there.
        count: jobs that they do at the same time; the archive does not depend on it.
        load: loads there, from files, the model, its samples and the settings that are given here.
    """

    executor: Executor
    count: int
    load: Callable[[], tuple[Model, Calibration | None, Settings]]


class Workers(Executor):
    """Calls methods of a bench's objects on workers, each of which builds the same bench first.

    All that a call needs beside the bench is sent with it, plans as well. They could stay on the workers, but Dask lets
    a call wait for the worker that holds its plan, while others have nothing to do.

    Attributes:
        count: of the workers.
        ahead: calls at once without a result, enough that no worker waits for the next one, and calls in all.
    """

    def __init__(
        self, machines: Machines, build: Callable[[], contextlib.AbstractContextManager[Bench | None]]
    ) -> None:
        """Take the machines, and what builds the bench there."""
        self._machines, self._build = machines, pickle.dumps(build)
        self.count, self.ahead = machines.count, (2 * machines.count, 4 * machines.count)
        for _ in range(self.count):  # while this machine builds its own
            machines.executor.submit(_begin, self._build)

    def submit(self, function: Callable[..., Result], /, *arguments: Any, **named: Any) -> Future[Result]:
        """The future result of a method, or of a function of a module."""
        file = io.BytesIO()
        _Pickler(file, pickle.HIGHEST_PROTOCOL).dump((function, arguments, named))
        return self._machines.executor.submit(_called, self._build, file.getvalue())


class _Pickler(pickle.Pickler):
    """Writes the paths of what a worker has of its own."""

    def persistent_id(self, found: Any) -> tuple[str, ...] | None:
        return _HELD.get(type(found))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, bench: Bench) -> None:
        super().__init__(file)
        self._bench = bench

    def persistent_load(self, path: tuple[str, ...]) -> Any:
        return functools.reduce(getattr, path, self._bench)


def _begin(build: bytes) -> None:
    """Build the bench of the worker; what fails is told by the first call."""
    _bench(build)


def _called(build: bytes, call: bytes) -> Any:
    """The result of a call, on a worker."""
    bench, _ = _bench(build)
    function, arguments, named = _Unpickler(io.BytesIO(call), bench).load()
    return function(*arguments, **named)


def _bench(build: bytes) -> tuple[Bench, contextlib.ExitStack]:
    """The bench of the worker, and what ends it when nothing refers to it any longer.

    Raises:
        RiqError: a file is not there, or cannot be used. It is no ModelError, after which the search would go on.
    """
    with _BUILDING:
        if build not in _open:
            _open.clear()  # that of another compression, whose last call may still work
            stack = contextlib.ExitStack()
            try:
                bench = stack.enter_context(pickle.loads(build)())
            except (RiqError, OSError) as error:
                raise RiqError(
                    f"worker {socket.gethostname()} cannot begin: {error}; workers need the same files by the same "
                    "paths"
                ) from error
            _open[build] = bench, stack
        return _open[build]
