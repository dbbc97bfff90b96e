"""The gateway's end of the queue: admit jobs, wait for their replies, lose none. For one asyncio event loop.

Three tasks stand behind it. *Beat*, every second: refreshes `gw:<id>`, reads clock and load, and enqueues again what Redis has lost.
*Reader*: waits on this gateway's reply stream. *Cancellations* run on their own, so that a request that ends early need not wait for them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import redis

from server.queue import keys, lua
from server.queue.connect import away_is_one_error, connect_async
from server.queue.errors import DeadlinePassed, QueueFull, RedisAway
from server.queue.fleet import Fleet, FleetReader, Load, QueueDepth
from server.queue.identity import process_id
from server.queue.job import Failure, Job, Reply, UnknownVersion, decode_reply, encode
from server.queue.reservation import Ledger, Reservation
from server.queue.rows import Enqueued
from server.settings import Settings

__all__ = ["DeadlinePassed", "Dispatcher", "DispatcherTimings", "Fleet", "QueueDepth", "QueueFull", "RedisAway", "Reservation"]

log = logging.getLogger(__name__)
T = TypeVar("T")

INLINE_BYTES = 256 * 1024
"""Larger messages lie beside the stream as `blob:<id>`."""
UNLIMITED = 2**53
READ_BLOCK_S = 2.0
REPLIES_PER_READ = 256
CONCURRENT_COMMANDS = 16
PATIENCE_S = 1.0
"""For commands that move no payload."""
RETRY_S = 0.1


@dataclass(frozen=True)
class DispatcherTimings:
    """Seconds; the defaults are the service's contract, tests shorten them."""

    beat: float = 1.0
    gateway_ttl: float = 5.0
    lost_after: float = 2.0
    """An unanswered job this old is looked for."""
    news: float = 0.5
    """How old `fleet()` and `depth()` may be."""
    fresh_load: float = 0.05
    """A request is not turned away because of figures older than this."""


@dataclass(slots=True)
class _Waiting:
    job: Job
    sent_at: float
    reply: asyncio.Future[Reply]

    @property
    def answered(self) -> bool:
        return self.reply.done() and not self.reply.cancelled() and self.reply.exception() is None


class Dispatcher:
    """`await start()`, then `submit_all` from any number of coroutines, then `await close()`. It starts and runs while Redis is away."""

    def __init__(self, url: str, settings: Settings, timings: DispatcherTimings | None = None) -> None:
        self.id = process_id()
        """New for each start; names the reply stream."""
        self._settings = settings
        self._timings = timings or DispatcherTimings()
        self._redis: Any = connect_async(url)
        self._reader: Any = connect_async(url, blocking=READ_BLOCK_S)
        self._script = {name: self._redis.register_script(lua.source(name)) for name in ("enqueue", "beat", "load", "set_repository")}
        self._commands = asyncio.Semaphore(CONCURRENT_COMMANDS)
        self._waiting: dict[str, _Waiting] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

        self._here = asyncio.Event()
        self._away_since: float | None = time.monotonic()
        self._away = RedisAway()
        """The latest reason."""
        self._nudge = asyncio.Event()
        self._last_reply = "0-0"
        self._was_known = False

        self._ledger = Ledger()
        self._load = Load(0, 0, 0)
        self._load_read_at = 0.0
        self._clock_offset_ms = time.time() * 1000 - time.monotonic() * 1000
        self._beat_at = time.monotonic()
        self._answered = 0
        """Replies since the last beat."""
        self._answered_per_second = 0.0
        self._fleet_reader = FleetReader(self._redis)
        self._fleet = Fleet()
        self._fleet_read_at = 0.0
        self._fleet_lock = asyncio.Lock()

    async def start(self) -> None:
        """Connects if Redis is there; if not, it goes on trying in the background."""
        with suppress(RedisAway):
            await self._beat()
        self._spawn(self._beat_forever())
        self._spawn(self._read_forever())

    async def close(self) -> None:
        """Stop and sign off: workers drop what is still queued for this gateway."""
        self._closed = True
        while self._tasks:  # Python 3.11's wait_for, which redis-py uses, may swallow a cancellation
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=RETRY_S)
        with suppress(RedisAway), away_is_one_error():
            await self._redis.delete(keys.gateway(self.id), keys.replies(self.id))
            await self._redis.srem(keys.GATEWAYS, self.id)
        await self._redis.aclose()
        await self._reader.aclose()

    # Requests

    def reserve(self, items: int, nbytes: int) -> Reservation:
        """Room for so many jobs and bytes, before the body is read: `async with`; raises QueueFull on entry."""
        return Reservation(self._ledger, self._check_room, items, nbytes)

    async def submit_all(self, jobs: list[Job], *, reservation: Reservation | None = None) -> list[Reply]:
        """Enqueue the jobs of one request, all or none, and wait for every reply; in the order of the jobs.

        The reservation is given up as soon as the queue counts the jobs itself. A reply may carry a `failure`. Raises QueueFull, RedisAway
        (away for longer than `redis_grace`) or DeadlinePassed; then, and when the caller is cancelled, the jobs are cancelled too.
        """
        loop, now = asyncio.get_running_loop(), time.monotonic()
        mine = [_Waiting(job, now, loop.create_future()) for job in jobs]
        refused = False
        self._waiting.update((waiting.job.id, waiting) for waiting in mine)
        try:
            async with asyncio.timeout((min(job.deadline_ms for job in jobs) - self._estimate_ms()) / 1000):
                await self._undisturbed(self._enqueue(jobs))
                if reservation is not None:
                    reservation.release()
                return [await waiting.reply for waiting in mine]
        except QueueFull:
            refused = True
            raise
        except TimeoutError:
            raise DeadlinePassed("the deadline passed before the answer came") from None
        finally:
            for waiting in mine:
                self._waiting.pop(waiting.job.id, None)
            unanswered = [waiting.job for waiting in mine if not waiting.answered]
            if unanswered and not refused and not self._closed:
                self._spawn(self._cancel(unanswered))

    # The rest of the service

    async def fleet(self, *, fresh: bool = False) -> Fleet:
        """Who serves what, at most half a second old. Raises RedisAway at once while Redis does not answer."""
        asked_at = time.monotonic()
        oldest = asked_at if fresh else asked_at - self._timings.news
        if self._fleet_read_at <= oldest:
            async with self._fleet_lock:
                if self._fleet_read_at <= oldest:
                    read_at = time.monotonic()
                    self._fleet = await self._ask(self._fleet_reader.read)
                    self._fleet_read_at = read_at
        return self._fleet

    async def depth(self) -> dict[tuple[str, str], QueueDepth]:
        """(bundle, priority) → unfinished jobs, at most half a second old. Raises RedisAway at once while Redis does not answer."""
        if time.monotonic() - self._load_read_at > self._timings.news or self._away_since is not None:
            await self._read_load()
        return dict(self._load.depths)

    async def restarts(self) -> dict[str, int]:
        """How often supervisors have restarted a worker, by reason. Raises RedisAway at once while Redis does not answer."""
        fields: dict[bytes, bytes] = await self._ask(lambda: self._redis.hgetall(keys.RESTARTS))
        return {reason.decode(): int(count) for reason, count in fields.items()}

    async def statistics(self, bundle_id: str) -> dict[str, int]:
        """Cumulative, over all workers and gateways, as counted when jobs end; empty before the first.

        `success`, `fail`, `queue`, `compute_input`, `compute_infer`, `compute_output`, each with `_count` and `_ns`; `inference_count`,
        `execution_count`, `last_inference` (Unix ms), and for each batch size that ran `batch:<n>:count` and `batch:<n>:compute_*_ns`.
        """
        fields: dict[bytes, bytes] = await self._ask(lambda: self._redis.hgetall(keys.statistics(bundle_id)))
        return {name.decode(): int(value) for name, value in fields.items()}

    async def set_repository(self, name: str, state: str) -> int:
        """`loaded` or `unloaded`: workers follow, gateways read it in `fleet().repository`.

        Returns the repository's revision; a worker whose `repository_revision` is as high has followed.
        """

        revision = await self._ask(lambda: self._script["set_repository"](args=[name, state]))
        self._fleet_read_at = 0.0
        return int(revision)

    async def now_ms(self) -> int:
        """Redis' clock, Unix milliseconds, as estimated every second; this machine's until Redis has answered once."""
        return int(self._estimate_ms())

    async def ping(self) -> bool:
        """Whether Redis answers right now."""
        try:
            await self._ask(self._redis.ping)
        except RedisAway:
            return False
        return True

    # Admission

    async def _check_room(self, items: int, nbytes: int) -> None:
        if self._has_room(items, nbytes):
            return
        if time.monotonic() - self._load_read_at > self._timings.fresh_load:
            with suppress(RedisAway):
                await self._read_load()
        if not self._has_room(items, nbytes):
            raise self._full()

    def _has_room(self, items: int, nbytes: int) -> bool:
        return (
            self._load.items + self._ledger.items + items <= self._settings.queue_max_items
            and self._load.nbytes + self._ledger.nbytes + nbytes <= self._settings.queue_max_bytes
        )

    def _full(self, reason: str = "the queue is full") -> QueueFull:
        retry_after = self._load.seconds_to_drain(self._fleet, self._answered_per_second)
        return QueueFull(retry_after, f"{reason}: {self._load.items} jobs, {self._load.nbytes} bytes")

    async def _enqueue(self, jobs: Sequence[Job], *, again: bool = False) -> None:
        """`again`: admitted once, lost by Redis, so it has its place."""
        limits = (UNLIMITED, UNLIMITED) if again else (self._settings.queue_max_items, self._settings.queue_max_bytes)
        arguments: list[Any] = [*limits]
        for job in jobs:
            message = encode(job)
            where = "blob" if len(message) > INLINE_BYTES else "inline"
            stream = keys.stream(keys.queue(job.bundle, job.digest), job.priority)
            arguments += Enqueued(job.id, stream, job.gateway, job.deadline_ms, where, message)
        status, items, nbytes = await self._until_it_answers(arguments)
        self._load = Load(self._load.now_ms, items, nbytes, self._load.depths)
        if status == b"full":
            with suppress(RedisAway):
                await self._read_load()
            raise self._full()
        if status == b"late":
            raise DeadlinePassed("the deadline had passed before the job was queued")

    async def _until_it_answers(self, arguments: list[Any]) -> Any:
        """The script does nothing for a job that it has queued before, so trying again is safe."""
        while True:
            await self._wait_for_redis()
            try:
                with away_is_one_error():
                    async with self._commands:
                        return await self._script["enqueue"](args=arguments)
            except RedisAway as away:
                if isinstance(away.__cause__, redis.exceptions.OutOfMemoryError):
                    raise QueueFull(
                        self._load.seconds_to_drain(self._fleet, self._answered_per_second), "the queue's Redis is out of memory"
                    ) from None
                self._lost_redis(away)

    async def _cancel(self, jobs: Sequence[Job]) -> None:
        now_ms = self._estimate_ms()
        with suppress(RedisAway), away_is_one_error():
            async with self._commands, self._redis.pipeline(transaction=False) as pipeline:
                for job in jobs:
                    # a worker that sees the job after that sees its deadline too
                    pipeline.set(keys.cancel(job.id), b"1", px=max(1000, int(job.deadline_ms - now_ms) + 10_000))
                await pipeline.execute(raise_on_error=False)  # a Redis that refuses to remember it: the deadline ends the job

    # Presence of Redis

    def _lost_redis(self, away: RedisAway) -> None:
        self._away = away
        if self._away_since is None:
            self._away_since = time.monotonic()
            self._here.clear()
            self._nudge.set()

    def _found_redis(self) -> None:
        self._away_since = None
        self._here.set()

    async def _wait_for_redis(self) -> None:
        """Returns when Redis answers; raises RedisAway once it has been away for longer than `redis_grace`."""
        if self._away_since is None:
            return
        try:
            async with asyncio.timeout(self._settings.redis_grace - (time.monotonic() - self._away_since)):
                await self._here.wait()
        except TimeoutError:
            raise self._away_too_long() from None

    def _away_too_long(self) -> RedisAway:
        what = f"refuses to work ({self._away.refusal})" if self._away.refusal else "does not answer"
        return RedisAway(detail=f"the queue's Redis {what}, for {self._settings.redis_grace:g} s by now", refusal=self._away.refusal)

    async def _ask(self, command: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """One command, or RedisAway: at once if that is known, within a second if not."""
        if self._away_since is not None:
            raise RedisAway(detail=str(self._away), refusal=self._away.refusal)

        async def in_turn() -> T:
            async with self._commands:
                return await command()

        return await self._at_once(in_turn)

    async def _at_once(self, command: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            with away_is_one_error():
                async with asyncio.timeout(PATIENCE_S):
                    return await self._undisturbed(command())
        except TimeoutError:
            away = RedisAway(detail=f"the queue's Redis has not answered for {PATIENCE_S:g} s")
            self._lost_redis(away)
            raise away from None
        except RedisAway as away:
            self._lost_redis(away)
            raise

    async def _read_load(self) -> None:
        self._set_load(Load.of(await self._ask(self._script["load"])))

    def _set_load(self, load: Load) -> None:
        self._load = load
        self._load_read_at = time.monotonic()
        self._clock_offset_ms = load.now_ms - self._load_read_at * 1000

    def _estimate_ms(self) -> float:
        return time.monotonic() * 1000 + self._clock_offset_ms

    # Background

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _undisturbed(self, work: Coroutine[Any, Any, T]) -> T:
        """A caller that is cancelled or out of time leaves at once; the command ends by itself.

        Cancelling redis-py in mid-command costs a connection and, under Python 3.11, may swallow the cancellation."""
        task = self._spawn(work)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to look at it
        return await asyncio.shield(task)

    async def _beat_forever(self) -> None:
        while not self._closed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._nudge.wait(), self._timings.beat if self._away_since is None else RETRY_S)
            self._nudge.clear()
            try:
                await self._beat()
                await self._send_lost_again()
            except RedisAway:
                self._give_up_after_grace()
            except Exception:
                log.exception("the dispatcher's beat failed")

    async def _beat(self) -> None:
        arguments: list[Any] = [self.id, int(self._timings.gateway_ttl * 1000), self._last_reply]
        known, *load = await self._at_once(lambda: self._script["beat"](args=arguments))
        if not known and self._was_known:
            # Redis lost its data, or this process slept: a new stream may count from a clock that is behind, so read it from its start
            self._last_reply = "0-0"
        self._was_known = True
        now = time.monotonic()
        self._answered_per_second += 0.3 * (self._answered / (now - self._beat_at) - self._answered_per_second)
        self._answered, self._beat_at = 0, now
        self._set_load(Load.of(load))
        self._found_redis()

    def _give_up_after_grace(self) -> None:
        if self._away_since is None or time.monotonic() - self._away_since < self._settings.redis_grace:
            return
        for waiting in self._waiting.values():
            if not waiting.reply.done():
                waiting.reply.set_exception(self._away_too_long())

    async def _send_lost_again(self) -> None:
        """Unanswered for long and `job:<id>` gone: Redis lost it (fail-over, restart without data) or ended it without an answer."""
        before = time.monotonic() - self._timings.lost_after
        overdue = [waiting for waiting in self._waiting.values() if waiting.sent_at < before and not waiting.reply.done()]
        if not overdue:
            return
        marks = await self._ask(lambda: self._redis.mget([keys.job(waiting.job.id) for waiting in overdue]))
        gone = [waiting for waiting, mark in zip(overdue, marks, strict=True) if mark is None]
        if not gone:
            return
        # an answer was written when its job:<id> went, so it is in the stream by now, read or not
        self._deliver(await self._ask(lambda: self._redis.xrange(keys.replies(self.id), f"({self._last_reply}")))
        for waiting in gone:
            if not waiting.reply.done() and waiting.job.deadline_ms > self._estimate_ms():
                waiting.sent_at = time.monotonic()
                with suppress(DeadlinePassed):
                    await self._enqueue([waiting.job], again=True)

    async def _read_forever(self) -> None:
        stream = keys.replies(self.id)
        while not self._closed:
            await self._here.wait()
            try:
                read_from = self._last_reply
                with away_is_one_error():
                    answer = await self._reader.execute_command(
                        "XREAD", "COUNT", REPLIES_PER_READ, "BLOCK", int(READ_BLOCK_S * 1000), "STREAMS", stream, read_from
                    )
                for _, entries in answer or ():
                    self._deliver(entries)
                    if self._last_reply == read_from:  # not set back by a beat meanwhile
                        self._last_reply = entries[-1][0].decode()
            except RedisAway as away:
                self._lost_redis(away)
                await asyncio.sleep(RETRY_S)
            except Exception:
                log.exception("reading replies failed")
                await asyncio.sleep(RETRY_S)

    def _deliver(self, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> None:
        """Replies to those who wait; second replies and those that come too late are discarded."""
        for _, fields in entries:
            waiting = self._waiting.get(fields[b"id"].decode())
            if waiting is None or waiting.reply.done():
                continue
            try:
                reply = decode_reply(fields[b"reply"])
            except (UnknownVersion, msgspec.MsgspecError) as error:
                failure = Failure(kind="unknown-version", detail=f"the gateway cannot read the worker's reply: {error}")
                reply = Reply(id=waiting.job.id, worker="", failure=failure)
            waiting.reply.set_result(reply)
            self._answered += 1
