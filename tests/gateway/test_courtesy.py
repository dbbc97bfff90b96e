"""Long work of one client rests after it ran, where others ask and no CPU is idle."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest

from server.gateway import courtesy
from server.gateway.courtesy import Courtesy
from server.gateway.turns import Turns


class Cpus:
    """Counters as the kernel writes them: user, nice, system, idle, iowait, irq, softirq, steal."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._busy = self._idle = 0
        self.pass_by(0, 0)

    def pass_by(self, busy: int, idle: int) -> None:
        self._busy, self._idle = self._busy + busy, self._idle + idle
        self._file.write_text(f"cpu  {self._busy} 0 0 {self._idle} 0 0 0 0 7 7\ncpu0 1 1 1 1\n")


@pytest.fixture
def cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cpus:
    monkeypatch.setattr(courtesy, "COUNTERS", tmp_path / "stat")
    return Cpus(tmp_path / "stat")


def test_who_has_long_work_rests_where_others_would_feel_it(cpus: Cpus) -> None:
    kind = Courtesy()
    kind.came("much")
    cpus.pass_by(100, 0)
    assert kind.rest("much", 2.0) == 0.0  # nobody else is there
    kind.came("little")
    cpus.pass_by(100, 0)
    assert kind.rest("much", 2.0) == 6.0
    assert kind.rest("much", 60.0) == courtesy.MOST


def test_short_work_never_rests(cpus: Cpus) -> None:
    kind = Courtesy()
    kind.came("little")
    cpus.pass_by(100, 0)
    assert kind.rest("much", 0.05) == 0.0


def test_where_a_cpu_is_idle_nobody_rests(cpus: Cpus) -> None:
    kind = Courtesy()
    kind.came("little")
    cpus.pass_by(80, 20)
    assert kind.rest("much", 2.0) == 0.0
    cpus.pass_by(95, 5)
    assert kind.rest("much", 2.0) == 6.0


def test_who_went_is_forgotten(cpus: Cpus, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    kind = Courtesy()
    kind.came("little")
    now += 5.0
    kind.came("much")
    cpus.pass_by(100, 0)
    assert kind.rest("much", 2.0) == 0.0


async def test_a_client_that_rests_holds_nobody_up(cpus: Cpus) -> None:
    kind = Courtesy()
    turns = Turns(1, courtesy=kind)
    for client in ("much", "little"):
        kind.came(client)
    cpus.pass_by(100, 0)
    await turns.run("much", lambda: time.sleep(0.2))
    began = time.monotonic()
    again = asyncio.create_task(turns.run("much", time.monotonic))
    assert await turns.run("little", lambda: 3) == 3
    assert not again.done()
    assert await again - began > 0.4
    turns.close()


async def test_long_work_gives_way_until_a_while_after(cpus: Cpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courtesy, "REMEMBERED", 0.5)
    turns = Turns(1, courtesy=Courtesy())

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    usual = await turns.run("much", niceness)
    await turns.run("much", lambda: time.sleep(0.2))
    assert await turns.run("much", niceness) == courtesy.NICENESS
    assert await turns.run("little", niceness) == usual
    await asyncio.sleep(0.6)
    assert await turns.run("much", niceness) == usual
    turns.close()
