"""Copies of a program: each starts within milliseconds, where the imports of a new one take tenths of a second of a CPU.

The *template* is the program, executed once, which has imported all that it needs. It has one thread, reads no file of strangers, and forks
a copy for each request. A copy has its file, a pipe for its answers and nothing else that is open, so that it sees no other one's. The
owner's side: `fork`; the program's: `run_fork_server`. Imports nothing but the standard library: the programs start with it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO

from models.processes import process_io
from models.processes.process_io import ACCEPT_TIMEOUT_S, ACCEPTED

READY = b"r"
"""A template's byte to its owner: all that it needs is imported."""
STATUS = struct.Struct("<i")
"""A template's last word about a copy: its exit code, or the negative of the signal that ended it."""
SET_PDEATHSIG = 1
OUTPUT_FD = 3

_templates: dict[tuple[str, int], _Template] = {}
"""By program and priority, those that further copies are made of. A copy has the priority of the thread that started its template: work
that others need not wait for must not lower that of theirs."""
_lock = threading.RLock()
"""One thread may take it again: a copy that is forgotten in its midst may be closed there."""
os.register_at_fork(after_in_child=_templates.clear)  # two owners would talk at once


def fork(program: str, request: bytes, file: IO[bytes]) -> ForkedProcess:
    """A copy of a program that has got its file. Its template is executed where there is none, or where the one that there is has died or
    is frozen."""
    with suppress(OSError):
        return _template(program).copy(request, file)
    return _template(program).copy(request, file)


def _template(program: str) -> _Template:
    key = program, os.getpriority(os.PRIO_PROCESS, 0)
    with _lock:
        if key not in _templates:
            _templates[key] = _Template(key)
        return _templates[key]


class _Template:
    def __init__(self, key: tuple[str, int]) -> None:
        self._key = key
        self._channel, its = socket.socketpair()
        self._channel.settimeout(ACCEPT_TIMEOUT_S)
        with its:
            self._process = process_io.execute(key[0], its, subprocess.DEVNULL)
        self._asking = threading.Lock()
        self._copies: set[ForkedProcess] = set()

    def copy(self, request: bytes, file: IO[bytes]) -> ForkedProcess:
        """Raises OSError if the template has died, or if it was ready and does not answer."""
        reins, its = socket.socketpair()
        reins.settimeout(ACCEPT_TIMEOUT_S)
        output, answers = os.pipe()
        made = ForkedProcess(self, output, reins)
        with _lock:
            self._copies.add(made)
        try:
            with its, self._asking:
                process_io.send_request(self._channel, request, [file.fileno(), answers, its.fileno()])
            # one that still imports takes it afterwards
            if process_io.is_readable(self._channel.fileno()) and reins.recv(1) != ACCEPTED:
                raise ConnectionError
        except OSError:
            self.forget()
            made.end()
            raise
        finally:
            os.close(answers)
        return made

    def forget(self) -> None:
        """No further copy is made of it. It ends with the last one."""
        with _lock:
            if _templates.get(self._key) is self:
                del _templates[self._key]
            is_over = not self._copies
        if is_over:
            self._process.kill()
            self._process.wait()
            self._channel.close()

    def ended(self, ended: ForkedProcess) -> None:
        with _lock:
            self._copies.discard(ended)
            is_forgotten = _templates.get(self._key) is not self
        if is_forgotten:
            self.forget()


class ForkedProcess:
    """A running copy, which its template forks as soon as it can."""

    def __init__(self, template: _Template, output: int, reins: socket.socket) -> None:
        """output: where its answers are read."""
        self._output = os.fdopen(output, "rb", buffering=0)
        self.output = output
        self._template, self._reins = template, reins

    def kill(self) -> None:
        """End it at once. Any thread may call it."""
        with suppress(OSError):
            self._reins.shutdown(socket.SHUT_WR)  # its template does it

    def wait(self) -> int | None:
        """End it, wait until it has ended, and return how: `STATUS`; None where nobody knows."""
        told = b""
        self.kill()
        try:
            while piece := self._reins.recv(64):
                told += piece
        except OSError:  # the template is frozen
            self._template.forget()
        if len(told) < STATUS.size:
            return None
        (status,) = STATUS.unpack(told[-STATUS.size :])
        if status < 0 and status != -signal.SIGKILL:
            # who takes over a decoder guesses where things lie in memory, alike in all copies: after a wrong guess they lie elsewhere
            self._template.forget()
        return int(status)

    def end(self) -> None:
        if self._output.closed:
            return
        self.wait()
        self._output.close()
        self._reins.close()
        self._template.ended(self)


def run_fork_server(channel: socket.socket, request: bytes, files: list[int]) -> bytes:
    """Be a template whose first request came already. Returns in copies alone: what each is asked; its file is its standard input, and
    `OUTPUT_FD` takes its answers."""
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    gc.collect()
    gc.freeze()
    template, reins = os.getpid(), dict[int, socket.socket]()
    while True:
        file, answers, its = files
        rein = socket.socket(fileno=its)
        try:
            pid = os.fork()
        except OSError:  # no memory, too many processes: whoever waits finds out
            pid = -1
        if pid == 0:
            for other in (channel, rein, *reins.values()):
                other.detach()  # what is closed below must not be closed again where it is forgotten
            _become_program(template, file, answers)
            return request
        os.close(file)
        os.close(answers)
        if pid > 0:
            reins[pid] = rein
            with suppress(OSError):  # its owner does not want it any more
                rein.send(ACCEPTED)
        else:
            rein.close()
        request, files = _next_request(channel, ended, reins)


def _next_request(channel: socket.socket, ended: int, reins: dict[int, socket.socket]) -> tuple[bytes, list[int]]:
    """The next request. Until it comes, copies that have ended are told of, and those that nobody wants any more are killed."""
    while True:
        waiting = select.poll()
        for descriptor in (channel.fileno(), ended):
            waiting.register(descriptor, select.POLLIN)
        for rein in reins.values():
            waiting.register(rein.fileno(), select.POLLIN)
        ready = {descriptor for descriptor, _ in waiting.poll()}
        for pid, rein in reins.items():
            if rein.fileno() in ready:
                os.kill(pid, signal.SIGKILL)  # it is a child that was not waited for: the number is its own
        if ended in ready or not ready.isdisjoint(rein.fileno() for rein in reins.values()):
            _reap(ended, reins)
        if channel.fileno() in ready:
            return process_io.receive_request(channel)


def _reap(ended: int, reins: dict[int, socket.socket]) -> None:
    os.read(ended, 4096)  # where one has only just been killed, this waits for its end
    with suppress(ChildProcessError):
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            with reins.pop(child[0]) as rein, suppress(OSError):
                rein.send(STATUS.pack(os.waitstatus_to_exitcode(child[1])))


def _become_program(template: int, file: int, answers: int) -> None:
    """Be a program of its own, which ends with its template."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != template:
        os._exit(1)  # it died before we could be tied to it
    os.dup2(file, 0)
    os.dup2(answers, OUTPUT_FD)
    os.closerange(OUTPUT_FD + 1, os.sysconf("SC_OPEN_MAX"))
