"""Jobs of several steps in a worker process, against a real queue."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import redis

from server.queue import keys
from server.queue.messages import Progress, QueuedJob, Reply
from server.supervisor.private_valkey import PrivateValkey
from tests.support.bundles.vit import answer_alone, pixels, steps_of, write_null, write_toy
from tests.support.live_service import GatewayEnd, forget_worker, gateway, worker_process
from tests.support.redis import CellRedis
from tests.support.waiting import eventually_async

SLOW_MS = 20.0


def toy_job(asking: GatewayEnd, number: int, choice: int, **fields: Any) -> QueuedJob:
    return asking.job("toy@1", pixels(number, choice), options={"seed": number}, **fields)


def same(reply: Reply, expected: np.ndarray) -> None:
    assert reply.failure is None, reply.failure
    np.testing.assert_allclose(reply.arrays["logits"].to_numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("slots", [1, 2])
async def test_jobs_of_mixed_lengths_get_same_answers_as_alone(valkey: PrivateValkey, tmp_path: Path, slots: int) -> None:
    model, _ = steps_of(write_toy(tmp_path / "quick", steps=(1, 10, 50))), write_toy(tmp_path, milliseconds=1, steps=(1, 10, 50))
    with worker_process(valkey.url, tmp_path, threads=slots):
        async with gateway(valkey.url) as asking:
            [info] = await asking.ready()
            assert [bundle.unit for bundle in info.bundles] == ["steps"]
            replies = await asyncio.gather(*(asking.ask(toy_job(asking, number, number % 3)) for number in range(60)))
    for number, reply in enumerate(replies):
        same(reply, answer_alone(model, pixels(number, number % 3), seed=number)["logits"])
    assert max(reply.timing.batch_size for reply in replies if reply.timing) > 1


async def test_progress_starts_at_zero_and_precedes_answer(valkey: PrivateValkey, tmp_path: Path) -> None:
    write_toy(tmp_path, milliseconds=SLOW_MS, steps=(40,))
    reports: list[Progress] = []
    with worker_process(valkey.url, tmp_path):
        async with gateway(valkey.url) as asking:
            await asking.ready()
            jobs = [toy_job(asking, 1, 0, progress=True, previews=True), toy_job(asking, 2, 0)]
            replies = await asking.dispatcher.submitter.submit(jobs, on_progress=reports.append)
    assert [reply.failure for reply in replies] == [None, None]
    assert {progress.id for progress in reports} == {jobs[0].id}
    assert (reports[0].done, reports[0].total) == (0, 0), "it starts"
    del reports[0]
    assert (reports[0].done, reports[0].total, reports[0].unit, reports[0].preview) == (0, 40, "steps", {})
    done = [progress.done for progress in reports]
    assert done == sorted(set(done)) and 1 < len(done) < 40
    assert all("logits" in progress.preview for progress in reports[1:])


async def test_cancelled_job_stops_before_next_step_without_trace(valkey: PrivateValkey, tmp_path: Path) -> None:
    write_toy(tmp_path, milliseconds=SLOW_MS, steps=(10_000, 5))
    with worker_process(valkey.url, tmp_path):
        async with gateway(valkey.url) as asking:
            await asking.ready()
            with CellRedis.from_url(valkey.url) as client:
                endless = asyncio.create_task(asking.ask(toy_job(asking, 1, 0)))
                await eventually_async(lambda: running(client), "it takes steps")
                endless.cancel()
                await eventually_async(lambda: not list(client.scan_iter("job:*")), "it is gone")
            assert (await asking.ask(toy_job(asking, 2, 1))).failure is None


async def test_a_deadline_ends_a_job_between_two_steps(valkey: PrivateValkey, tmp_path: Path) -> None:
    write_toy(tmp_path, milliseconds=SLOW_MS, steps=(10_000,))
    with worker_process(valkey.url, tmp_path):
        async with gateway(valkey.url) as asking:
            await asking.ready()
            with CellRedis.from_url(valkey.url) as client:
                reply_task = asyncio.create_task(asking.ask(toy_job(asking, 1, 0, seconds=2.0)))
                await eventually_async(lambda: running(client), "it takes steps")
                reply = await reply_task
                assert reply.failure is not None and reply.failure.kind == "deadline"
                await eventually_async(lambda: not running(client), "it has stopped")


async def test_classification_does_not_wait_for_long_job(valkey: PrivateValkey, tmp_path: Path) -> None:
    write_toy(tmp_path, milliseconds=SLOW_MS, steps=(10_000,))
    write_null(tmp_path, milliseconds=1)
    with worker_process(valkey.url, tmp_path):
        async with gateway(valkey.url) as asking:
            await asking.ready()
            endless = asyncio.create_task(asking.ask(toy_job(asking, 1, 0)))
            with CellRedis.from_url(valkey.url) as client:
                await eventually_async(lambda: running(client), "it takes steps")
            replies = await asyncio.gather(*(asking.ask(asking.job("null@1")) for _ in range(5)))
            assert [reply.failure for reply in replies] == [None] * 5
            assert not endless.done()
            endless.cancel()


async def test_sigterm_finishes_short_jobs_and_hands_back_long_ones(valkey: PrivateValkey, tmp_path: Path) -> None:
    model, _ = steps_of(write_toy(tmp_path / "quick", steps=(15, 250))), write_toy(tmp_path, milliseconds=10, steps=(15, 250))
    with worker_process(valkey.url, tmp_path, drain_timeout=1.5) as first:
        async with gateway(valkey.url) as asking:
            await asking.ready()
            short, long = (asyncio.create_task(asking.ask(toy_job(asking, number, number))) for number in (0, 1))
            with CellRedis.from_url(valkey.url) as client:
                await eventually_async(lambda: len(running(client)) == 2 or short.done(), "both take steps")
                first.send_signal(signal.SIGTERM)
                await eventually_async(lambda: first.poll() is not None, "the first worker has ended")
                assert first.returncode == 0
                assert short.done() and not long.done()
                assert not list(client.scan_iter("deaths:*"))
                assert sum(client.xlen(back) for back in client.scan_iter("queue:*:back")) == 1
            with worker_process(valkey.url, tmp_path):
                same(await long, answer_alone(model, pixels(1, 1), seed=1)["logits"])
            same(await short, answer_alone(model, pixels(0, 0), seed=0)["logits"])


async def test_a_second_signal_hands_a_long_job_back_at_once(valkey: PrivateValkey, tmp_path: Path) -> None:
    write_toy(tmp_path, milliseconds=SLOW_MS, steps=(80,))
    with worker_process(valkey.url, tmp_path, drain_timeout=100) as first:
        async with gateway(valkey.url) as asking:
            await asking.ready()
            reply_task = asyncio.create_task(asking.ask(toy_job(asking, 1, 0)))
            with CellRedis.from_url(valkey.url) as client:
                await eventually_async(lambda: running(client), "it takes steps")
            first.send_signal(signal.SIGTERM)
            first.send_signal(signal.SIGINT)
            await eventually_async(lambda: first.poll() is not None, "the first worker has ended")
            assert (first.returncode, reply_task.done()) == (0, False)
            with worker_process(valkey.url, tmp_path):
                assert (await reply_task).failure is None


async def test_job_of_killed_worker_restarts_with_same_answer(valkey: PrivateValkey, tmp_path: Path) -> None:
    model, _ = steps_of(write_toy(tmp_path / "quick", steps=(60,))), write_toy(tmp_path, milliseconds=SLOW_MS, steps=(60,))
    reports: list[Progress] = []
    with worker_process(valkey.url, tmp_path) as first:
        async with gateway(valkey.url) as asking:
            await asking.ready()
            job = toy_job(asking, 7, 0, progress=True)
            replies = asyncio.create_task(asking.dispatcher.submitter.submit([job], on_progress=reports.append))
            await eventually_async(lambda: any(progress.done for progress in reports), "it has taken steps")
            forget_worker(valkey.url, first)
            with worker_process(valkey.url, tmp_path):
                [reply] = await replies
    same(reply, answer_alone(model, pixels(7, 0), seed=7)["logits"])
    assert [progress.total for progress in reports].count(0) == 2, "it began twice"
    assert [progress.done for progress in reports if progress.total].count(0) == 2, "it started twice"


@pytest.mark.parametrize("size", [300_000, 5_000_000])
async def test_large_jobs_are_read_in_pieces_among_the_others(valkey: PrivateValkey, tmp_path: Path, size: int) -> None:
    write_null(tmp_path, milliseconds=1)
    with worker_process(valkey.url, tmp_path):
        async with gateway(valkey.url) as asking:
            await asking.ready()
            large = [np.full((1, size, 3), number, np.uint8) for number in range(3)]
            jobs = [asking.job("null@1", picture, bucket="large") for picture in large] + [asking.job("null@1") for _ in range(3)]
            replies = await asyncio.gather(*map(asking.ask, jobs))
            assert [reply.failure for reply in replies] == [None] * 6
            with CellRedis.from_url(valkey.url) as client:
                assert not list(client.scan_iter("blob:*"))


def running(client: redis.Redis) -> list[bytes]:
    """Ids of the jobs that workers say they run."""
    found: list[bytes] = []
    for key in client.scan_iter(keys.suspects("*")):
        for packed in client.hvals(key):
            found += msgspec.msgpack.decode(packed)[1] if packed else []
    return found
