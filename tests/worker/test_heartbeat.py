"""What counts as progress of a worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kernels import progress
from server.worker.heartbeat import Heartbeat


def test_a_compilation_counts_as_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_latest", float("-inf"))
    unused: Any = None
    slots: Any = SimpleNamespace(silence=100.0)
    heartbeat = Heartbeat(unused, slots, unused, unused, 0, unused, 0.0)
    assert heartbeat.silence == 100.0
    progress.note()
    assert heartbeat.silence < 50.0
