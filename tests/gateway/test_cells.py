"""Cells: each has a Redis of its own, and its number is in what clients see."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.queue.connect import unsuitable
from server.queue.keys import CELL, Keyspace
from server.supervisor.private_valkey import PrivateValkey
from tests.support import forked_program
from tests.support.fake_worker import Worker, make_spec, picture
from tests.support.gateway_process import Gateway, environment, gateway_process, problem
from tests.support.job_api import accepted_id, ask_later, comes_to, result
from tests.support.queue import durable_server
from tests.support.redis import CellRedis, private_valkey
from tests.support.waiting import WAIT_S, eventually

OF_CELL_171 = f"ab234567-{'a' * 32}"
SCENE_OF_CELL_171 = f"ab{'a' * 32}"


@pytest.fixture
def empty_valkey() -> Iterator[PrivateValkey]:
    """A Valkey that belongs to no cell yet."""
    with private_valkey() as server:
        yield server


def test_ids_models_and_status_have_the_number_of_the_cell(empty_valkey: PrivateValkey) -> None:
    url = empty_valkey.url
    with gateway_process(url, cell=171) as gateway, Worker(url, [make_spec()], cell=171):
        assert gateway.classify(picture(3)).status_code == 200
        job_id = accepted_id(ask_later(gateway))
        assert job_id.startswith("ab")
        comes_to(gateway, job_id, "done")
        assert result(gateway, job_id).status_code == 200
        assert [gateway.http.get(f"/v1/{route}").json()["cell"] for route in ("models", "status")] == [171, 171]


@pytest.mark.parametrize("path", [f"jobs/{OF_CELL_171}{rest}" for rest in ("", "/result", "/events")] + [f"scenes/{SCENE_OF_CELL_171}"])
def test_ids_of_another_cell_are_answered_with_its_number(gateway: Gateway, path: str) -> None:
    refused = problem(gateway.http.get(f"/v1/{path}"), 421, "wrong-cell")
    assert refused["detail"] == f"{path.split('/')[1]!r} belongs to cell 171, and this is cell 0"


def test_jobs_of_another_cell_are_not_cancelled(gateway: Gateway) -> None:
    problem(gateway.http.delete(f"/v1/jobs/{OF_CELL_171}"), 421, "wrong-cell")


@pytest.mark.parametrize("command", ["gateway", "worker", "serve"])
def test_a_process_of_another_cell_does_not_start(empty_valkey: PrivateValkey, command: str) -> None:
    assert unsuitable(empty_valkey.url, Keyspace(cell=0)) == ""
    ended = forked_program.run("opsin", command, environment=environment(redis_url=empty_valkey.url, cell=1, port=0), seconds=WAIT_S)
    assert (ended.returncode, ended.stderr) == (2, "opsin: setting redis_url: this Redis is that of cell 0, and OPSIN_CELL is 1\n")


def test_a_process_of_another_cell_ends_when_its_redis_answers(tmp_path: Path) -> None:
    with durable_server(tmp_path) as server:
        assert unsuitable(server.url, Keyspace(cell=0)) == ""
        server.kill()
        with gateway_process(server.url, cell=1) as gateway:
            assert gateway.http.get("/health/accepting").status_code == 503
            server.start()
            assert gateway.process.wait(WAIT_S) == 2


def test_a_cell_keeps_a_redis_that_has_lost_its_data(empty_valkey: PrivateValkey) -> None:
    with gateway_process(empty_valkey.url, cell=3), CellRedis.from_url(empty_valkey.url) as redis:
        eventually(lambda: redis.get(CELL) == b"3", "it has the number of the cell")
        redis.flushall()
        eventually(lambda: redis.get(CELL) == b"3", "it has it again")


def test_a_number_beyond_255_is_refused() -> None:
    variables = environment(redis_url="redis://127.0.0.1:1/0") | {"OPSIN_CELL": "256"}
    ended = forked_program.run("opsin", "gateway", environment=variables, seconds=WAIT_S)
    assert ended.returncode == 2
    assert ended.stderr == "opsin: setting cell: Input should be less than or equal to 255, not '256'\n"


def totals(gateway: Gateway) -> dict[str, int]:
    found: dict[str, int] = gateway.http.get("/v1/status").raise_for_status().json()["totals"]
    return found


def test_totals_count_requests_that_wait_for_a_first_worker(empty_valkey: PrivateValkey) -> None:
    url = empty_valkey.url
    with gateway_process(url) as one, gateway_process(url) as other, ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(gateway.classify, picture(3), model="reds") for gateway in (one, other, other)]
        for gateway in (one, other):
            eventually(lambda gateway=gateway: totals(gateway) == {"waiting": 3, "running": 0, "unfinished": 3}, "three requests wait")
        with Worker(url, [make_spec()]) as worker, worker.holding() as hold:
            hold.wait_for_batch()
            eventually(lambda: totals(one)["unfinished"] == 3 and totals(one)["running"] >= 1, "they are in the queue")
            hold.release()
            assert [answer.result().status_code for answer in waiting] == [200, 200, 200]
            eventually(lambda: totals(one) == {"waiting": 0, "running": 0, "unfinished": 0}, "none is left")
