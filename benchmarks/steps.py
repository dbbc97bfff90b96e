"""Jobs of several steps: `python -m benchmarks.steps`. Ratios of one run, over HTTP, with bounds that are read in turns with them.

a. Saturation: steps/s (jobs × steps) of the worker ÷ those of the bare loop at its best batch size, for jobs of 10, 50 and 250 steps;
   and ÷ those of the same loop with as much background load as HTTP, queue and load generator cause: the CPUs of many machines are two
   threads of one core, and what one does slows the other down.
b. Turns: the 99th percentile of a classification during saturating steps, against the longest step (of the loop with background load)
   + 1.5 × that percentile alone.

Worker and bare loop have one torch thread: the other CPUs carry HTTP, queue and load. With `--threads 0` both take all CPUs, and the
service shares them with the load, which the bare loop does not.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import numpy as np
import psutil
from PIL import Image

from benchmarks import machine, reference
from benchmarks.service import running

TOTALS = (10, 50, 250)
TOY, SHORT = "toy", "short"
SHORT_MS = 5.0
CLIENTS = 128
"""Enough for full batches at every moment."""
TIMEOUT = 300.0
METRIC = re.compile(r"^opsin_steps_total\{.*\} ([0-9.e+]+)$", re.MULTILINE)


@dataclass
class StepFigures:
    """Figures of all rounds."""

    served: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    bare_under_load: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    """CPUs that everything but the worker took."""
    p99_alone: list[float] = field(default_factory=list)
    p99_under_load: list[float] = field(default_factory=list)
    longest_step: list[float] = field(default_factory=list)


class StepLoadClient:
    """Requests of one round."""

    def __init__(self, url: str, metrics: str) -> None:
        self._metrics = metrics
        self.http = httpx2.AsyncClient(base_url=url, timeout=TIMEOUT, limits=httpx2.Limits(max_connections=1000))
        self._numbers = count()

    async def toy(self, total: int) -> float:
        """Seconds of one job of so many steps."""
        return await self._ask(TOY, plain_image(TOTALS.index(total) + 3 * (next(self._numbers) % 80)))

    async def short(self) -> float:
        return await self._ask(SHORT, plain_image(1))

    async def steps(self) -> float:
        """Taken so far, as the worker counts them."""
        answer = await self.http.get(self._metrics)
        return sum(map(float, METRIC.findall(answer.text)))

    async def _ask(self, model: str, image: bytes) -> float:
        started_at, patience = time.monotonic(), {"X-Request-Timeout": f"{TIMEOUT:.0f}"}
        answer = await self.http.post("/v1/classify", params={"model": model}, content=image, headers=patience)
        answer.raise_for_status()
        return time.monotonic() - started_at


class SaturatingLoad:
    """Load of as many jobs of mixed lengths as clients, during the `async with` block."""

    def __init__(self, asking: StepLoadClient) -> None:
        self._asking = asking
        self._clients: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> None:
        self._clients = [asyncio.create_task(self._client(number)) for number in range(CLIENTS)]
        await asyncio.sleep(2.0)

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await asyncio.sleep(1.0)  # the worker drops abandoned jobs

    async def _client(self, number: int) -> None:
        for turn in count(number):
            await self._asking.toy(TOTALS[turn % len(TOTALS)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--threads", type=int, default=1, help="of the worker and of the bare loop; 0: as many as CPUs")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    machine.show()
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as name:
        figures = measure(Path(name), options.rounds, options.seconds, options.threads)
    show(figures)
    if options.json:
        machine.write_result(parser.prog, {"figures": vars(figures)}, options.json)


def measure(folder: Path, rounds: int, seconds: float, threads: int) -> StepFigures:
    bundles, figures = folder / "bundles", StepFigures()
    toy = reference.make_null_bundle(bundles, TOY, 0.0, steps=list(TOTALS), width=768, layers=6)
    reference.make_null_bundle(bundles, SHORT, SHORT_MS)
    port = free_port()
    with running(bundles, metrics_port=port, cache=folder / "cache", threads=threads) as url:
        for _ in range(rounds):
            bounds = bare(toy.path, threads)
            asyncio.run(one_round(url, f"http://127.0.0.1:{port}/metrics", bounds, seconds, figures))
            under_load = bare(toy.path, threads, figures.others[-1] if threads == 1 else 0.0)["bounds"]
            best = max(under_load, key=lambda bound: bound["steps_per_second"])
            figures.bare_under_load.append(best["steps_per_second"])
            figures.longest_step.append(max(bound["longest"] for bound in under_load if bound["size"] <= best["size"]))
    return figures


async def one_round(url: str, metrics: str, bounds: dict[str, Any], seconds: float, figures: StepFigures) -> None:
    asking = StepLoadClient(url, metrics)
    best = max(bounds["bounds"], key=lambda bound: bound["steps_per_second"])
    async with asking.http:
        alone = [await asking.short() for _ in range(int(seconds * 20))]
        async with SaturatingLoad(asking):
            started_at, before, spent = time.monotonic(), await asking.steps(), others_seconds()
            await asyncio.sleep(seconds)
            took = time.monotonic() - started_at
            served, others = (await asking.steps() - before) / took, (others_seconds() - spent) / took
            under_load = [await asking.short() for _ in range(int(seconds * 20))]
    figures.served.append(served)
    figures.bare.append(best["steps_per_second"])
    figures.p99_alone.append(percentile(alone, 99))
    figures.p99_under_load.append(percentile(under_load, 99))
    figures.others.append(others)


def others_seconds() -> float:
    """CPU seconds of this process, which is the load, and of the service's processes but its workers."""
    me = psutil.Process()
    processes = [me, *(child for child in me.children(recursive=True) if "opsin worker" not in " ".join(child.cmdline()))]
    return float(sum(sum(process.cpu_times()[:2]) for process in processes))


def bare(bundle: Path, threads: int, under_load: float = 0.0) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.step_bounds", str(bundle), "--beside", f"{under_load:.3f}"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ | {"OPSIN_THREADS": str(threads)})
    bounds: dict[str, Any] = json.loads(finished.stdout)
    return bounds


def plain_image(value: int) -> bytes:
    """Encode a PNG of one colour, which resizing does not change."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(values, share))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def show(figures: StepFigures) -> None:
    saturation = [served / bare for served, bare in zip(figures.served, figures.bare, strict=True)]
    allowed = [step + 1.5 * alone for step, alone in zip(figures.longest_step, figures.p99_alone, strict=True)]
    turns = [under_load / limit for under_load, limit in zip(figures.p99_under_load, allowed, strict=True)]
    ratios_under_load = [served / bare for served, bare in zip(figures.served, figures.bare_under_load, strict=True)]
    print(f"a. steps/s, served ÷ bare loop           {spread(saturation)}  ({spread(figures.served, 0)} ÷ {spread(figures.bare, 0)})")
    print(
        f"   ÷ bare loop with background load      {spread(ratios_under_load)}  (÷ {spread(figures.bare_under_load, 0)}; others take "
        f"{spread(figures.others, 2)} CPUs)"
    )
    parts = f"{_ms(figures.p99_under_load)} ÷ {_ms(allowed)}; alone {_ms(figures.p99_alone)}"
    print(f"b. p99 of a classification ÷ allowed     {spread(turns)}  ({parts})")


def spread(values: Sequence[float], digits: int = 3) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def _ms(values: Sequence[float]) -> str:
    return spread([1000 * value for value in values], 1) + " ms"


if __name__ == "__main__":
    main()
