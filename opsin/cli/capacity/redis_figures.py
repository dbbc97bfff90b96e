"""Capacity of one Redis: figures of `python -m benchmarks.redis_capacity`, which docs/scaling.md shows with the machine."""

from __future__ import annotations

from collections.abc import Mapping

CPU_S = {3_888: 0.000202, 39_675: 0.000257, 150_528: 0.000444, 602_112: 0.001013}
"""CPU time in seconds of Redis for one job, by the bytes of its arrays: the largest of 1 to 4 gateways."""
MEMORY_BYTES = {3_888: 12_970, 39_675: 42_465, 150_528: 212_536, 602_112: 1_061_166}
"""Memory of an unfinished job, by the bytes of its arrays, with the buffers through which it passes."""
IDLE_BYTES = 2_536_752
"""Memory of a Redis whose service has worked and is idle: scripts, statistics and buffers."""


def cpu_s(payload_bytes: float) -> float:
    """Return the CPU time in seconds that Redis needs for a job."""
    return _interpolate(CPU_S, payload_bytes)


def memory_bytes(payload_bytes: float) -> float:
    """Return the memory of one unfinished job."""
    return _interpolate(MEMORY_BYTES, payload_bytes)


def _interpolate(figures: Mapping[int, float], payload_bytes: float) -> float:
    """Interpolate between the measured sizes, and extrapolate beyond the largest. Below the smallest, return its figure."""
    sizes = sorted(figures)
    if payload_bytes <= sizes[0]:
        return figures[sizes[0]]
    upper = next((size for size in sizes if size >= payload_bytes), sizes[-1])
    lower = sizes[sizes.index(upper) - 1]
    return figures[lower] + (payload_bytes - lower) / (upper - lower) * (figures[upper] - figures[lower])
