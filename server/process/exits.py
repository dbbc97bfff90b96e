"""How the end of a process is told: exit codes, which one process sets and another reads, and the reasons that are counted."""

from __future__ import annotations

from enum import StrEnum

MISUSE = 2
"""It cannot run as it was asked to: no queue, a port that is taken, a device that is not there."""
STUCK = 70
"""A worker ended itself because it made no progress."""
CRASHED = 71
"""A worker ended itself because one of its threads failed: it is restarted rather than left half alive."""


class Reason(StrEnum):
    """Why a process ended that should not have."""

    CRASHED = "crashed"
    """By a signal that was not ours: a fault in native code, or the kernel when memory ran out."""
    HUNG = "hung"
    """It gave no sign of life and was killed, or found itself that it made no progress."""
    EXITED = "exited"
    """With an exit code."""
