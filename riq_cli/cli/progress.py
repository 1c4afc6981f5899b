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
    "resumed": ("reading checkpoint", "step"),
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
    "models": ("compressing models", "model"),
}
_REDRAWN = 1.0  # seconds between two drawings where no step comes
_PLAIN, _PLAIN_SAME = 10.0, 60.0  # seconds between two lines without a terminal: of two phases, of the same one
_LONG = 60.0  # seconds to come that are worth a line at the start
_KNOWN = 5.0  # seconds until that is said: then costs are measured
_FASTER = 2  # times as long as --preset fast, from which on that is worth a word
_MANY = 10_000  # things of a phase from which on their percentage is shown
_PRIOR = 0.15  # share of all expected seconds that is taken to have been measured as expected
_MOST = 0.8  # share of a phase of unknown length that is taken to be done, at most


class _Estimate:
    """The phases that are expected, which of them goes on, and the seconds that each took so far."""

    def __init__(self, phases: Sequence[Expected]) -> None:
        self.phases, self.number, self._spent = phases, 0, [0.0] * len(phases)

    def enter(self, phase: str, seconds: float) -> None:
        """Go on to the next phase of that name, if there is one; add seconds to the phase that goes on."""
        coming = [expected.phase for expected in self.phases[self.number :]]
        if phase in coming:
            self.number += coming.index(phase)
        self._spent[self.number] += seconds

    def leave(self) -> None:
        """Go on to the next phase; the last one stays."""
        self.number = min(self.number + 1, len(self.phases) - 1)

    def left(self, step: Progress | None, steps: int, seconds: float) -> float:
        """About the seconds that are left: those expected, times how much longer than expected phases have taken.

        Args:
            step: the newest one of the phase that goes on; None: it begins.
            steps: of that phase.
            seconds: since that step.
        """
        number, expected = self.number, [phase.seconds for phase in self.phases]
        spent, share = self._spent[number] + seconds, 0.0
        if step is not None:
            share = step.done / step.total if step.total else min(steps / self.phases[number].evaluations, _MOST)
        over = [n for n in range(number) if self._spent[n]]  # others were left out
        took = sum(self._spent[n] for n in over) + (spent if share else 0.0)
        prior = _PRIOR * sum(expected)
        longer = (prior + took) / (prior + sum(expected[n] for n in over) + share * expected[number])
        own = longer * expected[number]
        own = (1 - share) * ((1 - share) * own + spent) if share else max(own - spent, (1 - _MOST) * own)
        return own + longer * sum(expected[number + 1 :])


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
        self._work, self._verbose, self._clock = work, verbose, clock
        self._quiet = quiet or sys.stderr is None  # as it is where the caller closed it
        self._began = self._newest = clock()  # when the command began, and when the newest step came
        self._step: Progress | None = None  # the newest one of a phase that goes on
        self._steps, self._phase_seconds = 0, 0.0  # of that phase, up to the newest step
        self._estimate: _Estimate | None = None
        self._fast = 1.0  # expected seconds of --preset fast, over those of all phases
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
                self._estimate = _Estimate(step.expected)
                self._fast = step.fast / sum(item.seconds for item in step.expected)
            now = self._clock()
            seconds, self._newest = now - self._newest, now
            self.seconds[step.phase] = self.seconds.get(step.phase, 0.0) + seconds
            self._phase_seconds += seconds
            if self._estimate is not None:
                self._estimate.enter(step.phase, seconds + step.read_seconds)
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
        if self._estimate is not None:
            self._estimate.leave()
            self._work = _PHASES[self._estimate.phases[self._estimate.number].phase][0]

    # ---- what is shown ----

    def draw(self) -> None:
        """Show what is done, and the time."""
        with self._lock:
            if self._quiet or self._ended.is_set():
                return
            now = self._clock()
            elapsed, left = now - self._began, None
            if self._estimate is not None:
                left = self._estimate.left(self._step, self._steps, now - self._newest)
                if not self._is_announced and elapsed >= _KNOWN:
                    self._announce(elapsed, left)
            if sys.stderr.isatty():
                self._write(self._line(elapsed, left)[: _columns() - 1])
            elif now - self._printed_at >= (_PLAIN_SAME if self._printed == self._work else _PLAIN):
                say(self._line(elapsed, left), err=True)
                self._printed, self._printed_at = self._work, now

    def _line(self, elapsed: float, left: float | None) -> str:
        place, step, done = "", self._step, ""
        if self._estimate is not None and len(self._estimate.phases) > 1:
            place = f"{self._estimate.number + 1}/{len(self._estimate.phases)} "
        if step is not None and step.phase == "search":
            done = f" k = {step.k:.4g}, {step.measure} {step.value:.2g}"
        elif step is not None:
            done = f"  {step.done}/{step.total}" if step.total < _MANY else f"  {step.done / step.total:.0%}"
        rest = "" if left is None else f", about {_minutes_and_seconds(_rounded(left))} left"
        return f"riq {place}{self._work}{done} · {_minutes_and_seconds(elapsed)} elapsed{rest}"

    def _announce(self, elapsed: float, left: float) -> None:
        """Say at the start how long it will take, if that is more than a minute, and which preset is faster."""
        self._is_announced, total = True, elapsed + left
        if left > _LONG:
            fast = f"; --preset fast takes about {_in_words(total * self._fast)}" if self._fast * _FASTER < 1 else ""
            with self.hidden():
                say(f"riq: this will take about {_in_words(total)}{fast}", err=True)

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


def _minutes_and_seconds(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _in_words(seconds: float) -> str:
    return f"{_rounded(seconds):.0f} s" if seconds < 90 else counted(round(seconds / 60), "minute")
