"""Inpainting with DiffMAE: `python -m benchmarks.inpainting`. Random weights of fixed seeds; ratios of one run, taken in turns.

a. Jobs of 10, 50 and 250 steps that come at random times (Poisson, at a share of the capacity just measured): jobs/s and mean latency by
   length, of the service over HTTP, of static batches (rows that have finished leave, none joins) and of one job at a time with all
   threads. These two are simulated with the same arrivals and with what a start and a step take in the bare loop.
b. Caching: seconds of a step ÷ seconds where encoder, keys and values are computed for each step again, and the same ratio of FLOPs.
c. A classification during saturating inpainting: median and 99th percentile, and the latter ÷ (longest step of the bare loop, of batches
   as the worker's + 1.5 × the 99th percentile alone).
d. Steps/s (jobs × steps) of the saturated worker ÷ those of the bare loop at its best batch size, at batch size 1 (one job at a time), and
   of static batches, computed from what a start and a step take in the bare loop, with as many starts as the worker had: where rows that
   have finished leave, and where they stay (padded). The bare loop starts nothing; it is also given with what as many starts take.
e. Holes of different sizes: seconds of a step of 16 jobs without padding (packed) ÷ those where holes of about one size share a padded
   pass.

Worker and bare loops have one torch thread: the other CPUs carry HTTP, queue and load. The CPUs of many machines are two threads of one
core, and what one does slows the other down: so the bare loops run with as much background load as HTTP, queue and load generator cause
at saturation, as static batches in a service would; of d. the first figure is also given without. With `--threads 0` all take all CPUs,
the service shares them with the load generator, and the bare loops run without background load.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
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

import httpx2
import numpy as np
from PIL import Image

from benchmarks import machine, reference
from benchmarks.service import running
from benchmarks.static_batches import Arrival, latencies, steps_per_second
from benchmarks.steps import METRIC, free_port, others_seconds, percentile, poisson, spread, step_seconds
from models.bundle import Bundle, BundleSpec
from models.bundle_schema import FileDigest, Preprocess

TOTALS = (10, 50, 250)
SMALL, SHORT = "small", "short"
SHORT_MS = 5.0
SIDE = 96
"""Side of the small model's images in pixels."""
CLIENTS = 48
"""Enough for full batches at every moment."""
CLASSIFICATIONS = 200
TIMEOUT = 600.0
BATCH = re.compile(rf'^opsin_batch_budget\{{.*model="{SMALL}".*\}} ([0-9.e+]+)$', re.MULTILINE)
JOINS = re.compile(r"^opsin_step_joins_total\{.*\} ([0-9.e+]+)$", re.MULTILINE)
POLICIES = ("service", "static", "one")


@dataclass
class InpaintFigures:
    """Figures of all rounds."""

    latency: dict[str, dict[int, list[list[float]]]] = field(
        default_factory=lambda: {name: {steps: [] for steps in TOTALS} for name in POLICIES}
    )
    """Latencies in seconds, by policy, number of steps and round."""
    jobs_per_second: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in POLICIES})
    caching: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """Figures of the cache by model, one entry per round."""
    holes: list[dict[str, float]] = field(default_factory=list)
    alone: list[list[float]] = field(default_factory=list)
    """Median and 99th percentile in seconds."""
    under_load: list[list[float]] = field(default_factory=list)
    longest_step: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    """CPUs that everything but the worker took at saturation."""
    served: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    """Jobs that the worker started at saturation, for each of its steps."""
    bare: list[float] = field(default_factory=list)
    """Steps/s of the bare loop without background load, then with as much as the service has."""
    bare_under_load: list[float] = field(default_factory=list)
    bare_starting: list[float] = field(default_factory=list)
    """Steps/s with background load, if as many jobs started as in the worker."""
    one_at_a_time: list[float] = field(default_factory=list)
    leaving: list[float] = field(default_factory=list)
    """Steps/s of static batches whose rows leave."""
    padded: list[float] = field(default_factory=list)


class InpaintLoadClient:
    def __init__(self, url: str, metrics: str) -> None:
        self._metrics = metrics
        self.http = httpx2.AsyncClient(base_url=url, timeout=TIMEOUT, limits=httpx2.Limits(max_connections=1000))
        self._image = noise_image()
        self._seeds = count()

    async def inpaint(self, steps: int) -> None:
        params = {"model": SMALL, "mask": "center", "steps": steps, "seed": next(self._seeds)}
        (await self.http.post("/v1/inpaint", params=params, content=self._image)).raise_for_status()

    async def classify(self) -> float:
        started_at = time.monotonic()
        (await self.http.post("/v1/classify", params={"model": SHORT}, content=self._image)).raise_for_status()
        return time.monotonic() - started_at

    async def batch(self) -> int:
        """Return the worker's maximum batch of inpainting jobs."""
        [size] = BATCH.findall((await self.http.get(self._metrics)).text)
        return int(float(size))

    async def steps(self) -> tuple[float, float]:
        """Taken so far, and jobs that took their first one, as the worker counts them."""
        text = (await self.http.get(self._metrics)).text
        return sum(map(float, METRIC.findall(text))), sum(map(float, JOINS.findall(text)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inpainting", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=40.0, help="of arrivals; other measurements are shorter")
    parser.add_argument("--load", type=float, default=0.7, help="share of the capacity at which jobs come")
    parser.add_argument("--large", action=argparse.BooleanOptionalAction, default=True, help="also b. of ViT-B at its published size")
    parser.add_argument("--threads", type=int, default=1, help="of the worker and of the bare loops; 0: as many as CPUs")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    machine.show()
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as name:
        figures = measure(Path(name), options.rounds, options.seconds, options.load, options.threads, large=options.large)
    show(figures)
    if options.json:
        machine.write_result(parser.prog, {"load": options.load, "figures": asdict(figures)}, options.json)


def measure(folder: Path, rounds: int, seconds: float, load: float, threads: int, *, large: bool) -> InpaintFigures:
    os.environ["OPSIN_THREADS"] = str(threads)  # of the bare loops
    bundles, figures = folder / "bundles", InpaintFigures()
    models = {SMALL: make_bundle(bundles, SMALL, image_size=(SIDE, SIDE), patch_size=8, width=256, depth=6, heads=8, **DECODER)}
    if large:
        models["ViT-B"] = make_bundle(folder / "large", "vit-b")
    reference.make_null_bundle(bundles, SHORT, SHORT_MS)
    port = free_port()
    for number in range(rounds):
        for name, bundle in models.items():
            figures.caching.setdefault(name, []).append(loop(bundle, "caching", seconds / 20))
        figures.holes.append(loop(models[SMALL], "holes", seconds / 20))
        before = loop(models[SMALL], "bounds", seconds / 40)
        # processes of its own for each round: where their memory lies makes them faster or slower by a few percent
        with running(bundles, metrics_port=port, cache=folder / "cache", threads=threads) as url:
            asyncio.run(one_round(url, f"http://127.0.0.1:{port}/metrics", before, models[SMALL], seconds, load, number, figures))
        after = loop(models[SMALL], "bounds", seconds / 40)
        figures.bare.append(fmean(_best(bare)["steps_per_second"] for bare in (before, after)))
    return figures


DECODER = {"decoder_width": 256, "decoder_depth": 3, "decoder_heads": 8}


async def one_round(
    url: str, metrics: str, bare: dict[str, Any], bundle: Bundle, seconds: float, load: float, seed: int, figures: InpaintFigures
) -> None:
    asking = InpaintLoadClient(url, metrics)
    async with asking.http:
        alone = [await asking.classify() for _ in range(CLASSIFICATIONS)]
        clients = [asyncio.create_task(client(asking, number)) for number in range(CLIENTS)]
        await asyncio.sleep(seconds / 4)  # all have started, and the worker has found its best batch
        started_at, (steps_before, joins_before), spent = time.monotonic(), await asking.steps(), others_seconds()
        await asyncio.sleep(seconds / 2)
        took, (steps_after, joins_after) = time.monotonic() - started_at, await asking.steps()
        served, others = (steps_after - steps_before) / took, (others_seconds() - spent) / took
        starts = (joins_after - joins_before) / (steps_after - steps_before)
        batch = await asking.batch()
        under_load = [await asking.classify() for _ in range(CLASSIFICATIONS)]
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await asyncio.sleep(2.0)  # the worker drops abandoned jobs
        arrivals = [*(Arrival(0.0, steps) for steps in TOTALS), *poisson(load * served / fmean(TOTALS), seconds, seed)]
        service = await open_loop(asking, arrivals)
    bounds = await asyncio.to_thread(loop, bundle, "bounds", seconds / 40, under_load=others if bare["slots"] == 1 else 0.0)
    best = _best(bounds)
    step, start = step_seconds(bounds), bounds["start_seconds"]
    taken = {
        "service": service,
        "static": latencies(arrivals, step, best["size"], bounds["slots"], start),
        "one": latencies(arrivals, lambda _: float(bounds["all_threads"]), 1, 1, start),
    }
    for name, times in taken.items():
        ended = max(arrival.at + latency for arrival, latency in zip(arrivals, times, strict=True))
        figures.jobs_per_second[name].append(len(arrivals) / ended)
        for steps in TOTALS:
            figures.latency[name][steps].append([one for arrival, one in zip(arrivals, times, strict=True) if arrival.steps == steps])
    figures.alone.append([percentile(alone, 50), percentile(alone, 99)])
    figures.under_load.append([percentile(under_load, 50), percentile(under_load, 99)])
    figures.longest_step.append(max(bound["longest"] for bound in bounds["bounds"] if bound["size"] <= batch))
    figures.others.append(others)
    figures.served.append(served)
    figures.bare_under_load.append(best["steps_per_second"])
    figures.bare_starting.append(1 / (1 / best["steps_per_second"] + starts * start / bounds["slots"]))
    figures.one_at_a_time.append(bounds["bounds"][0]["steps_per_second"])
    figures.starts.append(starts)
    backlog = [arrival.steps for arrival in poisson(1.0, 20.0 * best["size"], seed)]
    each = start * starts * fmean(backlog)
    for padded, figure in ((False, figures.leaving), (True, figures.padded)):
        figure.append(bounds["slots"] * steps_per_second(backlog, step, best["size"], padded=padded, start_seconds=each))


def _best(bounds: dict[str, Any]) -> dict[str, Any]:
    best: dict[str, Any] = max(bounds["bounds"], key=lambda bound: bound["steps_per_second"])
    return best


async def client(asking: InpaintLoadClient, number: int) -> None:
    """Jobs of all lengths in turn, for ever. Each client begins elsewhere in them, as if all had gone on for long."""
    ahead = sum(TOTALS) * (number + 0.5) / CLIENTS
    for turn in count():
        steps = TOTALS[turn % len(TOTALS)]
        left = max(0, steps - int(ahead))
        ahead = max(0.0, ahead - steps)
        if left:
            await asking.inpaint(left)


async def open_loop(asking: InpaintLoadClient, arrivals: Sequence[Arrival]) -> list[float]:
    """Latencies of jobs that come when they come."""
    started_at = time.monotonic()

    async def one(arrival: Arrival) -> float:
        await asyncio.sleep(started_at + arrival.at - time.monotonic())
        await asking.inpaint(arrival.steps)
        return time.monotonic() - started_at - arrival.at

    return await asyncio.gather(*map(one, arrivals))


def loop(bundle: Bundle, part: str, seconds: float, *, under_load: float = 0.0) -> Any:
    options = ["--seconds", str(seconds), "--beside", f"{under_load:.3f}"]
    command = [sys.executable, "-m", "benchmarks.inpainting_loops", str(bundle.path), part, *options]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def make_bundle(root: Path, name: str, **fields: Any) -> Bundle:
    """DiffMAE of random weights; ViT-B at its published size by default."""
    import torch

    from models.systems.diffmae.model import DiffMAE, DiffMAEConfig

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
        weights=FileDigest(sha256="0" * 64, bytes=0),
    )
    return reference.write(root, spec, {key: tensor.contiguous() for key, tensor in DiffMAE(config).state_dict().items()})


def noise_image() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def show(figures: InpaintFigures) -> None:
    print(f"a. jobs/s                 {'  '.join(f'{name} {spread(values)}' for name, values in figures.jobs_per_second.items())}")
    for steps in TOTALS:
        jobs = sum(map(len, figures.latency["service"][steps]))
        means = "  ".join(f"{name} {_mean(figures, name, steps):.2f} s" for name in POLICIES)
        ratios = ", ".join(f"÷ {name} {_against(figures, name, steps)}" for name in POLICIES[1:])
        print(f"   latency of {jobs} jobs of {steps:3d} steps   {means}  service {ratios}")
    for name, rounds in figures.caching.items():
        shares = [one["step_seconds"] / (one["start_seconds"] + one["step_seconds"]) for one in rounds]
        ideal = [one["step_flops"] / (one["start_flops"] + one["step_flops"]) for one in rounds]
        step = _ms(one["step_seconds"] for one in rounds)
        print(f"b. {name:22} cached ÷ computed again {spread(shares)}, of FLOPs {spread(ideal)}; step {step}")
    for index, share in enumerate(("median", "p99")):
        alone_ms, under_load_ms = (_ms(one[index] for one in rounds) for rounds in (figures.alone, figures.under_load))
        print(f"c. classification, {share:6} alone {alone_ms}, during inpainting {under_load_ms}")
    allowed = [step + 1.5 * alone for step, (_, alone) in zip(figures.longest_step, figures.alone, strict=True)]
    within = [p99 / limit for (_, p99), limit in zip(figures.under_load, allowed, strict=True)]
    print(f"   p99 ÷ allowed {spread(within)}; longest step {_ms(figures.longest_step)}, allowed {_ms(allowed)}")
    for name, others in (
        ("bare loop at its best batch", figures.bare),
        ("the same with background load", figures.bare_under_load),
        ("the same with as many starts", figures.bare_starting),
        ("one job at a time", figures.one_at_a_time),
        ("static, rows leave", figures.leaving),
        ("static, padded", figures.padded),
    ):
        ratios_d = [served / other for served, other in zip(figures.served, others, strict=True)]
        print(f"d. steps/s, served ÷ {name:44} {spread(ratios_d)}  ({spread(figures.served, 0)} ÷ {spread(others, 0)})")
    print(f"   others take {spread(figures.others, 2)} CPUs; starts for each 100 steps {spread([100 * one for one in figures.starts])}")
    packed = [one["packed"] / one["padded"] for one in figures.holes]
    print(f"e. mixed holes, packed ÷ padded {spread(packed)}  ({_ms(one['packed'] for one in figures.holes)})")


def _mean(figures: InpaintFigures, name: str, steps: int) -> float:
    """Over all jobs of all rounds."""
    return fmean(latency for jobs in figures.latency[name][steps] for latency in jobs)


def _against(figures: InpaintFigures, other: str, steps: int) -> str:
    """Ratio over all jobs, and the lowest and highest over rounds."""
    pairs = zip(figures.latency["service"][steps], figures.latency[other][steps], strict=True)
    rounds = [fmean(service) / fmean(others) for service, others in pairs]
    return f"{_mean(figures, 'service', steps) / _mean(figures, other, steps):.2f} ({min(rounds):.2f}..{max(rounds):.2f})"


def _ms(values: Any) -> str:
    return spread([1000 * value for value in values], 1) + " ms"


if __name__ == "__main__":
    main()
