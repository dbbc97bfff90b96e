"""Processes that the supervisor keeps alive. Workers are copies of a template, which has imported all that they need, or are executed."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from server.processes.os_process import signal_name, tied_to_parent
from server.processes.supervisor_protocol import MISUSE, MOST_BYTES, RESTARTS, STUCK, Order, Reason, Told
from server.telemetry import logs

log = logs.get(__name__)

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 5.0
"""Well below `worker_grace`: clients whose only worker dies again and again while it starts still get answers in between."""
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""Numpy's linear algebra starts its threads when it is imported, and a process with threads cannot be copied."""
LONGEST_IMPORT = 60.0
"""Seconds after a start that workers wait for it; then they are executed."""
LONGEST_COPY = 5.0
"""Seconds that a copy may take to be made, which takes 10 ms: the template is killed then."""


class Pause:
    """The time before the next start of a process, which doubles with each start that fails."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._over_at = 0.0

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._over_at

    def begin(self, *, failed: bool) -> None:
        self.seconds = min(LONGEST_PAUSE, 2 * self.seconds or FIRST_PAUSE) if failed else 0.0
        self._over_at = time.monotonic() + self.seconds


@dataclass(frozen=True)
class Death:
    pid: int
    reason: Reason
    status: int = field(default=0, compare=False)
    """Exit code, or the negative of the signal that ended it."""

    @property
    def stopped(self) -> bool:
        """Whether it ended as processes do after SIGTERM: drained, or before it listened to signals."""
        return self.status in (0, -signal.SIGTERM)


class Child:
    """Restarted at once when it dies; only deaths before it was ready make the pause before the next start double."""

    def __init__(
        self, kind: str, command: Sequence[str], environment: Mapping[str, str], fds: Sequence[int] = (), template: Template | None = None
    ) -> None:
        """template: makes it where it can; else, and without one, it is executed."""
        self.kind = kind
        self.ready = False
        """Set by the supervisor once the process has announced that it serves."""
        self.seen = False
        """Set once it has given a sign of life."""
        self.seen_at = 0.0
        """Monotonic seconds of its last sign of life."""
        self.pause = Pause()
        """Between its last death and its next start."""
        self._command = list(command)
        self._environment = dict(environment)
        self._fds = tuple(fds)
        self._template = template
        self._process: subprocess.Popen[bytes] | Copy | None = None
        self._deaths = 0
        self._killed = False

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        return self._process.pid if self._process else 0

    @property
    def due(self) -> bool:
        return self._process is None and self.pause.over and not (self._template is not None and self._template.imports)

    def start(self, more: Mapping[str, str] | None = None) -> None:
        """From the main thread: the child dies with the thread that starts it. A process group of its own keeps Ctrl-C from it;
        in one session, the processes of a service share the CPUs by their priorities.

        more: environment of this start."""
        self.ready = self.seen = self._killed = False
        self.seen_at = time.monotonic()
        environment = self._environment | {RESTARTS: str(self._deaths), **(more or {})}
        try:
            copy = self._template.copy(self._command, environment) if self._template is not None else None
            self._process = copy or subprocess.Popen(
                tied_to_parent(self._command), stdin=subprocess.DEVNULL, env=environment, pass_fds=self._fds, process_group=0
            )
        except OSError as error:  # no memory, too many processes
            self.pause.begin(failed=True)
            log.error(f"{self.kind} does not start", reason=str(error), restart_in=self.pause.seconds)

    def reap(self) -> Death | None:
        """Tell how the process ended, if it has; it is due again after a pause."""
        if self._process is None or (status := self._process.poll()) is None:
            return None
        pid = self._process.pid
        hung = self._killed or status == STUCK
        death = Death(pid, Reason.HUNG if hung else Reason.CRASHED if status < 0 else Reason.EXITED, status)
        self._process = None
        self._deaths += not death.stopped
        self.pause.begin(failed=not self.ready)
        told = signal_name(-status) if status < 0 else f"exit code {status}"
        if death.stopped:
            log.info(f"{self.kind} stopped", pid=pid, status=told, restart_in=self.pause.seconds)
        else:
            log.error(f"{self.kind} died", pid=pid, status=told, restart_in=self.pause.seconds)
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


class Template:
    """Started, and started again when it dies, from the main thread: it dies with the thread that starts it, and its copies with it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """command: it gets `--fd N` on top."""
        self._command = list(command)
        self._environment = {**environment, **ONE_THREAD}
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._stands = False
        self._first = True
        """Whether it has neither stood nor died yet."""
        self._given_up = False
        self._copies = Copies()
        self._started_at = 0.0
        self._pause = Pause()

    @property
    def fd(self) -> int | None:
        """Readable when it has something to tell; None while it does not run."""
        return self._socket.fileno() if self._socket is not None else None

    @property
    def imports(self) -> bool:
        """Whether it will soon stand for the first time: as soon as a worker that is executed now would serve."""
        return self._first and time.monotonic() < self._started_at + LONGEST_IMPORT

    def mend(self) -> None:
        """Start it where it is due; hear what it tells."""
        if self._process is None and not self._given_up and self._pause.over:
            self._start()
        self.hear()

    def copy(self, command: Sequence[str], environment: Mapping[str, str]) -> Copy | None:
        """A worker; None where the template does not stand. Raises OSError where no process can be made."""
        self.hear()
        if not self._stands or self._socket is None:
            return None
        order = Order(list(command), {**environment, **ONE_THREAD})
        try:
            self._socket.send(msgspec.json.encode(order))
            until = time.monotonic() + LONGEST_COPY
            while (left := until - time.monotonic()) > 0 and select.select([self._socket], [], [], left)[0]:
                told = self._receive()
                if told.problem:
                    raise OSError(told.problem)
                if told.status is None:
                    return Copy(told.pid, self, self._copies)
                self._copies.ended[told.pid] = told.status
            log.error("template hangs: killing it", pid=self._process.pid if self._process else 0)
        except (ConnectionError, EOFError):
            pass
        self._dies()
        return None

    def end(self) -> None:
        """Together with the copies that are left."""
        self._given_up = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._started_at = time.monotonic()
        with its:
            try:
                self._process = subprocess.Popen(
                    tied_to_parent([*self._command, "--fd", str(its.fileno())]),
                    stdin=subprocess.DEVNULL,
                    env=self._environment,
                    pass_fds=[its.fileno()],
                    process_group=0,
                )
            except OSError as error:
                ours.close()
                self._pause.begin(failed=True)
                log.error("template does not start", reason=str(error), restart_in=self._pause.seconds)
                return
        self._socket, self._copies = ours, Copies()

    def hear(self) -> None:
        """Read what it tells, without waiting for anything."""
        try:
            while self._socket is not None and select.select([self._socket], [], [], 0)[0]:
                told = self._receive()
                if told.status is not None:
                    self._copies.ended[told.pid] = told.status
                elif not told.pid:
                    self._stands, self._first, self._pause = True, False, Pause()
                    log.info("template stands", seconds=round(time.monotonic() - self._started_at, 1))
        except (ConnectionError, EOFError):
            self._dies()

    def _receive(self) -> Told:
        assert self._socket is not None
        message = self._socket.recv(MOST_BYTES)
        if not message:
            raise EOFError
        return msgspec.json.decode(message, type=Told)

    def _dies(self) -> None:
        assert self._process is not None and self._socket is not None
        self._process.kill()
        status = self._process.wait()
        self._socket.close()
        if not self._stands:
            self._pause.begin(failed=True)
        self._process = self._socket = None
        self._stands = self._first = False
        self._copies.all_ended = True
        self._given_up = self._given_up or status == MISUSE
        log.error("template died, and its copies with it", status=status, restart_in=None if self._given_up else self._pause.seconds)


@dataclass
class Copies:
    """Copies that one start of the template has made."""

    ended: dict[int, int] = field(default_factory=dict)
    """Exit codes by pid."""
    all_ended: bool = False


class Copy:
    """A worker that is a copy."""

    def __init__(self, pid: int, template: Template, copies: Copies) -> None:
        self.pid = pid
        self._template = template
        self._copies = copies
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            self._template.hear()
            self._status = self._copies.ended.pop(self.pid, -signal.SIGKILL if self._copies.all_ended else None)
        return self._status


def copies_serve(device: str) -> bool:
    """Whether workers can be copies: a GPU is no part of a copy."""
    if not Path("/proc/self/task").is_dir():
        return False
    gpus = [Path("/dev/dxg"), *Path("/dev").glob("nvidia*")]
    return device == "cpu" or (device == "auto" and not any(path.exists() for path in gpus))
