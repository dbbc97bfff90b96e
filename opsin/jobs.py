"""Jobs of the service: requests that it answers later. They go on whatever becomes of the client.

job = client.classify("cat.jpg", wait=False)
for event in job.events():
    print(event.name, event.data)
print(job.result().label)
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from opsin.calls import Call, problem_of, retry_after, transport_error, understood
from opsin.errors import DeadlinePassed, Failed, OpsinError, Unreachable

T = TypeVar("T")

JSON = {"Accept": "application/json"}
EVENT_STREAM = "text/event-stream"
LAST = frozenset({"done", "failed", "cancelled"})
SILENCE_S = 45.0
"""A stream that brings nothing for so long is broken: the service sends a comment every 15 s."""
PAUSE_S = 0.5
"""Before a broken stream is opened again, unless the service says otherwise."""
NO_CONTENT = 204
"""The job has ended, and its last event was read before."""
FILE_S = 3600.0
"""Seconds that a file may take to be made."""
PATIENCE_S = 60.0
"""How long a job that cannot be reached is tried to be reached."""


@dataclass(frozen=True, slots=True)
class Event:
    """What has happened to a job. `name`: queued, progress, preview, and last done, failed or cancelled."""

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


class _Patience:
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


class _Reading:
    """Where a reader of events is, over all the streams that it takes."""

    def __init__(self, after: int) -> None:
        self.last_id = after
        self.ended = False
        self._fields: dict[str, str] = {}
        self._empty = False
        """Whether the latest stream has brought no event."""
        self._silent = False
        """Whether it has brought nothing at all, not even a comment."""
        self._job_had_ended = False
        self.patience = _Patience()

    def opened(self, response: httpx.Response) -> None:
        """Raises Failed for what is no stream of events."""
        media_type = response.headers.get("content-type", EVENT_STREAM)
        if not media_type.startswith(EVENT_STREAM):
            raise Failed(f"no stream of events of Opsin: the content type is {media_type[:100]!r}")
        self._fields = {}
        self._empty = self._silent = True

    def closed(self, *, job_has_ended: bool) -> None:
        """A stream ended well without a last event: with its gateway, or because that event was read before this reading began.

        Raises Failed where one after the other says nothing, for longer than a gateway takes to go."""
        if self._silent:
            self.patience.lost(Failed("streams of events end before they have said anything: is this a service of Opsin?"))
        self.ended = self._empty and self._job_had_ended
        self._job_had_ended = job_has_ended

    def take(self, line: str) -> Event | None:
        """The event that ends with this line, if one does."""
        self.patience.answered()
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
        self.last_id, self.ended = event.id, event.name in LAST
        return event


class _Described(Generic[T]):
    def __init__(self, job_id: str, read: Callable[[Mapping[str, Any]], T]) -> None:
        self.id = job_id
        self._path = f"/v1/jobs/{quote(job_id, safe='')}"
        self._read = read

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"

    def _check(self, ends: float) -> None:
        """Raises DeadlinePassed where the next look would come too late."""
        if time.monotonic() + PAUSE_S > ends:
            raise DeadlinePassed(f"job {self.id} has not ended in time; it goes on")

    def _stream(self, reading: _Reading) -> dict[str, Any]:
        """For `httpx.Client.stream`."""
        return {
            "method": "GET",
            "url": f"{self._path}/events",
            "headers": {"Last-Event-ID": str(reading.last_id)},
            "timeout": httpx.Timeout(SILENCE_S),
        }


class Job(_Described[T]):
    """A job of a `Client`, which must stay open while it is asked."""

    def __init__(
        self,
        http: httpx.Client,
        exchange: Callable[[Call], httpx.Response],
        job_id: str,
        read: Callable[[Mapping[str, Any]], T],
    ) -> None:
        super().__init__(job_id, read)
        self._http = http
        self._exchange = exchange

    def status(self) -> JobStatus:
        """Raises Refused (404, 410) for a job that the service does not know, or no longer."""
        return _status(self._exchange(Call("GET", self._path)))

    def events(self, after: int = 0) -> Iterator[Event]:
        """What has happened since event `after`, and what happens until the job ends. A broken stream is opened again."""
        reading = _Reading(after)
        while not reading.ended:
            problem: OpsinError | None = None
            pause = None
            try:
                with self._http.stream(**self._stream(reading)) as response:
                    if not response.is_success:
                        response.read()
                        problem, pause = _refusal(response)
                    elif response.status_code == NO_CONTENT:
                        reading.ended = True
                    else:
                        reading.opened(response)
                        for line in response.iter_lines():
                            event = reading.take(line)
                            if event is not None:
                                yield event
                if problem is None and not reading.ended:
                    reading.closed(job_has_ended=self.status().ended)
            except httpx.HTTPError as error:
                problem = transport_error(error, str(self._http.base_url), SILENCE_S)
            except Unreachable as error:
                problem = error
            if problem is not None:
                reading.patience.lost(problem)
            if not reading.ended:
                time.sleep(min(max(PAUSE_S, pause or 0.0), PATIENCE_S))

    def result(self, timeout: float | None = None) -> T:
        """Wait for the end, at most `timeout` seconds, and return the answer. Raises the job's OpsinError where it has none."""
        ends, patience = time.monotonic() + (math.inf if timeout is None else timeout), _Patience()
        while True:
            try:
                if self.status().ended:
                    break
                patience.answered()
            except Unreachable as error:
                patience.lost(error)
            self._check(ends)
            time.sleep(PAUSE_S)
        return understood(self._exchange(Call("GET", f"{self._path}/result", headers=JSON)), self._read)

    def file(self, media_type: str) -> bytes:
        """The answer of a job that is done, in another form that its route offers, such as `video/mp4`. Raises OpsinError."""
        return self._exchange(Call("GET", f"{self._path}/result", headers={"Accept": media_type}, timeout=FILE_S)).content

    def cancel(self) -> None:
        """End it; if it has ended, remove what is kept of it."""
        self._exchange(Call("DELETE", self._path))


class AsyncJob(_Described[T]):
    """A job of an `AsyncClient`: the same calls, awaited."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        exchange: Callable[[Call], Awaitable[httpx.Response]],
        job_id: str,
        read: Callable[[Mapping[str, Any]], T],
    ) -> None:
        super().__init__(job_id, read)
        self._http = http
        self._exchange = exchange

    async def status(self) -> JobStatus:
        return _status(await self._exchange(Call("GET", self._path)))

    async def events(self, after: int = 0) -> AsyncIterator[Event]:
        """See `Job.events`."""
        reading = _Reading(after)
        while not reading.ended:
            problem: OpsinError | None = None
            pause = None
            try:
                async with self._http.stream(**self._stream(reading)) as response:
                    if not response.is_success:
                        await response.aread()
                        problem, pause = _refusal(response)
                    elif response.status_code == NO_CONTENT:
                        reading.ended = True
                    else:
                        reading.opened(response)
                        async for line in response.aiter_lines():
                            event = reading.take(line)
                            if event is not None:
                                yield event
                if problem is None and not reading.ended:
                    reading.closed(job_has_ended=(await self.status()).ended)
            except httpx.HTTPError as error:
                problem = transport_error(error, str(self._http.base_url), SILENCE_S)
            except Unreachable as error:
                problem = error
            if problem is not None:
                reading.patience.lost(problem)
            if not reading.ended:
                await asyncio.sleep(min(max(PAUSE_S, pause or 0.0), PATIENCE_S))

    async def result(self, timeout: float | None = None) -> T:
        """See `Job.result`."""
        ends, patience = time.monotonic() + (math.inf if timeout is None else timeout), _Patience()
        while True:
            try:
                if (await self.status()).ended:
                    break
                patience.answered()
            except Unreachable as error:
                patience.lost(error)
            self._check(ends)
            await asyncio.sleep(PAUSE_S)
        return understood(await self._exchange(Call("GET", f"{self._path}/result", headers=JSON)), self._read)

    async def file(self, media_type: str) -> bytes:
        """See `Job.file`."""
        call = Call("GET", f"{self._path}/result", headers={"Accept": media_type}, timeout=FILE_S)
        return (await self._exchange(call)).content

    async def cancel(self) -> None:
        await self._exchange(Call("DELETE", self._path))


def _status(response: httpx.Response) -> JobStatus:
    return understood(response, lambda told: JobStatus(told["id"], told["state"], told))


def _refusal(response: httpx.Response) -> tuple[OpsinError, float | None]:
    """The error, and the pause after which the same request may succeed. Raises what will not change by itself."""
    error = problem_of(response)
    if response.status_code not in (429, 502, 503, 504):
        raise error
    return error, retry_after(response)
