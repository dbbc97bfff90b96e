"""Programs that die with the process that starts them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_TIED = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG, kept across execve
if os.getppid() != parent:
    sys.exit(1)  # it died before we could be tied to it
os.execv(sys.argv[2], sys.argv[2:])
"""


def tied_to_parent(command: Sequence[str]) -> list[str]:
    """A command line that runs `command` (absolute path first) and dies with the thread that starts it, even when that is killed with -9.

    A tiny interpreter sets PR_SET_PDEATHSIG and becomes the command. `preexec_fn` would do it without that, but it runs Python between
    fork and exec, which can deadlock in a process with threads. Where there is no prctl (macOS) the command is returned as it is.
    """
    if not sys.platform.startswith("linux"):
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command]
