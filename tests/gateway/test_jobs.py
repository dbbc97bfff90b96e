"""Requests that are answered later: `Prefer: respond-async` and `/v1/jobs`."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import jsonschema
import pytest

from server.supervisor.private_valkey import PrivateValkey
from tests.support.fake_worker import Worker, make_spec, picture, unbearable
from tests.support.gateway_process import Gateway, gateway_process, problem
from tests.support.job_api import accepted_id, ask_later, comes_to, events_of, job, result
from tests.support.waiting import eventually


def test_a_job_is_accepted_and_answered_later(gateway: Gateway, worker: Worker) -> None:
    worker.pause()
    response = ask_later(gateway, picture(6), X_Request_ID="mine")
    job_id = accepted_id(response)
    assert response.headers["Location"] == f"/v1/jobs/{job_id}"
    assert response.headers["Preference-Applied"] == "respond-async"
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{32}", job_id)
    status = response.json()
    assert (status["task"], status["model"], status["version"], status["state"]) == ("classify", "reds", "1", "queued")
    assert status["links"] == {"events": f"/v1/jobs/{job_id}/events", "result": f"/v1/jobs/{job_id}/result"}
    assert (status["started"], status["finished"], status["error"], status["progress"]) == (None, None, None, None)
    worker.resume()
    done = comes_to(gateway, job_id, "done")
    created, started, finished = (datetime.fromisoformat(done[name]) for name in ("created", "started", "finished"))
    assert created <= started <= finished
    assert done["progress"] == {"done": 1, "total": 1, "unit": "images"}
    answered = result(gateway, job_id).json()
    plain = gateway.classify(picture(6), headers={"X-Request-ID": "mine"}).json()
    assert answered["id"] == "mine"
    assert {**answered, "timing": None} == {**plain, "timing": None}
    assert answered["timing"].keys() == plain["timing"].keys()


def test_any_gateway_presents_the_result_as_it_was_planned(gateway: Gateway, other: Gateway) -> None:
    response = gateway.http.post(
        "/v1/classify", params={"top_k": 2, "merge": "gentle"}, content=picture(4), headers={"Prefer": "respond-async"}
    )
    job_id = accepted_id(response)
    comes_to(other, job_id, "done")
    [found] = result(other, job_id).json()["results"]
    assert [one["label"] for one in found["predictions"]] == ["red 4", "red 3"]
    assert found["merging"]["rung"] == "gentle"
    problem(result(other, job_id, Accept="text/html"), 406, "not-acceptable")


def test_jobs_fit_the_documentation(gateway: Gateway, worker: Worker) -> None:
    document = gateway.http.get("/openapi.json").json()
    worker.pause()
    response = ask_later(gateway, unbearable())
    worker.resume()
    failed = comes_to(gateway, accepted_id(response), "failed")
    status_content = document["paths"]["/v1/jobs/{job_id}"]["get"]["responses"]["200"]["content"]["application/json"]
    accepted_as = document["paths"]["/v1/classify"]["post"]["responses"]["202"]["content"]["application/json"]
    for content, instance in ((status_content, failed), (accepted_as, response.json()), (accepted_as, accepted_as["example"])):
        jsonschema.validate(instance, {**content["schema"], "components": document["components"]})


def test_the_documentation_lists_the_statuses_of_jobs(gateway: Gateway) -> None:
    paths = gateway.http.get("/openapi.json").json()["paths"]
    listed = {
        (method, path.removeprefix("/v1/jobs/{job_id}")): set(operation["responses"])
        for path, methods in paths.items()
        if path.startswith("/v1/jobs/")
        for method, operation in methods.items()
    }
    assert listed == {
        ("get", ""): {"200", "401", "404", "410", "421", "503"},
        ("delete", ""): {"204", "401", "404", "410", "421", "503"},
        ("get", "/result"): {"200", "401", "404", "406", "409", "410", "421", "429", "500", "503", "504"},
        ("get", "/events"): {"200", "204", "401", "404", "410", "421", "422", "429", "503"},
    }


def test_respond_async_wins_over_a_stream_of_events(gateway: Gateway) -> None:
    headers = {"Prefer": "wait=5, Respond-Async", "Accept": "text/event-stream"}
    accepted_id(gateway.http.post("/v1/classify", content=picture(1), headers=headers))


def test_several_images_are_one_job(gateway: Gateway) -> None:
    job_id = accepted_id(ask_later(gateway, picture(1), picture(5), picture(7)))
    done = comes_to(gateway, job_id, "done")
    assert done["progress"] == {"done": 3, "total": 3, "unit": "images"}
    assert [one["predictions"][0]["index"] for one in result(gateway, job_id).json()["results"]] == [1, 5, 7]


def test_the_first_failure_ends_a_job_and_names_the_image(gateway: Gateway, worker: Worker) -> None:
    worker.pause()
    job_id = accepted_id(ask_later(gateway, picture(1), unbearable(), picture(2), X_Request_ID="of-the-post"))
    worker.resume()
    failed = comes_to(gateway, job_id, "failed")
    assert failed["error"]["type"] == "urn:opsin:model-error"
    assert (failed["error"]["field"], failed["error"]["request_id"]) == ("image[1]", "of-the-post")
    assert problem(result(gateway, job_id), 500, "model-error")["field"] == "image[1]"
    assert [event.name for event in events_of(gateway, job_id)][-1] == "failed"


def test_there_is_no_result_before_the_end(gateway: Gateway, worker: Worker) -> None:
    worker.pause()
    job_id = accepted_id(ask_later(gateway))
    problem(result(gateway, job_id), 409, "job-not-done")
    worker.resume()
    comes_to(gateway, job_id, "done")
    assert result(gateway, job_id).status_code == 200


def test_a_queued_job_knows_its_place(gateway: Gateway, worker: Worker) -> None:
    worker.pause()
    first, second = (accepted_id(ask_later(gateway, picture(step))) for step in (1, 2))
    assert [job(gateway, one)["place"] for one in (first, second)] == [0, 1]
    assert gateway.http.delete(f"/v1/jobs/{second}").status_code == 204
    worker.resume()
    comes_to(gateway, first, "done")
    assert job(gateway, first)["place"] is None


def test_a_queued_job_that_is_cancelled_never_runs(gateway: Gateway, other: Gateway, worker: Worker) -> None:
    worker.pause()
    job_id = accepted_id(ask_later(gateway, picture(1), picture(2)))
    ran = len(worker.done)
    assert other.http.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert job(gateway, job_id)["state"] == "cancelled"
    eventually(lambda: gateway.metric("opsin_queue_depth", model="reds") == 0, "the queue is empty while no worker takes anything")
    problem(result(gateway, job_id), 410, "job-cancelled")
    assert [event.name for event in events_of(gateway, job_id)] == ["queued", "cancelled"]
    worker.resume()
    assert gateway.classify(picture(3)).status_code == 200
    assert len(worker.done) == ran + 1


def test_a_running_job_that_is_cancelled_has_no_result(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]) as worker, worker.holding() as hold:
        job_id = accepted_id(ask_later(gateway))
        hold.wait_for_batch()
        assert comes_to(gateway, job_id, "running")["started"] is not None
        assert gateway.http.delete(f"/v1/jobs/{job_id}").status_code == 204
        hold.release()
        eventually(lambda: gateway.metric("opsin_queue_depth", model="reds") == 0, "its worker has let go of it")
        assert job(gateway, job_id)["state"] == "cancelled"
        problem(result(gateway, job_id), 410, "job-cancelled")


def test_an_ended_job_can_be_removed(gateway: Gateway, other: Gateway) -> None:
    job_id = accepted_id(ask_later(gateway))
    comes_to(gateway, job_id, "done")
    assert gateway.http.delete(f"/v1/jobs/{job_id}").status_code == 204
    for path in ("", "/result", "/events"):
        problem(other.http.get(f"/v1/jobs/{job_id}{path}"), 404, "not-found")
    problem(other.http.delete(f"/v1/jobs/{job_id}"), 404, "not-found")


@pytest.mark.parametrize("job_id", ["nothing", "0-0", "5f0c2a9e-xyz"])
def test_what_is_no_id_is_unknown(gateway: Gateway, job_id: str) -> None:
    problem(gateway.http.get(f"/v1/jobs/{job_id}"), 404, "not-found")


def test_a_job_of_another_redis_is_lost(gateway: Gateway) -> None:
    for path in ("", "/result", "/events"):
        problem(gateway.http.get(f"/v1/jobs/00234567-{'a' * 32}{path}"), 410, "job-lost")
    problem(gateway.http.delete(f"/v1/jobs/00234567-{'a' * 32}"), 410, "job-lost")


def test_nothing_lists_jobs(gateway: Gateway) -> None:
    accepted_id(ask_later(gateway))
    problem(gateway.http.get("/v1/jobs"), 404, "not-found")
    problem(gateway.http.get("/v1/jobs/"), 404, "not-found")


def test_a_bad_request_is_refused_at_once(gateway: Gateway) -> None:
    problem(ask_later(gateway, b"no picture"), 415, "not-an-image")
    problem(gateway.http.post("/v1/classify?top_k=99", content=picture(1), headers={"Prefer": "respond-async"}), 422, "invalid-option")
    problem(gateway.http.post("/v1/classify?model=cats", content=picture(1), headers={"Prefer": "respond-async"}), 404, "unknown-model")
    problem(ask_later(gateway, X_Request_Timeout="3601"), 422, "invalid-option")


def test_a_repeated_request_gets_the_same_job(gateway: Gateway, other: Gateway, worker: Worker) -> None:
    worker.pause()
    first = accepted_id(ask_later(gateway, picture(1), picture(2), Idempotency_Key="a"))
    as_json = {"Prefer": "respond-async", "Idempotency-Key": "a"}
    assert accepted_id(ask_later(other, picture(1), picture(2), Idempotency_Key="a")) == first
    assert gateway.metric("opsin_jobs", state="queued") == 1
    worker.resume()
    comes_to(gateway, first, "done")
    assert accepted_id(ask_later(other, picture(1), picture(2), Idempotency_Key="a")) == first
    for different in (
        ask_later(other, picture(2), picture(1), Idempotency_Key="a"),
        other.http.post("/v1/classify?top_k=5", content=picture(1), headers=as_json),
    ):
        assert problem(different, 422, "invalid-option")["field"] == "Idempotency-Key"
    assert accepted_id(ask_later(gateway, picture(1), picture(2), Idempotency_Key="b")) != first


def test_options_count_as_they_are_meant_not_as_they_are_spelled(gateway: Gateway) -> None:
    def ask(**parts: object) -> str:
        return accepted_id(gateway.http.post("/v1/classify", headers={"Prefer": "respond-async", "Idempotency-Key": "spelled"}, **parts))

    in_form = ask(files={"image": picture(1)}, data={"top_k": "2"})
    assert ask(params={"top_k": 2}, content=picture(1)) == in_form


def test_requests_that_race_under_one_key_are_one_job(gateway: Gateway, other: Gateway, worker: Worker) -> None:
    worker.pause()
    before = gateway.metric("opsin_jobs")
    with ThreadPoolExecutor(8) as threads:
        responses = list(threads.map(lambda turn: ask_later((gateway, other)[turn % 2], picture(1), Idempotency_Key="race"), range(16)))
    assert len({accepted_id(response) for response in responses}) == 1
    assert gateway.metric("opsin_jobs") == before + 1


def test_ways_that_answer_at_once_have_no_keys(gateway: Gateway) -> None:
    keyed = {"Idempotency-Key": "plain"}
    assert [gateway.classify(picture(step), headers=keyed).json()["results"][0]["predictions"][0]["index"] for step in (1, 2)] == [1, 2]


@pytest.mark.parametrize("key", ["", "x" * 257])
def test_a_key_has_a_length(gateway: Gateway, key: str) -> None:
    assert problem(ask_later(gateway, Idempotency_Key=key), 422, "invalid-option")["field"] == "Idempotency-Key"


def test_a_request_has_one_key(gateway: Gateway) -> None:
    headers = [("Prefer", "respond-async"), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    refused = gateway.http.post("/v1/classify", content=picture(1), headers=headers)
    assert problem(refused, 422, "invalid-option")["field"] == "Idempotency-Key"


def test_metrics_count_jobs_by_state(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]) as worker:
        done = accepted_id(ask_later(gateway))
        comes_to(gateway, done, "done")
        worker.pause()
        ask_later(gateway)
        assert (gateway.metric("opsin_jobs", state="queued"), gateway.metric("opsin_jobs", state="done")) == (1, 1)
        assert gateway.metric("opsin_result_bytes") > 0
        assert gateway.http.delete(f"/v1/jobs/{done}").status_code == 204
        assert (gateway.metric("opsin_jobs", state="done"), gateway.metric("opsin_result_bytes")) == (0, 0)
        assert (gateway.metric("opsin_jobs_ended_total", state="done"), gateway.metric("opsin_jobs_ended_total", state="failed")) == (1, 0)


def test_a_job_that_would_never_fit_is_refused_for_good(valkey: PrivateValkey) -> None:
    """Asynchronous jobs hold half of the queue at most."""
    small = {"queue_max_items": 4, "results_max_bytes": 20_000}
    with gateway_process(valkey.url, None, **small) as gateway, Worker(valkey.url, [make_spec()]):
        detail = problem(ask_later(gateway, *(picture(step) for step in range(3))), 413, "too-large")
        assert detail["field"] == "image" and "3 items" in detail["detail"] and "OPSIN_QUEUE_MAX_ITEMS" in detail["detail"]
        comes_to(gateway, accepted_id(ask_later(gateway)), "done")
        assert gateway.http.post("/v1/classify", files=[("image", ("a.png", picture(1)))] * 3).status_code == 200


def test_a_result_that_would_never_fit_is_refused_for_good(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, results_max_bytes=5600) as gateway, Worker(valkey.url, [make_spec()]):
        assert "OPSIN_RESULTS_MAX_BYTES" in problem(ask_later(gateway), 413, "too-large")["detail"]


def test_a_record_that_cannot_be_read_is_503_and_named(gateway: Gateway, worker: Worker) -> None:
    """The answer is that of an unavailable Redis, until the record is repaired."""
    job_id = accepted_id(ask_later(gateway))
    comes_to(gateway, job_id, "done")
    with worker.redis() as db:
        db.hset(f"record:{job_id}", "state", "of another world")
    assert f"record:{job_id}" in str(problem(gateway.http.get(f"/v1/jobs/{job_id}"), 503, "redis-away")["detail"])
    assert gateway.http.delete(f"/v1/jobs/{job_id}").status_code == 204
    problem(gateway.http.get(f"/v1/jobs/{job_id}"), 404, "not-found")
