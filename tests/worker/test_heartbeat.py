"""Progress of a worker, as its heartbeat counts it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from kernels import progress
from server.telemetry.metrics import WorkerMetrics
from server.worker.device_layout import Layout
from server.worker.heartbeat import Heartbeat
from tests.fake_cuda.device import GIB, FakeCuda


def test_a_compilation_counts_as_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_latest", float("-inf"))
    unused: Any = None
    slots: Any = SimpleNamespace(progress_age_s=100.0)
    heartbeat = Heartbeat(unused, slots, unused, unused, 0, unused, 0.0)
    assert heartbeat.progress_age_s == 100.0
    progress.note()
    assert heartbeat.progress_age_s < 50.0


def test_the_memory_of_a_gpu_is_in_the_metrics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FakeCuda(total_memory=80 * GIB, reserved=3 * GIB, allocated=2 * GIB).install(monkeypatch, tmp_path)
    queue, slots, bundles, metrics = Mock(id="one"), Mock(count=2, progress_age_s=0.0), Mock(folder=tmp_path), WorkerMetrics()
    bundles.announcements.return_value, bundles.backends.return_value, bundles.stepwise_by_queue.return_value = [], {}, {}
    layout = Layout(torch.device("cuda"), 2, 1, 8, name="cuda:1")
    Heartbeat(queue, slots, bundles, metrics, 0, layout, 0.0)._info()
    expected = {"allocated": 2 * GIB, "reserved": 3 * GIB, "free": 77 * GIB, "total": 80 * GIB}
    for kind, nbytes in expected.items():
        assert metrics.registry.get_sample_value("opsin_device_memory_bytes", {"device": "cuda:1", "kind": kind}) == nbytes
