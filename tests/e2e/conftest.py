from __future__ import annotations

import importlib.metadata
import json
import math
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.bundles.vit import write_null, write_tiny_vit
from tests.support.dashboards import Prometheus
from tests.support.serve_process import Service, serve


@pytest.fixture(scope="package")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny@1`, a ViT of random weights, and `null@1`, which takes 5 ms a batch."""
    root = tmp_path_factory.mktemp("bundles")
    write_tiny_vit(root)
    write_null(root)
    return root


@pytest.fixture(scope="package")
def service(bundles: Path) -> Iterator[Service]:
    """The whole service, ready, for tests that leave it as they found it; `tiny` is the default model.

    In float32 on every machine: some of the pictures differ by less than what bfloat16 rounds away."""
    with serve(bundles, dtype="float32", default_models='{"classify": "tiny"}') as running:
        assert running.url
        yield running


ROOT = Path(__file__).parents[2]
PROJECT = "opsin-test"
SERVICES = ("redis", "gateway", "worker", "prometheus")
START_SECONDS = 180.0


@dataclass(frozen=True)
class Stack:
    """A running compose project."""

    gateway: str
    """URL."""
    prometheus: str
    """URL."""
    environment: dict[str, str]
    project: str = PROJECT
    file: str = "docker-compose.yml"

    def compose(self, *arguments: str) -> str:
        """Run docker compose on this project and return what it printed. Raises AssertionError with its words if it fails."""
        command = [*compose_command(), "--project-name", self.project, "--file", self.file, *arguments]
        ended = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, f"{' '.join(command)} failed:\n{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
        return ended.stdout

    def containers(self, service: str) -> list[str]:
        """Ids of a service's running containers."""
        return self.compose("ps", "--quiet", service).split()

    def inspect(self, container: str) -> Any:
        with engine() as client:
            return client.get(f"/containers/{container}/json").raise_for_status().json()

    def kill(self, container: str) -> None:
        """SIGKILL, from outside: a signal that the first process of a container cannot be sent from within."""
        with engine() as client:
            client.post(f"/containers/{container}/kill", params={"signal": "KILL"}).raise_for_status()

    @property
    def scraper(self) -> Prometheus:
        return Prometheus(self.prometheus)

    def value(self, expression: str) -> float:
        """Return the one number that an expression yields; NaN if it yields no series."""
        series = self.scraper.query(expression)
        assert len(series) <= 1, f"{expression}: {len(series)} series"
        return float(series[0]["value"][1]) if series else math.nan

    def wait_for(self, expression: str, expected: float) -> None:
        """Wait until Prometheus has the value: the next scrapes are seconds away."""
        wait_until(lambda: self.value(expression) == expected, lambda: f"{expression} is {self.value(expression)}, not {expected}", 90)

    def moment_of_next_scrape(self, metric: str) -> float:
        """Unix seconds of the next sample of `metric`, once it is there."""
        expression, now = f"max(timestamp({metric}))", time.time()
        wait_until(lambda: self.value(expression) > now, lambda: f"{metric} was not scraped", 30)
        return self.value(expression)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """All containers but Grafana, of images built now."""
    gateway, prometheus = free_port(), free_port()
    stack = Stack(f"http://127.0.0.1:{gateway}", f"http://127.0.0.1:{prometheus}", compose_environment(gateway, prometheus))
    stack.compose("down", "--volumes", "--remove-orphans")
    try:
        stack.compose("build", "gateway", "worker")
        with health_checks(stack.project):
            stack.compose("up", "--detach", *SERVICES)
        try:
            wait_until(lambda: is_ready(f"{stack.gateway}/health/ready"), lambda: "the service is not ready", START_SECONDS)
            wait_until(lambda: is_ready(f"{stack.prometheus}/-/ready"), lambda: "Prometheus is not ready", START_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{stack.compose('logs', '--tail', '40')}") from error
        yield stack
    finally:
        stack.compose("down", "--volumes", "--remove-orphans")


@contextmanager
def health_checks(project: str) -> Iterator[None]:
    """Run the containers' health checks if the engine does not by itself.

    Podman leaves that to systemd, which a container or a test machine may lack, but runs one on request."""
    ended = threading.Event()

    def run() -> None:
        filters = json.dumps({"label": [f"com.docker.compose.project={project}"]})
        with engine() as client:
            while not ended.wait(1):
                with suppress(httpx2.HTTPError, ValueError):
                    for container in client.get("/containers/json", params={"filters": filters}).json():
                        client.get(f"/v4.0.0/libpod/containers/{container['Id']}/healthcheck")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def compose_environment(port: int, prometheus: int = 0) -> dict[str, str]:
    """Return the variables of a compose file. The images get the torch that these tests run with."""
    settings = {
        "OPSIN_PORT": str(port),
        "PROMETHEUS_PORT": str(prometheus),
        "PROMETHEUS_TAG": "latest",  # stand-ins of the images have no other tag
        "HAPROXY_TAG": "latest",
        "REDIS_TAG": "8",
        "OPSIN_TORCH": f"torch=={importlib.metadata.version('torch')}",
    }
    return os.environ | settings


def compose_command() -> list[str]:
    """`docker compose`, or `docker-compose`. Raises AssertionError if there is neither: this test does not skip itself."""
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        return ["docker", "compose"]
    assert shutil.which("docker-compose"), "neither `docker compose` nor `docker-compose` is installed"
    return ["docker-compose"]


def engine() -> httpx2.Client:
    """Return the engine's API at DOCKER_HOST."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if host.startswith("unix://"):
        return httpx2.Client(transport=httpx2.HTTPTransport(uds=host.removeprefix("unix://")), base_url="http://engine", timeout=30)
    return httpx2.Client(base_url=host.replace("tcp://", "http://"), timeout=30)


def wait_until(reached: Callable[[], bool], otherwise: Callable[[], str], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, f"after {seconds:.0f} s {otherwise()}"
        time.sleep(0.5)


def is_ready(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
