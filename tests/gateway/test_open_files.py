"""A low limit of open files: the service starts with the connections that fit, or says what it needs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil
import pytest

from server.supervisor.private_valkey import PrivateValkey
from tests.support import forked_program
from tests.support.fake_worker import Worker, make_spec, picture
from tests.support.forked_program import ForkedProcess
from tests.support.gateway_process import START_GATEWAY, Gateway, answering, environment
from tests.support.raw_http import NOTHING, Raw, ask
from tests.support.waiting import WAIT_S, eventually

LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); "
GATEWAY = "import sys; " + START_GATEWAY.format(fd="int(sys.argv[-1])")
COPY = ("tests.support.child_programs", "code")
"""A module and its argument before a program."""
HEALTH = b"GET /health/live HTTP/1.1\r\nHost: here\r\n\r\n"


@contextmanager
def limited_gateway(url: str, soft: int, hard: int, **settings: object) -> Iterator[tuple[Gateway, dict[str, object]]]:
    """Start a gateway; yield it and the first line of its log."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        reading, writing = os.pipe()
        variables = environment(redis_url=url, **settings)
        program = LIMIT.format(soft=soft, hard=hard) + GATEWAY
        process = ForkedProcess(*COPY, program, environment=variables, listener=listener.fileno(), prints=writing)
        os.close(writing)
        with os.fdopen(reading) as log, answering(process, listener) as gateway:
            yield gateway, json.loads(log.readline())


@pytest.mark.parametrize(("hard", "limit", "needed"), [(128, 1024, 192), (191, 1024, 192), (64, 1024, 192), (135, 8, 136)])
def test_a_gateway_with_too_few_files_says_what_it_needs(valkey: PrivateValkey, hard: int, limit: int, needed: int) -> None:
    variables = environment(redis_url=valkey.url, port=0, max_connections=limit)
    program = LIMIT.format(soft=hard, hard=hard) + START_GATEWAY.format(fd=None)
    run = forked_program.run(*COPY, program, environment=variables, seconds=WAIT_S)
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    reason = json.loads(line)["reason"]
    assert f"{hard} open files" in reason and f"needs {needed}" in reason and f"{limit + 128} for all" in reason and "ulimit -n" in reason


def test_a_service_with_too_few_files_says_the_same_once() -> None:
    program = LIMIT.format(soft=128, hard=128) + "import os, sys; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", program, "-m", "opsin", "serve", "--port", "0"]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=WAIT_S)
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert line.startswith("opsin: ") and "128 open files" in line and "needs 192" in line and "ulimit -n" in line


@pytest.mark.parametrize(("hard", "connections"), [(192, 64), (256, 128), (1024, 896)])
def test_a_gateway_says_how_many_connections_fit(valkey: PrivateValkey, hard: int, connections: int) -> None:
    with limited_gateway(valkey.url, hard, hard) as (_, line):
        warning = {name: line[name] for name in ("level", "connections", "wanted", "files", "needed")}
    assert warning == {"level": "warning", "connections": connections, "wanted": 1024, "files": hard, "needed": 1152}


def test_a_gateway_raises_its_soft_limit(valkey: PrivateValkey) -> None:
    with limited_gateway(valkey.url, 128, 300, max_connections=172) as (gateway, line):
        assert line["event"] == "listening"
        assert psutil.Process(gateway.process.pid).rlimit(psutil.RLIMIT_NOFILE) == (300, 300)


def test_all_connections_that_fit_are_served(valkey: PrivateValkey) -> None:
    with Worker(valkey.url, [make_spec()]), limited_gateway(valkey.url, 192, 192) as (gateway, _), ExitStack() as stack:
        gateway.http.close()
        opened: list[Raw] = []
        eventually(lambda: ask(gateway, HEALTH).status == 200, "it answers")
        while (raw := stack.enter_context(Raw(gateway)).send(HEALTH)).answer() != NOTHING:
            opened.append(raw)
            assert len(opened) <= 64
        assert len(opened) >= 63
        image = picture(3)
        head = b"POST /v1/classify HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % len(image)
        for raw in opened:
            raw.send(head + image)
        assert {raw.answer().status for raw in opened} == {200}


def test_shares_are_parts_of_the_connections_that_fit(valkey: PrivateValkey) -> None:
    proxies = ["127.0.0.1"]
    with Worker(valkey.url, [make_spec()]) as worker, limited_gateway(valkey.url, 192, 192, trusted_proxies=proxies) as (gateway, _):
        image = picture(3)
        head = b"POST /v1/classify HTTP/1.1\r\nHost: here\r\nX-Forwarded-For: 10.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(image)
        with worker.holding(), ExitStack() as stack:
            for _ in range(16):
                stack.enter_context(Raw(gateway)).send(head + image[:-1])
            eventually(lambda: gateway.count_in_flight() == 16, "a quarter of 64 is in flight")
            refused = ask(gateway, head + image)
        assert refused.status == 429 and "at most 16 requests" in json.loads(refused.body)["detail"]
