"""Denoising without queue, scheduler and HTTP, in a process of its own: `python -m benchmarks.inpainting_loops BUNDLE WHAT`. Prints JSON.

bounds: steps/s by batch size, of all slots that a worker would have; seconds to start a job; seconds of a step of one job with all threads.
caching: seconds and FLOPs of the encoder with keys and values, and of a step. holes: seconds of a step of 16 jobs whose holes are boxes of
random sizes, packed and padded.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step_bounds import busy
from models.bundle import read
from models.layers.stepwise import JobState
from models.loading import LoadedStepwiseModel, StepOutputs, load
from models.systems.diffmae.steps import InpaintingSteps
from server.settings import load as load_settings
from server.tasks.registry import TASKS
from server.worker.device_layout import Layout, choose_layout, threads_allowed

SIZES = (1, 2, 4, 8, 16, 32)
HOLES = 16


class InpaintLoop:
    """Jobs of the usual hole."""

    def __init__(self, folder: Path) -> None:
        bundle = read(folder)
        self.layout: Layout = choose_layout(load_settings())
        model = load(bundle, device=self.layout.device, packed=True)
        assert model.steps is not None
        self.steps: LoadedStepwiseModel = model.steps
        self._arrays = TASKS[bundle.spec.task].samples(bundle.spec)[0]

    def box_step(self, *, packs: bool) -> Callable[[], object]:
        """Return a step of jobs whose holes are boxes of up to three quarters of each side."""
        model = self.steps.steps
        assert isinstance(model, InpaintingSteps)
        steps, chance = (
            LoadedStepwiseModel(InpaintingSteps(model.model, self.steps.device, packs=packs), self.steps.device),
            random.Random(0),
        )
        jobs = []
        for _ in range(HOLES):
            missing = np.zeros_like(self._arrays["missing"])
            height, width = (chance.randint(side // 12, side * 3 // 4) for side in missing.shape)
            top, left = chance.randint(0, missing.shape[0] - height), chance.randint(0, missing.shape[1] - width)
            missing[top : top + height, left : left + width] = 1
            jobs.append({**self._arrays, "missing": missing})
        states = steps.start(jobs, [{"steps": 1000, "seed": seed} for seed in range(HOLES)])
        return lambda: steps.step(states, [False] * HOLES)

    def start(self, totals: list[int]) -> list[JobState]:
        return self.steps.start([self._arrays] * len(totals), [{"steps": total, "seed": seed} for seed, total in enumerate(totals)])

    def step(self, states: list[JobState]) -> list[JobState | None]:
        """Return the next states, None for jobs that have ended."""
        return [None if isinstance(one, StepOutputs) else one.state for one in self.steps.step(states, [False] * len(states))]


def bounds(loop: InpaintLoop, seconds: float) -> dict[str, Any]:
    layout = loop.layout

    def measure(size: int, seconds: float = seconds) -> dict[str, float]:
        states = loop.start([1000] * size)

        def one_slot(_slot: int) -> list[float]:
            torch.set_num_threads(layout.threads)
            times, until = [], time.monotonic() + seconds
            while (started_at := time.monotonic()) < until:
                loop.step(states)
                times.append(time.monotonic() - started_at)
            return times

        with ThreadPoolExecutor(layout.slots) as pool:
            slots = list(pool.map(one_slot, range(layout.slots)))
        times = [taken for slot in slots for taken in slot]
        per_second = sum(len(slot) * size / sum(slot) for slot in slots)
        return {"size": size, "steps_per_second": per_second, "longest": max(times), "median": median(times)}

    torch.set_num_threads(layout.threads)
    measure(1)  # what happens only once
    sizes = [measure(size) for size in SIZES]
    # the best of several noisy readings is too high: what counts is measured once more
    best = max(range(len(SIZES)), key=lambda index: sizes[index]["steps_per_second"])
    sizes[best] = measure(SIZES[best], 2 * seconds)
    start_seconds = _median_seconds(lambda: loop.start([1000]), seconds)
    torch.set_num_threads(threads_allowed())
    [state] = loop.start([1000])
    all_threads = _median_seconds(lambda: loop.step([state]), seconds)
    return {"slots": layout.slots, "bounds": sizes, "start_seconds": start_seconds, "all_threads": all_threads}


def holes(loop: InpaintLoop, seconds: float) -> dict[str, Any]:
    torch.set_num_threads(loop.layout.threads)
    ways = {"packed": loop.box_step(packs=True), "padded": loop.box_step(packs=False)}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(taken["padded"]) < 3:  # in turns
        for name, step in ways.items():
            taken[name].append(_seconds(step))
    return {name: median(times) for name, times in taken.items()}


def caching(loop: InpaintLoop, seconds: float) -> dict[str, Any]:
    torch.set_num_threads(loop.layout.threads)
    states = loop.start([1000])

    def start() -> object:
        return loop.start([1000])

    def step() -> object:
        return loop.step(states)

    for call in (start, step):
        call()
    taken: dict[str, list[float]] = {"start": [], "step": []}
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(taken["step"]) < 3:  # in turns
        taken["start"].append(_seconds(start))
        taken["step"].append(_seconds(step))
    return {
        "start_seconds": median(taken["start"]),
        "step_seconds": median(taken["step"]),
        "start_flops": _flops(start),
        "step_flops": _flops(step),
    }


def _median_seconds(call: Callable[[], object], seconds: float) -> float:
    """Median seconds."""
    call()
    taken, until = list[float](), time.monotonic() + seconds
    while time.monotonic() < until or len(taken) < 3:
        taken.append(_seconds(call))
    return median(taken)


def _seconds(call: Callable[[], object]) -> float:
    started_at = time.monotonic()
    call()
    return time.monotonic() - started_at


def _flops(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


MEASUREMENTS: Mapping[str, Callable[[InpaintLoop, float], dict[str, Any]]] = {"bounds": bounds, "caching": caching, "holes": holes}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inpainting_loops", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("what", choices=list(MEASUREMENTS))
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--beside", type=float, default=0.0, help="CPUs that background load takes")
    options = parser.parse_args()
    loop = InpaintLoop(options.bundle)
    with busy(options.beside):
        print(json.dumps(MEASUREMENTS[options.what](loop, options.seconds)))


if __name__ == "__main__":
    main()
