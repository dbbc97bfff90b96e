# Derived from async_jobs.py by `make client`: change that file.
"""Jobs: requests that the service answers later. They continue if the client stops.

job = client.classify("cat.jpg", wait=False)
for event in job.events():
    print(event.name, event.data)
result = job.result()
print(result.label)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from opsin.api_request import TRANSPORT_ERRORS, ApiRequest, parse_json_answer
from opsin.connection import ServiceConnection
from opsin.errors import DeadlinePassed, Unavailable, Unreachable
from opsin.events import PAUSE_S, Event, EventStreamReader, JobStatus, ReconnectBudget, job_status, naming_job

T = TypeVar("T")
FILE_TIMEOUT_S = 3600.0
"""Timeout of a file in another form, which the service may have to compute first."""


class Job(Generic[T]):
    """A job of a `Client`, which must stay open while the job is used."""

    def __init__(self, service: ServiceConnection, job_id: str, read: Callable[[Mapping[str, Any]], T]) -> None:
        self.id = job_id
        self._service = service
        self._path = f"/v1/jobs/{quote(job_id, safe='')}"
        self._read = read

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"

    def status(self) -> JobStatus:
        """Return the job's state. Raises Refused (404, 410) for a job that is unknown or has expired."""
        return self._status(self._service.timeout)

    def _status(self, timeout: float) -> JobStatus:
        return parse_json_answer(self._service.exchange(ApiRequest("GET", self._path, timeout=timeout)), job_status)

    def events(self, after: int = 0) -> Iterator[Event]:
        """Iterate over the events since event `after`, until the job ends. A broken stream is reopened."""
        reader = EventStreamReader(f"{self._path}/events", after)
        with naming_job(self.id):
            while not reader.ended:
                try:
                    with self._service.http.stream(**reader.request()) as response:
                        if response.is_success:
                            reader.on_open(response)
                            for text in response.iter_text():
                                yield from reader.take(text)
                        else:
                            response.read()
                            reader.on_refusal(response)
                    if response.is_success and not reader.ended:
                        reader.on_close(self.status())
                except (*TRANSPORT_ERRORS, Unreachable, Unavailable) as error:
                    reader.on_break(error, self._service.url)
                if not reader.ended:
                    time.sleep(reader.pause_s)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the end, at most `timeout` seconds, and return the answer. Raises the job's OpsinError if it failed."""
        deadline, budget = time.monotonic() + (math.inf if timeout is None else timeout), ReconnectBudget()
        with naming_job(self.id):
            while True:
                try:
                    status = self._status(max(PAUSE_S, min(self._service.timeout, deadline - time.monotonic())))
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
                time.sleep(PAUSE_S)
            request = ApiRequest("GET", f"{self._path}/result", headers={"Accept": "application/json"})
            return parse_json_answer(self._service.exchange(request), self._read)

    def file(self, media_type: str) -> bytes:
        """Return the answer of a finished job in another media type that its route offers, such as `video/mp4`. Raises OpsinError."""
        request = ApiRequest("GET", f"{self._path}/result", headers={"Accept": media_type}, timeout=FILE_TIMEOUT_S)
        with naming_job(self.id):
            response = self._service.exchange(request)
        return response.content

    def cancel(self) -> None:
        """Cancel the job, or delete its stored result if it has ended."""
        self._service.exchange(ApiRequest("DELETE", self._path))
