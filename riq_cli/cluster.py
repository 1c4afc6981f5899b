"""A cluster of Dask's as an executor; the only file that imports Dask, and only where a scheduler is named."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, InvalidStateError, wait
from pathlib import Path
from typing import Any, TypeVar

from riq_cli.errors import RiqError
from riq_cli.text import first_line
from riq_cli.version import VERSION

_CONNECTING = "20s"  # until a scheduler that does not answer is an error
_LARGE = "1TB"  # of the arguments of a job, of which Dask would warn from 10 MB on
_LOOK = 3.0  # seconds between two looks at the workers
_PATIENCE = 10  # looks in a row that find no worker, until none is waited for

KILLED = "the workers that it was given to were killed, most often because memory ran out; give them more"

Job = TypeVar("Job")
Result = TypeVar("Result")


class Cluster(Executor):
    """The workers of a scheduler: it runs functions of modules on them.

    Where a worker ends, what it had to do is begun again on others; a job with which four ended raises an error.
    """

    def __init__(self, client: Any) -> None:
        """Take a client of the scheduler."""
        self._client, self._executor = client, client.get_executor(pure=False)
        self._jobs: set[Future[Any]] = set()  # those without a result

    def submit(self, function: Callable[..., Result], /, *arguments: Any, **named: Any) -> Future[Result]:
        """The future result of a function."""
        future: Future[Result] = self._executor.submit(function, *arguments, **named)
        self._jobs.add(future)
        future.add_done_callback(self._jobs.discard)
        return future

    @property
    def threads(self) -> int:
        """Jobs that the workers do at the same time.

        Raises:
            CancelledError: the scheduler has gone.
        """
        try:
            if self._client.status == "running":  # else this would wait for the scheduler
                return sum(self._client.nthreads().values())
        except OSError:
            pass
        raise CancelledError

    def finished(
        self, function: Callable[[Job], Result], jobs: Sequence[Job]
    ) -> Generator[tuple[Job, Result | None], None, None]:
        """Each job with its result, as soon as there is one, which is None where every worker of the job ended.

        There are as many jobs at once as workers have threads: the end of a worker is counted against all jobs that it
        has, and not only against the one that caused it.

        Args:
            function: what runs, of a module; its errors are raised here.
            jobs: what it is called with.
        """
        from distributed import KilledWorker

        waiting = deque(jobs)
        running: dict[Future[Result], Job] = {}
        while waiting or running:
            while waiting and len(running) < self.threads:
                job = waiting.popleft()
                running[self.submit(function, job)] = job
            for future in wait(running, _LOOK, FIRST_COMPLETED).done:
                job = running.pop(future)
                yield job, None if isinstance(future.exception(), KilledWorker) else future.result()

    def cancel(self) -> None:
        """Cancel all jobs. Those that run go on to their end, and their results are lost."""
        with contextlib.suppress(Exception):  # the scheduler may have gone
            self._executor.shutdown(wait=False)
        self._executor = self._client.get_executor(pure=False)

    def on_each(self, function: Callable[..., Any], /, *arguments: Any) -> None:
        """Call a function of a module on each worker, also while jobs run there; nothing happens if that fails."""
        with contextlib.suppress(Exception):  # or it would hide an error on whose account this is called
            if self._client.status == "running":
                self._client.run(function, *arguments, on_error="ignore")

    def watch(self, ended: threading.Event) -> None:
        """Look at the workers until the event; where none may be expected any longer, end all jobs."""
        without = 0
        while without < _PATIENCE:
            if ended.wait(_LOOK):
                return
            try:
                without = 0 if self.threads else without + 1
            except CancelledError:
                break
        with contextlib.suppress(Exception):  # jobs have to end in any case, or riq would wait for ever
            self._client.close()
        for job in self._jobs.copy():  # whose results were on the way: Dask forgets them
            with contextlib.suppress(InvalidStateError):  # a result came, or the job was cancelled
                job.set_exception(CancelledError())


@contextlib.contextmanager
def cluster(scheduler: str) -> Iterator[Cluster]:
    """The cluster of a scheduler, until the end of the block; what then still runs there is cancelled.

    Args:
        scheduler: its address, such as tcp://host:8786, or the scheduler file that it wrote.

    Raises:
        RiqError: Dask is not installed, no scheduler answers or it goes away, there are no workers, or one cannot run
            what is sent to it.
    """
    try:
        import dask
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise RiqError("--scheduler needs Dask; install it with: pip install 'riq[dask]'") from error
    for name in logging.root.manager.loggerDict:
        if name.partition(".")[0] == "distributed":  # what goes wrong is said by riq
            logging.getLogger(name).setLevel(logging.CRITICAL)
    if "://" not in scheduler and not Path(scheduler).is_file():  # Dask would wait for it
        raise RiqError(f"{scheduler}: neither an address, such as tcp://host:8786, nor a scheduler file")
    named = {"address": scheduler} if "://" in scheduler else {"scheduler_file": scheduler}
    own = {"distributed.comm.timeouts.connect": _CONNECTING, "distributed.admin.large-graph-warning-threshold": _LARGE}
    with dask.config.set(own):
        try:
            client = Client(**named, set_as_default=False)
        except Exception as error:  # Dask raises what it likes
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise RiqError(
                f"{scheduler}: no Dask scheduler answers ({reason}); start one with `dask scheduler`"
            ) from error
        ended = threading.Event()
        with client:
            try:
                _check(client, scheduler)
                found = Cluster(client)
                threading.Thread(target=found.watch, args=(ended,), daemon=True).start()
                yield found
            except RiqError:
                raise
            except KilledWorker as error:
                raise RiqError(
                    f"{scheduler}: four workers in a row were killed during one job, most often because memory ran "
                    "out; give workers more"
                ) from error
            except Exception as error:
                if client.status == "running" and not isinstance(error, CancelledError):
                    raise
                raise RiqError(
                    f"{scheduler}: the scheduler or the last of its workers has gone; start it again"
                ) from error
            finally:
                ended.set()


def _check(client: Any, scheduler: str) -> None:
    """Return nothing if there are workers, all with the releases that decide over the bytes of an archive.

    Raises:
        RiqError: there are none, or one differs.
    """
    here, advice = _releases(), "install the same there: others make other bytes"
    try:
        found = client.run(_releases)
    except Exception as error:  # whatever keeps a worker from importing riq
        raise RiqError(f"{scheduler}: a worker cannot run riq ({first_line(error)}); {advice}") from error
    if not found:
        raise RiqError(f"{scheduler}: has no workers; start some with `dask worker {scheduler} --nthreads 1`")
    for worker, releases in found.items():
        for name, release in releases.items():
            if release != here[name]:
                raise RiqError(f"worker {worker}: has {name} {release}, and here is {here[name]}; {advice}")


def _releases() -> dict[str, str]:
    return {"riq": VERSION} | {name: importlib.metadata.version(name) for name in ("numpy", "onnxruntime")}
