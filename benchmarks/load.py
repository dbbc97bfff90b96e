"""A load generator that costs little, since it shares the CPUs with what it measures: one process, raw HTTP, `python -m benchmarks.load`.

Closed loop: each client sends its next request when the last is answered; the rate follows the service.
Open loop: requests start at the times of a Poisson process whatever the service does, and latency counts from the intended start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import numpy as np
import uvloop
from numpy.typing import NDArray

MAX_CONNECTIONS = 512
Mode = Literal["closed", "open"]


@dataclass(frozen=True)
class LoadAnswer:
    """One request and what came back; times in seconds of the monotonic clock."""

    picture: int
    intended: float
    finished: float
    status: int
    body: bytes


@dataclass(frozen=True)
class LoadReport:
    """Measurements of one burst. Latencies in milliseconds; `timing` holds the medians of what the service reports of itself."""

    mode: Mode
    clients: int
    offered_per_second: float | None
    seconds: float
    answered: int
    per_second: float
    latency_ms: dict[str, float]
    failures: dict[str, int] = field(default_factory=dict)
    wrong: int = 0
    """Answers that are not those of their own picture."""
    checked: int = 0
    timing: dict[str, float] = field(default_factory=dict)
    overhead_ms: float = 0.0
    """Median of total − prepare − inference, from the service's own timing."""
    batch_size: float = 0.0
    """Mean over requests of the batch that served them."""


class LoadConnection(asyncio.Protocol):
    """One keep-alive connection with one request in flight."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._buffer = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._body_at = self._end = 0

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is one in all but name

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Status and body. Raises ConnectionError."""
        if self._transport is None or self.closed:
            raise ConnectionError("the service closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._end:
            head_end = self._buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            self._body_at = head_end + 4
            self._end = self._body_at + _content_length(bytes(self._buffer[:head_end]))
        if len(self._buffer) < self._end:
            return
        status, body = int(self._buffer[9:12]), bytes(self._buffer[self._body_at : self._end])
        del self._buffer[: self._end]
        self._end = 0
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(f"the connection was lost: {exc or 'closed by the service'}"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    raise ValueError("an answer without Content-Length: this load generator reads no chunks")


class LoadTarget:
    """The service under load: its address, one ready-made request per image, and idle connections."""

    def __init__(self, url: str, pictures: Sequence[bytes], content_type: str = "image/jpeg", header: str = "") -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        extra_header = f"{header}\r\n" if header else ""
        head = f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {content_type}\r\n{extra_header}"
        self._requests = [f"{head}Content-Length: {len(picture)}\r\n\r\n".encode() + picture for picture in pictures]
        self._idle: list[LoadConnection] = []
        self.answers: list[LoadAnswer] = []

    async def ask(self, number: int, intended: float) -> bool:
        """Send one picture and note the answer. False, and noted as status 0, if the connection broke."""
        picture = number % len(self._requests)
        try:
            connection = await self._connection()
            status, body = await connection.send(self._requests[picture])
            self._idle.append(connection)
        except OSError as error:
            status, body = 0, str(error).encode()
        self.answers.append(LoadAnswer(picture, intended, time.monotonic(), status, body))
        return status != 0

    async def _connection(self) -> LoadConnection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        _, connection = await asyncio.get_running_loop().create_connection(LoadConnection, self._host, self._port)
        return connection

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


async def closed_loop(target: LoadTarget, clients: int, until: float) -> None:
    """`clients` at once until the clock says `until`. One whose connection breaks gives up: it would only spin."""

    async def client(first: int) -> None:
        number = first
        while (now := time.monotonic()) < until and await target.ask(number, now):
            number += clients

    await asyncio.gather(*(client(first) for first in range(clients)))


async def open_loop(target: LoadTarget, rate: float, until: float, seed: int = 0) -> None:
    """Poisson arrivals at `rate` per second until the clock says `until`; then waits for what is in flight."""
    gaps = np.random.default_rng(seed)
    gate = asyncio.Semaphore(MAX_CONNECTIONS)

    async def one(number: int, intended: float) -> None:
        async with gate:
            await target.ask(number, intended)

    running: set[asyncio.Task[None]] = set()
    intended, number = time.monotonic(), 0
    while (intended := intended + float(gaps.exponential(1 / rate))) < until:
        await asyncio.sleep(max(0.0, intended - time.monotonic()))
        task = asyncio.create_task(one(number, intended))
        running.add(task)
        task.add_done_callback(running.discard)
        number += 1
    await asyncio.gather(*running)


def wrong_answers(answers: Sequence[LoadAnswer], expected: NDArray[np.float32]) -> int:
    """Answers whose scores lie nearer to another picture's off-line scores than to their own. expected: (pictures, classes)."""
    wrong = 0
    for answer in answers:
        predictions = json.loads(answer.body)["results"][0]["predictions"]
        indices = [prediction["index"] for prediction in predictions]
        scores = np.array([prediction["score"] for prediction in predictions])
        distances = ((expected[:, indices] - scores) ** 2).sum(axis=1)  # (pictures,)
        wrong += int(distances.argmin() != answer.picture)
    return wrong


def summarise(
    answers: Sequence[LoadAnswer],
    *,
    mode: Mode,
    clients: int,
    rate: float | None,
    start: float,
    seconds: float,
    expected: NDArray[np.float32] | None,
) -> LoadReport:
    """Count answers from `start` on for `seconds`: in a closed loop by when they came, in an open loop by when they were due."""
    inside, counted = _finished_in(answers, start, seconds) if mode == "closed" else (_intended_in(answers, start, seconds), seconds)
    good = [answer for answer in inside if answer.status == 200]
    failures = Counter(str(answer.status or answer.body.decode()) for answer in inside if answer.status != 200)
    latency = np.array([1000 * (answer.finished - answer.intended) for answer in good])
    answers_read = (json.loads(answer.body) for answer in good)
    timings = [
        content["timing"] for content in answers_read if isinstance(content, dict) and "timing" in content
    ]  # other servers have none
    names = sorted({name for timing in timings for name in timing if name.endswith("_ms")})
    return LoadReport(
        mode=mode,
        clients=clients,
        offered_per_second=rate,
        seconds=counted,
        answered=len(good),
        per_second=len(good) / counted if good else 0.0,
        latency_ms={f"p{q}": float(np.percentile(latency, q)) for q in (50, 95, 99)} if good else {},
        failures=dict(failures),
        wrong=wrong_answers(good, expected) if expected is not None else 0,
        checked=len(good) if expected is not None else 0,
        timing={name: float(np.median([timing[name] for timing in timings])) for name in names},
        overhead_ms=float(np.median([t["total_ms"] - t["prepare_ms"] - t["inference_ms"] for t in timings])) if timings else 0.0,
        batch_size=float(np.mean([timing.get("batch_size", 0) for timing in timings])) if timings else 0.0,
    )


def _finished_in(answers: Sequence[LoadAnswer], start: float, seconds: float) -> tuple[list[LoadAnswer], float]:
    """Answers and the time that they took. Answers come by the batch: so time runs from the last one before `start` to the last one
    before the end, not from and to moments in the middle of a batch."""
    moments = [answer.finished for answer in answers]
    first = max((moment for moment in moments if moment <= start), default=start)
    end = max((moment for moment in moments if moment <= start + seconds), default=start)
    return [answer for answer in answers if first < answer.finished <= end], end - first


def _intended_in(answers: Sequence[LoadAnswer], start: float, seconds: float) -> list[LoadAnswer]:
    return [answer for answer in answers if start <= answer.intended < start + seconds]


async def run(
    url: str,
    pictures: Sequence[bytes],
    *,
    clients: int,
    rate: float | None,
    warm: float,
    seconds: float,
    expected: NDArray[np.float32] | None,
    content_type: str = "image/jpeg",
    header: str = "",
) -> LoadReport:
    target = LoadTarget(url, pictures, content_type, header)
    start = time.monotonic() + warm
    load: Coroutine[Any, Any, None] = open_loop(target, rate, start + seconds) if rate else closed_loop(target, clients, start + seconds)
    await load
    target.close()
    mode: Mode = "open" if rate else "closed"
    return summarise(target.answers, mode=mode, clients=clients, rate=rate, start=start, seconds=seconds, expected=expected)


def main() -> None:
    parser = argparse.ArgumentParser(description="Load POST /v1/classify and print one JSON object.")
    parser.add_argument("--url", required=True, help="for example http://127.0.0.1:8000/v1/classify?model=reference")
    parser.add_argument("--pictures", required=True, type=Path, help="a folder of JPEGs")
    parser.add_argument("--expected", type=Path, help=".npy of off-line scores (pictures, classes) to check every answer against")
    parser.add_argument("--clients", type=int, default=16, help="closed loop: this many clients")
    parser.add_argument("--rate", type=float, help="open loop: this many requests per second")
    parser.add_argument("--warm", type=float, default=1.0, help="seconds before counting starts")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--content-type", default="image/jpeg", help="of the files; another server may want them wrapped in JSON")
    parser.add_argument("--header", default="", help="one more, such as 'X-API-Key: KEY'")
    options = parser.parse_args()
    pictures = [path.read_bytes() for path in sorted(options.pictures.glob("*.jpg"))]
    expected = np.load(options.expected) if options.expected else None
    options_of_load = {"clients": options.clients, "rate": options.rate, "warm": options.warm, "seconds": options.seconds}
    report = uvloop.run(
        run(options.url, pictures, **options_of_load, expected=expected, content_type=options.content_type, header=options.header)
    )
    print(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()
