"""A Redis that answers and refuses: the supervisor waits until it takes writes again, and ends nothing until then."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import NamedTuple

import pytest
import redis

from tests.support.bundles.vit import write_null
from tests.support.images import picture
from tests.support.queue import Server, free_port
from tests.support.redis import CellRedis
from tests.support.serve_process import Service, serve
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("redis") / "valkey", "--save", "", "--appendonly", "no")
    yield running
    running.kill()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[Service]:
    """The last test stops it."""
    bundles = tmp_path_factory.mktemp("bundles")
    write_null(bundles)
    with serve(bundles, "--redis", server.url, copied=True) as running:
        assert running.classify(picture(1)).status_code == 200
        yield running


class WaitingService(NamedTuple):
    service: Service
    port: int


@contextmanager
def refusing_writes(server: Server, cause: str) -> Iterator[None]:
    with closing(CellRedis(port=server.port)) as client:
        if cause == "READONLY":
            # a replica of a missing master: what a master is for a moment after a fail-over
            client.config_set("replica-read-only", "yes")
            client.slaveof("127.0.0.1", str(free_port()))
        else:
            client.config_set("min-replicas-to-write", 1)
        with pytest.raises(redis.RedisError, match="read only" if cause == "READONLY" else cause):
            client.set("probe", 1)
        yield
        client.slaveof() if cause == "READONLY" else client.config_set("min-replicas-to-write", 0)


@pytest.mark.parametrize("cause", ["NOREPLICAS", "READONLY"])
def test_worker_death_while_writes_are_refused_ends_nothing_else(service: Service, server: Server, cause: str) -> None:
    before, gateways, [worker] = crashes(server), service.children("gateway"), service.children("worker")
    with refusing_writes(server, cause):
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: worker not in service.children("worker"), "the supervisor has seen the worker end")
        with closing(CellRedis(port=server.port)) as client:
            eventually(lambda: not client.keys("worker:*"), "the key of the dead has expired")
        assert service.process.poll() is None
    assert service.classify(picture(1)).status_code == 200
    assert service.children("gateway") == gateways
    eventually(lambda: crashes(server) == before + 1, "the death is counted once it can be")


def test_a_stop_is_obeyed_while_writes_are_refused(service: Service, server: Server) -> None:
    with refusing_writes(server, "NOREPLICAS"):
        assert service.stop(signal.SIGHUP) == 0


def crashes(server: Server) -> int:
    with closing(CellRedis(port=server.port)) as client:
        return int(client.hget("restarts", "crashed") or 0)


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, WaitingService]]:
    """Services whose Redis never answers, by its host. They wait at the same time."""
    bundles = tmp_path_factory.mktemp("waiting")
    write_null(bundles)
    with ExitStack() as stack:
        ports = {host: free_port() for host in ("127.0.0.1", "nowhere.invalid")}
        yield {
            host: WaitingService(stack.enter_context(serve(bundles, "--redis", f"redis://user:secret@{host}:{port}/3", copied=True)), port)
            for host, port in ports.items()
        }


@pytest.mark.parametrize("host", ["127.0.0.1", "nowhere.invalid"])
def test_the_wait_for_a_redis_that_never_answered_is_logged(waiting: dict[str, WaitingService], host: str) -> None:
    service, port = waiting[host]
    for process in ("gateway", "worker"):
        [line, *_] = eventually(lambda process=process: waits(service, process), f"the {process} logs its wait")
        address = re.escape(f"redis://***@{host}:{port}/3")
        found = re.match(rf"still waiting for Redis at {address}: (\d+) tries in (\d\d) s; the last one: the queue's Redis ", line)
        assert found is not None
        assert int(found[1]) <= 5 * int(found[2])
    assert not [line for line in service.lines if "secret" in line]
    service.stop()
    [warning] = [record for record in records(service) if record["event"].startswith("jobs not returned")]
    assert warning["level"] == "warning"


def waits(service: Service, process: str) -> list[str]:
    return [record["event"] for record in records(service) if record["process"] == process and "still waiting" in record["event"]]


def records(service: Service) -> list[dict[str, str]]:
    return [json.loads(line) for line in list(service.lines) if line.startswith("{")]
