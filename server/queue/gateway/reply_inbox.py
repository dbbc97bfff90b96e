"""The inbox of a gateway: replies to what it has sent come here, and jobs that Redis has lost are found here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from server.arrays import Array
from server.queue import keys
from server.queue.connect import ANSWER_TIMEOUT_S, away_is_one_error
from server.queue.errors import RedisAway
from server.queue.gateway.connection import AsyncLink
from server.queue.gateway.large_values import Freight
from server.queue.messages import Failure, Progress, QueuedJob, Reply, UnknownVersion, decode

log = logging.getLogger(__name__)

READ_BLOCK_S = 2.0
ENTRIES_PER_READ = 256
PAUSE_S = 0.1


@dataclass(slots=True)
class Waiting:
    """A job on its way."""

    job: QueuedJob
    until: float
    """Its deadline on our own clock, `time.monotonic()`: that of Redis may be set while we wait."""
    sent_at: float | None
    """None until the queue holds it: large messages take their time to get there."""
    reply: asyncio.Future[Reply]
    on_progress: Callable[[Progress], None] | None
    """Called in the event loop with each report, in their order; reports of a job that starts again begin at 0."""
    on_reply: Callable[[Reply], None] | None
    """Called in the event loop before the one who waits wakes up."""
    arriving: bool = False
    """Its reply is here, the large arrays of it are on their way."""

    @property
    def may_be_lost(self) -> bool:
        return not self.reply.done() and not self.arriving

    @property
    def answered(self) -> bool:
        return self.reply.done() and not self.reply.cancelled() and self.reply.exception() is None


class Inbox:
    """The reply stream of one gateway, read by one blocking read."""

    def __init__(self, link: AsyncLink, freight: Freight, gateway: str, *, lost_after: float) -> None:
        """`lost_after`: an unanswered job this old is looked for. Seconds."""
        self._freight = freight
        self._link = link
        self._stream = link.name(keys.replies(gateway))
        self._lost_after = lost_after
        self._waiting: dict[str, Waiting] = {}
        self.last_read = "0-0"
        """Id of the last entry that was read; what is older may be trimmed. Set back where Redis lost the stream."""

    def expect(
        self, jobs: Sequence[QueuedJob], on_progress: Callable[[Progress], None] | None, on_reply: Callable[[Reply], None] | None
    ) -> list[Waiting]:
        loop, ahead = asyncio.get_running_loop(), time.monotonic() - self._link.now_ms() / 1000
        expected = [Waiting(job, job.deadline_ms / 1000 + ahead, None, loop.create_future(), on_progress, on_reply) for job in jobs]
        self._waiting.update((waiting.job.id, waiting) for waiting in expected)
        return expected

    def sent(self, expected: Sequence[Waiting]) -> None:
        """From now on the queue should hold them until they are answered."""
        now = time.monotonic()
        for waiting in expected:
            waiting.sent_at = now

    def forget(self, expected: Sequence[Waiting]) -> None:
        for waiting in expected:
            self._waiting.pop(waiting.job.id, None)

    def give_up(self, reason: RedisAway) -> None:
        """Tell all who wait."""
        for waiting in self._waiting.values():
            if not waiting.reply.done():
                waiting.reply.set_exception(reason)

    async def take_lost(self) -> list[Waiting]:
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
                waiting.job = self._link.until(waiting.job, waiting.until)
                lost.append(waiting)
        return lost

    async def read_forever(self) -> None:
        while True:
            await self._link.here.wait()
            try:
                await self._read()
            except RedisAway as away:
                self._link.lost(away)
                await asyncio.sleep(PAUSE_S)
            except Exception:
                log.exception("reading replies failed")
                await asyncio.sleep(PAUSE_S)

    async def _read(self) -> None:
        read_from = self.last_read
        command = ("XREAD", "COUNT", ENTRIES_PER_READ, "BLOCK", int(READ_BLOCK_S * 1000), "STREAMS", self._stream, read_from)
        with away_is_one_error():
            answer = await self._link.wire.command(*command, patience=READ_BLOCK_S + ANSWER_TIMEOUT_S)
        for _, entries in answer or ():
            self._deliver(entries)
            if self.last_read == read_from:  # not set back by a beat meanwhile
                self.last_read = entries[-1][0].decode()
        await asyncio.sleep(0)  # those who wait go on before the next read is sent

    def _deliver(self, entries: Sequence[tuple[bytes, list[bytes]]]) -> None:
        for entry_id, flat in entries:
            try:
                begin, take = (2, self._tell) if flat[0] == b"progress" else (0, self._hand_over)
                for job_id, message in zip(flat[begin::2], flat[begin + 1 :: 2], strict=True):
                    take(job_id, message)
            except (IndexError, ValueError):  # anybody may have written to the stream: what follows must still be read
                log.warning("entry %s of the reply stream is no reply", entry_id)

    def _tell(self, job_id: bytes, message: bytes) -> None:
        """A report of progress to the one who waits; what cannot be read is left out."""
        waiting = self._waiting.get(job_id.decode())
        if waiting is None or waiting.on_progress is None or waiting.reply.done():
            return
        with suppress(UnknownVersion, msgspec.MsgspecError):
            waiting.on_progress(decode(Progress, message))

    def _hand_over(self, job_id: bytes, message: bytes) -> None:
        """A reply to the one who waits; second replies and those that come too late are discarded."""
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

    def _answer(self, waiting: Waiting, reply: Reply) -> None:
        waiting.reply.set_result(reply)
        if waiting.on_reply is not None:
            waiting.on_reply(reply)

    async def _fetch(self, waiting: Waiting, reply: Reply) -> None:
        """The large arrays of a reply, and then the reply to the one who waits. If they are lost, the job is looked for as a lost one."""
        try:
            stored = await self._freight.read(reply.stored)
            if stored and not waiting.reply.done():
                arrays = msgspec.msgpack.decode(stored, type=dict[str, Array])
                self._answer(waiting, msgspec.structs.replace(reply, arrays=arrays, stored=""))
            await self._freight.delete(reply.stored)
        except RedisAway as away:
            self._link.lost(away)
        except msgspec.MsgspecError as error:
            log.warning("the arrays under %s cannot be read: %s", reply.stored, error)
        finally:
            waiting.arriving = False
