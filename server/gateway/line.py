"""A line for something of which there is only so much, in which clients take turns: who wants much waits behind their own."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

Place = tuple[int, "asyncio.Future[None]"]


class Line:
    """For one event loop. Clients hold at most `total` together and `share` each; what alone is more than that is held alone. It iterates
    over the clients that hold something."""

    def __init__(self, total: int, share: int, may_begin: Callable[[str], bool] | None = None) -> None:
        """may_begin: whether a client's turn may come now. Whoever is refused is overtaken; call `start` when that changes."""
        self._may_begin = may_begin
        self._total = total
        self._share = share
        self._taken = 0
        self._held: Counter[str] = Counter()
        """By client."""
        self._waiting: dict[str, deque[Place]] = {}
        """What waits, by client; no queue is empty, and the client whose turn is next comes first."""

    @asynccontextmanager
    async def held(self, client: str, amount: int = 1) -> AsyncIterator[None]:
        """Waits for the client's turn. The amount is given back at the end of the block."""
        await self.enter(client, amount)
        try:
            yield
        finally:
            self.leave(client, amount)

    async def enter(self, client: str, amount: int) -> None:
        """Waits until the client holds the amount, which `leave` gives back."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append((amount, turn))
        self.start()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self.start()
            else:
                self.leave(client, amount)
            raise

    def leave(self, client: str, amount: int) -> None:
        self._taken -= amount
        self._held[client] -= amount
        if not self._held[client]:
            del self._held[client]
        self.start()

    def held_by(self, *clients: str) -> int:
        """What they hold together."""
        return sum(self._held[client] for client in clients)

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def start(self) -> None:
        """Let in whoever may begin."""
        while (client := self._next()) is not None:
            line = self._waiting.pop(client)
            amount, turn = line.popleft()
            if line:
                self._waiting[client] = line  # behind all others
            if not turn.done():
                self._taken += amount
                self._held[client] += amount
                turn.set_result(None)

    def _next(self) -> str | None:
        """Whoever is within their share and next; nobody overtakes them while there is too little left of the total."""
        for client, line in self._waiting.items():
            amount, turn = line[0]
            if turn.done():  # it has left
                return client
            if self._held[client] and self._held[client] + amount > self._share:
                continue
            if self._may_begin is not None and not self._may_begin(client):
                continue
            return None if self._taken and self._taken + amount > self._total else client
        return None
