"""Queue fixtures: jobs, deliveries, consumers that can be killed, and Redis servers that can be restarted."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import redis

from server.processes.os_process import die_with_parent
from server.queue import keys
from server.queue.connect import RedisUnavailable
from server.queue.gateway.dispatcher import Dispatcher, DispatcherTimings
from server.queue.gateway.reservations import Reservation
from server.queue.messages import WORKER_FORMS, Array, Priority, QueuedJob, Reply, ServedBundle, WorkerInfo
from server.queue.record import RecordDraft, RecordsLoad
from server.queue.script import Claim, Refused
from server.queue.worker import worker_queue as worker_side
from server.queue.worker.connection import WorkerTimings
from server.queue.worker.delivery import Delivery, QueueEntry
from server.queue.worker.job_intake import delivery_of
from server.settings import Settings
from server.supervisor.private_valkey import find_server
from tests.support.forked_program import ForkedProcess
from tests.support.redis import KEYSPACE, CellRedis
from tests.support.waiting import eventually

BUNDLE = "echo@1"
DIGEST = "0123456789abcdef" * 4
QUEUE = f"{BUNDLE}:0123456789ab"
STREAM = f"queue:{QUEUE}:normal"
QUICK_WORKER = WorkerTimings(key_ttl=0.6, absence_grace=1.2, retry_timeout=20.0)
LASTING_WORKER = WorkerTimings(key_ttl=60.0, absence_grace=60.0, retry_timeout=20.0)
"""Timings of a worker that is not taken for dead, however busy the machine is, before it is withdrawn."""
QUICK_GATEWAY = DispatcherTimings(beat=0.2, gateway_ttl=2.0, lost_after=0.5, news=0.05, fresh_load=0.0)
SILENT_GATEWAY = DispatcherTimings(beat=60.0, gateway_ttl=120.0, lost_after=0.5, news=0.05, fresh_load=0.0)
"""Timings of a gateway whose key does not come back when a test deletes it."""


DRAFT = RecordDraft(
    task="classify",
    bundle=BUNDLE,
    digest=DIGEST,
    part="image",
    items=1,
    counted=1,
    counted_unit="images",
    priority="normal",
    request_id="r",
    prepare_ms=1.0,
    fingerprint="f",
    bound=1000,
)
"""Draft of a record whose job is that of `a_job`."""


@contextlib.asynccontextmanager
async def gateway(url: str, timings: DispatcherTimings = QUICK_GATEWAY, **settings: Any) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(url, Settings(cell=KEYSPACE.cell, **settings), timings)
    await dispatcher.start()
    try:
        yield dispatcher
    finally:
        await dispatcher.close()


@contextlib.asynccontextmanager
async def reserve(dispatcher: Dispatcher, items: int, nbytes: int, claim: Claim) -> AsyncIterator[Reservation]:
    """Hold places for the time of the block. Raises Refused."""
    reservation = dispatcher.reservations.reserve(claim)
    try:
        await reservation.resize(items, nbytes)
        yield reservation
    finally:
        reservation.release()


@contextlib.contextmanager
def expect_refusal(*reasons: str, wait_s: int | None = None) -> Iterator[pytest.ExceptionInfo[Refused]]:
    """Require that the block is refused for one of these reasons, with this Retry-After."""
    with pytest.raises(Refused) as refusal:
        yield refusal
    assert refusal.value.reason in reasons
    assert wait_s in (None, refusal.value.retry_after)


def place(url: str) -> int | Path:
    """Return the port or the socket of a server of this machine."""
    parts = urlsplit(url)
    return parts.port or Path(parts.path)


def redis_at(url: str, **options: Any) -> CellRedis:
    """Return a client that names keys as they are called in the cell."""
    client: CellRedis = CellRedis.from_url(url, **options)
    client.keyspace = KEYSPACE
    return client


async def ping(dispatcher: Dispatcher) -> bool:
    """Return whether its Redis can be used right now."""
    try:
        await dispatcher.link.command("PING")
    except RedisUnavailable:
        return False
    return True


async def records_load(dispatcher: Dispatcher) -> RecordsLoad:
    return (await dispatcher.status.read(0, 0, 0)).records


def worker_queue(url: str, worker_id: str, timings: WorkerTimings | None = None, forms: str = WORKER_FORMS) -> WorkerQueue:
    return WorkerQueue(url, worker_id, timings, forms, KEYSPACE)


async def a_job(
    dispatcher: Dispatcher,
    value: int = 0,
    *,
    bundle: str = BUNDLE,
    digest: str = DIGEST,
    priority: Priority = "normal",
    seconds: float = 60.0,
    owner: str = "",
    work_ms: int = 0,
    takes_long: bool = False,
    behind_ms: int = 0,
    low: bool = False,
    **arrays: Any,
) -> QueuedJob:
    """Build a job whose answer is `value`."""
    return QueuedJob(
        id=uuid.uuid4().hex,
        bundle=bundle,
        digest=digest,
        bucket="",
        arrays={"x": Array.from_numpy(np.array(value)), **{name: Array.from_numpy(np.asarray(array)) for name, array in arrays.items()}},
        options={},
        priority=priority,
        deadline_ms=int(dispatcher.link.now_ms() + seconds * 1000),
        gateway=dispatcher.id,
        owner=owner,
        work_ms=work_ms,
        takes_long=takes_long,
        behind_ms=behind_ms,
        low=low,
    )


def age_low_job(url: str, by_ms: int) -> None:
    """Move the queue time of the only job of priority low back by so much."""
    low = keys.stream(QUEUE, "low")
    with redis_at(url) as client:
        [(entry_id, fields)] = client.xrange(low)
        client.delete(low)
        client.xadd(low, fields | {b"at": int(fields[b"at"]) - by_ms}, id=entry_id)


def answer_of(reply: Reply) -> int:
    assert reply.failure is None, reply.failure
    return int(reply.arrays["x"].to_numpy())


async def until_deadline(dispatcher: Dispatcher, jobs: list[QueuedJob]) -> list[Reply]:
    """Yield replies of jobs until their deadline, as gateways do. Raises TimeoutError."""
    async with asyncio.timeout((min(job.deadline_ms for job in jobs) - dispatcher.link.now_ms()) / 1000):
        return await dispatcher.submitter.submit(jobs)


async def ask(dispatcher: Dispatcher, value: int, **options: Any) -> int:
    [reply] = await until_deadline(dispatcher, [await a_job(dispatcher, value, **options)])
    return answer_of(reply)


class WorkerQueue(worker_side.WorkerQueue):
    """The worker's end of the queue, with what a worker does in two threads as one call each."""

    def pull(self, queues: Sequence[str], max_items: int, block_ms: int = 0, ours: Mapping[str, int] | None = None) -> list[Delivery]:
        """Take deliveries as `take`, and read large messages."""
        taken = self.intake.take(queues, max_items, block_ms, ours)
        found = (job if isinstance(job, Delivery) else self.intake.fetch(job) for job in taken)
        return [delivery for delivery in found if delivery is not None]

    def start(self, deliveries: Sequence[Delivery], slot: int) -> list[Delivery]:
        """Start deliveries as `begin_soon`, and wait for the reply."""
        return self.intake.send_step(deliveries, slot)()


class Consumer:
    """A worker process (see consumer.py)."""

    _numbers = itertools.count()

    def __init__(self, url: str, *options: str) -> None:
        self.id = f"consumer-{os.getpid()}-{next(self._numbers)}"
        (reading, written), (read, printing) = os.pipe(), os.pipe()
        self.process = ForkedProcess(
            "tests.support.consumer_program", url, self.id, *options, environment=os.environ, prints=printing, reads=reading
        )
        for fd in (reading, printing):
            os.close(fd)
        self._printed, self._asks = os.fdopen(read), os.fdopen(written, "w")

    async def __aenter__(self) -> Consumer:
        assert await self.next_batch() == "ready"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()

    async def next_batch(self) -> str:
        """`batch N` or `alone` as soon as it begins with one; '' once it is dead."""
        return (await asyncio.to_thread(self._printed.readline)).strip()

    def release(self) -> None:
        """Let a holding consumer finish its batch."""
        self._asks.write("\n")
        self._asks.flush()

    def release_for_good(self) -> None:
        """Release the worker, which has no batch any more."""
        self._asks.close()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._printed.close()
        with contextlib.suppress(BrokenPipeError):
            self._asks.close()


class Server:
    """A Valkey on a loopback port, for what the private one does not do: keep its data, replicate, be watched by Sentinel."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.folder = folder
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = options
        self.start()

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        command = [find_server(), *self._options, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        self.process = subprocess.Popen(die_with_parent(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(lambda: answers(self.port) or self.process.poll() is not None, "the server answers")
        assert self.process.poll() is None, "the server does not start"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def durable_server(folder: Path) -> Iterator[Server]:
    """Run a server that has everything on disk before it answers."""
    server = Server(folder, "--save", "", "--appendonly", "yes", "--appendfsync", "always")
    try:
        yield server
    finally:
        server.kill()


def answers(port: int) -> bool:
    try:
        with redis.Redis(port=port, protocol=2, retry=None) as client:
            return bool(client.ping())
    except redis.exceptions.RedisError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def announce(queue: WorkerQueue, items_per_second: float = 0.0) -> None:
    name, version = BUNDLE.split("@")
    served = ServedBundle(name=name, version=version, task="classify", digest=DIGEST, state="ready", items_per_second=items_per_second)
    queue.announce(WorkerInfo(id=queue.id, host="test", pid=0, state="ready", device="cpu", bundles=[served]))


def nothing_is_left(db: redis.Redis) -> bool:
    streams = db.smembers("queues")
    empty = all(db.xlen(stream) == 0 and db.xpending(stream, "workers")["pending"] == 0 for stream in streams)
    leftovers = [key for kind in ("job", "blob", "deaths", "cancel") for key in db.scan_iter(f"{kind}:*")]
    occupied = db.exists("queue:jobs", "queue:owners") or any(int(db.get(f"queue:{sum_}") or 0) for sum_ in ("bytes", "work"))
    return empty and not leftovers and not occupied


async def pull_one(queue: WorkerQueue, items: int = 16) -> list[Delivery]:
    return await asyncio.to_thread(queue.pull, [QUEUE], items, 2000)


async def running(queue: WorkerQueue, items: int = 16) -> list[Delivery]:
    """Pull deliveries and start them."""
    return queue.start(await pull_one(queue, items), 0)


def echo(queue: WorkerQueue, delivery: Delivery) -> Reply:
    return Reply(id=delivery.job.id, worker=queue.id, arrays={"x": delivery.job.arrays["x"]})


_numbers = count(1)


def delivery(
    *,
    bundle: str = "tiny@1",
    bucket: str = "a",
    priority: Priority = "normal",
    queued_at: float = 0.0,
    pulled_at: float | None = None,
    alone: bool = False,
    pixels: Any = None,
    merge: tuple[int, ...] = (0, 0),
) -> Delivery:
    number = next(_numbers)
    job = QueuedJob(
        id=f"job-{number}",
        bundle=bundle,
        digest="0" * 64,
        bucket=bucket,
        arrays={} if pixels is None else {"pixels": Array.from_numpy(np.asarray(pixels))},
        options={"merge": list(merge)},
        priority=priority,
        deadline_ms=2**50,
        gateway="gateway",
    )
    queue_name = keys.queue(bundle, job.digest)
    occupied = QueueEntry(
        job_id=job.id,
        gateway=job.gateway,
        stream=keys.stream(queue_name, priority),
        bundle=bundle,
        queue=queue_name,
        entry_id=f"{number}-0",
        alone=alone,
        added_ms=number,
        queued_at=queued_at,
        pulled_at=queued_at if pulled_at is None else pulled_at,
        checked_at=queued_at,
        nbytes=sum(len(array.data) for array in job.arrays.values()),
    )
    return delivery_of(occupied, job)
