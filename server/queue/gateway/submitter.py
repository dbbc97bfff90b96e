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
from server.queue.connect import CHUNK_BYTES, RedisUnavailable
from server.queue.gateway.connection import PAUSE_S, GatewayRedisLink
from server.queue.gateway.reply_inbox import PendingJob, ReplyInbox
from server.queue.gateway.reservations import Load, Reservation, Reservations
from server.queue.messages import Progress, QueuedJob, Reply
from server.queue.script import (
    NO_OWNER,
    AdmissionAnswer,
    AdmissionCall,
    Claim,
    DeadlineExceeded,
    JobRow,
    Outcome,
    Refused,
    RequestRow,
    Script,
)

log = logging.getLogger(__name__)

ENQUEUE = Script("enqueue", AdmissionCall, AdmissionAnswer)
CANCEL = Script("cancel", list[str], bytes)
INLINE_BYTES = CHUNK_BYTES
"""Larger messages are stored as `blob:<id>`, and are written before the call that queues them."""
MAX_CALL_BYTES = 1024 * 1024
"""Requests share a call up to this size; a larger one has a call of its own."""
MAX_CALL_JOBS = 64
DEADLINE_PASSED = "the deadline had passed before the job was queued"


@dataclass(frozen=True, slots=True)
class _PendingAdmission:
    request: RequestRow
    messages: list[bytes]
    """Messages of the jobs; empty for those that are staged."""
    staged: dict[str, bytes]
    """Key → message that is written before the call."""
    admitted: asyncio.Future[int]
    """Number of jobs before its first, if it wants to know; else 0."""
    reservation: Reservation | None

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.messages))


class Submitter:
    """Admissions of one event loop."""

    def __init__(self, link: GatewayRedisLink, inbox: ReplyInbox, reservations: Reservations) -> None:
        self._link = link
        self._inbox = inbox
        self._reservations = reservations
        self._pending: list[_PendingAdmission] = []
        """Requests that are sent with the next call."""
        self._calls_in_flight = 0

    async def submit(
        self,
        jobs: list[QueuedJob],
        *,
        reservation: Reservation | None = None,
        on_admitted: Callable[[int], None] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_reply: Callable[[Reply], None] | None = None,
    ) -> list[Reply]:
        """Enqueue the jobs of one request, all or none, and return their replies in order. A reply may carry a `failure`.

        The reservation is released as soon as the queue counts the jobs itself. `on_admitted` is then called with the number of jobs before
        the first, `on_progress` and `on_reply` with what comes from workers, all in the event loop. If the caller is cancelled, as it is at
        the deadline, so are the jobs. Raises Refused, DeadlineExceeded, or RedisUnavailable after `redis_grace`.
        """
        refused = False
        expected = self._inbox.register(jobs, on_progress, on_reply)
        try:
            place = await self._enqueue(expected, reservation, place=on_admitted is not None)
            self._inbox.mark_queued(expected)
            if reservation is not None:
                reservation.release()
            if on_admitted is not None:
                on_admitted(place)
            return [await waiting.reply for waiting in expected]
        except Refused:
            refused = True
            raise
        finally:
            self._inbox.unregister(expected)
            unanswered = [waiting.job for waiting in expected if not waiting.answered]
            if unanswered and not refused:
                self.cancel([job.id for job in unanswered])

    async def _enqueue(self, expected: Sequence[PendingJob], reservation: Reservation | None, *, place: bool) -> int:
        """Enqueue them. If Redis' clock was set since it was read, the deadlines move with it."""
        while True:
            try:
                return await self.enqueue([waiting.job for waiting in expected], reservation=reservation, place=place)
            except DeadlineExceeded:
                if time.monotonic() > min(waiting.until for waiting in expected):
                    raise
            for waiting in expected:
                waiting.job = self._link.with_deadline(waiting.job, waiting.until)

    async def resend_lost(self) -> None:
        """Enqueue again what Redis has lost. This does not wait for it: large messages take their time."""
        for waiting in await self._inbox.take_lost():
            self._link.spawn(self._resend(waiting))

    async def _resend(self, waiting: PendingJob) -> None:
        try:
            await self.enqueue([waiting.job], again=True)
        except (DeadlineExceeded, RedisUnavailable) as error:
            log.debug("job %s not sent again: %s", waiting.job.id, error)
        finally:
            waiting.sent_at = time.monotonic()

    async def enqueue(
        self, jobs: Sequence[QueuedJob], *, reservation: Reservation | None = None, again: bool = False, place: bool = False
    ) -> int:
        """Enqueue the jobs of one request, all or none. Returns how many wait before the first if `place`.

        `reservation`: of the request; it is handed over to the call. Raises Refused, DeadlineExceeded or RedisUnavailable.
        """
        loop = asyncio.get_running_loop()
        claim, rows, messages, staged = rows_of(jobs, 0 if reservation is None else reservation.claim.max_items)
        request = _PendingAdmission(RequestRow(rows, claim, again, place), messages, staged, loop.create_future(), reservation)
        if not self._pending and not self._calls_in_flight:
            loop.call_soon(self._send_ready)
        self._pending.append(request)
        return await request.admitted

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End jobs whose client has left. If Redis cannot be reached, their deadline ends them."""
        if self._link.is_closed:  # workers drop them
            return

        async def send() -> None:
            with suppress(RedisUnavailable):
                await self._link.run_with_payload(CANCEL, list(job_ids))

        self._link.spawn(send())

    async def final_error(self, error: RedisUnavailable, since: float) -> Exception | None:
        """Return the error for a caller whose call ended so; None if it must be sent again. `since`: when it was sent first."""
        if isinstance(error.__cause__, redis.exceptions.OutOfMemoryError):
            load = self._reservations.load
            return Refused(Outcome(b"memory", load.work_ms // max(1, load.items), load.items, load.nbytes))
        if self._link.grace_error() is not None or (error.is_about_key and self._link.over_grace(since)):
            return error
        self._link.mark_unavailable(error)
        if error.is_about_key:
            await asyncio.sleep(PAUSE_S)
        return None

    def _send_ready(self) -> None:
        ready, self._pending = self._pending, []
        for group in _groups(ready):
            call = self._link.spawn(self._send(group))
            if not group[0].staged:  # else it may take its time, and no other call waits for it
                self._calls_in_flight += 1
                call.add_done_callback(self._on_call_done)

    def _on_call_done(self, _call: object) -> None:
        """Send what became ready with one call: under load calls, batches and replies are larger and fewer."""
        self._calls_in_flight -= 1
        if self._pending and not self._calls_in_flight:
            self._send_ready()

    async def _send(self, group: list[_PendingAdmission]) -> None:
        """Send until it succeeds: the script does nothing for a job that it has queued before."""
        since = time.monotonic()
        while group := [request for request in group if not request.admitted.done()]:
            try:
                await self._link.wait_available()
                await self._stage(group)
                if not (group := [request for request in group if not request.admitted.done()]):
                    return
                for request in group:
                    if request.reservation is not None:
                        request.reservation.hand_over()
                call = AdmissionCall(self._reservations.bounds, [request.request for request in group])
                answer = await self._link.run_with_payload(ENQUEUE, call, (message for request in group for message in request.messages))
            except RedisUnavailable as unavailable:
                if (final := await self.final_error(unavailable, since)) is not None:
                    _refuse(group, final)
                continue
            except Exception as error:
                _refuse(group, error)
                raise
            if not any(outcome.reason == b"unstaged" for outcome in answer.outcomes):
                self._resolve(group, answer)
                return

    async def _stage(self, group: Iterable[_PendingAdmission]) -> None:
        for request in group:
            for key, message in request.staged.items():
                await self._link.write_large(key, message, is_wanted=lambda waits=request.admitted: not waits.done())  # type: ignore[misc]
            if request.admitted.done():  # no script will come by what its client has left behind
                for key in request.staged:
                    await self._link.delete(key)

    def _resolve(self, group: list[_PendingAdmission], answer: AdmissionAnswer) -> None:
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
                request.admitted.set_exception(DeadlineExceeded(DEADLINE_PASSED) if outcome.reason == b"late" else Refused(outcome))


Rows = tuple[Claim, list[JobRow], list[bytes], dict[str, bytes]]


def rows_of(jobs: Sequence[QueuedJob], max_items: int, *, in_blobs: bool = False) -> Rows:
    """Return the claim of a request's jobs, their rows, their messages, and staged ones by key, which are empty among the messages.

    `in_blobs`: all messages get keys of their own, where they can be read again."""
    rows, messages, staged = [], [], {}
    for job in jobs:
        message = msgspec.msgpack.encode(job)
        place = "stage" if len(message) > INLINE_BYTES else "blob" if in_blobs else "inline"
        if place == "stage":
            staged[keys.stage(job.id)] = message
        messages.append(b"" if place == "stage" else message)
        stream = keys.stream(keys.queue(job.bundle, job.digest), job.priority)
        holds = len(message), job.owner or NO_OWNER, job.work_ms, job.behind_ms, job.low
        rows.append(JobRow(job.id, stream, job.gateway, job.deadline_ms, place, *holds))
    one, nbytes, work_ms = jobs[-1], sum(row.nbytes for row in rows), sum(row.work_ms for row in rows)
    return Claim(one.owner or NO_OWNER, one.takes_long, one.low, max_items, len(rows), nbytes, work_ms), rows, messages, staged


def _groups(requests: Iterable[_PendingAdmission]) -> Iterator[list[_PendingAdmission]]:
    group: list[_PendingAdmission] = []
    nbytes = jobs = 0
    for request in requests:
        if request.staged:
            yield [request]  # no other one waits until its messages have been written
            continue
        if group and (nbytes + request.nbytes > MAX_CALL_BYTES or jobs + len(request.request.jobs) > MAX_CALL_JOBS):
            yield group
            group, nbytes, jobs = [], 0, 0
        group.append(request)
        nbytes += request.nbytes
        jobs += len(request.request.jobs)
    if group:
        yield group


def _refuse(group: Iterable[_PendingAdmission], error: Exception) -> None:
    for request in group:
        if not request.admitted.done():  # else its client has left
            request.admitted.set_exception(error)
