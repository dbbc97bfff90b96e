"""Gateways, workers and bundles are replaced one after the other behind HAProxy, and no client notices."""

from __future__ import annotations

import io
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.haproxy import MISSING, haproxy
from models.bundle import Bundle
from server.settings import Settings
from server.supervisor.private_valkey import PrivateValkey
from tests.support.bundles.vit import seal, write_null, write_tiny_vit
from tests.support.forked_program import ForkedProcess
from tests.support.gateway_process import sum_up
from tests.support.images import picture
from tests.support.job_api import Event, parse
from tests.support.queue import free_port
from tests.support.waiting import START_S, WAIT_S, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.skipif(shutil.which("haproxy") is None, reason=MISSING)]

NOTICED_S = 4.0
"""Time within which HAProxy has noticed that a gateway is ready, or is not: two checks, one second apart."""

STEPS = 60
STEP_MS = 50.0
"""A job of steps takes three seconds: as long as a gateway takes to be replaced."""
PAUSE_S = 0.02
"""Time that a client waits between two requests."""
FINAL = ("done", "failed", "cancelled")


class Process:
    """A gateway or a worker, with what it writes to its log."""

    def __init__(self, url: str, command: str, log: Path, port: int, **settings: object) -> None:
        usual = Settings(redis_url=url, drain_delay=NOTICED_S, dtype="float32", starters=False).to_environment() | {"OMP_NUM_THREADS": "1"}
        listens = {"port" if command == "gateway" else "metrics_port": port}
        inputs = {f"OPSIN_{name.upper()}": str(value) for name, value in (settings | listens).items()}
        self._url = f"http://127.0.0.1:{port}"
        self._log = log
        fd = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self._process = ForkedProcess("opsin", command, environment=os.environ | usual | inputs, prints=fd)
        os.close(fd)

    def readiness(self) -> tuple[int, str]:
        """Return status and reason of `/health/ready`; status 0 before it listens."""
        try:
            response = httpx2.get(f"{self._url}/health/ready", timeout=WAIT_S)
        except httpx2.TransportError:
            return 0, ""
        return response.status_code, response.json().get("detail", "")

    def wait_until_ready(self) -> None:
        eventually(lambda: self.readiness()[0] == 200, "it is ready", START_S)

    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> None:
        """Stop it as an operator does."""
        self._process.terminate()
        assert self._process.wait(WAIT_S) == 0, self.log()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass
class Installation:
    """Gateways and workers at one Redis, behind a proxy."""

    redis_url: str
    folder: Path
    ports: list[int]
    url: str
    """HAProxy's."""
    gateways: list[Process] = field(default_factory=list)
    workers: list[Process] = field(default_factory=list)
    started: int = 0

    def start_gateway(self, port: int) -> Process:
        return self._start(self.gateways, "gateway", port=port)

    def start_worker(self, bundles: Path, **settings: object) -> Process:
        port = free_port()
        return self._start(self.workers, "worker", port=port, bundles=bundles, cache=self.folder / "cache", **settings)

    def replace_worker(self, bundles: Path) -> None:
        """Start a worker, and stop the oldest once it is ready."""
        oldest = self.workers[0]
        self.start_worker(bundles).wait_until_ready()
        oldest.stop()
        self.workers.remove(oldest)

    def replace_gateway(self, port: int) -> None:
        """Stop the gateway on a port, and start another one there."""
        self.gateways.pop(0).stop()
        self.start_gateway(port).wait_until_ready()
        time.sleep(NOTICED_S)

    def kill(self) -> None:
        for process in self.gateways + self.workers:
            process.kill()

    def get(self, path: str) -> Any:
        return httpx2.get(f"{self.url}{path}", timeout=WAIT_S).raise_for_status().json()

    def metric(self, name: str, **labels: str) -> float:
        return sum_up(httpx2.get(f"{self.url}/metrics", timeout=WAIT_S).text, name, **labels)

    def _start(self, kind: list[Process], command: str, *, port: int, **settings: object) -> Process:
        self.started += 1
        process = Process(self.redis_url, command, self.folder / f"{command}-{self.started}.log", port, **settings)
        kind.append(process)
        return process


@contextmanager
def run_installation(redis_url: str, folder: Path, bundles: Path) -> Iterator[Installation]:
    """Run two gateways and two workers."""
    ports = [free_port(), free_port()]
    with ExitStack() as stack:
        installation = Installation(redis_url, folder, ports, stack.enter_context(haproxy([ports])))
        stack.callback(installation.kill)
        for _ in range(2):
            installation.start_worker(bundles)
        for port in ports:
            installation.start_gateway(port)
        for process in installation.workers + installation.gateways:
            process.wait_until_ready()
        time.sleep(NOTICED_S)
        yield installation


class Load:
    """Clients that send requests one after the other over connections that they keep, until the block ends."""

    def __init__(self, url: str) -> None:
        self.answered: Counter[str] = Counter()
        """Answers by client."""
        self.resumed = 0
        """Event streams that ended before their job."""
        self._url = url
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(16)
        self._clients: list[Future[None]] = []

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._pool.shutdown()

    def start(self, name: str, request: Callable[[httpx2.Client], object]) -> None:
        """Repeat a request by a client of its own."""

        def repeat() -> None:
            with httpx2.Client(base_url=self._url, timeout=WAIT_S) as http:
                while not self._ended.is_set():
                    request(http)
                    self.answered[name] += 1
                    time.sleep(PAUSE_S)

        self._clients.append(self._pool.submit(repeat))

    def end(self) -> None:
        """Stop the clients. Raises what one of them met."""
        self._ended.set()
        for client in self._clients:
            client.result()

    def follow_job(self, http: httpx2.Client) -> None:
        """Submit a job of steps, follow its events to the last one across all streams that end before it, and read its result."""
        job_id = submit_job(http)
        events: list[Event] = []
        while not events or events[-1].name not in FINAL:
            last = {"Last-Event-ID": str(events[-1].id)} if events else {}
            with http.stream("GET", f"/v1/jobs/{job_id}/events", headers=last) as response:
                assert response.status_code == 200, response.read()
                events += parse(response.iter_lines())
            self.resumed += events[-1].name not in FINAL
        assert [event.id for event in events] == list(range(1, len(events) + 1)), "each event comes once"
        assert events[-1].name == "done", events[-1]
        assert http.get(f"/v1/jobs/{job_id}/result").json()["results"][0]["predictions"]


def submit_job(http: httpx2.Client) -> str:
    answer = http.post("/v1/classify", params={"model": "toy"}, content=grey(random.randrange(256)), headers={"Prefer": "respond-async"})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def grey(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def classify(http: httpx2.Client, model: str) -> tuple[str, list[float]]:
    """Return the version that answered, and the scores by class."""
    answer = http.post("/v1/classify", params={"model": model, "top_k": 10}, content=picture(1))
    assert answer.status_code == 200, answer.text
    document = answer.json()
    ordered = sorted(document["results"][0]["predictions"], key=lambda one: one["index"])
    return document["version"], [one["score"] for one in ordered]


def upload_slowly(http: httpx2.Client, model: str) -> None:
    """Send an image in pieces over a second, in which the gateway may get SIGTERM."""

    def pieces() -> Iterator[bytes]:
        data = picture(2)
        for at in range(0, len(data), max(1, len(data) // 10)):
            yield data[at : at + max(1, len(data) // 10)]
            time.sleep(0.1)

    answer = http.post("/v1/classify", params={"model": model}, content=pieces())
    assert answer.status_code == 200, answer.text


def test_replacing_every_worker_and_gateway_fails_no_request(valkey: PrivateValkey, tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    write_null(bundles, "plain", milliseconds=5)
    write_null(bundles, "toy", milliseconds=STEP_MS, steps=(STEPS,), width=8)
    with run_installation(valkey.url, tmp_path, bundles) as installation, Load(installation.url) as load:
        for _ in range(3):
            load.start("classify", lambda http: classify(http, "plain"))
        load.start("upload", lambda http: upload_slowly(http, "plain"))
        for _ in range(2):
            load.start("follow", load.follow_job)
        lasting = [submit_job(httpx2.Client(base_url=installation.url, timeout=WAIT_S)) for _ in range(3)]
        eventually(lambda: load.answered["follow"] >= 1, "the load runs")
        for _ in range(2):
            installation.replace_worker(bundles)
        for port in installation.ports:
            installation.replace_gateway(port)
        load.end()
        assert min(load.answered.values()) > 2 and load.answered["classify"] > 100, load.answered
        assert load.resumed, "a stream ended with its gateway"
        assert {installation.get(f"/v1/jobs/{job}")["state"] for job in lasting} == {"done"}
        assert installation.get("/v1/status")["dead_letters"] == []
        assert len(installation.get("/v1/status")["workers"]) == 2


def change_weights(bundle: Bundle, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Write a bundle again with other weights, whose checksums are right."""
    weights = {name: change(tensor).contiguous() for name, tensor in load_file(bundle.weights_path).items()}
    seal(bundle.path.parent.parent, bundle.spec, weights, overwrite=True)


def publish_next_to(root: Path) -> Bundle:
    """Write both versions, and return the new one."""
    write_tiny_vit(root, "vit", "1")
    return write_tiny_vit(root, "vit", "2")


def publish_in_place(root: Path) -> Bundle:
    return write_tiny_vit(root, "vit", "2")


def publish_same_version(root: Path) -> Bundle:
    return write_tiny_vit(root, "vit", "1")


PUBLISHED = [publish_next_to, publish_in_place, publish_same_version]


@pytest.mark.parametrize("publish", PUBLISHED)
def test_new_content_replaces_old_without_a_failed_request(
    valkey: PrivateValkey, tmp_path: Path, publish: Callable[[Path], Bundle]
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    write_tiny_vit(before, "vit", "1")
    change_weights(publish(after), torch.negative)
    with (
        run_installation(valkey.url, tmp_path, before) as installation,
        Load(installation.url) as load,
        httpx2.Client(base_url=installation.url, timeout=WAIT_S) as http,
    ):
        old = classify(http, "vit")
        for _ in range(4):
            load.start("classify", lambda http: classify(http, "vit"))
        if publish is publish_next_to:
            load.start("pinned", lambda http: classify_old(http, old))
        for _ in range(2):
            eventually(lambda before=load.answered["classify"]: load.answered["classify"] > before + 50, "the load runs")  # type: ignore[misc]
            installation.replace_worker(after)
        eventually(lambda: classify(http, "vit") != old, "the new content answers")
        load.end()
        version, scores = classify(http, "vit")
        assert version == ("1" if publish is publish_same_version else "2") and scores != pytest.approx(old[1])
    assert load.answered["classify"] > 200, load.answered


def classify_old(http: httpx2.Client, old: tuple[str, list[float]]) -> None:
    version, scores = classify(http, f"vit@{old[0]}")
    assert version == old[0] and scores == pytest.approx(old[1], abs=1e-4)


def truncate(bundle: Bundle) -> None:
    bundle.weights_path.write_bytes(bundle.weights_path.read_bytes()[:-100])


def fill_with_nan(bundle: Bundle) -> None:
    change_weights(bundle, lambda tensor: torch.full_like(tensor, torch.nan))


def need_too_much_memory(bundle: Bundle) -> None:
    shutil.rmtree(bundle.path)
    write_null(bundle.path.parent.parent, bundle.spec.name, bundle.spec.version, steps=(2,), width=10_000_000)


BROKEN: dict[Callable[[Bundle], None], str] = {
    truncate: "truncated or another file",
    fill_with_nan: "weights that are not numbers",
    need_too_much_memory: "did not fit into memory",
}


@pytest.mark.parametrize("publish", PUBLISHED)
@pytest.mark.parametrize("damage", BROKEN)
def test_content_that_cannot_be_loaded_gets_no_request(
    valkey: PrivateValkey, tmp_path: Path, publish: Callable[[Path], Bundle], damage: Callable[[Bundle], None]
) -> None:
    """Prove that the content before it goes on, and that log, metric, health check, models and status give the reason."""
    before, after = tmp_path / "before", tmp_path / "after"
    write_tiny_vit(before, "vit", "1")
    damaged = publish(after)
    damage(damaged)
    identity = {"model": damaged.spec.name, "version": damaged.spec.version}
    with (
        run_installation(valkey.url, tmp_path, before) as installation,
        Load(installation.url) as load,
        httpx2.Client(base_url=installation.url, timeout=WAIT_S) as http,
    ):
        old = classify(http, "vit")
        for _ in range(4):
            load.start("classify", lambda http: classify_old(http, old))
        load.start("newest", lambda http: assert_old(classify(http, "vit"), old))
        worker = installation.start_worker(after)
        eventually(lambda: BROKEN[damage] in worker.readiness()[1], "it says why it is not ready", START_S)
        eventually(lambda: installation.metric("opsin_model_refused", **identity) == 1, "a metric counts it")
        answered = load.answered["newest"]
        eventually(lambda: load.answered["newest"] > answered + 50, "requests are answered beside it")
        if publish is not publish_same_version:
            listed = {model["version"]: model for model in installation.get("/v1/models")["models"]}
            assert (listed["1"]["state"], listed["2"]["state"]) == ("ready", "unavailable") and BROKEN[damage] in listed["2"]["reason"]
            [refused] = installation.get("/v1/status")["refused"]
            assert (refused["model"], refused["version"]) == ("vit", "2") and BROKEN[damage] in refused["reason"]
        assert "bundle refused" in worker.log()
        worker.stop()
        load.end()
        assert_old(classify(http, "vit"), old)


def assert_old(answer: tuple[str, list[float]], old: tuple[str, list[float]]) -> None:
    assert answer[0] == old[0] and answer[1] == pytest.approx(old[1], abs=1e-4)
