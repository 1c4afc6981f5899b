"""Signals that end a command: Ctrl-C, and those of a scheduler or of a terminal that closes.

It is imported before all else, and imports what only a signal needs when one came: until signals are caught, Python
ends as it likes.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time

from riq_cli.errors import Interrupted

TYPE_CHECKING = False  # that of `typing`, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_AGAIN = 0.01  # seconds until an interruption that was lost, or came too early, comes again

_main = 0  # the main thread
_received: int | None = None  # the signal that was caught, whatever became of its exception


def guarded(run: Callable[[], int]) -> int:
    """The exit code of a command; a signal ends the process instead, with 128 + its number and one line on stderr.

    After that, signals are ignored: Python's own end is short, and the exit code that was told stays.
    """
    _catch()
    try:
        code = run()
        _ignore()
        return code
    except BaseException as error:  # a KeyboardInterrupt is one from before, or from a function of the user's own
        if _received is None and not isinstance(error, KeyboardInterrupt):
            raise
        _ignore()
        leave(error if isinstance(error, Interrupted) else Interrupted(_received or signal.SIGINT))


def check() -> None:
    """Return nothing if no signal was caught; meant for errors that a library may have made of an interruption.

    Raises:
        Interrupted: one was.
    """
    if _received is not None:
        raise Interrupted(_received)


def leave(error: Interrupted) -> NoReturn:
    """End the process with 128 + the number of the signal, as shells have it, and with what it has printed.

    Without waiting for threads, as Python's own end does: those of an interrupted pool may never end.
    """
    import atexit
    import contextlib

    from riq_cli.text import printable

    atexit._run_exitfuncs()  # multiprocessing gives back what the system keeps by name
    with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads it, it is closed, it is None
        sys.stderr.write(f"riq: error: {printable(str(error) or _outcome())}\n")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(128 + error.number)


def _outcome() -> str:
    from riq_cli.files import completed

    written = " and ".join(completed())
    return f"interrupted after {written} was written" if written else "interrupted; no output was written"


def _catch() -> None:
    """Make exceptions of signals that would end the process at once, and leave half of a file behind."""
    global _main, _received
    _main, _received = _thread.get_ident(), None
    for number in _SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # `nohup` has some ignored
            try:
                signal.signal(number, _end)
            except ValueError:  # not in the main thread
                return
    others = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: _lost(others, unraisable)


def _ignore() -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_IGN)


def _end(number: int, frame: Any) -> None:
    global _received
    if isinstance(sys.exc_info()[1], Interrupted):  # what cleans up after the first goes on
        return
    if _is_importing(frame):
        _come_again(number)
        return
    _received = number
    raise Interrupted(number)


def _is_importing(frame: Any) -> bool:
    """Whether a frame belongs to an import, which an exception can make crash: protobuf's messages do not survive one.

    That of the user's own module may take long, and is interrupted.
    """
    found = False
    while frame is not None:
        if frame.f_globals.get("__name__") == "riq_cli.callables":
            return False
        found = found or frame.f_globals.get("__name__") == "importlib._bootstrap"
        frame = frame.f_back
    return found


def _lost(others: Callable[[Any], object], unraisable: Any) -> None:
    """Have an interruption come again that met code which cannot raise it, such as a finalizer."""
    error = unraisable.exc_value
    if isinstance(error, Interrupted):
        _come_again(error.number)
    else:
        others(unraisable)


def _come_again(number: int) -> None:
    """Send the signal once more to the main thread, a moment later."""
    main = _main

    def send() -> None:
        time.sleep(_AGAIN)
        if hasattr(signal, "pthread_kill"):  # which ends what the thread waits for, too
            signal.pthread_kill(main, number)
        else:
            signal.raise_signal(number)

    _thread.start_new_thread(send, ())  # `threading` may be what is imported
