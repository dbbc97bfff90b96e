"""`GET /v1/status` is the same from every gateway, with the figures that clients have counted themselves."""

from __future__ import annotations

import json
from typing import Any

from server.queue.gateway.status_reader import STEP_S
from server.queue.messages import Progress
from server.supervisor.private_valkey import PrivateValkey
from server.telemetry.metrics import DURATION
from tests.support.fake_worker import TOKENS, Worker, make_spec, picture
from tests.support.gateway_process import Gateway, gateway_process, problem
from tests.support.queue import free_port
from tests.support.redis import CellRedis
from tests.support.waiting import WAIT_S, eventually

LEVEL = {"done": 3, "total": 9, "unit": "levels"}


def status(gateway: Gateway) -> dict[str, Any]:
    answer: dict[str, Any] = gateway.http.get("/v1/status").raise_for_status().json()
    return answer


def total(gateway: Gateway, name: str) -> float:
    return float(sum(status(gateway)["history"][name]))


def test_two_gateways_count_what_both_have_answered(valkey: PrivateValkey) -> None:
    with (
        gateway_process(valkey.url) as one,
        gateway_process(valkey.url) as other,
        Worker(valkey.url, [make_spec()]),
    ):
        for step in range(3):
            one.classify(picture(step), merge="strong")
        other.classify_all(*map(picture, range(4)), merge="off")
        other.classify(b"no image")
        for gateway in (one, other):
            eventually(lambda gateway=gateway: total(gateway, "requests") == 5, "the history holds five requests")
            eventually(lambda gateway=gateway: total(gateway, "items") == 7, "the history holds seven items")
            history = status(gateway)["history"]
            assert history["step_s"] == 5
            assert {len(values) for name, values in history.items() if name != "step_s"} == {180}
            assert sum(history["tokens_in"]) == 7 * TOKENS
            assert sum(history["tokens_out"]) == 7 * TOKENS - 3 * 6
            answered = [(p50, p95) for p50, p95 in zip(history["p50_ms"], history["p95_ms"], strict=True) if p50 is not None]
            assert answered
            assert all(0 < p50 <= p95 for p50, p95 in answered)
            assert all(size is None or 1 <= size <= 16 for size in history["batch_size"])
            assert status(gateway)["gateways"] == 2


def test_fleet_and_bundles_are_there(gateway: Gateway, worker: Worker) -> None:
    answer = status(gateway)
    assert answer["workers"] == [
        {"id": worker.queue.id, "state": "ready", "device": "cpu", "bundles": ["reds@1"], "restarts": 0, "slots": 1}
    ]
    [bundle] = answer["bundles"]
    assert {"model": "reds", "version": "1", "items_per_second": 100.0, "batch_budget": 8, "rung": None}.items() <= bundle.items()
    assert answer["dead_letters"] == []


def test_status_has_latencies_of_requests_and_jobs_by_bundle(valkey: PrivateValkey) -> None:
    """Latencies of both come with the next step of the history, so one wait does for all."""
    others = [make_spec(name="blues"), make_spec(name="greens")]
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec(), *others]):

        def latencies() -> dict[str, tuple[float | None, float | None]]:
            return {bundle["model"]: (bundle["p50_ms"], bundle["p95_ms"]) for bundle in status(gateway)["bundles"]}

        assert latencies() == dict.fromkeys(("reds", "blues", "greens"), (None, None))
        gateway.classify(picture(1), model="reds")
        gateway.classify(picture(1), model="blues", headers={"Prefer": "respond-async"})
        eventually(lambda: latencies()["reds"][0] is not None, "a request counts")
        eventually(lambda: latencies()["blues"][0] is not None, "a job counts when it has ended")
        assert latencies()["greens"] == (None, None)
        assert all(0 < p50 <= p95 for p50, p95 in latencies().values() if p50 is not None and p95 is not None)


def test_the_queue_is_split_into_waiting_and_running(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]) as worker:
        later = {"Prefer": "respond-async"}
        with worker.holding() as hold:
            gateway.classify(picture(1), priority="high", headers=later)
            hold.wait_for_batch()
            gateway.classify(picture(2), priority="high", headers=later)
            gateway.classify(picture(3), headers=later)
            eventually(lambda: len(status(gateway)["queue"]) == 2, "both priorities are listed")
            high, normal = status(gateway)["queue"]
            assert (high["bundle"], high["priority"], high["waiting"], high["running"]) == ("reds@1", "high", 1, 1)
            assert (normal["priority"], normal["waiting"], normal["running"]) == ("normal", 1, 0)
            assert 0 <= high["oldest_s"] < WAIT_S
            assert sum(status(gateway)["jobs"].values()) == 3
        eventually(lambda: status(gateway)["queue"] == [], "the queue is empty again")


def test_jobs_that_a_dead_worker_held_wait(valkey: PrivateValkey) -> None:
    """If no other worker may serve their content, the status should not list them as running until their deadline."""
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]) as worker, worker.redis() as db:
        worker.pause()
        job = gateway.classify(picture(1), headers={"Prefer": "respond-async"}).json()["id"]
        for stream in db.smembers("queues"):
            db.xreadgroup("workers", "a-worker-that-has-died", {stream: ">"})
        eventually(lambda: [(row["waiting"], row["running"]) for row in status(gateway)["queue"]] == [(1, 0)], "it waits")
        assert status(gateway)["jobs"] == {"queued": 1, "running": 0}
        assert gateway.http.delete(f"/v1/jobs/{job}").status_code == 204


def test_long_jobs_are_listed_with_steps_and_without_ids(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]) as worker:
        later = {"Prefer": "respond-async"}
        with worker.holding() as hold:
            first = gateway.classify(picture(1), headers=later).json()
            hold.wait_for_batch()
            gateway.classify(picture(2), headers=later)
            delivery = worker.running[0]
            worker.queue.acks.progress([(delivery, Progress(id=delivery.job.id, worker=worker.queue.id, done=3, total=9, unit="levels"))])
            eventually(lambda: [job["progress"] for job in status(gateway)["long_jobs"]] == [LEVEL, None], "both are listed")
            running, queued = status(gateway)["long_jobs"]
            assert (running["task"], running["bundle"], running["state"]) == ("classify", "reds@1", "running")
            assert (queued["state"], queued["running_s"]) == ("queued", None)
            assert 0 <= running["running_s"] <= running["age_s"] < WAIT_S
            assert first["id"] not in gateway.http.get("/v1/status").text
        eventually(lambda: status(gateway)["long_jobs"] == [], "none is under way")


def test_dead_letters_say_which_bundle_and_why(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]) as worker, worker.holding() as hold:
        gateway.classify(picture(1), headers={"Prefer": "respond-async"})
        hold.wait_for_batch()
        worker.queue.acks.dead_letter(worker.running[0], "it was poison")
        eventually(lambda: status(gateway)["dead_letters"] != [], "the dead letter is listed")
        letter = status(gateway)["dead_letters"][0]
        assert (letter["bundle"], letter["reason"]) == ("reds@1", "it was poison")
        assert letter["time"].endswith("Z")


def test_a_thousand_looks_cost_redis_one_a_second(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]) as worker, worker.redis() as db:
        first = status(gateway)["time"]
        times = {first, *(status(gateway)["time"] for _ in range(50))}
        seconds = 1 + (max(map(_seconds, times)) - _seconds(first))
        assert len(times) <= seconds + 1
        assert db.ping()


def _seconds(time: str) -> float:
    hours, minutes, seconds = time.partition("T")[2].removesuffix("Z").split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def test_while_redis_is_away_the_status_is_a_problem(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway:
        status(gateway)
        valkey.process.kill()
        valkey.process.wait()
        eventually(lambda: gateway.http.get("/v1/status").status_code == 503, "the status is refused")
        assert gateway.http.get("/v1/status").json()["type"] == "urn:opsin:redis-away"


def test_the_address_of_a_lost_redis_is_in_the_log_alone() -> None:
    port = free_port()
    with gateway_process(f"redis://127.0.0.1:{port}/0", redis_grace=0.5) as gateway:
        refused = gateway.classify(picture(1))
        assert problem(refused, 503, "redis-away")["detail"] == "the queue's Redis does not answer"
        gateway.terminate()
        lines = [json.loads(line) for line in gateway.process.communicate()[1].splitlines() if line.startswith("{")]
    [event] = [line for line in lines if line.get("request_id") == refused.json()["request_id"]]
    assert f"127.0.0.1:{port}" in event["reason"]


def test_foreign_fields_of_the_history_are_no_error(valkey: PrivateValkey) -> None:
    with CellRedis.from_url(valkey.url) as redis, gateway_process(valkey.url) as gateway:
        now_s, _ = redis.time()
        for step in range(now_s // STEP_S - 1, now_s // STEP_S + 12):
            redis.hset(f"history:{step}", f"{DURATION}²", 1)
        assert gateway.http.get("/v1/status").status_code == 200
