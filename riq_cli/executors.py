"""Pools of threads and of processes, and how they end."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import TypeVar

_PATIENCE = 2.0  # seconds that an interruption waits for a pool of processes to end

Pool = TypeVar("Pool", bound=Executor)


@contextlib.contextmanager
def interruptible(pool: Pool) -> Iterator[Pool]:
    """The pool; an interruption ends it without waiting for its workers, as the pool's own `with` would.

    A signal may come after a lock of the pool was taken and before the block that gives it back; the worker that wants
    it then never ends. Who catches the interruption has to leave without Python's own end, which waits as well.
    """
    interrupted = False
    try:
        yield pool
    except KeyboardInterrupt:
        interrupted = True
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
