"""Which worker of a service gets which GPU."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from server.processes.os_process import StopSignals
from server.settings import Settings
from server.supervisor import child_processes
from server.supervisor.supervisor import Supervisor
from tests.fake_cuda.device import FakeCuda
from tests.support.bundles.vit import write_null
from tests.support.serve_process import serve
from tests.support.waiting import eventually


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def assigned(listener: socket.socket, **settings: Any) -> list[tuple[str, str]]:
    """Return device and number of workers as the environment of each worker has them."""
    configured = Settings(redis_url="redis://127.0.0.1:1/0", **settings)
    workers = Supervisor(configured, listener, None, StopSignals(children=True))._workers
    return [(worker._environment["OPSIN_DEVICE"], worker._environment["OPSIN_WORKERS"]) for worker in workers]


def test_each_gpu_that_is_named_gets_a_worker(listener: socket.socket) -> None:
    assert assigned(listener, device="cuda:0,2") == [("cuda:0", "1"), ("cuda:2", "1")]
    assert assigned(listener, device="cuda:1") == [("cuda:1", "1")]
    assert assigned(listener, device="cpu", workers=2) == [("cpu", "2")] * 2


def test_more_workers_than_gpus_take_them_in_turn(listener: socket.socket) -> None:
    assert assigned(listener, device="cuda:0,2", workers=3) == [("cuda:0", "2"), ("cuda:2", "2"), ("cuda:0", "2")]
    assert assigned(listener, device="cuda:0,2", workers=1) == [("cuda:0", "1")]


def test_all_gpus_are_those_that_torch_may_see(listener: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FakeCuda(count=3).install(monkeypatch, tmp_path)
    monkeypatch.setattr(child_processes, "DEVICE_FILES", tmp_path)
    assert [device for device, _ in assigned(listener, device="cuda:all")] == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert [device for device, _ in assigned(listener, device="cuda:all")] == ["cuda:0", "cuda:1"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_service_without_its_gpu_ends_at_its_start(tmp_path: Path) -> None:
    write_null(tmp_path)
    with serve(tmp_path, device="cuda:0,1") as service:
        eventually(lambda: service.process.poll() is not None, "it has ended")
        assert service.process.returncode == 2
        refusal = re.compile(r"device: cuda:[01] is set, but torch sees no CUDA device")
        eventually(lambda: any(map(refusal.search, list(service.lines))), "it says so")
