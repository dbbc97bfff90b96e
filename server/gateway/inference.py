"""From encoded images to the network's answers: prepare in threads, enqueue, wait. Both protocols share it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import msgspec

from models.bundle import BundleSpec
from server.gateway import directory
from server.gateway.admission import Visit
from server.gateway.body import image_field
from server.gateway.directory import Directory
from server.gateway.problems import Kind, Problem
from server.media import images
from server.queue.dispatch import Dispatcher
from server.queue.errors import RedisAway
from server.queue.job import Array, Failure, Job, Priority, Reply
from server.settings import Settings
from server.tasks.classify import Classify, Outputs, Plan
from server.telemetry.metrics import GatewayMetrics

WATCH_INTERVAL = 1.0
"""Seconds between looks at whether a waiting request still has a worker to wait for."""

IMAGE_PROBLEMS = {
    images.NotAnImage: Kind.NOT_AN_IMAGE,
    images.TooManyPixels: Kind.TOO_LARGE,
    images.CorruptImage: Kind.CORRUPT_IMAGE,
}
FAILURE_PROBLEMS = {"worker-crashed": Kind.WORKER_CRASHED, "model-error": Kind.MODEL_ERROR, "deadline": Kind.DEADLINE}


class Timing(msgspec.Struct, frozen=True):
    """Where the time of a request's slowest image went, in milliseconds; `batch_size` counts the images that shared its batch."""

    prepare_ms: float
    queue_ms: float
    batch_wait_ms: float
    inference_ms: float
    total_ms: float
    batch_size: int


@dataclass(frozen=True)
class Answer:
    """One entry of `outputs` per image: logits (classes,) and tokens (2,)."""

    outputs: list[Outputs]
    timing: Timing


class Inference:
    """Runs the images of admitted requests."""

    def __init__(
        self,
        settings: Settings,
        dispatcher: Dispatcher,
        directory: Directory,
        metrics: GatewayMetrics,
        decoder: images.Decoder,
        threads: Executor,
    ) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._directory = directory
        self._metrics = metrics
        self._decoder = decoder
        self._threads = threads

    async def run(self, pictures: list[bytes], spec: BundleSpec, plan: Plan, priority: Priority, visit: Visit) -> Answer:
        """All of the pictures or none; the list is emptied. Raises Problem, and what the Dispatcher raises."""
        began = time.perf_counter()
        prepared = await self._prepare(pictures, spec)
        pictures.clear()  # they may be large, and are not needed while their small copies wait
        enqueued = time.perf_counter()
        jobs = await self._jobs(prepared, spec, plan, priority, visit)
        replies = await self._wait(jobs, spec, visit)
        answered = time.perf_counter()
        for index, reply in enumerate(replies):
            if reply.failure is not None:
                raise _problem(reply.failure, spec, image_field(index, len(replies)))
        timing = _timing(replies, prepare=enqueued - began, round_trip=answered - enqueued, total=answered - visit.started)
        self._count(replies, spec, timing)
        return Answer([{name: array.to_numpy() for name, array in reply.arrays.items()} for reply in replies], timing)

    async def _prepare(self, pictures: Sequence[bytes], spec: BundleSpec) -> list[dict[str, Array]]:
        """Raises Problem that names the first bad image."""
        loop = asyncio.get_running_loop()
        work = [loop.run_in_executor(self._threads, _prepare, picture, spec, self._decoder) for picture in pictures]
        results = [await work[0]] if len(work) == 1 else await asyncio.gather(*work)
        prepared: list[dict[str, Array]] = []
        for index, result in enumerate(results):
            if isinstance(result, images.ImageError):
                raise Problem(IMAGE_PROBLEMS[type(result)], str(result), image_field(index, len(pictures)))
            prepared.append(result)
        return prepared

    async def _jobs(
        self, prepared: Sequence[dict[str, Array]], spec: BundleSpec, plan: Plan, priority: Priority, visit: Visit
    ) -> list[Job]:
        request = uuid.uuid4().hex
        deadline_ms = await self._dispatcher.now_ms() + int(visit.seconds_left() * 1000)
        bucket = Classify.bucket(plan, spec)
        return [
            Job(
                id=f"{request}-{index}",
                bundle=spec.id,
                digest=spec.digest(),
                bucket=bucket,
                arrays=arrays,
                options=plan.options,
                priority=priority,
                deadline_ms=deadline_ms,
                gateway=self._dispatcher.id,
                trace={"request_id": visit.request_id},
            )
            for index, arrays in enumerate(prepared)
        ]

    async def _wait(self, jobs: list[Job], spec: BundleSpec, visit: Visit) -> list[Reply]:
        """The replies. Raises Problem (503) when no worker was ready for the bundle during `worker_grace` while waiting."""
        loop = asyncio.get_running_loop()
        submitted = asyncio.create_task(self._dispatcher.submit_all(jobs, reservation=visit.reservation))
        deserted_since: float | None = None
        try:
            while True:
                done, _ = await asyncio.wait((submitted,), timeout=WATCH_INTERVAL)
                if done:
                    return submitted.result()
                if await self._has_worker(spec):
                    deserted_since = None
                    continue
                deserted_since = deserted_since or loop.time() - WATCH_INTERVAL
                if loop.time() - deserted_since >= self._settings.worker_grace:
                    raise directory.no_worker(f"no worker was ready for {spec.id} for {self._settings.worker_grace:g} s", self._settings)
        finally:
            if not submitted.done():
                submitted.cancel()
                await asyncio.wait((submitted,))

    async def _has_worker(self, spec: BundleSpec) -> bool:
        try:
            return bool(directory.serving(await self._directory.fleet(), spec))
        except RedisAway:
            return True  # nobody knows; the dispatcher counts how long Redis is away

    def _count(self, replies: Sequence[Reply], spec: BundleSpec, timing: Timing) -> None:
        tokens = [reply.arrays["tokens"].to_numpy() for reply in replies]
        self._metrics.items.labels(spec.name, spec.version).inc(len(replies))
        self._metrics.tokens_in.labels(spec.name).inc(sum(int(pair[0]) for pair in tokens))
        self._metrics.tokens_out.labels(spec.name).inc(sum(int(pair[1]) for pair in tokens))
        self._metrics.preprocess.labels(spec.name).observe(timing.prepare_ms / 1000)
        self._metrics.queue_wait.labels(spec.name).observe(timing.queue_ms / 1000)


def _prepare(picture: bytes, spec: BundleSpec, decoder: images.Decoder) -> dict[str, Array] | images.ImageError:
    """In a thread. The error is returned, so that one bad image does not hide which one comes first."""
    try:
        return {name: Array.of(array) for name, array in Classify.prepare(picture, spec, decoder).items()}
    except images.ImageError as error:
        return error


def _timing(replies: Sequence[Reply], *, prepare: float, round_trip: float, total: float) -> Timing:
    """Of the slowest image, from seconds. Nothing but durations: no clock of the worker is compared with one of ours."""
    slowest = max((reply.timing for reply in replies if reply.timing is not None), key=lambda timing: timing.worker_ms)
    return Timing(
        prepare_ms=_milliseconds(prepare),
        queue_ms=max(0.0, round(round_trip * 1000 - slowest.worker_ms, 3)),
        batch_wait_ms=round(slowest.batch_wait_ms, 3),
        inference_ms=round(slowest.inference_ms, 3),
        total_ms=_milliseconds(total),
        batch_size=slowest.batch_size,
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _problem(failure: Failure, spec: BundleSpec, field: str) -> Problem:
    if failure.kind == "unloaded":
        return directory.unloaded(spec.name)
    return Problem(FAILURE_PROBLEMS.get(failure.kind, Kind.INTERNAL), failure.detail, field)
