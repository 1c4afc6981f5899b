"""Prints what opening one file of a model costs, in a process of its own: `python -m tests.bench.opening FILE SAMPLE`.

The sample is an .npz file of one array for each input.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

_SECONDS = 1.0  # of runs
_RUNS = 5  # at least


def main(path: Path, sample: Path) -> None:
    """Open the file, from the disk and from the system's memory, and run the sample on one thread.

    What comes from memory is measured in processor time, which other work on the machine hardly changes.
    """
    with np.load(sample) as loaded:
        feed = dict(loaded)
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    before = _resident()
    began = time.perf_counter()
    session = _session(path)
    cold = time.perf_counter() - began
    session.run(None, feed)
    after, peak = _resident(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    runs = []
    while len(runs) < _RUNS or sum(runs) < _SECONDS:
        began = time.process_time()
        session.run(None, feed)
        runs.append(time.process_time() - began)
    del session
    began = time.process_time()
    _session(path)
    warm = time.process_time() - began
    found = {"cold": cold, "warm": warm, "run": min(runs), "memory": after - before, "peak": max(peak - before, 0)}
    print(json.dumps(found))


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    if path.suffix != ".riqz":
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    import riq_cli as riq  # its import is part of the time

    return riq.load_session(path, ["CPUExecutionProvider"], options)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
