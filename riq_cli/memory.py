"""Memory that goes back to the system: what the C library keeps for later (glibc's alone), and maps of files."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import sys
import threading
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in glibc's malloc.h
_LARGE = 1 << 20  # bytes of an array that goes back to the system as soon as it is not needed
_DONT_NEED = getattr(mmap, "MADV_DONTNEED", None)
_PAUSE = 0.05  # seconds in which a run of a model reads 100 MB, about

_maps: WeakSet[mmap.mmap] = WeakSet()
_adding = threading.Lock()


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


def mapped(file: int, access: int = mmap.ACCESS_DEFAULT) -> mmap.mmap:
    """A map of an open file, shared with it, which takes part in `give_back_mapped_memory`."""
    found = mmap.mmap(file, 0, access=access)
    with _adding:
        _maps.add(found)
    return found


def give_back_mapped_memory() -> None:
    """Return to the system the memory of what was read or written of maps; it is read again when it is needed."""
    if _DONT_NEED is None:
        return
    with _adding:
        found = list(_maps)
    for one in found:
        one.madvise(_DONT_NEED)


@contextlib.contextmanager
def mapped_memory_given_back() -> Iterator[None]:
    """A block during which that is done again and again: for one call that reads a whole model."""
    is_done = threading.Event()

    def give_back() -> None:
        while not is_done.wait(_PAUSE):
            give_back_mapped_memory()

    thread = threading.Thread(target=give_back, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()


@functools.cache
def _library() -> Any:
    """The C library, None if it cannot be glibc."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None
