"""`GET /metrics` counts what a client counts, with one gateway and with several."""

from __future__ import annotations

import platform
import socket
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import httpx2
import redis
from prometheus_client.parser import text_string_to_metric_families

from server.supervisor.private_valkey import PrivateValkey
from tests.support.fake_worker import TOKENS, Worker, make_spec, picture
from tests.support.gateway_process import Gateway, executed_gateway, gateway_process
from tests.support.job_api import accepted_id, ask_later, comes_to
from tests.support.waiting import eventually


def test_items_of_jobs_are_counted_once_by_one_gateway(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as one, gateway_process(valkey.url) as other, Worker(valkey.url, [make_spec()]):

        def count_items() -> float:
            return sum(gateway.metric("opsin_items_total", model="reds", version="1") for gateway in (one, other))

        comes_to(one, accepted_id(ask_later(one, picture(1), picture(2))), "done")
        comes_to(other, accepted_id(ask_later(other, picture(3))), "done")
        eventually(lambda: count_items() == 3, "all three are counted")
        one.classify(picture(4))
        assert count_items() == 4


def test_counts_equal_the_clients_own(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, max_body_bytes=100_000) as gateway, Worker(valkey.url, [make_spec()]):
        for step in range(3):
            gateway.classify(picture(step), merge="strong")
        gateway.classify_all(*map(picture, range(4)), merge="off")
        gateway.classify(b"no image")
        gateway.classify(picture(1), model="blues")
        gateway.classify(b"x" * 200_000)
        assert gateway.metric("opsin_requests_total", model="reds", version="1", protocol="rest", outcome="ok") == 4
        assert gateway.metric("opsin_requests_total", outcome="client_error") == 3
        assert gateway.metric("opsin_requests_total") == 7
        assert gateway.metric("opsin_items_total", model="reds", version="1") == 7
        assert gateway.metric("opsin_tokens_in_total", model="reds") == 7 * TOKENS
        assert gateway.metric("opsin_tokens_out_total", model="reds") == 7 * TOKENS - 3 * 6
        assert gateway.metric("opsin_rejected_total", reason="too_large") == 1
        for histogram in ("request_duration", "preprocess", "queue_wait", "postprocess"):
            assert gateway.metric(f"opsin_{histogram}_seconds_count", model="reds") == 4
        assert gateway.metric("opsin_payload_bytes_count", direction="in") == 4
        assert gateway.metric("opsin_workers", state="ready") == 1
        assert gateway.metric("opsin_model_loaded", model="reds", version="1") == 1
        assert gateway.metric("opsin_redis_up") == 1
        assert gateway.count_in_flight() == 0


def test_the_memory_of_redis_is_measured_against_its_limit(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, redis.Redis.from_url(valkey.url) as operator:
        assert gateway.metric("opsin_redis_memory_bytes", kind="used") > 100_000
        assert 'kind="limit"' not in gateway.http.get("/metrics").text
        operator.config_set("maxmemory", 300_000_000)
        assert gateway.metric("opsin_redis_memory_bytes", kind="limit") == 300_000_000
        operator.execute_command("ACL", "SETUSER", "default", "-info")
        assert "opsin_redis_memory_bytes{" not in gateway.http.get("/metrics").text
        assert gateway.metric("opsin_redis_up") == 1


def test_the_versions_of_a_gateway_are_shown_also_without_redis() -> None:
    with gateway_process("redis://127.0.0.1:1/0") as gateway:
        assert gateway.metric("opsin_build_info", version=version("opsin"), python=platform.python_version()) == 1
        assert gateway.metric("opsin_redis_up") == 0


def test_what_clients_send_never_becomes_a_label(gateway: Gateway) -> None:
    gateway.classify(picture(1), model="invented", headers={"X-Request-ID": "invented"})
    assert "invented" not in gateway.http.get("/metrics").text


def test_metrics_are_valid_and_have_all_reasons_and_events(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway:
        response = gateway.http.get("/metrics")
        families = {family.name: family for family in text_string_to_metric_families(response.text)}
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert all(family.documentation and family.type != "unknown" for family in families.values())
        reasons = {sample.labels["reason"]: sample.value for sample in families["opsin_rejected"].samples}
        assert reasons == dict.fromkeys(
            (
                "queue_full",
                "client_share",
                "key_share",
                "results_full",
                "draining",
                "too_large",
                "too_slow",
                "no_worker",
                "bundle_unavailable",
                "redis",
                "unauthorized",
            ),
            0,
        )
        events = {sample.labels["event"]: sample.value for sample in families["opsin_events_sent"].samples}
        assert events == dict.fromkeys(("queued", "started", "progress", "preview", "done", "failed", "cancelled"), 0)


def test_counts_of_killed_gateway_stay_in_sum_behind_the_socket(valkey: PrivateValkey, tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    shared = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    with Worker(valkey.url, [make_spec()]) as worker, ThreadPoolExecutor(1) as threads:
        with executed_gateway(valkey.url, listener, **shared) as first:
            first.classify_all(*map(picture, range(3)))
            worker.pause()
            lost = threads.submit(first.classify, picture(1))
            eventually(lambda: first.count_in_flight() == 1, "a request is in flight")
            first.process.kill()
            first.process.wait()
            assert isinstance(lost.exception(), httpx2.HTTPError)
        worker.resume()
        with executed_gateway(valkey.url, listener, **shared) as second:
            second.classify(picture(1))
            assert second.metric("opsin_items_total", model="reds") == 4
            assert second.metric("opsin_requests_total", outcome="ok") == 2
            assert second.metric("opsin_request_duration_seconds_count") == 2
            assert second.count_in_flight() == 0
