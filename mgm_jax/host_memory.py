"""Keeping the memory that XLA's CPU backend frees, for training on a CPU.

Its buffers are allocated anew each step. By default glibc gives large ones back to the system at
once, and each comes back as a page fault every 4 KB: a third of the time of a small model's step.
"""

from __future__ import annotations

import ctypes

# From glibc's malloc.h. One arena, since the others cannot hold a block of 64 MB.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
OPTIONS = ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28))


def keep_freed_memory() -> None:
    """Lets this process reuse what it frees; its peak stays, its size no longer shrinks.

    Best before XLA has started its threads: those that have an arena of their own keep it.

    Does nothing where the C library has no `mallopt` (musl, macOS, Windows).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    for option, value in OPTIONS:
        mallopt(option, value)
