"""Clients who leave while their request waits."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from server.process.interruption import Interruption, Ticks

SHORT_WAIT = 0.05
"""Seconds. Most requests are answered within them; only then is it worth watching whether the client is still there."""


class ClientWatch:
    """`with ClientWatch(ticks, receive, interruption):` ends the interruption with ClientDisconnect when the client leaves.

    The body must have been read."""

    __slots__ = ("_interruption", "_receive", "_tick", "_ticks", "_watcher")

    def __init__(self, ticks: Ticks, receive: Receive, interruption: Interruption) -> None:
        self._ticks = ticks
        self._receive = receive
        self._interruption = interruption
        self._tick = -1
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._tick = self._ticks.add(self, SHORT_WAIT)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ticks.remove(self, self._tick)
        if self._watcher is not None:
            self._watcher.cancel()

    def due(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._interruption.end(ClientDisconnect())
