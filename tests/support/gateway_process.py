"""A gateway process for tests, and an HTTP client for it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

from server.settings import Settings
from tests.support.forked_program import ForkedProcess
from tests.support.waiting import START_S, WAIT_S, eventually

START_GATEWAY = (
    "from server.gateway.main import run_gateway; from server.settings import load; raise SystemExit(run_gateway(load(), fd={fd}))"
)


class Gateway:
    """A gateway process and an HTTP client for it."""

    def __init__(self, process: ForkedProcess | subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.http = client(self.url)

    def classify(self, body: bytes, *, headers: dict[str, str] | None = None, **query: str | int) -> httpx2.Response:
        return self.http.post("/v1/classify", content=body, params=query, headers=headers)

    def classify_all(self, *pictures: bytes, fields: dict[str, str] | None = None, **query: str | int) -> httpx2.Response:
        files = [("image", (f"{index}.png", data)) for index, data in enumerate(pictures)]
        return self.http.post("/v1/classify", files=files, data=fields, params=query)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with these labels."""
        return sum_up(self.http.get("/metrics").text, name, **labels)

    def states(self) -> set[str]:
        """Return the states of its bundles."""
        return {model["state"] for model in self.http.get("/v1/models").json()["models"]}

    def count_in_flight(self) -> int:
        return int(self.metric("opsin_in_flight"))

    def wait_for_workers(self, count: int = 1, seconds: float = START_S) -> None:
        """Wait until exactly so many are ready."""
        eventually(lambda: self.metric("opsin_workers", state="ready") == count, f"{count} ready workers", seconds)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


def refusal(answer: httpx2.Response, status: int) -> tuple[str | None, str]:
    """Field and detail of the problem."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    problem = answer.json()
    return problem.get("field"), problem["detail"]


def problem(response: httpx2.Response, status: int, slug: str) -> dict[str, object]:
    document = response.json()
    assert (response.status_code, document.get("type")) == (status, f"urn:opsin:{slug}"), document
    assert response.headers["content-type"] == "application/problem+json"
    assert (
        {"type", "title", "status", "detail", "request_id"} <= set(document) <= {"type", "title", "status", "detail", "request_id", "field"}
    )
    assert document["status"] == status
    assert document["request_id"] == response.headers["X-Request-ID"]
    return document


def sum_up(metrics: str, name: str, **labels: str) -> float:
    """Return the sum of the samples with these labels of a page of Prometheus' text."""
    total = 0.0
    for line in metrics.splitlines():
        sample, _, value = line.rpartition(" ")
        if sample.partition("{")[0] == name and all(f'{key}="{expected}"' in sample for key, expected in labels.items()):
            total += float(value)
    return total


def client(url: str) -> httpx2.Client:
    return httpx2.Client(base_url=url, timeout=WAIT_S)


def environment(**settings: object) -> dict[str, str]:
    """Ours, with these settings as `OPSIN_*`."""
    return os.environ | Settings(**settings).to_environment()


@contextmanager
def gateway_process(url: str, listener: socket.socket | None = None, **settings: object) -> Iterator[Gateway]:
    """Run a gateway with these settings until it answers. With a `listener` several can share one socket."""
    listener = listener or socket.create_server(("127.0.0.1", 0))
    variables = environment(redis_url=url, **settings)
    with answering(
        ForkedProcess("opsin", "gateway", environment=variables, listener=listener.fileno(), captured=True), listener
    ) as running:
        yield running


@contextmanager
def executed_gateway(url: str, listener: socket.socket | None = None, **variables: str) -> Iterator[Gateway]:
    """Run a gateway whose process imports everything itself, to measure its memory or set variables that imports read."""
    listener = listener or socket.create_server(("127.0.0.1", 0))
    os.set_inheritable(listener.fileno(), True)
    process = subprocess.Popen(
        [sys.executable, "-c", START_GATEWAY.format(fd=listener.fileno())],
        env=environment(redis_url=url) | variables,
        pass_fds=[listener.fileno()],
        stderr=subprocess.PIPE,
        text=True,
    )
    with answering(process, listener) as running:
        yield running


@contextmanager
def answering(process: ForkedProcess | subprocess.Popen[str], listener: socket.socket) -> Iterator[Gateway]:
    """Wait for the gateway on this socket, and end it."""
    running = Gateway(process, listener.getsockname()[1])
    try:
        running.http.get("/health/live", timeout=START_S)  # waits in the socket's backlog until the process accepts
        yield running
    finally:
        running.http.close()
        if process.poll() is None:
            process.kill()
        process.wait()
        if isinstance(process, ForkedProcess):
            process.close()
        elif process.stderr is not None:
            process.stderr.close()
