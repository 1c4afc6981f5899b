"""What the process asks of the C library's memory."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in glibc's malloc.h
_LARGE = 1 << 20  # bytes of an array that goes back to the system as soon as it is not needed


def give_back_memory() -> None:
    """Have glibc return large arrays to the system when they are freed, and not keep them for later.

    It raises its threshold to the largest that it has seen freed, 32 MiB at most; what lies between such arrays then
    keeps them in the process: a quarter of all memory that compress took.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, 8 * _LARGE)
