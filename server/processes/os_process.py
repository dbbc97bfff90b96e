"""Operating-system features of a process: stop signals, priorities, secrecy, and programs that die with it."""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

LOW_PRIORITY_NICE = 10
"""Nice value: a tenth of a CPU that a normal thread wants too. A lower priority would hold the interpreter's lock for too long."""
PR_SET_DUMPABLE = 4
BACKLOG = 2048
OWN_FILES = 128
"""Files and sockets of a gateway other than clients' connections."""
MIN_CONNECTIONS = 64
"""Minimum number of connections. Below it, one client's quarter is less than a browser opens."""
_PARENT_DEATH_LAUNCHER = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG, kept across execve
if os.getppid() != parent:
    sys.exit(1)  # it died before we could be tied to it
os.execv(sys.argv[2], sys.argv[2:])
"""


class StopSignals:
    """A receiver of SIGTERM, SIGINT and the loss of the terminal, from its creation on. A handler that sets an Event could deadlock on the
    Event's own lock; a byte in a pipe cannot."""

    def __init__(self, *, children: bool = False) -> None:
        """children: whether a child that ends should cut a `wait` short."""
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(writer, False)
        hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]  # `nohup`: it does not matter
        for number in (signal.SIGTERM, signal.SIGINT, *hang_up, *([signal.SIGCHLD] if children else [])):
            signal.signal(number, lambda _number, _frame: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._hung_up = False

    def wait(self, seconds: float | None = None, also: int | None = None) -> bool:
        """Wait for a signal to stop and return True, once for each; or return False after `seconds`, or as soon as a child has ended or the
        file descriptor `also` can be read.

        The terminal is lost once, although both the shell and, when the shell has ended, the kernel report it."""
        ready, _, _ = select.select([self._reader] if also is None else [self._reader, also], [], [], seconds)
        if self._reader not in ready:
            return False
        number = os.read(self._reader, 1)[0]
        if number == signal.SIGHUP:
            repeated, self._hung_up = self._hung_up, True
            return not repeated
        return number != signal.SIGCHLD


def die_with_parent(command: Sequence[str]) -> list[str]:
    """Return a command line that runs `command` (absolute path first) and dies with the thread that starts it, even if that is killed.

    A tiny interpreter sets PR_SET_PDEATHSIG and becomes the command. `preexec_fn` would do it without that, but it runs Python between
    fork and exec, which can deadlock in a process with threads.
    """
    return [sys.executable, "-I", "-S", "-c", _PARENT_DEATH_LAUNCHER, str(os.getpid()), *command]


def disable_dumping() -> None:
    """Keep other processes of the same user from reading this one's environment or memory, which hold passwords; dump no core.

    One of them could be a codec that a video took over. Root may still read, with CAP_SYS_PTRACE."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def lower_own_priority() -> None:
    """Lower the priority of the calling thread for its whole life: it cannot be raised again. Child processes inherit it."""
    lower_priority(threading.get_native_id())


def lower_priority(thread: int) -> None:
    """Lower the priority of a thread, by its number in the system, if the system supports it.

    Background work leaves the CPUs to other work."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, LOW_PRIORITY_NICE)


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that accepts connections of HTTP clients. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def connection_limit(max_connections: int) -> int:
    """Return the number of connections, at most `max_connections`, that a gateway may open: each is an open file.

    Raises ValueError if they are too few to serve with."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return max_connections
    min_connections = min(max_connections, MIN_CONNECTIONS)
    if hard < OWN_FILES + min_connections:
        raise ValueError(
            f"the limit of {hard} open files (ulimit -n) is too low: a gateway needs {OWN_FILES + min_connections}, {OWN_FILES} of its own "
            f"and {min_connections} for connections, and {OWN_FILES + max_connections} for all of OPSIN_MAX_CONNECTIONS; raise it: `ulimit "
            "-n`, systemd's LimitNOFILE or Docker's --ulimit nofile"
        )
    return min(max_connections, hard - OWN_FILES)


def allow_connections(count: int) -> None:
    """Raise the soft limit of open files for this many connections, which `connection_limit` has found to fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count + OWN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count + OWN_FILES, hard))


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"


def threads_allowed(processes: int = 1) -> int:
    """Return the share of each process in the CPUs that this one may use, or in OMP_NUM_THREADS if that is lower."""
    cpus = len(os.sched_getaffinity(0))
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return max(1, (min(cpus, int(limit)) if limit.isdigit() and int(limit) else cpus) // processes)
