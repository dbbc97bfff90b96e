"""Long work of one client rests after it ran, where others ask and no CPU is idle."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
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
    assert kind.rest("much", time.monotonic(), 2.0) == 0.0  # nobody else is there
    kind.came("little")
    cpus.pass_by(100, 0)
    assert kind.rest("much", time.monotonic(), 2.0) == 6.0
    assert kind.rest("much", time.monotonic(), 60.0) == courtesy.MOST


def test_short_work_never_rests(cpus: Cpus) -> None:
    kind = Courtesy()
    kind.came("little")
    cpus.pass_by(100, 0)
    assert kind.rest("much", time.monotonic(), 0.3) == 0.0


def test_where_a_cpu_is_idle_nobody_rests(cpus: Cpus) -> None:
    kind = Courtesy()
    kind.came("little")
    cpus.pass_by(80, 20)
    assert kind.rest("much", time.monotonic(), 2.0) == 0.0
    cpus.pass_by(95, 5)
    assert kind.rest("much", time.monotonic(), 2.0) == 6.0


def test_who_went_is_forgotten(cpus: Cpus, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    kind = Courtesy()
    kind.came("little")
    now += 5.0
    kind.came("much")
    cpus.pass_by(100, 0)
    assert kind.rest("much", time.monotonic(), 2.0) == 0.0


def busy(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


async def test_a_client_that_rests_holds_nobody_up(cpus: Cpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courtesy, "LONG", 0.1)
    kind = Courtesy()
    turns = Turns(1, courtesy=kind)
    for client in ("much", "little"):
        kind.came(client)
    cpus.pass_by(100, 0)
    await turns.run("much", lambda: busy(0.2))
    began = time.monotonic()
    again = asyncio.create_task(turns.run("much", time.monotonic))
    assert await turns.run("little", lambda: 3) == 3
    assert not again.done()
    assert await again - began > 0.4
    turns.close()


async def test_waiting_is_no_work(cpus: Cpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a CPU, or for memory that others hold, has done nothing to rest for."""
    monkeypatch.setattr(courtesy, "LONG", 0.1)
    kind = Courtesy()
    turns = Turns(1, courtesy=kind)
    kind.came("little")
    cpus.pass_by(100, 0)
    await turns.run("much", lambda: time.sleep(0.3))
    assert not kind.is_long("much")
    turns.close()


async def test_long_work_of_all_clients_has_half_of_the_threads_and_others_pass_it(cpus: Cpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courtesy, "LONG", 0.1)
    turns, together, gate = Turns(2, courtesy=Courtesy()), list[str](), threading.Event()
    for client in ("a", "b", "c"):
        await turns.run(client, lambda: busy(0.15))

    def long(client: str) -> None:
        together.append(client)
        gate.wait()

    work = [asyncio.create_task(turns.run(client, partial(long, client))) for client in ("a", "b", "c")]
    assert await asyncio.wait_for(turns.run("little", lambda: 3), 30) == 3
    assert together == ["a"]
    gate.set()
    await asyncio.gather(*work)
    assert together == ["a", "b", "c"]
    turns.close()
