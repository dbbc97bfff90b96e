"""Progress of a streamed request as events: its place in the queue, how far it is, and previews."""

from __future__ import annotations

import time

import msgspec

from server.gateway.inference.stages import TaskPlan
from server.http.sse import EventStream
from server.queue.messages import Progress, Reply, to_numpy
from server.queue.record import rfc3339
from server.tasks.base import Previews
from server.telemetry import logs

log = logs.get(__name__)


class ProgressStream:
    """The progress of one request as events, by the same rules as those of records (`parts/records.lua`)."""

    def __init__(self, stream: EventStream, plan: TaskPlan, jobs: int, total: tuple[int, str]) -> None:
        """jobs: number of them. total: as `Counts.progress_total` returns it."""
        self._stream = stream
        self._plan = plan
        self._jobs = jobs
        self._total = total
        self._ended = 0
        self._latest: Progress | None = None
        self._is_admitted = False
        self._has_started = False
        self._buffered_events: list[tuple[str, bytes]] = []
        """Events of a quick worker that arrived before the queue's answer to the admission."""

    def on_admitted(self, place: int) -> None:
        self._stream.send_event("queued", msgspec.json.encode({"place": place}))
        self._is_admitted = True
        for name, data in self._buffered_events:
            self._stream.send_event(name, data)
        self._buffered_events.clear()

    def on_progress(self, report: Progress) -> None:
        """Report the progress of a single job. Several jobs are counted when they end."""
        starts = report.total == 0
        if not self._has_started or (starts and self._jobs == 1):
            self._start()
        if starts:
            return
        if self._jobs == 1:
            self._latest = report
            self._progress(report.done, report.total, report.unit)
        if report.preview:
            preview = encode_preview(self._plan, report)
            if preview is not None:
                self._emit("preview", preview)

    def on_reply(self, reply: Reply) -> None:
        if reply.failure is not None:
            return
        self._ended += 1
        if not self._has_started:
            self._start()
        last = self._latest
        if last is None:
            total, unit = self._total
            self._progress(total * self._ended // self._jobs, total, unit)
        elif last.done != last.total:
            self._progress(last.total, last.total, last.unit)

    def _start(self) -> None:
        self._has_started = True
        self._emit("started", encode_start(int(time.time() * 1000)))

    def _progress(self, done: int, total: int, unit: str) -> None:
        self._emit("progress", msgspec.json.encode({"done": done, "total": total, "unit": unit}))

    def _emit(self, name: str, data: bytes) -> None:
        if self._is_admitted:
            self._stream.send_event(name, data)
        else:
            self._buffered_events.append((name, data))


def encode_start(unix_ms: int) -> bytes:
    """Return the JSON of a `started` event."""
    return msgspec.json.encode({"started": rfc3339(unix_ms)})


def encode_preview(plan: TaskPlan, report: Progress) -> bytes | None:
    """Return the JSON of a preview; None if the task shows none, or what a worker sent cannot be shown: the answer counts, not this."""
    if not isinstance(plan.task, Previews):
        return None
    try:
        preview = plan.task.preview(to_numpy(report.preview), plan.plan, plan.spec)
    except (ValueError, KeyError, TypeError) as error:
        log.warning("a preview cannot be shown", task=plan.task.name, reason=str(error))
        return None
    return None if preview is None else msgspec.json.encode(preview)
