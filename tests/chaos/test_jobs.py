"""A job goes on through the deaths of its gateway and of its worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from opsin import Client
from tests.support.bundles.vit import write_null
from tests.support.images import picture
from tests.support.serve_process import Service, serve
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    bundles = tmp_path_factory.mktemp("bundles")
    write_null(bundles, milliseconds=500.0)
    with serve(bundles, copied=True) as running:
        yield running


def kill_the_only(service: Service, kind: str) -> None:
    [victim] = eventually(lambda: service.children(kind), f"there is a {kind}")
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in service.children(kind), "it is dead")


@pytest.mark.parametrize("kind", ["gateway", "worker"])
def test_a_running_job_survives_a_kill(service: Service, kind: str) -> None:
    with Client(service.url, retries=20) as client:
        job = client.classify([picture(1), picture(2)], wait=False, timeout=120)
        events = job.events()
        assert next(events).name == "queued"
        eventually(lambda: job.status().state == "running", "a worker runs it")
        kill_the_only(service, kind)
        rest = [(event.id, event.name) for event in events]
        assert rest[-1][1] == "done"
        assert [number for number, _ in rest] == list(range(2, 2 + len(rest)))
        assert [len(found.predictions) for found in job.result()] == [5, 5]
