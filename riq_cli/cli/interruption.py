"""Signals that end a command: Ctrl-C, and those of a scheduler or of a terminal that closes."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from typing import Any, NoReturn

_SIGNALS = ("SIGTERM", "SIGHUP")  # Python itself makes KeyboardInterrupt of SIGINT; Windows has no SIGHUP


class Terminated(KeyboardInterrupt):
    """The process was asked to end, by the signal `number`: all clean up as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def catch() -> None:
    """Make exceptions of signals that would end the process at once, and leave half of a file behind."""
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # `nohup` has it ignored
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(number, _end)


def leave(error: BaseException | None) -> NoReturn:
    """End the process with 128 + the number of the signal, as shells have it, and with what it has printed.

    Without waiting for threads, as Python's own end does: those of an interrupted pool may never end.
    """
    atexit._run_exitfuncs()  # multiprocessing gives back what the system keeps by name
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a pipe that nobody reads, a stream that is closed
            stream.flush()
    os._exit(128 + (error.number if isinstance(error, Terminated) else signal.SIGINT))


def _end(number: int, frame: Any) -> NoReturn:
    raise Terminated(number)
