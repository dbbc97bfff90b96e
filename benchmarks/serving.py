"""How much of the hardware the service turns into answers: `python -m benchmarks.serving`. `benchmarks/README.md` explains the figures."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine, reference, service
from benchmarks.load import LoadReport

SECTIONS = ("eta1", "etap", "latency", "open", "null")
CLIENTS = (8, 16, 32)
NULL_CLIENTS = (1, 16, 64)
OPEN_LOADS = (0.5, 0.8, 0.95)
NULLS = {"null-0": 0.0, "null-5": 5.0}
"""Bundle → milliseconds per batch."""
FINALISTS = 3
"""Layouts of a bound that every reading measures again, the best of the sweep."""


@dataclass(frozen=True)
class ServingDurations:
    """Durations of the measurements, in seconds."""

    rounds: int
    sweep: float
    """Per layout when looking for the best ones."""
    bound: float
    """Per layout in each reading of a bound."""
    warm: float
    """Time in seconds under load before counting starts, in which the worker learns its batch size."""
    load: float
    """Per number of clients or rate."""


FULL = ServingDurations(rounds=5, sweep=2.0, bound=3.0, warm=6.0, load=10.0)
QUICK = ServingDurations(rounds=2, sweep=0.7, bound=1.5, warm=4.0, load=5.0)


@dataclass(frozen=True)
class ServingBenchmark:
    """Everything that the measurements of one run share."""

    plan: ServingDurations
    folder: Path
    dtype: str
    forward: list[dict[str, int]]
    process: list[dict[str, int]]
    """Layouts of B and P that may be the best."""

    @property
    def bundles(self) -> Path:
        return self.folder / "bundles"

    @property
    def pictures(self) -> Path:
        return self.folder / "pictures"

    @property
    def scores(self) -> Path:
        return self.folder / "scores.npy"


def prepare(folder: Path, plan: ServingDurations, sections: Sequence[str], console: Console) -> ServingBenchmark:
    """Make bundle and pictures, find the faster dtype and the layouts worth measuring, compute the off-line answers."""
    reference.make_bundle(folder / "bundles")
    reference.write_pictures(folder / "pictures")
    sweeps = {dtype: _bounds(folder, dtype, plan.sweep, process=[]) for dtype in ("float32", "bfloat16")}
    fastest = {dtype: best(sweep["forward"]) for dtype, sweep in sweeps.items()}
    dtype = max(fastest, key=lambda name: fastest[name]["images_per_second"])
    for name, speed in fastest.items():
        console.print(f"{name}: {speed['images_per_second']:.1f} images/s on one thread at batch {speed['layout']['batch']}")
    process_layouts: list[Any] | None = None if "etap" in sections else []
    process = _bounds(folder, dtype, plan.sweep, forward=[], process=process_layouts, scores=folder / "scores.npy")["process"]
    if process:
        plain = best(process)
        console.print(f"one process, {plain['layout']}: {plain['images_per_second']:.1f} images/s with decoding")
    return ServingBenchmark(plan, folder, dtype, forward=finalists(sweeps[dtype]["forward"]), process=finalists(process))


def _bounds(
    folder: Path,
    dtype: str,
    seconds: float,
    *,
    forward: list[Any] | None = None,
    process: list[Any] | None = None,
    scores: Path | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Run `benchmarks.bounds` in a process of its own; None stands for all layouts."""
    command = ["--bundle", folder / "bundles" / reference.NAME / reference.VERSION, "--pictures", folder / "pictures", "--dtype", dtype]
    command += ["--seconds", seconds]
    for option, layouts in (("--forward", forward), ("--process", process)):
        command += [] if layouts is None else [option, json.dumps(layouts)]
    command += [] if scores is None else ["--scores", scores]
    speeds: dict[str, list[dict[str, Any]]] = json_of("benchmarks.bounds", command)
    return speeds


def best(speeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return max(speeds, key=lambda speed: speed["images_per_second"])


def finalists(speeds: Sequence[dict[str, Any]]) -> list[dict[str, int]]:
    ranked = sorted(speeds, key=lambda speed: speed["images_per_second"], reverse=True)
    return [speed["layout"] for speed in ranked[:FINALISTS]]


def efficiency(ground: ServingBenchmark, sections: Sequence[str], console: Console) -> dict[str, Any]:
    """η₁ and η_P: rounds of bound, service, bound, service, …; each is divided by the mean of the readings on its two sides."""
    settings: dict[str, dict[str, object]] = {"eta1": {"threads": 1}, "etap": {}}
    results: dict[str, list[dict[str, Any]]] = {section: [] for section in settings if section in sections}
    before = _reading(ground)
    for number in range(ground.plan.rounds):
        for section, rounds in results.items():
            with service.running(ground.bundles, dtype=ground.dtype, **settings[section]) as url:
                bursts = [_load(ground, url, clients=clients) for clients in CLIENTS]
            after = _reading(ground)
            fastest = max(bursts, key=lambda burst: burst.per_second)
            bound = (before[section] + after[section]) / 2
            rounds.append(
                {"eta": fastest.per_second / bound, "bound": [before[section], after[section]], "best": fastest, "bursts": bursts}
            )
            console.print(
                f"round {number + 1} {section}: {fastest.per_second:.1f}/s with {fastest.clients} clients, mean batch "
                f"{fastest.batch_size:.1f}; bound {before[section]:.1f} and {after[section]:.1f}; η = {rounds[-1]['eta']:.3f}"
            )
            before = after
    return {section: spread([entry["eta"] for entry in rounds]) | {"rounds": rounds} for section, rounds in results.items()}


def _reading(ground: ServingBenchmark) -> dict[str, float]:
    """B and P now, those that are wanted, under the names of the figures that divide by them."""
    speeds = _bounds(ground.folder, ground.dtype, ground.plan.bound, forward=ground.forward, process=ground.process)
    readings = {"eta1": speeds["forward"], "etap": speeds["process"]}
    return {name: best(reading)["images_per_second"] for name, reading in readings.items() if reading}


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def latency(ground: ServingBenchmark) -> LoadReport:
    """Measure with one client alone what the service adds to preparation and inference."""
    with service.running(ground.bundles, dtype=ground.dtype) as url:
        return _load(ground, url, clients=1, seconds=2 * ground.plan.load)


def open_loop(ground: ServingBenchmark) -> dict[str, Any]:
    """Latency at set shares of the capacity that the same process just showed."""
    with service.running(ground.bundles, dtype=ground.dtype) as url:
        closed = [_load(ground, url, clients=clients) for clients in (1, 2, 4, *CLIENTS)]
        capacity = max(burst.per_second for burst in closed)
        return {
            "capacity": capacity,
            "closed": closed,
            "open": {str(share): _load(ground, url, rate=share * capacity, seconds=3 * ground.plan.load) for share in OPEN_LOADS},
        }


def null(folder: Path, plan: ServingDurations) -> dict[str, list[LoadReport]]:
    """Requests/s and latency where the model costs nothing, and where it costs 5 ms a batch."""
    for name, milliseconds in NULLS.items():
        reference.make_null_bundle(folder / "null", name, milliseconds)
    reference.write_small_pictures(folder / "small")
    with service.running(folder / "null") as url:
        return {
            name: [
                burst(url, name, folder / "small", ["--clients", clients, "--warm", plan.warm / 2, "--seconds", plan.load])
                for clients in NULL_CLIENTS
            ]
            for name in NULLS
        }


def _load(ground: ServingBenchmark, url: str, *, clients: int = 0, rate: float | None = None, seconds: float | None = None) -> LoadReport:
    load_options = ["--clients", clients] if rate is None else ["--rate", rate]
    load_options += ["--warm", ground.plan.warm, "--seconds", seconds or ground.plan.load, "--expected", ground.scores]
    return burst(url, reference.NAME, ground.pictures, load_options)


def burst(url: str, model: str, pictures: Path, load_options: Sequence[object]) -> LoadReport:
    """Run `benchmarks.load`. Raises RuntimeError if an answer failed or was another picture's, or none came: then no figure counts."""
    target = f"{url}/v1/classify?model={model}&merge=off"
    report = LoadReport(**json_of("benchmarks.load", ["--url", target, "--pictures", pictures, *load_options]))
    if report.failures or report.wrong:
        raise RuntimeError(f"{report.answered} answers, {report.wrong} of them another picture's, failures: {report.failures or 'none'}")
    if not report.answered:
        raise RuntimeError("not one answer came in time: this machine is too busy, or the model too slow, for so short a measurement")
    return report


def json_of(module: str, arguments: Sequence[object]) -> Any:
    """Run a benchmark module in a process of its own and return the JSON that it prints."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent)
    return json.loads(finished.stdout)


def show_efficiency(figures: dict[str, Any], console: Console) -> None:
    table = Table("", "median", "min", "max", "served/s", "clients", "bound/s", title="η: served ÷ bound")
    for section, label in (("eta1", "η₁: one torch thread ÷ B"), ("etap", "η_P: default layout ÷ P")):
        if section in figures:
            entry = figures[section]
            typical = min(entry["rounds"], key=lambda one: abs(one["eta"] - entry["median"]))
            served = typical["best"]
            row = [f"{entry[name]:.3f}" for name in ("median", "min", "max")]
            table.add_row(label, *row, f"{served.per_second:.1f}", str(served.clients), f"{statistics.mean(typical['bound']):.1f}")
    console.print(table)


def show_bursts(title: str, bursts: dict[str, LoadReport], console: Console) -> None:
    table = Table(
        "load",
        "answers/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "mean batch",
        "queue ms",
        "batch wait ms",
        "prepare ms",
        "inference ms",
        "rest ms",
    )
    table.title = title
    for name, burst in bursts.items():
        waits = [f"{burst.timing.get(part, 0.0):.1f}" for part in ("queue_ms", "batch_wait_ms", "prepare_ms", "inference_ms")]
        quantiles = [f"{burst.latency_ms[q]:.1f}" for q in ("p50", "p95", "p99")]
        table.add_row(name, f"{burst.per_second:.1f}", *quantiles, f"{burst.batch_size:.1f}", *waits, f"{burst.overhead_ms:.2f}")
    table.caption = "rest: median of total − prepare − inference, by the service's own clock"
    console.print(table)


def show(results: dict[str, Any], console: Console) -> None:
    if "efficiency" in results:
        show_efficiency(results["efficiency"], console)
    if "latency" in results:
        show_bursts("One client alone, default layout", {"1 client": results["latency"]}, console)
    if "open" in results:
        closed = {f"{burst.clients} clients": burst for burst in results["open"]["closed"]}
        show_bursts("Closed loop, default layout", closed, console)
        shares = {f"{float(share):.0%} of capacity": burst for share, burst in results["open"]["open"].items()}
        show_bursts("Open loop, Poisson, latency from the intended send time", shares, console)
    for name, bursts in results.get("null", {}).items():
        title = f"No model: {NULLS[name]:g} ms per batch, pictures of 1 KB"
        show_bursts(title, {f"{burst.clients} clients": burst for burst in bursts}, console)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--make-bundle", type=Path, metavar="DIR", help="only write the reference bundle into this folder")
    parser.add_argument("--quick", action="store_true", help="two short rounds: a first look, not a result")
    parser.add_argument("--rounds", type=int, help=f"interleaved rounds (default: {FULL.rounds}, with --quick {QUICK.rounds})")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="measure this alone; may be given several times")
    parser.add_argument("--json", type=Path, help="write the figures here (default: a file in benchmarks/results/)")
    options = parser.parse_args()
    if options.make_bundle:
        print(f"wrote {reference.make_bundle(options.make_bundle).path}")
        return

    plan, sections = (QUICK if options.quick else FULL), options.only or SECTIONS
    plan = replace(plan, rounds=options.rounds or plan.rounds)
    console = machine.show()
    results: dict[str, Any] = {"plan": vars(plan), "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as name:
        folder = Path(name)
        if set(sections) - {"null"}:
            ground = prepare(folder, plan, sections, console)
            results["dtype"] = ground.dtype
        if {"eta1", "etap"} & set(sections):
            results["efficiency"] = efficiency(ground, sections, console)
        if "latency" in sections:
            results["latency"] = latency(ground)
        if "open" in sections:
            results["open"] = open_loop(ground)
        if "null" in sections:
            results["null"] = null(folder, plan)
    show(results, console)
    machine.write_result(parser.prog, results, options.json)


if __name__ == "__main__":
    main()
