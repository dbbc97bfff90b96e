"""The first batch of a shape is slower than those that follow: it is counted, and teaches the worker nothing."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from models.loading import load
from server.scheduler.batcher import StepTimes
from server.scheduler.scheduler import RunningBatch, Scheduler
from server.scheduler.slots import Slots
from server.telemetry.metrics import WorkerMetrics
from server.worker import reply_writer
from server.worker.executors import ComputedBatch, OneShot
from server.worker.loops import BatchRunner
from tests.support.bundles.vit import write_tiny_vit
from tests.support.plain_model import Plain
from tests.support.queue import delivery


def test_a_cold_batch_is_counted_and_teaches_no_step_times(tmp_path: Path) -> None:
    executor, steps, metrics = OneShot(Plain(load(write_tiny_vit(tmp_path))), torch.device("cpu")), StepTimes(4), WorkerMetrics()
    slots = Slots(Scheduler(1, lambda _bucket: steps))
    bundles: Any = SimpleNamespace(executor=lambda _queue: executor)
    queue: Any = SimpleNamespace(intake=SimpleNamespace(send_step=lambda jobs, slot, checked: lambda: jobs))
    runner = BatchRunner(queue, slots, bundles, answers=bundles, layout=bundles)

    def run_one() -> None:
        slots.add([delivery(pixels=np.zeros((32, 32, 3), np.uint8), merge=(3, 2), queued_at=time.monotonic())])
        running = slots.next()
        assert isinstance(running, RunningBatch)
        [batch] = runner._run(running, runner_index=0)
        assert isinstance(batch, ComputedBatch)
        reply_writer._count(batch, metrics)
        slots.finish(running, [])

    def cold_batches() -> float | None:
        return metrics.registry.get_sample_value("opsin_cold_batches_total", {"model": "tiny", "version": "1"})

    run_one()
    assert cold_batches() == 1
    assert not steps.seconds
    run_one()
    assert cold_batches() == 1
    assert list(steps.seconds) == [1]
