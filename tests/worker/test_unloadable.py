"""A batch of a bundle whose weights have left memory and cannot be loaded again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from models.bundle import BundleError
from server.queue.worker.delivery import Delivery
from server.scheduler.scheduler import Running, Scheduler
from server.scheduler.slots import Slots
from server.scheduler.step_times import StepTimes
from server.worker.executors import OneShot
from server.worker.loops import BatchRunner
from tests.support.queue import delivery


class Unloadable:
    spec: Any = None

    def forward(self, arrays: object, options: object) -> Any:
        raise BundleError("model.safetensors: missing")


def test_its_jobs_are_handed_back_and_count_as_no_steps() -> None:
    handed_back: list[Delivery] = []
    written: list[object] = []
    lost: list[str] = []
    executor, slots = OneShot(Unloadable(), torch.device("cpu")), Slots(Scheduler(1, lambda _bucket: StepTimes(4)))
    bundles: Any = SimpleNamespace(executor=lambda _queue: executor, lost=lambda _queue, reason: lost.append(reason))
    leases = SimpleNamespace(send_step=lambda jobs, slot, checked: lambda: jobs, return_to_queue=handed_back.extend)
    queue: Any = SimpleNamespace(leases=leases)
    answers: Any = SimpleNamespace(put=written.append, write=written.append, write_in_turn=written.append)
    jobs = [delivery(pixels=np.zeros((32, 32, 3), np.uint8)) for _ in range(3)]
    slots.add(jobs)
    running = slots.next()
    assert isinstance(running, Running)
    BatchRunner(queue, slots, bundles, answers, layout=bundles)._compute(running, hand=0)
    assert {job.job.id for job in handed_back} == {job.job.id for job in running.jobs}
    assert set(lost) == {"model.safetensors: missing"}
    assert written == []
