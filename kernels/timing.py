"""Measures which of two ways a CPU likes better, since that depends on the CPU, on PyTorch and on its libraries."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def pays(other: Callable[[], object], usual: Callable[[], object], *, share: float, turns: int) -> bool:
    """Return whether `other` takes at most this share of the CPU time of `usual`: the shortest turn of each, after one that does not count,
    since it prepares what is kept."""
    seconds: dict[Callable[[], object], list[float]] = {other: [], usual: []}
    with torch.inference_mode():
        for _ in range(1 + turns):
            for call, times in seconds.items():
                began = time.thread_time()
                call()
                times.append(time.thread_time() - began)
    return min(seconds[other][1:]) <= share * min(seconds[usual][1:])
