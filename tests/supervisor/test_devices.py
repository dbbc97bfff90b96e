"""Which worker of a service gets which GPU."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from server.playground import SAMPLES
from server.processes.os_process import StopSignals
from server.settings import Settings
from server.supervisor import child_processes
from server.supervisor.supervisor import Supervisor
from tests.fake_cuda.device import FakeCuda
from tests.support.bundles.vit import write_null
from tests.support.processes import opsin
from tests.support.serve_process import serve
from tests.support.waiting import eventually


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def environments(listener: socket.socket, **settings: Any) -> list[Mapping[str, str]]:
    """Return the environment of each worker."""
    configured = Settings(redis_url="redis://127.0.0.1:1/0", **settings)
    return [worker._environment for worker in Supervisor(configured, listener, None, StopSignals(children=True))._workers]


def assigned_devices(listener: socket.socket, **settings: Any) -> list[tuple[str, str]]:
    """Return the device and number of workers of each worker."""
    return [(one["OPSIN_DEVICE"], one["OPSIN_WORKERS"]) for one in environments(listener, **settings)]


def threads(listener: socket.socket, **settings: Any) -> list[str]:
    return [one["OPSIN_THREADS"] for one in environments(listener, **settings)]


def test_each_gpu_that_is_named_gets_a_worker(listener: socket.socket) -> None:
    assert assigned_devices(listener, device="cuda:0,2") == [("cuda:0", "1"), ("cuda:2", "1")]
    assert assigned_devices(listener, device="cuda:1") == [("cuda:1", "1")]
    assert assigned_devices(listener, device="cpu", workers=2) == [("cpu", "2")] * 2


def test_more_workers_than_gpus_take_them_in_turn(listener: socket.socket) -> None:
    assert assigned_devices(listener, device="cuda:0,2", workers=3) == [("cuda:0", "2"), ("cuda:2", "2"), ("cuda:0", "2")]
    assert assigned_devices(listener, device="cuda:0,2", workers=1) == [("cuda:0", "1")]


def test_all_gpus_are_those_that_torch_may_see(listener: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FakeCuda(count=3).install(monkeypatch, tmp_path)
    monkeypatch.setattr(child_processes, "DEVICE_FILES", tmp_path)
    assert [device for device, _ in assigned_devices(listener, device="cuda:all")] == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert [device for device, _ in assigned_devices(listener, device="cuda:all")] == ["cuda:0", "cuda:1"]


def test_all_gpus_are_counted_by_the_driver_if_possible(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """WSL has no device files."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 3))
    assert [device for device, _ in assigned_devices(listener, device="cuda:all")] == ["cuda:0", "cuda:1", "cuda:2"]


def test_workers_of_several_gpus_share_the_cpus(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads(listener, device="cuda:0,2") == ["8"] * 2
    assert threads(listener, device="cuda:0,2", workers=4) == ["4"] * 4
    assert threads(listener, device="cuda:0,2", threads=3) == ["3"] * 2


@pytest.mark.parametrize("device", ["cuda:0,2", "cuda:all"])
def test_a_command_uses_one_device(tmp_path: Path, device: str) -> None:
    (tmp_path / "Brazil").mkdir()
    (tmp_path / "Brazil" / "1.png").write_bytes((SAMPLES / "brazil.png").read_bytes())
    ended = opsin("calibrate", "bundles/flags/1.0.0", "--ladder", "--force", "--images", tmp_path, OPSIN_DEVICE=device)
    refusal = f"opsin: device: {device} is set, but a process uses one device; `opsin serve` starts a worker for each\n"
    assert (ended.returncode, ended.stderr) == (2, refusal)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_service_without_its_gpu_ends_at_its_start(tmp_path: Path) -> None:
    write_null(tmp_path)
    with serve(tmp_path, copied=True, device="cuda:0,1") as service:
        eventually(lambda: service.process.poll() is not None, "it has ended")
        assert service.process.returncode == 2
        refusal = re.compile(r"device: cuda:[01] is set, but torch sees no CUDA device")
        eventually(lambda: any(map(refusal.search, list(service.lines))), "it says so")
        assert {death["restart_in"] for death in service.events("worker died")} == {None}
