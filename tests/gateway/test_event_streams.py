"""Requests that are answered as a stream of events: `Accept: text/event-stream`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager

import httpx2
import msgspec
import numpy as np
import pytest
from starlette.types import Message

from models.bundle import BundleSpec
from server.gateway.inference.progress_stream import ProgressStream, encode_preview
from server.gateway.inference.stages import TaskPlan
from server.http.sse import EventStream
from server.queue.messages import Array, Failure, Progress, QueuedJob, Reply
from server.supervisor.private_valkey import PrivateValkey
from server.tasks.base import Outputs, Previews
from server.tasks.classify.images import ClassifyOptions, ClassifyPlan, ClassifyTask
from tests.support.fake_worker import MANY_LABELS, Worker, answer_at_length, make_spec, picture
from tests.support.gateway_process import Gateway, gateway_process, problem
from tests.support.job_api import Event, add_dashes, parse
from tests.support.waiting import WAIT_S, eventually

STREAM = {"Accept": "text/event-stream"}


@contextmanager
def open_stream(gateway: Gateway, *pictures: bytes, **headers: str) -> Iterator[tuple[httpx2.Response, Iterator[Event]]]:
    files = [("image", (f"{index}.png", data)) for index, data in enumerate(pictures or (picture(3),))]
    with gateway.http.stream("POST", "/v1/classify", files=files, headers=STREAM | add_dashes(headers)) as response:
        yield response, parse(response.iter_lines()) if response.status_code == 200 else iter(())


def test_a_stream_ends_with_the_answer(gateway: Gateway) -> None:
    with open_stream(gateway, picture(2), picture(4), X_Request_ID="mine") as (response, stream):
        events = list(stream)
    assert response.headers["Content-Type"] == "text/event-stream"
    assert [(event.id, event.name) for event in events] == [
        (1, "queued"),
        (2, "started"),
        (3, "progress"),
        (4, "progress"),
        (5, "done"),
    ]
    assert events[0].data == {"place": 0}
    assert events[3].data == {"done": 2, "total": 2, "unit": "images"}
    assert events[4].data["id"] == "mine" == response.headers["X-Request-ID"]
    assert [one["predictions"][0]["index"] for one in events[4].data["results"]] == [2, 4]


@pytest.mark.parametrize("accept", ["*/*", "application/json, text/event-stream", "text/event-stream;q=0.5, application/json"])
def test_json_is_preferred_where_both_are_welcome(gateway: Gateway, accept: str) -> None:
    assert gateway.classify(picture(1), headers={"Accept": accept}).headers["Content-Type"] == "application/json"


def test_refusal_before_queue_is_an_ordinary_response(gateway: Gateway) -> None:
    problem(gateway.classify(b"no picture", headers=STREAM), 415, "not-an-image")
    problem(gateway.classify(picture(1), headers=STREAM, model="cats"), 404, "unknown-model")


def test_a_later_failure_is_the_last_event(valkey: PrivateValkey) -> None:
    def fail(job: QueuedJob) -> Reply:
        return Reply(id=job.id, worker="test", failure=Failure(kind="model-error", detail="the model does not like this"))

    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()], fail), open_stream(gateway) as (response, stream):
        *_, last = stream
        assert response.status_code == 200
        assert (last.name, last.data["type"], last.data["field"]) == ("failed", "urn:opsin:model-error", "image")
        assert last.data["request_id"] == response.headers["X-Request-ID"]


def test_the_deadline_is_the_last_event(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]) as worker:
        assert gateway.classify(picture(1)).status_code == 200  # it is awake
        worker.pause()
        with open_stream(gateway, X_Request_Timeout="3") as (_, stream):
            assert [event.name for event in stream] == ["queued", "failed"]
        assert gateway.metric("opsin_requests_total", outcome="deadline") == 1


def test_the_end_of_all_workers_is_the_last_event(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, worker_grace=0.5) as gateway:
        with Worker(valkey.url, [make_spec()]) as worker:
            worker.pause()
            with ThreadPoolExecutor(1) as threads:
                reading = threads.submit(lambda: read_all(gateway))
                eventually(lambda: gateway.metric("opsin_events_sent_total", event="queued") == 1, "it is queued")
                worker.stop()
                last = reading.result()[-1]
        assert (last.name, last.data["type"]) == ("failed", "urn:opsin:no-worker")


def read_all(gateway: Gateway) -> list[Event]:
    with open_stream(gateway) as (_, stream):
        return list(stream)


def test_steps_and_their_progress_are_reported(valkey: PrivateValkey) -> None:
    with (
        gateway_process(valkey.url) as gateway,
        Worker(valkey.url, [make_spec()]) as worker,
        worker.holding() as hold,
        open_stream(gateway) as (_, stream),
    ):
        hold.wait_for_batch()
        [delivery] = worker.running
        assert delivery.job.progress
        begins = Progress(id=delivery.job.id, worker="test", done=0, total=0, unit="")
        for report in (begins, *(msgspec.structs.replace(begins, done=done, total=2, unit="steps") for done in (0, 1))):
            worker.queue.acks.progress([(delivery, report)])
        assert [next(stream).name for _ in range(2)] == ["queued", "started"]
        assert [next(stream).data for _ in range(2)] == [{"done": done, "total": 2, "unit": "steps"} for done in (0, 1)]
        hold.release()
        last, done_event = stream
        assert (last.name, last.data) == ("progress", {"done": 2, "total": 2, "unit": "steps"})
        assert done_event.name == "done"


def test_a_client_that_leaves_cancels(gateway: Gateway, worker: Worker) -> None:
    worker.pause()
    ran = len(worker.done)
    with open_stream(gateway) as (_, stream):
        next(stream)
        assert gateway.count_in_flight() == 1
    eventually(lambda: gateway.count_in_flight() == 0, "the gateway has noticed")
    eventually(worker.all_cancelled, "the worker knows")
    worker.resume()
    assert gateway.classify(picture(1)).status_code == 200
    assert len(worker.done) == ran + 1


def test_a_stream_is_finished_before_its_gateway_ends(valkey: PrivateValkey) -> None:
    """However long it takes: LINGER is for what has been answered."""
    with gateway_process(valkey.url, drain_timeout=600) as gateway, Worker(valkey.url, [make_spec()]) as worker, worker.holding() as hold:
        with open_stream(gateway) as (_, stream):
            assert next(stream).name == "queued"
            hold.wait_for_batch()
            gateway.terminate()
            eventually(lambda: gateway.http.get("/health/ready").status_code == 503, "draining")
            assert gateway.count_in_flight() == 1
            hold.release()
            assert [event.name for event in stream] == ["started", "progress", "done"]
        assert gateway.process.wait(WAIT_S) == 0


def test_a_second_signal_ends_a_stream_with_failed(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, drain_timeout=600) as gateway, Worker(valkey.url, [make_spec()]) as worker:
        worker.pause()
        with open_stream(gateway) as (_, stream):
            next(stream)
            gateway.terminate()
            eventually(lambda: gateway.http.get("/health/ready").status_code == 503, "draining")
            gateway.process.send_signal(signal.SIGTERM)
            assert [(event.name, event.data["type"]) for event in stream] == [("failed", "urn:opsin:draining")]
        assert gateway.process.wait(WAIT_S) == 0


async def test_queued_is_the_first_event_of_a_request() -> None:
    """A worker may answer sooner than the queue's word of the admission is read."""
    sent: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    task, spec = PreviewTask(), make_spec()
    async with aclosing(EventStream(send, str)) as stream:
        progress = ProgressStream(stream, TaskPlan(task, spec, task.plan(ClassifyOptions(), spec)), 1, (1, "images"))
        progress.on_progress(Progress(id="", worker="", done=1, total=2, unit="levels", preview=arrays_of({"level": np.array(3)})))
        assert not stream.started
        progress.on_admitted(0)
        progress.on_reply(Reply(id="", worker=""))
        await stream.end()
    lines = [line for line in b"".join(sent).decode().split("\n") if line.startswith(("id", "event"))]
    assert lines[::2] == ["id: 1", "id: 2", "id: 3", "id: 4", "id: 5"]
    assert lines[1::2] == ["event: queued", "event: started", "event: progress", "event: preview", "event: progress"]


class LevelPreview(msgspec.Struct):
    level: int


class PreviewTask(ClassifyTask, Previews[ClassifyPlan]):
    """A task that previews the level, if that is a number."""

    def preview(self, arrays: Outputs, plan: ClassifyPlan, spec: BundleSpec) -> LevelPreview:
        return LevelPreview(int(arrays["level"]))


async def test_previews_are_what_the_task_makes_of_them() -> None:
    """Arrays of which the task makes nothing have no preview."""
    task, spec = PreviewTask(), make_spec()
    planned = TaskPlan(task, spec, task.plan(ClassifyOptions(), spec))
    reports = [{"level": np.array(3)}, {"other": np.array(3)}, {"level": np.array([1, 2])}]
    previews = [
        encode_preview(planned, Progress(id="", worker="", done=1, total=2, unit="levels", preview=arrays_of(arrays))) for arrays in reports
    ]
    assert (isinstance(task, Previews), isinstance(ClassifyTask(), Previews)) == (True, False)
    assert previews == [b'{"level":3}', None, None]


def arrays_of(arrays: dict[str, np.ndarray]) -> dict[str, Array]:
    return {name: Array.from_numpy(array) for name, array in arrays.items()}


def test_a_large_reply_arrives_in_pieces(valkey: PrivateValkey) -> None:
    """A worker writes it outside of the reply stream; the gateway that reads it removes it."""
    spec = make_spec(labels=MANY_LABELS)
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [spec], answer_at_length) as worker:
        worker.stores_replies = True
        assert gateway.classify(picture(4)).json()["results"][0]["predictions"][0]["label"] == "red 4"
        with worker.redis() as db:
            assert db.keys("out:*") == []
