"""A Redis that answers and refuses: the supervisor waits until it takes writes again, and ends nothing meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import redis

from tests.bundles import write_null
from tests.keyspace import PartitionRedis
from tests.pictures import picture
from tests.queue.harness import Server, free_port
from tests.service import eventually, serve


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "valkey", "--save", "", "--appendonly", "no")
    yield running
    running.kill()


@contextmanager
def refusing_writes(server: Server, how: str) -> Iterator[None]:
    with closing(PartitionRedis(port=server.port)) as client:
        if how == "READONLY":
            # a replica of nobody: what a master is for a moment after a fail-over
            client.config_set("replica-read-only", "yes")
            client.slaveof("127.0.0.1", str(free_port()))
        else:
            client.config_set("min-replicas-to-write", 1)
        with pytest.raises(redis.RedisError, match="read only" if how == "READONLY" else how):
            client.set("probe", 1)
        yield
        client.slaveof() if how == "READONLY" else client.config_set("min-replicas-to-write", 0)


@pytest.mark.parametrize("how", ["NOREPLICAS", "READONLY"])
def test_a_worker_dies_while_writes_are_refused_and_nothing_else_ends(tmp_path: Path, server: Server, how: str) -> None:
    write_null(tmp_path / "bundles")
    with serve(tmp_path / "bundles", "--redis", server.url) as service:
        assert service.classify(picture(1)).status_code == 200
        gateways, [worker] = service.children("gateway"), service.children("worker")
        with refusing_writes(server, how):
            os.kill(worker, signal.SIGKILL)
            eventually(lambda: worker not in service.children("worker"), "the supervisor has seen the worker end")
            time.sleep(5)  # longer than the keys of the living last: they are all gone now
            assert service.process.poll() is None
        assert service.classify(picture(1)).status_code == 200
        assert service.children("gateway") == gateways
        eventually(lambda: restarts(server).get(b"crashed") == b"1", "the death is counted once it can be")


def test_a_stop_is_obeyed_while_writes_are_refused(tmp_path: Path, server: Server) -> None:
    write_null(tmp_path / "bundles")
    with serve(tmp_path / "bundles", "--redis", server.url) as service:
        assert service.url
        with refusing_writes(server, "NOREPLICAS"):
            assert service.stop() == 0


def restarts(server: Server) -> dict[bytes, bytes]:
    with closing(PartitionRedis(port=server.port)) as client:
        return client.hgetall("restarts")
