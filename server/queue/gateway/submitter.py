"""Jobs on their way into the queue, and back as replies.

Requests that are ready in one turn of the event loop are admitted in one call of `enqueue.lua`, each with a status of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import msgspec
import redis

from server.queue import keys
from server.queue.errors import ClientShare, DeadlineExceeded, KeyShare, NeverFits, QueueFull, RedisAway
from server.queue.gateway.connection import PAUSE_S, AsyncLink
from server.queue.gateway.large_values import Freight
from server.queue.gateway.quotas import NOTHING, Claim, Held, Ledger, Load, Reservation, beyond_key, bounds, refusal, seconds
from server.queue.gateway.reply_inbox import Inbox, Waiting
from server.queue.messages import Progress, QueuedJob, Reply, later
from server.queue.resp import PIECE_BYTES
from server.queue.script import Script
from server.queue.script_rows import AdmissionCall, Enqueued, Request
from server.settings import Settings

log = logging.getLogger(__name__)

ENQUEUE = Script("enqueue", AdmissionCall, tuple[int, int, list[bytes]])
CANCEL = Script("cancel", list[str], bytes)
INLINE_BYTES = PIECE_BYTES
"""Larger messages lie beside the stream as `blob:<id>`, and are written before the call that queues them."""
GROUP_BYTES = 1024 * 1024
"""Requests share a call up to this size; a larger one has a call of its own."""
GROUP_JOBS = 64
LATE = "the deadline had passed before the job was queued"
STEADY_MS = 500
"""Two readings of a clock that has not been set differ by less, however slowly they travelled."""
NOBODY = "-"
"""How the scripts spell an owner that is empty."""
REFUSALS = {b"client": ClientShare, b"full": QueueFull, b"key": KeyShare}
"""The scripts' word → why."""


@dataclass(frozen=True, slots=True)
class _Request:
    request: Request
    messages: list[bytes]
    """They travel with the call; empty where the message is staged."""
    staged: dict[str, bytes]
    """Key → what is written before the call."""
    admitted: asyncio.Future[int]
    """How many wait before its first job, if it wants to know; else 0."""

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.messages))


class Submitter:
    """For any number of coroutines of one event loop."""

    def __init__(
        self, link: AsyncLink, freight: Freight, inbox: Inbox, settings: Settings, *, fresh: float, read: Callable[[], Awaitable[None]]
    ) -> None:
        """`fresh`: nobody is turned away because of figures that are older than so many seconds. `read`: reads the load and tells it by
        `set_load`, or raises RedisAway."""
        self.bounds = bounds(settings.queue_max_items, settings.queue_max_bytes)
        self._link = link
        self._fresh = fresh
        self.read_load = read
        self._freight = freight
        self._inbox = inbox
        self._ledger = Ledger()
        self._ready: list[_Request] = []
        """Requests that are sent with the next call."""
        self._sending = 0
        """Calls on their way."""
        self._read_at = 0.0
        self.load = Load()

    def reserve(self, claim: Claim) -> Reservation:
        """No places yet: a request takes them as its body arrives."""
        return Reservation(self._ledger, self._check, claim)

    async def submit(
        self,
        jobs: list[QueuedJob],
        *,
        reservation: Reservation | None = None,
        on_admitted: Callable[[int], None] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_reply: Callable[[Reply], None] | None = None,
    ) -> list[Reply]:
        """Enqueue the jobs of one request, all or none, and wait for every reply; in the order of the jobs.

        The reservation is given up as soon as the queue counts the jobs itself. `on_admitted` is then called with how many wait before the
        first job, `on_progress` and `on_reply` with what comes from workers, all in the event loop. A reply may carry a `failure`.
        The caller is cancelled at the deadline by others: then the jobs are cancelled too, as they are where this raises QueueFull,
        RedisAway (away for longer than `redis_grace`), or DeadlineExceeded for what came too late to be queued.
        """
        refused = False
        expected = self._inbox.expect(jobs, on_progress, on_reply)
        try:
            max_items = 0 if reservation is None else reservation.claim.max_items
            place = await self._enqueue(expected, max_items, place=on_admitted is not None)
            self._inbox.sent(expected)
            if reservation is not None:
                reservation.release()
            if on_admitted is not None:
                on_admitted(place)
            return [await waiting.reply for waiting in expected]
        except QueueFull:
            refused = True
            raise
        finally:
            self._inbox.forget(expected)
            unanswered = [waiting.job for waiting in expected if not waiting.answered]
            if unanswered and not refused:
                self.cancel([job.id for job in unanswered])

    async def _enqueue(self, expected: Sequence[Waiting], max_items: int, *, place: bool) -> int:
        """Redis' clock may have been set since it was read: then the deadlines move with it."""
        try:
            return await self.enqueue([waiting.job for waiting in expected], max_items=max_items, place=place)
        except DeadlineExceeded:
            if not (jumped := await self.jumped_ms()):
                raise
        for waiting in expected:
            waiting.job = later(waiting.job, jumped)
        return await self.enqueue([waiting.job for waiting in expected], max_items=max_items, place=place)

    async def resend_lost(self) -> None:
        """Enqueue again what Redis has lost. This does not wait for it: large messages take their time."""
        for waiting in await self._inbox.take_lost():
            self._link.spawn(self._resend(waiting))

    async def _resend(self, waiting: Waiting) -> None:
        try:
            await self.enqueue([waiting.job], again=True)
        except (DeadlineExceeded, RedisAway) as error:
            log.debug("job %s not sent again: %s", waiting.job.id, error)
        finally:
            waiting.sent_at = time.monotonic()

    async def enqueue(self, jobs: Sequence[QueuedJob], *, max_items: int = 0, again: bool = False, place: bool = False) -> int:
        """The jobs of one request, all or none; returns when the queue holds them, with how many wait before the first if `place`.

        max_items: of their owner, unfinished; 0: no limit of its own.

        Raises QueueFull, DeadlineExceeded or RedisAway.
        """
        loop = asyncio.get_running_loop()
        rows, messages, staged = to_rows(jobs, max_items)
        request = _Request(Request(rows, again, place), messages, staged, loop.create_future())
        if not self._ready and not self._sending:
            loop.call_soon(self._send_ready)
        self._ready.append(request)
        return await request.admitted

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End jobs that nobody waits for. If Redis cannot be reached, their deadline ends them."""
        if self._link.is_closed:  # workers drop them
            return

        async def tell() -> None:
            with suppress(RedisAway):
                await self._link.move(CANCEL, list(job_ids))

        self._link.spawn(tell())

    async def jumped_ms(self) -> int:
        """Read Redis' clock anew: by how much it has gone forward beyond what was expected. 0: it has not; what came late was late."""
        before = self._link.clock_offset_ms
        await self.read_load()
        jumped = int(self._link.clock_offset_ms - before)
        return jumped if jumped > STEADY_MS else 0

    def set_load(self, now_ms: int, load: Load) -> None:
        self.load = load
        self._read_at = time.monotonic()
        self._link.set_clock(now_ms)

    def age(self) -> float:
        """Seconds since the load was read."""
        return time.monotonic() - self._read_at

    async def _check(self, claim: Claim, asked: Held, has: Held) -> None:
        refused = refusal(self.bounds, self.load, self._ledger, claim, asked, has)
        if refused is not None and self.age() > self._fresh:
            await self.read_load_if_there()
            refused = refusal(self.bounds, self.load, self._ledger, claim, asked, has)
        if refused is not None:
            raise refused

    async def read_load_if_there(self) -> None:
        """For Retry-After."""
        with suppress(RedisAway):
            await self.read_load()

    def refused(self, status: bytes, jobs: Sequence[Enqueued]) -> QueueFull | NeverFits:
        """Explain the script's word for these jobs, by figures that were read just now."""
        kind = REFUSALS[status]
        one = jobs[0]
        claim = Claim("" if one.owner == NOBODY else one.owner, one.takes_long, one.low, one.max_items)
        asked = Held(len(jobs), sum(job.nbytes for job in jobs), sum(job.work_ms for job in jobs))
        if kind is KeyShare:
            return beyond_key(self.load.all, self.load.owners.get(claim.owner, Held()), claim, len(jobs))
        found = refusal(self.bounds, self.load, NOTHING, claim, asked, Held())
        if found is not None and type(found) in (kind, NeverFits):
            return found
        return kind(1, f"there was no place: {self.load.all.items} jobs, {self.load.all.nbytes} bytes")

    def full(self, reason: str, items: int = 1) -> QueueFull:
        """For another reason, which holds until so many jobs have ended."""
        held = self.load.all
        wait = seconds(held.work_ms * min(1.0, items / max(1, held.items)))
        return QueueFull(wait, f"{reason}: {held.items} jobs, {held.nbytes} bytes")

    async def given_up(self, away: RedisAway, since: float) -> Exception | None:
        """Return what to tell whoever sent the call that ended so; None once it is to be sent again. since: when it was sent first."""
        if isinstance(away.__cause__, redis.exceptions.OutOfMemoryError):
            return self.full("the queue's Redis is out of memory")
        if self._link.given_up() is not None or (away.of_a_key and self._link.over_grace(since)):
            return away
        self._link.lost(away)
        if away.of_a_key:
            await asyncio.sleep(PAUSE_S)
        return None

    def _send_ready(self) -> None:
        ready, self._ready = self._ready, []
        for group in _groups(ready):
            call = self._link.spawn(self._send(group))
            if not group[0].staged:  # else it may take its time, and nobody waits for it
                self._sending += 1
                call.add_done_callback(self._sent)

    def _sent(self, _call: object) -> None:
        """Send what became ready meanwhile with one call: under load calls, batches and replies are larger and fewer."""
        self._sending -= 1
        if self._ready and not self._sending:
            self._send_ready()

    async def _send(self, group: list[_Request]) -> None:
        """The script does nothing for a job that it has queued before, so trying again is safe."""
        since = time.monotonic()
        while group := [request for request in group if not request.admitted.done()]:
            try:
                await self._link.wait()
                await self._stage(group)
                if not (group := [request for request in group if not request.admitted.done()]):
                    return
                call = AdmissionCall(self.bounds, [request.request for request in group])
                answer = await self._link.move(ENQUEUE, call, (message for request in group for message in request.messages))
            except RedisAway as away:
                if (why := await self.given_up(away, since)) is not None:
                    _refuse(group, why)
                continue
            except Exception as error:
                _refuse(group, error)
                raise
            if b"unstaged" not in answer[2]:
                await self._tell(group, *answer)
                return

    async def _stage(self, group: Iterable[_Request]) -> None:
        for request in group:
            for key, message in request.staged.items():
                await self._freight.write(key, message, wanted=lambda waits=request.admitted: not waits.done())  # type: ignore[misc]
            if request.admitted.done():  # no script will come by what its client has left behind
                for key in request.staged:
                    await self._freight.delete(key)

    async def _tell(self, group: list[_Request], items: int, nbytes: int, statuses: list[bytes]) -> None:
        self.load = replace(self.load, all=Held(items, nbytes, self.load.all.work_ms))
        if not REFUSALS.keys().isdisjoint(statuses):
            await self.read_load_if_there()
        for request, answer in zip(group, statuses, strict=True):
            status, _, ahead = answer.partition(b" ")
            if request.admitted.done():  # its client has left, and its cancellation may have found nothing
                if status == b"ok":
                    self.cancel([job.job for job in request.request.jobs])
                continue
            if status == b"ok":
                request.admitted.set_result(int(ahead or 0))
            else:
                refused: Exception = self.refused(status, request.request.jobs) if status in REFUSALS else DeadlineExceeded(LATE)
                request.admitted.set_exception(refused)


def to_rows(jobs: Iterable[QueuedJob], max_items: int, *, kept: bool = False) -> tuple[list[Enqueued], list[bytes], dict[str, bytes]]:
    """The jobs as the scripts read them, their messages and, by their keys, those messages that must be written before and are empty there.

    `kept`: the messages lie beside the stream however small they are, where they can be read again."""
    rows, messages, staged = [], [], {}
    for job in jobs:
        message = msgspec.msgpack.encode(job)
        place = "stage" if len(message) > INLINE_BYTES else "blob" if kept else "inline"
        if place == "stage":
            staged[keys.stage(job.id)] = message
        messages.append(b"" if place == "stage" else message)
        stream = keys.stream(keys.queue(job.bundle, job.digest), job.priority)
        holds = (job.owner or NOBODY, job.work_ms, job.takes_long, job.behind_ms, job.low, max_items)
        rows.append(Enqueued(job.id, stream, job.gateway, job.deadline_ms, place, len(message), *holds))
    return rows, messages, staged


def _groups(requests: Iterable[_Request]) -> Iterator[list[_Request]]:
    group: list[_Request] = []
    nbytes = jobs = 0
    for request in requests:
        if request.staged:
            yield [request]  # nobody else waits until its messages have been written
            continue
        if group and (nbytes + request.nbytes > GROUP_BYTES or jobs + len(request.request.jobs) > GROUP_JOBS):
            yield group
            group, nbytes, jobs = [], 0, 0
        group.append(request)
        nbytes += request.nbytes
        jobs += len(request.request.jobs)
    if group:
        yield group


def _refuse(group: Iterable[_Request], error: Exception) -> None:
    for request in group:
        if not request.admitted.done():  # else its client has left
            request.admitted.set_exception(error)
