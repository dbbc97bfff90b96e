# `make client` derives jobs.py from this file.
"""Jobs: requests that the service answers later. They continue if the client stops.

job = await client.classify("cat.jpg", wait=False)
async for event in job.events():
    print(event.name, event.data)
result = await job.result()
print(result.label)
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from opsin.api_request import TRANSPORT_ERRORS, ApiRequest, parse_json_answer
from opsin.async_connection import AsyncServiceConnection
from opsin.errors import DeadlinePassed, Unavailable, Unreachable
from opsin.events import PAUSE_S, Event, EventStreamReader, JobStatus, ReconnectBudget, job_status, naming_job

T = TypeVar("T")
FILE_TIMEOUT_S = 3600.0
"""Timeout of a file in another form, which the service may have to compute first."""


class AsyncJob(Generic[T]):
    """A job of an `AsyncClient`, which must stay open while the job is used."""

    def __init__(self, service: AsyncServiceConnection, job_id: str, read: Callable[[Mapping[str, Any]], T]) -> None:
        self.id = job_id
        self._service = service
        self._path = f"/v1/jobs/{quote(job_id, safe='')}"
        self._read = read

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"

    async def status(self) -> JobStatus:
        """Return the job's state. Raises Refused (404, 410) for a job that is unknown or has expired."""
        return await self._status(self._service.timeout)

    async def _status(self, timeout: float) -> JobStatus:
        return parse_json_answer(await self._service.exchange(ApiRequest("GET", self._path, timeout=timeout)), job_status)

    async def events(self, after: int = 0) -> AsyncIterator[Event]:
        """Iterate over the events since event `after`, until the job ends. A broken stream is reopened."""
        reader = EventStreamReader(f"{self._path}/events", after)
        with naming_job(self.id):
            while not reader.ended:
                try:
                    async with self._service.http.stream(**reader.request()) as response:
                        if response.is_success:
                            reader.on_open(response)
                            async for text in response.aiter_text():
                                for event in reader.take(text):
                                    yield event
                        else:
                            await response.aread()
                            reader.on_refusal(response)
                    if response.is_success and not reader.ended:
                        reader.on_close(await self.status())
                except (*TRANSPORT_ERRORS, Unreachable, Unavailable) as error:
                    reader.on_break(error, self._service.url)
                if not reader.ended:
                    await asyncio.sleep(reader.pause_s)

    async def result(self, timeout: float | None = None) -> T:
        """Wait for the end, at most `timeout` seconds, and return the answer. Raises the job's OpsinError if it failed."""
        deadline, budget = time.monotonic() + (math.inf if timeout is None else timeout), ReconnectBudget()
        with naming_job(self.id):
            while True:
                try:
                    status = await self._status(max(PAUSE_S, min(self._service.timeout, deadline - time.monotonic())))
                    if status.ended:
                        break
                    budget.reset()
                except (Unreachable, Unavailable) as error:
                    budget.record_failure(error)
                except DeadlinePassed:
                    if time.monotonic() < deadline:
                        raise
                if time.monotonic() + PAUSE_S > deadline:  # the next poll would be too late
                    raise DeadlinePassed("the job has not ended in time")
                await asyncio.sleep(PAUSE_S)
            request = ApiRequest("GET", f"{self._path}/result", headers={"Accept": "application/json"})
            return parse_json_answer(await self._service.exchange(request), self._read)

    async def file(self, media_type: str) -> bytes:
        """Return the answer of a finished job in another media type that its route offers, such as `video/mp4`. Raises OpsinError."""
        request = ApiRequest("GET", f"{self._path}/result", headers={"Accept": media_type}, timeout=FILE_TIMEOUT_S)
        with naming_job(self.id):
            response = await self._service.exchange(request)
        return response.content

    async def cancel(self) -> None:
        """Cancel the job, or delete its stored result if it has ended."""
        await self._service.exchange(ApiRequest("DELETE", self._path))
