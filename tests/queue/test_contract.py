"""The failure semantics of the service, as far as the queue keeps them: a test or more for each line of the contract in docs/queue.md."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import msgspec
import pytest
import redis

from server.queue.dispatch import DeadlinePassed, Dispatcher, QueueFull
from server.queue.job import Reply, ServedBundle, WorkerInfo
from server.queue.worker_side import Delivery, WorkerQueue
from tests.queue.harness import BUNDLE, QUICK_WORKER, Consumer, a_job, answer_of, ask, eventually, gateway

STREAM = f"queue:{BUNDLE}:normal"


@pytest.fixture
def db(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url, decode_responses=True, encoding_errors="replace") as client:
        yield client


@pytest.fixture
def worker(url: str) -> Iterator[WorkerQueue]:
    queue = WorkerQueue(url, "worker-under-test", QUICK_WORKER)
    yield queue
    queue.close()


def announce(queue: WorkerQueue, items_per_second: float = 0.0) -> None:
    name, version = BUNDLE.split("@")
    served = ServedBundle(name=name, version=version, task="classify", digest="0" * 64, state="ready", items_per_second=items_per_second)
    queue.announce(WorkerInfo(id=queue.id, host="test", pid=0, state="ready", device="cpu", bundles=[served]))


def nothing_is_left(db: redis.Redis) -> bool:
    streams = db.smembers("queues")
    empty = all(db.xlen(stream) == 0 and db.xpending(stream, "workers")["pending"] == 0 for stream in streams)
    leftovers = [key for kind in ("job", "blob", "deaths", "cancel") for key in db.scan_iter(f"{kind}:*")]
    return empty and not leftovers and int(db.get("queue:bytes") or 0) == 0


async def no_room(dispatcher: Dispatcher, items: int) -> bool:
    """A gateway sees what others queue at its next beat; the script that enqueues sees it at once."""
    try:
        async with dispatcher.reserve(items, 1):
            return False
    except QueueFull:
        return True


# 1. Reserve before reading


async def test_line_1_a_reservation_holds_its_place_until_it_is_released(url: str) -> None:
    async with gateway(url, queue_max_items=2, queue_max_bytes=1000) as us:
        async with us.reserve(1, 600):
            with pytest.raises(QueueFull):
                await us.reserve(1, 600).__aenter__()
            with pytest.raises(QueueFull):
                await us.reserve(2, 10).__aenter__()
            async with us.reserve(1, 400):
                pass
        async with us.reserve(2, 1000):
            pass


async def test_line_1_what_another_gateway_queued_counts_and_an_enqueued_reservation_does_not_count_twice(url: str) -> None:
    async with gateway(url, queue_max_items=2) as us, gateway(url, queue_max_items=2) as them:
        async with Consumer(url, "--hold") as consumer, us.reserve(1, 100) as reservation:
            running = asyncio.create_task(us.submit_all([await a_job(us, 7)], reservation=reservation))
            await consumer.next_batch()
            async with them.reserve(1, 100):
                pass
            await eventually(lambda: no_room(them, 2))
            consumer.release()
            assert [answer_of(reply) for reply in await running] == [7]
        async with them.reserve(2, 100):
            pass


async def test_line_1_retry_after_is_the_queue_over_the_announced_throughput(url: str, worker: WorkerQueue) -> None:
    async with gateway(url, queue_max_items=9) as us:
        jobs = [await a_job(us, value) for value in range(9)]
        waiting = asyncio.create_task(us.submit_all(jobs))
        await eventually(lambda: no_room(us, 1))
        announce(worker, items_per_second=4.0)
        await us.fleet(fresh=True)
        with pytest.raises(QueueFull) as refusal:
            await us.reserve(1, 1).__aenter__()
        assert refusal.value.retry_after == 3  # 9 jobs at 4 a second
        waiting.cancel()


# 2. Enqueue


async def test_line_2_a_job_that_is_there_is_not_queued_twice(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us:
        job = await a_job(us, 1)
        first = asyncio.create_task(us.submit_all([job]))
        await eventually(lambda: db.exists(f"job:{job.id}"))
        second = asyncio.create_task(us.submit_all([job]))
        await us.ping()
        assert db.xlen(STREAM) == 1
        assert 0 < db.pttl(f"job:{job.id}") <= 130_000
        first.cancel()
        second.cancel()


async def test_line_2_the_limit_holds_exactly_when_gateways_race(url: str, db: redis.Redis) -> None:
    async with gateway(url, queue_max_items=10) as us, gateway(url, queue_max_items=10) as them:
        jobs = [(dispatcher, await a_job(dispatcher, value)) for value in range(20) for dispatcher in (us, them)]
        requests = [asyncio.create_task(dispatcher.submit_all([job])) for dispatcher, job in jobs]
        await eventually(lambda: sum(request.done() for request in requests) == 30)
        assert all(isinstance(request.exception(), QueueFull) for request in requests if request.done())
        assert db.xlen(STREAM) == 10
        for request in requests:
            request.cancel()


async def test_line_2_the_images_of_a_request_are_queued_all_or_none(url: str, db: redis.Redis) -> None:
    async with gateway(url, queue_max_items=3) as us:
        with pytest.raises(QueueFull):
            await us.submit_all([await a_job(us, value) for value in range(4)])
        assert nothing_is_left(db)


async def test_line_2_the_limit_of_bytes_holds(url: str, db: redis.Redis) -> None:
    async with gateway(url, queue_max_bytes=10_000) as us:
        with pytest.raises(QueueFull):
            await us.submit_all([await a_job(us, 1, ballast=bytearray(10_000))])
        assert nothing_is_left(db)


async def test_line_2_a_redis_without_memory_is_a_full_queue_and_recovers(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us, Consumer(url, "--hold") as consumer:
        running = asyncio.create_task(ask(us, 5))
        await consumer.next_batch()
        db.config_set("maxmemory", 1)
        try:
            with pytest.raises(QueueFull):
                await ask(us, 6)
            consumer.release()
            assert await running == 5
        finally:
            db.config_set("maxmemory", 0)
        later = asyncio.create_task(ask(us, 7))
        await consumer.next_batch()
        consumer.release()
        assert await later == 7


# 3. Finish


async def test_line_3_a_finished_job_leaves_nothing_behind_but_its_statistics(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us:
        async with Consumer(url, "--pace", "0.01"):
            replies = await us.submit_all([await a_job(us, value, ballast=bytearray(300_000 * (value % 2))) for value in range(4)])
        assert [answer_of(reply) for reply in replies] == [0, 1, 2, 3]
        assert nothing_is_left(db)
        counts = await us.statistics(BUNDLE)
        assert counts["success_count"] == counts["inference_count"] == 4
        assert 1 <= counts["execution_count"] <= 4
        assert counts["compute_infer_ns"] >= 4 * 10_000_000
        assert (
            sum(value for name, value in counts.items() if name.startswith("batch:") and name.endswith(":count"))
            == counts["execution_count"]
        )


async def test_line_3_the_first_to_finish_wins_even_when_the_job_was_claimed_away(url: str, db: redis.Redis, worker: WorkerQueue) -> None:
    async with gateway(url) as us:
        request = asyncio.create_task(us.submit_all([await a_job(us, 3)]))
        slow = WorkerQueue(url, "slow", QUICK_WORKER)
        [taken] = await _pulled(slow)
        claimed = worker.reclaim([BUNDLE])  # `slow` has no key
        assert claimed is not None and claimed.alone and claimed.job.id == taken.job.id
        assert slow.finish([(taken, _echo(slow, taken))]) == [True]
        assert worker.finish([(claimed, _echo(worker, claimed))]) == [False]
        [reply] = await request
        assert reply.worker == "slow"
        assert (await us.statistics(BUNDLE))["success_count"] == 1
        assert nothing_is_left(db)


async def _pulled(queue: WorkerQueue, items: int = 16) -> list[Delivery]:
    return await asyncio.to_thread(queue.pull, [BUNDLE], items, 2000)


def _echo(queue: WorkerQueue, delivery: Delivery) -> Reply:
    return Reply(id=delivery.job.id, worker=queue.id, arrays={"x": delivery.job.arrays["x"]})


# 4. Alive


@pytest.mark.parametrize("hurt", ["kill", "freeze"])
async def test_line_4_jobs_survive_a_worker_that_is_killed_or_frozen_in_mid_batch(url: str, db: redis.Redis, hurt: str) -> None:
    async with gateway(url) as us:
        async with Consumer(url, "--hold") as unlucky:
            requests = [asyncio.create_task(ask(us, value)) for value in range(8)]
            await unlucky.next_batch()
            getattr(unlucky, hurt)()
            async with Consumer(url):
                assert await asyncio.gather(*requests) == list(range(8))
                await eventually(lambda: nothing_is_left(db))
                if hurt == "freeze":
                    unlucky.release()
                    unlucky.thaw()  # its late results are dropped
                    assert await ask(us, 9) == 9
                    unlucky.release()
        assert (await us.statistics(BUNDLE))["success_count"] == 8 + (hurt == "freeze")


async def test_line_4_nothing_is_claimed_from_a_worker_that_has_a_key_and_all_at_once_when_it_is_withdrawn(
    url: str, worker: WorkerQueue
) -> None:
    async with gateway(url) as us:
        request = asyncio.create_task(ask(us, 1))
        busy = WorkerQueue(url, "busy", QUICK_WORKER)
        announce(busy)
        [taken] = await _pulled(busy)
        announce(busy)
        assert worker.reclaim([BUNDLE]) is None
        busy.withdraw()
        claimed = worker.reclaim([BUNDLE])
        assert claimed is not None and claimed.job.id == taken.job.id
        worker.finish([(claimed, _echo(worker, claimed))])
        assert await request == 1


# 5. Reclaimed jobs run alone


async def test_line_5_a_poisonous_job_dies_alone_and_fifteen_innocents_are_answered(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us:
        jobs = [await a_job(us, value, **({"poison": 1} if value == 7 else {})) for value in range(16)]
        request = asyncio.create_task(us.submit_all(jobs))
        await eventually(lambda: db.exists(f"job:{jobs[0].id}"))
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
    """One consumer at a time, a new one whenever it dies. Returns what each of the dead did."""
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


async def test_line_5_a_hand_back_counts_no_death_and_wakes_another_worker(url: str, worker: WorkerQueue, db: redis.Redis) -> None:
    async with gateway(url) as us:
        request = asyncio.create_task(us.submit_all([await a_job(us, value) for value in range(3)]))
        leaving = WorkerQueue(url, "leaving", QUICK_WORKER)
        taken = await _pulled(leaving)
        waiting = asyncio.create_task(_pulled(worker))
        leaving.hand_back(taken)
        again = await waiting
        assert [delivery.job.id for delivery in again] == [delivery.job.id for delivery in taken]
        assert not any(delivery.alone for delivery in again)
        worker.finish([(delivery, _echo(worker, delivery)) for delivery in again])
        assert [answer_of(reply) for reply in await request] == [0, 1, 2]
        assert nothing_is_left(db)


async def test_line_5_a_suspect_that_is_handed_back_runs_alone_again_without_counting_a_death(url: str, worker: WorkerQueue) -> None:
    async with gateway(url) as us:
        request = asyncio.create_task(ask(us, 4))
        await _pulled(WorkerQueue(url, "died-in-a-batch", QUICK_WORKER))
        for _ in range(5):
            suspect = worker.reclaim([BUNDLE])
            assert suspect is not None and suspect.alone
            worker.hand_back([suspect])
        worker.finish([(suspect, _echo(worker, suspect))])
        last = worker.reclaim([BUNDLE])
        assert last is None
        assert await request == 4


async def test_line_5_a_dead_letter_is_answered_and_kept(url: str, worker: WorkerQueue, db: redis.Redis) -> None:
    async with gateway(url) as us:
        request = asyncio.create_task(us.submit_all([await a_job(us, 4)]))
        [taken] = await _pulled(worker)
        assert worker.dead_letter(taken, "ValueError: no", "model-error")
        [reply] = await request
        assert reply.failure is not None
        assert (reply.failure.kind, reply.failure.detail) == ("model-error", "ValueError: no")
        [(_, letter)] = db.xrange("dead")
        assert (letter["id"], letter["worker"], letter["reason"]) == (taken.job.id, worker.id, "ValueError: no")
        assert nothing_is_left(db)


# 7. Gateways


async def test_line_7_jobs_of_a_dead_gateway_are_dropped_at_pull(url: str, worker: WorkerQueue, db: redis.Redis) -> None:
    async with gateway(url) as us, gateway(url) as dead:
        requests = asyncio.create_task(dead.submit_all([await a_job(dead, value) for value in range(5)]))
        ours = asyncio.create_task(ask(us, 8))
        await eventually(lambda: db.xlen(STREAM) == 6)
        db.delete(f"gw:{dead.id}")
        [taken] = await _pulled(worker, 6)
        assert taken.job.gateway == us.id
        assert db.xlen(STREAM) == 1
        worker.finish([(taken, _echo(worker, taken))])
        assert await ours == 8
        requests.cancel()


async def test_line_7_a_gateway_has_a_new_id_each_time_and_its_reply_stream_is_trimmed_and_expires(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us, gateway(url) as them:
        assert us.id != them.id
        async with Consumer(url):
            for value in range(20):
                assert await ask(us, value) == value
        stream = f"replies:{us.id}"
        await eventually(lambda: db.xlen(stream) <= 1)
        assert 0 < db.ttl(stream) <= 60
        assert 0 < db.pttl(f"gw:{us.id}") <= 2000
    assert not db.exists(stream, f"gw:{us.id}")


# 8. Deadline and cancel


async def test_line_8_the_deadline_is_answered_by_the_gateway_and_the_job_is_cancelled(
    url: str, worker: WorkerQueue, db: redis.Redis
) -> None:
    async with gateway(url) as us:
        job = await a_job(us, 1, seconds=0.2)
        with pytest.raises(DeadlinePassed):
            await us.submit_all([job])
        await eventually(lambda: db.exists(f"cancel:{job.id}"))
        assert worker.pull([BUNDLE], 16) == []
        assert nothing_is_left(db)


async def test_line_8_a_client_that_leaves_is_cancelled_at_pull_and_right_before_the_batch(
    url: str, worker: WorkerQueue, db: redis.Redis
) -> None:
    async with gateway(url) as us:
        jobs = [await a_job(us, value) for value in range(3)]
        leaving_early, leaving_late, staying = [asyncio.create_task(us.submit_all([job])) for job in jobs]
        await eventually(lambda: db.xlen(STREAM) == 3)
        leaving_early.cancel()
        await eventually(lambda: db.exists(f"cancel:{jobs[0].id}"))
        taken = await _pulled(worker)
        assert {delivery.job.id for delivery in taken} == {jobs[1].id, jobs[2].id}
        leaving_late.cancel()
        await eventually(lambda: db.exists(f"cancel:{jobs[1].id}"))
        [wanted] = worker.still_wanted(taken)
        assert wanted.job.id == jobs[2].id
        worker.finish([(wanted, _echo(worker, wanted))])
        assert answer_of((await staying)[0]) == 2
        assert nothing_is_left(db)


async def test_line_8_a_late_reply_is_discarded(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us, Consumer(url, "--hold") as consumer:
        with pytest.raises(DeadlinePassed):
            await ask(us, 1, seconds=0.3)
        await consumer.next_batch()
        consumer.release()
        await eventually(lambda: db.xlen(STREAM) == 0)
        later = asyncio.create_task(ask(us, 2))
        await consumer.next_batch()
        consumer.release()
        assert await later == 2


async def test_line_8_full_recovery_after_four_in_five_clients_have_left(url: str, db: redis.Redis) -> None:
    chance = random.Random(0)
    async with gateway(url) as us:
        requests = [asyncio.create_task(ask(us, value)) for value in range(200)]
        leaving = set(chance.sample(range(200), 160))
        await eventually(lambda: db.xlen(STREAM) == 200)
        async with Consumer(url, "--pace", "0.02", "--batch", "4"):
            for value in leaving:
                requests[value].cancel()
            answers = await asyncio.gather(*requests, return_exceptions=True)
            assert [answers[value] for value in range(200) if value not in leaving] == [
                value for value in range(200) if value not in leaving
            ]
            await eventually(lambda: nothing_is_left(db))
            assert await asyncio.gather(*(ask(us, value) for value in range(20))) == list(range(20))


# 10. Payloads, versions, orphans


@pytest.mark.parametrize(("size", "beside"), [(200_000, 0), (300_000, 1)])
async def test_line_10_large_payloads_lie_beside_the_stream_and_go_with_the_job(url: str, db: redis.Redis, size: int, beside: int) -> None:
    async with gateway(url) as us:
        async with Consumer(url, "--hold") as consumer:
            job = await a_job(us, 6, ballast=bytearray(size))
            request = asyncio.create_task(us.submit_all([job]))
            await consumer.next_batch()
            assert db.exists(f"blob:{job.id}") == beside
            consumer.release()
            assert answer_of((await request)[0]) == 6
        assert nothing_is_left(db)


async def test_line_10_a_message_of_an_unknown_version_gets_an_error_reply(url: str, worker: WorkerQueue, db: redis.Redis) -> None:
    async with gateway(url) as us:
        job = msgspec.structs.replace(await a_job(us, 1), v=99)
        request = asyncio.create_task(us.submit_all([job]))
        await eventually(lambda: db.xlen(STREAM) == 1)
        assert worker.pull([BUNDLE], 1) == []
        [reply] = await request
        assert reply.failure is not None
        assert reply.failure.kind == "unknown-version"
        assert "99" in reply.failure.detail
        assert nothing_is_left(db)


async def test_line_10_the_janitor_removes_what_nobody_comes_back_for(url: str, worker: WorkerQueue, db: redis.Redis) -> None:
    async with gateway(url) as us:
        async with Consumer(url) as gone:
            assert await ask(us, 1) == 1
        await eventually(lambda: not db.exists(f"worker:{gone.id}"))
        db.set("blob:nobody", "x")
        db.hset("deaths:nobody", "count", 1)
        db.xadd("replies:nobody", {"id": "x", "reply": "y"})
        db.incrby("queue:bytes", 12345)
        stale = {"id": "stale", "gw": us.id, "until": "1000", "bytes": 1, "job": "x"}
        db.xadd("queue:unserved@1:low", stale)
        db.sadd("queues", "queue:unserved@1:low")
        assert worker.janitor()
        assert not WorkerQueue(url, "another", QUICK_WORKER).janitor()
        assert not db.exists("blob:nobody", "deaths:nobody")
        assert db.ttl("replies:nobody") > 0
        assert db.get("queue:bytes") == "0"
        assert db.xlen("queue:unserved@1:low") == 0
        assert db.smembers("workers") == set()
        assert db.xinfo_consumers(STREAM, "workers") == []
