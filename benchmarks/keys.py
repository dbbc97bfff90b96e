"""Measures what API keys cost and what their limits let through: `python -m benchmarks.keys [cost] [items] [rate]`.

One queue, one worker whose model costs nothing, and gateways of their own for each part: what differs is their file of keys.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import redis
from rich.console import Console
from starlette.responses import Response

from benchmarks import machine, reference
from benchmarks.serving import burst
from server.gateway.auth.key_file import ApiKey, digest_of, line_of, new_key
from server.gateway.auth.middleware import Authentication, KeyRing, Rates
from server.http.client_identity import owner_of
from server.http.problems import Problem
from server.processes.os_process import tied_to_parent
from server.queue.keys import Keyspace
from server.supervisor.private_valkey import PrivateValkey

NULL = "null-0"
SLOW = "null-20"
"""Name of a model whose batches take 20 ms, so that items stay unfinished for a while."""
CLIENTS = 16
PROCESSES = 3
"""Gateways of each kind, in turns: two of one kind differ by some percent, by where their memory lies."""
START_S = 120.0
REQUESTS = 10_000
LIMITS = {"few": 4, "some": 16, "many": 64}
"""Most unfinished items by name; each sends three times as many at once."""
RATE, RATE_S = 50, 30.0
LAYER_ROUNDS, LAYER_REQUESTS = 9, 20_000
PARTS = ("cost", "items", "rate")


class Queue:
    """A private Valkey, a worker, and as many gateways as are asked for."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack, self._folder, self._gateways = stack, folder, 0
        valkey = PrivateValkey()
        valkey.start()
        stack.callback(valkey.stop)
        self.url = valkey.url
        reference.make_null_bundle(folder / "bundles", NULL, 0.0)
        reference.make_null_bundle(folder / "bundles", SLOW, float(SLOW.rpartition("-")[2]))
        self._start("worker", OPSIN_BUNDLES=str(folder / "bundles"), OPSIN_METRICS_PORT="0")

    def gateway(self, keys: Sequence[tuple[ApiKey, str]] | None = None) -> tuple[str, psutil.Process]:
        """Start another gateway and return its address and process when it is ready. keys: of its file, None for no file."""
        file = {}
        self._gateways += 1
        if keys is not None:
            path = self._folder / f"keys-{self._gateways}"
            path.write_text("".join(f"{line_of(key, digest_of(text.encode()))}\n" for key, text in keys))
            file = {"OPSIN_API_KEYS_FILE": str(path)}
        port = _free_port()
        process = self._start("gateway", OPSIN_PORT=str(port), OPSIN_MAX_CONNECTIONS="2048", OPSIN_DEFAULT_MODELS__CLASSIFY=NULL, **file)
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        while not _is_ready(url):
            if time.monotonic() > until:
                raise TimeoutError(f"no gateway within {START_S:.0f} s")
            time.sleep(0.1)
        return url, process

    def _start(self, kind: str, **settings: str) -> psutil.Process:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPSIN_")}
        environment |= {"OPSIN_REDIS_URL": self.url, "OPSIN_LOG_LEVEL": "ERROR", **settings}
        process = subprocess.Popen(tied_to_parent([sys.executable, "-m", "opsin", kind]), env=environment)
        self._stack.callback(_end, process)
        return psutil.Process(process.pid)


def cost(queue: Queue, pictures: Path, rounds: int, seconds: float, console: Console) -> None:
    """Requests/s with keys ÷ without, in turns, and the gateways' CPU time for a request."""
    key = new_key()
    others = [(ApiKey(f"other-{number}", max_items=9, rate=9.0), new_key()) for number in range(99)]
    limited = ApiKey("limited", max_items=512, rate=1e6)
    headers = {"off": (), "on": ("--header", f"Authorization: Bearer {key}")}
    running = {
        "off": [queue.gateway() for _ in range(PROCESSES)],
        "on": [queue.gateway([*others, (limited, key)]) for _ in range(PROCESSES)],
    }
    per_second: dict[str, list[float]] = {name: [] for name in running}
    per_request: dict[str, list[float]] = {name: [] for name in running}
    for number in range(-PROCESSES, rounds):  # those below 0 warm up
        for name in sorted(running, reverse=number % 2 == 0):
            url, process = running[name][number % PROCESSES]
            before = _cpu(process)
            report = burst(url, NULL, pictures, ["--clients", CLIENTS, "--warm", 0, "--seconds", seconds, *headers[name]])
            if number >= 0:
                per_second[name].append(report.per_second)
                per_request[name].append((_cpu(process) - before) * 1e6 / report.answered)
    ratios = [on / off for on, off in zip(per_second["on"], per_second["off"], strict=True)]
    summaries = (
        f"{name}: {statistics.median(per_second[name]):.0f} requests/s, {statistics.median(per_request[name]):.0f} µs of CPU in the gateway"
        for name in running
    )
    console.print(
        f"keys on ÷ off, {len(others) + 1} keys, {CLIENTS} clients, {rounds} rounds of {seconds:g} s: requests/s median "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); {'; '.join(summaries)}"
    )


def layer(console: Console) -> None:
    """Microseconds that the layer itself takes for a request, on one CPU: whatever else the machine does."""
    key, holder = new_key(), ApiKey("limited", rate=1e8)
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
        file.write(line_of(holder, digest_of(key.encode())))
        file.flush()
        rings = {"off": None, "on": KeyRing(Path(file.name))}
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"image/jpeg"), (b"content-length", b"1000")]
    sent = {"off": headers, "on": [*headers, (b"authorization", f"Bearer {key}".encode())]}
    spent: dict[str, float] = {}
    for name, ring in rings.items():
        ask: Any = Authentication(lambda *_: None, ring, Rates(lambda: 2), _fail_unexpected)  # type: ignore[arg-type, return-value]
        best = []
        for _ in range(LAYER_ROUNDS):
            before = time.process_time()
            for _ in range(LAYER_REQUESTS):
                ask({"type": "http", "path": "/v1/classify", "headers": sent[name], "state": {"client": "127.0.0.1"}}, None, None)
            best.append((time.process_time() - before) * 1e6 / LAYER_REQUESTS)
        spent[name] = min(best)
    console.print(f"the layer alone, best of {LAYER_ROUNDS}: {spent['on']:.1f} µs of CPU a request with keys, {spent['off']:.1f} without")


def items(queue: Queue, pictures: Path, console: Console) -> None:
    """Print the maximum number of unfinished items of each name, polling the queue's own count without a pause."""
    holders = [(ApiKey(name, max_items=limit), new_key()) for name, limit in LIMITS.items()]
    urls = [queue.gateway(holders)[0] for _ in range(2)]
    image = next(pictures.iterdir()).read_bytes()
    counts: Counter[str] = Counter()
    statuses = {name: Counter[int]() for name in LIMITS}

    async def ask() -> None:
        left = iter(range(REQUESTS))
        async with httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=None)) as client:

            async def client_of(name: str, key: str, number: int) -> None:
                for _ in left:
                    url = f"{urls[number % 2]}/v1/classify?model={SLOW}"
                    answer = await client.post(url, content=image, headers={"X-API-Key": key, "Content-Type": "image/jpeg"})
                    statuses[name][answer.status_code] += 1

            await asyncio.gather(*(client_of(key.name, text, number) for key, text in holders for number in range(3 * key.max_items)))

    with _watching(queue.url, counts) as looks:
        asyncio.run(ask())
    summary = ", ".join(f"{name} {counts[owner_of(name)]} of {limit} ({dict(statuses[name])})" for name, limit in LIMITS.items())
    console.print(
        f"max_items over {REQUESTS} requests through two gateways: most unfinished items of each name: {summary}; {looks[0]} looks"
    )


def rate(queue: Queue, console: Console) -> None:
    """Print how many requests are admitted while too many are sent to each of two gateways."""
    holder, key = ApiKey("hasty", rate=RATE), new_key()
    urls = [queue.gateway([(holder, key)])[0] for _ in range(2)]
    time.sleep(3.0)  # gateways count each other once a second
    statuses: Counter[int] = Counter()
    until = time.monotonic() + RATE_S

    async def ask() -> None:
        async with httpx2.AsyncClient(timeout=60, headers={"X-API-Key": key}) as client:

            async def client_of(url: str) -> None:
                while time.monotonic() < until:
                    statuses[(await client.get(f"{url}/v1/models")).status_code] += 1
                    await asyncio.sleep(0.01)

            await asyncio.gather(*(client_of(urls[number % 2]) for number in range(8)))

    asyncio.run(ask())
    allowed = RATE * RATE_S
    summary = f"{statuses[200]} of {allowed:g} let through ({statuses[200] / allowed:.3f}), {statuses[429]} refused"
    console.print(f"rate={RATE} for {RATE_S:g} s through two gateways: {summary}")


def _fail_unexpected(problem: Problem, _scope: object) -> Response:
    raise RuntimeError(f"a request was refused that should not have been: {problem}")


@contextmanager
def _watching(url: str, counts: Counter[str]) -> Iterator[list[int]]:
    """Update `counts` with the maximum number of unfinished items by owner, in a thread. Yield the number of polls."""
    ended, looks = threading.Event(), [0]
    name = Keyspace().name("queue:owners")

    def look() -> None:
        with redis.Redis.from_url(url) as client:
            while not ended.is_set():
                for owner, sums in client.hgetall(name).items():
                    counts[owner.decode()] = max(counts[owner.decode()], int(sums.split()[0]))
                looks[0] += 1

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield looks
    finally:
        ended.set()
        watcher.join()


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health/ready", timeout=5).is_success
    except httpx2.HTTPError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.keys", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="parts to run (default: all)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=4.0, help="of load per measurement")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150, soft_wrap=True)
    console.print(*machine.describe().lines(), sep="\n")
    for part in options.parts or PARTS:  # each with gateways of its own: a rate is divided by all that live
        with tempfile.TemporaryDirectory(prefix="opsin-bench-") as name, ExitStack() as stack:
            folder = Path(name)
            reference.write_small_pictures(folder / "small")
            queue = Queue(stack, folder)
            if part == "cost":
                layer(console)
                cost(queue, folder / "small", options.rounds, options.seconds, console)
            elif part == "items":
                items(queue, folder / "small", console)
            else:
                rate(queue, console)


if __name__ == "__main__":
    main()
