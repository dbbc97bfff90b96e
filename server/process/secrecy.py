"""Passwords of this process stay its own."""

from __future__ import annotations

import ctypes
import sys

PR_SET_DUMPABLE = 4


def keep_from_others() -> None:
    """From now on no other process of the same user, such as a codec that a video took over, reads this one's environment or memory, and no
    core dump holds it. Root may, with CAP_SYS_PTRACE. Does nothing where there is no prctl (macOS)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
