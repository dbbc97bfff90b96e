"""Processes that start as copies of one that has imported what they need: in tenths of a second, where imports take seconds of CPU.

From its first line on, the program is the same. Tests of how `opsin serve` starts execute it as users do.
"""

from __future__ import annotations

import atexit
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
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch

_context = multiprocessing.get_context("forkserver")
_IMPORTED = [
    "httpcore2",
    "httpx2",
    "models.checkpoints",
    "onnx",
    "opsin.client",
    "server.gateway.main",
    "server.worker.main",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "yaml",
    "tests.support.forked_program",
]


def imports(*modules: str) -> None:
    """Import modules into the process that copies start from. A call while tests are collected holds for all copies."""
    _IMPORTED.extend(modules)
    _context.set_forkserver_preload([*_IMPORTED, "tests.support.frozen"])


imports()


@cache
def prepare() -> None:
    """Import what the copies need. The first copy waits for it, seconds in which a test's event loop would stand still."""
    first = _context.Process(target=os.getpid)
    first.start()
    first.join()


def run(
    module: str, *arguments: str, environment: Mapping[str, str], seconds: float, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` with these variables, in a folder, to its end; raise TimeoutExpired after so many seconds."""
    process = ForkedProcess(module, *arguments, environment=environment, captured=True, folder=folder)
    try:
        out, err = process.communicate(seconds)
    finally:
        process.kill()
        process.wait()
        process.close()
    return subprocess.CompletedProcess([module, *arguments], process.wait(), out, err)


class ForkedProcess:
    """`python -m MODULE ARGUMENTS` with these variables. What tests use of `subprocess.Popen`."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        environment: Mapping[str, str],
        listener: int | None = None,
        captured: bool = False,
        prints: int | None = None,
        reads: int | None = None,
        folder: Path | None = None,
        leads: bool = False,
    ) -> None:
        """Start a copy.

        listener: an open socket, handed on as `--fd`. captured: `communicate` returns its output; prints: an open file that gets it; else
        it goes to the test's stdout and stderr. reads: an open file, its standard input. folder: where it runs. leads: a process
        group of its own.
        """
        self._printed = tuple(TemporaryFile("w+") for _ in range(2)) if captured else ()  # noqa: SIM115 (`close` closes them)
        outputs = [file.fileno() for file in self._printed] if prints is None else [prints, prints]
        passed = [None if fd is None else _PassedFiles(fd) for fd in (listener, reads, *(outputs or [None, None]))]
        inputs = (module, arguments, dict(environment), folder or Path.cwd(), leads, os.getpid(), *passed)
        self._process = _context.Process(target=_run, args=inputs)
        self._process.start()
        self.pid = self._process.pid or 0
        atexit.register(self.kill)  # multiprocessing waits at exit for its processes, also for those that a failed test has left

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

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        out, err = self._printed
        for file in (out, err):
            file.seek(0)
        return out.read(), err.read()

    def close(self) -> None:
        for file in self._printed:
            file.close()

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended since
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _PassedFiles:
    """A file descriptor on its way into the copy."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __reduce__(self) -> Any:
        return _receive, (DupFd(self._fd),)


def _receive(passed: Any) -> int:
    fd: int = passed.detach()
    return fd


def _run(
    module: str,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    folder: Path,
    leads: bool,
    test: int,
    listener: int | None,
    reads: int | None,
    out: int | None,
    err: int | None,
) -> None:
    if reads is not None:
        os.dup2(reads, 0)
        sys.stdin = open(0)  # noqa: SIM115 (a file descriptor, to the end of the process)
    for name, inputs in ((1, out), (2, err)):  # what pytest captures now, and not what it captured when the first copy was made
        fd = os.open(f"/proc/{test}/fd/{name}", os.O_WRONLY | os.O_APPEND) if inputs is None else inputs
        os.dup2(fd, name)
        os.close(fd)
    if leads:
        os.setpgid(0, 0)
    multiprocessing.set_start_method(None, force=True)  # copies have that of the first: what they start would outlive them
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if threads := environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))  # it was imported under other variables
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]  # timm imports it, and it reads its variables then
    sys.argv = [module, *arguments, *([] if listener is None else ["--fd", str(listener)])]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
