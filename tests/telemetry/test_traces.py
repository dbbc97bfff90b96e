"""Traces of the real service, as a collector receives them: their structure, ids in logs and errors, and collectors that fail."""

from __future__ import annotations

import io
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from unittest.mock import patch

import httpx2
import numpy as np
import pytest

from server.processes.supervisor_protocol import process_id
from server.supervisor.private_valkey import PrivateValkey
from tests.support.bundles.vit import write_tiny_diffmae, write_tiny_vit
from tests.support.fake_worker import Worker, make_spec, picture, unbearable
from tests.support.gateway_process import Gateway, gateway_process, sum_up
from tests.support.live_service import gateway
from tests.support.redis import private_valkey
from tests.support.serve_process import Service, frozen, serve
from tests.support.waiting import eventually
from tests.telemetry.conftest import ReceivedSpan, Receiver, receiver

QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "50"}
"""Spans are exported after so many milliseconds."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture(scope="module")
def queue() -> Iterator[PrivateValkey]:
    with private_valkey() as server:
        yield server


@pytest.fixture(scope="module")
def service(collector: Receiver, queue: PrivateValkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The whole service, whose worker is a fork of the template; its own traces are those that callers begin."""
    bundles = tmp_path_factory.mktemp("bundles")
    write_tiny_vit(bundles)
    write_tiny_diffmae(bundles)
    variables = {"OTEL_TRACES_SAMPLER": "parentbased_always_off", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}
    variables |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_HEADERS": "key=word", **QUICK}
    with ExitStack() as stack:
        with patch.dict(os.environ, variables):
            running = stack.enter_context(serve(bundles, "--redis", queue.url, copied=True, default_models='{"classify": "tiny"}'))
        assert running.url
        yield running


def make_caller() -> tuple[str, str, dict[str, str]]:
    """Return the ids of a caller's span, and its headers."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, {"traceparent": f"00-{trace_id}-{span_id}-01"}


def post(service: Service, path: str, content: bytes, headers: dict[str, str], **query: object) -> httpx2.Response:
    return httpx2.post(f"{service.url}{path}", content=content, params=query, headers=headers, timeout=60)


def index_by_name(spans: list[ReceivedSpan]) -> dict[str, ReceivedSpan]:
    assert len({span.name for span in spans}) == len(spans), [span.name for span in spans]
    return {span.name: span for span in spans}


REQUEST = "POST /v1/classify"


def test_a_request_is_one_trace_through_gateway_and_worker(service: Service, collector: Receiver) -> None:
    trace_id, caller, headers = make_caller()
    answer = post(service, "/v1/classify", picture(3), headers).raise_for_status()
    spans = index_by_name(collector.wait_for(trace_id, REQUEST, "prepare", "queue", "batch", "inference", "present"))
    request = spans.pop(REQUEST)
    assert (request.parent_id, request.kind, request.service) == (caller, "server", "opsin-gateway")
    assert request.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/classify",
        "url.path": "/v1/classify",
        "url.scheme": "http",
        "opsin.bundle": "tiny@1",
    }
    assert {span.parent_id for span in spans.values()} == {request.span_id}
    assert {name: span.service for name, span in spans.items()} == {
        "prepare": "opsin-gateway",
        "present": "opsin-gateway",
        **dict.fromkeys(("queue", "batch", "inference"), "opsin-worker"),
    }
    stages = [spans[name] for name in ("prepare", "queue", "inference", "present")]
    slack = 5_000_000  # Redis' clock, by which the worker knows when a job was queued, counts milliseconds
    assert all(one.start <= one.end <= other.start + slack for one, other in pairwise(stages))
    assert all(request.start - slack <= span.start <= span.end <= request.end + slack for span in stages)
    assert abs(spans["inference"].end - spans["inference"].start - answer.json()["timing"]["inference_ms"] * 1e6) < slack
    assert spans["batch"].links == [(trace_id, request.span_id)]
    assert spans["inference"].links == [(trace_id, spans["batch"].span_id)]
    assert spans["queue"].kind == spans["batch"].kind == "consumer"
    assert spans["queue"].attributes["messaging.operation.type"] == "receive"
    batch = {"messaging.system": "redis", "messaging.destination.name": "tiny@1", "messaging.batch.message_count": 1}
    assert batch.items() <= spans["batch"].attributes.items()


def test_variables_of_opentelemetry_name_resources_and_headers(service: Service, collector: Receiver) -> None:
    trace_id, _, headers = make_caller()
    post(service, "/v1/classify", picture(3), headers).raise_for_status()
    spans = collector.wait_for(trace_id, REQUEST, "inference")
    for span in spans:
        assert span.resource["deployment.environment.name"] == "test"
        assert span.resource["service.version"]
    assert len({span.resource["service.instance.id"] for span in spans}) == 2
    assert {call["key"] for call in collector.headers} == {"word"}


def test_a_batch_has_links_to_all_of_its_sampled_members(service: Service, collector: Receiver) -> None:
    [worker] = service.children("worker")
    callers = [make_caller() for _ in range(3)]
    unsampled = {"traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"}
    with ThreadPoolExecutor(4) as pool, frozen(worker):
        answers = [pool.submit(post, service, "/v1/classify", picture(3), headers) for headers in (*(one[2] for one in callers), unsampled)]
        eventually(lambda: sum_up(service.get("/metrics").text, "opsin_queue_depth") >= 4, "they wait in the queue")
        os.kill(worker, signal.SIGCONT)
        for answer in answers:
            answer.result().raise_for_status()
    traces = [collector.wait_for(trace_id, REQUEST, "inference") for trace_id, _, _ in callers]
    requests = {(span.trace_id, span.span_id) for spans in traces for span in spans if span.name == REQUEST}
    batches = eventually(lambda: [span for span in list(collector.spans) if span.name == "batch" and set(span.links) <= requests])
    assert {link for batch in batches for link in batch.links} == requests
    assert sum(len(batch.links) for batch in batches) == 3
    linked = {(batch.trace_id, batch.span_id) for batch in batches}
    assert {link for spans in traces for span in spans if span.name == "inference" for link in span.links} == linked
    assert max(batch.attributes["messaging.batch.message_count"] for batch in batches) > 1


def test_requests_whose_callers_do_not_sample_them_send_nothing(service: Service, collector: Receiver) -> None:
    quiet, (trace_id, _, headers) = secrets.token_hex(16), make_caller()
    for sent in ({"traceparent": f"00-{quiet}-{secrets.token_hex(8)}-00"}, {}):
        post(service, "/v1/classify", picture(3), sent).raise_for_status()
    before = len(collector.spans)
    post(service, "/v1/classify", picture(3), headers).raise_for_status()
    collector.wait_for(trace_id, REQUEST, "inference", "present")
    assert {span.trace_id for span in collector.spans[before:]} == {trace_id}
    assert collector.spans_of(quiet) == []


@pytest.mark.parametrize(
    ("path", "name", "status"),
    [
        ("/v1/models/tiny", "GET /v1/models/{name}", 200),
        ("/v1/jobs/none", "GET /v1/jobs/{job_id}", 404),
        ("/v2/models/tiny/infer", "POST /v2/models/{name}/infer", 400),
        ("/nowhere/at/all", "GET", 404),
    ],
)
def test_spans_are_named_after_routes_and_not_after_paths(service: Service, collector: Receiver, path: str, name: str, status: int) -> None:
    trace_id, _, headers = make_caller()
    method = name.partition(" ")[0]
    httpx2.request(method, f"{service.url}{path}", headers=headers)
    [span] = collector.wait_for(trace_id, name)
    assert (span.attributes.get("http.route"), span.attributes["url.path"]) == (name.partition(" ")[2] or None, path)
    assert span.attributes["http.response.status_code"] == status
    assert not span.is_error


def test_a_long_job_is_one_trace_of_all_its_steps(service: Service, collector: Receiver) -> None:
    trace_id, _, headers = make_caller()
    accepted = post(service, "/v1/inpaint", picture(3, (32, 32)), {**headers, "Prefer": "respond-async"}, mask="center", steps=4)
    assert accepted.status_code == 202, accepted.text
    spans = collector.wait_for(trace_id, "POST /v1/inpaint", "prepare", "queue", "inference")
    [request] = [span for span in spans if span.name == "POST /v1/inpaint"]
    [inference] = [span for span in spans if span.name == "inference"]
    assert {span.parent_id for span in spans if span is not request} == {request.span_id}
    assert inference.end > request.end
    batches = [span for span in spans if span.name == "batch"]
    assert len(batches) >= 4
    assert all(batch.links == [(trace_id, request.span_id)] for batch in batches)
    assert inference.start <= min(batch.start for batch in batches)


async def test_the_log_of_a_worker_names_the_trace_of_a_failed_job(service: Service, queue: PrivateValkey, collector: Receiver) -> None:
    trace_id, span_id, _ = make_caller()
    trace = {"request_id": process_id(), "trace_id": trace_id, "traceparent": f"00-{trace_id}-{span_id}-01"}
    async with gateway(queue.url) as end:
        await end.ready()
        reply = await end.ask(end.job("tiny@1", np.zeros((5, 7, 3), np.uint8), trace=trace))
        assert reply.failure is not None
        forged = end.job("tiny@1", trace={"trace_id": "x", "traceparent": "y"})
        assert (await end.ask(forged)).failure is None
    [line] = eventually(lambda: [one for one in service.events("model failed on a job") if one.get("trace_id") == trace_id])
    assert line["request_id"] == trace["request_id"]
    [span] = collector.wait_for(trace_id, "inference")
    assert (span.parent_id, span.is_error) == (span_id, True)
    assert span.attributes["error.type"]


@contextmanager
def gateway_at(url: str, endpoint: str, **variables: str) -> Iterator[Gateway]:
    """Run a gateway that samples every request."""
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_TIMEOUT": "1", **QUICK, **variables}
    with patch.dict(os.environ, traced), gateway_process(url) as running:
        yield running


def log_of(gateway: Gateway) -> list[dict[str, object]]:
    gateway.terminate()
    _, printed = gateway.process.communicate(60)
    return [json.loads(line) for line in io.StringIO(printed) if line.startswith("{")]


def test_errors_and_log_lines_name_the_trace(url: str, collector: Receiver) -> None:
    with Worker(url, [make_spec()]) as worker, gateway_at(url, collector.url) as running:
        trace_id, _, headers = make_caller()
        failed = running.classify(unbearable(), headers=headers)
        assert (failed.status_code, failed.json()["trace_id"]) == (500, trace_id)
        assert worker.done[-1].trace["trace_id"] == trace_id
        collector.wait_for(trace_id, REQUEST, "prepare")
        refused = running.classify(b"no image", headers={"traceparent": "nonsense"}).json()
        assert collector.wait_for(refused["trace_id"], REQUEST)
        [request] = [one for one in collector.spans_of(trace_id) if one.name == REQUEST]
        assert (request.is_error, request.attributes["error.type"]) == (True, "500")
        [request] = [one for one in collector.spans_of(refused["trace_id"]) if one.name == REQUEST]
        assert (request.is_error, request.parent_id) == (False, "")
        job = running.classify(unbearable(), headers={**headers, "Prefer": "respond-async"}).json()["id"]
        assert eventually(lambda: running.http.get(f"/v1/jobs/{job}").json()["error"])["trace_id"] == trace_id
        lines = [line for line in log_of(running) if line["event"] == "model-error"]
        assert [line["trace_id"] for line in lines] == [trace_id]


def test_gateways_without_traces_have_no_ids_in_errors(url: str) -> None:
    with Worker(url, [make_spec()]) as worker, gateway_process(url) as running:
        _, _, headers = make_caller()
        assert "trace_id" not in running.classify(unbearable(), headers=headers).json()
        assert worker.done[-1].trace.keys() == {"request_id"}
        assert running.metric("opsin_spans_dropped_total") == 0


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


FAILURES = {
    "dead": {},
    "garbage": {"body": b"<html>It works!</html>"},
    "redirect": {"status": 302},
    "refusal": {"status": 400, "body": b"no"},
    "overload": {"status": 503},
    "slow": {"delay": 600.0},
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_collector_that_fails_delays_no_request(url: str, failure: str) -> None:
    with receiver(**FAILURES[failure]) as collector, Worker(url, [make_spec()]):
        endpoint = closed_port() if failure == "dead" else collector.url
        with gateway_at(url, endpoint, OTEL_BSP_MAX_QUEUE_SIZE="16") as running:
            running.classify(picture(3)).raise_for_status()
            started_at = time.monotonic()
            for _ in range(30):
                running.classify(picture(3)).raise_for_status()
            assert time.monotonic() - started_at < 10  # none of them waits for a timeout of the collector
            eventually(lambda: running.metric("opsin_spans_dropped_total", reason="not_exported") > 3, "failed exports are counted")
            if failure == "slow":
                assert running.metric("opsin_spans_dropped_total", reason="queue_full") > 0
            started_at = time.monotonic()
            lines = [line for line in log_of(running) if line["event"] == "spans are not exported"]
            assert time.monotonic() - started_at < 8
    [line] = lines
    assert line["reason"]


def test_spans_that_a_collector_rejects_are_counted(url: str) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTracePartialSuccess, ExportTraceServiceResponse

    answer = ExportTraceServiceResponse(partial_success=ExportTracePartialSuccess(rejected_spans=1))
    with receiver(body=answer.SerializeToString()) as collector, Worker(url, [make_spec()]), gateway_at(url, collector.url) as running:
        running.classify(picture(3)).raise_for_status()
        eventually(lambda: running.metric("opsin_spans_dropped_total") >= 1, "they are counted")


def test_the_last_spans_are_exported_when_a_gateway_ends(url: str) -> None:
    slowly = {"OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with receiver() as collector, Worker(url, [make_spec()]), gateway_at(url, collector.url, **slowly) as running:
        running.classify(picture(3)).raise_for_status()
        assert collector.spans == []
        log_of(running)
    assert {span.name for span in collector.spans} == {REQUEST, "prepare", "present"}
