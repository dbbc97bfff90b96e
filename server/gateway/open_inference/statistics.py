"""Triton's model statistics, from what the queue counted for a bundle where its jobs ended.

perf_analyzer reads every field and gives up on a model whose version it does not find.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.bundle import BundleSpec

REQUEST_PARTS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
BATCH_PARTS = ("compute_input", "compute_infer", "compute_output")


def model_statistics(spec: BundleSpec, counters: Mapping[str, int]) -> dict[str, Any]:
    """`counters` as the finish script keeps them: `<part>_count`, `<part>_ns`, `batch:<size>:count`, `batch:<size>:<part>_ns`, …"""
    return {
        "name": spec.name,
        "version": spec.version,
        "last_inference": counters.get("last_inference", 0),
        "inference_count": counters.get("inference_count", 0),
        "execution_count": counters.get("execution_count", 0),
        "inference_stats": {part: _duration(counters.get(f"{part}_count", 0), counters.get(f"{part}_ns", 0)) for part in REQUEST_PARTS},
        "batch_stats": [_batch(size, counters) for size in _batch_sizes(counters)],
        "response_stats": {},
        "memory_usage": [],
    }


def _batch_sizes(counters: Mapping[str, int]) -> list[int]:
    return sorted(int(name.split(":")[1]) for name in counters if name.startswith("batch:") and name.endswith(":count"))


def _batch(size: int, counters: Mapping[str, int]) -> dict[str, Any]:
    count = counters[f"batch:{size}:count"]
    return {"batch_size": size, **{part: _duration(count, counters.get(f"batch:{size}:{part}_ns", 0)) for part in BATCH_PARTS}}


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}
