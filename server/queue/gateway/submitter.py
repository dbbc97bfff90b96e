"""Jobs on their way into the queue, and back as replies.

Requests that are ready in one turn of the event loop are admitted in one call of `enqueue.lua`, each with a status of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import redis

from server.queue import keys
from server.queue.errors import DeadlineExceeded, RedisAway, Refused
from server.queue.gateway.connection import PAUSE_S, AsyncLink
from server.queue.gateway.large_values import Freight
from server.queue.gateway.reply_inbox import Inbox, Waiting
from server.queue.gateway.reservations import Load, Reservation, Reservations
from server.queue.messages import Progress, QueuedJob, Reply
from server.queue.resp import PIECE_BYTES
from server.queue.script import Script
from server.queue.script_rows import NO_OWNER, AdmissionAnswer, AdmissionCall, Claim, Enqueued, Outcome, Request

log = logging.getLogger(__name__)

ENQUEUE = Script("enqueue", AdmissionCall, AdmissionAnswer)
CANCEL = Script("cancel", list[str], bytes)
INLINE_BYTES = PIECE_BYTES
"""Larger messages lie beside the stream as `blob:<id>`, and are written before the call that queues them."""
GROUP_BYTES = 1024 * 1024
"""Requests share a call up to this size; a larger one has a call of its own."""
GROUP_JOBS = 64
LATE = "the deadline had passed before the job was queued"


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

    def __init__(self, link: AsyncLink, freight: Freight, inbox: Inbox, reservations: Reservations) -> None:
        self._link = link
        self._freight = freight
        self._inbox = inbox
        self._reservations = reservations
        self._ready: list[_Request] = []
        """Requests that are sent with the next call."""
        self._sending = 0
        """Calls on their way."""

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
        The caller is cancelled at the deadline by others: then the jobs are cancelled too, as they are where this raises RedisAway (away
        for longer than `redis_grace`), or DeadlineExceeded for what came too late to be queued. Also raises Refused.
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
        except Refused:
            refused = True
            raise
        finally:
            self._inbox.forget(expected)
            unanswered = [waiting.job for waiting in expected if not waiting.answered]
            if unanswered and not refused:
                self.cancel([job.id for job in unanswered])

    async def _enqueue(self, expected: Sequence[Waiting], max_items: int, *, place: bool) -> int:
        """Where Redis' clock was set since it was read, the deadlines move with it."""
        while True:
            try:
                return await self.enqueue([waiting.job for waiting in expected], max_items=max_items, place=place)
            except DeadlineExceeded:
                if time.monotonic() > min(waiting.until for waiting in expected):
                    raise
            for waiting in expected:
                waiting.job = self._link.until(waiting.job, waiting.until)

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

        Raises Refused, DeadlineExceeded or RedisAway.
        """
        loop = asyncio.get_running_loop()
        claim, rows, messages, staged = to_rows(jobs, max_items)
        request = _Request(Request(rows, claim, again, place), messages, staged, loop.create_future())
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

    async def given_up(self, away: RedisAway, since: float) -> Exception | None:
        """Return what to tell whoever sent the call that ended so; None once it is to be sent again. since: when it was sent first."""
        if isinstance(away.__cause__, redis.exceptions.OutOfMemoryError):
            load = self._reservations.load
            return Refused(Outcome(b"memory", load.work_ms // max(1, load.items), load.items, load.nbytes))
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
                call = AdmissionCall(self._reservations.bounds, [request.request for request in group])
                answer = await self._link.move(ENQUEUE, call, (message for request in group for message in request.messages))
            except RedisAway as away:
                if (why := await self.given_up(away, since)) is not None:
                    _refuse(group, why)
                continue
            except Exception as error:
                _refuse(group, error)
                raise
            if not any(outcome.reason == b"unstaged" for outcome in answer.outcomes):
                self._resolve(group, answer)
                return

    async def _stage(self, group: Iterable[_Request]) -> None:
        for request in group:
            for key, message in request.staged.items():
                await self._freight.write(key, message, wanted=lambda waits=request.admitted: not waits.done())  # type: ignore[misc]
            if request.admitted.done():  # no script will come by what its client has left behind
                for key in request.staged:
                    await self._freight.delete(key)

    def _resolve(self, group: list[_Request], answer: AdmissionAnswer) -> None:
        self._reservations.load = Load(answer.items, answer.nbytes, answer.work_ms)
        if any(outcome.reason == b"late" for outcome in answer.outcomes):  # or Redis' clock was set
            self._link.set_clock(answer.now_ms)
        for request, outcome in zip(group, answer.outcomes, strict=True):
            if request.admitted.done():  # its client has left, and its cancellation may have found nothing
                if not outcome.reason:
                    self.cancel([job.job for job in request.request.jobs])
            elif not outcome.reason:
                request.admitted.set_result(outcome.items)
            else:
                request.admitted.set_exception(DeadlineExceeded(LATE) if outcome.reason == b"late" else Refused(outcome))


def to_rows(
    jobs: Sequence[QueuedJob], max_items: int, *, kept: bool = False
) -> tuple[Claim, list[Enqueued], list[bytes], dict[str, bytes]]:
    """Return what the jobs of a request ask for, the jobs as the scripts read them, their messages and, by their keys, those messages that
    must be written before and are empty there.

    `kept`: the messages lie beside the stream however small they are, where they can be read again."""
    rows, messages, staged = [], [], {}
    for job in jobs:
        message = msgspec.msgpack.encode(job)
        place = "stage" if len(message) > INLINE_BYTES else "blob" if kept else "inline"
        if place == "stage":
            staged[keys.stage(job.id)] = message
        messages.append(b"" if place == "stage" else message)
        stream = keys.stream(keys.queue(job.bundle, job.digest), job.priority)
        holds = len(message), job.owner or NO_OWNER, job.work_ms, job.behind_ms, job.low
        rows.append(Enqueued(job.id, stream, job.gateway, job.deadline_ms, place, *holds))
    one, nbytes, work_ms = jobs[-1], sum(row.nbytes for row in rows), sum(row.work_ms for row in rows)
    return Claim(one.owner or NO_OWNER, one.takes_long, one.low, max_items, len(rows), nbytes, work_ms), rows, messages, staged


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
