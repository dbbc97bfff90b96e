"""`opsin template`: a process that has imported what workers need, and forks one whenever its supervisor sends an order.

A fork starts within hundredths of a second, while imports take seconds of CPU. The process has one thread and holds only what forks may
share: no connection, no random state in use, no ONNX Runtime and no CUDA, which start threads.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import msgspec

from kernels.malloc import return_freed_memory
from models.registry import architectures, resolve
from server.processes import os_process
from server.processes.supervisor_protocol import MAX_MESSAGE_BYTES, MISUSE, SpawnOrder, TemplateReply
from server.settings import Settings, load
from server.telemetry import logs
from server.worker.main import run_worker

log = logs.get(__name__)

SET_PDEATHSIG = 1


def run_template(settings: Settings, fd: int) -> int:
    """Serve the supervisor at the other end of `fd` until it ends. Returns MISUSE if this process cannot be forked."""
    os_process.disable_dumping()
    logs.configure(settings.log_level, process="template")
    for architecture in architectures().values():
        if architecture.open is None and architecture.assemble is None:  # these import ONNX Runtime
            resolve(architecture.model)
    if (threads := len(list(Path("/proc/self/task").iterdir()))) > 1:
        log.error("no copies: workers are executed, each with imports of its own", reason=f"{threads} threads after the imports")
        return MISUSE
    gc.collect()
    return_freed_memory()
    gc.freeze()
    TemplateProcess(socket.socket(fileno=fd)).run()
    return 0


class TemplateProcess:
    def __init__(self, supervisor: socket.socket) -> None:
        self._supervisor = supervisor
        self._ended, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a service manager may signal all processes, and workers die with this one
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def run(self) -> None:
        self._reply(TemplateReply())
        while True:
            ready, _, _ = select.select([self._supervisor.fileno(), self._ended], [], [])
            if self._ended in ready:
                os.read(self._ended, 4096)
                self._reap()
            if self._supervisor.fileno() in ready:
                message = self._supervisor.recv(MAX_MESSAGE_BYTES)
                if not message:
                    return
                self._copy(msgspec.json.decode(message, type=SpawnOrder))

    def _copy(self, order: SpawnOrder) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # no memory, too many processes
            self._reply(TemplateReply(problem=error.strerror or str(error)))
            return
        if pid:
            self._reply(TemplateReply(pid))
            return
        try:
            self._supervisor.close()
            assume_identity(order, parent)
            gc.enable()
            os._exit(run_worker(load()))
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._reply(TemplateReply(ended[0], os.waitstatus_to_exitcode(ended[1])))

    def _reply(self, reply: TemplateReply) -> None:
        self._supervisor.send(msgspec.json.encode(reply))


def assume_identity(order: SpawnOrder, parent: int) -> None:
    """Make a fork look like a process that was executed with this command and environment."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)  # the parent died before prctl took effect
    set_process_title(order.command)
    os.environ.clear()
    os.environ.update(order.environment)
    sys.argv = order.command[order.command.index("opsin") :]


def set_process_title(command: list[str]) -> None:
    """Replace the command that `ps` shows. Does nothing if the new one is longer."""
    start, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])  # arg_start and arg_end, fields 48 and 49
    words = b"".join(word.encode(errors="surrogateescape") + b"\0" for word in command)
    if 0 < start < end and len(words) <= end - start:
        ctypes.memmove(start, words.ljust(end - start, b"\0"), end - start)
