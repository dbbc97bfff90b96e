"""Memory that a burst of large bodies and pictures took goes back to the system."""

from __future__ import annotations

import ctypes
import threading
import time

# parameters of glibc's mallopt(3)
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
LARGE = 4 * 1024 * 1024
"""Bytes from which a block is mapped by itself, and given back as soon as it is freed. By default this grows with what is freed."""
SPARE = 64 * 1024 * 1024
"""Freed bytes that stay for the next requests, until the next trim."""
ARENAS = 2
TRIM_EVERY = 20.0


def return_freed_memory() -> None:
    """From now on, in a thread of its own. Does nothing where the C library is not glibc."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim") or not hasattr(libc, "mallopt"):
        return
    for parameter, value in ((MMAP_THRESHOLD, LARGE), (TRIM_THRESHOLD, SPARE), (ARENA_MAX, ARENAS)):
        libc.mallopt(parameter, value)

    def trim() -> None:
        while True:
            time.sleep(TRIM_EVERY)
            libc.malloc_trim(0)

    threading.Thread(target=trim, name="trim", daemon=True).start()
