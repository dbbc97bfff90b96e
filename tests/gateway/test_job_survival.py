"""Asynchronous jobs outlive gateways, and a Redis that keeps its data."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from server.supervisor.private_valkey import PrivateValkey
from tests.support.fake_worker import MANY_LABELS, Worker, answer_at_length, make_spec, picture
from tests.support.gateway_process import gateway_process, problem
from tests.support.job_api import accepted_id, ask_later, comes_to, events_of, job, parse, result
from tests.support.queue import Server, durable_server
from tests.support.waiting import eventually


def test_a_job_survives_the_death_of_its_gateway(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as other, Worker(valkey.url, [make_spec()]) as worker, worker.holding() as hold:
        with gateway_process(valkey.url) as dying:
            running = accepted_id(ask_later(dying, picture(6)))
            hold.wait_for_batch()
            waiting = accepted_id(ask_later(dying, picture(7)))
            dying.process.kill()
            dying.process.wait()
        with worker.redis() as db:
            eventually(lambda: len(list(db.scan_iter("gw:*"))) == 1, "the dead gateway is known to be dead")
        hold.release()
        for job_id, step in ((running, 6), (waiting, 7)):
            comes_to(other, job_id, "done")
            assert result(other, job_id).json()["results"][0]["predictions"][0]["label"] == f"red {step}"
            assert [event.name for event in events_of(other, job_id)] == ["queued", "started", "progress", "done"]


def test_a_job_survives_a_redis_that_keeps_its_data(tmp_path: Path) -> None:
    with durable_server(tmp_path) as server, gateway_process(server.url) as gateway, Worker(server.url, [make_spec()]) as worker:
        done = accepted_id(ask_later(gateway, picture(1)))
        comes_to(gateway, done, "done")
        worker.pause()
        waiting = accepted_id(ask_later(gateway, picture(2), Idempotency_Key="a"))
        with gateway.http.stream("GET", f"/v1/jobs/{waiting}/events") as response:
            events = parse(response.iter_lines())
            next(events)
            server.kill()
            server.start()
            worker.resume()
            assert [event.name for event in events] == ["started", "progress", "done"]
        assert result(gateway, done).status_code == result(gateway, waiting).status_code == 200
        assert accepted_id(ask_later(gateway, picture(2), Idempotency_Key="a")) == waiting


def test_a_job_of_the_last_writes_that_redis_loses_is_lost(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    with durable_server(tmp_path / "redis") as server, gateway_process(server.url) as gateway, Worker(server.url, [make_spec()]) as worker:
        done_id = accepted_id(ask_later(gateway))
        comes_to(gateway, done_id, "done")
        worker.pause()
        shutil.copytree(server.folder, saved)
        lost_id = accepted_id(ask_later(gateway))
        with gateway.http.stream("GET", f"/v1/jobs/{lost_id}/events") as response:
            events = parse(response.iter_lines())
            next(events)
            server.kill()
            shutil.rmtree(server.folder)
            shutil.copytree(saved, server.folder)
            server.start()
            assert [(event.name, event.data["type"]) for event in events] == [("failed", "urn:opsin:job-lost")]
        problem(gateway.http.get(f"/v1/jobs/{lost_id}"), 410, "job-lost")
        assert result(gateway, done_id).status_code == 200
        worker.resume()
        comes_to(gateway, accepted_id(ask_later(gateway)), "done")


def test_a_job_is_lost_with_a_redis_that_keeps_nothing(tmp_path: Path) -> None:
    """Readers of its events get `job-lost`, and so do later requests."""
    server = Server(tmp_path, "--save", "", "--appendonly", "no")
    try:
        with gateway_process(server.url) as gateway, Worker(server.url, [make_spec()]) as worker:
            worker.pause()
            job_id = accepted_id(ask_later(gateway))
            with gateway.http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
                events = parse(response.iter_lines())
                next(events)
                server.kill()
                server.start()
                assert [(event.id, event.name, event.data["type"]) for event in events] == [(2, "failed", "urn:opsin:job-lost")]
            problem(gateway.http.get(f"/v1/jobs/{job_id}"), 410, "job-lost")
            problem(result(gateway, job_id), 410, "job-lost")
            worker.resume()
            again = accepted_id(ask_later(gateway))
            assert again[:8] != job_id[:8]
            comes_to(gateway, again, "done")
    finally:
        server.kill()


@pytest.mark.parametrize("seconds", [2.0, 4.0])
def test_jobs_submitted_while_redis_stalls_are_accepted(tmp_path: Path, seconds: float) -> None:
    """A client that got 503 would send the request again, and have it computed twice."""
    with durable_server(tmp_path) as server, gateway_process(server.url) as gateway, Worker(server.url, [make_spec()]) as worker:
        comes_to(gateway, accepted_id(ask_later(gateway)), "done")
        with ThreadPoolExecutor(8) as clients:
            submitted = []
            for key in "01234566":  # the last one is a repeated request
                submitted.append(clients.submit(ask_later, gateway, picture(int(key)), Idempotency_Key=key))
                if key == "2":
                    server.process.send_signal(signal.SIGSTOP)
                    threading.Timer(seconds, server.process.send_signal, [signal.SIGCONT]).start()
                time.sleep(0.02)
            ids = {accepted_id(one.result()) for one in submitted}
        assert len(ids) == 7
        with worker.redis() as db:
            assert len(list(db.scan_iter("record:*"))) == len(ids) + 1
        for job_id in ids:
            comes_to(gateway, job_id, "done")


def test_a_job_that_the_queue_lost_is_queued_again(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]) as worker:
        worker.pause()
        job_id = accepted_id(ask_later(gateway, picture(4)))
        with worker.redis() as db:
            lose(db, job_id)
            eventually(lambda: db.exists(f"job:{job_id}-0"), "it is in the queue again")
        worker.resume()
        comes_to(gateway, job_id, "done")
        assert result(gateway, job_id).json()["results"][0]["predictions"][0]["label"] == "red 4"


def test_a_job_whose_message_is_lost_fails(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]) as worker:
        worker.pause()
        job_id = accepted_id(ask_later(gateway))
        with worker.redis() as db:
            lose(db, job_id, f"blob:{job_id}-0")
        comes_to(gateway, job_id, "failed")
        problem(result(gateway, job_id), 500, "internal")
        assert len(events_of(gateway, job_id)) == 2


def lose(db: redis.Redis, job_id: str, *other_keys: str) -> None:
    """Delete a job as a fail-over to an older replica does. In one command: gateways look for lost jobs every second."""
    [stream] = [key for key in db.smembers("queues") if db.xlen(key)]
    db.delete(stream, f"job:{job_id}-0", *other_keys)


def test_only_one_of_a_result_and_a_cancellation_counts(valkey: PrivateValkey) -> None:
    """The first of both counts; the record says so everywhere."""
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]):
        for _ in range(20):
            job_id = accepted_id(ask_later(gateway))
            assert gateway.http.delete(f"/v1/jobs/{job_id}").status_code == 204
            ended = gateway.http.get(f"/v1/jobs/{job_id}")
            if ended.status_code == 404:  # it was done, and has been removed
                continue
            assert ended.json()["state"] == "cancelled"
            names = [event.name for event in events_of(gateway, job_id)]
            assert names.count("cancelled") == 1 and "done" not in names
            assert job(gateway, job_id)["state"] == "cancelled"


def test_a_large_result_is_kept_outside_of_the_record(valkey: PrivateValkey) -> None:
    """The worker writes it in pieces; it is removed with the job."""
    spec = make_spec(labels=MANY_LABELS)
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [spec], answer_at_length) as worker, worker.redis() as db:
        worker.stores_replies = True
        job_id = accepted_id(ask_later(gateway, picture(4)))
        comes_to(gateway, job_id, "done")
        assert result(gateway, job_id).json()["results"][0]["predictions"][0]["label"] == "red 4"
        assert gateway.metric("opsin_result_bytes") > 4 * MANY_LABELS
        assert list(db.scan_iter("out:*")) == []
        assert gateway.http.delete(f"/v1/jobs/{job_id}").status_code == 204
        assert list(db.scan_iter("result:*")) == []
