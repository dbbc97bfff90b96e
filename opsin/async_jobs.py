# `make client` derives jobs.py from this file.
"""Jobs of the service: requests that it answers later. They go on whatever becomes of the client.

job = await client.classify("cat.jpg", wait=False)
async for event in job.events():
    print(event.name, event.data)
found = await job.result()
print(found.label)
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from opsin.api_request import TRANSPORT_ERRORS, Call, understood
from opsin.async_connection import AsyncConnection
from opsin.errors import DeadlinePassed, Unavailable, Unreachable
from opsin.events import PAUSE_S, Event, JobStatus, Patience, Reading, job_status, named

T = TypeVar("T")
FILE_S = 3600.0
"""Seconds that a file may take to be made."""


class AsyncJob(Generic[T]):
    """A job of an `AsyncClient`, which must stay open while it is asked."""

    def __init__(self, service: AsyncConnection, job_id: str, read: Callable[[Mapping[str, Any]], T]) -> None:
        self.id = job_id
        self._service = service
        self._path = f"/v1/jobs/{quote(job_id, safe='')}"
        self._read = read

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"

    async def status(self) -> JobStatus:
        """Raises Refused (404, 410) for a job that the service does not know, or no longer."""
        return await self._status(self._service.timeout)

    async def _status(self, timeout: float) -> JobStatus:
        return understood(await self._service.exchange(Call("GET", self._path, timeout=timeout)), job_status)

    async def events(self, after: int = 0) -> AsyncIterator[Event]:
        """Iterate over what has happened since event `after`, and what happens until the job ends. A broken stream is opened again."""
        reading = Reading(f"{self._path}/events", after)
        with named(self.id):
            while not reading.ended:
                try:
                    async with self._service.http.stream(**reading.request()) as response:
                        if response.is_success:
                            reading.opened(response)
                            async for text in response.aiter_text():
                                for event in reading.take(text):
                                    yield event
                        else:
                            await response.aread()
                            reading.refused(response)
                    if response.is_success and not reading.ended:
                        reading.closed(await self.status())
                except (*TRANSPORT_ERRORS, Unreachable, Unavailable) as error:
                    reading.broken(error, self._service.url)
                if not reading.ended:
                    await asyncio.sleep(reading.pause_s)

    async def result(self, timeout: float | None = None) -> T:
        """Wait for the end, at most `timeout` seconds, and return the answer. Raises the job's OpsinError where it has none."""
        ends, patience = time.monotonic() + (math.inf if timeout is None else timeout), Patience()
        with named(self.id):
            while True:
                try:
                    status = await self._status(max(PAUSE_S, min(self._service.timeout, ends - time.monotonic())))
                    if status.ended:
                        break
                    patience.answered()
                except (Unreachable, Unavailable) as error:
                    patience.lost(error)
                except DeadlinePassed:
                    if time.monotonic() < ends:
                        raise
                if time.monotonic() + PAUSE_S > ends:  # the next look would come too late
                    raise DeadlinePassed("the job has not ended in time")
                await asyncio.sleep(PAUSE_S)
            call = Call("GET", f"{self._path}/result", headers={"Accept": "application/json"})
            return understood(await self._service.exchange(call), self._read)

    async def file(self, media_type: str) -> bytes:
        """The answer of a job that is done, in another form that its route offers, such as `video/mp4`. Raises OpsinError."""
        call = Call("GET", f"{self._path}/result", headers={"Accept": media_type}, timeout=FILE_S)
        with named(self.id):
            response = await self._service.exchange(call)
        return response.content

    async def cancel(self) -> None:
        """End it; if it has ended, remove what is kept of it."""
        await self._service.exchange(Call("DELETE", self._path))
