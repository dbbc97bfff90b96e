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
"""A program that says nothing for so long is ended."""
MAX_MEMORY_BYTES = 3 * 2**30
"""Address space of a program: its libraries, and a few large frames in every thread of a decoder."""
MAX_CPU_S = 900
MAX_MESSAGE_BYTES = 2**20


class ProcessDied(Exception):
    """The program ended before it had answered, or had to be ended; the message says how."""

    def __init__(self, message: str, status: int | None = None, *, late: bool = False) -> None:
        """status: exit code, or the negative of the signal that ended it; None: it was still there. late: it took too long."""
        super().__init__(message)
        self.status = status
        self.late = late


def was_killed(error: Exception) -> bool:
    """Return whether an error comes of a program that somebody else ended, as a machine without memory does: what it was given is not to
    blame."""
    cause = error.__cause__
    return isinstance(cause, ProcessDied) and not cause.late and cause.status in (None, -signal.SIGKILL)


def retry_if_killed(ask: Callable[[], T]) -> T:
    """Call `ask`, which runs a program, and call it again if that `was_killed`: only then may its input be to blame. Raises what `ask`
    does."""
    try:
        return ask()
    except Exception as error:
        if not was_killed(error):
            raise
    return ask()


def runs_at_idle_priority() -> bool:
    """Whether what the calling thread has decoded ahead takes a CPU only where nobody else wants it: it must not keep from one the network
    that looks at it. Not where the thread insists on a CPU, too."""
    return os.getpriority(os.PRIO_PROCESS, 0) > 0


def _lower_priority() -> None:
    """Let this process do so. A CPU that does nothing else counts as idle: what wakes up is put there, not where the network computes."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class _ExecutedProcess:
    """A program that was executed for its owner alone, which may ask it again."""

    def __init__(self, program: str, request: bytes, file: IO[bytes]) -> None:
        self._channel, its = socket.socketpair()  # the program ends when this side closes, even by the death of its owner
        self._channel.settimeout(ACCEPT_TIMEOUT_S)
        with its:
            self._process = process_io.execute(program, its, subprocess.PIPE)
        assert self._process.stdout is not None
        self._stdout = self._process.stdout
        self.output = self._stdout.fileno()
        self.pid = self._process.pid
        try:
            process_io.send_request(self._channel, request, [file.fileno()])
        except OSError:  # whoever waits for its first message finds out
            self.kill()

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def ask_again(self, request: bytes, file: IO[bytes]) -> None:
        """The same of a program that has answered: one that is dying may still look alive, but does not take its file. Raises OSError."""
        while process_io.is_readable(self._channel.fileno()) and self._channel.recv(1):
            pass  # its words about what it was asked before
        process_io.send_request(self._channel, request, [file.fileno()])
        if self._channel.recv(1) != ACCEPTED:
            raise ConnectionError

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        self.kill()  # where it has closed its output and goes on
        return self._process.wait()

    def end(self) -> None:
        self.wait()
        self._channel.close()
        self._stdout.close()


class CancelScope:
    """`with call:` around work in a thread: from any other one `call.end()` ends the programs that the work has started, and those that it
    still starts, so that nothing goes on for whom nobody waits."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # programs may be closed wherever they are forgotten
        self._programs: set[ConfinedProcess] = set()
        self._over = False

    def __enter__(self) -> None:
        self._token = _scope.set(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _scope.reset(self._token)

    def end(self) -> None:
        with self._lock:
            self._over = True
            for program in tuple(self._programs):
                program.kill()

    def started(self, program: ConfinedProcess) -> None:
        with self._lock:
            self._programs.add(program)
            if self._over:
                program.kill()

    def ended(self, program: ConfinedProcess) -> bool:
        """The program works for it no more. Returns whether that was ended before."""
        with self._lock:
            self._programs.discard(program)
            return self._over


_scope: ContextVar[CancelScope | None] = ContextVar("call", default=None)


class ConfinedProcess:
    """A running program. Use it as a context manager: whatever happens, the process is gone afterwards."""

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
        (`runs_at_idle_priority`)."""
        self._patience = patience
        asked = json.dumps({**request, "gives_way": ahead and runs_at_idle_priority()}).encode()
        with process_io.to_file(data) as file:
            self._started = fork_server.fork(program, asked, file) if often else _ExecutedProcess(program, asked, file)
        self._call: CancelScope | None = None
        self._join()

    @property
    def pid(self) -> int:
        return self._executed.pid

    @property
    def lives(self) -> bool:
        return self._executed.lives

    @property
    def _executed(self) -> _ExecutedProcess:
        assert isinstance(self._started, _ExecutedProcess), "a copy is asked once, and its template alone knows its id"
        return self._started

    def ask(self, data: bytes | memoryview) -> None:
        """Send a further request to a program that has answered (`receive_requests`). Raises OSError if it does not accept its file."""
        with process_io.to_file(data) as file:
            self._executed.ask_again(b"{}", file)
        self._join()

    def leave(self) -> bool:
        """The call that this program works for has its answer, and no longer ends it. Returns whether it had done so."""
        call, self._call = getattr(self, "_call", None), None
        return call is not None and call.ended(self)

    def _join(self) -> None:
        self._call = _scope.get()
        if self._call is not None:
            self._call.started(self)

    def message(self) -> dict[str, Any]:
        """The next message. Raises ProgramDied."""
        head = bytearray(LENGTH.size)
        self.read_into(memoryview(head))
        (length,) = LENGTH.unpack(head)
        if length > MAX_MESSAGE_BYTES:
            raise ProcessDied(f"a message of {length} bytes")
        body = bytearray(length)
        self.read_into(memoryview(body))
        message: dict[str, Any] = json.loads(body)
        return message

    def read_into(self, room: memoryview) -> None:
        """Fill `room` with what follows. Raises ProgramDied."""
        output, filled = self._started.output, 0
        while filled < len(room):
            if not process_io.is_readable(output, self._patience):
                self.close()
                raise ProcessDied(f"no answer for {self._patience:g} seconds", late=True)
            count = os.readv(output, [room[filled:]])
            if count == 0:
                status = self._started.wait()
                if status is None:
                    raise ProcessDied("it was ended")
                raise ProcessDied(f"it was ended by signal {-status}" if status < 0 else f"it ended with {status}", status)
            filled += count

    def kill(self) -> None:
        """End the process at once: whoever reads its messages gets to know. Any thread may call it."""
        self._started.kill()

    def close(self) -> None:
        """It may be called again."""
        self.leave()
        self._started.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_started"):
            self.close()


def limit_memory(nbytes: int) -> None:
    """Called by a program whose libraries open files while it works: its memory is bounded, no more."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))


def confine() -> None:
    """Called by a program when all that it needs is imported: from here on it opens no file and no socket, and its memory is bounded."""
    limit_memory(MAX_MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # descriptors that are open stay so


def write_message(message: Mapping[str, Any]) -> None:
    """A program's message to its parent."""
    body = json.dumps(message).encode()
    write_payload(memoryview(LENGTH.pack(len(body)) + body))


def write_payload(data: memoryview) -> None:
    """Send what follows a message. Ends the program quietly where the parent has gone."""
    try:
        while data:
            data = data[os.write(_output_fd, data) :]
    except BrokenPipeError:
        os._exit(0)


def receive_request() -> dict[str, Any]:
    """Return what a program is asked to do, for one that is asked once. It may have to wait; then its file is its standard input. From
    the call on what it prints is no answer, and it ends with its owner, also while it works. Copies return, too
    (`models.processes.fork_server`)."""
    global _output_fd
    channel = _open_channel()
    told, files = process_io.receive_request(channel)
    if len(files) > 1:
        told = fork_server.run_fork_server(channel, told, files)
        _output_fd = fork_server.OUTPUT_FD
        return _decode_request(told)
    _watch_owner(channel)
    return _accept(channel, told, files)


def receive_requests() -> Iterator[dict[str, Any]]:
    """The same for a program that is asked each time that it has answered."""
    channel = _open_channel()
    _watch_owner(channel)
    return _receive_all(channel)


def _receive_all(channel: socket.socket) -> Iterator[dict[str, Any]]:
    while True:
        yield _accept(channel, *process_io.receive_request(channel))


_output_fd = 1
"""File descriptor of the program's answers."""


def _open_channel() -> socket.socket:
    global _output_fd
    _output_fd = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not look like an answer
    channel = socket.socket(fileno=os.dup(0))
    with suppress(OSError):  # the owner has gone
        channel.send(fork_server.READY)
    return channel


def _accept(channel: socket.socket, told: bytes, files: list[int]) -> dict[str, Any]:
    with suppress(OSError):  # the owner has not waited for it
        channel.send(ACCEPTED)
    os.dup2(files[0], 0)
    os.close(files[0])
    return _decode_request(told)


def _decode_request(told: bytes) -> dict[str, Any]:
    asked: dict[str, Any] = json.loads(told)
    if asked.pop("gives_way", False):
        _lower_priority()
    return asked


def _watch_owner(channel: socket.socket) -> None:
    threading.Thread(target=_end_with_owner, args=(channel,), daemon=True).start()


def _end_with_owner(channel: socket.socket) -> None:
    closed = select.poll()
    closed.register(channel, 0)  # the end of the other side is always told
    closed.poll()
    os._exit(0)
