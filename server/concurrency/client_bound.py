"""What clients may hold of something limited: bytes, connections, threads. A client that wants much waits behind its own work."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from typing import Literal

Place = tuple[int, "asyncio.Future[None]"]


class ClientBound:
    """At most `total` for all clients together and `each` for one; the client "" is anonymous and bound by `total` alone.

    It counts: callers that do not wait ask `over` first, and refuse or make room. Callers that wait use `enter`, clients in turn, and
    an amount beyond a bound is held alone. For one event loop. Iterates over the clients that hold something.
    """

    def __init__(self, total: float = inf, each: float = inf, may_begin: Callable[[str], bool] | None = None) -> None:
        """may_begin: whether a waiting client's turn may come now. Refused clients are overtaken; call `admit` when that changes."""
        self.total = total
        self.each = each
        self._may_begin = may_begin
        self._taken = 0
        self._held: dict[str, int] = {}
        """By client; no client holds 0."""
        self._waiting: dict[str, deque[Place]] = {}
        """Places that wait, by client; no queue is empty, and the client whose turn is next comes first."""

    def held(self, client: str | None = None) -> int:
        """Return the amount that a client holds; None: that all hold."""
        return self._taken if client is None else self._held.get(client, 0)

    def over(self, client: str, amount: int) -> Literal["", "each", "total"]:
        """Return the bound that so much more would exceed; empty: none."""
        if client and self._held.get(client, 0) + amount > self.each:
            return "each"
        return "total" if self._taken + amount > self.total else ""

    def take(self, client: str, amount: int) -> None:
        self._taken += amount
        self._held[client] = self._held.get(client, 0) + amount

    def give(self, client: str, amount: int) -> None:
        """Give back what was taken, and let in those that wait for it."""
        self._taken -= amount
        left = self._held[client] - amount
        if left:
            self._held[client] = left
        else:
            del self._held[client]
        if self._waiting:
            self.admit()

    def greediest(self) -> tuple[str, int]:
        """Return the client that holds most, and how much; ("", 0) if no known client holds anything."""
        return max(((client, amount) for client, amount in self._held.items() if client), key=lambda held: held[1], default=("", 0))

    async def enter(self, client: str, amount: int) -> None:
        """Wait until the client holds the amount, which `give` gives back."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append((amount, turn))
        self.admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self.admit()
            else:
                self.give(client, amount)
            raise

    def admit(self) -> None:
        """Let in the clients whose turn may come."""
        while (client := self._next()) is not None:
            line = self._waiting.pop(client)
            amount, turn = line.popleft()
            if line:
                self._waiting[client] = line  # behind all others
            if not turn.done():
                self.take(client, amount)
                turn.set_result(None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def _next(self) -> str | None:
        """Return the next client within its bound; it is not overtaken while too little is left of the total."""
        for client, line in self._waiting.items():
            amount, turn = line[0]
            if turn.done():  # it has left
                return client
            if self._held.get(client) and self.over(client, amount) == "each":
                continue
            if self._may_begin is not None and not self._may_begin(client):
                continue
            return None if self._taken and self._taken + amount > self.total else client
        return None
