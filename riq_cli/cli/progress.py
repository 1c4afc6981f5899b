"""The wait for a command: one line on stderr for all of it, which says what is done and about how long it will take."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from riq_cli.cli.terminal import say, warn_line
from riq_cli.text import counted

if TYPE_CHECKING:
    from riq_cli.pipeline.progress import Expected, Progress

# What is done in each phase, and what is counted there.
_PHASES = {
    "original": ("running the original", "sample"),
    "search": ("measuring", "evaluation"),
    "gradients": ("taking gradients", "step"),
    "statistics": ("taking statistics", "layer"),
    "rows": ("fitting rows", "layer"),
    "probe": ("probing layers", "layer"),
    "reprobe": ("probing again", "layer"),
    "trellis": ("trying the trellis", "layer"),
    "coding": ("coding layers", "weight"),
    "decoding": ("restoring layers", "weight"),
}
_REDRAWN = 1.0  # seconds between two drawings where no step comes
_PLAIN, _PLAIN_SAME = 10.0, 60.0  # seconds between two lines without a terminal: of two phases, of the same one
_LONG = 60.0  # seconds to come that are worth a line at the start
_KNOWN = 5.0  # seconds until that is said: then costs are measured
_FASTER = 2  # times as long as --preset fast, from which on that is worth a word
_MANY = 10_000  # things of a phase from which on their percentage is shown
_PRIOR = 0.15  # share of all expected seconds that is taken to have been measured as expected
_MOST = 0.9  # share of a phase of unknown length that is taken to be done, at most


class Wait:
    """Shows the steps of a command; inside of `with`, it is drawn anew every second.

    On a terminal it is one line that is written over. Elsewhere a line is printed now and then, the first after 10
    seconds.

    Attributes:
        seconds: of each phase, in the order in which they began.
    """

    def __init__(self, work: str, quiet: bool, verbose: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin.

        Args:
            work: what is done before the first step.
            quiet: show nothing.
            verbose: from 1 on, each phase leaves a line with its seconds as it ends.
            clock: gives seconds.
        """
        self.seconds: dict[str, float] = {}
        self._work, self._quiet, self._verbose, self._clock = work, quiet, verbose, clock
        self._began = self._newest = clock()  # when the command began, and when the newest step came
        self._step: Progress | None = None  # the newest one of a phase that goes on
        self._steps, self._phase_seconds = 0, 0.0  # of that phase, up to the newest step
        self._expected: Sequence[Expected] = ()
        self._fast: Sequence[Expected] = ()
        self._spent: list[float] = []  # seconds of each expected phase, up to the newest step
        self._number = 0  # of the expected phase that goes on
        self._is_announced = False
        self._drawn = ""  # what stands on the terminal
        self._printed, self._printed_at = "", self._began  # the work of the newest plain line
        self._lock, self._ended = threading.RLock(), threading.Event()

    def __enter__(self) -> Wait:
        if not self._quiet:
            threading.Thread(target=self._keep_drawing, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        with self.hidden():
            self._end_phase()
            self._ended.set()

    def _keep_drawing(self) -> None:
        while not self._ended.wait(_REDRAWN):
            self.draw()

    # ---- steps ----

    def __call__(self, step: Progress) -> None:
        """Take a step in: the time since the one before it belongs to its phase."""
        with self._lock:
            if self._step is not None and step.phase != self._step.phase:
                self._end_phase()
            if step.expected:
                self._expected, self._fast, self._number = step.expected, step.fast, 0
                self._spent = [0.0] * len(step.expected)
            coming = [expected.phase for expected in self._expected[self._number :]]
            if step.phase in coming:
                self._number += coming.index(step.phase)
            now = self._clock()
            seconds, self._newest = now - self._newest, now
            self.seconds[step.phase] = self.seconds.get(step.phase, 0.0) + seconds
            self._phase_seconds += seconds
            if self._spent:
                self._spent[self._number] += seconds
            self._step, self._work = step, _PHASES[step.phase][0]
            self._steps += 1
            if step.done == step.total:
                self._end_phase()
        self.draw()

    def _end_phase(self) -> None:
        """Go on to the next expected phase; with `verbose`, leave a line for the one that ends."""
        if self._step is None:
            return
        if self._verbose and not self._quiet:
            done = counted(self._step.total or self._steps, _PHASES[self._step.phase][1])
            with self.hidden():
                say(f"{self._work:<20}  {done:>16}  {self._phase_seconds:7.1f} s", err=True)
        self._step, self._steps, self._phase_seconds = None, 0, 0.0
        if self._number + 1 < len(self._expected):
            self._number += 1
            self._work = _PHASES[self._expected[self._number].phase][0]

    def _left(self, now: float) -> float:
        """About the seconds that are left: those expected, times how much longer than expected phases have taken."""
        number, expected = self._number, [phase.seconds for phase in self._expected]
        spent, share = self._spent[number] + now - self._newest, 0.0
        if self._step is not None:
            evaluations = self._expected[number].evaluations
            share = self._step.done / self._step.total if self._step.total else min(self._steps / evaluations, _MOST)
        over = [n for n in range(number) if self._spent[n]]  # others were left out
        took = sum(self._spent[n] for n in over) + (spent if share else 0.0)
        prior = _PRIOR * sum(expected)
        longer = (prior + took) / (prior + sum(expected[n] for n in over) + share * expected[number])
        own = longer * expected[number]
        own = (1 - share) * ((1 - share) * own + spent) if share else max(own - spent, (1 - _MOST) * own)
        return own + longer * sum(expected[number + 1 :])

    # ---- what is shown ----

    def draw(self) -> None:
        """Show what is done, and the time."""
        with self._lock:
            if self._quiet or self._ended.is_set():
                return
            now = self._clock()
            left = self._left(now) if self._expected else None
            if left is not None and not self._is_announced and now - self._began >= _KNOWN:
                self._announce(now - self._began, left)
            if sys.stderr.isatty():
                self._write(self._line(now, left)[: _columns() - 1])
            elif now - self._printed_at >= (_PLAIN_SAME if self._printed == self._work else _PLAIN):
                say(self._line(now, left), err=True)
                self._printed, self._printed_at = self._work, now

    def _line(self, now: float, left: float | None) -> str:
        place = f"{self._number + 1}/{len(self._expected)} " if self._expected else ""
        step, done = self._step, ""
        if step is not None and step.phase == "search":
            done = f" k = {step.k:.4g}, {step.measure} {step.value:.2g}"
        elif step is not None:
            done = f"  {step.done}/{step.total}" if step.total < _MANY else f"  {step.done / step.total:.0%}"
        rest = "" if left is None else f", about {_minutes(_rounded(left))} left"
        return f"riq {place}{self._work}{done} · {_minutes(now - self._began)} elapsed{rest}"

    def _announce(self, elapsed: float, left: float) -> None:
        """Say at the start how long it will take, if that is more than a minute, and which preset is fast."""
        self._is_announced = True
        if left > _LONG:
            total = elapsed + left
            fast = total * sum(phase.seconds for phase in self._fast) / sum(phase.seconds for phase in self._expected)
            faster = f"; --preset fast takes about {_words(fast)}" if _FASTER * fast < total else ""
            with self.hidden():
                say(f"riq: this will take about {_words(total)}{faster}", err=True)

    def warn(self, message: str) -> None:
        """Print a warning above the line, unless nothing is to be shown."""
        if not self._quiet:
            with self.hidden():
                warn_line(message)

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the line away for a block that prints."""
        with self._lock:
            if self._drawn:
                self._write("")
                sys.stderr.write("\r")
                sys.stderr.flush()
            yield

    def _write(self, line: str) -> None:
        sys.stderr.write(f"\r{line.ljust(len(self._drawn))}")
        sys.stderr.flush()
        self._drawn = line


def _columns() -> int:
    return os.get_terminal_size(sys.stderr.fileno()).columns or 80


def _rounded(seconds: float) -> float:
    """Seconds as an estimate may tell them: in steps of 5, from a minute on of 10, from ten minutes on of 60."""
    step = 5 if seconds < 60 else 10 if seconds < 600 else 60
    return max(round(seconds / step), 1) * step


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _words(seconds: float) -> str:
    return f"{_rounded(seconds):.0f} s" if seconds < 90 else counted(round(seconds / 60), "minute")
