"""The state and the events of a job, and the reader of its event stream, which survives broken connections."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from opsin.api_request import error_from_response, retry_after, transport_error
from opsin.errors import DeadlinePassed, Failed, OpsinError, Refused, Unavailable, Unreachable

EVENT_STREAM = "text/event-stream"
LINE_END = re.compile(r"\r\n|\n|\r(?!\Z)")
"""End of a line of an event stream. A carriage return at the end of a piece may be the first half of CRLF. JSON may contain other line
separators, such as U+2028."""
FINAL_EVENTS = frozenset({"done", "failed", "cancelled"})
STREAM_TIMEOUT_S = 45.0
"""A stream without data for this long is broken: the service sends a comment every 15 s."""
PAUSE_S = 0.5
"""Interval between two requests for a job's state, unless the service names another."""
NO_CONTENT = 204
"""Status of the answer if the job has ended and its last event has been read."""
MAX_OUTAGE_S = 60.0
"""Time for which an unreachable service is retried."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job. `name`: queued, progress, preview, and last done, failed or cancelled."""

    id: int
    """1, 2, 3 … for each job."""
    name: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class JobStatus:
    """The state of a job; `details` holds everything that the service reports about it."""

    id: str
    state: str
    """queued, running, done, failed or cancelled."""
    details: Mapping[str, Any]

    @property
    def ended(self) -> bool:
        return self.state in FINAL_EVENTS


def job_status(document: Mapping[str, Any]) -> JobStatus:
    """Read the body of `GET /v1/jobs/ID`."""
    return JobStatus(document["id"], document["state"], document)


@contextmanager
def naming_job(job_id: str) -> Iterator[None]:
    """Add the job's id to errors of a lost connection, since the job may still be running. A 504 of the service means that it has ended."""
    try:
        yield
    except (Unreachable, Unavailable, DeadlinePassed) as error:
        if not (isinstance(error, DeadlinePassed) and error.status):
            error.detail += f"; job {job_id} may still be running: see `opsin jobs show {job_id}` and `opsin jobs result {job_id}`"
        raise


class ReconnectBudget:
    """A time limit for reconnecting: it is used up once the service has been unreachable or overloaded for `MAX_OUTAGE_S`."""

    def __init__(self) -> None:
        self._since: float | None = None

    def reset(self) -> None:
        self._since = None

    def record_failure(self, reason: OpsinError) -> None:
        """Note that the service failed. Raises the reason once failures have lasted for `MAX_OUTAGE_S`."""
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > MAX_OUTAGE_S:
            raise reason


class EventStreamReader:
    """The state of a reader of events, across reconnections: it decides when to reconnect, and from which event."""

    def __init__(self, path: str, after: int) -> None:
        self.ended = False
        self.pause_s = PAUSE_S
        """Pause before the next stream is opened."""
        self._path = path
        self._last_id = after
        self._fields: dict[str, str] = {}
        self._pieces: list[str] = []
        """Pieces of the current stream's last line, which is not complete."""
        self._empty = False
        """Whether the current stream has had no event yet."""
        self._silent = False
        """Whether the current stream has had no data yet, not even a comment."""
        self._job_had_ended = False
        self._budget = ReconnectBudget()

    def request(self) -> dict[str, Any]:
        """Return the arguments of `httpx2.Client.stream`."""
        headers = {"Last-Event-ID": str(self._last_id)}
        return {"method": "GET", "url": self._path, "headers": headers, "timeout": httpx2.Timeout(STREAM_TIMEOUT_S)}

    def on_open(self, response: httpx2.Response) -> None:
        """Start reading a new stream. Raises Failed if it is not an event stream."""
        self.pause_s = PAUSE_S
        self.ended = response.status_code == NO_CONTENT
        media_type = response.headers.get("content-type", EVENT_STREAM)
        if not self.ended and not media_type.startswith(EVENT_STREAM):
            raise Failed(f"not an event stream of Opsin: the content type is {media_type[:100]!r}")
        self._fields, self._pieces = {}, []
        self._empty = self._silent = True

    def on_refusal(self, response: httpx2.Response) -> None:
        """Plan another attempt after an error response. Raises errors that are permanent, or have lasted for long."""
        error = error_from_response(response)
        if response.status_code not in (429, 502, 503, 504):
            raise error
        self.pause_s = min(max(PAUSE_S, retry_after(response) or 0.0), MAX_OUTAGE_S)
        self._budget.record_failure(error)

    def on_break(self, error: httpx2.HTTPError | httpx2.InvalidURL | OpsinError, url: str) -> None:
        """Plan another attempt after a broken connection.

        Raises Unreachable or DeadlinePassed once the service at `url` has been unavailable for long, and Refused at once.
        """
        self.pause_s = PAUSE_S
        opsin_error = error if isinstance(error, OpsinError) else transport_error(error, url, STREAM_TIMEOUT_S)
        if isinstance(opsin_error, Refused):
            raise opsin_error
        self._budget.record_failure(opsin_error)

    def on_close(self, status: JobStatus) -> None:
        """Handle the regular end of a stream without a final event: its gateway has stopped, or the event was read before.

        Raises Failed if streams have been empty for longer than a gateway takes to stop.
        """
        if self._silent:
            self._budget.record_failure(Failed("event streams end before any data: is this a service of Opsin?"))
        self.ended = self._empty and self._job_had_ended
        self._job_had_ended = status.ended

    def take(self, text: str) -> Iterator[Event]:
        """Yield the events that end in this piece of the stream. Raises Failed."""
        if not LINE_END.search(text):  # a long event arrives in many pieces; none is searched twice
            self._pieces.append(text)
            return
        *lines, rest = LINE_END.split("".join([*self._pieces, text]))
        self._pieces = [rest]
        for line in lines:
            if event := self._take(line):
                yield event

    def _take(self, line: str) -> Event | None:
        """Return the event that ends with this line, None if none does."""
        self._budget.reset()
        self._silent = False
        if line:
            name, _, value = line.partition(":")
            if name:  # else a comment
                self._fields[name] = value.removeprefix(" ")
            return None
        fields, self._fields = self._fields, {}
        if "event" not in fields:
            return None
        self._empty = False
        try:
            event = Event(int(fields["id"]), fields["event"], json.loads(fields["data"]))
        except (ValueError, LookupError, RecursionError) as error:
            raise Failed(f"not an event of Opsin: {fields} ({type(error).__name__}: {error})"[:400]) from error
        self._last_id, self.ended = event.id, event.name in FINAL_EVENTS
        return event
