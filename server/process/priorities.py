"""Threads of low priority: what nobody waits for at once leaves the CPUs to what somebody does."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

LOW = 10
"""Nice value: a tenth of a CPU that a usual thread wants too. A lower priority would hold the interpreter's lock for too long."""


def lower_own() -> None:
    """That of the calling thread, for as long as it lives: nobody may raise it again. What it starts inherits it."""
    lower(threading.get_native_id())


def lower(thread: int) -> None:
    """That of a thread, as the system numbers it, where the system knows priorities of threads."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, LOW)
