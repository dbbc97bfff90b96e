"""Errors of a GPU: those that end a worker, and those that pass."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from kernels.device_errors import is_out_of_memory, is_sticky
from server.processes.supervisor_protocol import CRASHED
from server.supervisor.private_valkey import PrivateValkey
from tests.fake_cuda.device import ERRORS, ORDER_VARIABLE, RED, STICKY
from tests.support.bundles.vit import write_null
from tests.support.live_service import forget_worker, gateway, worker_process
from tests.support.poison_worker import COMMAND
from tests.support.waiting import eventually_async


@pytest.mark.parametrize("name", ERRORS)
def test_lack_of_memory_passes_and_broken_devices_do_not(name: str) -> None:
    assert is_sticky(ERRORS[name]) == (name in STICKY)
    assert is_out_of_memory(ERRORS[name]) == (name not in STICKY)


async def test_a_broken_device_ends_its_worker_not_its_jobs(valkey: PrivateValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_null(tmp_path, name="fragile", architecture="fragile")
    monkeypatch.setenv(ORDER_VARIABLE, "illegal access")
    red = np.zeros((32, 32, 3), np.uint8)
    red[0, 0] = RED
    async with gateway(valkey.url) as asking:
        with worker_process(valkey.url, tmp_path, command=COMMAND) as first:
            await asking.ready()
            asked = [asyncio.create_task(asking.ask(asking.job("fragile@1", red))) for _ in range(3)]
            await eventually_async(lambda: first.poll() is not None, "the worker has ended")
            assert first.returncode == CRASHED
            assert not any(job.done() for job in asked)
            await asyncio.to_thread(forget_worker, valkey.url, first)
        monkeypatch.delenv(ORDER_VARIABLE)
        with worker_process(valkey.url, tmp_path, command=COMMAND):
            replies = await asyncio.gather(*asked)
    assert [reply.failure for reply in replies] == [None] * 3
