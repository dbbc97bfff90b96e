"""Errors of a GPU: those that end a worker, and those that pass."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from kernels.devices import is_out_of_memory, is_sticky
from server.processes.supervisor_protocol import CRASHED
from server.supervisor.private_valkey import PrivateValkey
from tests.fake_cuda.device import DEVICES, ERRORS, ORDER_VARIABLE, RED, STICKY
from tests.support.bundles.vit import write_null
from tests.support.images import png
from tests.support.live_service import forget_worker, gateway, running, worker_process
from tests.support.poison_worker import COMMAND
from tests.support.waiting import eventually_async


def red(first_row: int = 0) -> np.ndarray:
    """Return a black image whose first pixel of this row is red; in the first row, that orders an error."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[first_row, 0] = RED
    return image


@pytest.mark.parametrize("name", ERRORS)
def test_lack_of_memory_passes_and_broken_devices_do_not(name: str) -> None:
    assert is_sticky(ERRORS[name]) == (name in STICKY)
    assert is_out_of_memory(ERRORS[name]) == (name not in STICKY)


@pytest.mark.parametrize("device", DEVICES)
async def test_a_broken_device_ends_its_worker_not_its_jobs(
    valkey: PrivateValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    write_null(tmp_path, name="fragile", architecture="fragile")
    monkeypatch.setenv(ORDER_VARIABLE, "illegal access")
    async with gateway(valkey.url) as asking:
        with worker_process(valkey.url, tmp_path, command=COMMAND, device=device) as first:
            await asking.ready()
            requests = [asyncio.create_task(asking.ask(asking.job("fragile@1", red()))) for _ in range(3)]
            await eventually_async(lambda: first.poll() is not None, "the worker has ended")
            assert first.returncode == CRASHED
            assert not any(job.done() for job in requests)
            await asyncio.to_thread(forget_worker, valkey.url, first)
        monkeypatch.delenv(ORDER_VARIABLE)
        with worker_process(valkey.url, tmp_path, command=COMMAND, device=device):
            replies = await asyncio.gather(*requests)
    assert [reply.failure for reply in replies] == [None] * 3


@pytest.mark.parametrize("device", DEVICES)
def test_images_that_do_not_fit_together_are_all_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    write_null(tmp_path, name="fragile", architecture="fragile")
    monkeypatch.setenv(ORDER_VARIABLE, "out of memory")
    with running(tmp_path, of_workers={"command": COMMAND, "device": device}) as service:
        while not service.sum_metric("opsin_out_of_memory_total"):  # until a batch has two of them
            assert service.gateway.classify_all(*[png(red())] * 8).status_code == 200
        assert service.gateway.classify_all(*[png(red(1))] * 8).status_code == 200
