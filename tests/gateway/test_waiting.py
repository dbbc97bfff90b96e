"""Requests that wait: for a worker, for Redis, for room in the queue; and clients that do not wait any longer."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx2
import pytest

from server.queue.connect import connect
from server.queue.messages import Failure, QueuedJob, Reply, ServedBundle, WorkerInfo
from server.queue.worker.connection import WorkerTimings
from server.supervisor.private_valkey import PrivateValkey
from tests.support.fake_worker import Worker, answer, make_spec, picture
from tests.support.gateway_process import gateway_process, problem
from tests.support.queue import WorkerQueue
from tests.support.raw_http import Raw, post
from tests.support.redis import CellRedis
from tests.support.waiting import eventually


def test_a_name_never_seen_waits_for_the_first_worker(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway:
        threads = ThreadPoolExecutor(2)
        named, default = threads.submit(gateway.classify, picture(3), model="reds"), threads.submit(gateway.classify, picture(4))
        eventually(lambda: gateway.count_in_flight() == 2, "both requests wait")
        with Worker(valkey.url, [make_spec()]):
            assert (named.result().status_code, default.result().status_code) == (200, 200)
        threads.shutdown()


def test_without_any_worker_it_is_503_after_the_grace(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, worker_grace=0.3) as gateway:
        response = gateway.classify(picture(3))
        assert "OPSIN_WORKER_GRACE" in problem(response, 503, "no-worker")["detail"]
        assert int(response.headers["Retry-After"]) >= 1


def test_a_known_model_waits_in_the_queue_for_its_next_worker(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, ThreadPoolExecutor(1) as threads:
        with Worker(valkey.url, [make_spec()]):
            assert gateway.classify(picture(1)).status_code == 200
        waiting = threads.submit(gateway.classify, picture(3))
        eventually(lambda: gateway.metric("opsin_queue_depth", model="reds") == 1, "the request is in the queue")
        with Worker(valkey.url, [make_spec()]):
            assert waiting.result().json()["results"][0]["predictions"][0]["label"] == "red 3"


def test_a_known_model_without_a_worker_is_503_after_the_grace(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, worker_grace=0.5) as gateway:
        with Worker(valkey.url, [make_spec()]):
            assert gateway.classify(picture(1)).status_code == 200
        problem(gateway.classify(picture(1)), 503, "no-worker")
        eventually(lambda: gateway.count_in_flight() == 0, "nothing is left behind")


def test_the_error_for_a_replaced_content_says_so(valkey: PrivateValkey) -> None:
    old, new = Worker(valkey.url, [make_spec()]), Worker(valkey.url, [make_spec(default_rung="strong")])
    old.pause()
    with gateway_process(valkey.url, worker_grace=0.5) as gateway, ThreadPoolExecutor(1) as threads, ExitStack() as newer:
        with old:
            waiting = threads.submit(gateway.classify, picture(3))
            eventually(lambda: gateway.metric("opsin_queue_depth", model="reds") == 1, "the request is in the queue")
            newer.enter_context(new)  # before the old one goes, so that the grace does not end before
        assert "reds@1 was replaced" in problem(waiting.result(), 503, "no-worker")["detail"]
        assert gateway.classify(picture(3)).status_code == 200


def test_requests_wait_for_workers_of_their_own_bundle_content(valkey: PrivateValkey) -> None:
    old, new, another = (Worker(valkey.url, [make_spec(**changes)]) for changes in ({}, *[{"default_rung": "strong"}] * 2))
    for worker in (old, new, another):
        worker.pause()

    def waiting(count: int) -> None:
        eventually(lambda: gateway.metric("opsin_queue_depth", model="reds") == count, f"{count} requests are in the queue")

    with gateway_process(valkey.url, worker_grace=0.5) as gateway, ThreadPoolExecutor(2) as threads, ExitStack() as newer:
        with old:
            eventually(lambda: gateway.http.get("/health/ready").status_code == 200, "ready")
            for_old = threads.submit(gateway.classify, picture(3), headers={"X-Request-Timeout": "10"})
            waiting(1)
            newer.enter_context(new)
            newer.enter_context(another)
            eventually(lambda: gateway.http.get("/v1/models/reds").json()["default_rung"] == "strong", "most hold the new content")
            for_new = threads.submit(gateway.classify, picture(3))
            waiting(2)
        assert "reds@1 was replaced" in problem(for_old.result(), 503, "no-worker")["detail"]
        time.sleep(0.2)  # for both at once, if at all
        new.resume()
        assert for_new.result().status_code == 200


def test_a_model_that_workers_refuse_is_503_with_their_reason(valkey: PrivateValkey) -> None:
    spec = make_spec()
    with gateway_process(valkey.url, worker_grace=0.5) as gateway:
        with Worker(valkey.url, [spec]):
            assert gateway.classify(picture(1)).status_code == 200
        reason = "reds/1/model.onnx: its inputs are uint8"
        refused = ServedBundle(
            name=spec.name, version=spec.version, task=spec.task, digest=spec.digest(), state="unavailable", reason=reason
        )
        queue = WorkerQueue(valkey.url, "refuses", WorkerTimings(key_ttl=60))
        queue.announce(WorkerInfo(id=queue.id, host="here", pid=0, state="ready", device="cpu", bundles=[refused]))
        assert reason in problem(gateway.classify(picture(1), model=spec.id), 503, "bundle-unavailable")["detail"]


def test_a_busy_worker_is_waited_for_beyond_the_grace(valkey: PrivateValkey) -> None:
    with (
        gateway_process(valkey.url, worker_grace=0.2) as gateway,
        Worker(valkey.url, [make_spec()]) as worker,
        ThreadPoolExecutor(1) as threads,
    ):
        worker.pause()
        waiting = threads.submit(gateway.classify, picture(5))
        eventually(lambda: gateway.metric("opsin_queue_oldest_age_seconds", model="reds") > 2.5, "the request is older than the grace")
        worker.resume()
        assert waiting.result().status_code == 200


def test_broken_copies_hide_no_bundle_from_new_gateway(valkey: PrivateValkey) -> None:
    spec = make_spec()
    with Worker(valkey.url, [spec]):
        for number in range(8):
            broken = ServedBundle(
                name=spec.name, version=spec.version, task="", digest="", state="unavailable", reason="bundle.json: damaged"
            )
            queue = WorkerQueue(valkey.url, f"broken-{number}", WorkerTimings(key_ttl=60))
            queue.announce(WorkerInfo(id=queue.id, host="here", pid=0, state="ready", device="cpu", bundles=[broken]))
        with gateway_process(valkey.url) as gateway:
            assert gateway.classify(picture(3), model="reds").status_code == 200
            assert gateway.http.get("/v1/models/reds").json()["state"] == "ready"


def test_requests_are_prepared_for_content_of_most_ready_workers(valkey: PrivateValkey) -> None:
    old, new = make_spec(), make_spec(default_rung="strong")
    with (
        Worker(valkey.url, [old]) as first,
        Worker(valkey.url, [new]) as second,
        Worker(valkey.url, [new]) as third,
        gateway_process(valkey.url) as gateway,
    ):
        answered = gateway.classify(picture(3), model="reds").json()
        assert answered["results"][0]["merging"]["rung"] == "strong"
        assert [len(worker.done) for worker in (first, second, third)] in ([0, 1, 0], [0, 0, 1])


def test_the_deadline_is_504_and_the_work_is_not_done(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]) as worker:
        worker.pause()
        eventually(lambda: gateway.http.get("/health/ready").status_code == 200, "ready")
        problem(gateway.classify(picture(5), headers={"X-Request-Timeout": "0.3"}), 504, "deadline")
        worker.resume()
        eventually(lambda: gateway.metric("opsin_queue_depth", model="reds") == 0, "the queue is empty")
        assert worker.done == []


def test_a_client_that_leaves_takes_its_work_along(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]) as worker:
        worker.pause()
        for _ in range(3):
            with pytest.raises(httpx2.ReadTimeout):
                httpx2.post(f"{gateway.url}/v1/classify", content=picture(5), timeout=0.5)
        eventually(lambda: gateway.metric("opsin_requests_total", outcome="cancelled") == 3, "three cancellations are counted")
        assert gateway.count_in_flight() == 0
        eventually(worker.all_cancelled, "the worker is told")
        worker.resume()
        eventually(lambda: gateway.metric("opsin_queue_depth", model="reds") == 0, "the queue is empty")
        assert worker.done == []
        assert gateway.classify(picture(2)).status_code == 200


def test_a_full_queue_is_429_before_the_body_is_read(valkey: PrivateValkey) -> None:
    with (
        gateway_process(valkey.url, queue_max_items=2) as gateway,
        Worker(valkey.url, [make_spec()]) as worker,
        ThreadPoolExecutor(1) as threads,
        Raw(gateway, "127.0.0.2") as other,
    ):
        worker.pause()
        waiting = threads.submit(gateway.classify, picture(1))
        image = picture(2)
        other.send(post("/v1/classify", f"Content-Length: {len(image)}", body=image))
        eventually(lambda: gateway.metric("opsin_queue_depth", model="reds") == 2, "the queue is full")
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 429"
        response = gateway.classify(b"no image at all")
        problem(response, 429, "queue-full")
        assert int(response.headers["Retry-After"]) >= 1
        worker.resume()
        assert (waiting.result().status_code, other.answer().status) == (200, 200)
        eventually(lambda: gateway.classify(picture(1)).status_code == 200, "there is room again")


def test_more_images_than_the_queue_has_room_for_are_429(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, queue_max_items=6) as gateway, Worker(valkey.url, [make_spec()]) as worker:
        problem(gateway.classify_all(*[picture(1)] * 7), 429, "queue-full")
        problem(gateway.classify_all(*[picture(1)] * 5), 429, "client-share")
        assert gateway.classify_all(*[picture(1)] * 4).status_code == 200
        assert len(worker.done) == 4


@pytest.mark.parametrize("kind", ["worker-crashed", "model-error"])
def test_a_failure_of_the_worker_is_500_and_names_the_image(valkey: PrivateValkey, kind: str) -> None:
    def failing(job: QueuedJob) -> Reply:
        bad = job.arrays["pixels"].to_numpy()[0, 0, 0] == 28 * 9
        return Reply(id=job.id, worker="test", failure=Failure(kind=kind, detail="of all things")) if bad else answer(job)

    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()], failing):
        document = problem(gateway.classify_all(picture(1), picture(9)), 500, kind)
        assert (document["field"], document["detail"]) == ("image[1]", "of all things")
        assert gateway.classify(picture(1)).status_code == 200


def test_without_redis_requests_wait_and_then_get_503(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, redis_grace=0.5) as gateway:
        valkey.stop(remove=False)
        response = gateway.classify(picture(1))
        problem(response, 503, "redis-away")
        assert int(response.headers["Retry-After"]) >= 1
        assert gateway.http.get("/health/live").status_code == 200
        assert gateway.http.get("/health/ready").json() == {"ready": False, "detail": "Redis does not answer"}
        assert gateway.metric("opsin_redis_up") == 0
        problem(gateway.http.get("/v1/models"), 503, "redis-away")


def test_redis_that_refuses_the_beat_is_unavailable(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, redis_grace=0.5) as gateway, Worker(valkey.url, [make_spec()]), connect(valkey.url) as operator:
        assert gateway.classify(picture(1)).status_code == 200
        operator.config_set("min-replicas-to-write", 1)
        try:
            eventually(lambda: gateway.http.get("/health/ready").status_code == 503, "it is not ready")
            assert "NOREPLICAS" in gateway.http.get("/health/ready").json()["detail"]
            assert gateway.http.get("/health/live").status_code == 200
            assert "NOREPLICAS" in problem(gateway.classify(picture(1)), 503, "redis-away")["detail"]
        finally:
            operator.config_set("min-replicas-to-write", 0)
        eventually(lambda: gateway.http.get("/health/ready").status_code == 200, "it is ready again")
        assert gateway.classify(picture(1)).status_code == 200


def test_an_unloaded_model_is_404_and_says_how_to_load_it(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]):
        assert gateway.classify(picture(1), model="reds").status_code == 200
        with CellRedis.from_url(valkey.url) as redis:
            redis.hset("repository", "reds", "unloaded")
        eventually(lambda: gateway.http.get("/v1/models/reds").json()["state"] == "unloaded", "the gateway knows")
        assert "/v2/repository/models/reds/load" in problem(gateway.classify(picture(1), model="reds"), 404, "unknown-model")["detail"]
