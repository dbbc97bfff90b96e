"""The restart policy, on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server.processes.supervisor_protocol import STUCK, ExitReason
from server.settings import Settings
from server.supervisor.child_processes import FIRST_BACKOFF_S, MAX_BACKOFF_S, Child, ProcessExit
from tests.support.waiting import eventually


def child(code: str, kind: str = "worker") -> Child:
    return Child(kind, [sys.executable, "-c", code], os.environ)


def reap(process: Child) -> ProcessExit:
    found: list[ProcessExit] = []
    eventually(lambda: found.append(death) if (death := process.reap()) else found, "the child has ended")
    return found[0]


def test_a_child_that_served_is_restarted_at_once() -> None:
    process = child("import time; time.sleep(60)")
    process.start()
    process.ready = True
    pid = process.pid
    process.signal(signal.SIGKILL)
    assert reap(process) == ProcessExit(pid, ExitReason.CRASHED)
    assert process.is_due


def test_deaths_before_ready_make_the_pause_double_up_to_a_bound() -> None:
    process = child("raise SystemExit(3)")
    pauses = []
    for _ in range(6):
        process.start()
        reap(process)
        pauses.append(process.backoff.seconds)
        assert not process.is_due
    assert pauses == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_longest_pause_is_below_wait_of_requests_for_worker() -> None:
    assert Settings().worker_grace >= 5 * MAX_BACKOFF_S


def test_a_program_that_cannot_be_executed_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    process = child("raise SystemExit(3)")

    def no_room(*_: object, **__: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    with monkeypatch.context() as full:
        full.setattr(subprocess, "Popen", no_room)
        process.start()
    assert (process.pid, process.backoff.seconds, process.is_due) == (0, FIRST_BACKOFF_S, False)
    process.start()
    assert process.pid
    reap(process)


def test_having_served_forgives_earlier_deaths() -> None:
    process = child("raise SystemExit(3)")
    for ready in (False, False, True):
        process.start()
        process.ready = ready
        reap(process)
    assert process.is_due


@pytest.mark.parametrize(("code", "reason"), [(3, ExitReason.EXITED), (STUCK, ExitReason.HUNG)])
def test_an_exit_code_says_why_it_ended(code: int, reason: ExitReason) -> None:
    process = child(f"raise SystemExit({code})")
    process.start()
    assert reap(process).reason == reason


def test_what_was_killed_because_it_hung_is_no_crash() -> None:
    process = child("import time; time.sleep(60)")
    process.start()
    process.kill_hung()
    assert reap(process).reason == ExitReason.HUNG


def test_a_child_has_a_process_group_of_its_own(tmp_path: Path) -> None:
    answer = tmp_path / "group"
    process = child(f"import os, pathlib; pathlib.Path({str(answer)!r}).write_text(str(os.getpgrp()))")
    process.start()
    pid = process.pid
    reap(process)
    assert answer.read_text() == str(pid)
