"""Timing of two implementations: which is faster depends on the CPU, on PyTorch and on its libraries."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def is_faster(candidate: Callable[[], object], baseline: Callable[[], object], *, max_ratio: float, rounds: int) -> bool:
    """Return True if `candidate` takes at most `max_ratio` of the CPU time of `baseline`.

    The shortest round of each counts. One round before is not measured, since it prepares what is cached.
    """
    seconds: dict[Callable[[], object], list[float]] = {candidate: [], baseline: []}
    with torch.inference_mode():
        for _ in range(1 + rounds):
            for call, times in seconds.items():
                started_at = time.thread_time()
                call()
                times.append(time.thread_time() - started_at)
    return min(seconds[candidate][1:]) <= max_ratio * min(seconds[baseline][1:])
