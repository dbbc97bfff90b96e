"""Confined child processes, whatever they do."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from models.processes.confined_process import ConfinedProcess, ProcessDied
from tests.support.processes import children

PROGRAMS = "tests.support.child_programs"
BUSY = f"{PROGRAMS} busy"


def test_a_program_at_work_ends_with_its_owner() -> None:
    """Also where it reads and writes nothing by which it would notice."""
    code = (
        f"from models.processes.confined_process import ConfinedProcess; busy = ConfinedProcess('{BUSY}', b'', {{}}); "
        "print(busy.message(), flush=True); input()"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdout is not None and owner.stdout.readline() == b"{'works': True}\n"
    left = children(PROGRAMS, owner.pid)
    owner.kill()
    owner.wait()
    assert left and psutil.wait_procs(left, timeout=60)[1] == []


def test_a_program_that_says_nothing_is_ended() -> None:
    with ConfinedProcess(BUSY, b"", {}, patience=20) as busy:
        assert busy.message() == {"works": True}
        busy._patience = 0.1
        with pytest.raises(ProcessDied, match=r"no answer for 0\.1 seconds") as death:
            busy.message()
        assert death.value.late and not busy.lives
