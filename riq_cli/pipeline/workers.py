"""Methods of a bench's objects, called on workers that have such objects of their own, made of the same files."""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, TypeVar

from riq_cli.calibration import Calibration
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
        load: loads there, from files, the model, its samples and the settings that are given here.
    """

    executor: Executor
    load: Callable[[], tuple[Model, Calibration | None, Settings]]


class Workers(Executor):
    """Calls methods of a bench's objects on workers, each of which builds the same bench at its first call."""

    def __init__(
        self, executor: Executor, build: Callable[[], contextlib.AbstractContextManager[Bench | None]]
    ) -> None:
        """Take what runs functions of modules on workers, and what builds the bench there."""
        self._executor, self._build = executor, pickle.dumps(build)

    def submit(self, function: Callable[..., Result], /, *arguments: Any, **named: Any) -> Future[Result]:
        """The future result of a method, or of a function of a module."""
        file = io.BytesIO()
        _Pickler(file, pickle.HIGHEST_PROTOCOL).dump((function, arguments, named))
        return self._executor.submit(_called, self._build, file.getvalue())


class _Pickler(pickle.Pickler):
    def persistent_id(self, found: Any) -> tuple[str, ...] | None:
        return _HELD.get(type(found))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, bench: Bench) -> None:
        super().__init__(file)
        self._bench = bench

    def persistent_load(self, path: tuple[str, ...]) -> Any:
        return functools.reduce(getattr, path, self._bench)


def _called(build: bytes, call: bytes) -> Any:
    """The result of a call, on a worker."""
    with _BUILDING:
        bench = _bench(build)
    function, arguments, named = _Unpickler(io.BytesIO(call), bench).load()
    return function(*arguments, **named)


def _bench(build: bytes) -> Bench:
    """The bench of the worker; that of another compression ends."""
    if build not in _open:
        for _, ended in map(_open.pop, list(_open)):
            ended.close()
        stack = contextlib.ExitStack()
        bench = stack.enter_context(pickle.loads(build)())
        _open[build] = bench, stack
    return _open[build][0]
