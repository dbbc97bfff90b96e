"""Large results: how much memory takes who reads many of them at once."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil

from server.supervisor.private_valkey import PrivateValkey
from tests.support.fake_worker import MANY_LABELS, Worker, answer_at_length, make_spec, picture
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.job_api import accepted_id, comes_to, result
from tests.support.raw_http import Raw

MB = 1_000_000
IMAGES = 4
"""The answer, which names every label of each, is longer than what the system's buffers hold."""


@contextmanager
def long_answer_gateway(valkey: PrivateValkey) -> Iterator[Gateway]:
    """Start a gateway whose worker gives long answers."""
    spec = make_spec(labels=MANY_LABELS)
    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [spec], answer_at_length):
        yield gateway


def submit_job(gateway: Gateway) -> str:
    files = [("image", (f"{index}.png", picture(index))) for index in range(IMAGES)]
    params = {"top_k": MANY_LABELS}
    return accepted_id(gateway.http.post("/v1/classify", params=params, files=files, headers={"Prefer": "respond-async"}))


def done(gateway: Gateway) -> str:
    job_id = submit_job(gateway)
    comes_to(gateway, job_id, "done")
    return job_id


def memory(gateway: Gateway) -> int:
    """Bytes that its process holds."""
    return int(psutil.Process(gateway.process.pid).memory_info().rss)


def reader(gateway: Gateway, job_id: str, source: str) -> Raw:
    """Request the result and read nothing of it."""
    raw = Raw(gateway, source)
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 1024)
    return raw.send(f"GET /v1/jobs/{job_id}/result HTTP/1.1\r\nHost: here\r\n\r\n".encode())


def test_an_answer_is_kept_once_for_all_who_read_it(valkey: PrivateValkey) -> None:
    with long_answer_gateway(valkey) as gateway, ExitStack() as closing:
        job_id = done(gateway)
        answer = result(gateway, job_id).content
        assert len(answer) > 20 * MB
        before = memory(gateway)
        readers = [closing.enter_context(reader(gateway, job_id, "127.0.0.9")) for _ in range(12)]
        for one in readers:
            assert one.socket.recv(1, socket.MSG_PEEK)  # the answer has begun
        assert memory(gateway) - before < 5 * len(answer)
        assert readers[0].answer().body == answer
