"""The load generator against a small HTTP server of its own kind: what it counts is what it sent."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
import uvloop

from benchmarks.load import LoadAnswer, LoadTarget, closed_loop, open_loop, run, summarise

Handler = Callable[[bytes], Awaitable[tuple[str, bytes]]]
PICTURES = [b"picture-0", b"picture-1", b"picture-2"]
TIMING = {"prepare_ms": 2.0, "queue_ms": 1.0, "batch_wait_ms": 0.5, "inference_ms": 4.0, "total_ms": 9.0, "batch_size": 3}


@asynccontextmanager
async def http_server(answer: Handler) -> AsyncIterator[str]:
    """Keep-alive HTTP/1.1: each body goes to `answer`, which gives the status line's end and the body of the response."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                status, body = await answer(await reader.readexactly(length))
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/classify?model=m"


def classification(picture: bytes) -> bytes:
    index = PICTURES.index(picture)
    predictions = [{"index": index, "score": 0.9}, {"index": (index + 1) % 3, "score": 0.1}]
    return json.dumps({"results": [{"predictions": predictions}], "timing": TIMING}).encode()


async def test_an_open_loop_sends_on_while_the_service_says_nothing() -> None:
    """The service does not answer until it holds ten requests: a loop that waits for answers would never send the second."""
    waiting: list[bytes] = []
    full = asyncio.Event()

    async def answer(body: bytes) -> tuple[str, bytes]:
        waiting.append(body)
        if len(waiting) == 10:
            full.set()
        await full.wait()
        return "200 OK", classification(body)

    async with http_server(answer) as url:
        target = LoadTarget(url, PICTURES)
        await open_loop(target, rate=200.0, until=time.monotonic() + 0.5)
        target.close()
    assert len(target.answers) == len(waiting) >= 10
    assert all(answer.finished > answer.intended for answer in target.answers)


async def test_closed_loop_keeps_one_request_in_flight_per_client() -> None:
    in_flight, max_in_flight = 0, 0

    async def answer(body: bytes) -> tuple[str, bytes]:
        nonlocal in_flight, max_in_flight
        in_flight += 1
        max_in_flight = max(max_in_flight, in_flight)
        await asyncio.sleep(0.001)
        in_flight -= 1
        return "200 OK", classification(body)

    async with http_server(answer) as url:
        target = LoadTarget(url, PICTURES)
        await closed_loop(target, clients=4, until=time.monotonic() + 1.0)
        target.close()
    assert max_in_flight == 4
    assert {answer.picture for answer in target.answers} == {0, 1, 2}


async def test_answers_of_other_pictures_and_failures_are_counted() -> None:
    """The second of every two answers belongs to another image, and every fifth is a 503."""
    sent = 0

    async def answer(body: bytes) -> tuple[str, bytes]:
        nonlocal sent
        sent += 1
        if sent % 5 == 0:
            return "503 Service Unavailable", b"{}"
        return "200 OK", classification(body if sent % 2 else PICTURES[(PICTURES.index(body) + 1) % 3])

    expected = np.full((3, 3), 0.0, dtype=np.float32)
    for picture in range(3):
        expected[picture, picture], expected[picture, (picture + 1) % 3] = 0.9, 0.1
    async with http_server(answer) as url:
        target = LoadTarget(url, PICTURES)
        start = time.monotonic()
        await closed_loop(target, clients=1, until=start + 0.2)
        target.close()
    report = summarise(target.answers, mode="closed", clients=1, rate=None, start=start, seconds=3600.0, expected=expected)
    refused = sent // 5
    assert report.failures == {"503": refused}
    assert (report.answered, report.checked) == (sent - refused, sent - refused)
    assert report.wrong == sum(number % 2 == 0 for number in range(1, sent + 1) if number % 5)
    assert (report.overhead_ms, report.batch_size) == (3.0, 3.0)


async def test_a_lost_connection_is_a_failure_with_its_reason() -> None:
    async def answer(body: bytes) -> tuple[str, bytes]:
        raise ConnectionResetError

    async with http_server(answer) as url:
        target = LoadTarget(url, PICTURES)
        start = time.monotonic()
        await target.ask(0, start)
    report = summarise(target.answers, mode="closed", clients=1, rate=None, start=start, seconds=3600.0, expected=None)
    assert report.answered == 0
    assert next(iter(report.failures)).startswith("the connection was lost")


def test_throughput_counts_whole_batches() -> None:
    """Eight answers every second, from 0.4 s on: eight per second wherever the window begins and ends."""
    body = classification(PICTURES[0])
    answers = [LoadAnswer(0, 0.0, 0.4 + batch + 0.001 * number, 200, body) for batch in range(10) for number in range(8)]
    for start, seconds in ((2.0, 5.0), (2.3, 5.3), (2.9, 4.6)):
        report = summarise(answers, mode="closed", clients=8, rate=None, start=start, seconds=seconds, expected=None)
        assert report.per_second == pytest.approx(8.0)


async def test_a_burst_counts_what_finished_in_its_window() -> None:
    """On uvloop, as the command runs it."""

    async def answer(body: bytes) -> tuple[str, bytes]:
        return "200 OK", classification(body)

    async with http_server(answer) as url:
        burst = run(url, PICTURES, clients=2, rate=None, warm=0.1, seconds=0.2, expected=None)
        report = await asyncio.to_thread(uvloop.run, burst)
    assert report.failures == {}
    assert report.per_second == report.answered / report.seconds > 0
    assert set(report.latency_ms) == {"p50", "p95", "p99"}
