"""A Redis that is there and refuses to work counts as away: nobody ends, requests wait for its grace, and all goes on once it is mended."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from server.queue.errors import RedisAway
from tests.queue import refusals
from tests.support.queue import (
    LASTING_WORKER,
    QUEUE,
    QUICK_WORKER,
    Consumer,
    announce,
    ask,
    echo,
    gateway,
    nothing_is_left,
    ping,
    pulled,
    redis_at,
    worker_queue,
)
from tests.support.waiting import eventually_async


@pytest.mark.parametrize("kind", refusals.EVERY_WRITE)
async def test_requests_wait_for_a_redis_that_refuses_and_are_answered_once_it_is_mended(tmp_path: Path, kind: str) -> None:
    with refusals.server(tmp_path / "data") as server:
        async with gateway(server.url, redis_grace=60) as us, Consumer(server.url) as consumer:
            assert await ask(us, 1) == 1
            with refusals.refusing(server, kind):
                waiting = asyncio.create_task(ask(us, 2))
                await asyncio.sleep(0.5)
                assert not waiting.done()
            assert await waiting == 2
            assert consumer.process.poll() is None


@pytest.mark.parametrize("kind", refusals.EVERY_WRITE)
async def test_requests_end_after_the_grace_with_what_redis_said(tmp_path: Path, kind: str) -> None:
    with refusals.server(tmp_path / "data") as server:
        async with gateway(server.url, redis_grace=0.4) as us:
            with refusals.refusing(server, kind), pytest.raises(RedisAway) as refused:
                await ask(us, 1)
            assert refused.value.refusal


@pytest.mark.parametrize("kind", ["NOREPLICAS", "READONLY"])
async def test_figures_are_refused_when_the_beat_is_although_redis_answers(tmp_path: Path, kind: str) -> None:
    """What readiness is made of: a service that cannot queue anything is not ready."""
    with refusals.server(tmp_path / "data") as server:
        async with gateway(server.url) as us:

            async def refused() -> bool:
                try:
                    await us.fleet(fresh=True)
                except RedisAway as away:
                    return bool(away.refusal)
                return False

            with refusals.refusing(server, kind):
                await eventually_async(refused)
                assert not await ping(us)
                assert redis_at(server.url).ping()
            await eventually_async(lambda: ping(us))
            await us.fleet(fresh=True)


@pytest.mark.parametrize("kind", refusals.EVERY_WRITE)
async def test_whatever_a_worker_asks_of_a_redis_that_refuses_is_redis_away(tmp_path: Path, kind: str) -> None:
    with refusals.server(tmp_path / "data") as server:
        worker = worker_queue(server.url, "worker", QUICK_WORKER)
        async with gateway(server.url) as us:
            request = asyncio.create_task(ask(us, 3))
            [taken] = await pulled(worker)
            with refusals.refusing(server, kind):
                for call in (lambda: announce(worker), lambda: worker.pull([QUEUE], 1, 10), worker.janitor, worker.withdraw):
                    with pytest.raises(RedisAway):
                        await asyncio.to_thread(call)
                finishing = asyncio.create_task(asyncio.to_thread(worker.finish, [(taken, echo(worker, taken))]))
                await asyncio.sleep(0.5)
                assert not finishing.done()
            assert await finishing == [True]
            assert await request == 3


async def test_what_cannot_be_looked_at_is_ended_once_redis_is_mended(tmp_path: Path) -> None:
    """Else it takes room in the queue until a minute after its deadline."""
    with refusals.server(tmp_path / "data") as server, redis_at(server.url) as db:
        worker = worker_queue(server.url, "worker", replace(LASTING_WORKER, patience=0.2))
        announce(worker)
        async with gateway(server.url) as us:
            request = asyncio.create_task(ask(us, 1))
            [taken] = await pulled(worker)
            request.cancel()
            await eventually_async(lambda: db.exists(f"cancel:{taken.job.id}"))
            with refusals.refusing(server, "NOREPLICAS"):
                with pytest.raises(RedisAway):
                    await asyncio.to_thread(worker.begin, [taken], 0)
                with pytest.raises(RedisAway):
                    await asyncio.to_thread(worker.hand_back, [taken])

            async def ended() -> bool:
                await asyncio.to_thread(lambda: worker.begin(worker.pull([QUEUE], 16), 0))
                return nothing_is_left(db)

            await eventually_async(ended, seconds=20)
