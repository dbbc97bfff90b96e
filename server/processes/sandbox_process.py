"""A function that runs in a child process, which is started on first use and reused.

A failure there costs the call, never the service: the child has limits of memory and time, and if it ends, the next call starts another.
The child is this module: python -m server.processes.sandbox_process package.module:function BYTES SECONDS
"""

from __future__ import annotations

import math
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

from models.processes import confined_process
from models.processes.confined_process import ConfinedProcess, ProcessDied
from server.processes.os_process import signal_name
from server.telemetry import logs

log = logs.get(__name__)

CPU_TIME_FACTOR = 2
"""Ratio of CPU time to wall time: a call that computes on this many CPUs may still use all of its seconds."""
MAX_ERROR_CHARS = 16 * 1024
"""Maximum length of an error, and of its traceback."""


class SandboxError(Exception):
    """The work raised an exception, took too long, or ended its process; the message says which."""


class Sandbox:
    """A runner of one call at a time, in any thread; `confined_process.CancelScope` ends a call. The child ends with this process."""

    def __init__(self, work: str, *, memory_bytes: int, seconds: float) -> None:
        """work: `package.module:function`, from bytes to bytes. memory_bytes: of the child's address space. seconds: of one call."""
        self._program = f"{__name__} {work} {memory_bytes} {seconds}"
        self._seconds = seconds
        self._child: ConfinedProcess | None = None
        self._turn = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Return the child's process id. None if there is none."""
        return None if self._child is None else self._child.pid

    def run(self, message: bytes) -> bytes:
        """Return the function's result. Raises SandboxError."""
        with self._turn:
            try:
                child = self._send(message)
                reply = child.message()
                answer = bytearray(reply.get("bytes", 0))
                child.read_into(memoryview(answer))
                if child.leave():
                    self._end()
            except BaseException as error:
                self._end()
                if isinstance(error, ProcessDied):
                    raise SandboxError(self._reason(error)) from None
                raise
        if "error" in reply:
            log.error("work in a child raised", work=self._program, traceback=reply["traceback"])
            raise SandboxError(reply["error"])
        return bytes(answer)

    def close(self) -> None:
        """End the child, whatever it does."""
        if (child := self._child) is not None:
            child.kill()
        with self._turn:
            self._end()

    def _send(self, message: bytes) -> ConfinedProcess:
        if self._child is not None and self._child.lives:
            with suppress(OSError):
                self._child.ask(message)
                return self._child
        self._end()
        try:
            self._child = ConfinedProcess(self._program, message, {}, patience=self._seconds)
        except OSError as error:
            raise SandboxError(f"no process could be started for it ({error.strerror})") from error
        log.info("child started", work=self._program, pid=self._child.pid)
        return self._child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def _reason(self, death: ProcessDied) -> str:
        if death.late:
            return f"it took longer than {self._seconds:g} s"
        if death.status is None:
            return str(death)
        if death.status >= 0:
            return f"its process ended with code {death.status}"
        return f"its process died of {signal_name(-death.status)}"


def main(reference: str, memory_bytes: int, seconds: float) -> None:
    confined_process.limit_memory(memory_bytes)
    requests = confined_process.receive_requests()
    module, _, name = reference.partition(":")
    work: Callable[[bytes], bytes] = getattr(import_module(module), name)
    for _ in requests:
        _limit_cpu(seconds)
        try:
            with open(0, "rb", closefd=False) as file:
                message = file.read()
            os.ftruncate(0, 0)  # the file is in memory, and would stay until the next one comes
            answer = work(message)
        except MemoryError:
            confined_process.write_message(
                {"error": "it needs more memory than it may have", "traceback": _truncate(traceback.format_exc())}
            )
        except Exception as error:
            confined_process.write_message(
                {"error": _truncate(f"{type(error).__name__}: {error}"), "traceback": _truncate(traceback.format_exc())}
            )
        else:
            confined_process.write_message({"bytes": len(answer)})
            confined_process.write_payload(memoryview(answer))


def _limit_cpu(seconds: float) -> None:
    """Limit CPU time: an endless loop that keeps the interpreter's lock notices neither the end of its owner nor that of its time."""
    limit_s = math.ceil(time.process_time() + CPU_TIME_FACTOR * seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _truncate(text: str) -> str:
    return text if len(text) <= MAX_ERROR_CHARS else f"{text[:MAX_ERROR_CHARS]}…"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
