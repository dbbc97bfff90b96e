"""Batches that fail through no fault of their jobs: weights cannot be loaded again, or another batch holds the memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import torch

from models.bundle import BundleError
from server.queue.worker.delivery import Delivery
from server.scheduler.batcher import StepTimes
from server.scheduler.scheduler import RunningBatch, Scheduler
from server.scheduler.slots import Slots
from server.telemetry.metrics import WorkerMetrics
from server.worker.executors import Arrays, ComputedBatch, FailedJob, OneShot, TooLarge
from server.worker.loops import BatchRunner
from server.worker.reply_writer import ReplyWriter
from tests.fake_cuda.device import ERRORS
from tests.support.plain_model import Plain
from tests.support.queue import delivery


class FailingModel:
    """A model whose next forward passes raise these errors."""

    def __init__(self, *errors: Exception) -> None:
        self.spec: Any = None
        self._errors = list(errors)

    def forward(self, arrays: Arrays, options: object) -> Arrays:
        if self._errors:
            raise self._errors.pop()
        return {"means": arrays["pixels"].mean((1, 2, 3))}


class Runner:
    """A worker's slot, with what it says to the queue."""

    def __init__(self, model: Any) -> None:
        self.handed_back: list[Delivery] = []
        self.written: list[Any] = []
        self.lost: list[str] = []
        executor = OneShot(Plain(model), torch.device("cpu"))
        self.slots = Slots(Scheduler(1, lambda _bucket: StepTimes(4)))
        bundles: Any = SimpleNamespace(executor=lambda _queue: executor, mark_lost=lambda _queue, reason: self.lost.append(reason))
        intake = SimpleNamespace(send_step=lambda jobs, slot, checked: lambda: jobs, return_to_queue=self.handed_back.extend)
        queue: Any = SimpleNamespace(intake=intake)
        answers: Any = SimpleNamespace(put=self.written.append, write=self.written.append, write_now_or_queue=self.written.append)
        self._batches = BatchRunner(queue, self.slots, bundles, answers, layout=bundles)

    def run(self) -> RunningBatch:
        """Run the batch whose turn it is."""
        running = self.slots.next()
        assert isinstance(running, RunningBatch)
        self._batches._compute(running, runner_index=0)
        return running


def jobs(count: int) -> list[Delivery]:
    return [delivery(pixels=np.zeros((32, 32, 3), np.uint8)) for _ in range(count)]


def test_jobs_without_weights_go_back_and_count_as_no_steps() -> None:
    runner = Runner(FailingModel(*[BundleError("model.safetensors: missing")] * 3))
    runner.slots.add(jobs(3))
    running = runner.run()
    assert {job.job.id for job in runner.handed_back} == {job.job.id for job in running.jobs}
    assert set(runner.lost) == {"model.safetensors: missing"}
    assert runner.written == []


def test_a_job_that_ran_out_of_memory_runs_alone_once_more() -> None:
    runner = Runner(FailingModel(ERRORS["out of memory elsewhere"]))
    [job] = jobs(1)
    runner.slots.add([job])
    runner.run()
    assert runner.run().bucket.alone
    [_too_large, computed] = runner.written
    assert isinstance(computed, ComputedBatch) and [answer.job.job.id for answer in computed.answers] == [job.job.id]


def test_a_job_that_never_fits_fails_the_second_time() -> None:
    runner = Runner(FailingModel(*[ERRORS["out of memory"]] * 2))
    runner.slots.add(jobs(1))
    runner.run()
    runner.run()
    assert [type(result) for result in runner.written] == [TooLarge, TooLarge, FailedJob]


def test_lack_of_memory_is_counted() -> None:
    metrics, queue = WorkerMetrics(), Mock()
    answers = ReplyWriter(queue, metrics)
    batch = jobs(2)
    answers.write_now_or_queue(TooLarge(batch))
    model, version = batch[0].bundle.split("@")
    assert metrics.registry.get_sample_value("opsin_out_of_memory_total", {"model": model, "version": version}) == 1
