"""Client of the job API for tests: submits jobs and reads their events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2

from tests.support.fake_worker import picture
from tests.support.gateway_process import Gateway
from tests.support.waiting import eventually


@dataclass(frozen=True)
class Event:
    id: int
    name: str
    data: Any


def ask_later(gateway: Gateway, *pictures: bytes, **headers: str) -> httpx2.Response:
    """Headers with underscores for dashes."""
    files = [("image", (f"{index}.png", data)) for index, data in enumerate(pictures or (picture(3),))]
    return gateway.http.post("/v1/classify", files=files, headers={"Prefer": "respond-async", **add_dashes(headers)})


def accepted_id(response: httpx2.Response) -> str:
    """Return the id of the job."""
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def job(gateway: Gateway, job_id: str) -> dict[str, Any]:
    response = gateway.http.get(f"/v1/jobs/{job_id}")
    assert response.status_code == 200, response.text
    return dict(response.json())


def result(gateway: Gateway, job_id: str, **headers: str) -> httpx2.Response:
    return gateway.http.get(f"/v1/jobs/{job_id}/result", headers=add_dashes(headers))


def comes_to(gateway: Gateway, job_id: str, state: str) -> dict[str, Any]:
    eventually(lambda: job(gateway, job_id)["state"] == state, f"the job is {state}")
    return job(gateway, job_id)


def events_of(gateway: Gateway, job_id: str, after: int | None = None) -> list[Event]:
    """Return all events; waits for the last one."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    with gateway.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
        assert response.status_code == 200
        return list(read_events(response))


def read_events(response: httpx2.Response) -> Iterator[Event]:
    yield from parse(response.iter_lines())


def parse(lines: Iterable[str]) -> Iterator[Event]:
    fields: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield Event(int(fields["id"]), fields["event"], json.loads(fields["data"]))
            fields = {}


def add_dashes(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
