"""Services whose workers start from zero: gateways are ready without workers, and remember what was served before they started."""

from __future__ import annotations

import asyncio
import cProfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.gateway.lifespan import assemble
from server.gateway.routes.models import list_models
from server.queue import keys
from server.queue.gateway.fleet import SPECS_AT_ONCE, Fleet
from server.settings import Settings
from server.supervisor.private_valkey import PrivateValkey
from tests.support.bundles.vit import write_null
from tests.support.fake_worker import Worker, make_spec, picture
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.live_service import worker_process
from tests.support.redis import CellRedis, private_valkey
from tests.support.waiting import START_S, WAIT_S, eventually

REMEMBERED_S = 7 * 86400
"""Time for which gateways that start later know what was served, in seconds."""


def test_a_new_gateway_queues_for_what_was_served_before(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]):
        assert gateway.classify(picture(1)).status_code == 200
    with gateway_process(valkey.url) as gateway, ThreadPoolExecutor(1) as threads:
        assert gateway.metric("opsin_model_loaded", model="reds") == 0 and "opsin_model_loaded{" in gateway.http.get("/metrics").text
        waiting = threads.submit(gateway.classify, picture(3))
        eventually(lambda: gateway.metric("opsin_queue_depth", model="reds") == 1, "the request is in the queue")
        assert gateway.metric("opsin_waiting_for_worker") == 0
        with Worker(valkey.url, [make_spec()]):
            assert waiting.result().json()["results"][0]["predictions"][0]["label"] == "red 3"


def test_what_is_remembered_keeps_no_gateway_from_being_ready(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]):
        assert gateway.classify(picture(1)).status_code == 200
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec("others").model_copy(update={"task": "autoencode"})]):
        eventually(lambda: gateway.http.get("/health/ready").status_code == 200, "ready")


def test_a_request_for_a_first_worker_is_counted(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(gateway.classify, picture(3), model="reds")
        eventually(lambda: gateway.metric("opsin_waiting_for_worker") == 1, "it is counted")
        with Worker(valkey.url, [make_spec()]):
            assert waiting.result().status_code == 200
        eventually(lambda: gateway.metric("opsin_waiting_for_worker") == 0, "it does not wait any longer")


def test_gateways_accept_without_workers_but_not_without_redis() -> None:
    with private_valkey() as valkey, gateway_process(valkey.url) as gateway:
        assert gateway.http.get("/health/ready").status_code == 503
        accepting = gateway.http.get("/health/accepting")
        assert (accepting.status_code, accepting.json()) == (200, {"accepting": True})
        valkey.stop()
        eventually(lambda: gateway.http.get("/health/accepting").status_code == 503, "Redis is gone")
        assert gateway.http.get("/health/accepting").json() == {"accepting": False, "detail": "Redis does not answer"}


def test_requests_are_taken_while_readiness_fails_for_the_delay(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, drain_delay=WAIT_S) as gateway, Worker(valkey.url, [make_spec()]):
        assert gateway.classify(picture(1)).status_code == 200
        gateway.terminate()
        eventually(lambda: gateway.http.get("/health/ready").status_code == 503, "not ready any more")
        assert gateway.http.get("/health/accepting").json() == {"accepting": False, "detail": "draining"}
        assert gateway.classify(picture(2)).status_code == 200
        gateway.terminate()  # a second signal does not wait for the end of the delay
        assert gateway.process.wait(WAIT_S) == 0


def test_a_delay_ends_with_draining(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, drain_delay=0.2) as gateway:
        gateway.terminate()
        assert gateway.process.wait(WAIT_S) == 0


@pytest.mark.parametrize(("count", "nbytes"), [(1005, 10), (5, 5 * 2**20)])
def test_no_more_is_remembered_than_1000_specs_of_16_mib(valkey: PrivateValkey, count: int, nbytes: int) -> None:
    with CellRedis.from_url(valkey.url) as redis:
        for number in range(count):
            redis.set(keys.spec(f"{number:064}"), b"x" * nbytes)
            redis.zadd(keys.KNOWN, {f"{number:064}": number})
        redis.zadd(keys.KNOWN, {"f" * 64: 0})  # its spec has expired
        spec = make_spec()
        with Worker(valkey.url, [spec]):
            eventually(lambda: redis.zscore(keys.KNOWN, spec.digest()) is not None, "the bundle is remembered")
        left = [digest.decode() for digest in redis.zrange(keys.KNOWN, 0, -1)]
        count_left = min(count, 999, 16 * 2**20 // nbytes)
        assert left == [*(f"{number:064}" for number in range(count - count_left, count)), spec.digest()]
        assert not any(redis.exists(keys.spec(f"{number:064}")) for number in range(count - count_left))
        assert REMEMBERED_S - 60 <= redis.ttl(keys.spec(spec.digest())) <= REMEMBERED_S


def test_foreign_digests_are_forgotten_without_an_error(valkey: PrivateValkey) -> None:
    with CellRedis.from_url(valkey.url) as redis:
        redis.rpush(keys.spec("f" * 64), "a spec of another type")
        redis.zadd(keys.KNOWN, {b"\xff": 1, "f" * 64: 2})
        with gateway_process(valkey.url) as gateway:
            assert gateway.http.get("/v1/models").json()["models"] == []
            spec = make_spec()
            with Worker(valkey.url, [spec]):
                assert gateway.classify(picture(1)).status_code == 200
        assert redis.zrange(keys.KNOWN, 0, -1) == [spec.digest().encode()]


def test_an_emptied_redis_remembers_again_at_once(valkey: PrivateValkey) -> None:
    spec = make_spec()
    with CellRedis.from_url(valkey.url) as redis:
        with Worker(valkey.url, [spec]) as worker:
            eventually(lambda: redis.zscore(keys.KNOWN, spec.digest()) is not None, "the bundle is remembered")
            redis.flushall()
            eventually(lambda: redis.exists(keys.worker(worker.queue.id)), "the worker is known again")
        assert redis.zscore(keys.KNOWN, spec.digest()) is not None, "what it served is known again, although it has left"


def test_what_is_remembered_is_read_in_portions(valkey: PrivateValkey) -> None:
    specs = [make_spec(f"reds{number}") for number in range(100)]
    with CellRedis.from_url(valkey.url) as redis:
        for spec in specs:
            redis.set(keys.spec(spec.digest()), spec.to_bytes())
            redis.zadd(keys.KNOWN, {spec.digest(): 1})
        with gateway_process(valkey.url) as gateway:
            assert len(gateway.http.get("/v1/models").json()["models"]) == len(specs)
        assert redis.info("commandstats")["cmdstat_mget"]["calls"] >= len(specs) / SPECS_AT_ONCE


def count_calls(bundles: int) -> int:
    """Return how many functions a list of so many remembered versions of a bundle calls."""

    async def profile() -> int:
        gateway, _ = assemble(Settings(redis_url="redis://localhost"))
        specs = {("reds", str(version)): make_spec("reds", str(version)) for version in range(bundles)}
        profiler = cProfile.Profile()
        answer = profiler.runcall(list_models, gateway, Fleet((), specs, {}, frozenset(specs)))
        assert len(answer.models) == bundles
        return sum(entry.callcount for entry in profiler.getstats())

    return asyncio.run(profile())


def test_listing_many_versions_does_not_grow_with_their_square() -> None:
    assert count_calls(200) < 3 * count_calls(100)


class Scaler:
    """A stand-in for an autoscaler: it starts a worker once the metrics say that work waits."""

    def __init__(self, gateway: Gateway, url: str, bundles: Path) -> None:
        self._gateway, self._url, self._bundles = gateway, url, bundles
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with ExitStack() as stack:
            while not self._end.wait(0.05):
                waiting = self._gateway.metric("opsin_waiting_for_worker") + self._gateway.metric("opsin_queue_depth")
                if waiting and not self._gateway.metric("opsin_workers"):
                    stack.enter_context(worker_process(self._url, self._bundles))
                    eventually(lambda: self._gateway.metric("opsin_workers") > 0, "the worker has come", START_S)

    def __enter__(self) -> Scaler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


@pytest.mark.parametrize("served_before", [False, True])
def test_a_request_brings_a_worker_by_the_metrics(valkey: PrivateValkey, tmp_path: Path, served_before: bool) -> None:
    bundle = write_null(tmp_path)
    if served_before:
        with gateway_process(valkey.url) as gateway, worker_process(valkey.url, tmp_path):
            gateway.wait_for_workers()
            assert gateway.classify(picture(1), model=bundle.spec.name).status_code == 200
        with CellRedis.from_url(valkey.url) as redis:
            eventually(lambda: not list(redis.scan_iter("worker:*")), "the worker is forgotten")
    with gateway_process(valkey.url, worker_grace=START_S) as gateway, Scaler(gateway, valkey.url, tmp_path):
        assert gateway.classify(picture(1), model=bundle.spec.name).status_code == 200
