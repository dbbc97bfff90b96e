"""`opsin serve` from outside: what it starts, mends and ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.supervisor.private_valkey import PrivateValkey
from tests.support.bundles.vit import write_null, write_tiny_vit
from tests.support.images import picture
from tests.support.processes import opsin
from tests.support.redis import private_valkey
from tests.support.serve_process import Service, frozen, serve
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    write_tiny_vit(root)
    return root


@pytest.fixture(scope="module")
def service(bundles: Path) -> Iterator[Service]:
    """The last test ends it."""
    with serve(bundles, "--gateways", "2", "--workers", "1", drain_timeout=600) as running:
        assert running.url
        yield running


@pytest.fixture(scope="module")
def queue() -> Iterator[PrivateValkey]:
    with private_valkey() as server:
        yield server


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory, queue: PrivateValkey) -> Iterator[Service]:
    """A service with options for its queue and the address of its metrics, with a broken bundle and a default that is not there.

    The last test ends it."""
    root = tmp_path_factory.mktemp("configured")
    write_tiny_vit(root)
    write_null(root, name="torn").weights_path.unlink()
    default = '{"classify": "tinny"}'
    with serve(root, "--redis", queue.url, copied=True, metrics_host="127.0.0.7", default_models=default) as running:
        assert running.url
        yield running


def test_it_says_in_one_line_that_it_is_ready(service: Service) -> None:
    [line] = [line for line in service.lines if not line.startswith("{")]
    assert line == f"Opsin is ready on {service.url} with 2 gateway(s), 1 worker(s) on cpu, bundles tiny@1\n"


def test_ps_shows_who_is_who_each_in_a_process_group_of_its_own(service: Service) -> None:
    children = service.children("gateway") + service.children("worker") + service.children("valkey-server")
    assert len(children) == 4
    assert [os.getpgid(pid) for pid in children] == children


def test_it_imports_no_torch() -> None:
    code = "import sys, server.supervisor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_listens_beyond_the_host_that_was_named(service: Service) -> None:
    family = {child.pid for child in psutil.Process(service.process.pid).children(recursive=True)}
    assert {address.ip for address in listening(family)} == {"127.0.0.1"}


def test_workers_serve_their_metrics_at_the_given_address(configured: Service) -> None:
    [address] = listening(set(configured.children("worker")))
    assert address.ip == "127.0.0.7"
    assert "opsin_batch_budget" in httpx2.get(f"http://{address.ip}:{address.port}/metrics", timeout=60).text


def listening(pids: set[int]) -> list[Any]:
    """Addresses at which processes take connections."""
    return [socket.laddr for socket in psutil.net_connections("inet") if socket.pid in pids and socket.status == "LISTEN"]


def test_restarted_workers_are_counted_by_reason(service: Service) -> None:
    before, workers = restarts(service), service.children("worker")
    os.kill(workers[0], signal.SIGKILL)
    eventually(lambda: restarts(service)["crashed"] == before["crashed"] + 1, "the restart is counted")
    eventually(lambda: len(service.children("worker")) == 1 and service.children("worker") != workers, "a new worker")
    assert restarts(service) == before | {"crashed": before["crashed"] + 1}


@pytest.mark.slow
def test_the_status_says_how_often_a_worker_was_restarted(service: Service) -> None:
    [before] = eventually(lambda: ready_workers(service).values(), "a worker is ready")
    os.kill(service.children("worker")[0], signal.SIGKILL)
    eventually(lambda: list(ready_workers(service).values()) == [before + 1], "it was restarted once more")


def ready_workers(service: Service) -> dict[str, int]:
    """Id → restarts."""
    workers = service.get("/v1/status").json()["workers"]
    return {worker["id"]: worker["restarts"] for worker in workers if worker["state"] == "ready"}


def restarts(service: Service) -> dict[str, float]:
    families = text_string_to_metric_families(service.get("/metrics").text)
    [family] = [family for family in families if family.name == "opsin_worker_restarts"]
    return {sample.labels["reason"]: sample.value for sample in family.samples}


@pytest.mark.parametrize("kind", ["worker", "gateway", "valkey-server"])
def test_what_dies_is_restarted_and_the_service_goes_on(service: Service, kind: str) -> None:
    before = service.children(kind)
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: len(service.children(kind)) == len(before) and service.children(kind) != before, f"a new {kind}")
    assert service.classify(picture(1)).status_code == 200


@pytest.mark.parametrize("kind", ["worker", "gateway"])
def test_what_an_operator_stops_has_not_died(service: Service, kind: str) -> None:
    before, counted = service.children(kind), restarts(service)
    before_stop = eventually(lambda: ready_workers(service), "a worker is ready")
    os.kill(before[0], signal.SIGTERM)
    stopped = eventually(lambda: [event for event in service.events(f"{kind} stopped") if event["pid"] == before[0]], "it is logged")
    assert (stopped[0]["level"], stopped[0]["status"]) == ("info", "exit code 0")
    eventually(lambda: len(service.children(kind)) == len(before) and before[0] not in service.children(kind), f"a new {kind}")
    assert not [event for event in service.events(f"{kind} died") if event["pid"] == before[0]]
    eventually(lambda: service.get("/health/ready").status_code == 200, "the new one serves")  # by then the last was buried
    assert restarts(service) == counted
    if kind == "worker":
        now = eventually(
            lambda: {id_: count for id_, count in ready_workers(service).items() if id_ not in before_stop}, "the new one is listed"
        )
        assert list(now.values()) == list(before_stop.values())


def test_a_taken_port_is_misuse(service: Service, bundles: Path) -> None:
    port = httpx2.URL(service.url).port
    ended = opsin("serve", "--port", str(port), "--bundles", bundles)
    assert ended.returncode == 2
    assert ended.stderr == f"opsin: cannot listen on 127.0.0.1:{port}: Address already in use; --host and --port choose others\n"


def test_stop_finishes_begun_work_and_leaves_nothing(tmp_path: Path) -> None:
    write_null(tmp_path, milliseconds=1500)
    with serve(tmp_path, copied=True) as service, ThreadPoolExecutor() as pool:
        url, family = service.url, psutil.Process(service.process.pid).children(recursive=True)
        valkey_folder = Path(psutil.Process(service.children("valkey-server")[0]).cwd())
        asking = pool.submit(service.classify, picture(1))
        eventually(lambda: count_in_flight(url) == 1, "the request is in flight")
        assert service.stop() == 0
        assert asking.result().status_code == 200
        assert not any(child.is_running() for child in family)
        assert not valkey_folder.exists()


def test_refused_and_missing_bundles_are_named_when_ready(configured: Service) -> None:
    names = "bundles tiny@1; refused: torn@1; not found: tinny, the default for classify\n"
    assert [line for line in configured.lines if line.endswith(names)]


def test_an_empty_folder_is_served_with_a_warning_what_to_do(tmp_path: Path, queue: PrivateValkey) -> None:
    with serve(tmp_path, "--redis", queue.url, copied=True, key_prefix="none:") as running:
        assert running.get("/health/ready").status_code == 200
        assert [line for line in running.lines if line.endswith(f"bundles none in {tmp_path}, where they are in folders NAME/VERSION\n")]
        [warning] = [json.loads(line) for line in running.lines if "no bundle to serve" in line]
        assert (warning["level"], warning["process"]) == ("warning", "worker")
        assert f"`opsin import CHECKPOINT -o {tmp_path}/NAME`" in warning["event"] and f"--bundles {ROOT / 'bundles'}" in warning["event"]


def test_a_service_without_bundles_refuses_at_once(tmp_path: Path, queue: PrivateValkey) -> None:
    with serve(tmp_path, "--redis", queue.url, copied=True, key_prefix="bare:", worker_grace=3600) as running:
        answer = running.classify(picture(1))  # waits for 60 s, and would wait longer for a worker
        assert (answer.status_code, answer.json()["detail"]) == (404, "no bundle for classify is served; tasks with one: none")


def test_named_queue_is_used_and_left_running(configured: Service, queue: PrivateValkey) -> None:
    assert configured.classify(picture(1), model="tiny").status_code == 200
    assert configured.children("valkey-server") == []
    assert configured.stop(signal.SIGINT) == 0
    assert queue.process.poll() is None


def test_second_signal_hurries_despite_frozen_queue(service: Service) -> None:
    """Workers would wait for it as long as they may drain, which is longer than this test waits."""
    family = psutil.Process(service.process.pid).children(recursive=True)
    with frozen(service.children("valkey-server")[0]):
        service.process.terminate()
        eventually(lambda: service.events("gateway draining"), "the first signal has arrived")
        assert service.stop() == 0
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []


def count_in_flight(url: str) -> float:
    lines = httpx2.get(f"{url}/metrics", timeout=60).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("opsin_in_flight"))
