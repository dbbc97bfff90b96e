"""A Redis that refuses to work counts as unavailable: no process ends, requests wait for its grace, and go on once it is repaired."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from server.queue.connect import RedisUnavailable
from tests.support.queue import (
    LASTING_WORKER,
    QUEUE,
    QUICK_WORKER,
    Consumer,
    Server,
    announce,
    ask,
    echo,
    free_port,
    gateway,
    nothing_is_left,
    ping,
    pull_one,
    redis_at,
    worker_queue,
)
from tests.support.waiting import eventually, eventually_async

NOT_PERMITTED = {"NOPERM": ("-@write", "-@scripting"), "ACL": ("-@write",)}
"""Permissions that an operator revoked: writing and running scripts, or only what scripts write."""
EVERY_WRITE = ("NOREPLICAS", "MISCONF", "BUSY", "READONLY", *NOT_PERMITTED)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Server that is expected to save its data, and so minds if it cannot."""
    made = Server(tmp_path / "data", "--save", "3600 1000000")
    yield made
    made.kill()


@contextlib.contextmanager
def refusing(behind: Server, kind: str) -> Iterator[None]:
    """Let the server answer writes with this error until the `with` block ends."""
    with redis.Redis(port=behind.port, decode_responses=True) as operator:
        if kind == "NOREPLICAS":
            operator.config_set("min-replicas-to-write", 1)
            yield
            operator.config_set("min-replicas-to-write", 0)
        elif kind == "MISCONF":
            in_the_way = behind.folder / "dump.rdb"
            in_the_way.mkdir()
            _save(operator, "err")
            yield
            in_the_way.rmdir()
            _save(operator, "ok")
        elif kind == "BUSY":
            operator.config_set("busy-reply-threshold", 1)
            busy = threading.Thread(target=_loop_for_ever, args=(behind.port,))
            busy.start()
            eventually(lambda: _is_busy(operator), "it is busy")
            yield
            operator.execute_command("SCRIPT", "KILL")
            busy.join()
        elif kind == "READONLY":
            operator.replicaof("127.0.0.1", free_port())
            yield
            operator.replicaof("NO", "ONE")
        elif kind in NOT_PERMITTED:
            operator.execute_command("ACL", "SETUSER", "default", *NOT_PERMITTED[kind])
            yield
            operator.execute_command("ACL", "SETUSER", "default", "+@all")


def _save(operator: redis.Redis, outcome: str) -> None:
    def saved() -> bool:
        facts = operator.info("persistence")
        return facts["rdb_last_bgsave_status"] == outcome and not facts["rdb_bgsave_in_progress"]

    operator.bgsave()
    eventually(saved, f"saving ended with {outcome}")


def _is_busy(operator: redis.Redis) -> bool:
    try:
        operator.ping()
    except redis.ResponseError as error:
        return str(error).startswith("BUSY")
    return False


def _loop_for_ever(port: int) -> None:
    with redis.Redis(port=port, socket_timeout=60) as client, contextlib.suppress(redis.RedisError):
        client.eval("while true do end", 0)


@pytest.mark.parametrize("kind", EVERY_WRITE)
async def test_requests_wait_for_refusing_redis_until_mended(server: Server, kind: str) -> None:
    async with gateway(server.url, redis_grace=60) as us, Consumer(server.url) as consumer:
        assert await ask(us, 1) == 1
        with refusing(server, kind):
            waiting = asyncio.create_task(ask(us, 2))
            await asyncio.sleep(0.5)
            assert not waiting.done()
        assert await waiting == 2
        assert consumer.process.poll() is None


@pytest.mark.parametrize("kind", EVERY_WRITE)
async def test_requests_end_after_the_grace_with_the_redis_error(server: Server, kind: str) -> None:
    async with gateway(server.url, redis_grace=0.4) as us:
        with refusing(server, kind), pytest.raises(RedisUnavailable) as refused:
            await ask(us, 1)
        assert refused.value.refusal


@pytest.mark.parametrize("kind", ["NOREPLICAS", "READONLY"])
async def test_figures_are_refused_with_the_beat_if_redis_answers(server: Server, kind: str) -> None:
    """Prove the base of readiness: a service that cannot queue anything is not ready."""
    async with gateway(server.url) as us:

        async def refused() -> bool:
            try:
                await us.fleet.read(fresh=True)
            except RedisUnavailable as error:
                return bool(error.refusal)
            return False

        with refusing(server, kind):
            await eventually_async(refused)
            assert not await ping(us)
            assert redis_at(server.url).ping()
        await eventually_async(lambda: ping(us))
        await us.fleet.read(fresh=True)


@pytest.mark.parametrize("kind", EVERY_WRITE)
async def test_worker_calls_to_refusing_redis_raise_redis_away(server: Server, kind: str) -> None:
    worker = worker_queue(server.url, "worker", QUICK_WORKER)
    async with gateway(server.url) as us:
        request = asyncio.create_task(ask(us, 3))
        [taken] = await pull_one(worker)
        with refusing(server, kind):
            for call in (lambda: announce(worker), lambda: worker.pull([QUEUE], 1, 10), worker.janitor, worker.withdraw):
                with pytest.raises(RedisUnavailable):
                    await asyncio.to_thread(call)
            finishing = asyncio.create_task(asyncio.to_thread(worker.acks.finish, [(taken, echo(worker, taken))]))
            await asyncio.sleep(0.5)
            assert not finishing.done()
        assert await finishing == [True]
        assert await request == 3


async def test_unchecked_jobs_are_ended_once_redis_is_repaired(server: Server) -> None:
    """Prove that it does not count in the queue until a minute after its deadline."""
    with redis_at(server.url) as db:
        worker = worker_queue(server.url, "worker", replace(LASTING_WORKER, retry_timeout=0.2))
        announce(worker)
        async with gateway(server.url) as us:
            request = asyncio.create_task(ask(us, 1))
            [taken] = await pull_one(worker)
            request.cancel()
            await eventually_async(lambda: db.exists(f"cancel:{taken.job.id}"))
            with refusing(server, "NOREPLICAS"):
                with pytest.raises(RedisUnavailable):
                    await asyncio.to_thread(worker.start, [taken], 0)
                with pytest.raises(RedisUnavailable):
                    await asyncio.to_thread(worker.intake.return_to_queue, [taken])

            async def ended() -> bool:
                await asyncio.to_thread(lambda: worker.start(worker.pull([QUEUE], 16), 0))
                return nothing_is_left(db)

            await eventually_async(ended, seconds=20)
