"""How a worker shares its device with the other workers of its service."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from server.settings import Settings
from server.worker import device_layout

GIGABYTE = 2**30


def test_workers_of_one_gpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_layout, "_device", lambda name: torch.device("cuda"))  # there need be no GPU
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * GIGABYTE))
    alone, one_of_four = (device_layout.choose(Settings(workers=count)) for count in (1, 4))
    assert (alone.model_bytes, alone.state_bytes) == (40 * GIGABYTE, 20 * GIGABYTE)
    assert (one_of_four.model_bytes, one_of_four.state_bytes) == (10 * GIGABYTE, 5 * GIGABYTE)
