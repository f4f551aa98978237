"""What the processes of this package ask of the C library's allocator and of the interpreter."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator

# Names and numbers as in glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST_KEPT = 32 * 2**20
"""Bytes of the largest block that is not mapped from the system anew each time: the most that glibc allows."""
MOST_FREE = 512 * 2**20
"""Free bytes that stay with the process."""
SWITCH_INTERVAL = 1e-4
"""Seconds for which one thread may keep the others from Python code; the interpreter's own are 5 ms."""


def tune() -> None:
    """Get this process ready for many short steps of a few threads; changes no result."""
    keep_freed_memory()
    take_turns_quickly()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import modules without a search for garbage in between: what they make is none, and it takes a tenth of the time.

    For commands alone: what exists by the end is never searched again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where the C library is glibc; elsewhere do nothing.

    A backward pass asks for the same few MB again and again. Given back in between, they come from the system page by
    page, each of them zeroed first, which takes up to a tenth of a training step's time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, MOST_FREE)


def take_turns_quickly() -> None:
    """Let a thread that computes wait less for the interpreter.

    Of two clients' steps of some 60 ms that run side by side, each calls a thousand short operators; one that waits
    5 ms for its turn leaves a core idle for as long.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
