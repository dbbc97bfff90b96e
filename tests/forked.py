"""Processes that start as copies of one that has imported what they need: in tenths of a second, where imports take seconds of CPU.

From its first line on, the program is the same. Tests of `opsin serve` start its workers and gateways as users do.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from multiprocessing.reduction import DupFd
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["opsin.cli", "server.gateway.main", "server.worker.main", "tests.forked"])


@cache
def prepare() -> None:
    """Import what the copies need. The first copy waits for it, seconds in which a test's event loop would stand still."""
    first = _context.Process(target=os.getpid)
    first.start()
    first.join()


class Forked:
    """`python -m MODULE ARGUMENTS` with these variables. What tests use of `subprocess.Popen`."""

    def __init__(
        self, module: str, *arguments: str, environment: Mapping[str, str], listener: int | None = None, captured: bool = False
    ) -> None:
        """listener: an open socket, handed on as `--fd`. captured: `communicate` tells its stderr, which goes to the test's otherwise."""
        read, write = os.pipe() if captured else (None, None)
        passed = [None if fd is None else _Passed(fd) for fd in (listener, write)]
        self._process = _context.Process(target=_run, args=(module, arguments, dict(environment), os.getpid(), *passed))
        self._process.start()
        self.pid = self._process.pid or 0
        self.stderr = None if read is None else os.fdopen(read)
        if write is not None:
            os.close(write)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self.returncode) is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        self.wait(timeout)
        assert self.stderr is not None
        return None, self.stderr.read()

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended since
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Passed:
    """A file descriptor on its way into the copy."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __reduce__(self) -> Any:
        return _arrived, (DupFd(self._fd),)


def _arrived(passed: Any) -> int:
    fd: int = passed.detach()
    return fd


def _run(module: str, arguments: tuple[str, ...], environment: dict[str, str], test: int, listener: int | None, log: int | None) -> None:
    for name in (1, 2):  # what pytest captures now, and not what it captured when the first copy was made
        fd = log if log is not None and name == 2 else os.open(f"/proc/{test}/fd/{name}", os.O_WRONLY | os.O_APPEND)
        os.dup2(fd, name)
        os.close(fd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments, *([] if listener is None else ["--fd", str(listener)])]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
