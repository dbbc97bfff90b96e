"""`python -m tests.support.forked_serve …` is `opsin serve …` whose template and only gateway are copies of it.

Executed, each would import for a second of CPU or two. From their first line on, the programs are the same.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

from server.processes.os_process import die_with_parent
from server.processes.supervisor_protocol import SpawnOrder
from server.supervisor import child_processes
from server.worker.fork_server import assume_identity, set_process_title

TIE = len(die_with_parent([]))
"""Words before a command that dies with its parent."""


class CopiedProcess:
    """A copy that runs a command of `opsin`. What the supervisor uses of `subprocess.Popen`."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], pass_fds: Sequence[int], stdin: int, process_group: int) -> None:
        self._status: int | None = None
        parent = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            _run(SpawnOrder(list(command[TIE:]), dict(env)), parent, pass_fds)

    def poll(self, options: int = os.WNOHANG) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, options)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def wait(self) -> int | None:
        return self.poll(0)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _run(order: SpawnOrder, parent: int, retained: Sequence[int]) -> None:
    """Be the command to its end, with these file descriptors and no others."""
    code: object = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        assume_identity(order, parent)
        for low, high in zip([2, *sorted(retained)], [*sorted(retained), os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(low + 1, high)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        runpy.run_module("opsin", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    sys.argv = ["opsin", "serve", *sys.argv[1:]]
    set_process_title(sys.argv)
    child_processes.subprocess = SimpleNamespace(Popen=CopiedProcess, DEVNULL=subprocess.DEVNULL)  # type: ignore[attr-defined]
    runpy.run_module("opsin", run_name="__main__", alter_sys=True)
