"""HAProxy with the shipped configuration, in front of two cells: which request reaches which cell, and what a cell that is down answers."""

from __future__ import annotations

import itertools
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import httpx2
import pytest

from benchmarks.haproxy import MISSING, haproxy
from tests.support.fake_worker import Worker, make_spec, picture
from tests.support.gateway_process import Gateway, client, gateway_process, problem
from tests.support.redis import private_valkey
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("haproxy") is None, reason=MISSING)]

CELLS = 2
CHECKED_S = 4.0
"""Time in seconds after which HAProxy knows that a gateway is not ready: two checks, and one that takes as long as it may."""


@dataclass(frozen=True)
class Cells:
    """Cells with two gateways each, and HAProxy in front of them."""

    http: httpx2.Client
    """Client of HAProxy."""
    gateways: list[list[Gateway]]
    workers: list[Worker]
    listeners: list[list[socket.socket]]
    """Our copies of the gateways' listening sockets."""

    def ask_later(self, **headers: str) -> httpx2.Response:
        headers = {"Prefer": "respond-async", **{name.replace("_", "-"): value for name, value in headers.items()}}
        return self.http.post("/v1/classify", content=picture(3), headers=headers)

    def kill(self, cell: int, *places: int) -> None:
        """Kill gateways of a cell."""
        for place in places:
            self.gateways[cell][place].process.kill()
            self.gateways[cell][place].process.wait()
            self.listeners[cell][place].close()

    def count_answers(self) -> list[float]:
        """Return how many requests each cell has answered."""
        return [sum(gateway.metric("opsin_requests_total") for gateway in gateways) for gateways in self.gateways]


def cell_of(response: httpx2.Response) -> int:
    assert response.status_code == 202, response.text
    return int(response.json()["id"][:2], 16)


@pytest.fixture
def cells() -> Iterator[Cells]:
    with ExitStack() as stack:
        urls = [stack.enter_context(private_valkey()).url for _ in range(CELLS)]
        listeners = [[stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)] for _ in urls]
        gateways = [
            [stack.enter_context(gateway_process(url, listener, cell=number)) for listener in listeners[number]]
            for number, url in enumerate(urls)
        ]
        workers = [stack.enter_context(Worker(url, [make_spec()], cell=number)) for number, url in enumerate(urls)]
        for gateway in itertools.chain(*gateways):
            gateway.wait_for_workers()
        url = stack.enter_context(haproxy([[gateway.http.base_url.port for gateway in some] for some in gateways]))
        http = stack.enter_context(client(url))
        eventually(lambda: http.get("/health/ready").status_code == 200, "HAProxy has a gateway")
        yield Cells(http, gateways, workers, listeners)


def keys_of_both(cells: Cells) -> list[str]:
    """Return an Idempotency-Key of each cell."""
    found: dict[int, str] = {}
    for number in range(100):
        found.setdefault(cell_of(cells.ask_later(Idempotency_Key=f"key {number}")), f"key {number}")
    return [found[number] for number in range(CELLS)]


def test_jobs_and_scenes_are_read_in_the_cell_of_their_id(cells: Cells) -> None:
    ids = [cells.ask_later().json()["id"] for _ in range(8)]
    assert {job_id[:2] for job_id in ids} == {"00", "01"}, "both cells get requests"
    for job_id in ids:
        eventually(lambda job_id=job_id: cells.http.get(f"/v1/jobs/{job_id}").json()["state"] == "done", "it is done")
        assert cells.http.get(f"/v1/jobs/{job_id}/result").json()["results"][0]["predictions"][0]["label"] == "red 3"
        assert cells.http.delete(f"/v1/jobs/{job_id}").status_code == 204
    for _ in range(4):
        for cell in ("00", "01"):
            problem(cells.http.get(f"/v1/scenes/{cell}{'a' * 32}"), 404, "not-found")
    problem(cells.http.get(f"/v1/scenes/ff{'a' * 32}"), 421, "wrong-cell")


def test_a_key_leads_to_one_cell_whether_or_not_it_is_up(cells: Cells) -> None:
    ours, theirs = keys_of_both(cells)
    job_id = cells.ask_later(Idempotency_Key=theirs).json()["id"]
    cells.kill(0, 0, 1)
    for _ in range(10):
        refused = cells.ask_later(Idempotency_Key=ours)
        assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
        assert refused.json()["status"] == 503 and refused.headers["retry-after"] == "5"
        assert cells.ask_later(Idempotency_Key=theirs).json()["id"] == job_id, "the same job, in the other cell"
    assert cells.http.get(f"/v1/jobs/00234567-{'a' * 32}").status_code == 503


def test_requests_of_no_cell_go_where_workers_are_ready(cells: Cells) -> None:
    for _ in range(8):
        assert cells.http.post("/v1/classify", content=picture(3)).status_code == 200
    before = cells.count_answers()
    assert min(before) > 0
    job_id = next(one for one in (cells.ask_later().json()["id"] for _ in range(8)) if one.startswith("00"))
    eventually(lambda: cells.http.get(f"/v1/jobs/{job_id}").json()["state"] == "done", "it is done")
    cells.workers[0].stop()
    for gateway in cells.gateways[0]:
        eventually(lambda gateway=gateway: gateway.http.get("/health/ready").status_code == 503, "it is not ready")
    time.sleep(CHECKED_S)
    before = cells.count_answers()
    assert [cells.http.post("/v1/classify", content=picture(3)).status_code for _ in range(8)] == [200] * 8
    assert cells.count_answers() == [before[0], before[1] + 8]
    assert cells.http.get(f"/v1/jobs/{job_id}/result").status_code == 200, "its jobs are still read"


def test_a_dead_gateway_leaves_its_cell_to_the_other_one(cells: Cells) -> None:
    ours, _ = keys_of_both(cells)
    job_id = cells.ask_later(Idempotency_Key=ours).json()["id"]
    cells.kill(0, 0)
    for _ in range(10):
        assert cells.ask_later(Idempotency_Key=ours).json()["id"] == job_id
        assert cells.http.get(f"/v1/jobs/{job_id}").status_code == 200
        assert cells.http.post("/v1/classify", content=picture(3)).status_code == 200
