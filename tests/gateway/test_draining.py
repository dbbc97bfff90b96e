"""The end of a gateway process."""

from __future__ import annotations

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.supervisor.private_valkey import PrivateValkey
from tests.support.fake_worker import Worker, make_spec, picture
from tests.support.gateway_process import Gateway, gateway_process, problem
from tests.support.raw_http import Raw, post
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


HEALTH = b"GET /health/live HTTP/1.1\r\nHost: here\r\n\r\n"
LARGE = b"GET /docs/static/swagger-ui-bundle.js HTTP/1.1\r\nHost: here\r\n\r\n"


def send_image(raw: Raw, step: int) -> Raw:
    return raw.send(post("/v1/classify", f"Content-Length: {len(picture(step))}", body=picture(step)))


def is_leaving(gateway: Gateway) -> bool:
    return gateway.http.get("/health/ready").status_code == 503


def test_leaving_gateway_answers_on_each_connection_once_more(valkey: PrivateValkey) -> None:
    """Prove that clients with open connections open their next one elsewhere, without an error."""
    with (
        gateway_process(valkey.url, drain_delay=WAIT_S) as gateway,
        Worker(valkey.url, [make_spec()]) as worker,
        Raw(gateway) as idle,
        Raw(gateway) as busy,
        Raw(gateway) as late,
    ):
        for raw in (idle, busy, late):
            assert "connection" not in send_image(raw, 1).answer().headers
        worker.pause()
        send_image(busy, 6)
        eventually(lambda: gateway.metric("opsin_queue_depth", model="reds") == 1, "the request is in the queue")
        gateway.terminate()
        eventually(lambda: is_leaving(gateway), "not ready any more")
        worker.resume()
        for raw in (busy, send_image(late, 2)):
            answer = raw.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert raw.is_closed()
        idle.socket.settimeout(0.5)
        with pytest.raises(TimeoutError):
            idle.is_closed()


def test_draining_gateway_closes_idle_connections_alone(valkey: PrivateValkey) -> None:
    with (
        gateway_process(valkey.url, drain_delay=0.2) as gateway,
        Worker(valkey.url, [make_spec()]) as worker,
        Raw(gateway) as idle,
        Raw(gateway) as uploading,
    ):
        assert idle.send(HEALTH).answer().status == 200
        image = picture(6)
        uploading.send(post("/v1/classify", f"Content-Length: {len(image)}", body=image[:20]))
        eventually(lambda: gateway.count_in_flight() == 1, "the upload has begun")
        gateway.terminate()
        assert idle.is_closed()
        problem(gateway.classify(picture(1)), 503, "draining")
        answer = uploading.send(image[20:]).answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert gateway.process.wait(WAIT_S) == 0 and len(worker.done) == 1


def test_a_slow_client_gets_its_last_response_to_the_end(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway, Raw(gateway) as slow:
        count = 30  # more than the system buffers
        slow.send(LARGE * count)
        expected = len(slow.answer().body)
        gateway.terminate()
        time.sleep(2.5)
        answers = [slow.answer() for _ in range(count - 1)]
        assert [len(answer.body) for answer in answers] == [expected] * (count - 1)
        assert gateway.process.wait(WAIT_S) == 0
