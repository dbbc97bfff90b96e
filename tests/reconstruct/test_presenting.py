"""Meshes are made in a child process: its death costs the request that it worked for, never the service."""

from __future__ import annotations

import concurrent.futures
import os
import signal

import httpx
import psutil

from tests.gateway.service import eventually
from tests.reconstruct.service import CAPTURE, FOV, Sculptor


def child(sculptor: Sculptor) -> psutil.Process:
    """The gateway's only one."""
    [found] = psutil.Process(sculptor.gateway.process.pid).children()
    return found


def test_a_dead_child_costs_one_request(sculptor: Sculptor) -> None:
    sculptor.answered()
    first = child(sculptor)
    os.kill(first.pid, signal.SIGSTOP)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        before = sculptor.gateway.metric("opsin_items_total", model="shell")
        waiting = pool.submit(sculptor.ask, headers={"X-Request-ID": "unlucky"})
        eventually(lambda: sculptor.gateway.metric("opsin_items_total", model="shell") > before, "it is being presented")
        assert sculptor.answered(format="ply", surface="network").content.startswith(b"ply")  # meanwhile light answers are made
        eventually(lambda: sculptor.gateway.in_flight() == 1, "it waits for the child")
        os.kill(first.pid, signal.SIGKILL)
        answer = waiting.result()
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "its process died of SIGKILL" in answer.json()["detail"] and answer.json()["request_id"] == "unlucky"
    with httpx.Client(base_url=sculptor.gateway.url, timeout=120) as patient:  # another child starts
        files = {name: (name, content) for name, content in CAPTURE.items()}
        assert patient.post("/v1/reconstruct", files=files, data={"fov": FOV}).content.startswith(b"glTF")
    assert child(sculptor).pid != first.pid
