"""Loading a bundle and measuring it before the first request: which number format, and how long batches take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from models.bundle import Bundle, BundleError, BundleSpec
from models.merge_schedule import MergeSchedule
from models.registry import LoadedModel, load, not_served
from server.tasks.registry import TASKS
from server.worker.budget import StepTimes
from server.worker.executors import OneShot
from server.worker.layout import Layout

PROBE_SECONDS = 4.0
"""How long the batch sizes of one bundle may be measured, beyond the batch that is running then."""
DTYPE_SECONDS = 1.0
"""The same for one number format."""
DTYPE_BATCH = 4
CLEARLY_FASTER = 0.9
"""bfloat16 costs a little accuracy: it must take at most this share of float32's time."""
REPEATS = 3


@dataclass(frozen=True)
class Warm:
    """A bundle that is ready to serve."""

    executor: OneShot
    steps: StepTimes
    dtype: torch.dtype


def warm_up(bundle: Bundle, layout: Layout, dtype: str) -> Warm:
    """Load `bundle` and measure it with every slot busy. `dtype` is `auto`, `float32` or `bfloat16`. Raises BundleError."""
    reason = not_served(bundle.spec)
    if reason is not None:
        raise BundleError(reason)
    model, chosen = _in_the_faster_format(bundle, layout, dtype)
    steps = _probe(model, layout)
    run_at_once(layout, lambda: model.forward(_sample(model.spec, 1), {"merge": _per_block(model, MergeSchedule.off())}))
    return Warm(OneShot(model, layout.device), steps, chosen)


def run_at_once(layout: Layout, work: Callable[[], Any]) -> float:
    """Do `work` in every slot at the same time; the mean seconds it took."""

    def timed(_slot: int) -> float:
        torch.set_num_threads(layout.threads)
        started = time.monotonic()
        work()
        return time.monotonic() - started

    with ThreadPoolExecutor(layout.slots) as pool:
        return sum(pool.map(timed, range(layout.slots))) / layout.slots


def _in_the_faster_format(bundle: Bundle, layout: Layout, dtype: str) -> tuple[LoadedModel, torch.dtype]:
    if dtype != "auto":
        chosen = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
        return load(bundle, device=layout.device, dtype=chosen), chosen
    exact = load(bundle, device=layout.device, dtype=torch.float32)
    if next(exact.model.parameters(), None) is None:
        return exact, torch.float32
    short = load(bundle, device=layout.device, dtype=torch.bfloat16)
    seconds_exact, seconds_short = (_seconds(model, layout, DTYPE_BATCH, time.monotonic() + DTYPE_SECONDS) for model in (exact, short))
    return (short, torch.bfloat16) if seconds_short < CLEARLY_FASTER * seconds_exact else (exact, torch.float32)


def _probe(model: LoadedModel, layout: Layout) -> StepTimes:
    """Step times from 1 item upwards, until the throughput has fallen twice, memory ends or time is up."""
    steps = StepTimes(layout.largest_batch)
    deadline = time.monotonic() + PROBE_SECONDS
    size = 1
    while size <= steps.largest and size <= 4 * steps.best and (size == 1 or time.monotonic() < deadline):
        try:
            steps.record(size, _seconds(model, layout, size, deadline))
        except (torch.OutOfMemoryError, MemoryError):
            steps.out_of_memory(size)
        size *= 2
    return steps


def _seconds(model: LoadedModel, layout: Layout, size: int, deadline: float) -> float:
    """Seconds of a batch: the fastest of a few until the deadline. The first also pays for what happens only once."""
    arrays, options = _sample(model.spec, size), {"merge": _per_block(model, _usual_schedule(model.spec))}
    times = [run_at_once(layout, lambda: model.forward(arrays, options))]
    for _ in range(REPEATS):
        if time.monotonic() >= deadline:
            break
        times.append(run_at_once(layout, lambda: model.forward(arrays, options)))
    return min(times)


def _sample(spec: BundleSpec, size: int) -> dict[str, np.ndarray]:
    """What the task calls a usual job, `size` times. Raises BundleError."""
    task = TASKS.get(spec.task)
    if task is None:
        raise BundleError(f"{spec.id}: task {spec.task} is not served yet by this version")
    return {name: np.stack([array] * size) for name, array in task.sample(spec).items()}


def _usual_schedule(spec: BundleSpec) -> MergeSchedule:
    rung = spec.rung(spec.default_rung) if spec.default_rung else None
    return rung.merge if rung else MergeSchedule.off()


def _per_block(model: LoadedModel, schedule: MergeSchedule) -> Sequence[int]:
    return schedule.expand(model.depth)
