"""How many asynchronous jobs there may be, and for how long."""

from __future__ import annotations

from server.queue.messages import Failure, QueuedJob, Reply
from server.supervisor.private_valkey import PrivateValkey
from tests.support.fake_worker import Worker, make_spec, picture
from tests.support.gateway_process import gateway_process, problem
from tests.support.job_api import accepted_id, ask_later, comes_to, events_of, job, result
from tests.support.waiting import eventually


def test_asynchronous_jobs_hold_half_of_the_queue(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, queue_max_items=6) as gateway, Worker(valkey.url, [make_spec()]) as worker:
        worker.pause()
        jobs = [accepted_id(ask_later(gateway, picture(1), picture(2))), accepted_id(ask_later(gateway, picture(3)))]
        refused = ask_later(gateway, picture(4))
        problem(refused, 429, "queue-full")
        assert int(refused.headers["Retry-After"]) >= 1
        assert gateway.http.delete(f"/v1/jobs/{jobs[0]}").status_code == 204
        accepted_id(ask_later(gateway, picture(5)))
        worker.resume()
        assert gateway.classify(picture(6)).status_code == 200


def test_asynchronous_jobs_hold_half_of_the_bytes(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, queue_max_bytes=4000) as gateway, Worker(valkey.url, [make_spec()]) as worker:
        worker.pause()
        taken = 0
        while (response := ask_later(gateway, picture(1))).status_code == 202:
            taken += 1
        problem(response, 429, "queue-full")
        with worker.redis() as db:
            assert taken > 0 and int(db.get("queue:bytes") or 0) <= 2000


def test_results_have_room_before_their_jobs_are_taken(valkey: PrivateValkey) -> None:
    """Kept results and those that are expected share OPSIN_RESULTS_MAX_BYTES; what is removed makes room."""
    with gateway_process(valkey.url, results_max_bytes=18_500) as gateway, Worker(valkey.url, [make_spec()]) as worker:
        worker.pause()
        first, second = (accepted_id(ask_later(gateway, picture(step))) for step in (1, 2))
        refused = ask_later(gateway, picture(3))
        problem(refused, 429, "results-full")
        assert int(refused.headers["Retry-After"]) >= 1
        worker.resume()
        comes_to(gateway, first, "done")
        comes_to(gateway, second, "done")
        third = accepted_id(ask_later(gateway, picture(3)))  # results take less than what was reserved for them
        comes_to(gateway, third, "done")
        count = 3
        while (response := ask_later(gateway, picture(4))).status_code == 202:
            comes_to(gateway, accepted_id(response), "done")
            count += 1
        assert gateway.metric("opsin_result_bytes") <= 18_500
        assert gateway.metric("opsin_jobs", state="done") == count
        for _ in range(2):
            gateway.http.delete(f"/v1/jobs/{first}")
            gateway.http.delete(f"/v1/jobs/{second}")
            gateway.http.delete(f"/v1/jobs/{third}")
        accepted_id(ask_later(gateway, picture(4)))


def test_results_expire(valkey: PrivateValkey) -> None:
    """Results expire with all that belongs to them, the key included, and make room."""
    with gateway_process(valkey.url, result_ttl=1.5) as gateway, Worker(valkey.url, [make_spec()]) as worker:
        job_id = accepted_id(ask_later(gateway, Idempotency_Key="a"))
        eventually(lambda: gateway.http.get(f"/v1/jobs/{job_id}").status_code == 404, "it is forgotten")
        for path in ("/result", "/events"):
            problem(gateway.http.get(f"/v1/jobs/{job_id}{path}"), 404, "not-found")
        with worker.redis() as db:
            assert [key for kind in ("record", "events", "result", "idem") for key in db.scan_iter(f"{kind}:*")] == []
        assert (gateway.metric("opsin_jobs_ended_total", state="done"), gateway.metric("opsin_jobs")) == (1, 0)
        assert accepted_id(ask_later(gateway, Idempotency_Key="a")) != job_id


def test_a_job_without_workers_fails_at_its_deadline(valkey: PrivateValkey) -> None:
    """`worker_grace` does not end it before."""
    with gateway_process(valkey.url, worker_grace=0.2) as gateway:
        with Worker(valkey.url, [make_spec()]) as worker:
            worker.pause()
            patient, job_id = (accepted_id(ask_later(gateway, X_Request_Timeout=seconds)) for seconds in ("3000", "2"))
        eventually(lambda: gateway.http.get("/health/ready").status_code == 503, "no worker is ready")
        problem(gateway.classify(picture(1), model="never-seen"), 503, "no-worker")  # the grace of what is asked at once is over
        assert job(gateway, patient)["state"] == "queued"
        events = events_of(gateway, job_id)
        assert [event.name for event in events] == ["queued", "failed"]
        assert events[-1].data["type"] == "urn:opsin:deadline"
        assert comes_to(gateway, job_id, "failed")["error"]["status"] == 504
        problem(result(gateway, job_id), 504, "deadline")
        assert gateway.http.delete(f"/v1/jobs/{patient}").status_code == 204
        eventually(lambda: gateway.metric("opsin_queue_depth", model="reds") == 0, "the queue is empty")


def test_the_default_deadline_is_its_own(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, request_timeout=1.0, job_timeout=600.0) as gateway, Worker(valkey.url, [make_spec()]) as worker:
        worker.pause()
        job_id, short = accepted_id(ask_later(gateway)), accepted_id(ask_later(gateway, X_Request_Timeout="1"))
        problem(gateway.classify(picture(1)), 504, "deadline")
        comes_to(gateway, short, "failed")  # a sweep has looked for late jobs
        worker.resume()
        comes_to(gateway, job_id, "done")


def test_an_unknown_failure_is_ours(valkey: PrivateValkey) -> None:
    """A failure of a kind that only a newer worker knows is a 500 in all ways."""

    def fail(queued: QueuedJob) -> Reply:
        return Reply(id=queued.id, worker="test", failure=Failure(kind="moon-phase", detail="not today"))

    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()], fail):
        problem(gateway.classify(picture(1)), 500, "internal")
        job_id = accepted_id(ask_later(gateway))
        comes_to(gateway, job_id, "failed")
        problem(result(gateway, job_id), 500, "internal")
