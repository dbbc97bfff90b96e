"""Confined child processes: they read files of strangers, or do heavy work, in bounded memory, and may crash without harm.

The parent's side: `ConfinedProcess` gives a program a file as its standard input and reads its messages. The program's side:
`receive_request` or `receive_requests`, `confine` or `limit_memory`, `write_message` and `write_payload`. If its imports take longer than
its work, a program is forked (`models.processes.fork_server`) or reused. Imports only the standard library: every program starts with it.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from models.processes import fork_server, process_io
from models.processes.process_io import ACCEPT_TIMEOUT_S, ACCEPTED, LENGTH

T = TypeVar("T")

MAX_SILENCE_S = 30.0
"""Seconds of silence after which a program is killed."""
MAX_MEMORY_BYTES = 3 * 2**30
"""Maximum address space of a program: its libraries, and a few large frames in every thread of a decoder."""
MAX_CPU_S = 900
MAX_MESSAGE_BYTES = 2**20


class ProcessDied(Exception):
    """Error of a program that ended before it had answered, or had to be killed; the message says how."""

    def __init__(self, message: str, status: int | None = None, *, late: bool = False) -> None:
        """status: exit code, or the negative of the signal that ended it; None: it was still running. late: it exceeded its time."""
        super().__init__(message)
        self.status = status
        self.late = late


def was_killed(error: Exception) -> bool:
    """Return True if an error comes from a program that was killed from outside, as when memory is short: its input is not to blame."""
    cause = error.__cause__
    return isinstance(cause, ProcessDied) and not cause.late and cause.status in (None, -signal.SIGKILL)


def retry_if_killed(ask: Callable[[], T]) -> T:
    """Call `ask`, which runs a program, and again if that `was_killed`: only then may its input be to blame. Raises what `ask` raises."""
    try:
        return ask()
    except Exception as error:
        if not was_killed(error):
            raise
    return ask()


def runs_at_idle_priority() -> bool:
    """Return True if this thread decodes in advance, at low priority: then its programs use only idle CPUs, so as not to slow the network
    down. False if the thread has normal priority."""
    return os.getpriority(os.PRIO_PROCESS, 0) > 0


def _use_idle_cpus() -> None:
    """Use only idle CPUs. A CPU that runs nothing else counts as idle: a waking program is put there, not where the network computes."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class _ExecutedProcess:
    """A program that was executed for this owner, which may send it further requests."""

    def __init__(self, program: str, request: bytes, file: IO[bytes]) -> None:
        self._channel, program_end = socket.socketpair()  # the program ends when this side closes, even by the death of its owner
        self._channel.settimeout(ACCEPT_TIMEOUT_S)
        with program_end:
            self._process = process_io.execute(program, program_end, subprocess.PIPE)
        assert self._process.stdout is not None
        self._stdout = self._process.stdout
        self.output = self._stdout.fileno()
        self.pid = self._process.pid
        try:
            process_io.send_request(self._channel, request, [file.fileno()])
        except OSError:  # who waits for its first message sees that it died
            self.kill()

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def ask_again(self, request: bytes, file: IO[bytes]) -> None:
        """Send a further request to a program that has answered. Raises OSError, also if it is dying and accepts no file."""
        while process_io.is_readable(self._channel.fileno()) and self._channel.recv(1):
            pass  # bytes about earlier requests
        process_io.send_request(self._channel, request, [file.fileno()])
        if self._channel.recv(1) != ACCEPTED:
            raise ConnectionError

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        self.kill()  # it may have closed its output and run on
        return self._process.wait()

    def end(self) -> None:
        self.wait()
        self._channel.close()
        self._stdout.close()


class CancelScope:
    """Scope that ends programs: `with scope:` around work in a thread; `scope.end()`, from any thread, kills the programs that the work has
    started and will start, once its result is not needed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # garbage collection may close programs in any place
        self._programs: set[ConfinedProcess] = set()
        self._is_ended = False

    def __enter__(self) -> None:
        self._token = _scope.set(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _scope.reset(self._token)

    def end(self) -> None:
        with self._lock:
            self._is_ended = True
            for program in tuple(self._programs):
                program.kill()

    def add(self, program: ConfinedProcess) -> None:
        with self._lock:
            self._programs.add(program)
            if self._is_ended:
                program.kill()

    def remove(self, program: ConfinedProcess) -> bool:
        """Remove a program. Returns whether the scope had been ended."""
        with self._lock:
            self._programs.discard(program)
            return self._is_ended


_scope: ContextVar[CancelScope | None] = ContextVar("scope", default=None)


class ConfinedProcess:
    """A running program. Use it as a context manager: afterwards the program has ended in any case."""

    def __init__(
        self,
        program: str,
        data: bytes | memoryview,
        request: Mapping[str, Any],
        *,
        patience: float = MAX_SILENCE_S,
        often: bool = False,
        ahead: bool = False,
    ) -> None:
        """Run `program`, a module of the engine and its arguments, with `data` as its standard input, a file.

        patience: seconds of silence after which it is killed. often: fork it instead of executing it. ahead: its output is not needed yet
        (`runs_at_idle_priority`).
        """
        self._patience = patience
        message = json.dumps({**request, "gives_way": ahead and runs_at_idle_priority()}).encode()
        with process_io.to_file(data) as file:
            self._process = fork_server.fork(program, message, file) if often else _ExecutedProcess(program, message, file)
        self._scope: CancelScope | None = None
        self._enter_scope()

    @property
    def pid(self) -> int:
        return self._executed.pid

    @property
    def lives(self) -> bool:
        return self._executed.lives

    @property
    def _executed(self) -> _ExecutedProcess:
        assert isinstance(self._process, _ExecutedProcess), "a forked process gets one request, and only its template knows its id"
        return self._process

    def ask(self, data: bytes | memoryview) -> None:
        """Send a further request to a program that has answered (`receive_requests`). Raises OSError if it does not accept its file."""
        with process_io.to_file(data) as file:
            self._executed.ask_again(b"{}", file)
        self._enter_scope()

    def leave(self) -> bool:
        """Leave the scope, which has its result and no longer kills this program. Returns whether it had done so."""
        scope, self._scope = getattr(self, "_scope", None), None
        return scope is not None and scope.remove(self)

    def _enter_scope(self) -> None:
        self._scope = _scope.get()
        if self._scope is not None:
            self._scope.add(self)

    def message(self) -> dict[str, Any]:
        """Return the next message. Raises ProcessDied."""
        head = bytearray(LENGTH.size)
        self.read_into(memoryview(head))
        (length,) = LENGTH.unpack(head)
        if length > MAX_MESSAGE_BYTES:
            raise ProcessDied(f"a message of {length} bytes")
        body = bytearray(length)
        self.read_into(memoryview(body))
        message: dict[str, Any] = json.loads(body)
        return message

    def read_into(self, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes that follow. Raises ProcessDied."""
        output, filled = self._process.output, 0
        while filled < len(buffer):
            if not process_io.is_readable(output, self._patience):
                self.close()
                raise ProcessDied(f"no answer for {self._patience:g} seconds", late=True)
            count = os.readv(output, [buffer[filled:]])
            if count == 0:
                status = self._process.wait()
                if status is None:
                    raise ProcessDied("it was ended")
                raise ProcessDied(f"it was ended by signal {-status}" if status < 0 else f"it ended with {status}", status)
            filled += count

    def kill(self) -> None:
        """Kill the process at once: a thread that reads its messages sees it. Any thread may call this."""
        self._process.kill()

    def close(self) -> None:
        """End the process; may be called again."""
        self.leave()
        self._process.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()


def limit_memory(nbytes: int) -> None:
    """Bound the memory of this program, whose libraries open files while it works, and nothing else."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))


def confine() -> None:
    """Confine this program after its imports: it can open no file and no socket, and its memory and CPU time are bounded."""
    limit_memory(MAX_MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # open descriptors stay open


def write_message(message: Mapping[str, Any]) -> None:
    body = json.dumps(message).encode()
    write_payload(memoryview(LENGTH.pack(len(body)) + body))


def write_payload(data: memoryview) -> None:
    """Send bytes that follow a message. Ends the program quietly if the parent has gone."""
    try:
        while data:
            data = data[os.write(_output_fd, data) :]
    except BrokenPipeError:
        os._exit(0)


def receive_request() -> dict[str, Any]:
    """Return the request of a program that gets one, whose file becomes its standard input; this may wait. From then on what the program
    prints is not taken for its output, and it ends with its owner, even during its work. Forked copies return, too
    (`models.processes.fork_server`)."""
    global _output_fd
    channel = _open_channel()
    request, files = process_io.receive_request(channel)
    if len(files) > 1:
        request = fork_server.run_fork_server(channel, request, files)
        _output_fd = fork_server.OUTPUT_FD
        return _decode_request(request)
    _watch_owner(channel)
    return _accept(channel, request, files)


def receive_requests() -> Iterator[dict[str, Any]]:
    """Yield requests as `receive_request` does, the next one after the answer to the last."""
    channel = _open_channel()
    _watch_owner(channel)
    return _receive_all(channel)


def _receive_all(channel: socket.socket) -> Iterator[dict[str, Any]]:
    while True:
        yield _accept(channel, *process_io.receive_request(channel))


_output_fd = 1


def _open_channel() -> socket.socket:
    global _output_fd
    _output_fd = os.dup(1)
    os.dup2(2, 1)  # prints of libraries must not look like messages
    channel = socket.socket(fileno=os.dup(0))
    with suppress(OSError):  # the owner has gone
        channel.send(fork_server.READY)
    return channel


def _accept(channel: socket.socket, request: bytes, files: list[int]) -> dict[str, Any]:
    with suppress(OSError):  # the owner has not waited for it
        channel.send(ACCEPTED)
    os.dup2(files[0], 0)
    os.close(files[0])
    return _decode_request(request)


def _decode_request(request: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(request)
    if fields.pop("gives_way", False):
        _use_idle_cpus()
    return fields


def _watch_owner(channel: socket.socket) -> None:
    threading.Thread(target=_end_with_owner, args=(channel,), daemon=True).start()


def _end_with_owner(channel: socket.socket) -> None:
    closed = select.poll()
    closed.register(channel, 0)  # hang-ups are always reported
    closed.poll()
    os._exit(0)
