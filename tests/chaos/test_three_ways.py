"""Long jobs requested in all three ways while workers, gateways and the queue's Redis are killed.

An accepted asynchronous job ends once, in its answer or a problem, and its events have no gaps, whichever gateway sends them. A
synchronous request and a stream end in an answer, a problem, or the broken connection of a killed gateway.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.support.bundles.vit import write_null
from tests.support.job_api import Event, parse
from tests.support.queue import Server, durable_server
from tests.support.serve_process import Service, serve
from tests.support.waiting import eventually

STEPS = (10, 25)
KINDS = 8
"""Different images; request i asks for image i % KINDS."""
SECONDS = 150.0
EVENTS = "text/event-stream"
BROKEN = "broken connection"


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (number % KINDS, 10 * (number % KINDS), 7)).save(buffer, "PNG")
    return buffer.getvalue()


class Requester:
    """One way to ask, and how each of its requests ended: the scores, a status, or BROKEN."""

    def __init__(self, url: str) -> None:
        self.http = httpx2.Client(base_url=url, timeout=SECONDS, params={"model": "toy", "top_k": 10})

    def synchronously(self, number: int) -> object:
        try:
            return scores_or_status(self.http.post("/v1/classify", content=picture(number)))
        except httpx2.HTTPError:
            return BROKEN

    def as_events(self, number: int) -> object:
        try:
            with self.http.stream("POST", "/v1/classify", content=picture(number), headers={"Accept": EVENTS}) as response:
                if response.status_code != 200:
                    return response.status_code
                events = list(parse(response.iter_lines()))
        except httpx2.HTTPError:
            return BROKEN
        if not events or events[-1].name not in ("done", "failed"):
            return BROKEN
        assert [event.id for event in events] == list(range(1, len(events) + 1))
        return scores(events[-1].data) if events[-1].name == "done" else events[-1].data["status"]

    def asynchronously(self, number: int) -> object:
        job = self._submit(number)
        if isinstance(job, int):
            return job
        events: list[Event] = []
        while not events or events[-1].name not in ("done", "failed", "cancelled"):
            events += self._read_events(job, after=events[-1].id if events else 0)
        assert [event.id for event in events] == list(range(1, len(events) + 1)), "no gap, nothing twice"
        result = self._patiently(lambda: self.http.get(f"/v1/jobs/{job}/result"))
        assert (events[-1].name == "done") == (result.status_code == 200)
        return scores_or_status(result)

    def _submit(self, number: int) -> str | int:
        """Submit a job, again until the service replies. Return its id, or the status of a refusal."""
        headers = {"Prefer": "respond-async", "Idempotency-Key": f"request {number}", "X-Request-Timeout": str(SECONDS)}
        response = self._patiently(lambda: self.http.post("/v1/classify", content=picture(number), headers=headers))
        return str(response.json()["id"]) if response.status_code == 202 else response.status_code

    def _read_events(self, job: str, after: int) -> list[Event]:
        """Read the events after one of them until the stream ends or the connection breaks."""
        events: list[Event] = []
        try:
            with self.http.stream("GET", f"/v1/jobs/{job}/events", headers={"Last-Event-ID": str(after)}) as response:
                if response.status_code == 200:
                    events.extend(parse(response.iter_lines()))
        except httpx2.HTTPError:
            time.sleep(0.1)
        return events

    def _patiently(self, call: Callable[[], httpx2.Response]) -> httpx2.Response:
        until = time.monotonic() + SECONDS
        while True:
            try:
                response = call()
            except httpx2.HTTPError:
                assert time.monotonic() < until
                time.sleep(0.1)
                continue
            if response.status_code not in (429, 503) or time.monotonic() > until:
                return response
            time.sleep(0.2)


def scores_or_status(response: httpx2.Response) -> object:
    return scores(response.json()) if response.status_code == 200 else response.status_code


def scores(answer: dict[str, Any]) -> str:
    return json.dumps({p["label"]: round(p["score"], 4) for p in answer["results"][0]["predictions"]}, sort_keys=True)


KILLS = ("worker", "gateway", "worker", "gateway", "redis", "worker", "gateway", "worker", "gateway")


def kill_in_turn(service: Service, server: Server) -> None:
    """Kill one process after another; wait for a victim of each kind."""
    chance = random.Random(0)
    for kind in KILLS:
        time.sleep(2)
        if kind == "redis":
            server.kill()
            time.sleep(0.5)
            server.start()
        else:
            os.kill(chance.choice(eventually(lambda kind=kind: service.children(kind), f"there is a {kind}")), signal.SIGKILL)  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hundred_long_jobs_of_each_way_under_kills(tmp_path: Path) -> None:
    write_null(tmp_path / "bundles", "toy", milliseconds=40, steps=STEPS, width=16)
    with (
        durable_server(tmp_path / "redis") as server,
        serve(tmp_path / "bundles", "--workers", "2", "--gateways", "2", redis_url=server.url) as service,
    ):
        requester = Requester(service.url)
        expected = [requester.synchronously(number) for number in range(KINDS)]
        assert all(isinstance(answer, str) and answer != BROKEN for answer in expected)
        with ThreadPoolExecutor(24) as pool:
            ways = {
                way: [pool.submit(getattr(requester, way), n) for n in range(200)]
                for way in ("asynchronously", "synchronously", "as_events")
            }
            kill_in_turn(service, server)
            assert not all(request.done() for requests in ways.values() for request in requests), "all requests ended before the last kill"
            ends = {way: [request.result() for request in requests] for way, requests in ways.items()}
        for way, answers in ends.items():
            for number, end in enumerate(answers):
                if isinstance(end, str) and end != BROKEN:
                    assert end == expected[number % KINDS], f"{way} {number}: another answer than undisturbed"
                else:
                    assert end != BROKEN or way != "asynchronously", f"{way} {number}: {end}"
                    assert end == BROKEN or end in (500, 503, 504), f"{way} {number}: {end}"
        right = {way: sum(isinstance(end, str) and end != BROKEN for end in answers) for way, answers in ends.items()}
        assert right["asynchronously"] == 200, right
        eventually(lambda: requester.synchronously(0) == expected[0], "the service has recovered")
