"""Exit codes, ids, messages and environment variables, by which supervisor and children tell each other something."""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

import msgspec

MISUSE = 2
"""Exit code: it cannot run as it was asked to: no queue, a port that is taken, a device that is not there."""
STUCK = 70
"""Exit code: a worker ended itself because it made no progress."""
CRASHED = 71
"""Exit code: a worker ended itself because one of its threads failed: it is restarted rather than left half alive."""
RESTARTS = "OPSIN_RESTARTS"
"""Environment variable: how often the supervisor has restarted the process."""
LOADING = "OPSIN_LOADING"
"""Environment variable: path of the file in which a worker tells which bundle it loads, read when the worker has died of it. It is empty
while nothing is loaded."""
REFUSED = "OPSIN_REFUSED"
"""Environment variable: bundles that are not to be loaded again, words as they were told."""
MOST_BYTES = 1024**2
"""Longest message between supervisor and template: an environment is some kilobytes."""


class Reason(StrEnum):
    """Why a process ended that should not have."""

    CRASHED = "crashed"
    """By a signal that was not ours: a fault in native code, or the kernel when memory ran out."""
    HUNG = "hung"
    """It gave no sign of life and was killed, or found itself that it made no progress."""
    EXITED = "exited"
    """With an exit code."""


class Order(msgspec.Struct, frozen=True):
    """Tells the template, whose copies workers are, to become a worker; as JSON over a pair of sockets, like `Told`."""

    command: list[str]
    """The command line that `ps` shall show."""
    environment: dict[str, str]
    """The whole of it."""


class Told(msgspec.Struct, frozen=True):
    """An answer of the template. Without a pid: that it stands."""

    pid: int = 0
    """Id of a copy."""
    status: int | None = None
    """Set where the copy has ended: its exit code, or the negative of the signal that ended it, as in `subprocess`."""
    problem: str = ""
    """Why there is no copy."""


def process_id() -> str:
    """An id of this process, new at each call, so that nobody takes a process for its predecessor."""
    return process_prefix(os.getpid()) + secrets.token_hex(4)


def process_prefix(pid: int) -> str:
    """The begin of all ids of a process of this machine, by which its supervisor knows it."""
    return f"{socket.gethostname()}-{pid}-"


def restarts() -> int:
    """How often this process was restarted; 0 without a supervisor."""
    return int(os.environ.get(RESTARTS, 0))


def tell_loading(content: str) -> None:
    """content: one word for a bundle and its files as they are now; empty: nothing is loaded. Without a supervisor nobody is told."""
    if path := os.environ.get(LOADING):
        with suppress(OSError):
            Path(path).write_text(content)


def refused_bundles() -> frozenset[str]:
    return frozenset(os.environ.get(REFUSED, "").split())
