"""Signals that stop a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import os, signal
from server.processes.os_process import StopSignals
{before}
signals = StopSignals()
for number in {sent}:
    os.kill(os.getpid(), number)
print([signals.wait(0.1) for _ in range(3)])
"""


@pytest.mark.parametrize(
    ("before", "sent", "received"),
    [
        ("", "(signal.SIGTERM, signal.SIGINT)", [True, True, False]),
        ("", "(signal.SIGHUP, signal.SIGHUP, signal.SIGTERM)", [True, False, True]),  # the shell's and the kernel's are one
        ("signal.signal(signal.SIGHUP, signal.SIG_IGN)", "(signal.SIGHUP, signal.SIGTERM)", [True, False, False]),  # nohup
    ],
)
def test_each_signal_is_received_once_and_hangup_once_in_all(before: str, sent: str, received: list[bool]) -> None:
    code = CODE.format(before=before, sent=sent)
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == f"{received}\n"
