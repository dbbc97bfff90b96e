"""The bare loop: steps/s of a bundle without queue, scheduler and HTTP, by batch size: `python -m benchmarks.step_bounds BUNDLE_FOLDER`.

Every slot that the worker would have steps at the same time, with the threads that it would have. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from models.bundle import read
from models.loading import LoadedStepwiseModel, load
from server.settings import load as load_settings
from server.worker.device_layout import Layout, choose_layout

SPINNING = """
import sys, time
share = float(sys.argv[1])
while True:
    until = time.perf_counter() + 0.01 * share
    while time.perf_counter() < until:
        sum(range(200))
    time.sleep(0.01 * (1 - share))
"""


@dataclass(frozen=True)
class StepBound:
    size: int
    steps_per_second: float
    """Jobs × steps, of all slots."""
    longest: float
    """Time in seconds of the longest step."""


def measure(steps: LoadedStepwiseModel, layout: Layout, size: int, seconds: float) -> StepBound:
    pixels = np.full((16, 16, 3), 2, np.uint8)
    states = steps.start([{"pixels": pixels}] * size, [{}] * size)

    def one_slot(_slot: int) -> list[float]:
        torch.set_num_threads(layout.threads)
        times = []
        until = time.monotonic() + seconds
        while (started_at := time.monotonic()) < until:
            steps.step(states, [False] * size)
            times.append(time.monotonic() - started_at)
        return times

    with ThreadPoolExecutor(layout.slots) as pool:
        slots = list(pool.map(one_slot, range(layout.slots)))
    times = [taken for slot in slots for taken in slot]
    return StepBound(size, sum(len(slot) * size / sum(slot) for slot in slots), max(times))


@contextmanager
def busy(cpus: float) -> Iterator[None]:
    """Keep some CPUs busy during the `with` block, in turns of 10 ms: if CPUs are two threads of one core, the other one gets slower."""
    if cpus <= 0:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", SPINNING, str(min(cpus, 1.0))])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_bounds", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each batch size")
    parser.add_argument("--beside", type=float, default=0.0, help="CPUs that background load takes")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    options = parser.parse_args()
    layout = choose_layout(load_settings())
    steps = load(read(options.bundle), device=layout.device, packed=True).steps
    if steps is None:
        parser.error(f"{options.bundle}: its jobs are one forward pass")
    torch.set_num_threads(layout.threads)
    measure(steps, layout, options.sizes[0], 0.1)  # what happens only once
    with busy(options.beside):
        bounds = [asdict(measure(steps, layout, size, options.seconds)) for size in options.sizes]
    print(json.dumps({"slots": layout.slots, "bounds": bounds}))


if __name__ == "__main__":
    main()
