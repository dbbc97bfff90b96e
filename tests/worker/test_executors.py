"""A batch runs as one forward pass; if it fails, its halves show why."""

from __future__ import annotations

import re
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.bundle import BundleSpec
from models.loading import load
from server.queue.messages import Array
from server.queue.worker.delivery import Delivery
from server.worker.executors import Arrays, ComputedBatch, FailedJob, OneShot, Streams, TooLarge
from tests.fake_cuda.device import FakeCuda
from tests.support.bundles.vit import write_tiny_vit
from tests.support.plain_model import Plain
from tests.support.queue import delivery

CPU = torch.device("cpu")


def pictures(count: int, side: int = 32) -> list[Delivery]:
    return [delivery(pixels=np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)) for seed in range(count)]


@pytest.fixture
def tiny(tmp_path: Path) -> OneShot:
    return OneShot(Plain(load(write_tiny_vit(tmp_path))), CPU)


class SmallMemory:
    """A model that has room for `room` items at a time."""

    def __init__(self, spec: BundleSpec, room: int) -> None:
        self.spec = spec
        self.room = room

    def forward(self, arrays: Arrays, options: Mapping[str, Any]) -> Arrays:
        if len(arrays["pixels"]) > self.room:
            raise torch.OutOfMemoryError("no room")
        return {"logits": arrays["pixels"].mean((1, 2, 3))[:, None]}


def test_each_row_is_what_the_model_says_of_that_job(tiny: OneShot) -> None:
    jobs = pictures(5)
    [batch] = tiny.run(jobs)
    assert isinstance(batch, ComputedBatch)
    for answer, job in zip(batch.answers, jobs, strict=True):
        alone = tiny.model.forward({"pixels": job.job.arrays["pixels"].to_numpy()[None].copy()}, job.job.options)
        np.testing.assert_allclose(answer.outputs["logits"], alone["logits"][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("culprits", [{0}, {6}, {2, 3}, set(range(7))])
def test_culprits_are_refused_and_other_jobs_answered_once(tiny: OneShot, culprits: set[int]) -> None:
    good, bad = pictures(7), pictures(7, side=33)
    jobs = [bad[place] if place in culprits else good[place] for place in range(7)]
    results = list(tiny.run(jobs))
    refused = [result.job for result in results if isinstance(result, FailedJob)]
    answered = [answer.job for result in results if isinstance(result, ComputedBatch) for answer in result.answers]
    assert refused == [jobs[place] for place in sorted(culprits)]
    assert answered == [job for place, job in enumerate(jobs) if place not in culprits]


def test_a_batch_that_does_not_fit_into_memory_is_halved(tiny: OneShot) -> None:
    jobs = pictures(8)
    results = list(OneShot(Plain(SmallMemory(tiny.model.spec, room=4)), CPU).run(jobs))
    assert [len(result.jobs) for result in results if isinstance(result, TooLarge)] == [8]
    assert [result.jobs for result in results if isinstance(result, ComputedBatch)] == [jobs[:4], jobs[4:]]


class OverflowingModel:
    """Answers dark pictures with a class that is ruled out, bright ones with what is not a number."""

    def __init__(self, spec: BundleSpec) -> None:
        self.spec = spec

    def forward(self, arrays: Arrays, options: Mapping[str, Any]) -> Arrays:
        bright = arrays["pixels"].mean((1, 2, 3)) > 128
        return {"logits": np.array([[np.nan, 1.0] if one else [-np.inf, 1.0] for one in bright])}


def test_only_a_picture_whose_scores_are_no_numbers_is_refused(tiny: OneShot) -> None:
    jobs = [delivery(pixels=np.full((32, 32, 3), shade, np.uint8)) for shade in (0, 10, 200, 20)]
    results = list(OneShot(Plain(OverflowingModel(tiny.model.spec)), CPU).run(jobs))
    assert [result.job for result in results if isinstance(result, FailedJob)] == [jobs[2]]
    answered = [answer.job for result in results if isinstance(result, ComputedBatch) for answer in result.answers]
    assert answered == [jobs[0], jobs[1], jobs[3]]


class Flat:
    """Forgets the dimension of the batch, and fails on bright pictures."""

    def __init__(self, spec: BundleSpec) -> None:
        self.spec = spec

    def forward(self, arrays: Arrays, options: Mapping[str, Any]) -> Arrays:
        if arrays["pixels"].mean() > 128:
            raise LookupError("too bright")
        return {"brightness": np.array(arrays["pixels"].mean())}


@pytest.mark.parametrize(
    ("shade", "error", "raised"),
    [
        (0, r"tiny@1: output brightness has the shape \(\): its first dimension must be 1, one row a job", "in check"),
        (200, "too bright", "in forward\n    raise LookupError"),
    ],
)
def test_an_error_says_what_was_wrong_in_a_model_and_where(tiny: OneShot, shade: int, error: str, raised: str) -> None:
    [failed] = OneShot(Plain(Flat(tiny.model.spec)), CPU).run([delivery(pixels=np.full((32, 32, 3), shade, np.uint8))])
    assert isinstance(failed, FailedJob)
    assert re.fullmatch(error, str(failed.error))
    assert raised in failed.traceback


class Forgetful:
    """A model that keeps a weak reference to the activations of each batch.

    It fails on more than one item by a second error, as libraries do.
    """

    def __init__(self, spec: BundleSpec) -> None:
        self.spec = spec
        self.activations: list[weakref.ref[torch.Tensor]] = []
        self.alive: list[int] = []

    def forward(self, arrays: Arrays, options: Mapping[str, Any]) -> Arrays:
        self.alive.append(sum(reference() is not None for reference in self.activations))
        activations = torch.from_numpy(arrays["pixels"]) * 2.0
        self.activations.append(weakref.ref(activations))
        if len(activations) > 1:
            try:
                raise RuntimeError("no room")
            except RuntimeError as error:
                raise torch.OutOfMemoryError("no room at all") from error
        return {"logits": arrays["pixels"].mean((1, 2, 3))[:, None]}


def test_the_activations_of_a_batch_are_gone_when_its_halves_run(tiny: OneShot) -> None:
    model = Forgetful(tiny.model.spec)
    assert sum(isinstance(result, ComputedBatch) for result in OneShot(Plain(model), CPU).run(pictures(4))) == 4
    assert model.alive == [0] * 7


def test_a_job_that_does_not_fit_by_itself_is_refused(tiny: OneShot) -> None:
    jobs = pictures(2)
    results = list(OneShot(Plain(SmallMemory(tiny.model.spec, room=0)), CPU).run(jobs))
    assert [result.job for result in results if isinstance(result, FailedJob)] == jobs


def test_there_are_as_many_gpu_streams_as_batches_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Freed memory stays with its stream, so that threads and bundles share the streams."""
    fake = FakeCuda().install(monkeypatch, tmp_path)
    first, second = Streams(torch.device("cuda")), Streams(torch.device("cuda"))
    with first.current(), second.current():
        pass
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: second.current().__enter__()).result()
    assert len(fake.streams_used) == 3 and len({id(one) for one in fake.streams_used}) == 2


def test_files_that_no_model_reads_come_back_with_each_answer(tiny: OneShot) -> None:
    """Files differ in length, which arrays of one batch must not."""
    jobs = pictures(2)
    for length, job in enumerate(jobs, start=5):
        job.job.arrays["file"] = Array.from_numpy(np.arange(length, dtype=np.uint8))
        job.job.options.update(unread=["file"], returned=["file"])
    [batch] = tiny.run(jobs)
    assert isinstance(batch, ComputedBatch)
    assert [answer.outputs["file"].tolist() for answer in batch.answers] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]
