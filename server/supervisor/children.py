"""A process that the supervisor keeps alive."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from server.process.supervision import RESTARTS, STUCK, Reason
from server.process.system import tied_to_parent
from server.telemetry import logs

log = logs.get(__name__)

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 5.0
"""Well below `worker_grace`: clients whose only worker dies again and again while it starts still get answers in between."""


@dataclass(frozen=True)
class Death:
    pid: int
    reason: Reason
    status: int = field(default=0, compare=False)
    """Exit code, or the negative of the signal that ended it."""


class Process(Protocol):
    """What a supervisor needs of a process that it started."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Exit code, or the negative of the signal that ended it; None while it runs."""


class Source(Protocol):
    """Makes processes in hundredths of a second (`Template`)."""

    @property
    def imports(self) -> bool:
        """Whether it is worth to wait until it can."""

    def copy(self, command: Sequence[str], environment: Mapping[str, str]) -> Process | None:
        """None: it cannot; the command is to be executed. Raises OSError where no process can be made."""


class Child:
    """Restarted at once when it dies; only deaths before it was ready make the pause before the next start double."""

    def __init__(
        self, kind: str, command: Sequence[str], environment: Mapping[str, str], fds: Sequence[int] = (), source: Source | None = None
    ) -> None:
        """source: what makes it where it can; else, and without one, it is executed."""
        self.kind = kind
        self.ready = False
        """Set by the supervisor once the process has announced that it serves."""
        self.seen = False
        """Set once it has given a sign of life."""
        self.seen_at = 0.0
        """Monotonic seconds of its last sign of life."""
        self.pause = 0.0
        """Seconds between its last death and its next start."""
        self._command = list(command)
        self._environment = dict(environment)
        self._fds = tuple(fds)
        self._source = source
        self._process: Process | None = None
        self._deaths = 0
        self._killed = False
        self._start_at = 0.0

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        return self._process.pid if self._process else 0

    @property
    def due(self) -> bool:
        return self._process is None and time.monotonic() >= self._start_at and not (self._source is not None and self._source.imports)

    def start(self, more: Mapping[str, str] | None = None) -> None:
        """From the main thread: the child dies with the thread that starts it. A process group of its own keeps Ctrl-C from it;
        in one session, the processes of a service share the CPUs by their priorities.

        more: environment of this start."""
        self.ready = self.seen = self._killed = False
        self.seen_at = time.monotonic()
        environment = self._environment | {RESTARTS: str(self._deaths), **(more or {})}
        try:
            copy = self._source.copy(self._command, environment) if self._source is not None else None
            self._process = copy or subprocess.Popen(
                tied_to_parent(self._command), stdin=subprocess.DEVNULL, env=environment, pass_fds=self._fds, process_group=0
            )
        except OSError as error:  # no memory, too many processes
            self._pause(longer(self.pause))
            log.error(f"{self.kind} does not start", reason=str(error), restart_in=self.pause)

    def reap(self) -> Death | None:
        """What became of the process if it has ended; it is due again after a pause."""
        if self._process is None or (status := self._process.poll()) is None:
            return None
        pid = self._process.pid
        hung = self._killed or status == STUCK
        death = Death(pid, Reason.HUNG if hung else Reason.CRASHED if status < 0 else Reason.EXITED, status)
        self._process = None
        self._deaths += 1
        self._pause(0.0 if self.ready else longer(self.pause))
        log.error(f"{self.kind} died", pid=pid, status=_status(status), restart_in=self.pause)
        return death

    def kill_hung(self) -> None:
        self._killed = True
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _pause(self, seconds: float) -> None:
        self.pause = seconds
        self._start_at = time.monotonic() + seconds


def longer(pause: float) -> float:
    """The pause after a start that failed, given the one before it."""
    return min(LONGEST_PAUSE, 2 * pause or FIRST_PAUSE)


def _status(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:  # most real-time signals have no name
        return f"signal {-status}"
