"""Inputs that kill or hang a worker. The test is the workers' supervisor: it starts a new one whenever one ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import redis

from models.loading import load
from server.processes.supervisor_protocol import STUCK
from server.queue import keys
from server.queue.messages import WorkerInfo
from server.queue.worker.connection import WorkerTimings
from server.supervisor.private_valkey import PrivateValkey
from server.worker.loops import RECLAIM_INTERVAL_S
from tests.support import forked_program
from tests.support.bundles.vit import answer_alone, write_null
from tests.support.forked_program import ForkedProcess
from tests.support.live_service import GatewayEnd, forget_worker, gateway, worker_process
from tests.support.poison_worker import COMMAND, HANGS, POISON
from tests.support.queue import WorkerQueue
from tests.support.redis import CellRedis, private_valkey
from tests.support.waiting import eventually_async


@pytest.fixture
def valkey() -> Iterator[PrivateValkey]:
    forked_program.prepare()
    with private_valkey() as server:
        yield server


@asynccontextmanager
async def fragile_workers(valkey: PrivateValkey, bundles: Path) -> AsyncIterator[list[ForkedProcess]]:
    """Run one worker at a time and replace it as soon as it dies; yield all.

    The jobs of a dead worker are free at once, as under the supervisor."""
    if not bundles.joinpath("fragile").exists():
        write_null(bundles, name="fragile", architecture="fragile")
    started: list[ForkedProcess] = []
    with ExitStack() as stack:

        async def supervise() -> None:
            while True:
                if not started or started[-1].poll() is not None:
                    if started:
                        await asyncio.to_thread(forget_worker, valkey.url, started[-1])
                    started.append(stack.enter_context(worker_process(valkey.url, bundles, command=COMMAND)))
                await asyncio.sleep(0.05)

        supervisor = asyncio.create_task(supervise())
        try:
            yield started
        finally:
            supervisor.cancel()


def picture(value: int, corner: tuple[int, int, int] | None = None) -> np.ndarray:
    pixels = np.full((32, 32, 3), value, np.uint8)
    if corner is not None:
        pixels[0, 0] = corner
    return pixels


async def batch_with(asking: GatewayEnd, corner: tuple[int, int, int]) -> None:
    """Send one bad picture among fifteen good ones as one request, and check what everyone gets."""
    jobs = [asking.job("fragile@1", picture(value, corner if value == 7 else None), seconds=240) for value in range(16)]
    replies = await asking.dispatcher.submitter.submit(jobs)
    assert [reply.failure.kind if reply.failure else None for reply in replies] == [None] * 7 + ["worker-crashed"] + [None] * 8
    answers = [float(reply.arrays["logits"].to_numpy()[0]) for reply in replies if not reply.failure]
    assert answers == [value for value in range(16) if value != 7]


async def test_poison_input_does_not_fail_its_fifteen_neighbours(valkey: PrivateValkey, tmp_path: Path) -> None:
    async with fragile_workers(valkey, tmp_path) as workers, gateway(valkey.url) as asking:
        await asking.ready()
        await batch_with(asking, POISON)
        with CellRedis.from_url(valkey.url) as client:
            assert client.xlen(keys.DEAD) == 1
    assert len(workers) == 5, "one death in company, three alone, and the worker that is left"


async def test_death_is_not_charged_to_waiting_suspect_of_other_batch(valkey: PrivateValkey, tmp_path: Path) -> None:
    digest = write_null(tmp_path, name="fragile", architecture="fragile").spec.digest()
    dies = WorkerQueue(valkey.url, "dies", WorkerTimings(key_ttl=60))
    dies.announce(WorkerInfo(id=dies.id, host="test", pid=0, state="draining", device="cpu", bundles=[]))
    async with gateway(valkey.url) as asking:
        innocent = asking.job("fragile@1", picture(2), digest=digest, bucket="another", seconds=240)
        answer = asyncio.create_task(asking.ask(innocent))
        taken = await asyncio.to_thread(dies.pull, [keys.queue("fragile@1", digest)], 1, 2000)
        assert dies.start(taken, 0)
        async with fragile_workers(valkey, tmp_path) as workers:
            await asking.ready()
            bad = asking.job("fragile@1", picture(1, HANGS), digest=digest, seconds=240)
            hanging = asyncio.create_task(asking.ask(bad))
            with CellRedis.from_url(valkey.url) as client:
                await eventually_async(lambda: pending(client) == 2, "the picture that hangs runs")
                dies.withdraw()
                await asyncio.sleep(3 * RECLAIM_INTERVAL_S)  # the hanging worker has looked for what the dead left behind
                assert client.get(f"deaths:{innocent.id}") == b"0", "it is here, and does not run"
                hanging.cancel()
                await eventually_async(lambda: client.exists(keys.cancel(bad.id)), "the next worker will not try it")
                workers[-1].kill()
                await eventually_async(answer.done, "it is answered")
    assert (await answer).failure is None


def pending(client: redis.Redis) -> int:
    return sum(group["pending"] for stream in client.smembers("queues") for group in client.xinfo_groups(stream))


async def test_poison_job_of_several_steps_only_delays_its_neighbours(valkey: PrivateValkey, tmp_path: Path) -> None:
    model = load(write_null(tmp_path / "plain", milliseconds=2, steps=(6,), width=8)).steps
    assert model is not None
    write_null(tmp_path, name="fragile", architecture="fragile", milliseconds=2, steps=(6,), width=8)
    async with fragile_workers(valkey, tmp_path) as workers, gateway(valkey.url) as asking:
        await asking.ready()
        pictures = [picture(value, POISON if value == 7 else None) for value in range(16)]
        # half of them in another bucket: these only wait in the worker, or run in its other slots, when it dies
        jobs = [asking.job("fragile@1", pixels, bucket=str(i // 8), seconds=240) for i, pixels in enumerate(pictures)]
        replies = await asking.dispatcher.submitter.submit(jobs)
        with CellRedis.from_url(valkey.url) as client:
            [(_, letter)] = client.xrange(keys.DEAD)
            assert letter[b"id"] == jobs[7].id.encode()
            assert not list(client.scan_iter("deaths:*"))
    assert [reply.failure.kind if reply.failure else None for reply in replies] == [None] * 7 + ["worker-crashed"] + [None] * 8
    assert len(workers) == 5, "one death in company, three alone, and the worker that is left: no other job was charged"
    for pixels, reply in zip(pictures, replies, strict=True):
        if not reply.failure:
            expected = answer_alone(model, pixels)["logits"]
            np.testing.assert_allclose(reply.arrays["logits"].to_numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_input_that_hangs_workers_ends_like_a_poison_one(valkey: PrivateValkey, tmp_path: Path) -> None:
    async with fragile_workers(valkey, tmp_path) as workers, gateway(valkey.url) as asking:
        await asking.ready()
        await batch_with(asking, HANGS)
    assert [worker.returncode for worker in workers[:-1]] == [STUCK] * 4
