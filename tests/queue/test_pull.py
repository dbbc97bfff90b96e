"""Which job a worker gets next, and that each request gets its own answer."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from models.bundle import BundleSpec
from models.bundle_schema import FileDigest, Preprocess
from server.queue import keys
from server.queue.gateway.dispatcher import Dispatcher
from server.queue.messages import Priority, ServedBundle, WorkerInfo
from server.queue.worker.connection import WorkerTimings
from tests.support.queue import (
    BUNDLE,
    DIGEST,
    QUEUE,
    STREAM,
    Consumer,
    WorkerQueue,
    a_job,
    age_low_job,
    ask,
    gateway,
    redis_at,
    worker_queue,
)
from tests.support.waiting import eventually_async

A, B = keys.queue("a@1", DIGEST), keys.queue("b@1", DIGEST)


async def enqueue(dispatcher: Dispatcher, *kinds: tuple[str, Priority], before: int = 0) -> asyncio.Task[object]:
    """Queue a job for each (bundle, priority) in this order. `before` is the number of jobs in the queue."""
    jobs = [await a_job(dispatcher, number, bundle=bundle, priority=priority) for number, (bundle, priority) in enumerate(kinds)]

    async def submit() -> None:
        await asyncio.gather(*(dispatcher.submitter.submit([job]) for job in jobs))

    task = asyncio.create_task(submit())
    await eventually_async(lambda: _depth_is(dispatcher, before + len(jobs)))
    return task


async def _depth_is(dispatcher: Dispatcher, items: int) -> bool:
    return sum(queue.items for queue in await dispatcher.queues()) == items


def priorities(queue: WorkerQueue, items: int, queues: tuple[str, ...] = (QUEUE,)) -> list[str]:
    return [delivery.job.priority for delivery in queue.pull(queues, items)]


async def test_more_urgent_jobs_go_first(url: str) -> None:
    queue = worker_queue(url, "w")
    async with gateway(url) as us:
        waiting = await enqueue(us, (BUNDLE, "low"), (BUNDLE, "normal"), (BUNDLE, "high"), (BUNDLE, "normal"), (BUNDLE, "high"))
        assert priorities(queue, 3) == ["high", "high", "normal"]
        assert priorities(queue, 3) == ["normal", "low"]
        waiting.cancel()


@pytest.mark.parametrize(("waited", "first"), [(9_000, "high"), (11_000, "low")])
async def test_low_job_precedes_high_one_of_ten_seconds_later(url: str, waited: int, first: str) -> None:
    async with gateway(url) as us:
        waiting = await enqueue(us, (BUNDLE, "low"), (BUNDLE, "high"))
        age_low_job(url, waited)
        queue = worker_queue(url, "w")
        assert priorities(queue, 1) == [first]
        assert len(priorities(queue, 1)) == 1
        waiting.cancel()


@pytest.mark.parametrize(("waited", "first"), [(29_000, "high"), (31_000, "low")])
async def test_a_job_that_is_behind_waits_longer(url: str, waited: int, first: str) -> None:
    async with gateway(url) as us:
        jobs = [await a_job(us, priority="low", behind_ms=20_000), await a_job(us, priority="high")]
        waiting = asyncio.create_task(us.submitter.submit(jobs))
        await eventually_async(lambda: _depth_is(us, 2))
        age_low_job(url, waited)
        queue = worker_queue(url, "w")
        assert priorities(queue, 1) == [first]
        [last] = queue.pull([QUEUE], 1)
        assert last.due == pytest.approx(last.queued_at + (30 if first == "high" else 0)), "the worker knows it, too"
        waiting.cancel()


async def test_returned_job_keeps_priority_and_place(url: str) -> None:
    leaving, staying = worker_queue(url, "leaving"), worker_queue(url, "staying")
    async with gateway(url) as us:
        early = await enqueue(us, (BUNDLE, "normal"))
        [taken] = leaving.pull([QUEUE], 1)
        late = await enqueue(us, (BUNDLE, "normal"), (BUNDLE, "high"), before=1)
        leaving.intake.return_to_queue([taken])
        [high], [again], [last] = (staying.pull([QUEUE], 1) for _ in range(3))
        assert [high.job.priority, again.job.priority, last.job.priority] == ["high", "normal", "normal"]
        assert again.job.id == taken.job.id
        assert again.added_ms == taken.added_ms
        assert again.stream == f"{STREAM}:back"
        staying.intake.return_to_queue([again])  # once more, from the stream of what was handed back
        [and_again] = staying.pull([QUEUE], 1)
        assert (and_again.job.id, and_again.stream, and_again.added_ms) == (taken.job.id, again.stream, taken.added_ms)
        assert {(queue.bundle, queue.priority): queue.items for queue in await us.queues()} == {(BUNDLE, "normal"): 2, (BUNDLE, "high"): 1}
        early.cancel()
        late.cancel()


async def test_worker_gets_requested_count_over_all_bundles(url: str) -> None:
    queue = worker_queue(url, "w")
    async with gateway(url) as us:
        waiting = await enqueue(us, *[(bundle, priority) for bundle in ("a@1", "b@1") for priority in ("high", "normal", "low")] * 2)
        assert len(queue.pull([A, B], 7)) == 7
        assert len(queue.pull([A, B], 7)) == 5
        assert queue.pull([A, B], 7) == []
        waiting.cancel()


async def test_queue_with_own_budget_takes_nothing_from_others(url: str) -> None:
    queue = worker_queue(url, "w")
    async with gateway(url) as us:
        waiting = await enqueue(us, *[(bundle, "normal") for bundle in ("a@1", "b@1") for _ in range(5)])
        assert [delivery.bundle for delivery in queue.pull([A, B], 3, ours={B: 0})] == ["a@1"] * 3
        assert sorted(delivery.bundle for delivery in queue.pull([A, B], 1, ours={B: 4})) == ["a@1"] + ["b@1"] * 4
        assert [delivery.bundle for delivery in queue.pull([A, B], 0, ours={B: 4})] == ["b@1"]
        waiting.cancel()


def test_worker_without_capacity_waits_instead_of_polling(url: str) -> None:
    queue = worker_queue(url, "w")
    started_at = time.monotonic()
    assert queue.pull([A], 1, 50, ours={A: 0}) == []
    assert time.monotonic() - started_at >= 0.05


async def test_waiting_worker_ignores_full_queue_and_takes_what_fits(url: str) -> None:
    queue = worker_queue(url, "w")
    async with gateway(url) as us:
        await asyncio.to_thread(queue.pull, [A, B], 1, 10)  # from here on it waits in a blocking read
        without_room = asyncio.create_task(asyncio.to_thread(queue.pull, [A, B], 1, 2000, {B: 0}))
        with redis_at(url) as client:
            await eventually_async(lambda: client.info("clients")["blocked_clients"] >= 2)
        waiting = await enqueue(us, *[("b@1", "normal")] * 3)
        assert await without_room == []
        late = await enqueue(us, *[("a@1", "normal")] * 3, before=3)
        taken = await asyncio.to_thread(queue.pull, [A, B], 2, 1000, {B: 1})
        assert sorted(delivery.bundle for delivery in taken) == ["a@1", "b@1"]  # of each stream what fits into every room
        waiting.cancel()
        late.cancel()


async def test_waiting_worker_is_woken_by_job_of_any_bundle(url: str) -> None:
    queue = worker_queue(url, "w")
    async with gateway(url) as us:
        waiting_worker = asyncio.create_task(asyncio.to_thread(queue.pull, [A, B], 4, 2000))
        with redis_at(url) as client:
            await eventually_async(lambda: client.info("clients")["blocked_clients"] >= 2)  # the worker and our reply reader
        waiting = await enqueue(us, ("b@1", "low"))
        [delivery] = await waiting_worker
        assert delivery.job.bundle == "b@1"
        waiting.cancel()


async def test_workers_get_only_jobs_of_their_bundle_content(url: str) -> None:
    ours, theirs = "a" * 64, "b" * 64
    us_worker, their_worker = worker_queue(url, "ours"), worker_queue(url, "theirs")
    async with gateway(url) as us:
        jobs = [await a_job(us, value, digest=digest) for value, digest in enumerate((ours, theirs, ours))]
        requests = [asyncio.create_task(us.submitter.submit([job])) for job in jobs]
        await eventually_async(lambda: _depth_is(us, 3))
        assert {delivery.job.id for delivery in us_worker.pull([keys.queue(BUNDLE, ours)], 9)} == {jobs[0].id, jobs[2].id}
        assert [delivery.job.id for delivery in their_worker.pull([keys.queue(BUNDLE, theirs)], 9)] == [jobs[1].id]
        for request in requests:
            request.cancel()


async def test_workers_do_not_get_jobs_of_bundles_they_do_not_serve(url: str) -> None:
    async with gateway(url) as us:
        waiting = await enqueue(us, ("a@1", "normal"))
        assert worker_queue(url, "w").pull([B], 4) == []
        waiting.cancel()


async def test_a_stray_entry_in_a_work_stream_is_removed(url: str) -> None:
    with redis_at(url) as client:
        client.xadd(STREAM, {"what": "is this"})
        client.sadd("queues", STREAM)
        assert worker_queue(url, "w").pull([QUEUE], 4) == []
        assert client.xlen(STREAM) == 0


async def test_two_hundred_jobs_of_two_gateways_get_their_answers(url: str) -> None:
    async with gateway(url) as us, gateway(url) as them, Consumer(url, "--batch", "8"), Consumer(url, "--batch", "8"):
        answers = await asyncio.gather(*(ask(dispatcher, value) for value in range(100) for dispatcher in (us, them)))
    assert answers == [value for value in range(100) for _ in (us, them)]


async def test_one_worker_queue_serves_several_threads(url: str) -> None:
    queue = worker_queue(url, "w")
    async with gateway(url) as us:
        waiting = await enqueue(us, *[(BUNDLE, "normal")] * 40)
        ids: list[str] = []
        threads = [threading.Thread(target=lambda: ids.extend(job.job.id for job in queue.pull([QUEUE], 5))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ids) == len(set(ids)) == 40
        waiting.cancel()


async def test_fleet_lists_live_workers_specs_and_operator_orders(url: str) -> None:
    queue = worker_queue(url, "w", WorkerTimings(key_ttl=60.0))
    preprocess = Preprocess(image_size=8, short_side=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    weights = FileDigest(sha256="0" * 64, bytes=0)
    spec = BundleSpec(
        name="echo",
        version="1",
        task="classify",
        architecture="null",
        config={},
        preprocess=preprocess,
        labels=["a"],
        license="CC0-1.0",
        weights=weights,
    )
    async with gateway(url) as us:
        digest = queue.publish_spec(spec)
        served = ServedBundle(name="echo", version="1", task="classify", digest=digest, state="ready", items_per_second=12.5)
        info = WorkerInfo(id="w", host="h", pid=1, state="ready", device="cpu", bundles=[served])
        with redis_at(url) as operator:
            operator.flushall()
        queue.announce(info)  # as after a restart of Redis: the specs come back with the worker
        await us.fleet.set_repository("echo", "unloaded")
        fleet = await us.fleet.read(fresh=True)
        assert fleet.workers == (info,)
        assert fleet.specs == {("echo", "1"): spec}
        assert fleet.repository["echo"] == queue.repository()[0]["echo"] == "unloaded"
        assert fleet.work_ms("echo@1", None, takes_long=True) == 80  # 12.5 a second
        with redis_at(url) as operator:
            assert operator.pexpire(keys.worker("w"), 1)

        async def gone() -> bool:
            return not (await us.fleet.read(fresh=True)).workers

        await eventually_async(gone)
        assert ("echo", "1") in (await us.fleet.read()).specs  # known, so that requests wait for the next worker


@pytest.mark.parametrize("size", [0, 3])
async def test_depth_counts_unfinished_jobs_by_bundle_and_priority(url: str, size: int) -> None:
    async with gateway(url) as us:
        waiting = await enqueue(us, *[(BUNDLE, "high")] * size)
        assert {(queue.bundle, queue.priority): queue.items for queue in await us.queues()} == ({(BUNDLE, "high"): size} if size else {})
        waiting.cancel()
