"""Presets side by side at the same targets; the paper's is what the others are held against."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import riq_cli as riq
from riq_cli.pipeline import PRESETS
from tests import zoo

from . import subjects
from .journal import Journal
from .measuring import Measurement, measure
from .summary import PAPER, Case, Rows, papers, summary
from .tables import NONE, deviation, header, line, number, task

COLUMNS = (
    *("model", "MB", "target", "preset", "ε0", "bytes", "ratio", "bits/weight", "deviation", "held-out"),
    *("task metric: before → after", "evaluations", "probes", "s", "× paper"),
)


@dataclass(frozen=True)
class Plan:
    """What is to be measured: every model at every target with every preset."""

    models: tuple[str, ...]
    targets: tuple[float, ...]
    presets: tuple[str, ...]
    samples: int
    heldout: int

    def cases(self) -> Iterator[Case]:
        """One case after another; the paper's preset before those that are compared with it."""
        ordered = sorted(self.presets, key=lambda preset: preset != PAPER)
        for model in self.models:
            for target in self.targets:
                for preset in ordered:
                    yield Case(model, target, preset, False, self.samples, self.heldout)


def presets(plan: Plan, path: Path | None = None, resume: bool = False) -> None:
    """Print the table, row by row, then the summary.

    Args:
        plan: what to measure.
        path: rows are appended to this file as lines of JSON.
        resume: rows that the file holds already are printed, not measured again.
    """
    journal = Journal(Case, Measurement, path, resume)
    runner = _Runner(journal)
    shown: Rows = {}
    print(header(COLUMNS), flush=True)
    for case in plan.cases():
        for done in runner.rows(case):
            paper = papers(journal.rows, done)
            shown |= paper
            shown[done] = journal.rows[done]
            print(line(cells(done, journal.rows[done], paper)), flush=True)
    print("\n" + "\n".join(summary(shown)), flush=True)
    if runner.missing:
        print(f"\n{runner.missing} of the rows asked for could not be measured and are counted nowhere.", flush=True)


class _Runner:
    """Measures cases that the journal does not hold."""

    def __init__(self, journal: Journal[Case, Measurement]) -> None:
        self._journal = journal
        self._name = ""
        self._subject: subjects.Subject | None = None
        self._unavailable: set[str] = set()
        self.missing = 0  # cases without a row

    def rows(self, case: Case) -> Iterator[Case]:
        """The cases whose rows are there now: this one, and the one that stands in where it did not reach."""
        options = dict(PRESETS[case.preset])
        if not self._measured(case, options):
            return
        yield case
        if self._journal.rows[case].reached or not options.get("epsilon"):
            return
        # Without a fixed ε0 any target is within reach, as A.4 has it: the largest ε0 that reaches, or 0, whichever is
        # smaller. Algorithm 1 could take 46 000 steps with ε0 = 0, so bisection searches.
        options |= {"epsilon": None, "search": "bisection"}
        case = replace(case, fallback=True)
        if self._measured(case, options):
            yield case

    def _measured(self, case: Case, options: Mapping[str, object]) -> bool:
        """Whether there is a row; measured unless the journal holds it. What goes wrong is printed in its place."""
        if case in self._journal.rows:
            return True
        if case.model in self._unavailable:
            self.missing += 1
            return False
        try:
            settings = riq.Settings(deviation=case.target, **options)  # type: ignore[arg-type]
            found = measure(self._of(case), settings)
        except zoo.ZooUnavailable as error:
            self._unavailable.add(case.model)
            self._failed(case, f"cannot be had: {error}")
            return False
        except Exception as error:  # the other models are worth their hours; a resumed run tries this one again
            traceback.print_exc()
            self._failed(case, f"failed: {type(error).__name__}: {error}")
            return False
        self._journal.add(case, found)
        return True

    def _of(self, case: Case) -> subjects.Subject:
        if self._subject is None or self._name != case.model:
            self._name, self._subject = case.model, None
            self._subject = subjects.get(case.model, case.samples, case.heldout_samples)
        return self._subject

    def _failed(self, case: Case, what: str) -> None:
        self.missing += 1
        print(line([subjects.title(case.model), NONE, f"{case.target:g}", case.preset, NONE, what]), flush=True)


def cells(case: Case, found: Measurement, paper: Rows) -> list[str]:
    """The cells of a row.

    Args:
        case: whose row it is.
        found: what was measured.
        paper: the paper's case and row for the same model and target; empty if there is none.
    """
    fixed = PRESETS[case.preset].get("epsilon")
    epsilon = fixed if not found.reached else found.epsilon
    return [
        subjects.title(case.model),
        f"{found.source_bytes / 1e6:.2f}",
        f"{case.target:g}",
        f"{case.preset}, ε0 freed, bisection" if case.fallback else case.preset,
        number(epsilon, "{:g}"),
        number(found.bytes, "{:,}") if found.reached else "not reached",
        number(found.ratio, "×{:.2f}"),
        number(found.rate, "{:.2f}"),
        deviation(found),
        number(found.heldout, "{:.5f}"),
        task(found),
        f"{found.evaluations}",
        f"{found.probes}",
        f"{found.seconds:.1f}",
        _against(case, found, paper),
    ]


def _against(case: Case, found: Measurement, paper: Rows) -> str:
    """Bytes of the paper's archive over bytes of this one, and the paper's ε0 where it is not its own."""
    if case.preset == PAPER or not found.bytes:
        return NONE
    for other, measured in paper.items():
        assert measured.bytes is not None
        text = f"×{measured.bytes / found.bytes:.3f}"
        return f"{text} (ε0 = {measured.epsilon:g})" if other.fallback and measured.epsilon is not None else text
    return NONE
