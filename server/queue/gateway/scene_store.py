"""Scenes that a network has encoded, kept for a while so that they can be asked again: by any gateway, of any worker."""

from __future__ import annotations

import re
import secrets

import msgspec

from server.queue import keys
from server.queue.errors import RedisUnavailable
from server.queue.gateway.connection import GatewayRedisLink
from server.queue.gateway.large_values import LargeValues
from server.queue.messages import VERSION, Array
from server.queue.script import Script
from server.settings import Settings

KEEP_SCENE = Script("keep_scene", tuple[str, str, int, int], int)
SCENES = "scene"
"""How scenes are called among the states of what is kept (`parts/records.lua`)."""
SCENE_ID = re.compile(r"[0-9a-f]{34}")
"""Ids, whose first two digits name the partition."""


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

    def __init__(self, link: GatewayRedisLink, large_values: LargeValues, settings: Settings) -> None:
        self._link = link
        self._large_values = large_values
        self._settings = settings

    async def keep(self, scene_id: str, scene: Scene) -> bool:
        """Keep a scene. Returns False if kept results have no space left (`results_max_bytes`), or Redis is unavailable."""
        try:
            return await self._link.shield(self._keep(scene_id, msgspec.msgpack.encode(scene)))
        except RedisUnavailable:
            return False

    async def read(self, scene_id: str) -> Scene | None:
        """Read a scene; None if there is none, or it has expired. Raises RedisUnavailable."""
        if SCENE_ID.fullmatch(scene_id) is None or not scene_id.startswith(self._link.digits):
            return None
        data = await self._link.shield(self._large_values.read(keys.scene(scene_id)))
        try:
            scene = msgspec.msgpack.decode(data, type=Scene) if data else None
        except msgspec.MsgspecError:  # it expired between two pieces
            return None
        return scene if scene is not None and scene.v == VERSION else None

    async def _keep(self, scene_id: str, data: bytes) -> bool:
        staged = keys.stage(f"{scene_id}:{secrets.token_hex(4)}")  # an answer may be fetched twice at once, and pieces must not mix
        await self._large_values.write(staged, data)
        ttl_ms = int(self._settings.scene_ttl * 1000)
        stored = await self._link.run(KEEP_SCENE, (scene_id, staged, ttl_ms, self._settings.results_max_bytes))
        return stored == 1
