"""A worker, a gateway or the Redis of one of two cells is killed under load: no accepted job is lost without a word."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import httpx2
import pytest

from benchmarks.haproxy import MISSING, haproxy
from tests.support.bundles.vit import write_null
from tests.support.images import picture
from tests.support.queue import Server
from tests.support.serve_process import Service, serve
from tests.support.waiting import START_S, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.skipif(shutil.which("haproxy") is None, reason=MISSING)]

SECONDS, KILLED_AFTER_S, REDIS_AWAY_S = 8.0, 3.0, 0.5
CLIENTS = 6
LAST_WRITES_S = 1.0
"""Time in seconds before a crash whose writes a Redis with `appendfsync everysec` may lose."""


@dataclass(frozen=True)
class Cells:
    url: str
    """HAProxy's."""
    redis: list[Server]
    services: list[Service]

    def kill(self, kind: str, cell: int = 0) -> None:
        if kind == "redis":
            self.redis[cell].kill()
            time.sleep(REDIS_AWAY_S)
            self.redis[cell].start()
        else:
            os.kill(random.choice(self.services[cell].children(kind)), signal.SIGKILL)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cells]:
    bundles = tmp_path_factory.mktemp("bundles")
    write_null(bundles)
    with ExitStack() as stack:
        redis = [
            Server(tmp_path_factory.mktemp("redis"), "--save", "", "--appendonly", "yes", "--appendfsync", "everysec") for _ in range(2)
        ]
        for server in redis:
            stack.callback(server.kill)
        settings = {"copied": True, "gateways": 2, "workers": 1}
        services = [
            stack.enter_context(serve(bundles, redis_url=server.url, cell=number, **settings)) for number, server in enumerate(redis)
        ]
        ports = [[int(service.url.rpartition(":")[2])] for service in services]
        url = stack.enter_context(haproxy(ports))
        eventually(lambda: httpx2.get(f"{url}/health/ready").status_code == 200, "HAProxy has a gateway", START_S)
        yield Cells(url, redis, services)


@dataclass
class Load:
    """Clients that send plain requests and asynchronous jobs in turns."""

    url: str
    accepted: dict[str, float] = field(default_factory=dict)
    """Job → when its acceptance was read, in monotonic seconds."""
    answers: list[httpx2.Response] = field(default_factory=list)
    refused: list[httpx2.Response | httpx2.HTTPError] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        ended = threading.Event()
        threads = [threading.Thread(target=self._ask, args=(number, ended)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()

    def _ask(self, number: int, ended: threading.Event) -> None:
        body = picture(number)
        with httpx2.Client(base_url=self.url, timeout=60) as http:
            while not ended.wait(0.02):
                for headers in ({}, {"Prefer": "respond-async"}):
                    try:
                        answer = http.post("/v1/classify", content=body, headers=headers)
                    except httpx2.HTTPError as error:
                        self.refused.append(error)
                        continue
                    if answer.status_code == 202:
                        self.accepted[answer.json()["id"]] = time.monotonic()
                    else:
                        (self.answers if answer.status_code == 200 else self.refused).append(answer)


@pytest.mark.parametrize("kind", ["worker", "gateway", "redis"])
def test_no_accepted_job_is_lost(cells: Cells, kind: str) -> None:
    load = Load(cells.url)
    started_at = time.monotonic()
    with load.running():
        time.sleep(KILLED_AFTER_S)
        killed_at = time.monotonic()
        cells.kill(kind)
        time.sleep(max(0.0, started_at + SECONDS - time.monotonic()))
    assert {job_id[:2] for job_id in load.accepted} == {"00", "01"}
    assert load.answers and all(answer.json()["results"][0]["predictions"] for answer in load.answers)
    with httpx2.Client(base_url=cells.url, timeout=60) as http:
        for job_id, accepted_at in load.accepted.items():
            may_be_lost = kind == "redis" and job_id.startswith("00") and killed_at - LAST_WRITES_S < accepted_at < killed_at + REDIS_AWAY_S
            assert final_state(http, job_id) in (["done", "urn:opsin:job-lost"] if may_be_lost else ["done"]), job_id
    for refused in load.refused:  # HAProxy closes a connection without an answer if that of the gateway, which was used before, breaks
        is_problem = isinstance(refused, httpx2.Response) and refused.headers["content-type"] == "application/problem+json"
        assert is_problem or isinstance(refused, httpx2.RemoteProtocolError), refused
    assert len(load.refused) < len(load.answers) / 2


def final_state(http: httpx2.Client, job_id: str) -> str:
    """Return the state in which a job ends, or the kind of problem that is answered instead."""

    def read() -> str | None:
        response = http.get(f"/v1/jobs/{job_id}")
        if response.status_code != 200:
            return str(response.json()["type"])
        state = str(response.json()["state"])
        return None if state in ("queued", "running") else state

    return eventually(read, f"{job_id} has ended", START_S)
