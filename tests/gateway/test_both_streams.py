"""One table of cases for both ways to follow a request: a stream of its own (`follower.py`) and the events of a job (`records.lua`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from server.queue.messages import Failure, Progress, QueuedJob, Reply
from server.supervisor.private_valkey import PrivateValkey
from tests.gateway.test_event_streams import open_stream
from tests.support.fake_worker import Worker, answer, make_spec, picture
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.job_api import Event, accepted_id, ask_later, events_of

Ask = Callable[[Gateway, list[bytes]], list[Event]]


def read_stream(gateway: Gateway, pictures: list[bytes]) -> list[Event]:
    with open_stream(gateway, *pictures) as (_, events):
        return list(events)


def read_job_events(gateway: Gateway, pictures: list[bytes]) -> list[Event]:
    return events_of(gateway, accepted_id(ask_later(gateway, *pictures)))


@dataclass(frozen=True)
class Case:
    expected: list[tuple[str, Any]]
    """Names of events and their data; None for those of moments and answers."""
    images: int = 1
    reports: list[tuple[int, int]] = field(default_factory=list)
    """Steps done and to take that the worker reports of its first job."""
    reports_start: bool = False
    """Whether it reports first that the work starts."""
    fails: bool = False


def progress(done: int, total: int, unit: str = "images") -> tuple[str, Any]:
    return "progress", {"done": done, "total": total, "unit": unit}


QUEUED, STARTED, DONE, FAILED = ("queued", {"place": 0}), ("started", None), ("done", None), ("failed", None)
CASES = {
    "one pass": Case([QUEUED, STARTED, progress(1, 1), DONE]),
    "several images": Case([QUEUED, STARTED, progress(1, 3), progress(2, 3), progress(3, 3), DONE], images=3),
    "steps": Case(
        [QUEUED, STARTED, progress(0, 2, "steps"), progress(1, 2, "steps"), progress(2, 2, "steps"), DONE],
        reports=[(0, 2), (1, 2)],
        reports_start=True,
    ),
    "all steps reported": Case([QUEUED, STARTED, progress(1, 2, "steps"), progress(2, 2, "steps"), DONE], reports=[(1, 2), (2, 2)]),
    "steps that start again": Case(
        [QUEUED, STARTED, progress(1, 3, "steps"), progress(0, 3, "steps"), progress(3, 3, "steps"), DONE], reports=[(1, 3), (0, 3)]
    ),
    "started, and no steps reported": Case([QUEUED, STARTED, progress(1, 1), DONE], reports_start=True),
    "steps of one of several images": Case([QUEUED, STARTED, progress(1, 2), progress(2, 2), DONE], images=2, reports=[(1, 5)]),
    "a failure": Case([QUEUED, FAILED], fails=True),
    "a failure in mid-work": Case([QUEUED, STARTED, progress(1, 4, "steps"), FAILED], reports=[(1, 4)], fails=True),
}


@pytest.mark.parametrize("ask", [read_stream, read_job_events])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_both_ways_send_the_same_events(valkey: PrivateValkey, case: Case, ask: Ask) -> None:
    with gateway_process(valkey.url) as gateway, ReportingWorker(valkey.url, case):
        events = ask(gateway, [picture(step) for step in range(case.images)])
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    moments = {"started", "done", "failed"}
    assert [(event.name, None if event.name in moments else event.data) for event in events] == case.expected


class ReportingWorker(Worker):
    """A worker that reports what the case says before it answers."""

    def __init__(self, url: str, case: Case) -> None:
        super().__init__(url, [make_spec()], self._fail if case.fails else answer)
        self._case = case

    def _reply(self, job: QueuedJob) -> Reply:
        [delivery] = [running for running in self.running if running.job.id == job.id]
        first = not self._has_reported
        self._has_reported = True
        report = Progress(id=job.id, worker="test", done=0, total=0, unit="")
        reports = [report] if self._case.reports_start else []
        reports += [msgspec.structs.replace(report, done=done, total=total, unit="steps") for done, total in self._case.reports]
        for one in reports if first else ():
            self.queue.acks.progress([(delivery, one)])
        return super()._reply(job)

    _has_reported = False

    @staticmethod
    def _fail(job: QueuedJob) -> Reply:
        return Reply(id=job.id, worker="test", failure=Failure(kind="model-error", detail="it is broken"))
