"""The inbox of a gateway: replies to what it has sent come here, and jobs that Redis has lost are found here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from server.queue import keys
from server.queue.connect import ANSWER_TIMEOUT_S, RedisUnavailable
from server.queue.gateway.connection import GatewayRedisLink
from server.queue.messages import Array, Failure, Progress, QueuedJob, Reply, UnknownVersion, decode

log = logging.getLogger(__name__)

READ_BLOCK_S = 2.0
ENTRIES_PER_READ = 256
PAUSE_S = 0.1


@dataclass(slots=True)
class PendingJob:
    """A job whose reply has not come."""

    job: QueuedJob
    until: float
    """Deadline in `time.monotonic()`: Redis' clock may be set."""
    sent_at: float | None
    """None until the queue holds it: large messages take their time to get there."""
    reply: asyncio.Future[Reply]
    on_progress: Callable[[Progress], None] | None
    """Called in the event loop with each report, in their order; reports of a job that starts again begin at 0."""
    on_reply: Callable[[Reply], None] | None
    """Called in the event loop before the waiting caller wakes up."""
    arriving: bool = False
    """Whether its reply is here, and its large arrays are on their way."""

    @property
    def may_be_lost(self) -> bool:
        return not self.reply.done() and not self.arriving

    @property
    def answered(self) -> bool:
        return self.reply.done() and not self.reply.cancelled() and self.reply.exception() is None


class ReplyInbox:
    """The reply stream of one gateway, read by one blocking read."""

    def __init__(self, link: GatewayRedisLink, gateway: str, *, lost_after: float) -> None:
        """`lost_after`: an unanswered job this old is looked for. Seconds."""
        self._link = link
        self._stream = link.name(keys.replies(gateway))
        self._lost_after = lost_after
        self._waiting: dict[str, PendingJob] = {}
        self.last_read = "0-0"
        """Id of the last entry that was read; what is older may be trimmed. Set back where Redis lost the stream."""

    def register(
        self, jobs: Sequence[QueuedJob], on_progress: Callable[[Progress], None] | None, on_reply: Callable[[Reply], None] | None
    ) -> list[PendingJob]:
        loop, ahead = asyncio.get_running_loop(), time.monotonic() - self._link.now_ms() / 1000
        expected = [PendingJob(job, job.deadline_ms / 1000 + ahead, None, loop.create_future(), on_progress, on_reply) for job in jobs]
        self._waiting.update((waiting.job.id, waiting) for waiting in expected)
        return expected

    def mark_queued(self, expected: Sequence[PendingJob]) -> None:
        """Note that the queue holds them until they are answered."""
        now = time.monotonic()
        for waiting in expected:
            waiting.sent_at = now

    def unregister(self, expected: Sequence[PendingJob]) -> None:
        for waiting in expected:
            self._waiting.pop(waiting.job.id, None)

    def fail_all(self, reason: RedisUnavailable) -> None:
        """Fail all jobs that wait for replies."""
        for waiting in self._waiting.values():
            if not waiting.reply.done():
                waiting.reply.set_exception(reason)

    async def take_lost(self) -> list[PendingJob]:
        """Return what must be sent again: unanswered for long and `job:<id>` gone, so that Redis lost it (fail-over, restart without data)
        or ended it without an answer. Their deadlines are those of Redis' present clock."""
        before = time.monotonic() - self._lost_after
        overdue = [one for one in self._waiting.values() if one.may_be_lost and one.sent_at is not None and one.sent_at < before]
        if not overdue:
            return []
        marks = await self._link.command("MGET", *(self._link.name(keys.job(waiting.job.id)) for waiting in overdue))
        gone = [waiting for waiting, mark in zip(overdue, marks, strict=True) if mark is None]
        if not gone:
            return []
        # an answer was written when its job:<id> went, so it is in the stream by now, read or not
        self._deliver(await self._link.command("XRANGE", self._stream, f"({self.last_read}", "+"))
        lost = []
        for waiting in gone:
            if waiting.may_be_lost and waiting.until > time.monotonic():
                waiting.sent_at = None
                waiting.job = self._link.with_deadline(waiting.job, waiting.until)
                lost.append(waiting)
        return lost

    async def read_forever(self) -> None:
        while True:
            await self._link.available.wait()
            try:
                await self._read()
            except RedisUnavailable as away:
                self._link.mark_unavailable(away)
                await asyncio.sleep(PAUSE_S)
            except Exception:
                log.exception("reading replies failed")
                await asyncio.sleep(PAUSE_S)

    async def _read(self) -> None:
        read_from = self.last_read
        command = ("XREAD", "COUNT", ENTRIES_PER_READ, "BLOCK", int(READ_BLOCK_S * 1000), "STREAMS", self._stream, read_from)
        answer = await self._link.resp.command(*command, timeout_s=READ_BLOCK_S + ANSWER_TIMEOUT_S)
        for _, entries in answer or ():
            self._deliver(entries)
            if self.last_read == read_from:  # not set back by a beat
                self.last_read = entries[-1][0].decode()
        await asyncio.sleep(0)  # waiting callers go on before the next read is sent

    def _deliver(self, entries: Sequence[tuple[bytes, list[bytes]]]) -> None:
        for entry_id, flat in entries:
            try:
                first, handle = (2, self._handle_progress) if flat[0] == b"progress" else (0, self._handle_reply)
                for job_id, message in zip(flat[first::2], flat[first + 1 :: 2], strict=True):
                    handle(job_id, message)
            except (IndexError, ValueError):  # other programs may have written to the stream: what follows must still be read
                log.warning("entry %s of the reply stream is not a reply", entry_id)

    def _handle_progress(self, job_id: bytes, message: bytes) -> None:
        """Report progress to the waiting caller, unless it cannot be read."""
        waiting = self._waiting.get(job_id.decode())
        if waiting is None or waiting.on_progress is None or waiting.reply.done():
            return
        with suppress(UnknownVersion, msgspec.MsgspecError):
            waiting.on_progress(decode(Progress, message))

    def _handle_reply(self, job_id: bytes, message: bytes) -> None:
        """Give a reply to the waiting caller; second replies and those that come too late are discarded."""
        waiting = self._waiting.get(job_id.decode())
        if waiting is None or waiting.reply.done() or waiting.arriving:
            return
        try:
            reply = decode(Reply, message)
        except (UnknownVersion, msgspec.MsgspecError) as error:
            failure = Failure(kind="unknown-version", detail=f"the gateway cannot read the worker's reply: {error}")
            reply = Reply(id=waiting.job.id, worker="", failure=failure)
        if reply.stored:
            waiting.arriving = True
            self._link.spawn(self._fetch(waiting, reply))
            return
        self._answer(waiting, reply)

    def _answer(self, waiting: PendingJob, reply: Reply) -> None:
        waiting.reply.set_result(reply)
        if waiting.on_reply is not None:
            waiting.on_reply(reply)

    async def _fetch(self, waiting: PendingJob, reply: Reply) -> None:
        """Fetch the large arrays of a reply, and then answer. If they are lost, the job is looked for as a lost one."""
        try:
            stored = await self._link.read_large(reply.stored)
            if stored and not waiting.reply.done():
                arrays = msgspec.msgpack.decode(stored, type=dict[str, Array])
                self._answer(waiting, msgspec.structs.replace(reply, arrays=arrays, stored=""))
            await self._link.delete(reply.stored)
        except RedisUnavailable as away:
            self._link.mark_unavailable(away)
        except msgspec.MsgspecError as error:
            log.warning("the arrays under %s cannot be read: %s", reply.stored, error)
        finally:
            waiting.arriving = False
