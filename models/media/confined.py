"""Confined child processes: they read what strangers sent, or do heavy work, in bounded memory, and may die without harm.

The parent's side: `Confined` gives a program a file as its standard input and reads its messages. The program's: `request` or `requests`,
`confine` or `limit_memory`, `say` and `send`. A program is started beforehand, or asked again, where its imports take longer than its work.
Imports nothing but the standard library: the programs start with it.
"""

from __future__ import annotations

import json
import math
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self

PATIENCE_S = 30.0
"""A program that says nothing for so long is ended."""
MEMORY_BYTES = 3 * 2**30
"""Address space of a program: its libraries, and a few large frames in every thread of a decoder."""
CPU_S = 900
LEAST_PRIORITY = 19
MESSAGE_BYTES = 2**20
LENGTH = struct.Struct("<I")
ANSWERS, TAKEN = b"r", b"t"
"""A program's bytes to its owner: all that it needs is imported; and it has got its file."""
TAKING_S = 1.0
"""A program that answered and then takes longer for its file is frozen, and another one takes its place."""
PASSED_ON = ("PATH", "LANG", "LD_LIBRARY_PATH")


def environment() -> dict[str, str]:
    """All that a program gets to know of this process' environment, which may hold passwords: where libraries lie, and one thread each."""
    return {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith("OMP_")} | {"OMP_NUM_THREADS": "1"}


class ProgramDied(Exception):
    """The program ended before it had answered, or had to be ended; the message says how."""

    def __init__(self, message: str, status: int | None = None, *, late: bool = False) -> None:
        """status: exit code, or the negative of the signal that ended it; None: it was still there. late: it took too long."""
        super().__init__(message)
        self.status = status
        self.late = late


def _readable(descriptor: int, seconds: float) -> bool:
    """Whether there is something to read, waited for so long. Descriptors may be any number: `select` knows 1024."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(math.ceil(1000 * seconds)))


def give_way(other: int) -> None:
    """Let a process, or a thread by its native number, have a CPU only where nobody else wants it, if the calling thread does not insist on
    one either: what is decoded ahead must not keep from a CPU the network that looks at it."""
    with suppress(OSError):
        if os.getpriority(os.PRIO_PROCESS, 0) > 0:
            os.setpriority(os.PRIO_PROCESS, other, LEAST_PRIORITY)


@dataclass(frozen=True)
class _Started:
    """A program that waits for its file."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    """Its standard input at first. The program ends when this side closes, even by the death of its owner."""

    @classmethod
    def of(cls, program: str) -> _Started:
        ours, its = socket.socketpair()
        ours.settimeout(TAKING_S)
        with its:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "opsin.engine", *program.split()],
                stdin=its.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                process_group=0,  # no Ctrl-C; in a session of its own it would share the CPUs as if it were a service (sched_autogroup)
                env=environment(),
            )
        return cls(process, ours)

    def ask(self, request: bytes, file: IO[bytes]) -> None:
        """Raises OSError if the program has died."""
        socket.send_fds(self.channel, [LENGTH.pack(len(request))], [file.fileno()])
        self.channel.sendall(request)

    def ask_ready(self, request: bytes, file: IO[bytes]) -> None:
        """Raises OSError if the program has died, or if it had answered and does not any more."""
        is_ready = _readable(self.channel.fileno(), 0) and self.channel.recv(1) == ANSWERS  # else it still imports
        self.ask(request, file)
        if is_ready and self.channel.recv(1) != TAKEN:
            raise ConnectionError

    def ask_again(self, request: bytes, file: IO[bytes]) -> None:
        """The same of a program that has answered: one that is dying may still look alive, but does not take its file."""
        while _readable(self.channel.fileno(), 0) and self.channel.recv(1):
            pass  # its words about what it was asked before
        self.ask(request, file)
        if self.channel.recv(1) != TAKEN:
            raise ConnectionError

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.channel.close()
        if self.process.stdout is not None:
            self.process.stdout.close()


_ready: dict[str, _Started] = {}
"""By program, at most one."""
_ready_lock = threading.RLock()
"""One thread may take it again: what is forgotten in its midst may be closed there."""


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
        self, program: str, data: bytes | memoryview, request: Mapping[str, Any], *, patience: float = PATIENCE_S, often: bool = False
    ) -> None:
        """Run `program`, a module of the engine and its arguments: it reads `data` from standard input, as a file. patience: seconds of
        silence after which it is ended. often: keep another one ready afterwards."""
        self._patience = patience
        self._next = program if often else None
        with _as_file(data) as file:
            self._started = _started(program, json.dumps(request).encode(), file)
        assert self._started.process.stdout is not None
        self._output = self._started.process.stdout.fileno()
        self._call: Call | None = None
        self._join()

    @property
    def pid(self) -> int:
        return self._started.process.pid

    @property
    def lives(self) -> bool:
        return self._started.process.poll() is None

    def ask(self, data: bytes | memoryview) -> None:
        """Ask a program again that has answered and takes further `requests`. Raises OSError if it does not take its file any more."""
        with _as_file(data) as file:
            self._started.ask_again(b"{}", file)
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
        filled = 0
        while filled < len(room):
            if not _readable(self._output, self._patience):
                self.close()
                raise ProgramDied(f"no answer for {self._patience:g} seconds", late=True)
            count = os.readv(self._output, [room[filled:]])
            if count == 0:
                self.kill()  # where it has closed its output and goes on
                status = self._started.process.wait()
                raise ProgramDied(f"it was ended by signal {-status}" if status < 0 else f"it ended with {status}", status)
            filled += count

    def kill(self) -> None:
        """End the process at once: whoever reads its messages gets to know. Any thread may call it."""
        self._started.process.kill()

    def close(self) -> None:
        self.leave()
        self._started.end()
        if self._next is not None:
            _make_ready(self._next)
            self._next = None

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
    """Return what a program is asked to do, for one that is asked once."""
    return next(requests())


def requests() -> Iterator[dict[str, Any]]:
    """Return what a program is asked to do, each time that it has answered. It may have to wait; then its file is its standard
    input. From the call on what it prints is no answer, and it ends with its owner, also while it works."""
    global _answers
    _answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not look like an answer
    channel = socket.socket(fileno=os.dup(0))
    threading.Thread(target=_end_with_owner, args=(channel,), daemon=True).start()
    return _requests(channel)


def _requests(channel: socket.socket) -> Iterator[dict[str, Any]]:
    _tell(channel, ANSWERS)
    while True:
        asked = _asked(channel)
        _tell(channel, TAKEN)
        yield asked


_answers = 1
"""File descriptor of the program's answers."""


def _asked(channel: socket.socket) -> dict[str, Any]:
    head, files, _, _ = socket.recv_fds(channel, LENGTH.size, 1)
    if not files:
        os._exit(0)
    body = bytearray(*LENGTH.unpack(head))
    rest = memoryview(body)
    while rest:
        count = channel.recv_into(rest)
        if not count:
            os._exit(0)
        rest = rest[count:]
    os.dup2(files[0], 0)
    os.close(files[0])
    asked: dict[str, Any] = json.loads(body)
    return asked


def _end_with_owner(channel: socket.socket) -> None:
    closed = select.poll()
    closed.register(channel, 0)  # the end of the other side is always told
    closed.poll()
    os._exit(0)


def _tell(channel: socket.socket, word: bytes) -> None:
    with suppress(OSError):  # the owner has not waited for it
        channel.send(word)


def _started(program: str, request: bytes, file: IO[bytes]) -> _Started:
    """A program that has got its file: the one that is ready, if it is alive and not frozen, or a new one."""
    with _ready_lock:
        ready = _ready.pop(program, None)
    if ready is not None:
        with suppress(OSError):
            ready.ask_ready(request, file)
            return ready
        ready.end()
    new = _Started.of(program)
    try:
        new.ask(request, file)
    except OSError:  # whoever waits for its first message finds out
        new.process.kill()
    return new


def _make_ready(program: str) -> None:
    """So that the next one need not wait for a start."""
    if sys.is_finalizing():
        return
    with _ready_lock, suppress(OSError):
        if program not in _ready:
            _ready[program] = _Started.of(program)


def _as_file(data: bytes | memoryview) -> IO[bytes]:
    """Positioned at its begin; in memory where the system can."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("opsin"), "w+b", buffering=0)
    else:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[file.write(rest) :]
    file.seek(0)
    return file
