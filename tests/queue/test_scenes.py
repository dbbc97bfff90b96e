"""Scenes are kept for a while, counted with results, and read by any gateway."""

from __future__ import annotations

import asyncio

import numpy as np
import redis

from server.queue.connect import CHUNK_BYTES
from server.queue.gateway.kept_values import Scene
from server.queue.messages import Array
from tests.support.queue import DIGEST, gateway, records_load
from tests.support.redis import KEYSPACE
from tests.support.waiting import eventually_async

ONE, OTHER = KEYSPACE.digits + "1" * 32, KEYSPACE.digits + "2" * 32


def scene(nbytes: int = 3 * CHUNK_BYTES + 99, seed: int = 0) -> Scene:
    latent = np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)
    return Scene(task="reconstruct", digest=DIGEST, arrays={"latent": Array.from_numpy(latent)})


async def test_a_large_scene_is_read_by_another_gateway_and_counted(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us, gateway(url) as them:
        assert await us.scenes.keep(ONE, scene())
        assert await them.scenes.read(ONE) == scene()
        load = await records_load(them)
        assert load.counts == {"scene": 1} and load.result_bytes > 3 * CHUNK_BYTES
        assert await us.scenes.keep(ONE, scene())  # again, as when an answer is fetched twice
        assert await records_load(us) == load
        assert not db.keys("stage:*") and 0 < db.pttl(f"scene:{ONE}") <= 600_000


async def test_a_scene_that_is_kept_twice_at_once_is_whole(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us, gateway(url) as them:
        for number in range(5):
            are_kept = await asyncio.gather(
                *(one.scenes.keep(KEYSPACE.digits + f"{number:032x}", scene(seed=number)) for one in (us, them, us, them))
            )
            assert are_kept == [True] * 4
            assert await us.scenes.read(KEYSPACE.digits + f"{number:032x}") == scene(seed=number)
        assert not db.keys("stage:*") and (await records_load(us)).counts == {"scene": 5}


async def test_what_is_no_scene_is_none(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us:
        db.set(f"scene:{OTHER}", b"\xc1 no message")
        assert [await us.scenes.read(name) for name in (ONE, OTHER, "", "*", "../epoch")] == [None] * 5


async def test_without_room_a_scene_is_not_kept(url: str, db: redis.Redis) -> None:
    async with gateway(url, results_max_bytes=1_000_000) as us:
        assert await us.scenes.keep(ONE, scene(600_000))
        assert not await us.scenes.keep(OTHER, scene(600_000))
        assert await us.scenes.read(OTHER) is None and not db.keys("stage:*")
        assert (await records_load(us)).counts == {"scene": 1}


async def test_kept_scene_stays_when_there_is_no_room(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us, gateway(url, results_max_bytes=1) as crowded:
        assert await us.scenes.keep(ONE, scene())
        assert await crowded.scenes.keep(ONE, scene()), "its answer is fetched again"
        assert not await crowded.scenes.keep(OTHER, scene(1000))
        assert await crowded.scenes.read(ONE) == scene()
        assert not db.keys("stage:*") and (await records_load(us)).counts == {"scene": 1}


async def test_an_expired_scene_is_gone_and_counts_no_more(url: str) -> None:
    async with gateway(url, scene_ttl=0.2) as us:
        assert await us.scenes.keep(ONE, scene(1000))

        async def gone() -> bool:
            return (await records_load(us)).counts == {} and await us.scenes.read(ONE) is None

        await eventually_async(gone)
        assert (await records_load(us)).result_bytes == 0
