"""Inpainting with DiffMAE: `python -m benchmarks.inpainting`. Random weights of fixed seeds; ratios of one run, taken in turns.

a. Jobs of 10, 50 and 250 steps that come at random times (Poisson, at a share of the capacity just measured): jobs/s and mean latency by
   length, of the service over HTTP, of static batches (rows that have finished leave, nobody joins) and of one job at a time with all
   threads. These two are bare loops with the same arrivals, without HTTP, decoding and queue.
b. Caching: seconds of a step ÷ seconds where encoder, keys and values are computed for each step again, beside the same ratio of FLOPs.
c. A classification beside running inpainting: median and 99th percentile, beside those alone and the longest step.
d. Steps/s (jobs × steps) of the saturated worker ÷ those of the bare loop at its best batch size, at batch size 1 (one job at a time), and
   of static batches, computed from the bare loop's step times: where rows that have finished leave, and where they stay (padded).

Worker and bare loops have one torch thread: the other CPUs carry HTTP, queue and load. With `--threads 0` all take all CPUs, and the
service shares them with the load, which the bare loops do not.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks import machine, reference
from benchmarks.service import running
from benchmarks.static_batches import steps_per_second
from benchmarks.steps import METRIC, free_port, percentile, spread, step_seconds
from models.bundle import Bundle, BundleSpec, Preprocess, Weights

TOTALS = (10, 50, 250)
SMALL, SHORT = "small", "short"
SHORT_MS = 5.0
SIDE = 96
"""Of the small model's images."""
CLIENTS = 32
TIMEOUT = 600.0
POLICIES = ("service", "static", "one")


@dataclass
class Figures:
    """By round."""

    latency: dict[str, dict[int, list[float]]] = field(default_factory=lambda: {name: {steps: [] for steps in TOTALS} for name in POLICIES})
    """Mean seconds, by policy and number of steps."""
    jobs_per_second: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in POLICIES})
    caching: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """By model."""
    alone: list[list[float]] = field(default_factory=list)
    """Median and 99th percentile in seconds."""
    beside: list[list[float]] = field(default_factory=list)
    longest_step: list[float] = field(default_factory=list)
    served: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    one_at_a_time: list[float] = field(default_factory=list)
    leaving: list[float] = field(default_factory=list)
    """Steps/s of static batches whose rows leave."""
    padded: list[float] = field(default_factory=list)


class Asking:
    def __init__(self, url: str, metrics: str) -> None:
        self._metrics = metrics
        self.http = httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=httpx.Limits(max_connections=1000))
        self._image = picture()
        self._seeds = count()

    async def inpaint(self, steps: int) -> None:
        asked = {"model": SMALL, "mask": "center", "steps": steps, "seed": next(self._seeds)}
        (await self.http.post("/v1/inpaint", params=asked, content=self._image)).raise_for_status()

    async def classify(self) -> float:
        began = time.monotonic()
        (await self.http.post("/v1/classify", params={"model": SHORT}, content=self._image)).raise_for_status()
        return time.monotonic() - began

    async def steps(self) -> float:
        """Taken so far, as the worker counts them."""
        return sum(map(float, METRIC.findall((await self.http.get(self._metrics)).text)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inpainting", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="of arrivals; other measurements take a third")
    parser.add_argument("--load", type=float, default=0.7, help="share of the capacity at which jobs come")
    parser.add_argument("--large", action=argparse.BooleanOptionalAction, default=True, help="also b. of ViT-B at its published size")
    parser.add_argument("--threads", type=int, default=1, help="of the worker and of the bare loops; 0: as many as CPUs")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    here = machine.describe()
    print("\n".join(here.lines()), flush=True)
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as name:
        figures = measure(Path(name), options.rounds, options.seconds, options.load, options.threads, large=options.large)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps({"machine": here.to_json(), "figures": asdict(figures)}, indent=2) + "\n")


def measure(folder: Path, rounds: int, seconds: float, load: float, threads: int, *, large: bool) -> Figures:
    os.environ["OPSIN_THREADS"] = str(threads)  # of the bare loops
    bundles, figures = folder / "bundles", Figures()
    models = {SMALL: make_bundle(bundles, SMALL, image_size=(SIDE, SIDE), patch_size=8, width=256, depth=6, heads=8, **DECODER)}
    if large:
        models["ViT-B"] = make_bundle(folder / "large", "vit-b")
    reference.make_null_bundle(bundles, SHORT, SHORT_MS)
    port = free_port()
    with running(bundles, metrics_port=port, cache=folder / "cache", threads=threads) as url:
        for number in range(rounds):
            for name, bundle in models.items():
                figures.caching.setdefault(name, []).append(loop(bundle, "caching", "--seconds", str(seconds / 3)))
            bounds = loop(models[SMALL], "bounds", "--seconds", str(seconds / 30))
            asyncio.run(one_round(url, f"http://127.0.0.1:{port}/metrics", bounds, models[SMALL], seconds, load, number, figures))
    return figures


DECODER = {"decoder_width": 256, "decoder_depth": 3, "decoder_heads": 8}


async def one_round(
    url: str, metrics: str, bounds: dict[str, Any], bundle: Bundle, seconds: float, load: float, seed: int, figures: Figures
) -> None:
    asking = Asking(url, metrics)
    best = max(bounds["bounds"], key=lambda bound: bound["steps_per_second"])
    async with asking.http:
        alone = [await asking.classify() for _ in range(int(seconds * 5))]
        clients = [asyncio.create_task(client(asking, number)) for number in range(CLIENTS)]
        await asyncio.sleep(2.0)
        began, before = time.monotonic(), await asking.steps()
        await asyncio.sleep(seconds / 3)
        served = (await asking.steps() - before) / (time.monotonic() - began)
        beside = [await asking.classify() for _ in range(int(seconds * 5))]
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await asyncio.sleep(2.0)  # the worker drops what nobody waits for
        arrivals = poisson(load * served / fmean(TOTALS), seconds, seed)
        latencies = {"service": await open_loop(asking, arrivals)}
    given = json.dumps(arrivals)
    latencies["static"] = await asyncio.to_thread(loop, bundle, "static", "--largest", str(best["size"]), given=given)
    latencies["one"] = await asyncio.to_thread(loop, bundle, "one", given=given)
    for name, taken in latencies.items():
        ended = max(at + latency for (at, _), latency in zip(arrivals, taken, strict=True))
        figures.jobs_per_second[name].append(len(arrivals) / ended)
        for steps in TOTALS:
            own = [latency for (_, total), latency in zip(arrivals, taken, strict=True) if total == steps]
            figures.latency[name][steps].append(fmean(own))
    figures.alone.append([percentile(alone, 50), percentile(alone, 99)])
    figures.beside.append([percentile(beside, 50), percentile(beside, 99)])
    figures.longest_step.append(max(bound["longest"] for bound in bounds["bounds"] if bound["size"] <= best["size"]))
    figures.served.append(served)
    figures.bare.append(best["steps_per_second"])
    figures.one_at_a_time.append(bounds["bounds"][0]["steps_per_second"])
    backlog = [steps for _, steps in poisson(1.0, 20.0 * best["size"], seed)]
    for padded, figure in ((False, figures.leaving), (True, figures.padded)):
        figure.append(bounds["slots"] * steps_per_second(backlog, step_seconds(bounds), best["size"], padded=padded))


async def client(asking: Asking, number: int) -> None:
    for turn in count(number):
        await asking.inpaint(TOTALS[turn % len(TOTALS)])


async def open_loop(asking: Asking, arrivals: Sequence[tuple[float, int]]) -> list[float]:
    """Latencies of jobs that come when they come."""
    began = time.monotonic()

    async def one(at: float, steps: int) -> float:
        await asyncio.sleep(began + at - time.monotonic())
        await asking.inpaint(steps)
        return time.monotonic() - began - at

    return await asyncio.gather(*(one(*arrival) for arrival in arrivals))


def poisson(per_second: float, seconds: float, seed: int) -> list[tuple[float, int]]:
    """Seconds and steps of each job; one of each length at least."""
    chance, arrivals, at = random.Random(seed), [(0.0, steps) for steps in TOTALS], 0.0
    while (at := at + chance.expovariate(per_second)) < seconds:
        arrivals.append((at, chance.choice(TOTALS)))
    return arrivals


def loop(bundle: Bundle, what: str, *options: str, given: str = "") -> Any:
    command = [sys.executable, "-m", "benchmarks.inpainting_loops", str(bundle.path), what, *options]
    return json.loads(subprocess.run(command, input=given, stdout=subprocess.PIPE, text=True, check=True).stdout)


def make_bundle(root: Path, name: str, **fields: Any) -> Bundle:
    """DiffMAE of random weights; ViT-B at its published size by default."""
    import torch

    from models.diffmae.model import DiffMAE, DiffMAEConfig

    config = DiffMAEConfig(**fields)
    torch.manual_seed(0)
    spec = BundleSpec(
        name=name,
        version="1",
        task="inpaint",
        architecture="diffmae",
        config=asdict(config),
        preprocess=Preprocess(image_size=config.image_size[0], short_side=config.image_size[0], mean=config.mean, std=config.std),
        license="CC0-1.0",
        description="Random weights for benchmarks",
        weights=Weights(sha256="0" * 64, bytes=0),
    )
    return reference.write(root, spec, {key: tensor.contiguous() for key, tensor in DiffMAE(config).state_dict().items()})


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def show(figures: Figures) -> None:
    print(f"a. jobs/s                 {'  '.join(f'{name} {spread(values)}' for name, values in figures.jobs_per_second.items())}")
    for steps in TOTALS:
        means = "  ".join(f"{name} {spread(figures.latency[name][steps], 2)} s" for name in POLICIES)
        against = [service / static for service, static in _pairs(figures, "static", steps)]
        alone = [service / one for service, one in _pairs(figures, "one", steps)]
        print(f"   latency of {steps:3d} steps   {means}  service ÷ static {spread(against)}, ÷ one {spread(alone)}")
    for name, rounds in figures.caching.items():
        ratios = [one["step_seconds"] / (one["start_seconds"] + one["step_seconds"]) for one in rounds]
        ideal = [one["step_flops"] / (one["start_flops"] + one["step_flops"]) for one in rounds]
        step = _ms(one["step_seconds"] for one in rounds)
        print(f"b. {name:22} cached ÷ computed again {spread(ratios)}, of FLOPs {spread(ideal)}; step {step}")
    for index, share in enumerate(("median", "p99")):
        alone_ms, beside_ms = (_ms(one[index] for one in rounds) for rounds in (figures.alone, figures.beside))
        print(f"c. classification, {share:6} alone {alone_ms}, beside inpainting {beside_ms}; longest step {_ms(figures.longest_step)}")
    for name, others in (
        ("bare loop at its best batch", figures.bare),
        ("one job at a time", figures.one_at_a_time),
        ("static, rows leave", figures.leaving),
        ("static, padded", figures.padded),
    ):
        ratios = [served / other for served, other in zip(figures.served, others, strict=True)]
        print(f"d. steps/s, served ÷ {name:28} {spread(ratios)}  ({spread(figures.served, 0)} ÷ {spread(others, 0)})")


def _pairs(figures: Figures, other: str, steps: int) -> list[tuple[float, float]]:
    return list(zip(figures.latency["service"][steps], figures.latency[other][steps], strict=True))


def _ms(values: Any) -> str:
    return spread([1000 * value for value in values], 1) + " ms"


if __name__ == "__main__":
    main()
