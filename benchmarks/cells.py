"""Latency of one cell while a part of another is killed: `python -m benchmarks.cells`.

Two cells, each with its Redis, gateway and worker pinned to one CPU, stand behind HAProxy with the shipped configuration. Classifications
by a bundle that computes nothing come to both as a Poisson process, by Idempotency-Keys of which one points at each cell. Then the worker,
the gateway or the Redis of the first cell is killed. HAProxy and the load generator share the CPU of the second cell. The figure is its
p99 after that ÷ p99 before.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import numpy as np
import psutil
import uvloop

from benchmarks import machine, reference
from benchmarks.haproxy import haproxy
from benchmarks.load import LoadAnswer, LoadTarget, open_loop
from server.processes.os_process import die_with_parent
from server.supervisor.private_valkey import find_server

KINDS = ("worker", "gateway", "redis")
RATE = 60.0
"""Requests/s to each cell."""
SECONDS = 20.0
"""Duration before the kill, and after it."""
WARM_SECONDS = 5.0
REDIS_AWAY_S = 1.0
START_SECONDS = 120.0
ALLOWED = 1.5
BUNDLE = "null-5"


@dataclass
class Cell:
    number: int
    cpu: int
    folder: Path
    redis_port: int
    port: int

    def start_redis(self) -> None:
        options = ["--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
        self.redis = self._run([find_server(), "--port", str(self.redis_port), *options])

    def start(self, bundles: Path) -> None:
        self.start_redis()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPSIN_")} | {
            "OPSIN_CELL": str(self.number),
            "OPSIN_REDIS_URL": f"redis://127.0.0.1:{self.redis_port}/0",
            "OPSIN_BUNDLES": str(bundles),
            "OPSIN_STARTERS": "false",
            "OPSIN_CACHE": str(self.folder / "cache"),
            "OPSIN_PORT": str(self.port),
        }
        self.service = self._run([sys.executable, "-P", "-m", "opsin", "serve"], environment)

    def kill(self, kind: str) -> None:
        """Kill a process of the cell. A Redis starts again after a while, the others at once."""
        if kind == "redis":
            self.redis.kill()
            self.redis.wait()
            time.sleep(REDIS_AWAY_S)
            self.start_redis()
            return
        children = psutil.Process(self.service.pid).children(recursive=True)
        [victim] = [child for child in children if f"opsin {kind}" in " ".join(child.cmdline())]
        victim.kill()

    def stop(self) -> None:
        for process in (self.service, self.redis):
            process.terminate()
            process.wait()

    def _run(self, command: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        # pinned first: a Redis that starts again must not take the CPU of the other cell
        pinned = ["taskset", "--cpu-list", str(self.cpu), *die_with_parent(command)]
        return subprocess.Popen(pinned, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextmanager
def cells(folder: Path) -> Iterator[list[Cell]]:
    bundles = folder / "bundles"
    reference.make_null_bundle(bundles, BUNDLE, 5.0)
    cpus = sorted(os.sched_getaffinity(0))
    both = [Cell(number, cpus[number % len(cpus)], folder / str(number), _free_port(), _free_port()) for number in range(2)]
    with ExitStack() as stack:
        for cell in both:
            cell.folder.mkdir()
            cell.start(bundles)
            stack.callback(cell.stop)
        for cell in both:
            _await_ready(f"http://127.0.0.1:{cell.port}")
        yield both


def key_of_each(url: str, image: bytes) -> list[str]:
    """Return an Idempotency-Key that points at each cell."""
    found: dict[str, str] = {}
    with httpx2.Client(base_url=url, timeout=60) as client:
        for number in range(100):
            headers = {"Prefer": "respond-async", "Idempotency-Key": f"key-{number}", "Content-Type": "image/jpeg"}
            job = client.post("/v1/classify", content=image, headers=headers).raise_for_status().json()
            found.setdefault(job["id"][:2], f"key-{number}")
    return [found["00"], found["01"]]


async def measure(url: str, keys: list[str], image: bytes, rate: float, seconds: float, cell: Cell, kind: str) -> list[list[LoadAnswer]]:
    """Load both cells, and kill a process of one in the middle. Return the answers of each cell."""
    targets = [LoadTarget(f"{url}/v1/classify", [image], header=f"Idempotency-Key: {key}") for key in keys]
    until = time.monotonic() + WARM_SECONDS + 2 * seconds
    loads = [asyncio.create_task(open_loop(target, rate, until, seed)) for seed, target in enumerate(targets)]
    await asyncio.sleep(WARM_SECONDS + seconds)
    await asyncio.to_thread(cell.kill, kind)
    await asyncio.gather(*loads)
    for target in targets:
        target.close()
    return [target.answers for target in targets]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cells", description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=RATE, help="requests/s to each cell")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="before the kill, and after it")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()

    machine.show()
    figures = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        reference.write_small_pictures(folder / "pictures", 1)
        [picture] = (folder / "pictures").iterdir()
        image = picture.read_bytes()
        with cells(folder) as (first, second), ExitStack() as stack:
            os.sched_setaffinity(0, {second.cpu})  # with HAProxy: else they would share it only while the first cell's CPU is busy
            url = stack.enter_context(haproxy([[first.port], [second.port]]))
            _await_ready(url)
            keys = key_of_each(url, image)
            for kind in KINDS:
                middle = time.monotonic() + WARM_SECONDS + arguments.seconds
                killed, other = uvloop.run(measure(url, keys, image, arguments.rate, arguments.seconds, first, kind))
                before = _p99([one for one in other if middle - arguments.seconds <= one.intended < middle])
                after = _p99([one for one in other if one.intended >= middle])
                refused = [sum(one.status != 200 for one in answers) for answers in (killed, other)]
                figures[kind] = {"before_ms": before, "after_ms": after, "ratio": after / before, "refused": refused}
                print(
                    f"{kind:<8} p99 of the other cell {before:.1f} → {after:.1f} ms, ratio {after / before:.2f} (allowed: {ALLOWED}); "
                    f"refused {refused[0]} of {len(killed)} in the killed cell, {refused[1]} of {len(other)} in the other",
                    flush=True,
                )
                _await_ready(f"http://127.0.0.1:{first.port}")
    if arguments.json:
        machine.write_result(parser.prog, figures, arguments.json)
    return 0


def _p99(answers: list[LoadAnswer]) -> float:
    return float(np.percentile([1000 * (one.finished - one.intended) for one in answers], 99))


def _await_ready(url: str) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            if httpx2.get(f"{url}/health/ready", timeout=5).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        if time.monotonic() > until:
            raise TimeoutError(f"{url} is not ready after {START_SECONDS:.0f} s")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
