"""Large answers of jobs: a bounded number of bytes is read and sent at once, and each answer is made once for all who read it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.responses import Response

from server.gateway.line import Line
from server.gateway.problems import Kind, Problem

PATIENCE = 60.0
"""Seconds that an answer waits in its client's line."""
RETRY_AFTER = 5

Key = tuple[str, str]
"""Id of the job and media type."""


@dataclass(eq=False)
class _Shared:
    made: asyncio.Task[Response]
    readers: int = 0


class SharedAnswers:
    """For one event loop. One client's answers hold a quarter of the bytes; an answer counts for the client who asked first."""

    def __init__(self, nbytes: int) -> None:
        self._line = Line(nbytes, nbytes // 4)
        self._shared: dict[Key, _Shared] = {}

    @asynccontextmanager
    async def of(self, key: Key, client: str, nbytes: int, make: Callable[[], Awaitable[Response]]) -> AsyncIterator[Response]:
        """Hold an answer until the end of the block, by which it has been sent. Raises Problem: 429, and what `make` raises."""
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = _Shared(asyncio.create_task(self._make(client, nbytes, make)))
        shared.readers += 1
        try:
            yield await asyncio.shield(shared.made)
        finally:
            shared.readers -= 1
            if not shared.readers:
                del self._shared[key]
                self._drop(shared.made, client, nbytes)

    async def _make(self, client: str, nbytes: int, make: Callable[[], Awaitable[Response]]) -> Response:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._line.enter(client, nbytes)
        except TimeoutError:
            detail = f"answers that are being read hold all of OPSIN_RESULTS_MAX_BYTES, or a quarter for one client ({client})"
            raise Problem(Kind.CLIENT_SHARE, detail, retry_after=RETRY_AFTER) from None
        try:
            return await make()
        except BaseException:
            self._line.leave(client, nbytes)
            raise

    def _drop(self, made: asyncio.Task[Response], client: str, nbytes: int) -> None:
        if not made.done():
            made.cancel()  # it gives back what it holds
        elif not made.cancelled() and made.exception() is None:
            self._line.leave(client, nbytes)
