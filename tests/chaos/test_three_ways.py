"""Long jobs asked for in all three ways while workers, gateways and the queue's Redis are killed.

Asked later, every accepted job ends once, in its answer or a problem, and its events have no gaps, whichever gateway tells them. Asked at
once or as a stream, a request ends in its answer, a problem, or the broken connection of a killed gateway.
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


class Asking:
    """One way to ask, and how each of its requests ended: the scores, a status, or BROKEN."""

    def __init__(self, url: str) -> None:
        self.http = httpx2.Client(base_url=url, timeout=SECONDS, params={"model": "toy", "top_k": 10})

    def at_once(self, number: int) -> object:
        try:
            return answered(self.http.post("/v1/classify", content=picture(number)))
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

    def later(self, number: int) -> object:
        job = self._accepted(number)
        if isinstance(job, int):
            return job
        events: list[Event] = []
        while not events or events[-1].name not in ("done", "failed", "cancelled"):
            events += self._more(job, after=events[-1].id if events else 0)
        assert [event.id for event in events] == list(range(1, len(events) + 1)), "no gap, nothing twice"
        result = self._patiently(lambda: self.http.get(f"/v1/jobs/{job}/result"))
        assert (events[-1].name == "done") == (result.status_code == 200)
        return answered(result)

    def _accepted(self, number: int) -> str | int:
        """The id of a job, whatever breaks meanwhile; the status of a refusal."""
        headers = {"Prefer": "respond-async", "Idempotency-Key": f"request {number}", "X-Request-Timeout": str(SECONDS)}
        response = self._patiently(lambda: self.http.post("/v1/classify", content=picture(number), headers=headers))
        return str(response.json()["id"]) if response.status_code == 202 else response.status_code

    def _more(self, job: str, after: int) -> list[Event]:
        """The events after one of them, for as long as the connection holds."""
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


def answered(response: httpx2.Response) -> object:
    return scores(response.json()) if response.status_code == 200 else response.status_code


def scores(answer: dict[str, Any]) -> str:
    return json.dumps({p["label"]: round(p["score"], 4) for p in answer["results"][0]["predictions"]}, sort_keys=True)


HURTS = ("worker", "gateway", "worker", "gateway", "redis", "worker", "gateway", "worker", "gateway")


def hurt(service: Service, server: Server) -> None:
    """One after the other; each finds a victim."""
    chance = random.Random(0)
    for kind in HURTS:
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
        asking = Asking(service.url)
        expected = [asking.at_once(number) for number in range(KINDS)]
        assert all(isinstance(answer, str) and answer != BROKEN for answer in expected)
        with ThreadPoolExecutor(24) as pool:
            ways = {way: [pool.submit(getattr(asking, way), n) for n in range(200)] for way in ("later", "at_once", "as_events")}
            hurt(service, server)
            assert not all(request.done() for requests in ways.values() for request in requests), "they were hurt in their midst"
            ends = {way: [request.result() for request in requests] for way, requests in ways.items()}
        for way, answers in ends.items():
            for number, end in enumerate(answers):
                if isinstance(end, str) and end != BROKEN:
                    assert end == expected[number % KINDS], f"{way} {number}: another answer than undisturbed"
                else:
                    assert end != BROKEN or way != "later", f"{way} {number}: {end}"
                    assert end == BROKEN or end in (500, 503, 504), f"{way} {number}: {end}"
        right = {way: sum(isinstance(end, str) and end != BROKEN for end in answers) for way, answers in ends.items()}
        assert right["later"] == 200, right
        eventually(lambda: asking.at_once(0) == expected[0], "the service has recovered")
