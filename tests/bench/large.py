"""A large decoder of random weights through compress, report, decompress and verify: time, and memory at its peak."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.llama import Llama

from .tables import commit, header, line

SIZES = {
    "0.1B": Llama(8, 1024, 2816, 16, 4, 16000),
    "0.3B": Llama(6, 2048, 5632, 32, 4, 16000),
    "1.1B": Llama(24, 2048, 5632, 32, 4, 32000),
    "3.2B": Llama(28, 3072, 8192, 24, 8, 128000),
}
_SAMPLES, _WORDS = 4, 32
# A small process of its own: a new one counts the memory of the one that it comes from.
_MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss)
"""
_COLUMNS = ("command", "s", "processor s", "peak, MB", "÷ model", "writes, MB")


def large(size: str, preset: str, folder: Path | None) -> None:
    """Print a row for each command; the model and what is made of it are kept in a folder, if there is one."""
    decoder = SIZES[size]
    with contextlib.ExitStack() as stack:
        at = Path(stack.enter_context(tempfile.TemporaryDirectory())) if folder is None else folder / size
        at.mkdir(exist_ok=True, parents=True)
        model, calibration, heldout = at / "model.onnx", at / "samples.npz", at / "heldout.npz"
        if not model.exists():
            decoder.save(model)
            for seed, path in enumerate((calibration, heldout), 1):
                np.savez(path, words=decoder.samples(_SAMPLES, _WORDS, seed)[:, 0])
        largest = 2 * decoder.words * decoder.hidden
        print(
            f"{decoder.weights:,} float16 weights, {2 * decoder.weights / 1e6:,.0f} MB, the largest layer "
            f"{largest / 1e6:,.0f} MB; --preset {preset} on {_SAMPLES} samples, at {commit()}"
        )
        print(header(_COLUMNS))
        archive, restored = at / f"{preset}.riqz", at / "restored.onnx"
        beside = ("--scratch", str(at), "--quiet")
        for name, *arguments in (
            ("compress", model, "--calibration", calibration, "--preset", preset, "-o", archive, "--force", *beside),
            ("report", archive),
            ("decompress", archive, "-o", restored, "--force", *beside),
            ("verify", archive, "--against", model, "--calibration", heldout, "--deviation", "1", *beside),
        ):
            command = [sys.executable, "-m", "riq_cli", name, *map(str, arguments)]
            began = time.monotonic()
            done = subprocess.run([sys.executable, "-c", _MEASURED, *command], stdout=subprocess.PIPE, check=True)
            seconds = time.monotonic() - began
            processor, peak = map(float, done.stdout.split())
            written = {"compress": [archive], "decompress": [*at.glob("restored.onnx*")]}.get(name, [])
            figures = (seconds, processor, peak / 1e6)
            made = sum(path.stat().st_size for path in written) / 1e6
            print(
                line([f"`{name}`", *(f"{one:,.0f}" for one in figures), f"{peak / 2 / decoder.weights:.2f}",
                      f"{made:,.0f}" if made else "–"]),
                flush=True,
            )  # fmt: skip
