"""Meshes are made in a child process: its death costs the request that it worked for, never the service."""

from __future__ import annotations

import concurrent.futures
import select
import time
from collections.abc import Callable
from contextlib import ExitStack

import httpx2
import psutil

from tests.support.images import CAPTURE, FOV
from tests.support.job_api import accepted_id, comes_to
from tests.support.processes import takes_work
from tests.support.raw_http import Raw
from tests.support.task_clients import Sculptor
from tests.support.waiting import eventually


def child(sculptor: Sculptor) -> psutil.Process:
    """Return the gateway's only child."""
    [found] = psutil.Process(sculptor.gateway.process.pid).children()
    return found


def frozen_at_work(child: psutil.Process, ask: Callable[[], object]) -> None:
    """Ask for something, and stop the child once it has taken its file: one that takes none is replaced."""
    at_work = takes_work(child.pid)
    ask()
    while not at_work():  # without a pause, in which it might be done
        assert child.is_running()
    child.suspend()


def test_a_dead_child_costs_one_request(sculptor: Sculptor) -> None:
    sculptor.run()
    first = child(sculptor)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        unlucky: list[concurrent.futures.Future[httpx2.Response]] = []
        frozen_at_work(first, lambda: unlucky.append(pool.submit(sculptor.ask, headers={"X-Request-ID": "unlucky"})))
        [waiting] = unlucky
        assert sculptor.run(format="ply", surface="network").content.startswith(b"ply")  # light answers do not wait for it
        eventually(lambda: sculptor.gateway.count_in_flight() == 1, "it waits for the child")
        first.kill()
        answer = waiting.result()
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "its process died of SIGKILL" in answer.json()["detail"] and answer.json()["request_id"] == "unlucky"
    with httpx2.Client(base_url=sculptor.gateway.url, timeout=120) as patient:  # another child starts
        files = {name: (name, content) for name, content in CAPTURE.items()}
        assert patient.post("/v1/reconstruct", files=files, data={"fov": FOV}).content.startswith(b"glTF")
    assert child(sculptor).pid != first.pid


def test_a_client_with_many_meshes_waits_behind_its_own(sculptor: Sculptor) -> None:
    job = accepted_id(sculptor.ask(headers={"Prefer": "respond-async"}))
    comes_to(sculptor.gateway, job, "done")
    request = f"GET /v1/jobs/{job}/result HTTP/1.1\r\nHost: here\r\n\r\n".encode()
    with ExitStack() as closing:
        closing.enter_context(Raw(sculptor.gateway)).send(request).answer()  # the child runs
        much = [closing.enter_context(Raw(sculptor.gateway, "127.0.0.9")) for _ in range(12)]
        little = closing.enter_context(Raw(sculptor.gateway, "127.0.0.8"))
        busy = child(sculptor)
        frozen_at_work(busy, lambda: much[0].send(request))
        for raw in much[1:]:
            raw.send(request)
        time.sleep(1)  # all of them wait for the child
        little.send(request)
        time.sleep(0.5)
        busy.resume()
        assert little.answer().status == 200
        answered, _, _ = select.select([raw.socket for raw in much], [], [], 0)
        assert len(answered) < 6
        assert [raw.answer().status for raw in much] == [200] * 12
