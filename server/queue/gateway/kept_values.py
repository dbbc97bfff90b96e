"""Values other than jobs that gateways keep in Redis: encoded scenes, which can be queried again, and vectors of texts that were read."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress

import msgspec

from server.queue import keys
from server.queue.connect import RedisUnavailable
from server.queue.gateway.connection import GatewayRedisLink
from server.queue.messages import VERSION, Array
from server.queue.script import Script
from server.settings import Settings

KEEP_SCENE = Script("keep_scene", tuple[str, str, int, int], int)
SCENES = "scene"
"""How scenes are called among the states of what is kept (`parts/records.lua`)."""
SCENE_ID = re.compile(r"[0-9a-f]{34}")
"""Ids, whose first two digits name the cell."""


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    v: int = VERSION
    task: str
    digest: str
    """The digest of the spec of the bundle that encoded it, which alone understands it."""
    arrays: dict[str, Array]
    key_name: str = ""
    """The name of the API key that it was made with, whom alone it answers; empty: of none."""


class SceneStore:
    """Scenes of one event loop."""

    def __init__(self, link: GatewayRedisLink, settings: Settings) -> None:
        self._link = link
        self._settings = settings

    async def keep(self, scene_id: str, scene: Scene) -> bool:
        """Keep a scene. Returns False if kept results have no space left (`results_max_bytes`), or Redis is unavailable."""
        try:
            return await self._link.shield(self._keep(scene_id, msgspec.msgpack.encode(scene)))
        except RedisUnavailable:
            return False

    async def read(self, scene_id: str) -> Scene | None:
        """Read a scene; None if there is none, or it has expired. Raises RedisUnavailable."""
        if SCENE_ID.fullmatch(scene_id) is None or not scene_id.startswith(self._link.keyspace.digits):
            return None
        data = await self._link.shield(self._link.read_large(keys.scene(scene_id)))
        try:
            scene = msgspec.msgpack.decode(data, type=Scene) if data else None
        except msgspec.MsgspecError:  # it expired between two pieces
            return None
        return scene if scene is not None and scene.v == VERSION else None

    async def _keep(self, scene_id: str, data: bytes) -> bool:
        staged = keys.stage(f"{scene_id}:{secrets.token_hex(4)}")  # an answer may be fetched twice at once, and pieces must not mix
        await self._link.write_large(staged, data)
        ttl_ms = int(self._settings.scene_ttl * 1000)
        stored = await self._link.run(KEEP_SCENE, (scene_id, staged, ttl_ms, self._settings.results_max_bytes))
        return stored == 1


AT_ONCE = 64
"""Vectors that one command moves: a chunk (`CHUNK_BYTES`), if they have 1,024 numbers."""


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
    """Vectors of one event loop. A Redis that is unavailable or full has none."""

    def __init__(self, link: GatewayRedisLink, settings: Settings) -> None:
        self._link = link
        self._settings = settings

    async def recall(self, ids: Sequence[str]) -> dict[str, bytes]:
        """Return those that are kept, by id; from now on they count as used."""
        found: dict[str, bytes] = {}
        with suppress(RedisUnavailable):
            self._link.raise_if_unavailable()
            for first in range(0, len(ids), AT_ONCE):
                some = ids[first : first + AT_ONCE]
                values = await self._link.shield(self._link.read_chunk([keys.vector(id_) for id_ in some]))
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
