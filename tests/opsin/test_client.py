"""The client's results of every kind of answer, over real HTTP."""

from __future__ import annotations

import asyncio
import base64
import inspect
import math
import re
import threading
import time
import traceback
from collections.abc import Callable
from email import message_from_bytes
from functools import partial

import numpy as np
import pytest

import opsin
from opsin import AsyncClient, Client, DeadlinePassed, Failed, OpsinError, Refused, Unavailable, Unreachable
from opsin.events import EventStreamReader
from opsin.image_encoding import png
from tests.support.fake_servers import RESULT, Answer, Request, serve_script
from tests.support.queue import free_port

FULL = Answer(429, {"title": "Queue full", "status": 429, "detail": "1024 jobs wait", "request_id": "r-9"}, {"Retry-After": "1"})


def test_one_picture_gives_one_classification() -> None:
    with serve_script([Answer()]) as service, Client(service.url) as client:
        found = client.classify(b"picture", model="flags@1", merge="off", top_k=2, priority="high", request_id="mine")
    assert (found.label, found.score, found.model, found.version, found.request_id) == ("animals", 0.75, "flags", "1", "r-1")
    assert (found.merging.rung, found.merging.tokens_in, found.merging.tokens_out) == ("fast", 65, 49)
    assert (found.timing.total_ms, found.timing.batch_size) == (10, 2)
    [request] = service.requests
    assert request.path == "/v1/classify?model=flags%401&merge=off&top_k=2&priority=high"
    assert (request.body, request.headers["X-Request-ID"]) == (b"picture", "mine")


def test_several_images_travel_in_one_request_in_order() -> None:
    two = {**RESULT, "results": [{**RESULT["results"][0], "predictions": [{"label": name, "index": 0, "score": 1}]} for name in "ab"]}
    with serve_script([Answer(body=two)]) as service, Client(service.url) as client:
        assert [found.label for found in client.classify([b"first picture", b"second picture"])] == ["a", "b"]
    [request] = service.requests
    assert request.headers["Content-Type"].startswith("multipart/form-data")
    assert 0 < request.body.index(b"first picture") < request.body.index(b"second picture")


def test_a_list_of_one_gives_a_list_of_one() -> None:
    with serve_script([Answer()]) as service, Client(service.url) as client:
        assert [found.label for found in client.classify([b"picture"])] == ["animals"]


def test_the_timeout_is_the_deadline_that_the_service_gets() -> None:
    with serve_script([Answer()]) as service, Client(service.url, timeout=50) as client:
        client.classify(b"picture", timeout=7)
        client.classify(b"picture")
    per_call, of_client = (float(request.headers["X-Request-Timeout"]) for request in service.requests)
    assert 0 < per_call <= 7 < of_client <= 50


def test_the_pause_is_the_one_that_the_service_asks_for() -> None:
    with serve_script([FULL, Answer()]) as service, Client(service.url) as client:
        requested = time.monotonic()
        client.classify(b"picture")
    assert time.monotonic() - requested >= 1.0


def test_a_timeout_may_be_without_end_and_is_a_number() -> None:
    with serve_script([Answer()]) as service, Client(service.url, timeout=math.inf) as client:
        assert client.classify(b"picture").label == client.classify(b"picture", timeout=1e300).label == "animals"
        with pytest.raises(ValueError, match="timeout: nan s; it must be positive"):
            client.classify(b"picture", timeout=math.nan)
    assert [request.headers["X-Request-Timeout"] for request in service.requests] == ["3600.000"] * 2


def test_any_task_takes_several_images_and_repeated_options() -> None:
    with serve_script([Answer(body={})]) as service, Client(service.url) as client:
        client.ask("zero-shot", {"image": [b"first", b"second"]}, label=["a dog", "a cat"], template=("{}",), top_k=2)
    [request] = service.requests
    assert request.path == "/v1/zero-shot?top_k=2"
    body = request.headers["Content-Type"].encode() + b"\r\n\r\n" + request.body
    parts = [part for part in message_from_bytes(b"Content-Type: " + body).walk() if not part.is_multipart()]
    sent = [(part.get_param("name", header="Content-Disposition"), part.get_payload(decode=True)) for part in parts]
    assert sent == [("image", b"first"), ("image", b"second"), ("label", b"a dog"), ("label", b"a cat"), ("template", b"{}")]


def test_the_id_of_a_scene_is_no_path_and_brings_no_options() -> None:
    with (
        pytest.raises(Refused),
        serve_script([Answer(404, {"title": "", "status": 404, "detail": "x"})]) as service,
        Client(service.url) as client,
    ):
        client.scene("a/../b?spacing=1", format="ply")
    assert [request.path for request in service.requests] == ["/v1/scenes/a%2F..%2Fb%3Fspacing%3D1?format=ply"]


def test_boolean_mask_is_white_where_true_and_errors_name_it() -> None:
    hole = np.zeros((4, 6), bool)
    hole[1:3, 2:5] = True
    with serve_script([Answer(422, {"title": "Invalid option", "status": 422, "detail": "x"})]) as service, Client(service.url) as client:
        for ask in (client.inpaint, partial(client.reconstruct, depth=b"depth")):
            with pytest.raises(Refused):
                ask(b"image", mask=hole)
            with pytest.raises(ValueError, match=r"mask: a uint8 array \(H, W\) .* not float64 \(4, 6\)"):
                ask(b"image", mask=hole.astype(float))
        with pytest.raises(TypeError, match=r"^sketch: a path, bytes, "):
            client.ask("draw", {"sketch": 3})
    assert [request.body.count(png(hole.astype(np.uint8) * np.uint8(255))) for request in service.requests] == [1, 1]


@pytest.mark.parametrize("status", [429, 503])
def test_full_or_resting_service_is_retried_after_its_pause(status: int) -> None:
    with serve_script([Answer(status, FULL.body, {"Retry-After": "0"}), Answer()]) as service, Client(service.url) as client:
        assert client.classify(b"picture").label == "animals"
    assert [request.body for request in service.requests] == [b"picture", b"picture"]


def test_retries_are_bounded_and_the_last_refusal_is_raised() -> None:
    with (
        serve_script([Answer(429, FULL.body, {"Retry-After": "0"})]) as service,
        Client(service.url, retries=3) as client,
        pytest.raises(Unavailable) as raised,
    ):
        client.classify(b"picture")
    assert len(service.requests) == 4
    error = raised.value
    assert (error.status, error.title, error.detail, error.request_id, error.retry_after) == (429, "Queue full", "1024 jobs wait", "r-9", 0)


@pytest.mark.parametrize("body", ["<html>Please log in</html>", "", "[" * 100_000, [], None, {}, {**RESULT, "results": []}])
def test_foreign_response_is_an_error_with_its_origin(body: object) -> None:
    with serve_script([Answer(body=body)]) as service, Client(service.url) as client:
        asks = (
            lambda: client.classify(b"picture"),
            lambda: client.classify(b"picture", wait=False).status(),
            lambda: client.inpaint(b"picture", "center:0.5"),
            lambda: client.actions(b"video"),
            lambda: client.reconstruct(b"picture", b"depth"),
            lambda: client.scene("s-1"),
            client.models,
            lambda: client.model("flags"),
            client.job("j-1").status,
            client.job("j-1").result,
        )
        for ask in asks:
            with pytest.raises(Failed, match=service.url):
                ask()


def test_what_is_no_stream_of_events_is_an_error() -> None:
    with (
        serve_script([Answer(headers={"Content-Type": "application/json"})]) as service,
        Client(service.url) as client,
        pytest.raises(Failed, match="not an event stream"),
    ):
        list(client.job("j-1").events())


def test_streams_that_never_say_anything_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not Opsin may answer everything, and say for ever that the job runs."""
    monkeypatch.setattr("opsin.events.MAX_OUTAGE_S", 0.2)
    monkeypatch.setattr("opsin.events.PAUSE_S", 0.05)

    def answer(request: Request) -> Answer:
        return Answer(body="") if "/events" in request.path else Answer(body={"id": "j-1", "state": "running"})

    with serve_script(answer) as service, Client(service.url) as client, pytest.raises(Failed, match="is this a service of Opsin"):
        list(client.job("j-1").events())


@pytest.mark.parametrize("detail", [{"a": 1}, 5, None])
def test_a_problem_of_another_server_is_an_error(detail: object) -> None:
    problem = {"detail": detail, "title": [1], "field": 5, "request_id": {}}
    with serve_script([Answer(422, problem)]) as service, Client(service.url) as client, pytest.raises(Refused) as raised:
        client.classify(b"picture")
    assert str(raised.value).startswith("422 ")


@pytest.mark.parametrize(
    "lines", ["event: done\ndata: {}", "id: a\nevent: done\ndata: {}", "id: 1\nevent: done", "id: 1\nevent: done\ndata: {"]
)
def test_what_is_no_event_is_an_error(lines: str) -> None:
    with (
        serve_script([Answer(body=f"{lines}\n\n")]) as service,
        Client(service.url) as client,
        pytest.raises(Failed, match="not an event of Opsin"),
    ):
        list(client.job("j-1").events())


def test_the_space_after_the_name_of_a_field_may_be_left_out() -> None:
    lines = ":comment\nid:7\nevent:done\ndata:{}\n\n"
    with serve_script([Answer(body=lines)]) as service, Client(service.url) as client:
        (event,) = client.job("j-1").events()
    assert (event.id, event.name, event.data) == (7, "done", {})


def test_lines_of_a_stream_end_as_the_standard_says() -> None:
    """JSON may hold characters that end lines elsewhere; a piece of the stream may end anywhere."""
    lines = 'id: 1\r\nevent: progress\r\ndata: {"label": "a\u2028b\u0085c"}\r\n\r\nid: 2\revent: done\rdata: {}\r\r\n'
    with serve_script([Answer(body=lines)]) as service, Client(service.url) as client:
        first, last = client.job("j-1").events()
    assert (first.data, last.name) == ({"label": "a\u2028b\u0085c"}, "done")


def test_a_service_that_rests_does_not_end_the_wait_for_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opsin.jobs.PAUSE_S", 0.01)
    answers = [*[Answer(503, FULL.body, {"Retry-After": "0.01"})] * 4, Answer(body={"id": "j-1", "state": "done"}), Answer(body=RESULT)]
    with serve_script(answers) as service, Client(service.url, retries=1) as client:
        assert client.job("j-1").result(timeout=30)
    assert len(service.requests) == 6


@pytest.mark.parametrize(("requested", "job"), [(7200, "7200.000"), (math.inf, "3600.000"), (math.nan, "nan")])
def test_request_timeout_is_capped_and_job_timeout_is_not(requested: float, job: str) -> None:
    """The job may take more than an hour if OPSIN_JOB_TIMEOUT is more."""
    with serve_script([Answer(body={**RESULT, "id": "j-1"})]) as service, Client(service.url) as client:
        client.classify(b"picture", timeout=5000)
        client.classify(b"picture", timeout=requested, wait=False)
    assert [request.headers["X-Request-Timeout"] for request in service.requests] == ["3600.000", job]


def test_lost_service_reports_id_of_running_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opsin.events.MAX_OUTAGE_S", 0.0)
    hint = r"; job j-1 may still be running: see `opsin jobs show j-1` and `opsin jobs result j-1`$"
    with Client(f"http://127.0.0.1:{free_port()}") as client:
        job = client.job("j-1")
        for wait in (job.result, partial(job.file, "video/mp4"), lambda: list(job.events())):
            with pytest.raises(Unreachable, match=hint):
                wait()
    hangs = threading.Event()
    with serve_script([Answer(after=hangs)]) as service, Client(service.url, timeout=0.01) as client:
        with pytest.raises(DeadlinePassed, match=hint):
            client.job("j-1").result()
        hangs.set()


def test_a_job_that_ended_at_its_deadline_does_not_go_on() -> None:
    passed = Answer(504, {"title": "Deadline passed", "detail": "no answer before the deadline", "status": 504})
    failed = Answer(body={"id": "j-1", "state": "failed"})
    with serve_script([failed, passed]) as service, Client(service.url) as client, pytest.raises(DeadlinePassed) as ended:
        client.job("j-1").result()
    assert str(ended.value) == "504 Deadline passed: no answer before the deadline"


@pytest.mark.parametrize(
    ("requested", "seconds"), [("999999999999999", 3600.0), ("inf", 3600.0), ("nan", None), ("soon", None), ("-1", 0.0)]
)
def test_no_time_to_wait_is_without_end(requested: str, seconds: float | None) -> None:
    with (
        serve_script([Answer(429, FULL.body, {"Retry-After": requested})]) as service,
        Client(service.url, retries=0) as client,
        pytest.raises(Unavailable) as raised,
    ):
        client.models()
    assert raised.value.retry_after == seconds


def test_pause_beyond_timeout_is_not_waited_for() -> None:
    with (
        serve_script([Answer(503, FULL.body, {"Retry-After": "3600"})]) as service,
        Client(service.url, timeout=5) as client,
        pytest.raises(Unavailable),
    ):
        client.classify(b"picture")
    assert len(service.requests) == 1


def test_a_bundle_that_is_refused_is_requested_once() -> None:
    refusal = {"type": "urn:opsin:bundle-unavailable", "title": "The bundle cannot be served", "status": 503, "detail": "it is damaged"}
    with serve_script([Answer(503, refusal)]) as service, Client(service.url) as client, pytest.raises(Unavailable) as raised:
        client.classify(b"picture")
    assert len(service.requests) == 1
    assert (raised.value.type, raised.value.is_lasting) == (refusal["type"], True)
    assert str(raised.value) == "503 The bundle cannot be served: it is damaged"


@pytest.mark.parametrize(
    ("status", "kind"), [(400, Refused), (404, Refused), (413, Refused), (422, Refused), (500, Failed), (504, DeadlinePassed)]
)
def test_nothing_else_is_sent_twice(status: int, kind: type[OpsinError]) -> None:
    problem = {"type": "about:blank", "title": "Sorry", "status": status, "detail": "image[3]: why", "field": "image[3]"}
    with (
        serve_script([Answer(status, problem, {"Retry-After": "0"})]) as service,
        Client(service.url) as client,
        pytest.raises(kind) as raised,
    ):
        client.classify(b"picture")
    assert len(service.requests) == 1
    assert (raised.value.field, str(raised.value)) == ("image[3]", f"{status} Sorry: image[3]: why")


def test_an_error_page_of_a_proxy_is_still_a_sentence() -> None:
    for status, kind in ((500, Failed), (502, Unreachable), (504, Unreachable)):
        with (
            serve_script([Answer(status, "<html>\n  bad gateway </html>")]) as service,
            Client(service.url) as client,
            pytest.raises(kind, match=rf"{status} [\w ]+: <html> bad gateway </html>"),
        ):
            client.classify(b"picture")


def test_no_service_at_all_is_unreachable() -> None:
    with Client(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:\d+: no answer"):
            client.classify(b"picture")
        assert client.health() is False
        assert not client.ready()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "url", ["http://[::1", "http://127.0.0.1:99999", "http://127.0.0.1:-1", "http://ex..ample", "http://☃.net", "localhost:8000", "http://"]
)
def test_what_is_no_address_is_unreachable(kind: Callable[[str], object], url: str) -> None:
    with pytest.raises(Unreachable, match=f"{re.escape(url)}: not the address of a service"):
        kind(url)


def test_the_password_of_a_proxy_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret/@proxy:1")
    with pytest.raises(Unreachable, match="a proxy or certificates of the environment cannot be used") as found:
        Client("http://127.0.0.1:1")
    assert "secret" not in "".join(traceback.format_exception(found.value))
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@proxy:1")
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    with pytest.raises(Unreachable, match="No such file or directory") as found:  # what is wrong then
        Client("http://127.0.0.1:1")
    assert "secret" not in "".join(traceback.format_exception(found.value))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("name", "value"), [("ALL_PROXY", "odd://127.0.0.1:1"), ("HTTP_PROXY", "http://a:b"), ("SSL_CERT_FILE", "/nonexistent")]
)
def test_unusable_variables_of_the_environment_are_reported(
    monkeypatch: pytest.MonkeyPatch, kind: Callable[[str], object], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(Unreachable, match="a proxy or certificates of the environment cannot be used"):
        kind("http://127.0.0.1:1")


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.classify(b"picture", model="x" * 70_000),
        lambda client: client.model("x" * 70_000),
        lambda client: list(client.job("x" * 70_000).events()),
    ],
    ids=["option", "name", "events"],
)
def test_what_is_too_long_for_an_address_is_refused(call: Callable[[Client], object]) -> None:
    with Client("http://127.0.0.1:1") as client, pytest.raises(Refused, match="cannot be sent"):
        call(client)


@pytest.mark.parametrize("name", opsin.__all__)
def test_no_signature_has_a_type_of_the_http_library(name: str) -> None:
    members = vars(getattr(opsin, name)).items()
    public = [getattr(member, "fget", member) for attribute, member in members if not attribute.startswith("_") or attribute == "__init__"]
    assert "httpx" not in " ".join(str(inspect.signature(member)) for member in public if callable(member))


def test_an_answer_that_does_not_come_is_a_passed_deadline() -> None:
    release = threading.Event()
    with serve_script([Answer(after=release)]) as service, Client(service.url) as client:
        with pytest.raises(DeadlinePassed):
            client.classify(b"picture", timeout=0.01)
        release.set()


def test_a_service_that_is_not_ready_says_why() -> None:
    with serve_script([Answer(503, {"detail": "no worker is ready for flags"})]) as service, Client(service.url) as client:
        readiness = client.ready()
    assert (bool(readiness), readiness.reason) == (False, "no worker is ready for flags")


def test_no_pictures_and_no_time_are_the_callers_mistakes() -> None:
    with Client() as client:
        with pytest.raises(ValueError, match="at least one image"):
            client.classify([])
        with pytest.raises(ValueError, match="timeout"):
            client.classify(b"picture", timeout=0)


async def test_the_async_client_asks_concurrently_and_retries_as_well() -> None:
    answers = [Answer(429, FULL.body, {"Retry-After": "0"}), Answer()]
    with serve_script(answers) as service:
        async with AsyncClient(service.url) as client:
            found = await asyncio.gather(*(client.classify(b"picture") for _ in range(8)))
    assert [one.label for one in found] == ["animals"] * 8
    assert len(service.requests) == 9


async def test_the_async_client_raises_the_same_errors() -> None:
    async with AsyncClient(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(Unreachable):
            await client.models()
        assert await client.health() is False
        assert not await client.ready()


def test_opsin_url_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_script([Answer()]) as service:
        monkeypatch.setenv("OPSIN_URL", service.url)
        with Client() as client:
            assert client.url == service.url
            assert client.classify(b"picture").label == "animals"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("url", ["http://me:s3/cret@127.0.0.1:1", "http://me:s3cret@127.0.0.1:99999", "me:s3cret@127.0.0.1:1"])
def test_unreadable_address_is_reported_without_password(kind: Callable[[str], object], url: str) -> None:
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:\d+: not the address of a service") as refused:
        kind(url)
    assert "s3" not in str(refused.value)


def test_a_password_in_the_address_is_sent_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with serve_script([Answer(), Answer(body="no JSON")]) as service, Client(service.url.replace("//", "//me:s3%2Fcret@")) as client:
        assert client.url == service.url
        assert client.classify(b"picture").label == "animals"
        with pytest.raises(Failed) as failed:
            client.classify(b"picture")
    with Client(f"http://me:s3%2Fcret@127.0.0.1:{free_port()}") as client, pytest.raises(Unreachable) as unreachable:
        client.models()
    assert service.requests[0].headers["Authorization"] == f"Basic {base64.b64encode(b'me:s3/cret').decode()}"
    assert service.url in caplog.text
    assert not [answer for answer in (caplog.text, str(failed.value), str(unreachable.value)) if "cret" in answer]


def test_event_may_come_in_pieces_and_line_end_in_two() -> None:
    reading = EventStreamReader("/events", 0)
    pieces = ["id: 7\r", "\nevent: done\r", '\ndata: {"a": "', *["x" * 1000] * 3000, '"}\r', "\n\r\n"]
    [event] = [event for piece in pieces for event in reading.take(piece)]
    assert (event.id, event.name, len(event.data["a"])) == (7, "done", 3_000_000)
