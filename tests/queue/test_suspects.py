"""Workers record what they run: only that is suspected if they die, and deaths are counted only for jobs that ran alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest
import redis

from server.queue import keys
from server.queue.gateway.dispatcher import Dispatcher
from server.queue.messages import QueuedJob, Reply
from server.queue.worker.delivery import Delivery
from tests.support.queue import (
    QUEUE,
    QUICK_WORKER,
    SILENT_GATEWAY,
    WorkerQueue,
    a_job,
    announce,
    answer_of,
    echo,
    gateway,
    nothing_is_left,
    pull_one,
    running,
    worker_queue,
)
from tests.support.waiting import eventually_async


@pytest.fixture
def victim(url: str) -> Iterator[WorkerQueue]:
    """Worker without a key, which counts as dead for all others."""
    queue = worker_queue(url, "victim", QUICK_WORKER)
    yield queue
    queue.close()


async def submit_jobs(us: Dispatcher, count: int) -> tuple[list[QueuedJob], asyncio.Task[list[Reply]]]:
    jobs = [await a_job(us, value) for value in range(count)]
    return jobs, asyncio.create_task(us.submitter.submit(jobs))


async def test_only_running_jobs_are_suspected_and_others_keep_time(
    url: str, db: redis.Redis, victim: WorkerQueue, worker: WorkerQueue
) -> None:
    async with gateway(url) as us:
        _, request = await submit_jobs(us, 6)
        taken = await pull_one(victim)
        assert victim.start(taken[:4], 0) == taken[:4]  # in one slot …
        assert victim.start(taken[1:3], 0) == taken[1:3]  # … which goes on with these
        victim.start(taken[3:4], 1)
        suspects = [worker.intake.reclaim([QUEUE]) for _ in range(4)]
        assert [suspect and suspect.job.id for suspect in suspects] == [taken[i].job.id for i in (1, 2, 3)] + [None]
        innocent = worker.pull([QUEUE], 16)
        assert {job.job.id for job in innocent} == {taken[i].job.id for i in (0, 4, 5)}
        assert [job.added_ms for job in innocent] == [job.added_ms for job in (taken[0], taken[4], taken[5])]
        assert not any(job.alone for job in innocent)
        deliveries = [*innocent, *(suspect for suspect in suspects if suspect)]
        worker.acks.finish([(delivery, echo(worker, delivery)) for delivery in deliveries])
        assert sorted(answer_of(reply) for reply in await request) == list(range(6))
        assert nothing_is_left(db)


@pytest.mark.parametrize("ended", [True, False])
async def test_idle_death_of_worker_suspects_no_job(url: str, victim: WorkerQueue, worker: WorkerQueue, ended: bool) -> None:
    async with gateway(url) as us:
        _, request = await submit_jobs(us, 3)
        taken = await pull_one(victim)
        if ended:
            victim.start(taken, 0)
            victim.intake.end(0)
        assert worker.intake.reclaim([QUEUE]) is None
        again = worker.pull([QUEUE], 16)
        assert [job.job.id for job in again] == [job.job.id for job in taken]
        request.cancel()


async def test_third_death_in_own_step_makes_dead_letter(url: str, db: redis.Redis, worker: WorkerQueue) -> None:
    async with gateway(url) as us:
        [job], request = await submit_jobs(us, 1)
        first = worker_queue(url, "in-company", QUICK_WORKER)
        await running(first)
        for life in range(4):
            unlucky = worker_queue(url, f"unlucky-{life}", QUICK_WORKER)
            suspect = unlucky.intake.reclaim([QUEUE])
            assert suspect is not None and suspect.alone
            unlucky.start([suspect], 0)
            if life == 1:
                unlucky.intake.end(0)  # it dies while others run
            assert int(db.get(f"deaths:{job.id}") or 0) == (0, 1, 1, 2)[life]
        assert worker.intake.reclaim([QUEUE]) is None
        [reply] = await request
        assert reply.failure is not None and reply.failure.kind == "worker-crashed"
        [(_, letter)] = db.xrange(keys.DEAD)
        assert letter["id"] == job.id
        assert nothing_is_left(db)


async def test_suspect_stays_one_after_a_worker_that_never_ran_it(url: str, worker: WorkerQueue) -> None:
    async with gateway(url) as us:
        _, request = await submit_jobs(us, 1)
        first = worker_queue(url, "in-company", QUICK_WORKER)
        await running(first)
        resting = worker_queue(url, "resting", QUICK_WORKER)
        assert resting.intake.reclaim([QUEUE]) is not None  # and dies before it runs
        again = worker.intake.reclaim([QUEUE])
        assert again is not None and again.alone
        request.cancel()


async def test_start_omits_ended_jobs_and_does_not_record_them(url: str, db: redis.Redis, victim: WorkerQueue, worker: WorkerQueue) -> None:
    async with gateway(url) as us, gateway(url, SILENT_GATEWAY) as them:
        jobs = [await a_job(us, 0), await a_job(us, 1), await a_job(us, 2), await a_job(them, 3), await a_job(us, 4)]
        requests = [asyncio.create_task((them if i == 3 else us).submitter.submit([job])) for i, job in enumerate(jobs)]
        taken: list[Delivery] = []
        while len(taken) < 5:
            taken += await pull_one(victim)
        db.set(f"cancel:{jobs[1].id}", "1")
        now = int(us.link.now_ms())
        taken = [late(job, now) if job.job.id == jobs[2].id else job for job in taken]
        other = next(job for job in taken if job.job.id == jobs[4].id)
        worker.acks.finish([(other, echo(worker, other))])
        db.delete(f"gw:{them.id}")
        accepted = victim.start(taken, 0)
        assert [job.job.id for job in accepted] == [jobs[0].id]
        suspect = worker.intake.reclaim([QUEUE])
        assert suspect is not None and suspect.job.id == jobs[0].id
        assert worker.intake.reclaim([QUEUE]) is None
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)


@pytest.mark.parametrize("forgotten", [False, True])
async def test_started_jobs_are_recorded_even_if_cancelled(
    url: str, db: redis.Redis, victim: WorkerQueue, worker: WorkerQueue, forgotten: bool
) -> None:
    async with gateway(url) as us:
        jobs, request = await submit_jobs(us, 3)
        taken = await pull_one(victim)
        db.set(f"cancel:{jobs[1].id}", "1")
        if forgotten:
            db.script_flush()  # as a Redis that restarted
        answer = victim.intake.send_step(taken, 0)
        await eventually_async(lambda: db.hexists(keys.suspects("victim"), "0"))
        accepted = answer()
        assert [job.job.id for job in accepted] == [jobs[0].id, jobs[2].id]
        suspects = [worker.intake.reclaim([QUEUE]) for _ in range(3)]
        assert [suspect and suspect.job.id for suspect in suspects] == [jobs[0].id, jobs[2].id, None]
        request.cancel()


@pytest.mark.parametrize("max_memory", [0, 1])
async def test_immediate_start_is_recorded_by_redis_without_memory(
    url: str, db: redis.Redis, victim: WorkerQueue, worker: WorkerQueue, max_memory: int
) -> None:
    async with gateway(url) as us:
        jobs, request = await submit_jobs(us, 2)
        taken = await pull_one(victim)
        db.config_set("maxmemory", max_memory)
        try:
            announce(victim)
            accepted = victim.intake.send_step(taken[:1], 0, checked=True)
            await eventually_async(lambda: db.hexists(keys.suspects("victim"), "0"))
            assert accepted() == taken[:1]
            announce(victim)
            assert 0 < db.ttl(keys.suspects("victim")) <= 3600
            victim.withdraw()
            suspects = [worker.intake.reclaim([QUEUE]) for _ in range(2)]
            assert [suspect and suspect.job.id for suspect in suspects] == [jobs[0].id, None]
        finally:
            db.config_set("maxmemory", 0)
        request.cancel()


async def test_record_of_worker_dead_before_its_next_beat_expires(url: str, db: redis.Redis, victim: WorkerQueue) -> None:
    announce(victim)
    victim.intake.end(0)
    await eventually_async(lambda: db.exists(keys.suspects("victim")))
    victim.withdraw()
    while not victim.janitor():
        pass
    assert 0 < db.ttl(keys.suspects("victim")) <= 3600


def late(delivery: Delivery, now_ms: int) -> Delivery:
    """Return the delivery with a deadline in the past."""
    return replace(delivery, job=msgspec.structs.replace(delivery.job, deadline_ms=now_ms - 1))
