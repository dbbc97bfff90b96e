"""What the queue has counted, as gateways read it."""

from __future__ import annotations

from typing import Any

from server.queue import keys, lua


class Statistics:
    def __init__(self, client: Any) -> None:
        self._redis = client
        self._script = client.register_script(lua.source("statistics"))

    async def restarts(self) -> dict[str, int]:
        """How often supervisors have restarted a worker, by reason."""
        counts: dict[bytes, bytes] = await self._redis.hgetall(keys.RESTARTS)
        return {reason.decode(): int(count) for reason, count in counts.items()}

    async def of_bundle(self, bundle: str) -> dict[str, int]:
        """Cumulative, over all workers and gateways, as counted when jobs end; empty before the first.

        `success`, `fail`, `queue`, `compute_input`, `compute_infer`, `compute_output`, each with `_count` and `_ns`; `inference_count`,
        `execution_count`, `last_inference` (Unix ms), and for each batch size that ran `batch:<n>:count` and `batch:<n>:compute_*_ns`.
        """
        flat = await self._script(args=[bundle])
        return {name.decode(): int(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}
