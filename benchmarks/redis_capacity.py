"""Capacity of one Redis: `python -m benchmarks.redis_capacity`, whose table docs/scaling.md shows.

A model that costs nothing, images whose arrays have 4 to 600 KB in the queue, 1 to 4 gateways: requests/s, CPU time of each kind of process
for one of them, and bytes through Redis. Client, gateways, worker and Redis share the CPUs, so requests/s say little about Redis alone; its
CPU time for a request says how many requests it could carry on a core of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from benchmarks import machine, reference, service
from benchmarks.serving import burst

SIZES = (36, 115, 224, 448)
"""Image sizes whose arrays have about 4, 40, 150 and 600 KB."""
GATEWAYS = (1, 2, 3, 4)
CLIENTS = 16
WARM_S = 2.0
HOLD_MS = 1000.0
"""Duration of batches while the memory of unfinished jobs is measured."""
HOLDERS = 64
"""Unfinished jobs while their memory is measured."""
QUIET_S = 2.0
"""Time after which the last jobs have left Redis."""
LOAD = 0.7
"""Share of a core that Redis is planned to use."""


@dataclass(frozen=True)
class RedisFigure:
    """One burst of requests."""

    gateways: int
    payload_bytes: int
    per_second: float
    cpu_us: dict[str, float]
    """Microseconds of CPU per request, by kind of process."""
    redis_bytes: float
    """Bytes through Redis per request, in both directions."""
    p99_ms: float

    @property
    def redis_per_second(self) -> float:
        """Requests/s at which Redis uses `LOAD` of a core: an extrapolation."""
        return LOAD * 1e6 / self.cpu_us["queue"]


def payload_bytes(size: int) -> int:
    return 3 * size * size


def measure(folder: Path, gateways: int, sizes: Sequence[int], seconds: float) -> list[RedisFigure]:
    """Measure all payloads with one service."""
    figures = []
    with service.observe(folder / "null", gateways=gateways) as running, running.redis() as client:
        for size in sizes:
            options = ["--clients", CLIENTS, "--warm", WARM_S, "--seconds", seconds]
            traffic, spent = _traffic(client), running.cpu_seconds()
            report = burst(running.url, f"null-{size}", folder / str(size), options)
            requests = report.per_second * (WARM_S + seconds)
            cpu_us = {name: (after - spent[name]) * 1e6 / requests for name, after in running.cpu_seconds().items()}
            nbytes = (_traffic(client) - traffic) / requests
            figures.append(RedisFigure(gateways, payload_bytes(size), report.per_second, cpu_us, nbytes, report.latency_ms["p99"]))
    return figures


def _traffic(client: redis.Redis) -> int:
    counters: Any = client.info("stats")
    return int(counters["total_net_input_bytes"] + counters["total_net_output_bytes"])


def memory_of_unfinished(folder: Path, sizes: Sequence[int]) -> dict[int, float]:
    """Bytes of memory of one unfinished job, by the bytes of its arrays; and of an idle Redis, under 0."""
    with service.observe(folder / "hold") as running, running.redis() as client:
        memory: dict[int, float] = {}
        for size in sizes:
            before = service.used_memory(client)
            with _peak_memory(client) as peak:
                burst(running.url, f"hold-{size}", folder / str(size), ["--clients", HOLDERS, "--warm", 0, "--seconds", 3 * HOLD_MS / 1000])
            memory[payload_bytes(size)] = (peak[0] - before) / HOLDERS
        time.sleep(QUIET_S)
        return memory | {0: service.used_memory(client)}


@contextmanager
def _peak_memory(client: redis.Redis) -> Iterator[list[float]]:
    """Yield a list whose only element is the largest memory, after the block."""
    peak, done = [0.0], threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], service.used_memory(client))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield peak
    finally:
        done.set()
        sampler.join()


def markdown(figures: Sequence[RedisFigure]) -> str:
    """Return the table of docs/scaling.md."""
    rows = [
        "| payload | gateways | requests/s | CPU per request: Redis | gateways | worker | through Redis | p99 | Redis at 70 % of a core |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for figure in sorted(figures, key=lambda figure: (figure.payload_bytes, figure.gateways)):
        cpu = " | ".join(f"{figure.cpu_us[name] / 1000:.2f} ms" for name in ("queue", "gateway", "worker"))
        traffic = figure.redis_bytes * figure.per_second / 1e6
        rows.append(
            f"| {figure.payload_bytes / 1000:.0f} KB | {figure.gateways} | {figure.per_second:,.0f} | {cpu} | {traffic:.0f} MB/s "
            f"| {figure.p99_ms:.0f} ms | {figure.redis_per_second:,.0f}/s |"
        )
    return "\n".join(rows)


def constants(figures: Sequence[RedisFigure], memory: dict[int, float]) -> str:
    """Return what opsin/cli/capacity/redis_figures.py should hold."""
    sizes = sorted({figure.payload_bytes for figure in figures})
    cpu = {size: max(figure.cpu_us["queue"] for figure in figures if figure.payload_bytes == size) / 1e6 for size in sizes}
    lines = [f"CPU_S = {{{', '.join(f'{size:_}: {seconds:.6f}' for size, seconds in cpu.items())}}}"]
    unfinished = ", ".join(f"{size:_}: {memory[size]:_.0f}" for size in sizes)
    lines += [f"MEMORY_BYTES = {{{unfinished}}}", f"IDLE_BYTES = {memory[0]:_.0f}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.redis_capacity", description=__doc__)
    parser.add_argument("--gateways", type=int, nargs="+", default=list(GATEWAYS))
    parser.add_argument("--seconds", type=float, default=8.0, help="of counted load per measurement")
    parser.add_argument("--json", type=Path, help="write the figures here (default: a file in benchmarks/results/)")
    options = parser.parse_args()
    console = machine.show()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as name:
        folder = Path(name)
        for size in SIZES:
            reference.make_null_bundle(folder / "null", f"null-{size}", 0.0, image_size=size)
            reference.make_null_bundle(folder / "hold", f"hold-{size}", HOLD_MS, image_size=size)
            reference.write_small_pictures(folder / str(size), size=(size * 8 // 7, size * 8 // 7))
        figures = []
        for gateways in options.gateways:
            figures += measure(folder, gateways, SIZES, options.seconds)
            console.print(f"{gateways} gateways after {time.monotonic() - started:.0f} s")
        memory = memory_of_unfinished(folder, SIZES)
    print(markdown(figures), "", constants(figures, memory), sep="\n")
    machine.write_result(parser.prog, {"figures": figures, "memory": memory}, options.json)


if __name__ == "__main__":
    main()
