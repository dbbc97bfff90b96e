"""Bounds on what clients hold of a limited resource: bytes, connections, threads. A client that wants much waits behind its own work."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from typing import Literal

QueuedAmount = tuple[int, "asyncio.Future[None]"]


class ClientBound:
    """A bound of `total` for all clients together and `each` for one; the client "" is anonymous and bound by `total` alone.

    Callers that do not wait check `over` first, and reject work or free something. Callers that wait use `enter`, clients in turn, and an
    amount beyond a bound is held alone. It serves one event loop, and iterates over the clients that hold something.
    """

    def __init__(self, total: float = inf, each: float = inf, may_start: Callable[[str], bool] | None = None) -> None:
        """may_start: whether a waiting client's turn may come now. Other clients overtake it; call `admit` when the result changes."""
        self.total = total
        self.each = each
        self._may_start = may_start
        self._taken = 0
        self._amounts: dict[str, int] = {}
        """Amounts by client; no client holds 0."""
        self._waiting: dict[str, deque[QueuedAmount]] = {}
        """Waiting amounts by client; no queue is empty, and the client whose turn is next comes first."""

    def amount(self, client: str | None = None) -> int:
        """Return the amount that a client holds, or all clients together if it is None."""
        return self._taken if client is None else self._amounts.get(client, 0)

    def over(self, client: str, amount: int) -> Literal["", "each", "total"]:
        """Return the bound that this much more would exceed. Empty if there is none."""
        if client and self._amounts.get(client, 0) + amount > self.each:
            return "each"
        return "total" if self._taken + amount > self.total else ""

    def take(self, client: str, amount: int) -> None:
        self._taken += amount
        self._amounts[client] = self._amounts.get(client, 0) + amount

    def give(self, client: str, amount: int) -> None:
        """Return an amount, and admit those that wait for it."""
        self._taken -= amount
        left = self._amounts[client] - amount
        if left:
            self._amounts[client] = left
        else:
            del self._amounts[client]
        if self._waiting:
            self.admit()

    def greediest(self) -> tuple[str, int]:
        """Return the client that holds most, and its amount; ("", 0) if no known client holds anything."""
        return max(((client, amount) for client, amount in self._amounts.items() if client), key=lambda pair: pair[1], default=("", 0))

    async def enter(self, client: str, amount: int) -> None:
        """Wait until the client holds the amount; return it with `give`."""
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
        """Admit the clients whose turn may come."""
        while (client := self._next()) is not None:
            line = self._waiting.pop(client)
            amount, turn = line.popleft()
            if line:
                self._waiting[client] = line  # behind all others
            if not turn.done():
                self.take(client, amount)
                turn.set_result(None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._amounts)

    def _next(self) -> str | None:
        """Return the next client within its bound; it is not overtaken while too little is left of the total."""
        for client, line in self._waiting.items():
            amount, turn = line[0]
            if turn.done():  # it has left
                return client
            if self._amounts.get(client) and self.over(client, amount) == "each":
                continue
            if self._may_start is not None and not self._may_start(client):
                continue
            return None if self._taken and self._taken + amount > self.total else client
        return None
