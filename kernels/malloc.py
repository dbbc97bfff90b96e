"""How glibc keeps and returns the memory of forward passes on a CPU."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8

_MAX_MMAP_THRESHOLD = 32 * 2**20
"""Largest threshold in bytes that glibc accepts."""


def keep_freed_memory() -> bool:
    """Let glibc keep what a forward pass frees for the next one; for a process that does nothing but forward passes.

    Otherwise every activation of some megabytes goes back to the kernel when it is freed, and comes again page by page, filled with zeros.
    Call it before threads start. False without glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    settings = {_ARENA_MAX: 1, _MMAP_THRESHOLD: _MAX_MMAP_THRESHOLD, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}
    accepted = [mallopt(name, value) == 1 for name, value in settings.items()]
    return all(accepted)


def return_freed_memory() -> bool:
    """Give back to the kernel what is free now, after something that needed far more than a forward pass. False without glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return False
    return bool(trim(0))
