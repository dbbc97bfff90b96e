"""Priority, deadline and overload through the protocol, with a worker that the test holds in its hands."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest

from server.queue.messages import Failure, Reply
from tests.support.fake_worker import Worker, make_spec, picture
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.redis import private_valkey
from tests.support.waiting import eventually

BODY = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(picture(3)).decode()]}]}


@contextmanager
def start_gateway(**settings: object) -> Iterator[tuple[Gateway, Worker]]:
    with private_valkey() as valkey, Worker(valkey.url, [make_spec()]) as worker, gateway_process(valkey.url, **settings) as gateway:
        yield gateway, worker


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Gateway, Worker]]:
    with start_gateway(request_timeout=50) as pair:
        yield pair


@pytest.fixture
def gateway(shared: tuple[Gateway, Worker]) -> Gateway:
    return shared[0]


@pytest.fixture
def worker(shared: tuple[Gateway, Worker]) -> Iterator[Worker]:
    worker = shared[1]
    worker.done.clear()
    yield worker
    worker.resume()


def infer(gateway: Gateway, **parameters: int) -> httpx2.Response:
    return gateway.http.post("/v2/models/reds/infer", content=json.dumps({**BODY, "parameters": parameters}))


def test_priority_one_is_highest_and_zero_is_normal(gateway, worker):
    for level in (0, 1, 2, 3):
        assert infer(gateway, priority=level).status_code == 200
    assert [job.priority for job in worker.done] == ["normal", "high", "normal", "low"]


def test_the_deadline_of_the_job_is_the_timeout_in_microseconds(gateway, worker):
    for microseconds in (0, 20_000_000):
        assert infer(gateway, timeout=microseconds).status_code == 200
    default, shorter = (job.deadline_ms for job in worker.done)
    assert default - shorter == pytest.approx(30_000, abs=20_000)


def test_an_unanswered_request_ends_at_its_timeout(gateway, worker):
    worker.pause()
    late = infer(gateway, timeout=300_000)
    assert (late.status_code, late.json().keys()) == (504, {"error"})


def test_a_failure_of_the_model_is_ours(gateway, worker, monkeypatch):
    failure = Failure(kind="model-error", detail="the model fell over")
    monkeypatch.setattr(worker, "_answer", lambda job: Reply(id=job.id, worker="test", failure=failure))
    failed = infer(gateway)
    assert (failed.status_code, failed.headers["content-type"]) == (500, "application/json")
    assert failed.json() == {"error": "image: the model fell over"}


def test_a_full_queue_says_when_to_come_back():
    with start_gateway(queue_max_items=1) as (gateway, worker):
        worker.pause()
        first = threading.Thread(target=infer, args=(gateway,))
        first.start()
        eventually(lambda: gateway.metric("opsin_queue_depth") == 1, "one job in the queue")
        refused = infer(gateway)
        worker.resume()
        first.join()
        assert (refused.status_code, refused.headers["content-type"]) == (429, "application/json")
        assert "queue is full" in refused.json()["error"]
        assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", ["/v2/health/ready", "/v2/models", "/v2/models/reds/ready"])
def test_without_workers_nothing_is_ready(path):
    with private_valkey() as valkey, gateway_process(valkey.url, worker_grace=0) as gateway:
        response = gateway.http.get(path)
        if path == "/v2/models":
            assert response.json() == {"models": []}
        else:
            assert response.status_code == (503 if path == "/v2/health/ready" else 404)
            assert "error" in response.json()
        assert infer(gateway).status_code == 503
        assert infer(gateway).json().keys() == {"error"}


def test_while_redis_is_away_every_answer_keeps_its_shape():
    with private_valkey() as valkey, gateway_process(valkey.url, redis_grace=0, model_control="explicit") as gateway:
        valkey.stop()
        for response in (
            infer(gateway),
            gateway.http.get("/v2/models/reds"),
            gateway.http.get("/v2/models/stats"),
            gateway.http.post("/v2/repository/index"),
            gateway.http.post("/v2/repository/models/reds/load"),
        ):
            assert (response.status_code, response.headers["content-type"]) == (503, "application/json")
            assert response.json().keys() == {"error"}
            assert int(response.headers["retry-after"]) >= 1
        assert gateway.http.get("/v2/health/live").json() == {"live": True}
        assert gateway.http.get("/v2/health/ready").status_code == 503
