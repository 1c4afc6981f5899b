"""Signals that end a command: Ctrl-C, and those of a scheduler or of a terminal that closes."""

from __future__ import annotations

import contextlib
import signal
from typing import Any, NoReturn

_SIGNALS = ("SIGTERM", "SIGHUP")  # Python itself makes KeyboardInterrupt of SIGINT; Windows has no SIGHUP


class Terminated(KeyboardInterrupt):
    """The process was asked to end, by the signal `number`: all clean up as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def exit_code(error: BaseException | None) -> int:
    """128 + the number of the signal, as shells have it."""
    return 128 + (error.number if isinstance(error, Terminated) else signal.SIGINT)


def catch() -> None:
    """Make exceptions of signals that would end the process at once, and leave half of a file behind."""
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # `nohup` has it ignored
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(number, _end)


def _end(number: int, frame: Any) -> NoReturn:
    raise Terminated(number)
