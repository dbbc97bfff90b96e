"""Vectors of labels that a gateway keeps, and how many of them a request is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from server.gateway.inference.stages import AnsweredRequest, TaskPlan, Timing
from server.gateway.inference.text_cache import TextCache
from server.queue.messages import Priority
from server.tasks.embedding.vector_jobs import pack_texts
from server.tasks.embedding.zero_shot import ZeroShotOptions, ZeroShotTask
from tests.support.bundles.image_text import write_tiny_pair
from tests.support.queue import gateway

TASK = ZeroShotTask()
DIM = 24
PRIORITY: Priority = "normal"


def read(labels: list[str]) -> list[dict[str, Any]]:
    """Return what a network might answer."""
    outputs = []
    for job in pack_texts(labels):
        rows = len(job["lengths"])
        outputs.append({**job, "embedding": np.ones((rows, DIM), np.float32), "truncated": np.zeros(rows, bool)})
    return outputs


async def test_job_record_bounds_its_cached_vectors(url: str, tmp_path: Path) -> None:
    spec = write_tiny_pair(tmp_path).spec
    labels = [f"label {number}" for number in range(1000)]
    request = TaskPlan(TASK, spec, TASK.plan(ZeroShotOptions(label=labels, template=["{}"]), spec))
    each = DIM * 4 + 1
    async with gateway(url) as us:
        cache = TextCache(us.vectors, 16_000_000)
        timing = Timing(0.0, 0.0, 0.0, 0.0, 0.0, 1)
        await cache.store(AnsweredRequest(TASK, spec, request.plan, read(labels), timing, "application/json", "client", "", "one"))
        complete, some = await cache.recall(request, "client"), await cache.recall(request, "client", max_bytes=300 * each + 5)
        for number, answered in ((1000, complete), (300, some)):
            plan: Any = answered.plan
            assert len(plan.vectors) == number
            missing = [text for job in TASK.prepare_texts(plan, spec) for text in job["places"][job["lengths"] > 0].tolist()]
            assert sorted(missing) == list(range(number, 1000))  # these are read again
