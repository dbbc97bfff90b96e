"""One table of cases for both ways to follow a request: a stream of its own (`follower.py`) and the events of a job (`records.lua`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from server.queue.messages import Failure, Progress, QueuedJob, Reply
from server.supervisor.private_valkey import PrivateValkey
from tests.gateway.test_event_streams import streamed
from tests.support.fake_worker import Worker, answer, make_spec, picture
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.job_api import Event, accepted_id, ask_later, events_of

Ask = Callable[[Gateway, list[bytes]], list[Event]]


def at_once(gateway: Gateway, pictures: list[bytes]) -> list[Event]:
    with streamed(gateway, *pictures) as (_, told):
        return list(told)


def later(gateway: Gateway, pictures: list[bytes]) -> list[Event]:
    return events_of(gateway, accepted_id(ask_later(gateway, *pictures)))


@dataclass(frozen=True)
class Case:
    told: list[tuple[str, Any]]
    """Names of events and, where it is no moment or answer, their data."""
    images: int = 1
    reports: list[tuple[int, int]] = field(default_factory=list)
    """Steps done and to take that the worker tells of its first job."""
    begins: bool = False
    """Whether it tells first that the work begins."""
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
        begins=True,
    ),
    "all steps told": Case([QUEUED, STARTED, progress(1, 2, "steps"), progress(2, 2, "steps"), DONE], reports=[(1, 2), (2, 2)]),
    "steps that begin anew": Case(
        [QUEUED, STARTED, progress(1, 3, "steps"), progress(0, 3, "steps"), progress(3, 3, "steps"), DONE], reports=[(1, 3), (0, 3)]
    ),
    "begun, and no steps told": Case([QUEUED, STARTED, progress(1, 1), DONE], begins=True),
    "steps of one of several images": Case([QUEUED, STARTED, progress(1, 2), progress(2, 2), DONE], images=2, reports=[(1, 5)]),
    "a failure": Case([QUEUED, FAILED], fails=True),
    "a failure in mid-work": Case([QUEUED, STARTED, progress(1, 4, "steps"), FAILED], reports=[(1, 4)], fails=True),
}


@pytest.mark.parametrize("ask", [at_once, later])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_both_ways_tell_the_same(valkey: PrivateValkey, case: Case, ask: Ask) -> None:
    with gateway_process(valkey.url) as gateway, Telling(valkey.url, case):
        events = ask(gateway, [picture(step) for step in range(case.images)])
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    moments = {"started", "done", "failed"}
    assert [(event.name, None if event.name in moments else event.data) for event in events] == case.told


class Telling(Worker):
    """A worker that tells what the case says before it answers."""

    def __init__(self, url: str, case: Case) -> None:
        super().__init__(url, [make_spec()], self._fail if case.fails else answer)
        self._case = case

    def _reply(self, job: QueuedJob) -> Reply:
        [delivery] = [held for held in self.running if held.job.id == job.id]
        first = not self._told
        self._told = True
        report = Progress(id=job.id, worker="test", done=0, total=0, unit="")
        reports = [report] if self._case.begins else []
        reports += [msgspec.structs.replace(report, done=done, total=total, unit="steps") for done, total in self._case.reports]
        for one in reports if first else ():
            self.queue.acks.progress([(delivery, one)])
        return super()._reply(job)

    _told = False

    @staticmethod
    def _fail(job: QueuedJob) -> Reply:
        return Reply(id=job.id, worker="test", failure=Failure(kind="model-error", detail="it is no good"))
