"""What the process asks of the C library's memory; glibc's alone, others are left as they are."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in glibc's malloc.h
_LARGE = 1 << 20  # bytes of an array that goes back to the system as soon as it is not needed


def give_back_large_arrays() -> None:
    """Have large arrays returned to the system when they are freed, from now on, and not kept for later.

    glibc raises its threshold to the largest that it has seen freed, 32 MiB at most; what lies between such arrays then
    keeps them in the process: a quarter of all memory that compress took.
    """
    mallopt = getattr(_library(), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, 8 * _LARGE)


def give_back_free_memory() -> None:
    """Return to the system what is free now between smaller arrays that are not."""
    trim = getattr(_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.cache
def _library() -> Any:
    """The C library, None if it cannot be glibc."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None
