"""The end of a gateway process."""

from __future__ import annotations

import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.supervisor.private_valkey import PrivateValkey
from tests.support.fake_worker import Worker, make_spec, picture
from tests.support.gateway_process import gateway_process, problem
from tests.support.waiting import WAIT_S, eventually


def test_a_signal_drains_and_the_exit_status_is_0(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]) as worker, ThreadPoolExecutor(1) as threads:
        worker.pause()
        unfinished = threads.submit(gateway.classify, picture(6))
        eventually(lambda: gateway.metric("opsin_queue_depth", model="reds") == 1, "the request is in the queue")
        gateway.terminate()
        eventually(lambda: gateway.http.get("/health/ready").status_code == 503, "not ready any more")
        assert gateway.http.get("/health/ready").json()["detail"] == "draining"
        assert gateway.http.get("/health/live").status_code == 200
        refused = gateway.classify(picture(1))
        problem(refused, 503, "draining")
        assert int(refused.headers["Retry-After"]) >= 1
        worker.resume()
        assert unfinished.result().status_code == 200
        assert gateway.process.wait(WAIT_S) == 0


def test_lost_terminal_drains_however_often_it_is_signalled(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()]) as worker, ThreadPoolExecutor(1) as threads:
        worker.pause()
        unfinished = threads.submit(gateway.classify, picture(6))
        eventually(lambda: gateway.metric("opsin_queue_depth", model="reds") == 1, "the request is in the queue")
        gateway.process.send_signal(signal.SIGHUP)
        eventually(lambda: gateway.http.get("/health/ready").status_code == 503, "not ready any more")
        gateway.process.send_signal(signal.SIGHUP)
        worker.resume()
        assert unfinished.result().status_code == 200
        assert gateway.process.wait(WAIT_S) == 0


def test_what_is_not_finished_within_the_drain_timeout_gets_503(valkey: PrivateValkey) -> None:
    with (
        gateway_process(valkey.url, drain_timeout=0.3) as gateway,
        Worker(valkey.url, [make_spec()]) as worker,
        ThreadPoolExecutor(1) as threads,
    ):
        worker.pause()
        unfinished = threads.submit(gateway.classify, picture(6))
        eventually(lambda: gateway.metric("opsin_queue_depth", model="reds") == 1, "the request is in the queue")
        gateway.terminate()
        problem(unfinished.result(), 503, "draining")
        assert gateway.process.wait(WAIT_S) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(valkey: PrivateValkey, second: signal.Signals) -> None:
    with (
        gateway_process(valkey.url, drain_timeout=600) as gateway,
        Worker(valkey.url, [make_spec()]) as worker,
        ThreadPoolExecutor(1) as threads,
    ):
        worker.pause()
        unfinished = threads.submit(gateway.classify, picture(6))
        eventually(lambda: gateway.metric("opsin_queue_depth", model="reds") == 1, "the request is in the queue")
        gateway.terminate()
        eventually(lambda: gateway.http.get("/health/ready").status_code == 503, "draining")
        gateway.process.send_signal(second)
        problem(unfinished.result(), 503, "draining")
        assert gateway.process.wait(WAIT_S) == 0
        worker.resume()
        assert worker.done == []


def test_an_idle_client_does_not_hold_up_the_end(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, drain_timeout=600) as gateway:
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))), socket.create_connection((host, int(port))) as half:
            half.sendall(b"GET /health/live HTT")
            gateway.terminate()
            assert gateway.process.wait(WAIT_S) == 0


def test_gateways_that_share_a_socket_outlive_each_other(valkey: PrivateValkey) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with (
        Worker(valkey.url, [make_spec()]),
        gateway_process(valkey.url, listener) as leaving,  # first, so that it is the one that has answered
        gateway_process(valkey.url, listener) as staying,
    ):
        leaving.terminate()
        assert leaving.process.wait(WAIT_S) == 0
        assert [staying.classify(picture(1)).status_code for _ in range(20)] == [200] * 20
