"""Memory of the process: what a program that runs networks on the CPU asks of the C library."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3), which glibc alone has
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc keep what was freed for the next tensors, instead of giving it back to the system each time.

    By default blocks of 32 MiB and more are mapped and unmapped with every tensor, and the system clears each page: a
    third of the time of a network on images of some 100,000 px. The process stays as large as it once was, and what is
    kept is in pieces: it was seen to grow by a fifth more, so it does not suit a bound on memory.

    Returns:
        Whether the C library is glibc and was asked; elsewhere nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _NEVER) and mallopt(_M_MMAP_MAX, 0))
