"""Times of batches on an idle machine, in every slot at once, as a busy worker runs them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from server.scheduler.batcher import StepTimes
from server.worker.device_layout import Layout

REPEATS = 3
MAX_PROBE_S = 4.0
"""Maximum time in seconds to find the best batch size, beyond the batch that is running then."""
MAX_BATCH_S = 1.0
"""Maximum time of a batch in seconds."""


def measure_seconds(layout: Layout, work: Callable[[], Any]) -> float:
    """Do `work` in every slot at the same time, and return the mean seconds it took by the layout's clock."""

    def run(_slot: int) -> float:
        torch.set_num_threads(layout.threads)
        started = layout.clock()
        work()
        return layout.clock() - started

    with ThreadPoolExecutor(layout.slots) as pool:
        return sum(pool.map(run, range(layout.slots))) / layout.slots


def find_best_size(largest: int, seconds: Callable[[int], float]) -> int:
    """Return the batch size with the best throughput. seconds: measures a batch of a size.

    Sizes are tried from 1 upwards, until the throughput has fallen twice, batches take long, memory ends or time is up."""
    steps, deadline, size, last_s = StepTimes(largest), time.monotonic() + MAX_PROBE_S, 1, 0.0
    while size <= steps.largest and size <= 4 * steps.best and (size == 1 or (time.monotonic() < deadline and 2 * last_s <= MAX_BATCH_S)):
        try:
            last_s = min(seconds(size) for _ in range(1 + REPEATS))
            steps.record(size, last_s)
        except (torch.OutOfMemoryError, MemoryError):
            steps.out_of_memory(size)
        size *= 2
    return steps.best
