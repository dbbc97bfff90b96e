"""Fork server: it starts a copy of a program within milliseconds, while the imports of a new process take tenths of a second of CPU time.

The *template* is the program, executed once, which has imported all that it needs. It has one thread, reads no file of strangers, and forks
a copy for each request. A copy has only its file and a pipe for its output open, so that it cannot see those of others. The owner's side:
`fork`; the program's: `run_fork_server`. Imports only the standard library: every program starts with it.
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
"""Byte of a template to its owner: all imports are done."""
STATUS = struct.Struct("<i")
"""Last message of a template about a copy: its exit code, or the negative of the signal that ended it."""
SET_PDEATHSIG = 1
OUTPUT_FD = 3

_templates: dict[tuple[str, int], _ChildTemplate] = {}
"""Templates by program and priority. A copy has the priority of the thread that started its template: a template of background work must
not lower the priority of other work."""
_lock = threading.RLock()
"""Reentrant lock: garbage collection may close a copy while this thread holds it."""
os.register_at_fork(after_in_child=_templates.clear)  # a template has one owner


def fork(program: str, request: bytes, file: IO[bytes]) -> ForkedProcess:
    """Return a copy of a program, with its request and file. Executes a template if there is none that works."""
    with suppress(OSError):
        return _template(program).copy(request, file)
    return _template(program).copy(request, file)


def _template(program: str) -> _ChildTemplate:
    key = program, os.getpriority(os.PRIO_PROCESS, 0)
    with _lock:
        if key not in _templates:
            _templates[key] = _ChildTemplate(key)
        return _templates[key]


class _ChildTemplate:
    def __init__(self, key: tuple[str, int]) -> None:
        self._key = key
        self._channel, template_end = socket.socketpair()
        self._channel.settimeout(ACCEPT_TIMEOUT_S)
        with template_end:
            self._process = process_io.execute(key[0], template_end, subprocess.DEVNULL)
        self._request_lock = threading.Lock()
        self._copies: set[ForkedProcess] = set()

    def copy(self, request: bytes, file: IO[bytes]) -> ForkedProcess:
        """Fork a copy. Raises OSError if the template has died, or if it was ready and does not answer."""
        control, template_end = socket.socketpair()
        control.settimeout(ACCEPT_TIMEOUT_S)
        output, output_end = os.pipe()
        copy = ForkedProcess(self, output, control)
        with _lock:
            self._copies.add(copy)
        try:
            with template_end, self._request_lock:
                process_io.send_request(self._channel, request, [file.fileno(), output_end, template_end.fileno()])
            # a template that still imports accepts it afterwards
            if process_io.is_readable(self._channel.fileno()) and control.recv(1) != ACCEPTED:
                raise ConnectionError
        except OSError:
            self.forget()
            copy.end()
            raise
        finally:
            os.close(output_end)
        return copy

    def forget(self) -> None:
        """Make no further copies; the template ends with its last copy."""
        with _lock:
            if _templates.get(self._key) is self:
                del _templates[self._key]
            is_over = not self._copies
        if is_over:
            self._process.kill()
            self._process.wait()
            self._channel.close()

    def remove(self, copy: ForkedProcess) -> None:
        with _lock:
            self._copies.discard(copy)
            is_forgotten = _templates.get(self._key) is not self
        if is_forgotten:
            self.forget()


class ForkedProcess:
    """A copy, running or to be forked as soon as its template can."""

    def __init__(self, template: _ChildTemplate, output: int, control: socket.socket) -> None:
        self._output_file = os.fdopen(output, "rb", buffering=0)
        self.output = output
        self._template, self._control = template, control

    def kill(self) -> None:
        """Kill the copy at once. Any thread may call this."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)  # its template kills it

    def wait(self) -> int | None:
        """Kill the copy, wait for its end, and return its `STATUS`; None if that is unknown."""
        received = b""
        self.kill()
        try:
            while piece := self._control.recv(64):
                received += piece
        except OSError:  # the template is frozen
            self._template.forget()
        if len(received) < STATUS.size:
            return None
        (status,) = STATUS.unpack(received[-STATUS.size :])
        if status < 0 and status != -signal.SIGKILL:
            # an attacker of a decoder guesses addresses, which all copies share: after a wrong guess they change
            self._template.forget()
        return int(status)

    def end(self) -> None:
        if self._output_file.closed:
            return
        self.wait()
        self._output_file.close()
        self._control.close()
        self._template.remove(self)


def run_fork_server(channel: socket.socket, request: bytes, files: list[int]) -> bytes:
    """Serve as a template whose first request has arrived. Returns only in copies, with their request; standard input is the file, and
    `OUTPUT_FD` takes the output."""
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    gc.collect()
    gc.freeze()
    template, controls = os.getpid(), dict[int, socket.socket]()
    while True:
        file, output_fd, control_fd = files
        control = socket.socket(fileno=control_fd)
        try:
            pid = os.fork()
        except OSError:  # no memory, too many processes: the owner sees that the copy has gone
            pid = -1
        if pid == 0:
            for other in (channel, control, *controls.values()):
                other.detach()  # garbage collection must not close again what is closed below
            _become_program(template, file, output_fd)
            return request
        os.close(file)
        os.close(output_fd)
        if pid > 0:
            controls[pid] = control
            with suppress(OSError):  # its owner has closed it
                control.send(ACCEPTED)
        else:
            control.close()
        request, files = _next_request(channel, ended, controls)


def _next_request(channel: socket.socket, ended: int, controls: dict[int, socket.socket]) -> tuple[bytes, list[int]]:
    """Return the next request. Until it comes, report copies that have ended, and kill those that their owners have closed."""
    while True:
        waiting = select.poll()
        for descriptor in (channel.fileno(), ended):
            waiting.register(descriptor, select.POLLIN)
        for control in controls.values():
            waiting.register(control.fileno(), select.POLLIN)
        ready = {descriptor for descriptor, _ in waiting.poll()}
        for pid, control in controls.items():
            if control.fileno() in ready:
                os.kill(pid, signal.SIGKILL)  # a child that was not waited for keeps its id
        if ended in ready or not ready.isdisjoint(control.fileno() for control in controls.values()):
            _reap(ended, controls)
        if channel.fileno() in ready:
            return process_io.receive_request(channel)


def _reap(ended: int, controls: dict[int, socket.socket]) -> None:
    os.read(ended, 4096)  # if a copy was just killed, this waits for its end
    with suppress(ChildProcessError):
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            with controls.pop(child[0]) as control, suppress(OSError):
                control.send(STATUS.pack(os.waitstatus_to_exitcode(child[1])))


def _become_program(template: int, file: int, output: int) -> None:
    """Become a process of its own, which ends with its template."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != template:
        os._exit(1)  # it died before the line above
    os.dup2(file, 0)
    os.dup2(output, OUTPUT_FD)
    os.closerange(OUTPUT_FD + 1, os.sysconf("SC_OPEN_MAX"))
