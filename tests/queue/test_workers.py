"""Lines 3, 4 and 5 of the contract in docs/queue.md: workers finish, die, freeze, and are killed by what they eat."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import redis

from server.queue.messages import Reply
from tests.support.queue import (
    BUNDLE,
    LASTING_WORKER,
    QUEUE,
    QUICK_GATEWAY,
    QUICK_WORKER,
    STREAM,
    Consumer,
    WorkerQueue,
    a_job,
    announce,
    answer_of,
    ask,
    echo,
    gateway,
    nothing_is_left,
    pull_one,
    redis_at,
    running,
    worker_queue,
)
from tests.support.waiting import eventually_async


@pytest.mark.queue_line(3)
async def test_finished_job_leaves_only_statistics(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us:
        async with Consumer(url, "--pace", "0.01"):
            replies = await us.submitter.submit([await a_job(us, value, ballast=bytearray(300_000 * (value % 2))) for value in range(4)])
        assert [answer_of(reply) for reply in replies] == [0, 1, 2, 3]
        assert nothing_is_left(db)
        counts = await us.status.statistics(BUNDLE)
        assert counts["success_count"] == counts["inference_count"] == 4
        assert 1 <= counts["execution_count"] <= 4
        assert counts["compute_infer_ns"] >= 4 * 10_000_000
        assert (
            sum(value for name, value in counts.items() if name.startswith("batch:") and name.endswith(":count"))
            == counts["execution_count"]
        )


@pytest.mark.queue_line(3)
async def test_replies_of_a_batch_are_one_entry(url: str, worker: WorkerQueue) -> None:
    async with gateway(url, replace(QUICK_GATEWAY, beat=60.0)) as us:
        request = asyncio.create_task(us.submitter.submit([await a_job(us, value) for value in range(3)]))
        taken = await pull_one(worker)
        worker.acks.finish([(delivery, echo(worker, delivery)) for delivery in taken])
        assert [answer_of(reply) for reply in await request] == [0, 1, 2]
        with redis_at(url) as raw:
            assert raw.xlen(f"replies:{us.id}") == 1


@pytest.mark.queue_line(3)
async def test_first_to_finish_wins_even_if_job_was_claimed(url: str, db: redis.Redis, worker: WorkerQueue) -> None:
    async with gateway(url) as us:
        request = asyncio.create_task(us.submitter.submit([await a_job(us, 3)]))
        slow = worker_queue(url, "slow", QUICK_WORKER)
        [taken] = await running(slow)
        claimed = worker.intake.reclaim([QUEUE])  # `slow` has no key
        assert claimed is not None and claimed.alone and claimed.job.id == taken.job.id
        assert slow.acks.finish([(taken, echo(slow, taken))]) == [True]
        assert worker.acks.finish([(claimed, echo(worker, claimed))]) == [False]
        [reply] = await request
        assert reply.worker == "slow"
        assert (await us.status.statistics(BUNDLE))["success_count"] == 1
        assert nothing_is_left(db)


@pytest.mark.queue_line(4)
@pytest.mark.parametrize("hurt", ["kill", "freeze"])
async def test_jobs_survive_worker_killed_or_frozen_mid_batch(url: str, db: redis.Redis, hurt: str) -> None:
    async with gateway(url) as us:
        async with Consumer(url, "--hold") as unlucky:
            requests = [asyncio.create_task(ask(us, value)) for value in range(8)]
            await unlucky.next_batch()
            getattr(unlucky, hurt)()
            async with Consumer(url):
                assert await asyncio.gather(*requests) == list(range(8))
                await eventually_async(lambda: nothing_is_left(db))
                if hurt == "freeze":
                    unlucky.release()
                    unlucky.thaw()  # its late results are dropped
                    assert await ask(us, 9) == 9
                    unlucky.release()
        assert (await us.status.statistics(BUNDLE))["success_count"] == 8 + (hurt == "freeze")


@pytest.mark.queue_line(4)
async def test_jobs_are_claimed_only_from_withdrawn_worker_and_at_once(url: str, worker: WorkerQueue) -> None:
    async with gateway(url) as us:
        request = asyncio.create_task(ask(us, 1))
        busy = worker_queue(url, "busy", LASTING_WORKER)
        announce(busy)
        [taken] = await running(busy)
        assert worker.intake.reclaim([QUEUE]) is None
        busy.withdraw()
        claimed = worker.intake.reclaim([QUEUE])
        assert claimed is not None and claimed.job.id == taken.job.id
        worker.acks.finish([(claimed, echo(worker, claimed))])
        assert await request == 1


@pytest.mark.queue_line(5)
async def test_poison_job_fails_alone(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us:
        jobs = [await a_job(us, value, **({"poison": 1} if value == 7 else {})) for value in range(16)]
        request = asyncio.create_task(us.submitter.submit(jobs))
        await eventually_async(lambda: db.exists(f"job:{jobs[0].id}"))
        lives = await _restart_consumers_until(request, url)
        replies = await request

    failed = [(index, reply.failure.kind) for index, reply in enumerate(replies) if reply.failure]
    assert failed == [(7, "worker-crashed")]
    assert [answer_of(reply) for index, reply in enumerate(replies) if index != 7] == [value for value in range(16) if value != 7]
    assert lives[0][0] == "batch 16"
    assert sum(life[-1] == "alone" for life in lives) == 3
    assert len(lives) == 4  # deaths: one with the others, three alone
    [(_, letter)] = db.xrange("dead")
    assert (letter["id"], letter["stream"]) == (jobs[7].id, STREAM)
    assert nothing_is_left(db)


async def _restart_consumers_until(done: asyncio.Task[list[Reply]], url: str) -> list[list[str]]:
    """Run one consumer at a time, a new one whenever it dies. Returns the batches of each dead one."""
    lives: list[list[str]] = []
    while True:
        async with Consumer(url) as consumer:
            life: list[str] = []
            while not done.done():
                batch = asyncio.create_task(consumer.next_batch())
                await asyncio.wait([batch, done], return_when=asyncio.FIRST_COMPLETED)
                if done.done():
                    consumer.kill()
                    await batch
                    return lives
                if not batch.result():
                    break
                life.append(batch.result())
        lives.append(life)


@pytest.mark.queue_line(5)
async def test_hand_back_counts_no_death_and_wakes_another_worker(url: str, worker: WorkerQueue, db: redis.Redis) -> None:
    async with gateway(url) as us:
        request = asyncio.create_task(us.submitter.submit([await a_job(us, value) for value in range(3)]))
        leaving = worker_queue(url, "leaving", QUICK_WORKER)
        taken = await pull_one(leaving)
        waiting = asyncio.create_task(pull_one(worker))
        leaving.intake.return_to_queue(taken)
        again = await waiting
        assert [delivery.job.id for delivery in again] == [delivery.job.id for delivery in taken]
        assert not any(delivery.alone for delivery in again)
        worker.acks.finish([(delivery, echo(worker, delivery)) for delivery in again])
        assert [answer_of(reply) for reply in await request] == [0, 1, 2]
        assert nothing_is_left(db)


@pytest.mark.queue_line(5)
async def test_returned_suspect_runs_alone_again_without_a_death(url: str, worker: WorkerQueue) -> None:
    async with gateway(url) as us:
        request = asyncio.create_task(ask(us, 4))
        await running(worker_queue(url, "died-in-a-batch", QUICK_WORKER))
        for _ in range(5):
            suspect = worker.intake.reclaim([QUEUE])
            assert suspect is not None and suspect.alone
            worker.intake.return_to_queue([suspect])
        worker.acks.finish([(suspect, echo(worker, suspect))])
        last = worker.intake.reclaim([QUEUE])
        assert last is None
        assert await request == 4


@pytest.mark.queue_line(5)
async def test_dead_letter_is_answered_and_kept(url: str, worker: WorkerQueue, db: redis.Redis) -> None:
    async with gateway(url) as us:
        request = asyncio.create_task(us.submitter.submit([await a_job(us, 4)]))
        [taken] = await pull_one(worker)
        assert worker.acks.dead_letter(taken, "ValueError: no", "model-error")
        [reply] = await request
        assert reply.failure is not None
        assert (reply.failure.kind, reply.failure.detail) == ("model-error", "ValueError: no")
        [(_, letter)] = db.xrange("dead")
        assert (letter["id"], letter["worker"], letter["reason"]) == (taken.job.id, worker.id, "ValueError: no")
        assert [letter.reason for letter in (await us.status.read()).letters] == ["ValueError: no"]
        assert (await us.status.read(0, 0, 0)).letters == []
        assert nothing_is_left(db)
