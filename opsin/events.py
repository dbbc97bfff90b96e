"""News of a job: its state, its events, and how a stream of these is read, and opened again where it breaks."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from opsin.api_request import problem_of, retry_after, transport_error
from opsin.errors import DeadlinePassed, Failed, OpsinError, Refused, Unavailable, Unreachable

EVENT_STREAM = "text/event-stream"
LINE_END = re.compile(r"\r\n|\n|\r(?!\Z)")
"""End of a line of an event stream; a carriage return at the end of a piece may be the first half of one. JSON may hold what ends lines
elsewhere, such as U+2028."""
LAST = frozenset({"done", "failed", "cancelled"})
SILENCE_S = 45.0
"""A stream that brings nothing for so long is broken: the service sends a comment every 15 s."""
PAUSE_S = 0.5
"""Before a job is asked for again, unless the service says otherwise."""
NO_CONTENT = 204
"""The job has ended, and its last event was read before."""
PATIENCE_S = 60.0
"""How long a job that cannot be reached is tried to be reached."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that has happened to a job. `name`: queued, progress, preview, and last done, failed or cancelled."""

    id: int
    """1, 2, 3 … for each job."""
    name: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job as the service describes it; `details` holds everything that it says."""

    id: str
    state: str
    """queued, running, done, failed or cancelled."""
    details: Mapping[str, Any]

    @property
    def ended(self) -> bool:
        return self.state in LAST


def job_status(told: Mapping[str, Any]) -> JobStatus:
    """The body of `GET /v1/jobs/ID`."""
    return JobStatus(told["id"], told["state"], told)


@contextmanager
def named(job_id: str) -> Iterator[None]:
    """Errors of lost contact tell which job may go on, and how to ask for it. A 504 of the service is the end of the job itself."""
    try:
        yield
    except (Unreachable, Unavailable, DeadlinePassed) as error:
        if not (isinstance(error, DeadlinePassed) and error.status):
            error.detail += f"; job {job_id} may go on: `opsin jobs show {job_id}`, and `opsin jobs result {job_id}` for its answer"
        raise


class Patience:
    """With a service that does not answer, or has no room."""

    def __init__(self) -> None:
        self._since: float | None = None

    def answered(self) -> None:
        self._since = None

    def lost(self, reason: OpsinError) -> None:
        """Raises the reason once it has lasted for PATIENCE_S."""
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > PATIENCE_S:
            raise reason


class Reading:
    """Where a reader of events is, over all the streams that it takes."""

    def __init__(self, path: str, after: int) -> None:
        self.ended = False
        self.pause_s = PAUSE_S
        """Before the next stream is opened."""
        self._path = path
        self._last_id = after
        self._fields: dict[str, str] = {}
        self._pieces: list[str] = []
        """Beginning of a line of the latest stream that has not ended yet."""
        self._empty = False
        """Whether the latest stream has brought no event."""
        self._silent = False
        """Whether it has brought nothing at all, not even a comment."""
        self._job_had_ended = False
        self._patience = Patience()

    def request(self) -> dict[str, Any]:
        """Arguments of `httpx2.Client.stream`."""
        headers = {"Last-Event-ID": str(self._last_id)}
        return {"method": "GET", "url": self._path, "headers": headers, "timeout": httpx2.Timeout(SILENCE_S)}

    def opened(self, response: httpx2.Response) -> None:
        """Raises Failed for what is no stream of events."""
        self.pause_s = PAUSE_S
        self.ended = response.status_code == NO_CONTENT
        media_type = response.headers.get("content-type", EVENT_STREAM)
        if not self.ended and not media_type.startswith(EVENT_STREAM):
            raise Failed(f"no stream of events of Opsin: the content type is {media_type[:100]!r}")
        self._fields, self._pieces = {}, []
        self._empty = self._silent = True

    def refused(self, response: httpx2.Response) -> None:
        """The same request may succeed later. Raises what will not change by itself, or has not for long."""
        error = problem_of(response)
        if response.status_code not in (429, 502, 503, 504):
            raise error
        self.pause_s = min(max(PAUSE_S, retry_after(response) or 0.0), PATIENCE_S)
        self._patience.lost(error)

    def broken(self, error: httpx2.HTTPError | httpx2.InvalidURL | OpsinError, url: str) -> None:
        """Raises Unreachable or DeadlinePassed once the service at `url` has been away for long, and Refused at once."""
        self.pause_s = PAUSE_S
        found = error if isinstance(error, OpsinError) else transport_error(error, url, SILENCE_S)
        if isinstance(found, Refused):
            raise found
        self._patience.lost(found)

    def closed(self, status: JobStatus) -> None:
        """A stream ended well without a last event: with its gateway, or because that event was read before this reading began.

        Raises Failed where one after the other says nothing, for longer than a gateway takes to go."""
        if self._silent:
            self._patience.lost(Failed("streams of events end before they have said anything: is this a service of Opsin?"))
        self.ended = self._empty and self._job_had_ended
        self._job_had_ended = status.ended

    def take(self, text: str) -> Iterator[Event]:
        """Events that end with this piece of the stream. Raises Failed."""
        if not LINE_END.search(text):  # a long event comes in many pieces, and none is looked through twice
            self._pieces.append(text)
            return
        *lines, rest = LINE_END.split("".join([*self._pieces, text]))
        self._pieces = [rest]
        for line in lines:
            if event := self._take(line):
                yield event

    def _take(self, line: str) -> Event | None:
        """The event that ends with this line, if one does."""
        self._patience.answered()
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
            raise Failed(f"no event of Opsin: {fields} ({type(error).__name__}: {error})"[:400]) from error
        self._last_id, self.ended = event.id, event.name in LAST
        return event
