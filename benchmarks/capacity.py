"""How well `opsin capacity` predicts: `python -m benchmarks.capacity`, whose table docs/scaling.md shows.

One worker with one slot serves two classifiers. From what the service measures of itself at half of its capacity, the command's arithmetic
predicts other rates, at which the same figures are then measured: by the service's own statistics, the system's CPU times and Redis' INFO.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import httpx2
from rich.console import Console

from benchmarks import machine, reference, service
from benchmarks.load import LoadReport
from benchmarks.serving import burst
from opsin.cli.capacity.measurements import MIN_ITEMS, MeasuredService, measure
from opsin.cli.capacity.plan import CapacityRequest, plan
from opsin.connection import ServiceConnection

FLAGS = Path(__file__).resolve().parent.parent / "bundles" / "flags"
MIX = {reference.NAME: 1.0, FLAGS.name: 2.0}
CALIBRATION_LOAD = 0.5
LOADS = (0.3, 0.6, 0.8)
"""Shares of the predicted capacity that are measured."""
CLIENTS = 8
WARM_S = 3.0
JOBS = 1000
"""Asynchronous jobs whose results' memory is measured; a quarter of them run before the prediction."""
Found = TypeVar("Found")


@dataclass(frozen=True)
class CapacityCheck:
    """One figure, predicted and measured."""

    load: str
    figure: str
    unit: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class MeasuredLoad:
    """Figures of a service under one load."""

    rates: dict[str, float]
    """Items per second that came, by bundle: random arrivals differ from the rate that was offered."""
    busy: float
    """Share of the time in which the slot ran batches."""
    gateway_cores: float
    memory_bytes: float
    """Memory of Redis that 1 % of the samples exceed."""
    p99_ms: float


@dataclass(frozen=True)
class CapacityBenchmark:
    """A running service, and what is sent to it."""

    running: service.ObservedService
    pictures: Path
    seconds: float
    """Duration of each load."""

    def saturate(self, model: str) -> float:
        """Return the items/s of one bundle in a closed loop."""
        options = ["--clients", CLIENTS, "--warm", WARM_S, "--seconds", self.seconds / 2]
        return burst(self.running.url, model, self.pictures, options).per_second

    def offer(self, rate: float, observe: Callable[[], Found]) -> tuple[Found, list[LoadReport]]:
        """Offer the mix at `rate` items/s in an open loop, and return what `observe` finds in that time."""
        with ThreadPoolExecutor(len(MIX)) as pool:
            loads: list[Future[LoadReport]] = []
            for model, weight in MIX.items():
                options = ["--rate", rate * weight / sum(MIX.values()), "--warm", WARM_S, "--seconds", self.seconds + 1]
                loads.append(pool.submit(burst, self.running.url, model, self.pictures, options))
            time.sleep(WARM_S)
            found = observe()
            wait(loads)
            return found, [load.result() for load in loads]

    def calibrate(self, rate: float) -> MeasuredService:
        """Let the service measure itself at `rate` items/s, for long enough that each bundle gets its number of items."""
        rarest = min(MIX.values()) / sum(MIX.values())
        longer = replace(self, seconds=max(self.seconds, 1.5 * MIN_ITEMS / rate / rarest))
        return longer.offer(rate, lambda: self.read(longer.seconds))[0]

    def measure_load(self, rate: float) -> MeasuredLoad:
        samples: list[float] = []
        with ThreadPoolExecutor(1) as pool, self.running.redis() as client:

            def observe() -> tuple[MeasuredService, float]:
                reading, started = pool.submit(self.read, self.seconds), self.running.cpu_seconds()["gateway"]
                while not reading.done():
                    samples.append(service.used_memory(client))
                    time.sleep(0.05)
                return reading.result(), self.running.cpu_seconds()["gateway"] - started

            (found, spent), reports = self.offer(rate, observe)
        busy_s = sum(bundle.batch_seconds for bundle in found.bundles) / found.slots
        answered = [(report.answered, report.latency_ms["p99"]) for report in reports]
        p99_ms = sum(count * p99 for count, p99 in answered) / sum(count for count, _ in answered)
        memory = sorted(samples)[math.ceil(0.99 * len(samples)) - 1]
        rates = {bundle.id: bundle.items / self.seconds for bundle in found.bundles}
        return MeasuredLoad(rates, busy_s / self.seconds, spent / self.seconds, memory, p99_ms)

    def read(self, window_s: float) -> MeasuredService:
        connection = ServiceConnection(self.running.url, None, 60.0, 2, None)
        with connection.http:
            return measure(connection, window_s)

    def run_jobs(self, count: int) -> None:
        """Run asynchronous jobs to their end."""
        pictures = [path.read_bytes() for path in sorted(self.pictures.iterdir())]
        headers = {"Prefer": "respond-async", "Content-Type": "image/jpeg"}
        with httpx2.Client(base_url=self.running.url, timeout=60) as client:
            for number in range(count):
                picture = pictures[number % len(pictures)]
                client.post("/v1/classify", params={"model": FLAGS.name}, content=picture, headers=headers).raise_for_status()
            while any(client.get("/v1/status").raise_for_status().json()["jobs"].values()):
                time.sleep(0.2)


def check(benchmark: CapacityBenchmark, console: Console) -> list[CapacityCheck]:
    """Predict and measure."""
    benchmark.run_jobs(JOBS // 4)
    saturated = {model: benchmark.saturate(model) for model in MIX}
    half = CALIBRATION_LOAD * sum(MIX.values()) / sum(weight / saturated[model] for model, weight in MIX.items())
    measured = benchmark.calibrate(half)
    capacity = plan(measured, CapacityRequest(1.0, MIX)).workers.items_per_second
    console.print(f"calibrated at {half:.1f} items/s: one worker can run {capacity:.1f} items/s of the mix {MIX}")
    kept_bytes = (measured.result_bytes or 0.0) * (JOBS // 4)
    checks = []
    for load in LOADS:
        found = benchmark.measure_load(load * capacity)
        rate = sum(found.rates.values())
        predicted = plan(measured, CapacityRequest(rate, found.rates, workers=1))
        label = f"{rate:.0f} items/s ({predicted.workers.load:.0%})"
        checks += [
            CapacityCheck(label, "slot busy", "%", 100 * predicted.workers.busy, 100 * found.busy),
            CapacityCheck(label, "CPU of gateways", "% of a core", 100 * predicted.gateways.cores, 100 * found.gateway_cores),
            CapacityCheck(label, "Redis memory", "MB", (predicted.redis.memory_bytes + kept_bytes) / 1e6, found.memory_bytes / 1e6),
            CapacityCheck(label, "p99", "ms", 1000 * predicted.workers.p99_s, found.p99_ms),
        ]
    alone = plan(measured, CapacityRequest(1.0, {reference.NAME: 1.0})).workers.items_per_second
    label = f"{CLIENTS} clients"
    checks.append(CapacityCheck(label, f"capacity for {reference.NAME}", "items/s", alone, saturated[reference.NAME]))
    with benchmark.running.redis() as client:
        before = service.used_memory(client)
        benchmark.run_jobs(JOBS)
        grown = service.used_memory(client) - before
    checks.append(CapacityCheck(f"{JOBS} jobs", "memory of results", "KB", JOBS * (measured.result_bytes or 0.0) / 1e3, grown / 1e3))
    return checks


def markdown(checks: Sequence[CapacityCheck]) -> str:
    """Return the table of docs/scaling.md."""
    rows = ["| load | figure | predicted | measured | difference |", "|---|---|---|---|---|"]
    for row in checks:
        values = " | ".join(
            f"{value:,.0f} {row.unit}" if value >= 100 else f"{value:.3g} {row.unit}" for value in (row.predicted, row.measured)
        )
        rows.append(f"| {row.load} | {row.figure} | {values} | {row.error:+.0%} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("--seconds", type=float, default=25.0, help="of each load")
    parser.add_argument("--json", type=Path, help="write the figures here (default: a file in benchmarks/results/)")
    options = parser.parse_args()
    console = machine.show()
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as name:
        folder = Path(name)
        reference.make_bundle(folder / "bundles")
        shutil.copytree(FLAGS, folder / "bundles" / FLAGS.name)
        reference.write_pictures(folder / "pictures")
        with service.observe(folder / "bundles", workers=1, threads=1, gateways=1) as running:
            checks = check(CapacityBenchmark(running, folder / "pictures", options.seconds), console)
    largest = max((row for row in checks if row.figure != "p99"), key=lambda row: abs(row.error))
    print(markdown(checks), f"largest difference, without p99: {largest.error:+.0%}, {largest.figure} at {largest.load}", sep="\n\n")
    machine.write_result(parser.prog, {"checks": checks}, options.json)


if __name__ == "__main__":
    main()
