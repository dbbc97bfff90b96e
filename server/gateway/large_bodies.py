"""Large bodies are taken apart one at a time, clients in turn: each needs several times its bytes. Smaller ones wait for none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from server.gateway.heavy_clients import HeavyClients
from server.gateway.turns import Turns

T = TypeVar("T")

SMALL = 64 * 1024
"""Bytes up to which a body is taken apart faster than handed to a thread."""
LARGE = 1024 * 1024
"""Bytes from which it takes so long that others should not wait for it."""


class LargeBodies:
    """For one event loop."""

    def __init__(self, heavy: HeavyClients | None = None) -> None:
        self._turns = Turns(1, together=1, heavy=heavy)
        self._turns_of_smaller = Turns(1, together=1)

    async def in_turn(self, client: str, nbytes: int, work: Callable[[], T]) -> T:
        """The result of `work` on a body of so many bytes. A caller that gives up before its turn leaves the line."""
        if nbytes <= SMALL:
            return work()
        return await (self._turns if nbytes > LARGE else self._turns_of_smaller).run(client, work)

    def close(self) -> None:
        self._turns.close()
        self._turns_of_smaller.close()
