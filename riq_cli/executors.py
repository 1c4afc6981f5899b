"""Pools of threads and of processes, and how they end."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from functools import partial
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar

from riq_cli.errors import RiqError

_PATIENCE = 2.0  # seconds that an interruption waits for a pool of processes to end

_AHEAD = 2 * (os.cpu_count() or 1)  # jobs at once: enough for all workers, few enough for memory

Job = TypeVar("Job")
Pool = TypeVar("Pool", bound=Executor)
Result = TypeVar("Result")


def available_threads() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers(Executor):
    """Workers elsewhere, such as those of a cluster.

    Attributes:
        count: jobs that they do at the same time, > 0; results do not depend on it.
    """

    count: int


def begun(
    executor: Executor | None, function: Callable[..., Result], *arguments: Iterable[Any]
) -> Iterator[Callable[[], Result]]:
    """What gives the result of a function for one set of arguments after another.

    With an executor some jobs run ahead of what is taken; unlike with `executor.map`, never all of them.

    Args:
        executor: where the function runs; None: here, each call when its result is asked for.
        function: what runs; for a pool of processes, a function of a module.
        arguments: one iterable for each parameter, all as long as the shortest.
    """
    calls = zip(*arguments)  # noqa: B905 - as `map`, which has endless ones too
    if executor is None:
        yield from (partial(function, *call) for call in calls)
        return
    ahead = most = _AHEAD  # without a result, and in all
    if isinstance(executor, Workers):
        ahead, most = 2 * executor.count, 4 * executor.count  # no worker waits while one has a job that takes long
    jobs: deque[Future[Result]] = deque()
    for call in calls:
        jobs.append(executor.submit(function, *call))
        while len(running := [job for job in jobs if not job.done()]) >= ahead or len(jobs) >= most:
            if jobs[0] in running:
                wait(running, return_when=FIRST_COMPLETED)
            else:
                yield jobs.popleft().result
    while jobs:
        yield jobs.popleft().result


def ordered(executor: Executor | None, function: Callable[..., Result], *arguments: Iterable[Any]) -> Iterator[Result]:
    """The results that `begun` leads to, as `map` gives them."""
    return (result() for result in begun(executor, function, *arguments))


class _Worker(SpawnProcess):
    """A process that leaves the signals of a terminal to its parent, from the first moment on."""

    def start(self) -> None:
        """Start it while they are blocked, as they then are in the process."""
        if not hasattr(signal, "pthread_sigmask"):
            super().start()
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Workers(SpawnContext):
    Process = _Worker


def process_pool(workers: int, processors: Collection[int] = ()) -> ProcessPoolExecutor:
    """A pool of processes that end with this one, whatever ends it.

    Args:
        workers: their number.
        processors: numbers of those that they may use; none: all that this process may use.
    """
    return ProcessPoolExecutor(workers, mp_context=_Workers(), initializer=_begin, initargs=(processors,))


def _begin(processors: Collection[int]) -> None:
    if processors:
        os.sched_setaffinity(0, processors)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "it runs in a worker"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def isolated(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Generator[tuple[Job, Result | None], None, None]:
    """Each job with its result, as soon as there is one, which is None where the process of the job was killed.

    A job has a process of its own, with its share of the processors where the system can give one; other jobs do not
    suffer from its end. Close the iterator to end those that still run.

    Args:
        function: what runs, of a module; its errors are raised here.
        jobs: what it is called with.
        workers: jobs at the same time.
    """
    workers = min(workers, len(jobs))
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    shares = [processors[number::workers] for number in range(workers)]
    waiting = deque(jobs)
    running: dict[Future[Result], tuple[Job, int]] = {}
    with contextlib.ExitStack() as stack:

        def pool(number: int) -> ProcessPoolExecutor:
            return stack.enter_context(interruptible(process_pool(1, shares[number])))

        pools = [pool(number) for number in range(workers)]
        free = list(range(len(pools)))
        while waiting or running:
            while waiting and free:
                job, number = waiting.popleft(), free.pop()
                running[pools[number].submit(function, job)] = job, number
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, number = running.pop(future)
                free.append(number)
                if isinstance(future.exception(), BrokenExecutor):
                    pools[number] = pool(number)
                    yield job, None
                else:
                    yield job, future.result()


@contextlib.contextmanager
def interruptible(pool: Pool) -> Iterator[Pool]:
    """The pool; an interruption ends it without waiting for its workers, as the pool's own `with` would.

    A signal may come after a lock of the pool was taken and before the block that gives it back; the worker that wants
    it then never ends. Who catches the interruption has to leave without Python's own end, which waits as well.

    Raises:
        RiqError: a worker was killed from outside.
    """
    interrupted = False
    try:
        yield pool
    except BrokenExecutor as error:
        raise RiqError("a worker process was killed, most often because memory ran out; try again with more") from error
    except BaseException as error:
        interrupted = not isinstance(error, Exception)
        raise
    finally:
        if interrupted and isinstance(pool, ProcessPoolExecutor):
            for process in multiprocessing.active_children():  # they would stay behind, and wait for work
                process.terminate()
            # The pool's own thread gives back what the system keeps by name: that should not be cut off.
            end = threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": True}, daemon=True)
            end.start()
            end.join(_PATIENCE)
        else:
            pool.shutdown(wait=not interrupted, cancel_futures=interrupted)
