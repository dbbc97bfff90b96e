"""Confined child processes: they read what strangers sent, or do heavy work, in bounded memory, and may die without harm.

The parent's side: `Confined` gives a program a file as its standard input and reads its messages. The program's: `request` or `requests`,
`confine` or `limit_memory`, `say` and `send`. A program is copied (`models.processes.fork_server`), or asked again, where its imports take
longer than its work. Imports nothing but the standard library: the programs start with it.
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
from models.processes.process_io import LENGTH, TAKEN, TAKING_S

T = TypeVar("T")

PATIENCE_S = 30.0
"""A program that says nothing for so long is ended."""
MEMORY_BYTES = 3 * 2**30
"""Address space of a program: its libraries, and a few large frames in every thread of a decoder."""
CPU_S = 900
MESSAGE_BYTES = 2**20


class ProgramDied(Exception):
    """The program ended before it had answered, or had to be ended; the message says how."""

    def __init__(self, message: str, status: int | None = None, *, late: bool = False) -> None:
        """status: exit code, or the negative of the signal that ended it; None: it was still there. late: it took too long."""
        super().__init__(message)
        self.status = status
        self.late = late


def killed(error: Exception) -> bool:
    """Return whether an error comes of a program that somebody else ended, as a machine without memory does: what it was given is not to
    blame."""
    cause = error.__cause__
    return isinstance(cause, ProgramDied) and not cause.late and cause.status in (None, -signal.SIGKILL)


def again_if_killed(ask: Callable[[], T]) -> T:
    """Ask a program, and once more where it was `killed`: a second time, what it was given may be to blame. Raises what `ask` does."""
    try:
        return ask()
    except Exception as error:
        if not killed(error):
            raise
    return ask()


def gives_way() -> bool:
    """Whether what the calling thread has decoded ahead takes a CPU only where nobody else wants it: it must not keep from one the network
    that looks at it. Not where the thread insists on a CPU, too."""
    return os.getpriority(os.PRIO_PROCESS, 0) > 0


def _give_way() -> None:
    """Let this process do so. A CPU that does nothing else counts as idle: what wakes up is put there, not where the network computes."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class _Executed:
    """A program that was executed for its owner alone, which may ask it again."""

    def __init__(self, program: str, request: bytes, file: IO[bytes]) -> None:
        self._channel, its = socket.socketpair()  # the program ends when this side closes, even by the death of its owner
        self._channel.settimeout(TAKING_S)
        with its:
            self._process = process_io.execute(program, its, subprocess.PIPE)
        assert self._process.stdout is not None
        self._stdout = self._process.stdout
        self.output = self._stdout.fileno()
        self.pid = self._process.pid
        try:
            process_io.ask(self._channel, request, [file.fileno()])
        except OSError:  # whoever waits for its first message finds out
            self.kill()

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def ask_again(self, request: bytes, file: IO[bytes]) -> None:
        """The same of a program that has answered: one that is dying may still look alive, but does not take its file. Raises OSError."""
        while process_io.is_readable(self._channel.fileno()) and self._channel.recv(1):
            pass  # its words about what it was asked before
        process_io.ask(self._channel, request, [file.fileno()])
        if self._channel.recv(1) != TAKEN:
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


class Call:
    """`with call:` around work in a thread: from any other one `call.end()` ends the programs that the work has started, and those that it
    still starts, so that nothing goes on for whom nobody waits."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # programs may be closed wherever they are forgotten
        self._programs: set[Confined] = set()
        self._over = False

    def __enter__(self) -> None:
        self._token = _call.set(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _call.reset(self._token)

    def end(self) -> None:
        with self._lock:
            self._over = True
            for program in tuple(self._programs):
                program.kill()

    def started(self, program: Confined) -> None:
        with self._lock:
            self._programs.add(program)
            if self._over:
                program.kill()

    def ended(self, program: Confined) -> bool:
        """The program works for it no more. Returns whether that was ended before."""
        with self._lock:
            self._programs.discard(program)
            return self._over


_call: ContextVar[Call | None] = ContextVar("call", default=None)


class Confined:
    """A running program. Use it as a context manager: whatever happens, the process is gone afterwards."""

    def __init__(
        self,
        program: str,
        data: bytes | memoryview,
        request: Mapping[str, Any],
        *,
        patience: float = PATIENCE_S,
        often: bool = False,
        ahead: bool = False,
    ) -> None:
        """Run `program`, a module of the engine and its arguments: it reads `data` from standard input, as a file. patience: seconds of
        silence after which it is ended. often: it is copied rather than executed. ahead: nobody waits for it yet (`gives_way`)."""
        self._patience = patience
        asked = json.dumps({**request, "gives_way": ahead and gives_way()}).encode()
        with process_io.as_file(data) as file:
            self._started = fork_server.copy(program, asked, file) if often else _Executed(program, asked, file)
        self._call: Call | None = None
        self._join()

    @property
    def pid(self) -> int:
        return self._executed.pid

    @property
    def lives(self) -> bool:
        return self._executed.lives

    @property
    def _executed(self) -> _Executed:
        assert isinstance(self._started, _Executed), "a copy is asked once, and its template alone knows its id"
        return self._started

    def ask(self, data: bytes | memoryview) -> None:
        """Ask a program again that has answered and takes further `requests`. Raises OSError if it does not take its file any more."""
        with process_io.as_file(data) as file:
            self._executed.ask_again(b"{}", file)
        self._join()

    def leave(self) -> bool:
        """The call that this program works for has its answer, and no longer ends it. Returns whether it had done so."""
        call, self._call = getattr(self, "_call", None), None
        return call is not None and call.ended(self)

    def _join(self) -> None:
        self._call = _call.get()
        if self._call is not None:
            self._call.started(self)

    def message(self) -> dict[str, Any]:
        """The next message. Raises ProgramDied."""
        head = bytearray(LENGTH.size)
        self.read_into(memoryview(head))
        (length,) = LENGTH.unpack(head)
        if length > MESSAGE_BYTES:
            raise ProgramDied(f"a message of {length} bytes")
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
                raise ProgramDied(f"no answer for {self._patience:g} seconds", late=True)
            count = os.readv(output, [room[filled:]])
            if count == 0:
                status = self._started.wait()
                if status is None:
                    raise ProgramDied("it was ended")
                raise ProgramDied(f"it was ended by signal {-status}" if status < 0 else f"it ended with {status}", status)
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
    limit_memory(MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # descriptors that are open stay so


def say(message: Mapping[str, Any]) -> None:
    """A program's message to its parent."""
    body = json.dumps(message).encode()
    send(memoryview(LENGTH.pack(len(body)) + body))


def send(data: memoryview) -> None:
    """Send what follows a message. Ends the program quietly where the parent has gone."""
    try:
        while data:
            data = data[os.write(_answers, data) :]
    except BrokenPipeError:
        os._exit(0)


def request() -> dict[str, Any]:
    """Return what a program is asked to do, for one that is asked once. It may have to wait; then its file is its standard input. From
    the call on what it prints is no answer, and it ends with its owner, also while it works. Copies return, too
    (`models.processes.fork_server`)."""
    global _answers
    channel = _channel()
    told, files = process_io.asked(channel)
    if len(files) > 1:
        told = fork_server.in_copies(channel, told, files)
        _answers = fork_server.ANSWERS_FD
        return _asked(told)
    _watch(channel)
    return _taken(channel, told, files)


def requests() -> Iterator[dict[str, Any]]:
    """The same for a program that is asked each time that it has answered."""
    channel = _channel()
    _watch(channel)
    return _requests(channel)


def _requests(channel: socket.socket) -> Iterator[dict[str, Any]]:
    while True:
        yield _taken(channel, *process_io.asked(channel))


_answers = 1
"""File descriptor of the program's answers."""


def _channel() -> socket.socket:
    global _answers
    _answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not look like an answer
    channel = socket.socket(fileno=os.dup(0))
    with suppress(OSError):  # the owner has gone
        channel.send(fork_server.READY)
    return channel


def _taken(channel: socket.socket, told: bytes, files: list[int]) -> dict[str, Any]:
    with suppress(OSError):  # the owner has not waited for it
        channel.send(TAKEN)
    os.dup2(files[0], 0)
    os.close(files[0])
    return _asked(told)


def _asked(told: bytes) -> dict[str, Any]:
    asked: dict[str, Any] = json.loads(told)
    if asked.pop("gives_way", False):
        _give_way()
    return asked


def _watch(channel: socket.socket) -> None:
    threading.Thread(target=_end_with_owner, args=(channel,), daemon=True).start()


def _end_with_owner(channel: socket.socket) -> None:
    closed = select.poll()
    closed.register(channel, 0)  # the end of the other side is always told
    closed.poll()
    os._exit(0)
