"""Opsin's keys overwritten by others: no script stops half-way, and its callers wait as for an unavailable Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import redis

from server.queue.connect import RedisUnavailable, refusal
from server.queue.gateway.connection import RespPool
from server.queue.gateway.dispatcher import Dispatcher
from server.queue.gateway.kept_values import Scene
from server.queue.gateway.reservations import Load
from server.queue.gateway.submitter import CANCEL
from server.queue.messages import Progress, QueuedJob
from server.queue.record import RecordDraft
from server.queue.script import FOLDER, Claim, Script
from server.queue.worker.connection import WorkerRedisLink
from server.queue.worker.delivery import Delivery
from tests.support.queue import (
    DIGEST,
    DRAFT,
    LASTING_WORKER,
    QUEUE,
    SILENT_GATEWAY,
    STREAM,
    Consumer,
    WorkerQueue,
    a_job,
    announce,
    ask,
    echo,
    gateway,
    nothing_is_left,
    ping,
    worker_queue,
)
from tests.support.redis import KEYSPACE
from tests.support.waiting import eventually_async

CELL_PREFIX = KEYSPACE.name("")
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.lua"))
CALLS = 2
"""Number of calls of each script that are repeated: the last ones, which find most keys."""
MAX_KEYS = 30
"""Maximum number of keys of a call: the status reads the history of a quarter of an hour, a key for each step."""
GARBAGE = b"\xffabc"
State = dict[bytes, tuple[int, bytes]]
"""Key → its time to live in ms or 0, and its content as DUMP returns it."""


@dataclass(frozen=True)
class Call:
    script: Script[Any, Any]
    arguments: list[bytes]
    before: State


def state_of(db: redis.Redis) -> State:
    names = sorted(db.scan_iter(f"{CELL_PREFIX}*", count=1000))  # scripts touch no others
    with db.pipeline(transaction=True) as pipe:
        for name in names:
            pipe.pttl(name).dump(name)
        answers = pipe.execute()
    return {name: (max(0, ttl), content) for name, ttl, content in zip(names, answers[::2], answers[1::2], strict=True) if content}


def restore(db: redis.Redis, state: State) -> None:
    with db.pipeline(transaction=True) as pipe:
        pipe.flushall()
        for name, (ttl, content) in state.items():
            pipe.restore(name, ttl, content)
        pipe.execute()


def contents(db: redis.Redis) -> dict[bytes, bytes]:
    return {name: content for name, (_, content) in state_of(db).items()}


@pytest.fixture
def calls(admin_db: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    """Calls of scripts from now on, each with the state of Redis before it."""
    made: list[Call] = []

    def note(call: Callable[..., Any]) -> Callable[..., Any]:
        def run_and_note(caller: Any, script: Script[Any, Any], args: Any, messages: Iterable[bytes] = ()) -> Any:
            messages = list(messages)
            made.append(Call(script, script.arguments(args, messages), state_of(admin_db)))
            return call(caller, script, args, messages)

        return run_and_note

    with monkeypatch.context() as patch:
        patch.setattr(RespPool, "run", note(RespPool.run))
        patch.setattr(WorkerRedisLink, "send", note(WorkerRedisLink.send))
        yield made


async def pull(worker: WorkerQueue, count: int) -> list[Delivery]:
    found: list[Delivery] = []

    async def all_are_here() -> bool:
        found.extend(worker.pull([QUEUE], count - len(found)))
        return len(found) == count

    await eventually_async(all_are_here)
    return found


async def live_through_everything(url: str) -> None:
    """Do everything that a gateway and workers do with the queue, one thing after the other."""
    worker, other = (worker_queue(url, name, LASTING_WORKER) for name in ("worker", "other"))
    async with gateway(url, SILENT_GATEWAY) as us:
        announce(worker)
        worker.janitor()
        assert worker.intake.take([QUEUE], 1, 1) == []
        await run_requests(us, worker)
        await run_records(us, worker)
        announce(other)
        left = asyncio.create_task(us.submitter.submit([await a_job(us, value, owner="carol") for value in range(2)]))
        worker.start(await pull(worker, 1), 0)
        await pull(worker, 1)  # the other job waits
        worker.withdraw()
        assert other.intake.reclaim([QUEUE]) is not None
        await run_stores(us)
        await us.refresh()
        await us.status.read()
        announce(other)
        other.janitor()
        left.cancel()
        await asyncio.wait([left])
    worker.close()
    other.close()


async def run_requests(us: Dispatcher, worker: WorkerQueue) -> None:
    ballast = list(range(100_000))
    jobs = [
        msgspec.structs.replace(await a_job(us, value, owner="alice", low=low, **options), progress=True)
        for value, (low, options) in enumerate([(False, {}), (True, {}), (False, {"ballast": ballast}), (False, {})])
    ]
    request = asyncio.create_task(us.submitter.submit(jobs))
    taken = worker.start(await pull(worker, len(jobs)), 0)
    us.reservations.load = Load(work_ms=1_000_000)  # as of a busy queue
    await us.reservations.reserve(Claim("alice", low=True)).check(1)
    worker.acks.progress([(one, Progress(id=one.job_id, worker=worker.id, done=1, total=2, unit="steps")) for one in taken])
    worker.intake.return_to_queue(taken[:1])
    [again] = await pull(worker, 1)
    replies = [(one, echo(worker, one)) for one in (again, *taken[1:3])]
    large = msgspec.structs.replace(replies[0][1], arrays=jobs[2].arrays)
    worker.acks.finish([(replies[0][0], large), *replies[1:]])
    worker.acks.dead_letter(taken[3], "it died of it")
    await request
    given_up = [await a_job(us, 5, owner="bob") for _ in range(2)]
    request = asyncio.create_task(us.submitter.submit(given_up))
    worker.start(await pull(worker, 1), 0)
    request.cancel()
    await asyncio.wait([request])
    await us.link.run_with_payload(CANCEL, [job.id for job in given_up])


async def run_records(us: Dispatcher, worker: WorkerQueue) -> None:
    async def admit(count: int, **draft: Any) -> str:
        jobs = [msgspec.structs.replace(await a_job(us, value, owner="dora"), gateway="", progress=True) for value in range(count)]

        def make_jobs(record: str) -> list[QueuedJob]:
            return [msgspec.structs.replace(job, id=f"{record}-{index}", record=record) for index, job in enumerate(jobs)]

        changed: RecordDraft = msgspec.structs.replace(DRAFT, items=count, counted=count, webhook="https://example.org/", **draft)
        return (await us.records.admit(changed, b"\x80", make_jobs)).id

    ends = "done,failed,cancelled"
    record = await admit(2, idem="a", webhook_events=ends)
    assert await admit(2, idem="a", webhook_events=ends) == record
    taken = await pull(worker, 2)
    worker.start(taken, 0)
    worker.acks.progress([(one, Progress(id=one.job_id, worker=worker.id, done=0, total=0, unit="")) for one in taken])
    await us.records.events([(record, 0)])
    await us.records.read(record)
    worker.acks.finish([(one, echo(worker, one)) for one in taken])
    cancelled = await admit(2, webhook_events=ends)
    await us.records.sweep()
    await us.records.cancel(cancelled)
    await us.records.cancel(cancelled)
    for due in (await us.webhooks.claim(8, 30.0, {}))[0]:
        await us.webhooks.settle(due, 5.0)
    await admit(1)  # stays open
    await us.records.sweep()


async def run_stores(us: Dispatcher) -> None:
    job = await a_job(us, 1)
    assert await us.scenes.keep(KEYSPACE.digits + "0" * 32, Scene(task="reconstruct", digest=DIGEST, arrays=job.arrays))
    for number in range(2):
        await us.vectors._keep("erna", ["a"] * number, {"ab"[number]: b"vector"})


def touched_keys(db: redis.Redis, call: Call) -> list[bytes]:
    """Return the keys that a call reads or writes, present or not."""
    restore(db, call.before)
    names = set()
    with db.monitor() as watch:
        run(db, call)
        db.echo("END OF CALL")
        while "END OF CALL" not in (command := watch.next_command()["command"]):
            names |= {word.encode() for word in command.split() if word.startswith(CELL_PREFIX) and word != CELL_PREFIX}
    return sorted(names, key=lambda name: (b"history:" in name, name))[:MAX_KEYS]


def run(db: redis.Redis, call: Call) -> Any:
    return db.eval(call.script.source, 1, CELL_PREFIX, *call.arguments)


def garble(db: redis.Redis, name: bytes) -> None:
    """Write foreign content of the same type to a key."""
    kind = db.type(name)
    if kind == b"hash":
        db.hset(name, mapping=dict.fromkeys(db.hkeys(name), GARBAGE))
    elif kind == b"set":
        db.sadd(name, GARBAGE)
    elif kind == b"zset":
        db.zadd(name, {GARBAGE: 0})
    elif kind == b"list":
        db.lpush(name, GARBAGE)
    elif kind == b"stream":
        db.xadd(name, {GARBAGE: GARBAGE}, id=f"{2**63}-1")
    else:
        db.set(name, GARBAGE)


def replaced_by(write: Callable[[redis.Redis, bytes], Any]) -> Callable[[redis.Redis, bytes], None]:
    def replace_by(db: redis.Redis, name: bytes) -> None:
        db.delete(name)
        write(db, name)

    return replace_by


WAYS = {
    "garbled": garble,
    "a set": replaced_by(lambda db, name: db.sadd(name, GARBAGE)),
    "a string": replaced_by(lambda db, name: db.set(name, GARBAGE)),
    "a hash": replaced_by(lambda db, name: db.hset(name, GARBAGE, GARBAGE)),
}


async def test_no_script_fails_after_it_has_written(url: str, admin_db: redis.Redis, calls: list[Call]) -> None:
    """Prove it since Redis undoes nothing: a repeated call would take what its first half wrote for the work of another call."""
    await live_through_everything(url)
    made = {script: [call for call in calls if call.script.name == script][-CALLS:] for script in SCRIPTS}
    assert not [script for script, some in made.items() if not some]
    wrong = []
    failed = set()
    for call in (call for some in made.values() for call in some):
        for name in touched_keys(admin_db, call):
            for way, write in WAYS.items():
                restore(admin_db, call.before)
                write(admin_db, name)
                try:
                    run(admin_db, call)
                except redis.ResponseError as error:
                    failed.add(call.script.name)
                    after = contents(admin_db)
                    restore(admin_db, call.before)
                    write(admin_db, name)
                    if contents(admin_db) != after:
                        wrong.append((call.script.name, name, way, f"writes before: {error}"))
                    elif not refusal(error) or name[len(CELL_PREFIX) :].decode() not in str(error):
                        wrong.append((call.script.name, name, way, f"does not name the key: {error}"))
    assert not wrong, "\n".join(map(str, wrong))
    assert {"enqueue", "enqueue_record", "finish", "finish_record", "requeue", "beat"} <= failed


@contextmanager
def written_over(db: redis.Redis, name: str) -> Iterator[None]:
    """Replace a key by one of another type until the block ends."""
    db.rename(name, "aside")
    db.rpush(name, "x")
    yield
    db.rename("aside", name)


@pytest.mark.parametrize("name", ["queue:jobs", "queue:owners", STREAM])
async def test_jobs_that_end_over_a_foreign_key_are_answered(url: str, db: redis.Redis, name: str) -> None:
    async with gateway(url, redis_grace=60) as us, Consumer(url, "--batch", "4", "--hold") as consumer:
        requests = [asyncio.create_task(ask(us, value, owner=f"client-{value}")) for value in range(4)]
        assert await consumer.next_batch()
        with written_over(db, name):
            consumer.release_for_good()
            await eventually_async(lambda: us.link.is_unavailable)
            await asyncio.sleep(0.5)  # in which the worker tries more than once
            assert not any(one.done() for one in requests)
        assert await asyncio.gather(*requests) == list(range(4))
        assert await ask(us, 5) == 5
        await eventually_async(lambda: nothing_is_left(db))


CONTENTS = {"queue:bytes": "abc", "queue:work": "1e3", "epoch": "no epoch"}


@pytest.mark.parametrize("name", CONTENTS)
async def test_foreign_contents_are_redis_away_until_mended(url: str, db: redis.Redis, name: str, caplog: pytest.LogCaptureFixture) -> None:
    async with gateway(url, redis_grace=1.0) as us, Consumer(url, "--hold") as consumer:
        running = asyncio.create_task(ask(us, 1))
        assert await consumer.next_batch()
        before = db.get(name)
        db.set(name, CONTENTS[name])
        with pytest.raises(RedisUnavailable, match=name):
            await ask(us, 2)
        with pytest.raises(RedisUnavailable):
            await running
        assert caplog.text.count(f'queue unavailable: the queue\'s Redis refuses to work: WRONGTYPE {name} holds "{CONTENTS[name]}"') == 1
        consumer.release_for_good()
        db.set(name, before)
        await eventually_async(lambda: ping(us))
        assert await ask(us, 3) == 3
        assert consumer.process.poll() is None


async def test_a_foreign_revision_is_redis_away_until_mended(url: str, db: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    async with gateway(url) as us:
        db.set("repository:revision", "abc")
        with pytest.raises(RedisUnavailable, match="repository:revision"):
            await us.fleet.set_repository("echo", "unloaded")
        assert "queue key unusable" in caplog.text
        db.set("repository:revision", 4)
        assert await us.fleet.set_repository("echo", "unloaded") == 5


async def test_an_error_of_our_own_is_not_redis_away(url: str) -> None:
    """Prove that a bug in a script does not look like a key that an operator has to repair."""
    worker = worker_queue(url, "worker")
    async with gateway(url) as us:
        with pytest.raises(redis.ResponseError):
            await us.link.run(Script("enqueue", str, Any), "no call")
        assert await ping(us)
    with pytest.raises(redis.ResponseError):
        worker.link.run(Script("finish", str, Any), "no call")
    worker.close()


async def test_a_foreign_record_keeps_only_its_own_readers_away(url: str, db: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    async with gateway(url, redis_grace=1.0) as us, Consumer(url):
        job = msgspec.structs.replace(await a_job(us, 1), gateway="")
        made = await us.records.admit(DRAFT, b"\x80", lambda id_: [msgspec.structs.replace(job, id=f"{id_}-0", record=id_)])

        async def done() -> bool:
            record = await us.records.read(made.id)
            return record is not None and record.state == "done"

        await eventually_async(done)
        count = db.hget(f"record:{made.id}", "count")
        db.hset(f"record:{made.id}", "count", "many")
        for _ in range(3):
            with pytest.raises(RedisUnavailable, match="count"):
                await us.records.read(made.id)
        assert await ask(us, 2) == 2
        assert caplog.text.count(f'WRONGTYPE record:{made.id} count holds "many"') == 1
        assert "queue unavailable" not in caplog.text
        db.hset(f"record:{made.id}", "count", count)
        assert await done()
