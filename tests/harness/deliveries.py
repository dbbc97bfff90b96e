"""Jobs as a worker holds them, for tests of what happens between pull and answer."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np

from server.arrays import Array
from server.queue import keys
from server.queue.delivery import Delivery, QueueEntry
from server.queue.messages import Priority, QueuedJob

_numbers = count(1)


def delivery(
    *,
    bundle: str = "tiny@1",
    bucket: str = "a",
    priority: Priority = "normal",
    queued_at: float = 0.0,
    pulled_at: float | None = None,
    alone: bool = False,
    pixels: Any = None,
    merge: tuple[int, ...] = (0, 0),
) -> Delivery:
    number = next(_numbers)
    job = QueuedJob(
        id=f"job-{number}",
        bundle=bundle,
        digest="0" * 64,
        bucket=bucket,
        arrays={} if pixels is None else {"pixels": Array.of(np.asarray(pixels))},
        options={"merge": list(merge)},
        priority=priority,
        deadline_ms=2**50,
        gateway="gateway",
    )
    held = QueueEntry(
        job_id=job.id,
        gateway=job.gateway,
        stream=keys.stream(keys.queue(bundle, job.digest), priority),
        entry_id=f"{number}-0",
        alone=alone,
        added_ms=number,
        queued_at=queued_at,
        pulled_at=queued_at if pulled_at is None else pulled_at,
        checked_at=queued_at,
        nbytes=sum(len(array.data) for array in job.arrays.values()),
    )
    return Delivery.of(held, job)
