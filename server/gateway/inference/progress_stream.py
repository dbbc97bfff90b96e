"""Progress of a streamed request, told by the queue, as events: where it waits, how far it has come, what can be shown already."""

from __future__ import annotations

import time

import msgspec

from server.gateway.inference.task_interface import Planned
from server.http.sse import EventStream
from server.queue.messages import Progress, Reply
from server.queue.record import rfc3339
from server.tasks.capabilities import Previews
from server.telemetry import logs

log = logs.get(__name__)


class Follower:
    """Follows one request by the same rules as those of records (`parts/records.lua`)."""

    def __init__(self, stream: EventStream, planned: Planned) -> None:
        self._stream = stream
        self._planned = planned
        self._count = 1
        self._counted = (1, "images")
        self._ended = 0
        self._report: Progress | None = None
        """The latest one that was told."""
        self._admitted = False
        self._begun = False
        self._early: list[tuple[str, bytes]] = []
        """Events that a quick worker told before the queue's answer to the admission arrived."""

    def expect(self, count: int, counted: tuple[int, str]) -> None:
        """How many jobs of the queue it has, and what they come to as `Task.counted` says."""
        self._count, self._counted = count, counted

    def admitted(self, place: int) -> None:
        self._stream.put("queued", msgspec.json.encode({"place": place}))
        self._admitted = True
        for name, data in self._early:
            self._stream.put(name, data)
        self._early.clear()

    def progressed(self, report: Progress) -> None:
        """Where there are several jobs, it is they that are counted, when they end."""
        begins = report.total == 0
        if not self._begun or (begins and self._count == 1):
            self._begin()
        if begins:
            return
        if self._count == 1:
            self._report = report
            self._progress(report.done, report.total, report.unit)
        if report.preview:
            shown = preview_of(self._planned, report)
            if shown is not None:
                self._tell("preview", shown)

    def replied(self, reply: Reply) -> None:
        if reply.failure is not None:
            return
        self._ended += 1
        if not self._begun:
            self._begin()
        last = self._report
        if last is None:
            total, unit = self._counted
            self._progress(total * self._ended // self._count, total, unit)
        elif last.done != last.total:
            self._progress(last.total, last.total, last.unit)

    def _begin(self) -> None:
        self._begun = True
        self._tell("started", started(int(time.time() * 1000)))

    def _progress(self, done: int, total: int, unit: str) -> None:
        self._tell("progress", msgspec.json.encode({"done": done, "total": total, "unit": unit}))

    def _tell(self, name: str, data: bytes) -> None:
        if self._admitted:
            self._stream.put(name, data)
        else:
            self._early.append((name, data))


def started(unix_ms: int) -> bytes:
    """The JSON of a `started` event."""
    return msgspec.json.encode({"started": rfc3339(unix_ms)})


def preview_of(planned: Planned, report: Progress) -> bytes | None:
    """Return the JSON of a preview; None if the task shows none, or what a worker sent cannot be shown: the answer counts, not this."""
    if not isinstance(planned.task, Previews):
        return None
    try:
        shown = planned.task.preview({name: array.to_numpy() for name, array in report.preview.items()}, planned.plan, planned.spec)
    except (ValueError, KeyError, TypeError) as error:
        log.warning("a preview cannot be shown", task=planned.task.name, reason=str(error))
        return None
    return None if shown is None else msgspec.json.encode(shown)
