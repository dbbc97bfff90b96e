"""Vectors of texts that were read before, kept for every gateway. A Redis that is unavailable or full has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import msgspec

from server.queue import keys
from server.queue.errors import RedisUnavailable
from server.queue.gateway.connection import GatewayRedisLink
from server.queue.gateway.large_values import LargeValues
from server.queue.script import Script
from server.settings import Settings

AT_ONCE = 64
"""Vectors that one command moves: a piece (`resp.CHUNK_BYTES`), where they have 1,024 numbers."""


class VectorUse(msgspec.Struct, frozen=True):
    """Vectors that were used or read. Then each new one."""

    max_bytes: int
    ttl_ms: int
    owner: str
    """Owner of the new ones."""
    used: Sequence[str]
    """Ids of kept ones that were just used."""
    new: Sequence[str]
    """Ids of new ones."""


KEEP_VECTORS = Script("keep_vectors", VectorUse, bytes)


class VectorStore:
    """Vectors of one event loop."""

    def __init__(self, link: GatewayRedisLink, large_values: LargeValues, settings: Settings) -> None:
        self._link = link
        self._large_values = large_values
        self._settings = settings

    async def recall(self, ids: Sequence[str]) -> dict[str, bytes]:
        """Return those that are kept, by id; from now on they count as used."""
        found: dict[str, bytes] = {}
        with suppress(RedisUnavailable):
            self._link.raise_if_unavailable()
            for first in range(0, len(ids), AT_ONCE):
                some = ids[first : first + AT_ONCE]
                values = await self._link.shield(self._large_values.read_small([keys.vector(id_) for id_ in some]))
                found |= {id_: value for id_, value in zip(some, values, strict=True) if value is not None}
        if found:
            self._link.spawn(self._keep("", list(found), {}))
        return found

    def keep_soon(self, owner: str, vectors: Mapping[str, bytes]) -> None:
        """Keep them, while the caller goes on."""
        self._link.spawn(self._keep(owner, [], vectors))

    async def _keep(self, owner: str, used: Sequence[str], new: Mapping[str, bytes]) -> None:
        max_bytes, ttl = self._settings.text_cache_bytes, int(self._settings.text_cache_ttl * 1000)
        ids = list(new)
        with suppress(RedisUnavailable):
            for first in range(0, max(len(ids), len(used)), AT_ONCE):
                recent, some = used[first : first + AT_ONCE], ids[first : first + AT_ONCE]
                await self._link.run_with_payload(KEEP_VECTORS, VectorUse(max_bytes, ttl, owner, recent, some), [new[id_] for id_ in some])
