"""Contract between the supervisor and its children: exit codes, ids, messages and environment variables."""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

import msgspec

MISUSE = 2
"""Exit code of a process that cannot run as configured: no queue, a port that is taken, a device that does not exist."""
STUCK = 70
"""Exit code of a worker that ended itself because it made no progress."""
CRASHED = 71
"""Exit code of a worker that ended itself because one of its threads failed: it is restarted rather than left half alive."""
RESTARTS_VARIABLE = "OPSIN_RESTARTS"
"""Environment variable: number of times that the supervisor has restarted the process."""
LOADING_FILE_VARIABLE = "OPSIN_LOADING"
"""Environment variable: path of the file in which a worker names the bundle that it loads, read if the worker has died of it. It is empty
while nothing is loaded."""
REFUSED_BUNDLES_VARIABLE = "OPSIN_REFUSED"
"""Environment variable: bundles that must not be loaded again, by the words that workers wrote."""
MAX_MESSAGE_BYTES = 1024**2
"""Maximum size of a message between supervisor and template: an environment has some kilobytes."""


class ExitReason(StrEnum):
    """Reason for an unexpected end of a process."""

    CRASHED = "crashed"
    """A signal that was not ours: a fault in native code, or the kernel when memory ran out."""
    HUNG = "hung"
    """No sign of life, so it was killed, or no progress, as it found itself."""
    EXITED = "exited"
    """An exit code."""


class SpawnOrder(msgspec.Struct, frozen=True):
    """A message that turns a copy of the template into a worker; JSON over a pair of sockets, like `TemplateReply`."""

    command: list[str]
    """Command line for `ps`."""
    environment: dict[str, str]
    """The whole environment."""


class TemplateReply(msgspec.Struct, frozen=True):
    """A reply of the template. Without a pid it reports that it is ready."""

    pid: int = 0
    """Process id of a copy."""
    status: int | None = None
    """Exit code of an ended copy, or the negative of the signal that ended it, as in `subprocess`."""
    problem: str = ""
    """Reason why there is no copy."""


def process_id() -> str:
    """Return an id of this process, new at each call, so that a process is never mistaken for its predecessor."""
    return process_prefix(os.getpid()) + secrets.token_hex(4)


def process_prefix(pid: int) -> str:
    """Return the common start of all ids of a process of this machine, by which its supervisor knows it."""
    return f"{socket.gethostname()}-{pid}-"


def restarts() -> int:
    """Return the number of restarts of this process; 0 without a supervisor."""
    return int(os.environ.get(RESTARTS_VARIABLE, 0))


def report_loading(content: str) -> None:
    """Report the bundle that is loaded to the supervisor, if there is one: a word for its name and files, empty for none."""
    if path := os.environ.get(LOADING_FILE_VARIABLE):
        with suppress(OSError):
            Path(path).write_text(content)


def refused_bundles() -> frozenset[str]:
    return frozenset(os.environ.get(REFUSED_BUNDLES_VARIABLE, "").split())
