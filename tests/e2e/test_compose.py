"""The containers as a user runs them: built, started, measured, a worker killed. `make compose-test` needs a container engine."""

from __future__ import annotations

import io
import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.e2e.conftest import ROOT, Stack, wait_until
from tests.support.dashboards import QUERIES, put_under_load

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]

PICTURES = sorted(path for path in (ROOT / "docs" / "pictures" / "flags").iterdir() if path.suffix in (".png", ".jpg"))
INTERVAL = "30m"
INTERVAL_SECONDS = 1800.0
CLIENTS = 8
SCRAPE_S = 5


@dataclass
class Counts:
    """Counters of a client."""

    requests: Counter[str] = field(default_factory=Counter)
    """Number of requests by outcome."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Number of rejections by reason."""
    images: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def minus(self, other: Counts) -> Counts:
        return Counts(
            self.requests - other.requests,
            self.rejected - other.rejected,
            self.images - other.images,
            self.tokens_in - other.tokens_in,
            self.tokens_out - other.tokens_out,
        )

    def copy(self) -> Counts:
        return self.minus(Counts())

    def to_dict(self) -> dict[str, int]:
        return {"images": self.images, "tokens_in": self.tokens_in, "tokens_out": self.tokens_out, **self.requests, **self.rejected}


class CountingClient:
    """A client that counts its answers. Any number of threads may use it."""

    def __init__(self, url: str) -> None:
        self._http = httpx2.Client(base_url=url, timeout=90)
        self._lock = threading.Lock()
        self.counts = Counts()

    def classify(self, pictures: Sequence[bytes]) -> list[str]:
        """Return the best label of each image, sent as one request. Raises AssertionError unless it is answered."""
        answer = self._http.post("/v1/classify?model=flags", files=[("image", (f"{n}", picture)) for n, picture in enumerate(pictures)])
        assert answer.status_code == 200, f"{answer.status_code}: {answer.text}"
        results = answer.json()["results"]
        with self._lock:
            self.counts.requests["ok"] += 1
            self.counts.images += len(results)
            self.counts.tokens_in += sum(result["merging"]["tokens_in"] for result in results)
            self.counts.tokens_out += sum(result["merging"]["tokens_out"] for result in results)
        return [result["predictions"][0]["label"] for result in results]

    def send_text(self) -> None:
        """Send text instead of an image: 415."""
        assert self._http.post("/v1/classify", content=b"not a picture").status_code == 415
        with self._lock:
            self.counts.requests["client_error"] += 1

    def send_too_many_pixels(self) -> None:
        """Send an image above the limit on pixels: 413."""
        assert self._http.post("/v1/classify", content=huge_picture()).status_code == 413
        with self._lock:
            self.counts.requests["client_error"] += 1
            self.counts.rejected["too_large"] += 1


def huge_picture() -> bytes:
    """Return a PNG of 64 megapixels in a few kilobytes."""
    buffer = io.BytesIO()
    Image.new("1", (8000, 8000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def client(stack: Stack) -> CountingClient:
    return CountingClient(stack.gateway)


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    assert PICTURES
    return [path.read_bytes() for path in PICTURES]


def test_images_hold_what_they_need_and_no_more(stack: Stack) -> None:
    for service in ("gateway", "worker"):
        assert stack.compose("exec", "-T", service, "id", "-u").strip() != "0"
        found = stack.compose("exec", "-T", service, "sh", "-c", "command -v cc gcc g++ clang || true")
        assert found.strip() == "", f"{service} holds a compiler"
    assert "torch" not in stack.compose("exec", "-T", "gateway", "pip", "list").lower()
    assert stack.compose("exec", "-T", "gateway", "sh", "-c", "ls /bundles 2>/dev/null || true").strip() == ""


def test_health_checks_of_the_images_pass(stack: Stack) -> None:
    """Run as the image declares them: not every engine runs health checks by itself."""
    for service in ("gateway", "worker"):
        kind, *command = stack.inspect(stack.containers(service)[0])["Config"]["Healthcheck"]["Test"]
        assert kind == "CMD"
        stack.compose("exec", "-T", service, *command)


def test_the_dashboard_shows_what_the_client_counted(stack: Stack, client: CountingClient, pictures: list[bytes]) -> None:
    """The queries answer with finite numbers; totals are exact, and rates are what was counted between two scrapes."""
    # a series begins with its first event, and a rate needs a sample before that it can rise from: so one of each kind first
    client.classify(pictures[:2])
    client.send_text()
    client.send_too_many_pixels()
    stack.wait_for("sum(opsin_requests_total)", client.counts.requests.total())
    stack.wait_for("sum(opsin_batch_wait_seconds_count)", client.counts.images)
    before = client.counts.copy()

    with ThreadPoolExecutor(CLIENTS) as pool:
        for number in range(160):
            pool.submit(client.classify, [pictures[(number + offset) % len(pictures)] for offset in range(1 + number % 3)])
            if number % 20 == 0:
                pool.submit(client.send_text)
                pool.submit(client.send_too_many_pixels)
    counted, since = client.counts, client.counts.minus(before)
    assert counted.requests == {"ok": 161, "client_error": 18}
    stack.wait_for("sum(opsin_requests_total)", counted.requests.total())
    stack.wait_for("sum(opsin_batch_wait_seconds_count)", counted.images)

    moment = stack.moment_of_next_scrape("opsin_in_flight")
    queries = [query for query in QUERIES if query.dashboard == "Throughput"]
    panels = {(query.panel, query.legend): stack.scraper.query(query.fill_in(INTERVAL), moment) for query in queries}
    assert [name for name, series in panels.items() if not series] == []
    for name, series in panels.items():
        assert all(math.isfinite(float(one["value"][1])) for one in series), f"{name}: {series}"

    assert total(panels["Images answered", "images"]) == counted.images
    assert total(panels["Requests", "requests"]) == counted.requests.total()
    assert total(panels["Answered with success", "ok"]) == counted.requests["ok"]
    assert total(panels["Rejected", "rejected"]) == counted.rejected.total()

    rates = {"images": panels["Images per second", "{{model}}"]}
    rates |= {f"tokens_{way}": panels["Tokens per second", way] for way in ("in", "out")}
    rates |= {one["metric"]["outcome"]: [one] for one in panels["Requests per second", "{{outcome}}"]}
    rates |= {one["metric"]["reason"]: [one] for one in panels["Rejections per second", "{{reason}}"]}
    assert rates.keys() >= counted.to_dict().keys()
    for name, rate in rates.items():
        # at the moment of a scrape Prometheus extrapolates backwards only, and not below zero: by what was counted before at most
        min_count, max_count = since.to_dict().get(name, 0), counted.to_dict().get(name, 0)
        assert min_count <= total(rate) * INTERVAL_SECONDS * (1 + 1e-9) <= max_count * (1 + 2e-9), name


def total(series: list[Any]) -> float:
    return sum(float(one["value"][1]) for one in series)


def test_every_query_of_dashboards_and_rules_answers(stack: Stack) -> None:
    put_under_load(stack.gateway, SCRAPE_S)
    wait_until(
        lambda: stack.scraper.find_unanswered(INTERVAL) == [], lambda: f"{stack.scraper.find_unanswered(INTERVAL)} do not answer", 60
    )
    wait_until(lambda: stack.scraper.find_unanswered_rules() == [], lambda: f"{stack.scraper.find_unanswered_rules()} do not answer", 120)


def test_a_worker_may_be_killed_under_load(stack: Stack, client: CountingClient, pictures: list[bytes]) -> None:
    """A worker of two is killed in the middle of 300 requests: every request gets the answer that it had before."""
    labels = [client.classify([picture])[0] for picture in pictures]
    stack.compose("up", "--detach", "--no-recreate", "--scale", "worker=2", "worker")
    stack.wait_for('count(up{job="worker"} == 1)', 2)
    stack.wait_for('max(opsin_workers{state="ready"})', 2)

    victim = stack.containers("worker")[0]
    with ThreadPoolExecutor(CLIENTS) as pool:
        requests = {pool.submit(client.classify, [pictures[number % len(pictures)]]): number for number in range(300)}
        for answered, future in enumerate(as_completed(requests)):
            if answered == 60:
                stack.kill(victim)
            assert future.result() == [labels[requests[future] % len(pictures)]]


def test_a_service_that_is_stopped_finishes_what_it_holds(stack: Stack, pictures: list[bytes]) -> None:
    """`stop` while a request is half sent: it is answered, and the processes end with status 0."""
    stack.wait_for('max(opsin_workers{state="ready"})', len(stack.containers("worker")))
    begun, draining = threading.Event(), threading.Event()

    def slow_upload() -> Iterator[bytes]:
        yield pictures[0][:100]
        begun.set()
        assert draining.wait(60)
        yield pictures[0][100:]

    ids = [container for service in ("gateway", "worker") for container in stack.containers(service)]
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(httpx2.post, f"{stack.gateway}/v1/classify", content=slow_upload(), timeout=60)
        assert begun.wait(30)
        stopped = pool.submit(stack.compose, "stop", "gateway")
        wait_until(
            lambda: httpx2.get(f"{stack.gateway}/health/ready").status_code == 503, lambda: "the gateway does not say that it drains", 30
        )
        draining.set()
        assert answer.result().status_code == 200
        stopped.result()
    stack.compose("stop", "worker")
    assert [stack.inspect(container)["State"]["ExitCode"] for container in ids] == [0] * len(ids)
