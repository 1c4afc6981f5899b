"""`python -m tests.fuzz`: random cases until the time is over; `--replay FILE` runs one that went wrong."""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import re
import resource
import secrets
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.targets import NAMES, TARGETS, Target

MEMORY = 1 << 30  # bytes that cases may take beside what is there before the first
SLOW, ENDLESS = 1.0, 20  # seconds after which a case is told, and after which it is a failure
TELL = 10.0  # seconds between two lines of progress


class _EndlessError(Exception):
    pass


def main() -> int:
    """Fuzz, and return 1 if anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)} [default: all]")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together [default: 60]")
    parser.add_argument("--cases", type=int, help="of each target at most")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, help="of all cases [default: a new one]")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this case of the one target")
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"), help="folder for what goes wrong")
    given = parser.parse_args()
    for name in given.targets:
        if name not in TARGETS:
            parser.error(f"no target is named {name!r}; there are {', '.join(NAMES)}")
    names = given.targets or NAMES
    faulthandler.enable()
    _limit()
    if given.replay is not None:
        if len(given.targets) != 1:
            parser.error("--replay needs the one target that the file is a case of")
        failure = outcome(TARGETS[names[0]], given.replay.read_bytes())
        print(failure or "no failure")
        return failure is not None
    seed = secrets.randbelow(1 << 32) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    failures = [fuzz(name, seed, given, given.seconds / len(names)) for name in names]
    return any(failures)


def fuzz(name: str, seed: int, given: argparse.Namespace, seconds: float) -> int:
    """The number of failures of a target; cases differ by the seed, the target and their numbers alone."""
    target, began, told, failures, found = TARGETS[name], time.monotonic(), 0.0, 0, set[str]()
    number = given.first
    while time.monotonic() - began < seconds and (given.cases is None or number - given.first < given.cases):
        data = target.make(np.random.default_rng([seed, NAMES.index(name), number]))
        start = time.monotonic()
        failure = outcome(target, data)
        if (taken := time.monotonic() - start) > SLOW:
            print(f"{name}: case {number} of seed {seed} took {taken:.1f} s: {_kept(data, name, given.out)}")
        if failure is not None:
            failures += 1
            *_, place = re.findall("File .*|$", failure)[:-1] or [failure]  # where it went wrong: told once
            if place not in found:
                found.add(place)
                path = _kept(data, name, given.out)
                print(f"{name}: case {number} of seed {seed} failed:\n{failure}")
                print(f"again: python -m tests.fuzz {name} --replay {path}", flush=True)
        number += 1
        if time.monotonic() - began > told + TELL:
            told += TELL
            print(f"{name}: {number} …", flush=True)
    cases = number - given.first
    rate = cases / max(time.monotonic() - began, 1e-9)
    print(f"{name}: {cases} cases, {rate:.0f}/s, {failures} failures", flush=True)
    return failures


def outcome(target: Target, data: bytes) -> str | None:
    """What went wrong with a case; None if it ended well, or in an error that it may end in."""
    signal.alarm(ENDLESS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            target.run(data)
    except target.errors as error:
        return None if str(error) else f"an error without a message\n{traceback.format_exc()}"
    except Exception:  # any other is a find
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    return None


def _kept(data: bytes, name: str, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


def _limit() -> None:
    def endless(*_: Any) -> None:
        raise _EndlessError(f"not done after {ENDLESS} seconds")

    signal.signal(signal.SIGALRM, endless)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))


if __name__ == "__main__":
    sys.exit(main())
