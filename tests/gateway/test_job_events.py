"""`GET /v1/jobs/{id}/events`."""

from __future__ import annotations

import itertools

import httpx2
import numpy as np
import pytest
import redis

from server.queue.messages import Array, Progress
from server.supervisor.private_valkey import PrivateValkey
from tests.support.fake_worker import MANY_LABELS, Worker, answer_at_length, make_spec, picture
from tests.support.gateway_process import Gateway, gateway_process, problem
from tests.support.job_api import Event, accepted_id, ask_later, comes_to, events_of, job, parse, result
from tests.support.raw_http import ask
from tests.support.waiting import WAIT_S, eventually


def shape(events: list[Event]) -> list[tuple[int, str]]:
    return [(event.id, event.name) for event in events]


def test_events_follow_a_job_from_its_place_to_its_answer(gateway: Gateway) -> None:
    job_id = accepted_id(ask_later(gateway, picture(2), picture(4)))
    events = events_of(gateway, job_id)
    assert shape(events) == [(1, "queued"), (2, "started"), (3, "progress"), (4, "progress"), (5, "done")]
    assert events[0].data == {"place": 0}
    assert [event.data for event in events[2:4]] == [{"done": done, "total": 2, "unit": "images"} for done in (1, 2)]
    assert events[4].data == result(gateway, job_id).json()


def test_events_are_replayed_from_any_gateway_and_resumed(gateway: Gateway, other: Gateway) -> None:
    job_id = accepted_id(ask_later(gateway))
    comes_to(gateway, job_id, "done")
    events = events_of(gateway, job_id)
    assert events_of(other, job_id) == events
    assert events_of(other, job_id, after=1) == events[1:]


def test_a_reader_that_comes_back_elsewhere_misses_nothing(gateway: Gateway, other: Gateway, worker: Worker) -> None:
    worker.pause()
    job_id = accepted_id(ask_later(gateway, *(picture(step) for step in range(6))))
    with gateway.http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
        first = next(parse(response.iter_lines()))
    worker.resume()
    rest = events_of(other, job_id, after=first.id)
    assert shape([first, *rest]) == [(1, "queued"), (2, "started"), *((step, "progress") for step in range(3, 9)), (9, "done")]


@pytest.mark.parametrize("last", ["-1", "x", "1.5", "9" * 16])
def test_a_last_event_id_is_a_number(gateway: Gateway, last: str) -> None:
    job_id = accepted_id(ask_later(gateway))
    refused = gateway.http.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last})
    assert problem(refused, 422, "invalid-option")["field"] == "Last-Event-ID"


def test_spaces_around_a_last_event_id_do_not_count(gateway: Gateway) -> None:
    job_id = accepted_id(ask_later(gateway))
    last = events_of(gateway, job_id)[-1].id
    head = f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: here\r\nLast-Event-ID: \t {last} \t\r\n\r\n"
    assert ask(gateway, head.encode()).status == 204


def test_job_removed_between_two_polls_ends_streams_as_cancelled(gateway: Gateway, other: Gateway, worker: Worker) -> None:
    worker.pause()
    for _ in range(12):  # a look each tenth of a second: few of them come between the two
        job_id = accepted_id(ask_later(gateway))
        with gateway.http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
            events = parse(response.iter_lines())
            names = [next(events).name]
            for _ in range(2):
                assert other.http.delete(f"/v1/jobs/{job_id}").status_code == 204
            names += [event.name for event in events]
        assert names == ["queued", "cancelled"]
    worker.resume()


def stream_after(gateway: Gateway, job_id: str, last: int) -> httpx2.Response:
    return gateway.http.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": str(last)})


def test_who_has_read_the_last_event_need_not_come_again(gateway: Gateway, other: Gateway) -> None:
    """204 is what ends the reconnecting of an EventSource."""
    job_id = accepted_id(ask_later(gateway))
    last = events_of(gateway, job_id)[-1].id
    for one in (gateway, other):
        response = stream_after(one, job_id, last)
        assert (response.status_code, response.content, response.headers["Cache-Control"]) == (204, b"", "no-store")


def test_an_id_that_no_event_of_the_job_has_had_is_refused(gateway: Gateway, worker: Worker) -> None:
    """Such a client would wait for events that have other numbers."""
    worker.pause()
    job_id = accepted_id(ask_later(gateway))
    for state, last in (("queued", 1), ("done", 4)):
        comes_to(gateway, job_id, state)
        for beyond in (last + 1, 10**14):
            document = problem(stream_after(gateway, job_id, beyond), 422, "invalid-option")
            assert document["field"] == "Last-Event-ID"
            assert f"the last event of this job is {last}" in str(document["detail"])
        worker.resume()


def test_a_cancelled_job_ends_its_readers(gateway: Gateway, other: Gateway, worker: Worker) -> None:
    worker.pause()
    job_id = accepted_id(ask_later(gateway))
    with gateway.http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
        events = parse(response.iter_lines())
        assert next(events).name == "queued"
        assert other.http.delete(f"/v1/jobs/{job_id}").status_code == 204
        assert [event.name for event in events] == ["cancelled"]


def test_readers_are_counted_while_they_read(gateway: Gateway, worker: Worker) -> None:
    worker.pause()
    job_id = accepted_id(ask_later(gateway))
    with gateway.http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
        events = parse(response.iter_lines())
        next(events)
        eventually(lambda: gateway.metric("opsin_event_readers") == 1, "it is counted, and earlier ones are not")
    eventually(lambda: gateway.metric("opsin_event_readers") == 0, "the reader that left is not counted")
    assert gateway.metric("opsin_events_sent_total", event="queued") >= 1


def test_one_blocking_read_serves_the_readers_of_all_jobs(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]) as worker, redis.Redis.from_url(valkey.url) as client:
        worker.pause()
        jobs = [accepted_id(ask_later(gateway)) for _ in range(2)]
        one, two = (gateway.http.stream("GET", f"/v1/jobs/{job_id}/events") for job_id in jobs)
        with one as first, two as second, client.monitor() as monitor:
            streams = [parse(response.iter_lines()) for response in (first, second)]  # held: a closed iterator closes its response
            assert [next(stream).name for stream in streams] == ["queued"] * 2
            commands = (entry["command"] for entry in monitor.listen())
            named = ([job_id in command for job_id in jobs] for command in commands if command.startswith("XREAD "))
            reads = itertools.dropwhile(lambda both: not all(both), filter(any, named))
            assert list(itertools.islice(reads, 4)) == [[True, True]] * 4
        worker.resume()


def test_a_client_reads_a_bounded_number_of_streams(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, max_connections=8) as gateway, Worker(valkey.url, [make_spec()]) as worker:
        worker.pause()
        job_id = accepted_id(ask_later(gateway))
        events = f"/v1/jobs/{job_id}/events"
        with gateway.http.stream("GET", events) as first, gateway.http.stream("GET", events) as second:
            assert (first.status_code, second.status_code) == (200, 200)
            problem(gateway.http.get(events), 429, "too-many-readers")
        eventually(lambda: gateway.metric("opsin_event_readers") == 0, "both have left")
        worker.resume()
        assert events_of(gateway, job_id)[-1].name == "done"


def test_streams_end_with_their_gateway_and_job_continues(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as staying, Worker(valkey.url, [make_spec()]) as worker:
        with gateway_process(valkey.url, drain_timeout=600) as leaving:
            worker.pause()
            job_id = accepted_id(ask_later(leaving))
            with leaving.http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
                events = parse(response.iter_lines())
                first = next(events)
                leaving.terminate()
                assert list(events) == []
            assert leaving.process.wait(WAIT_S) == 0
        worker.resume()
        assert shape(events_of(staying, job_id, after=first.id)) == [(2, "started"), (3, "progress"), (4, "done")]


def test_a_worker_of_steps_reports_its_progress(valkey: PrivateValkey) -> None:
    """Also after its death: then progress starts at 0 again."""
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]) as worker, worker.holding() as hold:
        job_id = accepted_id(ask_later(gateway))
        hold.wait_for_batch()
        [delivery] = worker.running
        for done in (0, 2, 0, 1):
            preview = {"x": Array.from_numpy(np.zeros(3))} if done == 2 else {}
            report = Progress(id=delivery.job.id, worker="test", done=done, total=4, unit="steps", preview=preview)
            worker.queue.acks.progress([(delivery, report)])
        assert job(gateway, job_id)["progress"] == {"done": 1, "total": 4, "unit": "steps"}
        hold.release()
        events = events_of(gateway, job_id)
        assert job(gateway, job_id)["progress"] == {"done": 4, "total": 4, "unit": "steps"}
    assert [event.data["done"] for event in events if event.name == "progress"] == [0, 2, 0, 1, 4]
    assert events[-1].name == "done"


def test_a_large_answer_is_named_where_it_is_replayed(valkey: PrivateValkey) -> None:
    """The answer itself goes to those who were there when the job ended."""
    spec = make_spec(labels=MANY_LABELS)
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [spec], answer_at_length) as worker:
        worker.pause()
        job_id = accepted_id(ask_later(gateway))
        with gateway.http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
            events = parse(response.iter_lines())
            next(events)
            worker.resume()
            assert list(events)[-1].data == result(gateway, job_id).json()
        assert events_of(gateway, job_id)[-1].data == {"result": f"/v1/jobs/{job_id}/result"}
