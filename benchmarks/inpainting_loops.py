"""Denoising without queue, scheduler and HTTP, in a process of its own: `python -m benchmarks.inpainting_loops BUNDLE WHAT`. Prints JSON.

bounds: steps/s by batch size, of all slots that a worker would have. static, one: latencies of jobs that come at the times of stdin (JSON,
[[seconds, steps], …]) where batches are static (rows that have finished leave, nobody joins), or one job runs at a time with all threads.
caching: seconds and FLOPs of the encoder with keys and values, and of a step.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.bundle import read
from models.layers.steps import State
from models.loading import Ended, LoadedSteps, load
from server.settings import load as load_settings
from server.tasks.registry import TASKS
from server.worker.layout import Layout, choose, threads_allowed

SIZES = (1, 2, 4, 8, 16)


class Loop:
    """Jobs of the usual hole."""

    def __init__(self, folder: Path) -> None:
        bundle = read(folder)
        self.layout: Layout = choose(load_settings())
        model = load(bundle, device=self.layout.device)
        assert model.steps is not None
        self.steps: LoadedSteps = model.steps
        self._arrays = TASKS[bundle.spec.task].sample(bundle.spec)

    def start(self, totals: list[int]) -> list[State]:
        return self.steps.start([self._arrays] * len(totals), [{"steps": total, "seed": seed} for seed, total in enumerate(totals)])

    def step(self, states: list[State]) -> list[State | None]:
        """The next states; None for those that have ended."""
        return [None if isinstance(one, Ended) else one.state for one in self.steps.step(states, [False] * len(states))]


def bounds(loop: Loop, seconds: float) -> dict[str, Any]:
    layout = loop.layout

    def measure(size: int) -> dict[str, float]:
        states = loop.start([1000] * size)

        def one_slot(_slot: int) -> list[float]:
            torch.set_num_threads(layout.threads)
            times, until = [], time.monotonic() + seconds
            while (began := time.monotonic()) < until:
                loop.step(states)
                times.append(time.monotonic() - began)
            return times

        with ThreadPoolExecutor(layout.slots) as pool:
            slots = list(pool.map(one_slot, range(layout.slots)))
        times = [taken for slot in slots for taken in slot]
        per_second = sum(len(slot) * size / sum(slot) for slot in slots)
        return {"size": size, "steps_per_second": per_second, "longest": max(times), "median": median(times)}

    measure(1)  # what happens only once
    return {"slots": layout.slots, "bounds": [measure(size) for size in SIZES]}


def static(loop: Loop, arrivals: list[tuple[float, int]], largest: int) -> list[float]:
    """Every slot takes what waits, first come first served, and takes no more until all of it has ended."""
    return _serve(loop, arrivals, largest, loop.layout.slots, loop.layout.threads)


def one(loop: Loop, arrivals: list[tuple[float, int]]) -> list[float]:
    return _serve(loop, arrivals, 1, 1, threads_allowed())


def _serve(loop: Loop, arrivals: list[tuple[float, int]], largest: int, slots: int, threads: int) -> list[float]:
    ended, lock, first = [0.0] * len(arrivals), threading.Lock(), 0
    began = time.monotonic()

    def take() -> list[int]:
        """The next batch; empty once there is no more to come."""
        nonlocal first
        with lock:
            if first == len(arrivals):
                return []
            time.sleep(max(0.0, began + arrivals[first][0] - time.monotonic()))
            now = time.monotonic() - began
            batch = [index for index in range(first, min(first + largest, len(arrivals))) if arrivals[index][0] <= now]
            first += len(batch)
            return batch

    def one_slot(_slot: int) -> None:
        torch.set_num_threads(threads)
        while batch := take():
            states: list[State] = loop.start([arrivals[index][1] for index in batch])
            while batch:
                moved = loop.step(states)
                for index, state in zip(batch, moved, strict=True):
                    if state is None:
                        ended[index] = time.monotonic() - began
                batch = [index for index, state in zip(batch, moved, strict=True) if state is not None]
                states = [state for state in moved if state is not None]

    with ThreadPoolExecutor(slots) as pool:
        list(pool.map(one_slot, range(slots)))
    return [end - at for end, (at, _) in zip(ended, arrivals, strict=True)]


def caching(loop: Loop, seconds: float) -> dict[str, Any]:
    torch.set_num_threads(loop.layout.threads)
    states = loop.start([1000])

    def start() -> object:
        return loop.start([1000])

    def step() -> object:
        return loop.step(states)

    for what in (start, step):
        what()
    taken: dict[str, list[float]] = {"start": [], "step": []}
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(taken["step"]) < 3:  # in turns
        taken["start"].append(_timed(start))
        taken["step"].append(_timed(step))
    return {
        "start_seconds": median(taken["start"]),
        "step_seconds": median(taken["step"]),
        "start_flops": _flops(start),
        "step_flops": _flops(step),
    }


def _timed(what: Callable[[], object]) -> float:
    began = time.monotonic()
    what()
    return time.monotonic() - began


def _flops(what: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        what()
    return int(counter.get_total_flops())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inpainting_loops", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("what", choices=["bounds", "static", "one", "caching"])
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--largest", type=int, default=8, help="rows of a static batch")
    options = parser.parse_args()
    loop = Loop(options.bundle)
    match options.what:
        case "bounds":
            print(json.dumps(bounds(loop, options.seconds)))
        case "caching":
            print(json.dumps(caching(loop, options.seconds)))
        case "static":
            print(json.dumps(static(loop, json.load(sys.stdin), options.largest)))
        case "one":
            print(json.dumps(one(loop, json.load(sys.stdin))))


if __name__ == "__main__":
    main()
