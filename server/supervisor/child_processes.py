"""Processes that the supervisor keeps alive, and bundles that crash them.

Workers are forked from a template, which has imported all that they need, or are executed.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from server.processes.os_process import die_with_parent, signal_name
from server.processes.supervisor_protocol import (
    LOADING_FILE_VARIABLE,
    MAX_MESSAGE_BYTES,
    MISUSE,
    REFUSED_BUNDLES_VARIABLE,
    RESTARTS_VARIABLE,
    STUCK,
    ExitReason,
    SpawnOrder,
    TemplateReply,
)
from server.telemetry import logs

log = logs.get(__name__)

DEVICE_FILES = Path("/dev")
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 5.0
"""Well below `worker_grace`: clients whose only worker crashes repeatedly at its start still get answers in between."""
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""Numpy's linear algebra starts its threads when it is imported, and a process with threads cannot be forked."""
MAX_IMPORT_S = 60.0
"""Maximum time that workers wait for the template after its start; then they are executed."""
MAX_LOAD_CRASHES = 2
"""Number of crashes of workers that load a bundle, after which it is not loaded again."""
MAX_FORK_S = 5.0
"""Maximum time of a fork, which takes 10 ms: then the template is killed."""


class RestartBackoff:
    """The time before the next start of a process, which doubles with each failed start."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._over_at = 0.0

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._over_at

    def start(self, *, failed: bool) -> None:
        self.seconds = min(MAX_BACKOFF_S, 2 * self.seconds or FIRST_BACKOFF_S) if failed else 0.0
        self._over_at = time.monotonic() + self.seconds


@dataclass(frozen=True)
class ProcessExit:
    pid: int
    reason: ExitReason
    status: int = field(default=0, compare=False)
    """Exit code, or the negative of the signal that ended it."""

    @property
    def stopped(self) -> bool:
        """Whether it ended as processes do after SIGTERM: drained, or before it handled signals."""
        return self.status in (0, -signal.SIGTERM)


class Child:
    """A child process, restarted at once when it dies; the backoff only doubles after deaths before it was ready."""

    def __init__(
        self, kind: str, command: Sequence[str], environment: Mapping[str, str], fds: Sequence[int] = (), template: ForkServer | None = None
    ) -> None:
        """template: forks the child if it can. Otherwise, and without one, it is executed."""
        self.kind = kind
        self.ready = False
        """Whether the process serves; set by the supervisor."""
        self.seen = False
        self.seen_at = 0.0
        """Time of its last sign of life, in monotonic seconds."""
        self.backoff = RestartBackoff()
        self._command = list(command)
        self._environment = dict(environment)
        self._fds = tuple(fds)
        self._template = template
        self._process: subprocess.Popen[bytes] | ForkedWorker | None = None
        self._deaths = 0
        self._killed = False

    @property
    def pid(self) -> int:
        """Process id; 0 while it does not run."""
        return self._process.pid if self._process else 0

    @property
    def is_due(self) -> bool:
        return self._process is None and self.backoff.is_over and not (self._template is not None and self._template.is_importing)

    def start(self, extra_environment: Mapping[str, str] | None = None) -> None:
        """Start it, from the main thread: the child dies with the thread that starts it. extra_environment: of this start.

        Its process group keeps Ctrl-C from it; in one session, the processes of a service share the CPUs by their priorities."""
        self.ready = self.seen = self._killed = False
        self.seen_at = time.monotonic()
        environment = self._environment | {RESTARTS_VARIABLE: str(self._deaths), **(extra_environment or {})}
        try:
            copy = self._template.fork_worker(self._command, environment) if self._template is not None else None
            self._process = copy or subprocess.Popen(
                die_with_parent(self._command), stdin=subprocess.DEVNULL, env=environment, pass_fds=self._fds, process_group=0
            )
        except OSError as error:  # no memory, too many processes
            self.backoff.start(failed=True)
            log.error(f"{self.kind} does not start", reason=str(error), restart_in=self.backoff.seconds)

    def reap(self, *, final_status: int | None = None) -> ProcessExit | None:
        """Return how the process ended, if it has; it is due again after a backoff. final_status: an exit code that ends the service."""
        if self._process is None or (status := self._process.poll()) is None:
            return None
        pid = self._process.pid
        hung = self._killed or status == STUCK
        process_exit = ProcessExit(pid, ExitReason.HUNG if hung else ExitReason.CRASHED if status < 0 else ExitReason.EXITED, status)
        self._process = None
        self._deaths += not process_exit.stopped
        self.backoff.start(failed=not self.ready)
        reason = signal_name(-status) if status < 0 else f"exit code {status}"
        report, event = (log.info, "stopped") if process_exit.stopped else (log.error, "died")
        report(f"{self.kind} {event}", pid=pid, status=reason, restart_in=None if status == final_status else self.backoff.seconds)
        return process_exit

    def kill_hung(self) -> None:
        self._killed = True
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None


class ForkServer:
    """The process that workers are forked from. Start it from the main thread: it dies with that thread, and its workers with it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """command: without `--fd N`, which is added."""
        self._command = list(command)
        self._environment = {**environment, **ONE_THREAD}
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._is_ready = False
        self._first = True
        """Whether it has neither been ready nor died yet."""
        self._given_up = False
        self._workers = ForkedWorkers()
        self._started_at = 0.0
        self._backoff = RestartBackoff()

    @property
    def fd(self) -> int | None:
        """File descriptor that is readable when there are replies. None while it does not run."""
        return self._socket.fileno() if self._socket is not None else None

    @property
    def is_importing(self) -> bool:
        """Whether it will soon be ready for the first time: as soon as a worker that is executed now would serve."""
        return self._first and time.monotonic() < self._started_at + MAX_IMPORT_S

    def restart_if_due(self) -> None:
        """Start it if it is due, and read its replies."""
        if self._process is None and not self._given_up and self._backoff.is_over:
            self._start()
        self.read_replies()

    def fork_worker(self, command: Sequence[str], environment: Mapping[str, str]) -> ForkedWorker | None:
        """Fork a worker. Return None if the template is not ready. Raises OSError if no process can be made."""
        self.read_replies()
        if not self._is_ready or self._socket is None:
            return None
        order = SpawnOrder(list(command), {**environment, **ONE_THREAD})
        try:
            self._socket.send(msgspec.json.encode(order))
            until = time.monotonic() + MAX_FORK_S
            while (left := until - time.monotonic()) > 0 and select.select([self._socket], [], [], left)[0]:
                reply = self._receive()
                if reply.problem:
                    raise OSError(reply.problem)
                if reply.status is None:
                    return ForkedWorker(reply.pid, self, self._workers)
                self._workers.ended[reply.pid] = reply.status
            log.error("template hung: killing it", pid=self._process.pid if self._process else 0)
        except (ConnectionError, EOFError):
            pass
        self._on_exit()
        return None

    def end(self) -> None:
        """End it together with the remaining workers that were forked from it."""
        self._given_up = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._started_at = time.monotonic()
        with its:
            try:
                command = die_with_parent([*self._command, "--fd", str(its.fileno())])
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, env=self._environment, pass_fds=[its.fileno()], process_group=0
                )
            except OSError as error:
                ours.close()
                self._backoff.start(failed=True)
                log.error("template does not start", reason=str(error), restart_in=self._backoff.seconds)
                return
        self._socket, self._workers = ours, ForkedWorkers()

    def read_replies(self) -> None:
        """Read its replies, without waiting."""
        try:
            while self._socket is not None and select.select([self._socket], [], [], 0)[0]:
                reply = self._receive()
                if reply.status is not None:
                    self._workers.ended[reply.pid] = reply.status
                elif not reply.pid:
                    self._is_ready, self._first, self._backoff = True, False, RestartBackoff()
                    log.info("template ready", seconds=round(time.monotonic() - self._started_at, 1))
        except (ConnectionError, EOFError):
            self._on_exit()

    def _receive(self) -> TemplateReply:
        assert self._socket is not None
        message = self._socket.recv(MAX_MESSAGE_BYTES)
        if not message:
            raise EOFError
        return msgspec.json.decode(message, type=TemplateReply)

    def _on_exit(self) -> None:
        assert self._process is not None and self._socket is not None
        self._process.kill()
        status = self._process.wait()
        self._socket.close()
        if not self._is_ready:
            self._backoff.start(failed=True)
        self._process = self._socket = None
        self._is_ready = self._first = False
        self._workers.all_ended = True
        self._given_up = self._given_up or status == MISUSE
        log.error("template died with its workers", status=status, restart_in=None if self._given_up else self._backoff.seconds)


@dataclass
class ForkedWorkers:
    """Workers that were forked since one start of the template."""

    ended: dict[int, int] = field(default_factory=dict)
    """Exit codes by pid."""
    all_ended: bool = False


class ForkedWorker:
    """A worker that was forked from the template."""

    def __init__(self, pid: int, template: ForkServer, copies: ForkedWorkers) -> None:
        self.pid = pid
        self._template = template
        self._workers = copies
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            self._template.read_replies()
            self._status = self._workers.ended.pop(self.pid, -signal.SIGKILL if self._workers.all_ended else None)
        return self._status


def can_fork_workers(device: str) -> bool:
    """Return whether workers can be forked: a fork cannot use a GPU."""
    if not Path("/proc/self/task").is_dir():
        return False
    has_gpu = any(DEVICE_FILES.glob("nvidia*")) or DEVICE_FILES.joinpath("dxg").exists()
    return device == "cpu" or (device == "auto" and not has_gpu)


def worker_devices(device: str) -> list[str]:
    """Return the devices that workers take in turn: those of `cuda:0,2`, or of `cuda:all`, which are counted as torch would count them."""
    kind, _, indices = device.partition(":")
    if indices == "all":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        indices = ",".join(map(str, range(max(1, len(visible.split(",")) if visible else _gpu_count()))))
    return [f"{kind}:{index}" for index in indices.split(",")] if indices else [device]


def _gpu_count() -> int:
    """Return the number of GPUs that the driver reports if nvidia-ml-py is installed, else of device files."""
    with suppress(Exception):  # NVML's errors, such as that there is no driver, derive from Exception alone
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        return int(nvml.nvmlDeviceGetCount())
    return len(list(DEVICE_FILES.glob("nvidia[0-9]*")))


class LoadCrashTracker:
    """A counter of the crashes of all workers of a service. folder: private; the caller removes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._deaths: Counter[str] = Counter()
        self._oom_kills = oom_kills()

    def environment(self, worker: int) -> Mapping[str, str]:
        """Return the variables of a worker, by its number, that is about to start."""
        self._file(worker).unlink(missing_ok=True)
        refused = [content for content, deaths in self._deaths.items() if deaths >= MAX_LOAD_CRASHES]
        return {LOADING_FILE_VARIABLE: str(self._file(worker)), REFUSED_BUNDLES_VARIABLE: " ".join(refused)}

    def record_exit(self, worker: int, status: int) -> None:
        """Count a crash. status: exit code, or negative signal. SIGKILL comes from outside, unless the kernel says that memory ran out."""
        before, self._oom_kills = self._oom_kills, oom_kills()
        try:
            content = self._file(worker).read_text()
        except OSError:
            return
        if content and status != 0 and (status != -signal.SIGKILL or self._oom_kills > before):
            self._deaths[content] += 1
            if self._deaths[content] == MAX_LOAD_CRASHES:
                log.error("bundle refused until its files change: two workers crashed while loading it", bundle=content.partition(":")[0])

    def _file(self, worker: int) -> Path:
        return self._folder / f"loading-{worker}"


def oom_kills() -> int:
    """Return the number of processes of this control group that the kernel has killed for memory; 0 if it is not counted."""
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return 0
    for _, controllers, path in groups:
        root, name = ("", "memory.events") if not controllers else ("memory", "memory.oom_control")
        if controllers in ("", "memory"):
            try:
                counts = dict(line.split() for line in (Path("/sys/fs/cgroup") / root / path.lstrip("/") / name).read_text().splitlines())
                return int(counts["oom_kill"])
            except (OSError, ValueError, KeyError):
                continue
    return 0
