"""How a request that waits is ended from outside: by its client, who left, or because nobody is there to answer it."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.requests import ClientDisconnect
from starlette.types import Receive

SHORT_WAIT = 0.05
"""Seconds. Most requests are answered within them; only then is it worth watching whether the client is still there."""


class Interruption:
    """`with Interruption() as waiting:` from then on `waiting.end(reason)` raises `reason` inside the block, at its next await."""

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._reason: Exception | None = None

    def __enter__(self) -> Interruption:
        self._task = asyncio.current_task()
        return self

    def end(self, reason: Exception) -> None:
        if self._task is not None and self._reason is None:
            self._reason = reason
            self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        task, self._task = self._task, None
        if self._reason is not None and isinstance(error, asyncio.CancelledError):
            assert task is not None
            task.uncancel()
            raise self._reason from None


class ClientWatch:
    """`with ClientWatch(receive):` raises ClientDisconnect inside the block when the client leaves. The body must have been read."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._waiting = Interruption()
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._waiting.__enter__()
        self._timer = asyncio.get_running_loop().call_later(SHORT_WAIT, self._start)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._timer is not None
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        self._waiting.__exit__(kind, error, trace)

    def _start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._waiting.end(ClientDisconnect())
