"""Methods of a bench's objects, called on workers that have such objects of their own, made of the same files."""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from riq_cli.calibration import Calibration
from riq_cli.cluster import Cluster
from riq_cli.errors import RiqError
from riq_cli.executors import Workers
from riq_cli.memory import give_back_free_memory
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
class OnCluster:
    """A cluster to work on.

    Attributes:
        cluster: its workers.
        load: loads there, from files, the model, its samples and the settings that are given here.
    """

    cluster: Cluster
    load: Callable[[], tuple[Model, Calibration | None, Settings]]


class BenchWorkers(Workers):
    """Calls methods of a bench's objects on workers, each of which builds the same bench first.

    All that a call needs beside the bench is sent with it, plans as well. They could stay on the workers, but Dask lets
    a call wait for the worker that holds its plan, while others have nothing to do.
    """

    def __init__(self, cluster: Cluster, build: Callable[[], contextlib.AbstractContextManager[Bench | None]]) -> None:
        """Take the cluster, and what builds the bench there."""
        self._cluster, self._build = cluster, pickle.dumps(build)
        self.count = max(cluster.threads, 1)  # none where the only worker begins again
        for _ in range(self.count):  # while this machine builds its own
            cluster.submit(_begin, self._build)

    def submit(self, function: Callable[..., Result], /, *arguments: Any, **named: Any) -> Future[Result]:
        """The future result of a method, or of a function of a module."""
        file = io.BytesIO()
        _Pickler(file, pickle.HIGHEST_PROTOCOL).dump((function, arguments, named))
        return self._cluster.submit(_called, self._build, file.getvalue())

    def close(self) -> None:
        """Cancel all calls, and have the workers give up their benches. Calls that run there go on with them."""
        self._cluster.cancel()
        self._cluster.on_each(_end, self._build)


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


def _end(build: bytes) -> None:
    """Give up the bench of the worker, once it is built; the worker answers others meanwhile."""
    threading.Thread(target=_give_up, args=(build,)).start()


def _give_up(build: bytes) -> None:
    with _BUILDING:
        _open.pop(build, None)
    give_back_free_memory()


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
