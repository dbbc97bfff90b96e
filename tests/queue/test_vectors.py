"""Cached vectors of texts, which all gateways share."""

from __future__ import annotations

import asyncio

import redis

from tests.support.queue import gateway, records_load
from tests.support.waiting import eventually_async

VECTOR = bytes(range(250)) * 4
ENTRY = len(VECTOR) + 650
"""Size that a vector counts as, in bytes."""


def ids(first: int, count: int) -> list[str]:
    return [f"digest:{number:064x}" for number in range(first, first + count)]


async def test_another_gateway_recalls_what_one_has_kept(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us, gateway(url) as them:
        some, missing = ids(0, 300), ids(300, 1)  # more than one command moves
        us.vectors.keep_soon("owner", {id_: VECTOR + id_.encode() for id_ in some})
        await eventually_async(lambda: db.zcard("vectors") == 300)
        assert await them.vectors.recall([*some, *missing]) == {id_: VECTOR + id_.encode() for id_ in some}
        assert 0 < db.pttl(f"vector:{some[0]}") <= 86_400_000


async def test_those_that_were_used_longest_ago_leave_first(url: str, db: redis.Redis) -> None:
    async with gateway(url, text_cache_bytes=8 * ENTRY) as us:
        names = ids(0, 9)
        for number, name in enumerate(names[:8]):
            us.vectors.keep_soon(f"owner {number // 2}", {name: VECTOR})
            await eventually_async(lambda number=number: db.zcard("vectors") == number + 1)
        assert set(await us.vectors.recall(names[:1])) == set(names[:1])
        await eventually_async(lambda: db.zrange("vectors", -1, -1) == names[:1])
        us.vectors.keep_soon("another", {names[8]: VECTOR})
        await eventually_async(lambda: db.exists(f"vector:{names[8]}"))
        assert set(await us.vectors.recall(names)) == set(names) - {names[1]}
        assert db.hgetall("vectors:bytes") == {
            "all ": str(8 * ENTRY),
            "owner 0": str(ENTRY),
            **{f"owner {number}": str(2 * ENTRY) for number in (1, 2, 3)},
            "another": str(ENTRY),
        }


async def test_an_owner_beyond_a_quarter_loses_its_own(url: str, db: redis.Redis) -> None:
    async with gateway(url, text_cache_bytes=40 * ENTRY) as us:
        us.vectors.keep_soon("quiet", dict.fromkeys(ids(0, 5), VECTOR))
        await eventually_async(lambda: db.zcard("vectors") == 5)
        for batch in range(1, 11):
            us.vectors.keep_soon("flood", dict.fromkeys(ids(100 * batch, 20), VECTOR))
            await eventually_async(lambda batch=batch: db.exists(f"vector:{ids(100 * batch + 19, 1)[0]}"))
        assert db.hget("vectors:bytes", "flood") == str(10 * ENTRY)
        assert set(db.zrange("vectors:of:flood", 0, -1)) == set(ids(1010, 10))  # the latest
        assert db.zcard("vectors") == 15 and len(await us.vectors.recall(ids(0, 5))) == 5


async def test_vectors_in_use_outlive_newer_ones_of_owner(url: str, db: redis.Redis) -> None:
    async with gateway(url, text_cache_bytes=16 * ENTRY) as us:
        for name in ids(0, 4):
            us.vectors.keep_soon("owner", {name: VECTOR})
            await eventually_async(lambda name=name: db.exists(f"vector:{name}"))
        assert len(await us.vectors.recall(ids(0, 1))) == 1
        await eventually_async(lambda: db.zrange("vectors:of:owner", -1, -1) == ids(0, 1))
        us.vectors.keep_soon("owner", {ids(4, 1)[0]: VECTOR})
        await eventually_async(lambda: db.exists(f"vector:{ids(4, 1)[0]}"))
        assert set(await us.vectors.recall(ids(0, 5))) == {*ids(0, 1), *ids(2, 3)}


async def test_what_has_expired_is_counted_no_longer(url: str, db: redis.Redis) -> None:
    async with gateway(url, text_cache_ttl=0.2) as us:
        us.vectors.keep_soon("owner", dict.fromkeys(ids(0, 3), VECTOR))
        await eventually_async(lambda: db.zcard("vectors") == 3)
        await eventually_async(lambda: not db.exists(f"vector:{ids(0, 1)[0]}"))
        assert await us.vectors.recall(ids(0, 3)) == {}
        us.vectors.keep_soon("owner", dict.fromkeys(ids(3, 1), VECTOR))
        await eventually_async(lambda: db.zrange("vectors", 0, -1) == ids(3, 1))
        assert db.hgetall("vectors:bytes") == {"all ": str(ENTRY), "owner": str(ENTRY)}
        assert db.zrange("vectors:of:owner", 0, -1) == ids(3, 1)


async def test_without_redis_nothing_is_known_and_nothing_breaks(url: str, db: redis.Redis) -> None:
    async with gateway(url) as us:
        db.set("vectors", "of another kind")  # a script that fails
        us.vectors.keep_soon("owner", dict.fromkeys(ids(0, 1), VECTOR))
        await asyncio.sleep(0.2)
        assert await us.vectors.recall(ids(0, 1)) == {}
        assert (await records_load(us)).counts == {}


async def test_redis_takes_no_more_memory_than_is_counted(url: str, db: redis.Redis) -> None:
    async with gateway(url, text_cache_bytes=100_000_000) as us:
        before = db.info("memory")["used_memory"]
        us.vectors.keep_soon("owner", dict.fromkeys(ids(0, 4000), bytes(2049)))
        await eventually_async(lambda: db.zcard("vectors") == 4000)
        taken = db.info("memory")["used_memory"] - before
        assert 0.9 < taken / int(db.hget("vectors:bytes", "all ")) < 1.1
