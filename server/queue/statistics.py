"""What the queue has counted, as gateways read it."""

from __future__ import annotations

from typing import Any

from server.queue import keys


async def restarts(client: Any) -> dict[str, int]:
    """How often supervisors have restarted a worker, by reason."""
    return _counts(await client.hgetall(keys.RESTARTS))


async def statistics(client: Any, bundle: str) -> dict[str, int]:
    """Cumulative, over all workers and gateways, as counted when jobs end; empty before the first.

    `success`, `fail`, `queue`, `compute_input`, `compute_infer`, `compute_output`, each with `_count` and `_ns`; `inference_count`,
    `execution_count`, `last_inference` (Unix ms), and for each batch size that ran `batch:<n>:count` and `batch:<n>:compute_*_ns`.
    """
    return _counts(await client.hgetall(keys.statistics(bundle)))


def _counts(fields: dict[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(count) for name, count in fields.items()}
