"""Large messages on a slow link between gateway and Redis, during which all other clients are served."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.support.fake_servers import slow_link
from tests.support.fake_worker import Worker, make_spec, picture
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.job_api import accepted_id, ask_later, comes_to, result
from tests.support.queue import Server
from tests.support.waiting import eventually

MEGABYTE = 1_000_000
LINK = 12 * MEGABYTE
"""Speed of the link in bytes a second: 100 Mbit/s."""
SIDES = [pytest.param(2944, id="24 MiB"), pytest.param(4096, id="48 MiB", marks=pytest.mark.slow)]
"""Sides of images at model size, in pixels; the link needs 2 s and 4 s for them."""


def small_requests_while(gateway: Gateway, large: Future[httpx2.Response]) -> list[int]:
    """Send small requests until the large one ends; return their statuses. Check that the service stays ready."""
    statuses = []
    while not large.done():
        statuses.append(gateway.classify(picture(3), model="reds").status_code)
        assert gateway.http.get("/health/ready").status_code == 200
    return statuses


@pytest.mark.parametrize("side", SIDES)
def test_a_large_message_takes_its_time_and_delays_no_others(tmp_path: Path, side: int) -> None:
    large_spec = make_spec("large", image_size=side)
    server = Server(tmp_path, "--save", "", "--appendonly", "no")
    try:
        with (
            slow_link(server.port, LINK) as port,
            Worker(server.url, [make_spec(), large_spec]) as worker,
            gateway_process(f"redis://127.0.0.1:{port}/0", redis_grace=0.5, default_models={"classify": "reds"}) as gateway,
            ThreadPoolExecutor(1) as threads,
        ):
            large = threads.submit(gateway.classify, picture(6), model="large")
            statuses = small_requests_while(gateway, large)
            assert large.result().json()["results"][0]["predictions"][0]["label"] == "red 6"
            assert len(statuses) > 2
            assert set(statuses) == {200}
            with worker.redis() as db:
                assert list(db.scan_iter("stage:*")) == list(db.scan_iter("blob:*")) == []
                assert int(db.get("queue:bytes") or 0) == 0
    finally:
        server.kill()


@pytest.mark.parametrize("count", [1, 3])
def test_large_messages_of_asynchronous_jobs_are_staged(tmp_path: Path, count: int) -> None:
    spec = make_spec("large", image_size=400)
    server = Server(tmp_path, "--save", "", "--appendonly", "no")
    try:
        with Worker(server.url, [spec]) as worker, gateway_process(server.url) as gateway, worker.redis() as db:
            worker.pause()
            job_id = accepted_id(ask_later(gateway, *(picture(step) for step in range(count)), Idempotency_Key="a"))
            assert accepted_id(ask_later(gateway, *(picture(step) for step in range(count)), Idempotency_Key="a")) == job_id
            assert list(db.scan_iter("stage:*")) == []
            assert {db.strlen(key) > 400 * 400 * 3 for key in db.scan_iter("blob:*")} == {True}
            worker.resume()
            comes_to(gateway, job_id, "done")
            labels = [one["predictions"][0]["index"] for one in result(gateway, job_id).json()["results"]]
            assert labels == list(range(count))
            assert list(db.scan_iter("blob:*")) == []
    finally:
        server.kill()


def test_what_was_staged_and_refused_is_dropped(tmp_path: Path) -> None:
    server = Server(tmp_path, "--save", "", "--appendonly", "no")
    try:
        with (
            Worker(server.url, [make_spec("large", image_size=400)]) as worker,
            gateway_process(server.url, queue_max_items=2) as gateway,
            worker.redis() as db,
        ):
            worker.pause()
            accepted_id(ask_later(gateway))
            assert ask_later(gateway).status_code == 429
            assert list(db.scan_iter("stage:*")) == []
    finally:
        server.kill()


def test_a_client_that_leaves_meanwhile_takes_its_message_along(tmp_path: Path) -> None:
    server = Server(tmp_path, "--save", "", "--appendonly", "no")
    try:
        with (
            slow_link(server.port, MEGABYTE) as port,
            Worker(server.url, [make_spec("large", image_size=2000)]) as worker,
            gateway_process(f"redis://127.0.0.1:{port}/0") as gateway,
            worker.redis() as db,
            ThreadPoolExecutor(1) as threads,
        ):
            large = threads.submit(gateway.http.post, "/v1/classify", content=picture(6), timeout=2.0)
            eventually(lambda: list(db.scan_iter("stage:*")), "its message is on the way")
            with pytest.raises(httpx2.ReadTimeout):
                large.result()
            eventually(lambda: not list(db.scan_iter("stage:*")), "its message is gone", seconds=8.0)
            assert list(db.scan_iter("job:*")) == []
            assert worker.done == []
    finally:
        server.kill()
