"""How much memory something takes: in a process of its own, beside what its imports take."""

from __future__ import annotations

import subprocess
import sys

import pytest

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")


def growth(before: str, action: str, *arguments: object, figure: str = "VmHWM") -> int:
    """Bytes by which the memory of a new process grows with an action; the least of two, as the system adds some.

    Args:
        before: Python code, such as imports, whose memory does not count.
        action: Python code that is measured.
        arguments: `sys.argv[1:]` of both.
        figure: of the system: the peak until then, or `VmRSS`, which is there when the action ends.
    """
    taken = f'1024 * int(open("/proc/self/status").read().split("{figure}:")[1].split()[0])'
    script = f"import sys\n{before}\nbefore = {taken}\n{action}\nprint({taken} - before)"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return min(int(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(2))
